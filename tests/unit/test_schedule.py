"""Where steps go: never more on a node than it has, chains end before others begin, idle workers make room."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from infra.schedule import Capacity, Schedule, Start
from infra.steps import Step


def step(name: str, pool: str | None = None, **needs: Any) -> Step:
    return Step(name, len, "", pool, list if pool else None, **needs)


def started(schedule: Schedule) -> list[Start]:
    found = []
    while (start := schedule.next()) is not None:
        found.append(start)
    return found


def test_actors_are_spread_over_the_nodes_and_not_piled_on_one() -> None:
    schedule = Schedule([[step(f"s{n}", "model")] for n in range(9)])
    for name in "abc":
        schedule.join(name, Capacity(2))
    first = started(schedule)
    assert sorted(start.node for start in first) == ["a", "a", "b", "b", "c", "c"]
    assert all(start.fresh for start in first)
    schedule.end(first[2])
    (next_,) = started(schedule)
    assert next_.worker is first[2].worker and not next_.fresh and next_.node == first[2].node


@pytest.mark.parametrize("seed", range(20))
def test_no_node_ever_holds_more_than_it_has_and_every_step_ends_once(seed: int) -> None:
    draw = random.Random(seed)
    shapes: Sequence[dict[str, Any]] = (
        {}, {"cpus": 2}, {"cpus": 0.5}, {"pool": "gpu", "gpus": 0.4}, {"pool": "big", "gpus": 1, "memory_gb": 6},
        {"memory_gb": 5}, {"pool": "two", "gpus": 2}, {"cpus": 99}, {"pool": "cpu", "memory_gb": 3},
    )
    chains = [[step(f"{c}/{s}", **draw.choice(shapes)) for s in range(draw.randint(1, 4))] for c in range(40)]
    capacity = {"a": Capacity(4, 2, 8), "b": Capacity(2, 0, 16), "c": Capacity(3, 2, 6)}
    schedule = Schedule(chains)
    for name, has in capacity.items():
        schedule.join(name, has)
    running: list[Start] = []
    living: list[Any] = []
    ended: list[str] = []
    while True:
        for start in started(schedule):
            running.append(start)
            living = [worker for worker in living if worker not in start.evicted]
            assert not {id(w) for w in start.evicted} & {id(s.worker) for s in running}, "only idle ones are closed"
            if start.fresh:
                living.append(start.worker)
        if not running:
            break
        for name, has in capacity.items():
            here = [s for s in running if s.node == name]
            holders = [w for w in living if w.node == name] + [s for s in here if s.worker is None]
            assert sum(s.cpus for s in here) <= has.cpus + 1e-6
            assert sum(h.memory_gb for h in holders) <= has.memory_gb + 1e-6
            for device in range(has.gpus):
                assert sum(h.gpus.get(device, 0) for h in holders) <= 1 + 1e-6
        gone = running.pop(draw.randrange(len(running)))
        how = draw.choice(["on", "on", "on", "again", "died"])
        if how == "died" and gone.worker in living:
            living.remove(gone.worker)
        if how == "again" and gone.worker in living:
            living.remove(gone.worker)
        schedule.end(gone, how)
        if how == "on":
            ended.append(gone.step.id)
    assert sorted(ended) == sorted(s.id for chain in chains for s in chain)


def test_two_pools_that_want_the_one_gpu_take_turns_and_not_after_every_step() -> None:
    chains = [[step(f"{n}a", "a", gpus=1), step(f"{n}b", "b", gpus=1)] for n in range(8)]
    schedule = Schedule(chains)
    schedule.join("node", Capacity(4, 1))
    opened, ended = 0, []
    while running := started(schedule):
        opened += sum(start.fresh for start in running)
        for start in running:
            schedule.end(start)
            ended.append(start.step.id)
    assert len(ended) == 16 and opened <= 8, f"models were loaded {opened} times for 16 steps"


def test_a_step_whose_process_died_is_tried_where_it_left_its_note_and_one_whose_node_died_elsewhere() -> None:
    schedule = Schedule([[step("s")]])
    schedule.join("a", Capacity(1))
    schedule.join("b", Capacity(4))
    (first,) = started(schedule)
    assert first.node == "b" and not first.died
    schedule.end(first, "died")
    (second,) = started(schedule)
    assert (second.node, second.died, second.attempt) == ("b", True, 2)
    schedule.leave("b")
    schedule.end(second, "again")
    (third,) = started(schedule)
    assert (third.node, third.died, third.attempt) == ("a", False, 2)


def test_steps_further_down_their_chain_go_first_and_few_chains_are_begun() -> None:
    pulled = 0

    def chains() -> Iterator[list[Step]]:
        nonlocal pulled
        for n in range(1000):
            pulled += 1
            yield [step(f"{n}a"), step(f"{n}b", cpus=2)]

    schedule = Schedule(chains())
    schedule.join("node", Capacity(2))
    first = started(schedule)
    assert [start.step.id for start in first] == ["0a", "1a"] and pulled <= 5
    for start in first:
        schedule.end(start)
    assert next(start.step.id for start in started(schedule))[1] == "b"


def test_a_node_that_is_being_looked_at_gets_nothing() -> None:
    schedule = Schedule([[step("s")]])
    schedule.join("node", Capacity(1), open=False)
    assert started(schedule) == []
    schedule.admit("node", True)
    assert len(started(schedule)) == 1
