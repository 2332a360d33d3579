"""Runners: the same chains of steps in this process, or on Ray, on one machine or many.

A step is a function of (payload, state); a chain is steps that follow one another; chains do not wait for each other,
so a later step of one runs while an earlier step of the next does. Which step runs where is decided in
infra/schedule.py, by what every node has. The runner knows nothing of datasets. The invariant: every step of a chain
ends in exactly one `Done` until one fails or says it is the last, whatever dies under it, and leaving the `with` block,
for whatever reason, stops what still runs.

>>> with InlineRunner() as runner:
...     [done.value for done in runner.run([[Step("a", lambda x, _: x + 1, 1)]])]
[2]

The only module that imports ray.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from infra.errors import ConfigError, MedloomError
from infra.schedule import Capacity, Schedule, Start
from infra.settings import be_quiet
from infra.shipping import ours, versions
from infra.steps import Done as Done
from infra.steps import Ended, InlineRunner, call_step
from infra.steps import Last as Last
from infra.steps import Runner as Runner
from infra.steps import Step as Step

ATTEMPTS = 7
"""How often a step is started when the process under it dies, before it is given up: an item is convicted by two
deaths (infra/attempts.py), so three such items of a partition are found in one run."""
LOST = "the Ray node under this build is gone (killed, or out of memory?); start the same command again, it goes on"
WAIT_S = 5.0
"""How long to wait for a step to end before looking which nodes there are."""
GROW_S = 900.0
"""How long to wait for a node that a step fits on, where a cluster may grow."""
STARTS = 4
"""A local Ray is started so often: it gives up after half a minute, which is short on a busy machine."""
OBJECT_STORE_BYTES = 256 << 20
"""Names and counts travel through Ray, not pixels: Ray's default of a third of the memory is not needed."""
class RunnerLost(MedloomError):
    """What the runner ran on is gone; steps that ended stay ended."""


def open_runner(address: str) -> Runner:
    """`inline`; `ray`, a cluster of this machine's own, on loopback; `auto`, the cluster that this machine is a node
    of; `ray://HOST:PORT`, a cluster elsewhere, through Ray's client server."""
    if address == "inline":
        return InlineRunner()
    if address == "ray" or address == "auto" or address.startswith("ray://"):
        return RayRunner(None if address == "ray" else address)
    raise ConfigError(f"runner {address!r} is not known; use inline, ray, auto or ray://HOST:PORT")


