"""A stage with several samples in flight: the same rows, in the same order, in less time."""

from __future__ import annotations

import pickle
import threading
import time

import pyarrow as pa
import pytest

from catalog.schema import LAYERS
from infra.errors import Dropped, Terminal, Transient
from infra.inflight import in_order
from transforms.stage import each_sample, fingerprint

IDS = [f"s{n:02}" for n in range(24)]


def tables() -> dict[str, pa.Table]:
    schema = LAYERS["images"].schema
    rows = [{name: None for name in schema.names} | {"sample_id": i} for i in IDS]
    return {"images": pa.table({name: [row[name] for row in rows] for name in schema.names})}


def slow(sample, state):
    """Later samples are ready first; every fifth is lost in one way or another."""
    number = int(sample.id[1:])
    if state is not None:
        state(sample.id)
    time.sleep((24 - number) % 7 / 200)
    if number % 5 == 0:
        raise (Dropped, Terminal, Transient)[number % 3]("LOST", f"number {number}")
    verdict = {"text_id": "", "check": "c", "version": "1", "value": float(number), "verdict": "pass"}
    return {"checks": [verdict] * 2}


def stage(concurrency: int, row=slow):
    return each_sample(
        "slow", "1", reads=("images",), writes=("checks",), row=row, attempts=1, pixels=False, concurrency=concurrency
    )


def test_rows_and_rejects_do_not_depend_on_how_many_are_in_flight():
    alone, many = (stage(n)(tables(), None) for n in (1, 8))
    assert many.tables["checks"].equals(alone.tables["checks"]) and many.kept == alone.kept
    assert len(alone.kept) == 19 and len(alone.rejects) == 5
    told = [[(r.item, r.error.outcome, str(r.error)) for r in o.rejects] for o in (alone, many)]
    assert told[0] == told[1]


def test_concurrency_enters_no_key_and_the_stage_travels():
    assert fingerprint(stage(1)) == fingerprint(stage(8))
    assert pickle.loads(pickle.dumps(stage(8))).concurrency == 8  # noqa: S301


def test_samples_are_worked_on_at_once_and_each_one_once():
    met, seen = threading.Barrier(8), []

    def row(sample, state):
        seen.append(sample.id)
        met.wait(timeout=5)  # breaks unless eight are there at once
        return {}

    outcome = stage(8, row)(tables(), None)
    assert outcome.kept == IDS and sorted(seen) == IDS


def test_a_bug_stops_the_stage_and_leaves_no_thread():
    def row(sample, state):
        if sample.id == "s03":
            raise ZeroDivisionError("a bug")
        return {}

    with pytest.raises(ZeroDivisionError):
        stage(4, row)(tables(), None)
    assert not [t for t in threading.enumerate() if t.name.startswith("in_order")]


def test_items_are_taken_only_as_they_are_needed():
    taken = []

    def items():
        for n in range(1000):
            taken.append(n)
            yield n

    results = in_order(str, items(), threads=2, ahead=6)
    assert next(results) == "0" and len(taken) == 7
    results.close()
    assert len(taken) == 7 and list(in_order(str, range(50), threads=3)) == [str(n) for n in range(50)]
