"""A source that looks as it did is not listed again; one that does not is, whatever changed; and plans stay cheap."""

from __future__ import annotations

import cProfile
import os
import pickle
import pstats
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sources import encoded, picture

from catalog.builds import Build
from catalog.catalog import refresh
from catalog.items import Later
from catalog.manifest import scan
from connectors import images
from flows import build as work
from flows.plan import Plan, make_plan
from flows.recipe import Recipe, load_recipe
from infra.errors import ConfigError
from infra.fileindex import FileIndex
from infra.look import look
from infra.runner import InlineRunner
from infra.storage import walk

RECIPE = """name: many
sources: [{{name: s, use: images, root: {root}, layout: imagefolder, patient_pattern: '^(p\\d+)/', capacity: 1}}]
stages: [{{use: harmonise}}]
"""


def make_source(folder: Path, partitions: int, age_s: float = 3600) -> Recipe:
    """One picture and one partition a folder."""
    data = encoded(picture(1, 16))
    for number in range(partitions):
        put(folder / "source" / f"p{number:03d}" / "Doe_Jane.png", data, age_s)
    (folder / "recipe.yaml").write_text(RECIPE.format(root=folder / "source"))
    return load_recipe(folder / "recipe.yaml", ())


def put(path: Path, data: bytes, age_s: float = 3600) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (time.time() - age_s,) * 2)


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files made by a test are old enough: their status changed just now, whatever their mtime says."""
    monkeypatch.setattr("infra.look.RACY_SECONDS", -60.0)


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that a source of images is listed."""
    calls: list[str] = []
    real = images.list_partitions

    def counted(source: str, *words: Any) -> Any:
        calls.append(source)
        return real(source, *words)

    monkeypatch.setattr(images, "list_partitions", counted)
    return calls


def build(recipe: Recipe, home: Path, plan: Plan | None = None) -> Plan:
    plan = plan or work.prepare(recipe, home)
    run(plan, recipe, home)
    Build(
        number=1, status="snapshot", name=recipe.name, recipe={}, validations=(), created_at="2026-01-01",
        units=tuple(sorted(entry.path for entry in scan(home))),
    ).write(home)  # without the checks of a commit, which take longer than all else here
    refresh(home)
    return plan


def run(plan: Plan, recipe: Recipe, home: Path) -> None:
    progress = work.Progress(plan.todo)
    with InlineRunner() as runner:
        work.run_chains(plan.chains, recipe, home, runner, progress)
    assert not progress.errors


def seen(plan: Plan) -> list[Any]:
    return [(chain.partition.place, chain.partition.key, [unit.key for unit in chain.units]) for chain in plan.chains]


def test_a_plan_with_nothing_to_do_lists_no_source_and_opens_none_of_its_files(
    tmp_path: Path, listings: list[str], opened: Callable[[Callable[[], Any]], list[str]]
) -> None:
    recipe, home = make_source(tmp_path, 5), tmp_path / "home"
    first = build(recipe, home)
    listings.clear()
    plans: list[Plan] = []
    files = opened(lambda: plans.append(work.prepare(recipe, home)))
    assert work.up_to_date(plans[0], home) and seen(plans[0]) == seen(first) and listings == []
    assert not [name for name in files if str(tmp_path / "source") in name or "/shards/" in name]
    assert all(isinstance(chain.partition.refs, Later) for chain in plans[0].chains)


@pytest.fixture
def opened() -> Callable[[Callable[[], Any]], list[str]]:
    """Calls something and returns the paths of the files that were opened meanwhile."""
    names: list[str] = []
    on = [False]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if on[0] and event == "open":
            names.append(os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else "")

    sys.addaudithook(hook)

    def during(call: Callable[[], Any]) -> list[str]:
        names.clear()
        on[0] = True
        try:
            call()
        finally:
            on[0] = False
        return list(names)

    return during


