"""Duplicates by an encoder: its vectors propose what hashes do not see, and the pixels confirm it or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scenes import scene
from tinyclip import clip_folder as clip_folder
from tinyclip import make_clip

from catalog.manifest import scan
from catalog.schema import LAYERS
from flows import build as work
from flows.recipe import load_recipe
from infra.errors import ConfigError
from infra.runner import InlineRunner
from transforms import duplicates
from transforms.curation.dataset import Dataset
from transforms.curation.encoder import Encoder
from transforms.curation.vectors import vectors
from transforms.stage import Context, fingerprint

RECIPE = """name: curated
sources:
  - {name: first, use: images, layout: imagefolder, root: a, identifiers: public}
  - {name: second, use: images, layout: imagefolder, root: b, identifiers: public}
stages:
  - use: quality
  - {use: similarity, model: MODEL}
  - {use: duplicates, prefer: [first], encoder: {model: MODEL, alike: 0.5}}
"""
CHANGED = {
    "cut": scene(1)[10:110, 40:140],
    "mirrored": np.ascontiguousarray(scene(2)[20:140, 20:140][:, ::-1]),
    "turned": np.rot90(scene(3)).copy(),
}
"""A part of the first scene, the second cut and mirrored, the third on its side."""


Checks = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def built(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the recipe over three scenes and, in another source, the changed ones."""
    root = tmp_path_factory.mktemp("encoded")
    pictures = {f"a/x/scene{n}": scene(n) for n in (1, 2, 3)} | {f"b/x/{name}": p for name, p in CHANGED.items()}
    for name, pixels in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / f"{name}.png")
    (root / "recipe.yaml").write_text(RECIPE.replace("MODEL", str(clip_folder)))
    steps = load_recipe(root / "recipe.yaml")
    plan = work.prepare(steps, root / "home")
    with InlineRunner() as runner:
        for group in work.groups(plan):
            work.run_chains(group, steps, root / "home", runner, work.Progress(plan.todo))
    return root / "home"


def dataset(home: Path, *stages: str) -> Dataset:
    """What these stages wrote, of all partitions."""
    manifests = [entry.read(home) for entry in scan(home)]
    return Dataset(home, [shard for m in manifests if m.stage in stages for shard in m.shards])


def by_item(home: Path, rows: list[dict[str, Any]]) -> Checks:
    """(item, check) -> its row."""
    names = dataset(home, "ingest").columns("images", ("sample_id", "source_item")).to_pylist()
    items = {row["sample_id"]: Path(row["source_item"]).stem for row in names}
    return {(items[row["sample_id"]], row["check"]): row for row in rows}


def made(home: Path, *stages: str, **params: Any) -> Checks:
    """What the stage finds where these stages ran before."""
    stage = duplicates.make_stage(duplicates.Params(**params), Context(Path()))
    outcome = stage({}, dataset(home, "ingest", *stages))
    assert len(outcome.kept) == 6 and not outcome.rejects
    return by_item(home, outcome.tables["checks"].to_pylist())


def test_hashes_alone_do_not_find_these(built: Path) -> None:
    assert made(built, "quality") == {}, "or the other tests prove nothing"


def test_what_vectors_propose_is_a_duplicate_only_where_the_pixels_confirm_it(built: Path) -> None:
    rows = by_item(built, dataset(built, "duplicates").columns("checks", LAYERS["checks"].schema.names).to_pylist())
    assert {key: row["verdict"] for key, row in rows.items()} == {
        ("scene1", "duplicate/near"): "pass", ("cut", "duplicate/near"): "fail",
        ("scene2", "duplicate/near"): "pass", ("mirrored", "duplicate/near"): "fail",
    }, "not the turned one, nor the other scenes, whose vectors are as near"
    cut, mirrored = (json.loads(rows[name, "duplicate/near"]["detail"]) for name in ("cut", "mirrored"))
    assert cut["by"] == mirrored["by"] == "embedding" and cut["across"] and mirrored["mirrored"]
    assert cut["of"] == rows["scene1", "duplicate/near"]["sample_id"] and 0.5 < cut["cosine"] <= 1


def test_what_is_not_confirmed_is_at_most_a_candidate(built: Path, clip_folder: Path) -> None:
    looking = {"model": str(clip_folder), "alike": 0.5, "same": 0.99}
    rows = made(built, "quality", "similarity", encoder=looking)
    assert {(*key, row["verdict"]) for key, row in rows.items()} == {
        (name, "duplicate/candidate", "unknown") for name in ("scene1", "cut", "scene2", "mirrored")}
    assert {json.loads(row["detail"])["by"] for row in rows.values()} == {"embedding"}
    assert made(built, "quality", "similarity", encoder={**looking, "doubtful": 0.98}) == {}


def test_vectors_written_before_are_used_and_those_of_another_model_are_not(
    built: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    look = Encoder.picture
    monkeypatch.setattr(Encoder, "picture", lambda self, pixels: seen.append(pixels) or look(self, pixels))
    own, other = Encoder(str(clip_folder)), Encoder(str(make_clip(tmp_path, seed=1)))
    told, untold = dataset(built, "ingest", "similarity"), dataset(built, "ingest")
    known = vectors(told, told.ids, own)
    assert known.shape == (6, 8) and not seen
    assert np.array_equal(vectors(untold, untold.ids[::-1], own)[::-1], known) and len(seen) == 6, "whoever made them"
    assert not np.allclose(vectors(told, told.ids, other), known, atol=0.1) and len(seen) == 12
    assert vectors(told, [], own).shape == (0, 0)


def test_without_an_encoder_the_key_is_what_it_was(clip_folder: Path, tmp_path: Path) -> None:
    def stage(**params: object):
        return duplicates.make_stage(duplicates.Params(**params), Context(Path()))

    assert stage().params.model_dump(mode="json") == {
        "within": 14, "neighbours": 8, "same": 0.53, "doubtful": 0.45, "prefer": []}
    assert stage().ingredients == {} and stage().checks_of == ("quality",)
    keys = {fingerprint(stage(**params)) for params in (
        {}, {"encoder": {"model": str(clip_folder)}}, {"encoder": {"model": str(clip_folder), "alike": 0.8}},
        {"encoder": {"model": str(make_clip(tmp_path, seed=2))}},
    )}
    assert len(keys) == 4
    with pytest.raises(ConfigError, match="nothing there"):
        stage(encoder={"model": str(tmp_path / "none")})
