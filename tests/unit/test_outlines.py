"""YOLO and COCO: boxes and outlines in their conventions, turned and scaled with the image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagefolders import area, codes, items, partitions, put, refused, regions, sample, write
from PIL import Image

from catalog.masks import encode_mask
from connectors.images import Params
from infra.errors import ConfigError

ROTATED = Image.Exif()
ROTATED[274] = 6
"""EXIF of a picture that is to be turned by 90 degrees."""


# --- YOLO ---------------------------------------------------------------------------------------------------------


def yolo(root: Path) -> Path:
    write(root / "data.yaml", "names: {0: polyp, 1: tool}\ntrain: images/train\n")
    for n, name in enumerate(("a", "b", "empty", "background", "odd", "far")):
        put(root / "images" / "train" / f"{name}.png", n)
    put(root / "images" / "val" / "a.png", 9)
    labels = root / "labels" / "train"
    write(labels / "a.txt", "0 0.5 0.5 0.2 0.5\n1 0.1 0.1 0.2 0.2 0.75\n")
    write(labels / "b.txt", "1 0 0 0.5 0 0.5 0.5 0 0.5\n")
    write(labels / "empty.txt", "")
    write(labels / "odd.txt", "7 0.5 0.5 0.2 0.2\n")
    write(labels / "far.txt", "0 50 50 20 20\n")
    write(labels / "gone.txt", "0 0.5 0.5 0.2 0.2\n")
    return root


def test_yolo_boxes_are_fractions_around_a_centre(tmp_path: Path) -> None:
    params = Params(root=str(yolo(tmp_path)), layout="yolo", unlisted="keep", roles={"polyp": "lesion"})
    found = items(params)
    base = "images/train"
    assert codes(found) == {
        f"{base}/a.png": None, f"{base}/b.png": None, f"{base}/empty.png": None, f"{base}/background.png": None,
        f"{base}/odd.png": "ANNOTATION_UNREADABLE", f"{base}/far.png": "ANNOTATION_UNREADABLE",
        "images/val/a.png": None, "labels/train/gone.txt": "FILE_MISSING",
    }
    # the image is 30 wide and 20 high
    assert regions(found[f"{base}/a.png"]) == [("polyp", (12, 5, 18, 15)), ("tool", (0, 0, 6, 4))]
    first, second = sample(found[f"{base}/a.png"]).regions
    assert (first.role, first.score, second.score) == ("lesion", None, 0.75)
    assert area(found[f"{base}/b.png"]) == [("tool", 150)]
    assert regions(found[f"{base}/empty.png"]) == regions(found["images/val/a.png"]) == []
    strict = codes(items(params.model_copy(update={"unlisted": "drop"})))
    assert strict["images/val/a.png"] == strict[f"{base}/background.png"] == "NO_METADATA_ROW"


def test_yolo_needs_names_for_its_classes(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    write(tmp_path / "a.txt", "0 0.5 0.5 0.2 0.2\n")
    params = Params(root=str(tmp_path), layout="yolo")
    with pytest.raises(ConfigError, match=r"add a data\.yaml"):
        partitions(params)
    write(tmp_path / "classes.txt", "cell\n")
    assert regions(items(params)["a.png"]) == [("cell", (12, 8, 18, 12))]
    write(tmp_path / "data.yaml", "names: [cell]\nkpt_shape: [2, 3]\n")
    write(tmp_path / "a.txt", "0 0.5 0.5 0.2 0.2 0.1 0.1 2 0.3 0.3 2\n")
    assert regions(items(params)["a.png"]) == [("cell", (12, 8, 18, 12))]


def test_fractions_count_on_the_image_as_it_is_shown(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", size=(20, 40), exif=ROTATED)
    write(tmp_path / "classes.txt", "x\n")
    write(tmp_path / "a.txt", "0 0.25 0.5 0.5 1\n")
    params = Params(root=str(tmp_path), layout="yolo")
    made = sample(items(params)["a.jpg"])
    assert made.pixels.shape[:2] == (40, 20) and made.regions[0].box == (0, 0, 10, 40)
    # of the stored image, 40 wide: its left half, which turning puts on top
    stored = sample(items(params.model_copy(update={"annotated_upright": False}))["a.jpg"])
    assert stored.regions[0].box == (0, 0, 20, 20)


# --- COCO ---------------------------------------------------------------------------------------------------------


def coco(root: Path, *notes: dict[str, Any], size: tuple[int, int] = (20, 30)) -> Params:
    whole = {
        "images": [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, **note} for n, note in enumerate(notes)],
    }
    write(root / "a.json", json.dumps(whole))
    return Params(root=str(root), layout="coco")


def test_coco_outlines_are_masks(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    mask = np.zeros((20, 30), bool)
    mask[2:6, 3:13] = True
    raw = [3 * 20 + 2, *[4, 16] * 9, 4]
    raw.append(600 - sum(raw))
    params = coco(
        tmp_path,
        {"bbox": [0, 0, 1, 1], "segmentation": [[2, 1, 8, 1, 8, 5, 2, 5], [20, 10, 25, 10, 25, 12, 20, 12]]},
        {"bbox": [0, 0, 1, 1], "segmentation": encode_mask(mask)},
        {"bbox": [0, 0, 1, 1], "segmentation": {"size": [20, 30], "counts": raw}, "iscrowd": 1},
        {"bbox": [4, 5, 6, 7], "segmentation": []},
        {"bbox": [0, 0, 1, 1], "segmentation": [[5.1, 5.1, 5.3, 5.1, 5.3, 5.3]]},
        {"bbox": [0, 0, 1, 1], "segmentation": [[-10, -10, 5, -10, 5, 5, -10, 5]]},
    )
    made = sample(items(params)["a.png"]).regions
    assert [(int(r.mask.sum()) if r.mask is not None else r.box) for r in made] == [
        (4, 5, 10, 12), 34, 40, (5.1, 5.1, 5.3, 5.3), 25,
    ]  # what two annotations say alike is one region
    assert np.array_equal(made[2].mask, mask)


@pytest.mark.parametrize("outline", [
    {"size": [20, 30], "counts": [1, 2, 3]}, {"size": [20, 30], "counts": [-1, 601]}, {"size": [20, 30], "counts": "0"},
    {"size": [10**6, 10**6], "counts": [0, 10**12]}, {"size": [20, 30], "counts": "\x01"},
    {"size": [20, 30], "counts": "o" * 40},
])
def test_run_lengths_that_do_not_add_up_fail_the_image(tmp_path: Path, outline: Any) -> None:
    put(tmp_path / "a.png")
    found = items(coco(tmp_path, {"bbox": [0, 0, 1, 1], "segmentation": outline}))
    assert refused(found["a.png"]) == "OUTLINE_INVALID"


@pytest.mark.parametrize("outline", [[[1, 2, 3, 4]], [[1, 2, 3, 4, 5, "x"]], {"size": [3]}, {"counts": "a"}, [7]])
def test_outlines_that_are_none_are_unreadable(tmp_path: Path, outline: Any) -> None:
    put(tmp_path / "a.png")
    found = items(coco(tmp_path, {"bbox": [0, 0, 1, 1], "segmentation": outline}))
    assert codes(found)["a.png"] == "ANNOTATION_UNREADABLE"


def test_outlines_are_turned_and_scaled_with_the_image(tmp_path: Path) -> None:
    put(tmp_path / "a.png", size=(20, 40), exif=ROTATED)
    left = np.zeros((20, 40), bool)
    left[:, :10] = True
    params = coco(
        tmp_path, {"bbox": [0, 0, 10, 20], "segmentation": [[0, 0, 10, 0, 10, 20, 0, 20]]},
        {"bbox": [0, 0, 10, 20], "segmentation": []}, {"bbox": [0, 0, 1, 1], "segmentation": encode_mask(left)},
        size=(20, 40),
    )
    made = sample(items(params)["a.png"]).regions
    assert [r.box for r in made if r.box] == [(0, 0, 20, 10)]
    (mask,) = [r.mask for r in made if r.mask is not None]  # polygon and run lengths agree
    assert mask.shape == (40, 20) and mask[:10].all() and not mask[10:].any()

    put(tmp_path / "a.png", size=(20, 40))
    double = np.zeros((40, 80), bool)
    double[:, :20] = True
    params = coco(
        tmp_path, {"bbox": [0, 0, 20, 40], "segmentation": encode_mask(double)}, {"bbox": [0, 0, 20, 40]}, size=(40, 80)
    )
    assert refused(items(params)["a.png"]) == "ANNOTATION_SIZE_MISMATCH"
    made = sample(items(params.model_copy(update={"annotated_fit": "scale"}))["a.png"]).regions
    assert [(int(r.mask.sum()) if r.mask is not None else r.box) for r in made] == [(0, 0, 10, 20), 200]
    cropped = coco(tmp_path, {"bbox": [0, 0, 20, 40]}, size=(40, 90)).model_copy(update={"annotated_fit": "scale"})
    assert refused(items(cropped)["a.png"]) == "ANNOTATION_SIZE_MISMATCH"
