"""What a run of chains would take on nodes that are not there: a clock, a heap of events, and the runner's own rules.

Every decision is that of infra/schedule.py, the same code that places real steps. What is not modelled: the time the
driver and Ray take for a step (measured apart, and put into a step's seconds), and storage is shared evenly among the
steps of a node as they are when one begins. The invariant: the same chains, nodes and seed give the same answer, and
every step ends exactly once, whatever fails.

>>> step = Step("a", print, Cost("ingest", 60.0))
>>> simulate([[step], [step]], 2, Capacity(1)).seconds
60.0
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from infra.errors import ConfigError
from infra.schedule import Capacity, Schedule, Start
from infra.steps import Step


@dataclass(frozen=True)
class Cost:
    """What a step costs; the payload of the steps that are simulated."""

    stage: str
    seconds: float
    megabytes: float = 0.0
    """read and written over the network"""


@dataclass(frozen=True)
class Faults:
    """How nodes fail: at random times, with this mean time between; another takes the place after a while."""

    hours_between: float
    repair_seconds: float = 300.0


@dataclass
class Run:
    """What the run took."""

    seconds: float = 0.0
    steps: int = 0
    lost: int = 0
    """steps that were begun and lost with their node"""
    failures: int = 0
    opened: Counter[str] = field(default_factory=Counter)
    """pool -> workers made: times that a model was loaded"""
    cpu_seconds: defaultdict[str, float] = field(default_factory=partial(defaultdict, float))
    """stage -> CPU seconds held, loading and lost steps included"""
    gpu_seconds: defaultdict[str, float] = field(default_factory=partial(defaultdict, float))
    wait_seconds: defaultdict[str, float] = field(default_factory=partial(defaultdict, float))
    """stage -> seconds of its steps in which the network was waited for"""


def simulate(
    chains: Iterable[Sequence[Step]], nodes: int, each: Capacity, *, load_seconds: float = 0.0,
    megabytes_per_second: float | None = None, faults: Faults | None = None, seed: int = 0,
) -> Run:
    """Run the chains, whose payloads are costs. Raises ConfigError for a step that no node can take."""
    schedule, run, draw = Schedule(chains), Run(), random.Random(seed)
    events: list[tuple[float, int, str, Start | None]] = []
    busy: dict[str, dict[int, Start]] = {}
    now, made = 0.0, 0

    def later(seconds: float, what: str, start: Start | None = None) -> None:
        nonlocal made
        made += 1
        heapq.heappush(events, (now + seconds, made, what, start))

    def join(name: str) -> None:
        schedule.join(name, each)
        busy[name] = {}
        if faults:
            later(draw.expovariate(1 / (faults.hours_between * 3600)), f"fail {name}")

    for place in range(nodes):
        join(f"node {place}")
    while True:
        while (start := schedule.next()) is not None:
            here, cost = busy[start.node], start.step.payload
            here[id(start)] = start
            wait = cost.megabytes * len(here) / megabytes_per_second if megabytes_per_second else 0.0
            load = load_seconds if start.fresh else 0.0
            if start.fresh and start.worker is not None:
                run.opened[start.worker.pool] += 1
            seconds = load + cost.seconds + wait
            run.cpu_seconds[cost.stage] += start.cpus * seconds
            run.gpu_seconds[cost.stage] += sum((start.worker or start).gpus.values()) * seconds
            run.wait_seconds[cost.stage] += wait
            later(seconds, "end", start)
        if schedule.exhausted and not schedule.waiting and not any(busy.values()):
            return run
        if not events:
            stuck = schedule.wanted()[0]
            raise ConfigError(f"no node can take {stuck.id} ({stuck.cpus:g} CPUs, {stuck.gpus:g} GPUs)")
        now, _, what, ended = heapq.heappop(events)
        if ended is not None:
            if busy.get(ended.node, {}).pop(id(ended), None) is not None:  # else its node was lost meanwhile
                run.steps, run.seconds = run.steps + 1, now
                schedule.end(ended)
        elif what.startswith("join "):
            join(f"{what.removeprefix('join ')}'")
        else:
            name = what.removeprefix("fail ")
            schedule.leave(name)
            gone = busy.pop(name)
            run.failures, run.lost = run.failures + 1, run.lost + len(gone)
            for start in gone.values():
                schedule.end(start, "again")
            later(faults.repair_seconds if faults else 0.0, f"join {name}")
