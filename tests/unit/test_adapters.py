"""Experts that run a model's folder: real transformers code on tiny models, against answers that are known."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tinymodels import COLOURS, flag
from tinymodels import clipseg as clipseg
from tinymodels import colours as colours
from tinymodels import no_network as no_network
from tinymodels import sam as sam
from tinymodels import yolos as yolos

from infra.errors import ConfigError, Dropped
from transforms.decoded import Region
from transforms.experts import detect, foreground, label_map, segment_box, segment_text
from transforms.regions import roi_row

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("no_network")

WIDE = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
SHAPES = [(90, 140, 3), (140, 90, 3), (1, 1), (33, 200)]


def in_grid(regions: list[Region], shape: tuple[int, ...]) -> None:
    """Regions lie on the picture's grid, and a row's box is the extent of its mask."""
    for region in regions:
        row = roi_row("s", region, shape[:2], expert="e", origin="predicted", trust="box")
        if region.mask is not None:
            assert region.mask.shape == shape[:2] and region.mask.dtype == bool and row
            rows, columns = np.nonzero(region.mask)
            assert row["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert region.score is not None and 0 <= region.score == round(region.score, 3) <= 1


def test_a_label_map_finds_what_its_weights_were_set_to_find(colours: str):
    params = label_map.Params(model=colours, labels=COLOURS)
    liver, cysts = label_map.find(flag(), {}, params)
    assert (liver.label, liver.role, cysts.label, cysts.ontology_id) == ("liver", "organ", "cyst", "X:1")
    truth = np.zeros((90, 140), bool)
    truth[10:50, 20:70] = True
    assert (liver.mask & truth).sum() / (liver.mask | truth).sum() > 0.93
    assert cysts.mask[30, 115] and cysts.mask[70, 115] and not cysts.mask[50, 115]
    in_grid([liver, cysts], (90, 140))
    assert liver.score > 0.9
    pieces = list(label_map.find(flag(), {}, params.model_copy(update={"pieces": True, "min_area": 100})))
    assert [r.label for r in pieces] == ["liver", "cyst", "cyst"]
    assert not list(label_map.find(np.zeros((40, 60), np.uint8), {}, params)), "an empty picture is an answer"


def test_windows_agree_with_the_whole_and_meet_where_they_should(colours: str):
    from itertools import pairwise

    for length, patch in ((1000, 128), (129, 128), (128, 128), (64, 128), (5000, 333)):
        found = label_map.windows(length, patch)
        assert found[0].first == 0 and found[-1].last == length and found[-1].stop == length
        assert all(a.last == b.first for a, b in pairwise(found))
        assert all(w.start <= w.first < w.last <= w.stop and w.stop - w.start == min(length, patch) for w in found)
    large = np.kron(flag(), np.ones((3, 3, 1), np.uint8))
    params = label_map.Params(model=colours, labels=COLOURS, patch=64, batch=5)
    truth = (large[..., 0] > 0, large[..., 2] > 0)
    found = list(label_map.find(large, {}, params))
    assert all(np.array_equal(r.mask, t) for r, t in zip(found, truth, strict=True)), "64 px need no scaling"


def test_many_classes_are_weighed_some_at_a_time():
    import torch

    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (37, 5, 7)).astype(np.float32))
    values, shares = label_map._best(logits, (11, 20))
    whole = torch.nn.functional.interpolate(logits[None], (11, 20), mode="bilinear", align_corners=False)[0].softmax(0)
    assert np.array_equal(values, whole.argmax(0).numpy())
    assert np.allclose(shares, whole.max(0).values.numpy(), atol=1e-6)


@pytest.mark.parametrize("size", [(90, 140), (200, 30)])
def test_a_detector_says_its_box_in_pixels_of_the_picture_and_once(yolos: str, size: tuple[int, int]):
    params = detect.Params(model=yolos, labels={"nodule": {"label": "lung nodule", "role": "lesion"}})
    pixels = np.zeros(size, np.uint8)
    (region,) = detect.find(pixels, {}, params)
    height, width = size
    assert region.box == pytest.approx((0.15 * width, 0.3 * height, 0.35 * width, 0.7 * height), abs=0.006)
    assert (region.label, region.role, region.score, region.mask) == ("lung nodule", "lesion", 0.9, None)
    assert len(detect.find(pixels, {}, params.model_copy(update={"overlap": 1.0}))) == 5
    assert detect.find(pixels, {}, params.model_copy(update={"threshold": 0.95})) == []
    mass = detect.Params(model=yolos, labels={"mass": {"label": "mass", "role": "lesion"}}, threshold=0)
    assert detect.find(pixels, {}, mass) == [], "what the recipe does not name is left out"


def test_overlapping_boxes_of_one_class_become_the_best():
    found = [(0.5, 0, (0.0, 0.0, 10.0, 10.0)), (0.9, 0, (1.0, 1.0, 10.0, 10.0)), (0.4, 1, (0.0, 0.0, 10.0, 10.0)),
             (0.3, 0, (20.0, 0.0, 30.0, 10.0))]
    assert detect.best_of_each(found, 0.5) == detect.best_of_each(found[::-1], 0.5) == [found[1], found[2], found[3]]


@pytest.mark.parametrize("shape", SHAPES)
def test_texts_are_outlined_on_the_grid_and_the_same_twice(clipseg: str, shape: tuple[int, ...]):
    prompts = ["lung", {"text": "the heart", "label": "heart", "role": "organ"}]
    pixels = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    params = segment_text.Params(model=clipseg, prompts=prompts, threshold=0.01)
    found = list(segment_text.find(pixels, {}, params))
    assert [(r.label, r.role) for r in found] == [("lung", "region"), ("heart", "organ")]
    in_grid(found, shape)
    again = list(segment_text.find(pixels, {}, params))
    assert all(np.array_equal(a.mask, b.mask) and a.score == b.score for a, b in zip(found, again, strict=True))


def test_a_text_that_is_not_seen_has_no_region(clipseg: str, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(clipseg, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["decoder.transposed_convolution.weight"].zero_()
    for logit, expected in ((-3.0, []), (3.0, [("lung", 0.953, 1.0)])):
        weights["decoder.transposed_convolution.bias"].fill_(logit)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        found = segment_text.find(WIDE, {}, segment_text.Params(model=str(folder), prompts=["lung"]))
        assert [(r.label, r.score, r.mask.mean()) for r in found] == expected


def test_a_prompt_that_is_too_long_is_refused_not_cut(clipseg: str):
    with pytest.raises(ConfigError, match="24 tokens"):
        list(segment_text.find(WIDE, {}, segment_text.Params(model=clipseg, prompts=["a very long text " * 9])))


def test_texts_agree_with_the_model_asked_directly(clipseg: str):
    import torch
    from transformers import AutoTokenizer, CLIPSegForImageSegmentation, ViTImageProcessorPil

    model = CLIPSegForImageSegmentation.from_pretrained(clipseg).eval()
    tokenizer = AutoTokenizer.from_pretrained(clipseg)
    ready = ViTImageProcessorPil.from_pretrained(clipseg)(images=[WIDE] * 2, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**ready, **tokenizer(["lung", "the heart"], padding=True, return_tensors="pt")).logits
    large = torch.nn.functional.interpolate(logits[:, None], WIDE.shape[:2], mode="bilinear")[:, 0].sigmoid().numpy()
    middle = float(np.median(large))
    params = segment_text.Params(model=clipseg, prompts=["lung", "the heart"], threshold=middle, batch=1)
    found = list(segment_text.find(WIDE, {}, params))
    for region, share in zip(found, large, strict=True):
        assert (region.mask != (share > middle)).mean() < 0.001
    assert any(0 < r.mask.mean() < 1 for r in found), "the comparison says something"


def boxed(monkeypatch: pytest.MonkeyPatch, *regions: Region) -> None:
    """The foreground expert finds these regions."""
    monkeypatch.setattr(foreground, "find", lambda pixels, image, params: list(regions))


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_of_another_expert_become_masks_on_the_grid(
    sam: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    height, width = shape[:2]
    pixels = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    mask = np.ones((height, width), bool)
    boxed(monkeypatch, Region("kidney", "organ", box=(-5, 0, width / 2, height), ontology_id="X:2"),
          Region("cyst", "lesion", mask=mask), Region("outside", "lesion", box=(width + 1, 0, width + 9, 9)))
    params = segment_box.Params(model=sam, batch=1)
    found = list(segment_box.find(pixels, {"modality": "CT"}, params))
    assert {(r.label, r.role, r.ontology_id, r.score) for r in found} <= {
        ("kidney", "organ", "X:2", 0.7), ("cyst", "lesion", None, 0.7)}
    in_grid(found, shape)
    again = list(segment_box.find(pixels, {"modality": "CT"}, params))
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(found, again, strict=True))
    assert not list(segment_box.find(pixels, {"modality": "CT"}, params.model_copy(update={"least": 0.8})))


@pytest.mark.parametrize("turned", [False, True])
def test_masks_agree_with_the_sam_asked_directly(sam: str, monkeypatch: pytest.MonkeyPatch, turned: bool):
    import torch
    from transformers import SamImageProcessorPil, SamModel, SamProcessor

    pixels = np.ascontiguousarray(WIDE.swapaxes(0, 1)) if turned else WIDE
    boxes = [[5.0, 7.0, 80.0, 60.0], [40.0, 10.0, 85.0, 88.0]]
    boxed(monkeypatch, *(Region("x", "lesion", box=tuple(box)) for box in boxes))
    model, processor = SamModel.from_pretrained(sam).eval(), SamProcessor(SamImageProcessorPil.from_pretrained(sam))
    ready = processor(images=pixels, input_boxes=[boxes], return_tensors="pt")
    with torch.inference_mode():
        answer = model(**ready)
        (masks,) = processor.image_processor.post_process_masks(
            answer.pred_masks, ready["original_sizes"], ready["reshaped_input_sizes"])
    expected = masks[:, 1].numpy()
    assert all(0.02 < mask.mean() < 0.98 for mask in expected), "the comparison says something"
    found = list(segment_box.find(pixels, {"modality": "CT"}, segment_box.Params(model=sam)))
    assert [(f.mask != e).mean() < 0.001 for f, e in zip(found, expected, strict=True)] == [True, True]


def test_a_detector_in_a_folder_prompts_the_sam_and_enters_its_identity(sam: str, yolos: str):
    options = {"model": yolos, "labels": {"nodule": {"label": "lung nodule", "role": "lesion"}}}
    params = segment_box.Params(model=sam, detector="detector", detector_options=options)
    found = list(segment_box.find(WIDE, {"modality": "CT"}, params))
    assert {(r.label, r.role) for r in found} <= {("lung nodule", "lesion")}
    assert segment_box.card(params).classes[0].label == "lung nodule"
    other = segment_box.Params(model=sam, detector="detector", detector_options={**options, "threshold": 0.2})
    assert segment_box.ingredients(params) != segment_box.ingredients(other)
    assert "model" not in params.model_dump() and yolos not in str(params.model_dump()), "no path enters the key"
    with pytest.raises(ConfigError, match="did you mean 'threshold'"):
        segment_box.ingredients(segment_box.Params(model=sam, detector="detector", detector_options={"treshold": 1}))
    with pytest.raises(ValueError, match="cannot prompt itself"):
        segment_box.Params(model=sam, detector="box_prompted")
    with pytest.raises(Dropped, match="unknown"):
        list(segment_box.find(WIDE, {}, segment_box.Params(model=sam)))


def test_a_picture_that_the_recipe_does_not_mean_is_left_alone(colours: str):
    params = label_map.Params(model=colours, labels=COLOURS, modalities=["CT"], anatomy=["Chest"], licence="MIT")
    knee = {"modality": "CT", "anatomy": "knee"}
    for image, said in (({"modality": "US"}, "ultrasound"), ({}, "unknown"), (knee, "knee")):
        with pytest.raises(Dropped, match=said):
            list(label_map.find(flag(), image, params))
    assert len(list(label_map.find(flag(), {"modality": "CT", "anatomy": "chest"}, params))) == 2
    card = label_map.card(params)
    assert [c.value for c in card.classes] == [1, 2] and card.licence_weights == "MIT" and card.commercial is None
    with pytest.raises(ValueError, match="did you mean 'radiology'"):
        label_map.Params(model=colours, labels=COLOURS, kinds=["radiolgy"])
