"""Collecting garbage: what a snapshot names stays, what nobody names goes, and a build is never disturbed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from makehome import make_home

from catalog import catalog, gc
from catalog.builds import builds
from catalog.catalog import query
from catalog.gc import Garbage, building, collect, collectable
from catalog.manifest import scan
from catalog.verify import manifests, problems
from infra.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three snapshots: all units, those of one source, all again; and a refused build between."""
    home = make_home(tmp_path)
    (first,) = builds(home)
    photos = tuple(unit for unit in first.units if "/photos/" in unit)
    first.model_copy(update={"number": 2, "units": photos}).write(home)
    first.model_copy(update={"number": 3, "status": "refused", "units": first.units[:1]}).write(home)
    first.model_copy(update={"number": 4, "units": photos}).write(home)
    catalog.refresh(home)
    return home


def files(home: Path) -> set[str]:
    found = (p for name in ("shards", "manifests") for p in (home / name).rglob("*") if p.is_file())
    return {str(p.relative_to(home)) for p in found}


def test_all_snapshots_are_kept_unless_told_otherwise(home: Path) -> None:
    before = files(home)
    garbage = collectable(home, grace_s=0)
    assert garbage == Garbage(("builds/000003.json",), (), (), 0)
    assert collect(home, grace_s=0) == garbage
    assert files(home) == before and [b.number for b in builds(home)] == [1, 2, 4]


def test_what_only_old_snapshots_name_goes(home: Path) -> None:
    garbage = collectable(home, keep=1, grace_s=0)
    assert garbage.builds == ("builds/000001.json", "builds/000002.json", "builds/000003.json")
    assert garbage.manifests and all("/scans/" in path for path in (*garbage.manifests, *garbage.shards))
    assert collect(home, keep=1, grace_s=0) == garbage
    assert not any("scans" in path for path in files(home)) and [b.number for b in builds(home)] == [4]
    assert [line for unit in manifests(home) for line in problems(home, unit)] == []
    assert query(home, "SELECT DISTINCT source FROM images").to_pylist() == [{"source": "photos"}]
    with pytest.raises(ConfigError, match="no snapshot 1"):
        query(home, "SELECT 1", at=1)
    assert collectable(home, keep=1, grace_s=0) == Garbage((), (), (), 0)
    assert not list((home / "builds").glob("given-up-*"))


def test_young_files_and_unfinished_work_stay(home: Path) -> None:
    assert collectable(home, keep=1).shards == ()
    (shard, *_) = sorted((home / "shards").rglob("*.parquet"))
    orphan = shard.with_name("all-ffffffffffffffffffffffff.parquet")
    orphan.write_bytes(shard.read_bytes())
    os.utime(orphan, (0, 0))
    done = next(scan(home)).read(home).model_copy(update={"key": "e" * 24, "shards": ()})
    done.write(home)  # of a build that was killed, or still runs: named by no build yet
    os.utime(home / done.path, (0, 0))
    garbage = collectable(home)
    assert garbage.shards == (str(orphan.relative_to(home)),) and garbage.manifests == ()
    collect(home)
    assert not orphan.exists() and (home / done.path).exists()


def test_a_build_and_a_collection_keep_out_of_each_others_way(home: Path) -> None:
    before = files(home)
    with building(home), building(home), pytest.raises(ConfigError, match=r"a build .* is running"):
        collect(home, keep=1, grace_s=0)
    assert files(home) == before
    assert collect(home, keep=1, grace_s=0).shards


@pytest.mark.parametrize("step", range(1, 8))
def test_a_collection_that_is_killed_goes_on_next_time(home: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    class Killed(BaseException):
        pass

    left = [step]

    def dying(work):  # type: ignore[no-untyped-def]
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return work(*args, **kwargs)

        return call

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", dying(Path.unlink))
        patch.setattr(Path, "rename", dying(Path.rename))
        patch.setattr(gc.catalog, "refresh", dying(catalog.refresh))
        collect(home, keep=1, grace_s=0)
    catalog.refresh(home)
    assert [line for unit in manifests(home) for line in problems(home, unit)] == []
    collect(home, keep=1, grace_s=0)
    assert not any("scans" in path for path in files(home)) and [b.number for b in builds(home)] == [4]
    assert not list((home / "builds").glob("given-up-*"))


def test_at_least_one_snapshot_is_kept(home: Path) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        collectable(home, keep=0)
