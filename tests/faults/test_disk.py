"""Case 47: the disk is full, in bytes or in files, at every step of a build and of an export.

The disk is a real one, a tmpfs of some megabytes with a ballast that gives way a little at a time: the same command is
given again after each failure, so each step of it is the one that fails. Every failure is one error of ours, leaves
nothing half visible and no draft, and in the end the bytes are those of a build on a large disk.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
from sources import make_images

from catalog import catalog
from catalog.builds import last_snapshot
from catalog.gc import collect
from catalog.manifest import scan
from catalog.verify import manifests, problems
from flows import build as work
from flows.export import run_export
from flows.recipe import load_recipe
from infra.disk import DiskFull, Free, reason, room, watched
from infra.fileindex import FileIndex
from infra.llmcache import RequestCache
from infra.runner import InlineRunner
from infra.storage import TEMPORARY, write_bytes

ROOT = Path(__file__).parents[2]
RECIPE = """
name: small
sources:
  - {{name: pictures, use: images, layout: imagefolder, root: {root}/images, modality: XC, identifiers: public,
     capacity: 8}}
stages:
  - {{use: caption}}
"""


@dataclass
class Disk:
    """A small file system and what fills it."""

    root: Path

    @property
    def ballast(self) -> Path:
        return self.root / "ballast"

    def fill(self, spare: int = 0) -> None:
        """Leave so many bytes."""
        self.ballast.unlink(missing_ok=True)
        with open(self.ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, Free.at(self.root).bytes - spare - 4096))

    def give(self, bytes: int) -> bool:
        """Let so many go; whether there was anything to give."""
        size = self.ballast.stat().st_size
        os.truncate(self.ballast, max(0, size - bytes))
        return size > 0


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    """Mounts a tmpfs with these options, or skips where that is not permitted."""
    made: list[Path] = []

    def mounted(options: str) -> Disk:
        root = tmp_path / f"disk{len(made)}"
        root.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", root], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system may be mounted here: {done.stderr.decode().strip()}")
        made.append(root)
        return Disk(root)

    yield mounted
    for root in made:
        subprocess.run(["umount", "-l", root], check=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    make_images(root / "images", 16)
    (root / "recipe.yaml").write_text(RECIPE.format(root=root))
    return root / "recipe.yaml"


@pytest.fixture(scope="module")
def calm(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a build with all the room it wants."""
    home = tmp_path_factory.mktemp("calm") / "home"
    build(recipe, home)
    return home


def build(recipe: Path, home: Path) -> None:
    steps = load_recipe(recipe)
    plan = work.prepare(steps, home)
    progress = work.Progress(plan.todo)
    with InlineRunner() as runner:
        work.run_chains(plan.chains, steps, home, runner, progress)
    work.commit(plan, progress, steps, home)


def data(home: Path) -> dict[str, bytes]:
    """Shards as they are, manifests without their seconds."""
    found = {str(p.relative_to(home)): p.read_bytes() for p in (home / "shards").rglob("*.parquet")}
    for entry in scan(home):
        found[entry.path] = entry.read(home).model_copy(update={"seconds": 0.0}).model_dump_json().encode()
    return found


def drafts(home: Path) -> list[str]:
    return [p.name for p in home.rglob(f"{TEMPORARY}*")]


def place(error: DiskFull) -> str:
    """The innermost function of ours that met the full disk."""
    cause, names = error.__cause__ or error, []
    while cause is not None:
        at = cause.__traceback__
        while at is not None:
            code = at.tb_frame.f_code
            if Path(code.co_filename).is_relative_to(ROOT) and "site-packages" not in code.co_filename:
                names.append(f"{Path(code.co_filename).stem}.{code.co_name}")
            at = at.tb_next
        cause = cause.__cause__
    return names[-1]


def until_done(command: Callable[[], object], give: Callable[[int], bool], home: Path) -> Counter[str]:
    """Give the command until it ends well, with more room each time; returns where it met the full disk."""
    met = Counter[str]()
    step = 4096
    for _ in range(400):
        try:
            command()
            return met
        except DiskFull as error:
            assert "free" in str(error) and "same command again" in str(error), error
            where = place(error)
            step = 4096 if where not in met else min(4 * step, 1 << 20)  # a new place is looked at closely
            met[where] += 1
        assert drafts(home) == []
        for entry in scan(home):
            assert list(problems(home, entry.read(home))) == [], "a manifest names what is not whole"
        if last_snapshot(home) is not None:  # then the index can be behind, readers have the old copy or none
            assert data(home).keys() >= {unit for unit in last_snapshot(home).units}  # type: ignore[union-attr]
        assert give(step), "even the whole disk is too small"
    raise AssertionError(f"it never ended: {met}")


@pytest.mark.timeout(120)
def test_a_build_goes_on_from_wherever_the_disk_was_full(
    mount: Callable[[str], Disk], recipe: Path, calm: Path
) -> None:
    disk = mount("size=16m")
    home = disk.root / "home"
    home.mkdir()
    disk.fill()
    met = until_done(lambda: build(recipe, home), disk.give, home)
    print(dict(met))
    assert {"fileindex", "shards", "checks"} <= {name.partition(".")[0] for name in met}, met
    assert len(list((home / "reports").rglob("*"))) == len(list((calm / "reports").rglob("*"))), "pages are missing"
    assert data(home) == data(calm)
    assert [line for unit in manifests(home) for line in problems(home, unit)] == []
    counted = "SELECT count(*) AS n FROM texts"
    assert catalog.query(home, counted).to_pylist() == catalog.query(calm, counted).to_pylist()


