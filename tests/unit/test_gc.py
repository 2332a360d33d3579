"""Collecting garbage: what a snapshot names stays, what nobody names goes, and a build is never disturbed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from makehome import make_home
from typer.testing import CliRunner

from catalog import catalog, decisions, gc, segments
from catalog.builds import builds
from catalog.catalog import query
from catalog.gc import Garbage, building, collect, collectable
from catalog.manifest import scan
from catalog.schema import LAYERS
from catalog.verify import manifests, problems
from catalog.views import all_rows
from flows.cli import app
from infra.errors import ConfigError
from infra.keys import key

GONE, STAYS = key("sample", "CT", 0), key("sample", "XC", 0)
"""A sample of the source that only the first snapshot holds, and one of the source that all hold."""


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


def decide(home: Path, sample: str, words: str) -> int:
    said = decisions.Decision(
        reviewer="r-00000001", sample_id=sample, about="text:t", seen="0" * 24, verdict="correct", text=words,
    )
    return decisions.decide(home, said)


def test_decisions_about_a_sample_go_with_the_last_snapshot_that_holds_it(home: Path) -> None:
    for sample, words in ((GONE, "quoted"), (STAYS, "kept"), (GONE, "quoted again")):
        decide(home, sample, words)
    assert collectable(home, grace_s=0).decisions == () == collectable(home, keep=1).decisions, "held, or young"
    (home / "reports" / "000001").mkdir(parents=True)
    (home / "reports" / "000001" / "index.html").write_text("quoted too")
    told = CliRunner().invoke(app, ["catalog", "gc", "--home", str(home), "--keep", "1", "--grace", "0"]).stdout
    assert "would remove 2 decisions about samples that no snapshot holds any more (1, 3)" in told
    assert len(decisions.read(home)) == 3
    garbage = collect(home, keep=1, grace_s=0)
    assert (garbage.decisions, garbage.reports) == ((1, 3), ("reports/000001/index.html",))
    assert [d.text for d in decisions.read(home)] == ["kept"] and not (home / garbage.reports[0]).exists()
    assert not [p for p in home.rglob("*") if p.is_file() and b"quoted" in p.read_bytes()]
    assert decide(home, STAYS, "new") == 4, "the number of one that was withdrawn is not given again"
    assert collect(home, keep=1, grace_s=0).decisions == ()


def test_decisions_stay_while_the_catalog_does_not_know_all_that_is_kept(home: Path) -> None:
    decide(home, GONE, "of a sample that comes back")
    builds(home)[0].model_copy(update={"number": 5}).write(home)  # and its process was killed here
    assert collect(home, keep=1, grace_s=0).decisions == () and len(decisions.read(home)) == 1
    catalog.refresh(home)
    assert collect(home, keep=1, grace_s=0).decisions == () and len(decisions.read(home)) == 1


def rows_named(home: Path) -> int:
    """Rows of the source that is gone, under the names of tables that people may ask as well."""
    of = "shard_id NOT IN (SELECT s.id FROM shards s JOIN units u ON s.unit = u.id WHERE u.source = 'photos')"
    with catalog.reader(home) as con:
        return sum(
            con.execute(f"SELECT count(*) FROM ({all_rows(layer, segments.names(con))}) WHERE {of}").fetchone()[0]
            for layer in LAYERS
        )


@pytest.mark.parametrize("spill", [segments.SPILL, 0])
def test_the_index_forgets_what_goes_also_in_segments(
    home: Path, monkeypatch: pytest.MonkeyPatch, spill: int
) -> None:
    monkeypatch.setattr(segments, "SPILL", spill)
    catalog.rebuild(home)
    photos, before = builds(home)[-1], query(home, "SELECT * FROM texts ORDER BY ALL").to_pylist()
    assert rows_named(home) > 0 and bool(list(home.glob("segments/rows_*"))) == (spill == 0)
    collect(home, keep=1, grace_s=0)
    assert rows_named(home) == 0 and query(home, "SELECT count(*) AS n FROM units").to_pylist() == [{"n": 2}]
    assert query(home, "SELECT * FROM texts ORDER BY ALL").to_pylist() == before
    photos.model_copy(update={"number": 9}).write(home)
    catalog.refresh(home)
    assert query(home, "SELECT * FROM texts ORDER BY ALL").to_pylist() == before


def test_a_segment_that_was_to_be_written_again_is_by_the_next_writer(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a shard that came in between has no number of one whose rows still stand there."""
    monkeypatch.setattr(segments, "SPILL", 0)
    catalog.rebuild(home)
    with monkeypatch.context() as patch, catalog.writer(home) as con:
        patch.setattr(segments, "spill", lambda con, home: False)  # killed there
        con.execute("DELETE FROM builds WHERE number < 4; DELETE FROM build_units WHERE build < 4")
        segments.forget(con)
    for path in (home / "builds").glob("00000[123].json"):
        path.rename(tmp_path / path.name)
    monkeypatch.setattr(segments, "SPILL", 10**6)
    again = (tmp_path / "000001.json").read_text().replace('"number": 1', '"number": 5')
    (home / "builds" / "000005.json").write_text(again)
    catalog.refresh(home)
    assert query(home, "SELECT count(*) AS n, count(DISTINCT sample_id) AS ids FROM images").to_pylist() == [
        {"n": 12, "ids": 12}
    ]
    with catalog.reader(home) as con:
        assert con.execute("SELECT min(rows) >= 0 FROM segments").fetchone() == (True,)
