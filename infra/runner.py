"""Runners: the same chains of steps in this process, or on Ray, on one machine or many.

A step is a function of (payload, state); a chain is steps that follow one another; chains do not wait for each other,
so a later step of one runs while an earlier step of the next does. The runner knows nothing of datasets. The
invariant: at most `slots` CPUs' worth of steps run at a time, every step of a chain ends in exactly one `Done` until
one fails or says it is the last, and leaving the `with` block, for whatever reason, stops what still runs.

>>> with InlineRunner() as runner:
...     [done.value for done in runner.run([[Step("a", lambda x, _: x + 1, 1)]])]
[2]

The only module that imports ray.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from infra.errors import ConfigError, MedloomError
from infra.settings import be_quiet

ATTEMPTS = 3
"""How often a step is started when the process under it dies, before it is given up."""
LOST = "the Ray node under this build is gone (killed, or out of memory?); start the same command again, it goes on"
WAIT_S = 5.0
"""How long to wait for a step to end before looking whether there still is a cluster."""
OBJECT_STORE_BYTES = 256 << 20
"""Names and counts travel through Ray, not pixels: Ray's default of a third of the memory is not needed."""


class RunnerLost(MedloomError):
    """What the runner ran on is gone; steps that ended stay ended."""


@dataclass(frozen=True)
class Step:
    """One thing to run."""

    id: str
    call: Callable[[Any, Any], Any]
    payload: Any
    pool: str | None = None
    """steps of one pool run on workers that called `open` once and keep what it returned"""
    open: Callable[[], Any] | None = None
    cpus: float = 1
    gpus: float = 0
    memory_gb: float | None = None


@dataclass(frozen=True)
class Last:
    """What a step returns to end its chain without an error."""

    value: Any


@dataclass(frozen=True)
class Done:
    """How a step ended: with a value, or with an error that stopped its chain."""

    step: Step
    value: Any = None
    error: str | None = None
    """the traceback of a bug, or the story of a process that died again and again"""
    fatal: MedloomError | None = None
    """an error of ours that says the whole run cannot work (ConfigError)"""
    skipped: int = 0
    """steps of the chain that will not run, since this one failed or was the last"""

    @classmethod
    def of(cls, step: Step, rest: Sequence[Step], value: Any, error: str | None, fatal: MedloomError | None) -> Done:
        """From what a step returned."""
        last = isinstance(value, Last)
        return cls(step, value.value if last else value, error, fatal, len(rest) if last or error else 0)


class Runner(Protocol):
    """Runs chains; used as a context manager."""

    def __enter__(self) -> Runner: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...
    def run(self, chains: Iterable[Sequence[Step]]) -> Iterator[Done]:
        """Run all chains and yield each step as it ends, in no order. Chains are pulled as there is room."""
        ...


def open_runner(address: str) -> Runner:
    """`inline`, `ray` (a cluster on this machine), or the address of a running Ray cluster (`auto`, `ray://…`)."""
    if address == "inline":
        return InlineRunner()
    if address == "ray" or address == "auto" or address.startswith("ray://"):
        return RayRunner(None if address == "ray" else address)
    raise ConfigError(f"runner {address!r} is not known; use inline, ray, auto or ray://HOST:PORT")


Ended = tuple[Any, str | None, MedloomError | None]
"""value, error and fatal of a Done: what travels back from a worker, without the payload"""


def _call(step: Step, state: Any) -> Ended:
    try:
        return step.call(step.payload, state), None, None
    except ConfigError as error:
        return None, str(error), error
    except Exception:  # noqa: BLE001 - a bug in a step must be reported with its traceback, wherever it ran
        return None, traceback.format_exc(), None