CHANGES: dict[str, Callable[[Path], object]] = {
    "another picture of the same size": lambda root: _same_size(root / "p001" / "Doe_Jane.png"),
    "a new file": lambda root: put(root / "p001" / "b.png", encoded(picture(2, 16))),
    "a new folder": lambda root: put(root / "p900" / "b.png", encoded(picture(2, 16))),
    "a file that went": lambda root: (root / "p001" / "Doe_Jane.png").unlink(),
    "a folder that went": lambda root: shutil.rmtree(root / "p001"),
    "another name": lambda root: (root / "p001" / "Doe_Jane.png").rename(root / "p001" / "other.png"),
    "another folder": lambda root: (root / "p001").rename(root / "p901"),
    "an older file in its place": lambda root: put(root / "p001" / "Doe_Jane.png", encoded(picture(3, 16)), 7200),
    "two that changed places": lambda root: _swap(root / "p001" / "Doe_Jane.png", root / "p002" / "Doe_Jane.png"),
    "a mode": lambda root: (root / "p001" / "Doe_Jane.png").chmod(0o400),
}


def _same_size(path: Path) -> None:
    stamp = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))


def _swap(one: Path, other: Path) -> None:
    other.write_bytes(encoded(picture(9, 16)))
    one.rename(one.with_suffix(".x"))
    other.rename(one)
    one.with_suffix(".x").rename(other)


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_seen(tmp_path: Path, listings: list[str], change: str) -> None:
    recipe, home = make_source(tmp_path, 4), tmp_path / "home"
    work.prepare(recipe, home)
    time.sleep(0.02)  # the kernel's clock of files ticks every few milliseconds
    CHANGES[change](tmp_path / "source")
    listings.clear()
    plan = work.prepare(recipe, home)
    assert listings == ["s"]
    elsewhere = tmp_path / "elsewhere"  # the pseudonym key decides keys too
    shutil.copytree(home / "secrets", elsewhere / "secrets")
    assert seen(plan) == seen(work.prepare(recipe, elsewhere))
    assert work.prepare(recipe, home) and listings == ["s"] * 2


def test_other_parameters_and_a_damaged_memory_list_again(tmp_path: Path, listings: list[str]) -> None:
    recipe, home = make_source(tmp_path, 3), tmp_path / "home"
    work.prepare(recipe, home)
    work.prepare(load_recipe(tmp_path / "recipe.yaml", ("sources.s.capacity=2",)), home)
    assert listings == ["s"] * 2
    memory = home / "cache" / "listings" / "s.json"
    for damaged in (b"", b"{}", b'{"mark": 1, "partitions": 2}', memory.read_bytes()[:-9]):
        memory.write_bytes(damaged)
        listings.clear()
        work.prepare(recipe, home)
        assert listings == ["s"]


def test_a_table_that_lies_elsewhere_is_looked_at(tmp_path: Path, listings: list[str]) -> None:
    make_source(tmp_path, 2)
    table, home = tmp_path / "said.csv", tmp_path / "home"
    words = (f"sources.s.table={table}", "sources.s.labels={finding: finding}")
    table.write_text("image,finding\np000/Doe_Jane.png,mass\n")
    recipe = load_recipe(tmp_path / "recipe.yaml", words[:1])
    before = seen(work.prepare(recipe, home))
    table.write_text("image,finding\np001/Doe_Jane.png,mass\np404/none.png,mass\n")
    assert seen(work.prepare(recipe, home)) != before and listings == ["s"] * 2