class RayRunner:
    """Steps as Ray tasks, and as calls of long-lived Ray actors where they have something to open.

    The driver places every step itself, on a node by name: Ray would pile actors that hold no CPU on one node. A node
    that joins is looked at before it gets a step, and one on which a process died is looked at before it gets another:
    whether it was the process or the node decides whether the step lost an attempt.
    """

    def __init__(self, address: str | None = None, cpus: int | None = None) -> None:
        self._address, self._cpus = address, cpus
        self._running: dict[Any, Start] = {}
        self._looks: dict[Any, tuple[str, float]] = {}
        """what a look at a node will answer -> (node, when it began)"""
        self._doubt: dict[str, list[tuple[Start, str]]] = {}
        """node that is being looked at -> the steps whose processes died there, and what Ray said"""
        self._known: dict[str, Capacity] = {}
        self._asked: list[dict[str, float]] = []

    def __enter__(self) -> RayRunner:
        be_quiet()
        token = os.environ.get("RAY_AUTH_MODE", "token")
        if "ray" not in sys.modules:  # Ray reads it once; by then its default, the same for a local cluster, stands
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # its ports run whatever is sent to them
        if self._address and token != "token":
            raise ConfigError(
                f"RAY_AUTH_MODE={token}: whoever reaches a port of that cluster can run code on it; start it with "
                "RAY_AUTH_MODE=token and give this process its token (RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token)"
            )
        if self._address:
            self._join(self._address)
        else:
            self._start_here()
        import ray

        self._task = ray.remote(max_retries=0)(_call_task)
        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(_Worker)
        self._look = ray.remote(max_retries=0, num_cpus=0)(versions)
        return self

    def _start_here(self) -> None:
        _on_loopback(True)
        import ray

        for left in reversed(range(STARTS)):
            try:
                ray.init(
                    address="local", num_cpus=self._cpus, include_dashboard=False, _node_ip_address="127.0.0.1",
                    object_store_memory=OBJECT_STORE_BYTES, log_to_driver=False, logging_level=logging.WARNING,
                )
                return
            except Exception as error:
                ray.shutdown()
                if type(error) is not Exception:  # Ray raises no less than that when its parts are slow to start
                    raise
                if not left:
                    raise RunnerLost(
                        f"Ray did not start on this machine ({error}); if it is busy, start the same command again, or "
                        "name --runner inline"
                    ) from None

    def _join(self, address: str) -> None:
        if address.startswith("ray://") and find_spec("grpc") is None:
            raise ConfigError(
                f'{address} needs Ray\'s client: pip install "ray[client]", here and on the head node; or run this '
                "command on a node of the cluster with --runner auto, which also outlives a cut connection"
            )
        import ray
        from ray._private.utils import read_ray_address

        given = address if address != "auto" else read_ray_address() or ""
        _on_loopback(given.rpartition("//")[2].startswith(("127.", "localhost")))  # all its nodes are on this machine
        try:
            ray.init(
                address=address, log_to_driver=False, logging_level=logging.WARNING,
                runtime_env={"py_modules": ours(), "excludes": ["__pycache__"]},
            )
        except ConnectionError as error:
            raise ConfigError(f"no Ray cluster answers at {address!r}: {error}") from None
        except ray.exceptions.AuthenticationError as error:
            raise ConfigError(str(error)) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        import ray

        self._ask_for([])
        self._stop()
        ray.shutdown()  # ends the workers of this driver too

    def _stop(self) -> None:
        import ray

        for ref, start in self._running.items():
            if start.worker is None:
                ray.cancel(ref, force=True)
            else:
                ray.kill(start.worker.handle)
        for things in (self._running, self._looks, self._doubt):
            things.clear()

    def run(self, chains: Iterable[Sequence[Step]]) -> Iterator[Done]:
        import ray

        self._stop()  # what an earlier run was left in the middle of
        schedule, idle_since, looked = Schedule(chains), time.monotonic(), 0.0
        while True:
            if time.monotonic() - looked > WAIT_S:
                self._see_nodes(schedule)
                looked = time.monotonic()
            while (start := schedule.next()) is not None:
                self._start(start)
            if self._running or self._doubt:
                idle_since = time.monotonic()
            elif not schedule.waiting and schedule.exhausted:
                break
            self._cannot_start(schedule, time.monotonic() - idle_since)
            refs = [*self._running, *self._looks]
            if not refs:
                time.sleep(WAIT_S / 5)
                continue
            ended, _ = ray.wait(refs, num_returns=1, timeout=WAIT_S)
            if not ended:
                looked = 0.0
            for ref in ended:
                if ref in self._looks:
                    yield from self._looked(ref, schedule)
                    continue
                start = self._running.pop(ref)
                done = self._result(ref, start, schedule)
                if done is not None:
                    yield done
            for ref, (node, since) in list(self._looks.items()):
                if time.monotonic() - since > 12 * WAIT_S and node in self._doubt:
                    yield from self._looked(ref, schedule, silent=True)
        self._ask_for([])
        for worker in schedule.idle():
            ray.kill(worker.handle)

    def _start(self, start: Start) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for worker in start.evicted:
            ray.kill(worker.handle)
        there = NodeAffinitySchedulingStrategy(start.node, soft=False)
        memory = int(start.memory_gb * (1 << 30))
        gpus = min(start.step.gpus, sum(start.gpus.values()))
        if start.worker is None:
            ref = self._task.options(
                num_cpus=start.cpus, num_gpus=gpus, memory=memory or None, scheduling_strategy=there
            ).remote(start.step, start.died)
        else:
            if start.fresh:
                # an idle actor must not hold a CPU that the next stage waits for; on a cluster it holds a little
                # memory, since an autoscaler takes away a node that nothing is held of
                start.worker.handle = self._actor.options(
                    num_cpus=0, num_gpus=gpus, memory=memory or (1 << 20 if self._address else None),
                    scheduling_strategy=there,
                ).remote(start.step.open)
            ref = start.worker.handle.call.remote(start.step, start.died)
        self._running[ref] = start

    def _result(self, ref: Any, start: Start, schedule: Schedule) -> Done | None:
        """What came back, or None when it is tried again or not yet known whether the node died or the process."""
        import ray

        gone = ray.exceptions
        try:
            ended: Ended = ray.get(ref)
        except gone.LocalRayletDiedError:
            raise RunnerLost(LOST) from None
        except (gone.NodeDiedError, gone.TaskUnschedulableError, gone.ActorUnschedulableError):
            schedule.leave(start.node)
            schedule.end(start, "again")
            return None
        except (gone.RayActorError, gone.WorkerCrashedError, gone.OutOfMemoryError) as error:
            if self._address:
                self._look_at(start.node, schedule)
                self._doubt.setdefault(start.node, []).append((start, str(error)))
                return None
            return self._blame(start, str(error), schedule)
        except gone.RayTaskError as error:
            # the step itself reports its errors as a value, so this is `open` failing or a result that cannot travel
            schedule.end(start, "broken")
            return Done.of(start.step, start.rest, None, str(error), None)
        done = Done.of(start.step, start.rest, *ended)
        schedule.end(start, "stop" if done.skipped or done.error else "on")
        return done

    def _blame(self, start: Start, story: str, schedule: Schedule) -> Done | None:
        """The process under the step died, its node lives: tried again, a bounded number of times."""
        if start.attempt < ATTEMPTS:
            schedule.end(start, "died")
            return None
        schedule.end(start, "broken")
        story = f"the process died {ATTEMPTS} times over this step, last with: {story}"
        return Done.of(start.step, start.rest, None, story, None)

    def _look_at(self, node: str, schedule: Schedule) -> None:
        """Ask a node for a sign of life; it gets no steps until it gave one."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        schedule.admit(node, False)
        if all(node != other for other, _ in self._looks.values()):
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            self._looks[self._look.options(scheduling_strategy=there).remote()] = (node, time.monotonic())

    def _looked(self, ref: Any, schedule: Schedule, silent: bool = False) -> Iterator[Done]:
        """The node answered, or it never will: what died on it died of itself, or with its node."""
        import ray

        node, _ = self._looks.pop(ref)
        doubtful = self._doubt.pop(node, [])
        try:
            there: Mapping[str, str] | None = None if silent else ray.get(ref)
        except ray.exceptions.LocalRayletDiedError:
            raise RunnerLost(LOST) from None
        except ray.exceptions.RayError:
            there = None
        if there is None:
            schedule.leave(node)
            for start, _ in doubtful:
                schedule.end(start, "again")
            return
        if other := {name: number for name, number in there.items() if number != versions()[name]}:
            raise ConfigError(f"node {node[:12]} has {other}, the driver has {versions()}: install the same on both")
        schedule.admit(node, True)
        for start, story in doubtful:
            if done := self._blame(start, story, schedule):
                yield done

    def _see_nodes(self, schedule: Schedule) -> None:
        """Take in the nodes that joined, strike those that left, and ask an autoscaler for what waits."""
        import ray

        living: dict[str, Capacity] = {}
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            if node["Alive"]:
                has = node["Resources"]
                memory = has.get("memory", 0.0) / (1 << 30) * (0.95 if self._address else 1)  # see _start
                living[node["NodeID"]] = Capacity(has.get("CPU", 0.0), int(has.get("GPU", 0)), memory)
        if not living:
            raise RunnerLost(LOST)  # Ray itself would let us wait for ever
        for name in set(schedule.nodes) - set(living):
            schedule.leave(name)
        new = [name for name in sorted(living) if name not in schedule.nodes and living[name].cpus > 0]
        for name in new:
            schedule.join(name, living[name])
            if self._address and name not in self._known:
                self._look_at(name, schedule)
        self._known = living
        if self._address:
            shapes = [start.step for start in self._running.values()] + schedule.wanted()
            self._ask_for([_bundle(step) for step in shapes])

    def _ask_for(self, bundles: list[dict[str, float]]) -> None:
        """Tell an autoscaler, if there is one, what should fit on the cluster at a time."""
        if bundles == self._asked or not self._address:
            return
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=bundles)
        self._asked = bundles

    def _cannot_start(self, schedule: Schedule, idle_s: float) -> None:
        """Nothing has run for a while: a node may still be on its way, but not for ever, and not to a laptop."""
        if self._address and idle_s < GROW_S:
            return
        if (step := schedule.missing_gpus()) is not None:
            raise ConfigError(
                f"{step.id} asks for {step.gpus:g} GPUs, no node here has them; set its device to cpu, or name a Ray "
                "cluster that has them (--runner ray://HOST:PORT)"
            )
        if self._address:
            raise ConfigError(f"no node of the cluster took a step for {GROW_S:g} s: see `ray status` on its head")


def _bundle(step: Step) -> dict[str, float]:
    needs = {"CPU": step.cpus, "GPU": step.gpus, "memory": float(int((step.memory_gb or 0) * (1 << 30)))}
    return {name: amount for name, amount in needs.items() if amount}


def _on_loopback(wanted: bool) -> None:
    """Whether Ray takes 127.0.0.1 for this machine's address: then every server that it starts listens there only.

    Ray replaces a loopback address by the machine's own, but for platforms where it may not run a cluster; the switch
    of those is the one there is (ray/_private/services.py: get_node_ip_address). Read when ray is imported.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0" if wanted else "1"
    if "ray" in sys.modules:
        from ray._private import ray_constants

        ray_constants.ENABLE_RAY_CLUSTER = not wanted


def _call_task(step: Step, after_a_death: bool) -> Ended:
    return call_step(step, None, after_a_death)


class _Worker:
    """The actor: opens once, then runs steps."""

    def __init__(self, open: Callable[[], Any]) -> None:
        self._state = open()

    def call(self, step: Step, after_a_death: bool) -> Ended:
        return call_step(step, self._state, after_a_death)