class InlineRunner:
    """One step after the other in this process: for tests and for debugging."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}

    def __enter__(self) -> InlineRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._states.clear()

    def run(self, chains: Iterable[Sequence[Step]]) -> Iterator[Done]:
        for chain in chains:
            for place, step in enumerate(chain, 1):
                done = Done.of(step, chain[place:], *_call(step, self._state(step)))
                yield done
                if done.skipped:
                    break

    def _state(self, step: Step) -> Any:
        if step.pool is None or step.open is None:
            return None
        if step.pool not in self._states:
            self._states[step.pool] = step.open()
        return self._states[step.pool]


@dataclass
class _Running:
    step: Step
    rest: Sequence[Step]
    worker: Any = None
    attempt: int = 1


@dataclass
class _Pool:
    """Actors that opened the same thing; grown when a step finds none idle."""

    idle: list[Any] = field(default_factory=list)
    size: int = 0


class RayRunner:
    """Steps as Ray tasks, and as calls of long-lived Ray actors where they have something to open."""

    def __init__(self, address: str | None = None, cpus: int | None = None) -> None:
        self._address, self._cpus = address, cpus
        self._memory: float | None = None
        self._gpus: float | None = None
        self._pools: dict[str, _Pool] = {}
        self._running: dict[Any, _Running] = {}

    def __enter__(self) -> RayRunner:
        be_quiet()
        if "ray" not in sys.modules:  # Ray reads it once; by then its default, the same for a local cluster, stands
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # its ports run whatever is sent to them
        import ray

        if self._address:
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            ray.init(
                address="local", num_cpus=self._cpus, include_dashboard=False, _node_ip_address="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES, log_to_driver=False, logging_level=logging.WARNING,
            )
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.slots = resources.get("CPU", 1.0)
        if not self._address:  # a cluster elsewhere may grow, this machine does not
            self._memory, self._gpus = resources.get("memory"), resources.get("GPU", 0.0)
        self._task = ray.remote(max_retries=0)(_call_task)
        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(_Worker)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        import ray

        for ref, running in self._running.items():
            if running.worker is None:
                ray.cancel(ref, force=True)
        for pool in self._pools.values():
            for worker in pool.idle:
                ray.kill(worker)
        for running in self._running.values():
            if running.worker is not None:
                ray.kill(running.worker)
        self._pools.clear()
        self._running.clear()
        ray.shutdown()

    def run(self, chains: Iterable[Sequence[Step]]) -> Iterator[Done]:
        import ray

        source = iter(chains)
        ready: deque[_Running] = deque()
        while True:
            self._fill(ready, source)
            if not self._running:
                return
            done_refs, _ = ray.wait(list(self._running), num_returns=1, timeout=WAIT_S)
            if not done_refs and not _alive():
                raise RunnerLost(LOST)  # Ray itself would let us wait for ever
            for ref in done_refs:
                ended = self._running.pop(ref)
                done = self._result(ref, ended)
                if done is None:
                    ready.appendleft(_Running(ended.step, ended.rest, attempt=ended.attempt + 1))
                    continue
                if ended.rest and not done.skipped:
                    ready.appendleft(_Running(ended.rest[0], ended.rest[1:]))
                yield done

    def _bytes(self, step: Step) -> int | None:
        """The memory of a step; one that asks for more than this machine has gets all of it, and waits for it."""
        wanted = int(step.memory_gb * (1 << 30)) if step.memory_gb else None
        return wanted if wanted is None or self._memory is None else min(wanted, int(self._memory))

    def _fill(self, ready: deque[_Running], source: Iterator[Sequence[Step]]) -> None:
        """Start what there is room for; steps further down their chain first: chains end before others begin."""
        while True:
            free = self.slots - sum(r.step.cpus for r in self._running.values())
            started = next((r for r in ready if self._start(r, free)), None)
            if started is not None:
                ready.remove(started)
                continue
            if free <= 0 or len(ready) >= self.slots:
                return
            chain = next(source, None)
            if chain is None:
                return
            if chain:
                ready.append(_Running(chain[0], chain[1:]))

    def _start(self, running: _Running, free: float) -> bool:
        """Start a step if there is room; a step that asks for more than there is runs alone."""
        step = running.step
        if step.cpus > free and self._running:
            return False
        if self._gpus is not None and step.gpus > self._gpus:
            raise ConfigError(
                f"{step.id} asks for {step.gpus:g} GPUs, this machine has {self._gpus:g}; set its device to cpu, or "
                "name a Ray cluster that has them (--runner ray://HOST:PORT)"
            )
        if step.open is None:
            options = {"num_cpus": min(step.cpus, self.slots), "num_gpus": step.gpus, "memory": self._bytes(step)}
            self._running[self._task.options(**options).remote(step)] = running
            return True
        pool = self._pools.setdefault(step.pool or step.id, _Pool())
        if not pool.idle:
            if pool.size >= max(1, self.slots // max(step.cpus, 1e-3)):
                return False
            # the driver's own count bounds the load: an idle actor must not hold a CPU that the next stage waits for
            made = self._actor.options(
                num_cpus=0, num_gpus=step.gpus, memory=self._bytes(step), scheduling_strategy="SPREAD"
            )
            pool.idle.append(made.remote(step.open))
            pool.size += 1
        running.worker = pool.idle.pop()
        self._running[running.worker.call.remote(step)] = running
        return True

    def _result(self, ref: Any, ended: _Running) -> Done | None:
        """What came back, or None when the process under the step died and it is worth another try."""
        import ray

        pool = self._pools.get(ended.step.pool or ended.step.id)
        try:
            ended_as: Ended = ray.get(ref)
        except ray.exceptions.LocalRayletDiedError:
            raise RunnerLost(LOST) from None
        except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError,
                ray.exceptions.NodeDiedError) as error:
            if pool and ended.worker is not None:
                pool.size -= 1
            if ended.attempt < ATTEMPTS:
                return None
            story = f"the process died {ATTEMPTS} times over this step, last with: {error}"
            return Done.of(ended.step, ended.rest, None, story, None)
        except ray.exceptions.RayTaskError as error:
            # the step itself reports its errors as a value, so this is `open` failing or a result that cannot travel
            if pool and ended.worker is not None:
                pool.size -= 1
            return Done.of(ended.step, ended.rest, None, str(error), None)
        if pool and ended.worker is not None:
            pool.idle.append(ended.worker)
        return Done.of(ended.step, ended.rest, *ended_as)


def _alive() -> bool:
    """Whether the cluster still has a node."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return any(node["Alive"] for node in nodes)



def _call_task(step: Step) -> Ended:
    return _call(step, None)


class _Worker:
    """The actor: opens once, then runs steps."""

    def __init__(self, open: Callable[[], Any]) -> None:
        self._state = open()

    def call(self, step: Step) -> Ended:
        return _call(step, self._state)