@pytest.mark.timeout(120)
def test_a_build_goes_on_when_there_are_files_to_be_had_again(
    mount: Callable[[str], Disk], recipe: Path, calm: Path
) -> None:
    disk = mount("size=32m,nr_inodes=400")
    home = disk.root / "home"
    home.mkdir()
    taken = [disk.root / f"file{n}" for n in range(Free.at(disk.root).files or 0)]
    for path in taken:
        path.touch()
    assert Free.at(disk.root) == Free(Free.at(disk.root).bytes, 0)

    def give(bytes: int) -> bool:
        for path in taken[-(bytes >> 12):]:
            path.unlink()
            taken.pop()
        return bool(taken)

    met = until_done(lambda: build(recipe, home), give, home)
    print(dict(met))
    assert data(home) == data(calm)


def test_an_export_is_whole_or_absent_on_a_full_disk(
    mount: Callable[[str], Disk], calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.export.room", lambda *_: None)  # as when others fill the disk meanwhile
    disk = mount("size=4m")
    out = disk.root / "out"
    disk.fill()

    def export(to: Path) -> None:
        assert not out.exists()
        run_export(calm, "true", "webdataset", to, None, [], licences="all")

    met = until_done(lambda: export(out), disk.give, disk.root / "nothing")
    print(dict(met))
    assert met.total() > 2
    export_to = tmp_path / "whole"
    run_export(calm, "true", "webdataset", export_to, None, [], licences="all")
    files = {str(p.relative_to(export_to)): p.read_bytes() for p in export_to.rglob("*") if p.is_file()}
    assert {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()} == files


def test_room_can_be_made_on_a_full_disk(mount: Callable[[str], Disk], recipe: Path) -> None:
    """`medloom catalog gc` is what one does then: it must not need the room that it is to give back."""
    disk = mount("size=32m")
    home = disk.root / "home"
    build(recipe, home)
    orphan = home / "shards/images/pictures/orphan.parquet"
    write_bytes(orphan, os.urandom(64 << 10))
    disk.fill()
    collect(home, grace_s=0)
    assert not orphan.exists() and Free.at(disk.root).bytes >= 64 << 10


def test_an_answer_that_cannot_be_kept_is_no_answer(mount: Callable[[str], Disk]) -> None:
    disk = mount("size=1m")
    cache = RequestCache(disk.root / "llm")
    disk.fill(8192)
    reply = {"content": "x" * 65536}
    with pytest.raises(DiskFull), watched(disk.root, "captions"):
        cache.reply({"model": "m"}, lambda: reply)
    assert [p for p in disk.root.rglob("*.json")] == [] and drafts(disk.root) == []
    disk.ballast.unlink()
    assert not cache.reply({"model": "m"}, lambda: reply).cached
    assert json.loads(next(disk.root.rglob("*.json")).read_bytes())["reply"] == reply


def test_the_index_of_files_says_that_the_disk_is_full(mount: Callable[[str], Disk], tmp_path: Path) -> None:
    disk = mount("size=1m")
    files = [tmp_path / f"file{n}" for n in range(2000)]
    for path in files:
        path.write_bytes(b"x")
        os.utime(path, (1, 1))
    disk.fill(32 << 10)
    with pytest.raises(DiskFull), watched(disk.root, "the index of files"), FileIndex(disk.root / "files") as index:
        for path in files:
            index.sha256(path)
    disk.ballast.unlink()
    with FileIndex(disk.root / "files") as index:
        assert len({index.sha256(path) for path in files}) == 1


def test_room_is_asked_for_before_anything_is_written(mount: Callable[[str], Disk]) -> None:
    disk = mount("size=50m,nr_inodes=50")
    room(disk.root / "not" / "made" / "yet", 1 << 20, "this build")
    with pytest.raises(DiskFull, match=r"this export needs about 62\.9 MB in .*, 52\.\d MB and 4\d files are free"):
        room(disk.root, 60 << 20, "this export")
    with pytest.raises(DiskFull, match="in 60 files"):
        room(disk.root, 0, "this export", files=60)
    assert not (disk.root / "not").exists()


def test_a_build_or_export_that_cannot_fit_is_not_begun(
    mount: Callable[[str], Disk], calm: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mount("size=40k")
    with pytest.raises(DiskFull, match=r"this export needs about .* nothing was written"):
        run_export(calm, "true", "webdataset", disk.root / "out", None, [], licences="all")
    assert list(disk.root.iterdir()) == []
    home = shutil.copytree(calm, tmp_path / "home")
    shutil.rmtree(home / "manifests")
    monkeypatch.setattr(Free, "at", classmethod(lambda cls, path: Free(1 << 10, None)))
    with pytest.raises(DiskFull, match=r"this build needs about .* nothing was written"):
        work.prepare(load_recipe(recipe), home)


def test_only_a_full_disk_is_a_full_disk(tmp_path: Path) -> None:
    assert reason(OSError(errno.EDQUOT, "")) == "the disk quota is used up"
    assert reason(PermissionError(errno.EACCES, "")) is None and reason(ValueError("No space left on device")) is None
    assert reason(sqlite3.OperationalError("database or disk is full")) is None, "made by hand: it has no number"
    with pytest.raises(duckdb.Error) as met:
        duckdb.sql("SELECT broken")
    assert reason(met.value) is None
    with pytest.raises(FileNotFoundError), watched(tmp_path, "nothing"):
        (tmp_path / "missing").read_bytes()
