"""Which step runs next, and on which node: the rules by which chains are placed, without anything that runs them.

The runner places by these rules what Ray then executes, and `medloom simulate` asks them where a build of 25 million
images would go. The invariant: on no node do running steps hold more CPUs, nor living workers more of one GPU or of the
memory, than the node has; a step that asks for more than the largest node has gets that node for itself.

Steps further down their chain go first, so that chains end before others begin; a worker that has opened something
serves all steps of its pool and keeps its GPU and memory while it lives; one that is idle is closed only when nothing
else could run. A step goes to the node with the most CPUs free.

>>> schedule = Schedule([[Step("a", len, "x")], [Step("b", len, "y")]])
>>> schedule.join("node", Capacity(1))
>>> start = schedule.next()
>>> start.step.id, schedule.next()
('a', None)
>>> schedule.end(start)
>>> schedule.next().step.id
'b'
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.steps import Step

TINY = 1e-6
"""Shares of CPUs and GPUs are added up in floating point."""
Shape = tuple[str | None, float, float, float]


@dataclass(frozen=True)
class Capacity:
    """What a node has."""

    cpus: float
    gpus: int = 0
    memory_gb: float = math.inf


@dataclass(eq=False)
class Worker:
    """A process that opened something once; `handle` is whatever the runner knows it by."""

    pool: str
    node: str
    gpus: dict[int, float]
    """device -> share of it that this worker holds"""
    memory_gb: float
    handle: Any = None


@dataclass(eq=False)
class Start:
    """A step to be started now."""

    step: Step
    rest: Sequence[Step]
    node: str
    cpus: float
    gpus: dict[int, float]
    memory_gb: float
    attempt: int = 1
    died: bool = False
    """whether the process of the attempt before died over it"""
    worker: Worker | None = None
    fresh: bool = False
    """whether the worker must be made"""
    evicted: list[Worker] = field(default_factory=list)
    """idle workers to be closed first"""


@dataclass
class _Ready:
    step: Step
    rest: Sequence[Step]
    attempt: int = 1
    node: str | None = None
    """where the process of the attempt before died over it: what that left behind lies there, so it goes there again"""


class _Node:
    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.cpus, self.memory_gb = capacity.cpus, capacity.memory_gb
        self.gpus = [1.0] * int(capacity.gpus)
        self.open = True
        self.idle: dict[str, list[Worker]] = {}
        self.workers: dict[str, int] = {}

    def devices(self, wanted: float, free: Sequence[float] | None = None) -> dict[int, float] | None:
        """Where so much GPU fits: whole devices, or a share of the fullest one that still has it. None: nowhere."""
        free = self.gpus if free is None else free
        if wanted <= TINY:
            return {}
        if wanted < 1 - TINY:
            fits = [(left, device) for device, left in enumerate(free) if left >= wanted - TINY]
            return {min(fits)[1]: wanted} if fits else None
        whole = [device for device, left in enumerate(free) if left >= 1 - TINY][: math.ceil(wanted - TINY)]
        return dict.fromkeys(whole, 1.0) if len(whole) >= wanted - TINY else None

    def take(self, gpus: dict[int, float], memory_gb: float, sign: int = 1) -> None:
        for device, share in gpus.items():
            self.gpus[device] -= sign * share
        self.memory_gb -= sign * memory_gb


class Schedule:
    """The chains still to run, and the nodes they run on."""

    def __init__(self, chains: Iterable[Sequence[Step]]) -> None:
        self._source = iter(chains)
        self._nodes: dict[str, _Node] = {}
        self._ready: dict[Shape, deque[_Ready]] = {}
        self.waiting = 0
        """steps that could run if there were room"""
        self.exhausted = False
        """whether every chain was begun"""

    @property
    def slots(self) -> float:
        """CPUs of all nodes."""
        return sum(node.capacity.cpus for node in self._nodes.values())

    @property
    def nodes(self) -> list[str]:
        return list(self._nodes)

    def join(self, name: str, capacity: Capacity, open: bool = True) -> None:
        """A node is there; with `open` false nothing is started on it yet."""
        self._nodes[name] = _Node(capacity)
        self._nodes[name].open = open

    def leave(self, name: str) -> None:
        """A node is gone, and all workers on it; steps that ran there are to be ended by the caller."""
        self._nodes.pop(name, None)

    def admit(self, name: str, open: bool) -> None:
        """Start steps on a node, or none for now."""
        if name in self._nodes:
            self._nodes[name].open = open

    def next(self) -> Start | None:
        """The next step to start, or None while there is no room, or nothing left."""
        while True:
            if start := self._place(evict=False):
                return start
            if not self._more():
                return self._place(evict=True)

    def end(self, start: Start, how: Literal["on", "stop", "broken", "died", "again"] = "on") -> None:
        """A step ended: its chain goes on, or stops (`broken`: its worker with it); its process died, and it is tried
        again, or its node did, which costs it no attempt."""
        node = self._nodes.get(start.node)
        if node is not None:
            node.cpus += start.cpus
            if start.worker is None:
                node.take(start.gpus, start.memory_gb, -1)
            elif how in ("on", "stop"):
                node.idle.setdefault(start.worker.pool, []).append(start.worker)
            else:
                self._close(node, start.worker)
        if how == "on" and start.rest:
            self._put(_Ready(start.rest[0], start.rest[1:]), first=True)
        elif how == "died":
            self._put(_Ready(start.step, start.rest, start.attempt + 1, start.node), first=True)
        elif how == "again":
            self._put(_Ready(start.step, start.rest, start.attempt), first=True)

    def wanted(self) -> list[Step]:
        """The steps that wait."""
        return [ready.step for queue in self._ready.values() for ready in queue]

    def idle(self) -> Iterator[Worker]:
        """All workers that do nothing."""
        for node in self._nodes.values():
            for workers in node.idle.values():
                yield from workers

    def missing_gpus(self) -> Step | None:
        """A waiting step that asks for more GPUs than any node has."""
        most = max((node.capacity.gpus for node in self._nodes.values()), default=0)
        return next((step for step in self.wanted() if step.gpus > most + TINY), None)

    def _put(self, ready: _Ready, first: bool) -> None:
        queue = self._ready.setdefault(ready.step.shape, deque())
        (queue.appendleft if first else queue.append)(ready)
        self.waiting += 1

    def _more(self) -> bool:
        """Begin another chain, where there is room for one."""
        if self.waiting >= max(1.0, self.slots) or all(n.cpus <= TINY or not n.open for n in self._nodes.values()):
            return False
        for chain in self._source:
            if chain:
                self._put(_Ready(chain[0], chain[1:]), first=False)
                return True
        self.exhausted = True
        return False

    def _place(self, evict: bool) -> Start | None:
        open = [(name, node) for name, node in self._nodes.items() if node.open]
        if not open:
            return None
        for shape, queue in sorted(self._ready.items(), key=lambda waiting: len(waiting[1][0].rest)):
            start = self._fit(queue[0], shape, open, evict)
            if start is not None:
                queue.popleft()
                if not queue:
                    del self._ready[shape]
                self.waiting -= 1
                return start
        return None

    def _fit(self, ready: _Ready, shape: Shape, open: list[tuple[str, _Node]], evict: bool) -> Start | None:
        pool, cpus, gpus, memory_gb = shape
        cpus = min(cpus, max(node.capacity.cpus for _, node in open))
        most = max(node.capacity.memory_gb for _, node in open)
        memory_gb = min(memory_gb, most)
        room = [(name, node) for name, node in open if node.cpus >= cpus - TINY and node.capacity.cpus > 0]
        if not room:
            return None
        room.sort(key=lambda place: (place[0] != ready.node, -place[1].cpus))  # ties: in the order they joined
        start = Start(ready.step, ready.rest, "", cpus, {}, memory_gb, ready.attempt, ready.node is not None)
        for name, node in room:
            if pool is not None and node.idle.get(pool):
                start.node, start.worker = name, node.idle[pool].pop()
                node.cpus -= cpus
                return start
        for name, node in room:
            if pool is not None and node.workers.get(pool, 0) >= max(1, node.capacity.cpus // max(cpus, 1e-3)):
                continue
            devices = node.devices(gpus) if node.memory_gb >= memory_gb - TINY else None
            if devices is None and evict and (unneeded := self._unneeded(node, pool, gpus, memory_gb)):
                for worker in unneeded:
                    node.idle[worker.pool].remove(worker)
                    self._close(node, worker)
                start.evicted, devices = unneeded, node.devices(gpus)
            if devices is None:
                continue
            start.node, start.gpus = name, devices
            node.cpus -= cpus
            node.take(devices, memory_gb)
            if pool is not None:
                start.worker, start.fresh = Worker(pool, name, devices, memory_gb), True
                node.workers[pool] = node.workers.get(pool, 0) + 1
            return start
        return None

    def _unneeded(self, node: _Node, pool: str | None, gpus: float, memory_gb: float) -> list[Worker]:
        """Idle workers of other pools whose end would make room; none when that is not enough."""
        free, memory, chosen = list(node.gpus), node.memory_gb, []
        for other, workers in node.idle.items():
            for worker in workers if other != pool else ():
                if not worker.gpus and not worker.memory_gb:
                    continue
                chosen.append(worker)
                memory += worker.memory_gb
                for device, share in worker.gpus.items():
                    free[device] += share
                if memory >= memory_gb - TINY and node.devices(gpus, free) is not None:
                    return chosen
        return []

    def _close(self, node: _Node, worker: Worker) -> None:
        node.take(worker.gpus, worker.memory_gb, -1)
        node.workers[worker.pool] -= 1
