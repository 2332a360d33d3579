"""What changed between two snapshots, and where a row comes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from makehome import make_home
from sources import encoded, picture

from catalog import segments
from catalog.builds import last_snapshot
from catalog.catalog import CatalogError, query
from catalog.diff import GONE, Change, both, changes
from catalog.lineage import lineage
from flows.build import Progress, commit, prepare, run_chains
from flows.recipe import load_recipe
from infra.errors import ConfigError
from infra.runner import open_runner

RECIPE = """
name: small
sources:
  - {{name: pictures, use: images, layout: imagefolder, root: {root}/images, modality: XC, identifiers: public,
     licence_image: {licence}, capacity: 2}}
stages:
  - {{use: ground, experts: [foreground]}}
  - {{use: caption, options: {{knowledge: {knowledge}}}}}
"""


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., int]:
    (tmp_path / "images" / "mole").mkdir(parents=True)

    def run(pictures: dict[str, int], licence: str = "CC0-1.0", knowledge: str = "true") -> int:
        folder = tmp_path / "images" / "mole"
        for path in folder.iterdir():
            path.unlink()
        for name, seed in pictures.items():
            (folder / name).write_bytes(encoded(picture(seed, 64)))
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(root=tmp_path, licence=licence, knowledge=knowledge))
        home, loaded = tmp_path / "home", load_recipe(recipe)
        plan = prepare(loaded, home, False)
        progress = Progress(plan.todo)
        with open_runner("inline") as runner:
            run_chains(plan.chains, loaded, home, runner, progress)
        commit(plan, progress, loaded, home)
        made = last_snapshot(home)
        assert made
        return made.number

    return run


def told(found: list[Change], layer: str) -> set[tuple[str, str, int]]:
    return {(c.what, c.why, c.n) for c in found if c.layer == layer}


@pytest.mark.parametrize("spill", [None, 0])
def test_added_removed_and_changed_rows_are_told_with_their_reason(
    build: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spill: int | None
) -> None:
    if spill is not None:
        monkeypatch.setattr(segments, "SPILL", spill)
    home = tmp_path / "home"
    first = build({"a.png": 1, "b.png": 2})
    second = build({"a.png": 1, "c.png": 3})
    assert (first, second) == both(home, None, None) == (1, 2)
    found = changes(home, 1, 2)
    assert told(found, "images") == {("added", "new in the source", 1), ("removed", GONE, 1)}
    (gone,) = [c for c in found if c.layer == "images" and c.what == "removed"]
    assert gone.example == "mole/b.png" and gone.source == "pictures"

    build({"a.png": 1, "c.png": 3}, licence="CC-BY-4.0")
    assert told(changes(home, 2, 3), "images") == {("changed", "other parameters", 2)}
    (tmp_path / "images" / "mole" / "c.png").write_bytes(b"no picture")
    broken = build({"a.png": 1, "c.png": 3}, licence="CC-BY-4.0", knowledge="false")
    after = changes(home, 3, broken)
    assert told(after, "images") == set() and told(after, "texts") == set()  # other words would be changes
    assert changes(home, 3, 3) == []


def test_a_rejects_code_is_the_reason_of_a_sample_that_left(build: Callable[..., int], tmp_path: Path) -> None:
    build({"a.png": 1, "b.png": 2, "c.png": 4})
    folder, home = tmp_path / "images" / "mole", tmp_path / "home"
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:60])
    recipe = load_recipe(tmp_path / "recipe.yaml")
    plan = prepare(recipe, home, False)
    progress = Progress(plan.todo)
    with open_runner("inline") as runner:
        run_chains(plan.chains, recipe, home, runner, progress)
    commit(plan, progress, recipe, home)
    ((what, why, n),) = told(changes(home, 1, 2), "images")
    assert (what, n) == ("removed", 1) and why.isupper()


def test_which_two_snapshots_are_meant(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    with pytest.raises(ConfigError, match="is the first"):
        both(home, None, None)
    with pytest.raises(ConfigError, match="no snapshot 7"):
        changes(home, 1, 7)


def test_lineage_leads_from_a_text_to_the_bytes_of_its_source(build: Callable[..., int], tmp_path: Path) -> None:
    build({"a.png": 1})
    home = tmp_path / "home"
    (text,) = query(home, "SELECT text_id, sample_id, text FROM texts WHERE kind = 'global'").to_pylist()
    steps = lineage(home, text["text_id"])
    what = [step.what for step in steps]
    assert what[0] == "text" and {"image", "label", "sample", "item", "pixels", "licences"} <= set(what)
    first = steps[0]
    assert first.said.startswith("global:") and first.made_by.startswith("caption@") and "template" in first.made_by
    (pixels,) = [step for step in steps if step.what == "pixels"]
    (image,) = query(home, "SELECT sha256, shard FROM images").to_pylist()
    assert pixels.id == image["sha256"] and image["shard"] in pixels.said
    (item,) = [step for step in steps if step.what == "item"]
    assert item.id == "mole/a.png" and "pictures" in item.said
    assert lineage(home, text["sample_id"])[0].what == "sample"
    with pytest.raises(CatalogError, match="has the id 'nothing'"):
        lineage(home, "nothing")


def test_lineage_says_what_is_missing(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    (text,) = query(home, "SELECT text_id FROM texts WHERE kind = 'region' ORDER BY 1 LIMIT 1").to_pylist()
    steps = lineage(home, text["text_id"])
    assert {"text", "roi", "passage", "sample", "item"} <= {step.what for step in steps}
    assert all(step.said or step.what == "item" for step in steps)
