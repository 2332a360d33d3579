"""Manifests: the file's name says what a planner needs, the newest attempt wins, nothing outside the home is opened."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from catalog.manifest import Entry, Manifest, Shard, find, latest, read_manifest, scan
from infra.errors import ConfigError
from infra.keys import key

KEY = key("unit")


def manifest(**changes: Any) -> Manifest:
    shard = Shard(layer="images", path="shards/images/s/all.parquet", rows=3, bytes=10, sha256="0" * 64)
    fields: dict[str, Any] = dict(
        key=KEY, source="s", partition="all", stage="ingest", stage_version="1", params={"a": [1, None]},
        ingredients={}, inputs=("x",), schema_version=1, rows_in=3, kept=3, dropped=0, failed=0, retryable=0,
        quarantined=False, shards=(shard,), software={}, seconds=0.5,
    )
    return Manifest(**(fields | changes))


@pytest.mark.parametrize(
    ("attempt", "quarantined", "retryable", "partition"),
    [*itertools.product((0, 3, 12), (False, True), (0, 2), ("all", "b0101", "a-b-c", f"x-{KEY}", "dotted.name.1q"))],
)
def test_the_name_tells_what_the_manifest_says(
    tmp_path: Path, attempt: int, quarantined: bool, retryable: int, partition: str
) -> None:
    made = manifest(attempt=attempt, quarantined=quarantined, retryable=retryable, partition=partition)
    made.write(tmp_path)
    (entry,) = scan(tmp_path)
    assert entry == Entry(made.path, "s", "ingest", partition, KEY, attempt, quarantined, bool(retryable))
    assert entry.read(tmp_path) == made
    assert find(tmp_path, "s", "ingest", partition, KEY, attempt) == entry


def test_what_is_no_manifest_is_passed_over(tmp_path: Path) -> None:
    manifest().write(tmp_path)
    folder = tmp_path / "manifests" / "s" / "ingest"
    for name in (f"all-{KEY}.json", f"all-{KEY}.0x.json", f"all-{KEY[1:]}.0.json", f"{KEY}.0.json", "a.txt"):
        (folder / name).write_text("{}")
    assert [e.path for e in scan(tmp_path)] == [manifest().path]
    assert list(scan(tmp_path / "nothing")) == []


def test_the_newest_attempt_wins_in_any_order(tmp_path: Path) -> None:
    for attempt in (2, 10, 0, 9):
        manifest(attempt=attempt, retryable=attempt % 2).write(tmp_path)
    other = key("other")
    manifest(key=other).write(tmp_path)
    entries = list(scan(tmp_path, "s"))
    for order in itertools.permutations(entries):
        assert {k: e.attempt for k, e in latest(iter(order)).items()} == {KEY: 10, other: 0}
    for attempt in (2, 10, 0, 9):
        found = find(tmp_path, "s", "ingest", "all", KEY, attempt)
        assert found is not None and found.attempt == attempt
    assert find(tmp_path, "s", "ingest", "all", KEY, 1) is None
    assert find(tmp_path, "s", "ingest", "all", key("never"), 0) is None
    assert list(scan(tmp_path, "nobody")) == []


@pytest.mark.parametrize(
    "path", ["../outside.json", "/etc/passwd", "manifests/../../outside.json", "manifests/link.json"]
)
def test_a_path_that_leads_out_of_the_home_is_refused(tmp_path: Path, path: str) -> None:
    home = tmp_path / "home"
    (home / "manifests").mkdir(parents=True)
    (tmp_path / "outside.json").write_text(manifest().model_dump_json())
    os.symlink(tmp_path / "outside.json", home / "manifests" / "link.json")
    with pytest.raises(ConfigError, match="leads out of the dataset's home"):
        read_manifest(home, path)


def test_a_record_with_an_unknown_or_missing_field_is_refused(tmp_path: Path) -> None:
    made = manifest()
    made.write(tmp_path)
    file = tmp_path / made.path
    whole = json.loads(file.read_text())
    for wrong in ({**whole, "extra": 1}, {k: v for k, v in whole.items() if k != "shards"}, {**whole, "kept": "many"}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ConfigError):
            read_manifest(tmp_path, made.path)
    assert file.read_text().count("\n") == 0 and list(file.parent.glob(".*")) == []
