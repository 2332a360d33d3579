"""Cases of the runtime: power cuts, locked and damaged catalogs, clocks that step, upgrades.

Where each case is tested (the numbers are those of the list of faults that medloom is built against):

    45  processes killed, power lost      test_kill.py, test_soak.py, here (synced before it is named)
    46  an item that kills its worker     test_runner_kills.py, tests/unit/test_attempts.py
    47  disk full, no inodes              test_disk.py
    48  S3 fails, stutters, lies          test_bucket_faults.py, tests/unit/test_s3.py, tests/flows/test_bucket_home.py
    49  two runs at once                  test_leases.py, test_prefect_faults.py, test_together.py
    50  catalog locked or damaged         here
    51  clocks                            here, test_leases.py
    52  a host is lost                    test_leases.py, test_prefect_faults.py
    53  cancelled in the UI               tests/flows/test_prefect.py
    54  upgrades                          here
    55  SQL                               test_access.py, tests/unit/test_catalog.py
    56  a catalog that is not ours        test_access.py
    57  open ports                        test_access.py
    58  secrets                           test_secrets.py, tests/unit/test_redact.py
    59  dependencies                      tests/unit/test_supply.py
    60  names and markup in exports       test_access.py, tests/contracts/test_exports.py
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest
from makehome import make_home
from sources import make_images
from test_disk import RECIPE, build, data
from typer.testing import CliRunner

from catalog import catalog
from catalog.builds import builds, last_snapshot, read_build
from catalog.catalog import PUBLISHED, CatalogError, NothingYet, query
from catalog.gc import building, collect, collectable
from catalog.manifest import scan
from catalog.verify import manifests, problems
from flows.catalogue import app
from infra.errors import ConfigError
from infra.storage import draft_of

ROOT = Path(__file__).parents[2]
COUNT = "SELECT count(*) AS n FROM images"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    make_images(tmp_path / "images", 12)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(root=tmp_path))
    return tmp_path / "recipe.yaml"


# 45


def test_nothing_is_named_before_it_is_on_the_disk(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is synced as it will stand, renamed, its folder synced; a record follows all that it names."""
    home = tmp_path / "home"
    synced: dict[str, str] = {}
    renamed: list[str] = []
    durable: set[str] = set()
    fsync, replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        fsync(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_dir():
            durable.update(name for name in renamed if Path(name).parent == path)
        else:
            synced[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()

    def move(draft: Path, path: Path) -> None:
        held = hashlib.sha256(Path(draft).read_bytes()).hexdigest()
        assert synced.pop(str(draft), None) == held, f"{path} was not synced as it is"
        name = str(path.relative_to(home))
        if name.startswith("manifests/"):
            named = [shard["path"] for shard in json.loads(Path(draft).read_text())["shards"]]
        else:
            named = json.loads(Path(draft).read_text())["units"] if name.startswith("builds/") else []
        lost = [one for one in named if str(home / one) not in durable]
        assert not lost, f"{name} would outlive {lost[0]} in a power cut"
        replace(draft, path)
        renamed.append(str(path))

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", move)
    build(recipe, home)
    monkeypatch.undo()
    kept = [p for name in ("shards", "manifests", "builds") for p in (home / name).rglob("*") if p.is_file()]
    assert {str(p) for p in (*kept, home / "catalog.ro.duckdb")} <= durable, "made by another way"


def test_a_new_folder_is_on_the_disk_before_what_lies_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's own folder is synced; the folders made for it must be named on the disk as well."""
    synced = set()
    fsync = os.fsync

    def sync(handle: int) -> None:
        fsync(handle)
        synced.add(os.readlink(f"/proc/self/fd/{handle}"))

    monkeypatch.setattr(os, "fsync", sync)
    draft_of(tmp_path / "a" / "b" / "c" / "file")
    assert {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")} <= synced


def test_a_first_build_that_is_recorded_and_not_published_is_told_apart_from_none(recipe: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(NothingYet, match="no snapshot yet: run `medloom build"):
        query(home, "FROM images")
    build(recipe, home)
    (home / PUBLISHED).unlink()
    with pytest.raises(NothingYet, match=r"does not show yet: ask again .* `medloom catalog rebuild"):
        query(home, "FROM images")
    build(recipe, home)
    assert query(home, "SELECT count(*) AS n FROM images").to_pylist()[0]["n"] > 0


def test_what_no_manifest_names_is_invisible_and_made_again(recipe: Path, tmp_path: Path) -> None:
    """Power went after the shards were renamed, before their manifest; their blocks never reached the disk."""
    home, calm = tmp_path / "home", tmp_path / "calm"
    build(recipe, calm)
    build(recipe, home)
    record = last_snapshot(home)
    assert record is not None
    (home / record.path).unlink()
    for entry in [entry for entry in scan(home) if entry.stage == "caption"]:
        for shard in entry.read(home).shards:
            (home / shard.path).write_bytes(b"\0" * shard.bytes)
        (home / entry.path).unlink()
    draft = home / "shards/texts/pictures/.tmp-dead"
    draft.write_bytes(b"half")
    catalog.refresh(home)
    with pytest.raises(CatalogError, match="no snapshot"):
        manifests(home)
    assert {entry.stage for entry in scan(home)} == {"ingest"}
    build(recipe, home)
    draft.unlink()
    assert data(home) == data(calm)
    assert [line for unit in manifests(home) for line in problems(home, unit)] == []


def test_a_shard_that_the_disk_lost_is_found(tmp_path: Path) -> None:
    """A disk that lies about fsync: the manifest stands, the shard is zeros. `verify` names it, and what to do."""
    home = make_home(tmp_path)
    shard = next(s for unit in manifests(home) for s in unit.shards if s.layer == "images")
    (home / shard.path).write_bytes(b"\0" * shard.bytes)
    (found,) = [line for unit in manifests(home) for line in problems(home, unit)]
    assert shard.path in found and "build again" in found


# 50


@contextmanager
def notebook(path: Path, seconds: float = 60, writing: bool = True) -> Iterator[int]:
    """Another process that has a database open."""
    code = (
        f"import duckdb, time; c = duckdb.connect({str(path)!r}, read_only={not writing});"
        f"print('open', flush=True); time.sleep({seconds})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        yield process.pid
        process.kill()


def test_an_open_notebook_stops_nobody(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    with notebook(home / "catalog.ro.duckdb", writing=False):
        catalog.refresh(home)
        assert query(home, COUNT).to_pylist() == [{"n": 12}]


def test_a_notebook_on_the_writers_file_is_waited_for(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    with notebook(home / "catalog.duckdb", seconds=1.0):
        assert query(home, COUNT).to_pylist() == [{"n": 12}], "readers have their own copy"
        catalog.refresh(home)


def test_the_wait_is_bounded_and_the_holder_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(tmp_path)
    monkeypatch.setattr("catalog.index.HELD_WAIT_S", 0.3, raising=False)
    with notebook(home / "catalog.duckdb") as pid, pytest.raises(CatalogError, match=f"held by.*PID {pid}"):
        catalog.refresh(home)


DAMAGE = {
    "empty": lambda good: b"", "cut short": lambda good: good[: len(good) // 2], "zeros": lambda good: bytes(len(good)),
    "something else": lambda good: b"hello" * 5000,
    "other blocks": lambda good: good[:8192] + bytes(b ^ 0xFF for b in good[8192:]),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["catalog.duckdb", "catalog.ro.duckdb"])
def test_a_damaged_catalog_says_how_to_mend_it(tmp_path: Path, file: str, damage: str) -> None:
    home = make_home(tmp_path)
    before = query(home, "SELECT * FROM samples ORDER BY sample_id").to_pylist()
    (home / file).write_bytes(DAMAGE[damage]((home / file).read_bytes()))
    with pytest.raises(CatalogError, match="medloom catalog rebuild") as said:
        catalog.refresh(home) if file == "catalog.duckdb" else query(home, COUNT)
    assert "held" not in str(said.value)
    assert CliRunner().invoke(app, ["rebuild", "--home", str(home)]).exit_code == 0
    assert query(home, "SELECT * FROM samples ORDER BY sample_id").to_pylist() == before


@pytest.mark.parametrize("left", ["of a killed writer", "garbage"])
def test_a_log_that_was_left_behind_does_no_harm(tmp_path: Path, left: str) -> None:
    home = make_home(tmp_path)
    if left == "garbage":
        (home / "catalog.duckdb.wal").write_bytes(os.urandom(4096))
    else:
        code = (
            "import os, sys, duckdb; c = duckdb.connect(sys.argv[1]); c.execute('PRAGMA disable_checkpoint_on_shutdown;"
            "DELETE FROM builds'); os._exit(9)"
        )
        subprocess.run([sys.executable, "-c", code, home / "catalog.duckdb"], check=False)
        assert (home / "catalog.duckdb.wal").stat().st_size > 0
    catalog.refresh(home)
    assert query(home, "SELECT count(*) AS n FROM builds").to_pylist() == [{"n": 1}]
    assert query(home, COUNT).to_pylist() == [{"n": 12}]


# 51


def faketime() -> str:
    """The library that lets a process see another time, or a skip."""
    found = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if found is None:
        pytest.skip("no libfaketime here: apt-get install libfaketime")
    return str(found)


def test_no_clock_decides_anything(tmp_path: Path) -> None:
    """Built in 2031, in the hour that summer time repeats, and then in 2019: numbers and bytes know no time."""
    library, driver = faketime(), Path(__file__).with_name("driver.py")
    recipes = []
    for count in (12, 20):
        root = tmp_path / f"source{count}"
        make_images(root / "images", count)
        (root / "recipe.yaml").write_text(RECIPE.format(root=root))
        recipes.append(root / "recipe.yaml")
    calm, home = tmp_path / "calm", tmp_path / "home"
    times = {"@2031-10-26 02:59:58": "Europe/Berlin", "@2019-03-31 01:59:58": "America/New_York"}
    for (moment, zone), recipe in zip(times.items(), recipes, strict=True):
        environment = os.environ | {
            "LD_PRELOAD": library, "FAKETIME": moment, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "TZ": zone,
            "PYTHONPATH": str(ROOT),
        }
        subprocess.run([sys.executable, driver, recipe, home, "inline"], env=environment, check=True)
    build(recipes[-1], calm)
    assert data(calm).items() <= data(home).items()
    assert [build.number for build in builds(home)] == [1, 2]
    stamps = [build.created_at for build in builds(home)]
    assert stamps[0].startswith("2031-10-26T0") and stamps[1].startswith("2019-03-31T0"), stamps
    assert all(stamp.endswith("+00:00") for stamp in stamps), "UTC"
    newest = last_snapshot(home)
    assert newest is not None and newest.number == 2, "the newest is the one with the highest number"
    assert query(home, COUNT).to_pylist() == [{"n": 20}] and query(home, COUNT, at=1).to_pylist() == [{"n": 12}]


def test_a_clock_that_steps_never_makes_garbage_of_what_counts(recipe: Path, tmp_path: Path) -> None:
    """Files dated 1970 or 2100: what a snapshot names stays, a build under way is not disturbed, orphans wait."""
    home = tmp_path / "home"
    build(recipe, home)
    before = data(home)
    orphans = {age: home / f"shards/images/pictures/orphan-{age}.parquet" for age in (0, 4102444800)}
    for path in orphans.values():
        path.write_bytes(b"orphan")
    for path in (home / "shards").rglob("*.parquet"):
        os.utime(path, (0, 0))
    os.utime(orphans[4102444800], (4102444800, 4102444800))
    with building(home), pytest.raises(ConfigError, match="running"):
        collect(home, keep=1, grace_s=0)
    assert collectable(home, keep=1).shards == (str(orphans[0].relative_to(home)),), "the other looks young"
    collect(home, keep=1)
    assert data(home) | {"x": b""} == before | {str(orphans[4102444800].relative_to(home)): b"orphan", "x": b""}


# 54


def test_a_dry_run_says_what_an_upgrade_would_do(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    (home / "catalog.ro.duckdb").unlink()
    with duckdb.connect(str(home / "catalog.duckdb")) as con:
        con.execute("UPDATE format SET number = 1")
    for entry in list(scan(home))[:1]:
        path = home / entry.path
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 1}))
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
    said = CliRunner().invoke(app, ["rebuild", "--home", str(home), "--dry-run"])
    assert said.exit_code == 0, said.output
    assert "format 1, this medloom writes" in said.output and "would be made again" in said.output
    assert "1 builds" in said.output and "1 of 4 manifests are of an older schema" in said.output
    assert {p: p.read_bytes() for p in home.rglob("*") if p.is_file()} == before, "a dry run writes nothing"
    assert CliRunner().invoke(app, ["rebuild", "--home", str(home)]).exit_code == 0
    assert query(home, COUNT).to_pylist() == [{"n": 12}]


def test_an_older_home_is_opened_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    """The index of an older format is made again; manifests of an older schema stay and count."""
    home = tmp_path / "home"
    build(recipe, home)
    before = query(home, "SELECT * FROM samples ORDER BY sample_id").to_pylist()
    with duckdb.connect(str(home / "catalog.duckdb")) as con:
        con.execute("UPDATE format SET number = 1; ALTER TABLE builds ADD COLUMN of_old INTEGER")
    catalog.refresh(home)
    assert query(home, "SELECT * FROM samples ORDER BY sample_id").to_pylist() == before
    make_images(tmp_path / "images", 20)
    build(recipe, home)
    assert query(home, COUNT).to_pylist() == [{"n": 20}] and query(home, COUNT, at=1).to_pylist() == [{"n": 12}]


@pytest.mark.parametrize("what", [
    "manifest", "build", "catalog",
])
def test_a_newer_home_is_refused_in_words(tmp_path: Path, what: str) -> None:
    home = make_home(tmp_path)
    (record,) = builds(home)
    if what == "catalog":
        with duckdb.connect(str(home / "catalog.duckdb")) as con:
            con.execute("UPDATE format SET number = 99")
    else:
        path = home / (record.path if what == "build" else record.units[0])
        path.write_text(json.dumps(json.loads(path.read_text()) | {"of_tomorrow": 1, "schema_version": 99}))
    before = {p: p.read_bytes() for p in home.rglob("*.json")}
    with pytest.raises((CatalogError, ConfigError), match="newer medloom"):
        read_build(home, 1)
        catalog.refresh(home)
        catalog.rebuild(home)
    assert {p: p.read_bytes() for p in home.rglob("*.json")} == before