def test_what_changed_just_now_or_could_not_be_read_is_not_remembered(
    tmp_path: Path, listings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, home = make_source(tmp_path, 2), tmp_path / "home"

    def fails(path: Path) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr("infra.fileindex.file_sha256", fails)
        work.prepare(recipe, home)
    work.prepare(recipe, home)
    assert listings == ["s"] * 2
    monkeypatch.setattr("infra.look.RACY_SECONDS", 3600.0)
    shutil.rmtree(home / "cache" / "listings")
    work.prepare(recipe, home)
    assert not (home / "cache" / "listings").exists()


def test_no_name_of_a_file_is_kept(tmp_path: Path) -> None:
    home = tmp_path / "home"
    work.prepare(make_source(tmp_path, 2), home)
    assert (home / "cache" / "listings" / "s.json").exists()
    assert not [path for path in walk(home) if b"Doe" in path.read_bytes()]


def test_units_planned_from_memory_build_the_same_and_travel_whole(tmp_path: Path) -> None:
    recipe, home = make_source(tmp_path, 3), tmp_path / "home"
    first = work.prepare(recipe, home)
    second = work.prepare(recipe, home)
    assert second.todo == first.todo == 6
    for one, other in zip(first.chains, second.chains, strict=True):
        travelled = pickle.loads(pickle.dumps(other.todo[0])).partition  # noqa: S301 - our own
        assert travelled == one.partition and isinstance(travelled.refs, tuple)
        assert len(other.partition.refs) == 1 and other.partition.refs[0] == one.partition.refs[0]
    build(recipe, home, second)
    shards = {path.name: path.read_bytes() for path in (home / "shards").rglob("*.parquet")}
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(home / "secrets", elsewhere / "secrets")
    build(recipe, elsewhere)
    assert shards == {path.name: path.read_bytes() for path in (elsewhere / "shards").rglob("*.parquet")} and shards


def test_a_source_that_changes_between_plan_and_work_stops_the_build(tmp_path: Path) -> None:
    recipe, home = make_source(tmp_path, 3), tmp_path / "home"
    work.prepare(recipe, home)
    plan = work.prepare(recipe, home)
    put(tmp_path / "source" / "p001" / "Doe_Jane.png", encoded(picture(7, 16)))
    with pytest.raises(ConfigError, match="has changed since the build was planned; run it again"):
        build(recipe, home, plan)
    build(recipe, home)


def test_later_stages_carry_no_items_to_their_workers(tmp_path: Path) -> None:
    recipe, home = make_source(tmp_path, 1), tmp_path / "home"
    ingest, harmonise = work.prepare(recipe, home).chains[0].todo
    assert len(ingest.partition.contents) == 1 and len(harmonise.partition.contents) == 0
    assert harmonise.partition.place == ingest.partition.place


def test_a_look_sees_files_as_walk_does(tmp_path: Path) -> None:
    for name in ("a.png", "b/c.png", "b/d/e.txt", ".hidden", ".git/x", "__MACOSX/y", "f/g"):
        put(tmp_path / "tree" / name, b"x")
    put(tmp_path / "away" / "z", b"z")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "away")
    (tmp_path / "tree" / "file").symlink_to(tmp_path / "away" / "z")
    (tmp_path / "tree" / "nowhere").symlink_to(tmp_path / "gone")
    found = look([tmp_path / "tree"])
    assert found.files == len(list(walk(tmp_path / "tree"))) == 5
    put(tmp_path / "tree" / ".hidden", b"other")
    put(tmp_path / "away" / "new", b"")
    assert look([tmp_path / "tree"]) == found
    put(tmp_path / "away" / "z", b"zz")
    assert look([tmp_path / "tree"]).hash != found.hash
    assert look([tmp_path / "tree"]).hash != look([tmp_path / "tree", tmp_path / "tree"]).hash
    assert look([tmp_path / "gone"]).hash != look([tmp_path / "away"]).hash
    assert look([tmp_path / "away" / "z"]).files == 1


def _calls(work_of: Callable[[], Any]) -> int:
    profile = cProfile.Profile()
    profile.runcall(work_of)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def test_calls_and_opened_files_grow_with_the_partitions_and_no_faster(
    tmp_path: Path, opened: Callable[[Callable[[], Any]], list[str]]
) -> None:
    """Counts, not times: what is quadratic, such as a search of a folder for each unit, shows at once."""
    planned, built = [], []
    for count in (4, 8, 16):
        recipe, home = make_source(tmp_path / str(count), count), tmp_path / str(count) / "home"
        plan = make_plan(recipe, home)
        built.append(_calls(partial(run, plan, recipe, home)))
        planned.append(_calls(partial(make_plan, recipe, home)))
        assert make_plan(recipe, home).todo == 0
        files = [name for name in opened(partial(make_plan, recipe, home)) if str(tmp_path) in name]
        assert len(files) < 10, files
    for counts, most in ((planned, 700), (built, 25_000)):
        each = [(counts[1] - counts[0]) / 4, (counts[2] - counts[1]) / 8]  # what the first one imports falls away
        assert each[1] < min(most, 1.25 * each[0] if counts is planned else most), counts


def test_the_index_is_not_read_when_nothing_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, home = make_source(tmp_path, 2), tmp_path / "home"
    work.prepare(recipe, home)

    def unasked(path: Path) -> Any:
        raise AssertionError("the index was read")

    monkeypatch.setattr("infra.fileindex._rows", unasked)
    work.prepare(recipe, home)
    with pytest.raises(AssertionError):
        FileIndex(home / "cache" / "files.sqlite").sha256(tmp_path / "recipe.yaml")
