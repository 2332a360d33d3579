"""Regions are opened by pycocotools, MONAI, nnU-Net and by YOLO's rules, and held against the catalog."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from exporthome import all_held, caption, made_home, pixels  # noqa: F401
from makehome import Rows, encode, make_home
from PIL import Image, ImageDraw

from catalog.exports.regions import has_holes, polygons
from catalog.masks import decode_mask
from catalog.selection import Selection
from flows.export import run_export
from infra.errors import ConfigError

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools decodes so
    pytest.mark.filterwarnings("ignore:NvImgCodec:UserWarning"),  # MONAI looks for it
]


def cut(box: Sequence[int], image: Mapping[str, Any]) -> list[int]:
    x0, y0, x1, y1 = box
    return [max(x0, 0), max(y0, 0), min(x1, image["width"]), min(y1, image["height"])]


@pytest.mark.parametrize("masks", ["rle", "polygon"])
def test_coco_is_read_by_pycocotools(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path, masks: str) -> None:
    from pycocotools.coco import COCO

    run_export(home, "true", "coco", tmp_path / "out", None, [f"masks={masks}"], licences="all")
    coco = COCO(tmp_path / "out" / "annotations.json")
    assert len(coco.imgs) == 12 and {c["name"]: c["id"] for c in coco.cats.values()} == {"device": 1, "lesion": 2}
    for image in coco.loadImgs(coco.getImgIds()):
        kept = held[image["sample_id"]]
        seen = pixels((tmp_path / "out" / "images" / image["file_name"]).read_bytes())
        assert (seen == pixels(kept["image"]["bytes"])).all()
        assert (image["width"], image["height"], image["caption"]) == (kept["width"], kept["height"], caption(kept))
        found = {a["roi_id"]: a for a in coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))}
        assert len(found) == len(kept["rois"]) == 2
        for roi in kept["rois"]:
            one = found[roi["roi_id"]]
            x, y, w, h = one["bbox"]
            assert [x, y, x + w, y + h] == cut(roi["box"], kept)
            assert coco.cats[one["category_id"]]["name"] == roi["label"]
            assert all(one[name] == roi[name] for name in ("score", "expert", "origin", "trust", "position"))
            if roi["mask"] is None:
                assert one["segmentation"] == [] and one["area"] == w * h
            else:
                mask = decode_mask(roi["mask"])
                assert (coco.annToMask(one) == mask).all() and one["area"] == mask.sum()


def test_classes_keep_their_numbers_and_choose(home: Path, tmp_path: Path) -> None:
    options = ["classes=[lesion, nothing]", "roles=[lesion]"]
    run_export(home, "true", "coco", tmp_path / "out", None, options, licences="all")
    said = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [(c["id"], c["name"]) for c in said["categories"]] == [(1, "lesion"), (2, "nothing")]
    assert len(said["images"]) == len(said["annotations"]) and {a["category_id"] for a in said["annotations"]} == {1}
    with pytest.raises(ConfigError, match="no region"):
        run_export(home, "true", "coco", tmp_path / "none", None, ["classes=[nothing]"], licences="all")
    run_export(home, "true", "coco", tmp_path / "none", None, ["classes=[nothing]", "empty=true"], licences="all")
    assert len(json.loads((tmp_path / "none" / "annotations.json").read_text())["images"]) == 12


SHAPES = ("ellipse", "ring", "corner", "parts", "edge", "noise")


def shape(name: str) -> Any:
    image = Image.new("1", (37, 29))
    draw = ImageDraw.Draw(image)
    if name in ("ellipse", "ring"):
        draw.ellipse((4, 3, 30, 25), fill=1)
    if name == "ring":
        draw.ellipse((10, 8, 20, 18), fill=0)
    if name in ("corner", "parts"):
        draw.rectangle((2, 2, 9, 9), fill=1)
        draw.rectangle((10, 10, 15, 15) if name == "corner" else (20, 14, 30, 20), fill=1)
    if name == "edge":
        draw.rectangle((0, 0, 36, 5), fill=1)
        draw.rectangle((30, 0, 36, 28), fill=1)
    mask = np.asarray(image).copy()
    return np.random.default_rng(1).random(mask.shape) > 0.6 if name == "noise" else mask


@pytest.mark.parametrize("name", SHAPES)
def test_outlines_hold_the_mask_and_fill_holes_only(name: str) -> None:
    from pycocotools import mask as coco
    from scipy.ndimage import binary_fill_holes

    mask = shape(name)
    loops = polygons(mask)
    codes = coco.frPyObjects([[c for point in loop for c in point] for loop in loops], *mask.shape)
    filled = binary_fill_holes(mask, structure=np.ones((3, 3)))  # what is closed at corners only is open
    assert (coco.decode(coco.merge(codes)).astype(bool) == filled).all()
    assert has_holes(mask) == bool((filled != mask).any()) and len(loops) >= {"corner": 2, "parts": 2}.get(name, 1)
    assert polygons(np.zeros((3, 3), bool)) == []


def read_yolo(out: Path) -> dict[str, tuple[Path, list[list[float]]]]:
    """As ultralytics reads it: data.yaml, images/SPLIT, labels/SPLIT beside it; its checks of a label file."""
    data = yaml.safe_load((out / "data.yaml").read_text())
    assert sorted(data["names"]) == list(range(len(data["names"])))
    found = {}
    for split in ("train", "val"):
        for image in sorted((out / data[split]).iterdir()):
            assert image.suffix in (".png", ".jpg", ".webp")
            label = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
            lines = [[float(x) for x in line.split()] for line in label.read_text().splitlines()]
            assert all(0 <= x <= 1 for line in lines for x in line[1:])
            assert all(line[0] in data["names"] for line in lines)
            found[image.stem] = (image, lines)
    return found


def test_yolo_boxes_are_the_boxes(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    run_export(home, "true", "yolo", tmp_path / "out", None, ["validation=0.5"], licences="all")
    found = read_yolo(tmp_path / "out")
    names = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())["names"]
    assert set(found) == set(held)
    groups: dict[str, set[str]] = {}
    for sample, (path, lines) in found.items():
        kept = held[sample]
        groups.setdefault(path.parent.name, set()).add(kept["group_id"])
        assert (pixels(path.read_bytes()) == pixels(kept["image"]["bytes"])).all()
        assert len(lines) == len(kept["rois"])
        for (number, x, y, w, h), roi in zip(lines, kept["rois"], strict=True):
            side = np.array([kept["width"], kept["height"]] * 2)
            seen = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * side
            assert names[number] == roi["label"] and np.abs(seen - cut(roi["box"], kept)).max() < 0.01
    assert not set.intersection(*groups.values()) if len(groups) == 2 else True


def test_yolo_outlines_are_the_masks(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    from pycocotools import mask as coco

    run_export(home, "true", "yolo", tmp_path / "out", None, ["task=segment"], licences="all")
    found = read_yolo(tmp_path / "out")
    assert set(found) == {i for i, s in held.items() if any(r["mask"] for r in s["rois"])} and len(found) == 4
    for sample, (_, lines) in found.items():
        kept = held[sample]
        ((_, *shares),) = lines
        sides = np.tile([kept["width"], kept["height"]], len(shares) // 2)
        (code,) = coco.frPyObjects([np.round(np.array(shares) * sides, 3).tolist()], kept["height"], kept["width"])
        (mask,) = [decode_mask(roi["mask"]) for roi in kept["rois"] if roi["mask"]]
        assert (coco.decode(code) == mask).all()
    notes = json.loads((tmp_path / "out" / "manifest.json").read_text())["notes"]
    assert notes == {
        "regions without a mask, not written": 20,
        "val is empty, and training asks for it: choose another `validation`": 1,
    }


def overlapping(rows: Rows) -> None:
    """The first CT's device is a mask that overlaps its lesion; the second's is one that does not."""
    ct = [image["sample_id"] for image in rows["images"] if image["modality"] == "CT"]
    for sample, top in ((ct[0], 20), (ct[1], 0)):
        lesion, device = (r for r in rows["rois"] if r["sample_id"] == sample)
        mask = np.zeros(lesion["mask"]["size"], bool)
        mask[top : top + 12, 10:40] = True
        device["mask"] = encode(mask)


@pytest.fixture(scope="module")
def overlaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("overlaps"), overlapping)


def expected(row: Any, order: Sequence[str]) -> Any:
    made = np.zeros((row.image["height"], row.image["width"]), int)
    for number, label in enumerate(order, 1):
        for roi in row.rois:
            if roi["label"] == label and roi["mask"]:
                made[decode_mask(roi["mask"])] = number
    return made


@pytest.mark.parametrize(("overlap", "n"), [("refuse", 3), ("order", 4)])
def test_monai_reads_images_and_maps(overlaps: Path, tmp_path: Path, overlap: str, n: int) -> None:
    data = pytest.importorskip("monai.data")
    transforms = pytest.importorskip("monai.transforms")

    out = tmp_path / "out"
    options = [f"overlap={overlap}", "validation=0.5"]
    run_export(overlaps, "true", "monai", out, None, options, licences="all")
    rows = {row.id: row for row in Selection(overlaps).rows()}
    said = json.loads((out / "dataset.json").read_text())
    assert said["labels"] == {"0": "background", "1": "device", "2": "lesion"}
    items = [i for key in ("training", "validation")
             for i in data.load_decathlon_datalist(str(out / "dataset.json"), data_list_key=key)]
    assert len(items) == n
    load = transforms.LoadImaged(keys=["image", "label"], reader="PILReader")
    for item in items:
        seen, row = load(dict(item)), rows[item["sample_id"]]
        assert (expected(row, ["device", "lesion"]) == np.asarray(seen["label"]).T).all()
        stored = np.asarray(Image.open(io.BytesIO(Path(item["image"]).read_bytes())))
        assert (stored == np.asarray(seen["image"]).T).all() and (stored == np.asarray(
            Image.open(io.BytesIO(row.image["image"]["bytes"])))).all()
    left = json.loads((out / "manifest.json").read_text())["left_out"]
    assert left == {"no mask": 8, **({"masks of two classes overlap": 1} if overlap == "refuse" else {})}


def test_nnunet_verifies_and_reads(overlaps: Path, tmp_path: Path) -> None:
    integrity = pytest.importorskip("nnunetv2.experiment_planning.verify_dataset_integrity")
    reader = pytest.importorskip("nnunetv2.imageio.natural_image_reader_writer").NaturalImage2DIO()

    out = tmp_path / "out"
    run_export(overlaps, "true", "nnunet", out, None, ["overlap=order", "classes=[lesion, device]"], licences="all")
    folder = out / "Dataset001_medloom"
    integrity.verify_dataset_integrity(str(folder), 1)
    said = json.loads((folder / "dataset.json").read_text())
    assert said["labels"] == {"background": 0, "lesion": 1, "device": 2} and said["numTraining"] == 4
    rows = {row.name: row for row in Selection(overlaps).rows()}
    for path in sorted((folder / "labelsTr").iterdir()):
        image, _ = reader.read_images([str(folder / "imagesTr" / f"{path.stem}_0000.png")])
        label, _ = reader.read_seg(str(path))
        assert (label[0, 0] == expected(rows[path.stem], ["lesion", "device"])).all()
        assert (image[0, 0] == pixels(rows[path.stem].image["image"]["bytes"])[..., 0]).all()
    folds = json.loads((folder / "splits_final.json").read_text())
    assert len(folds) == 5
    for fold in folds:
        train, val = ({rows[name].image["group_id"] for name in fold[side]} for side in ("train", "val"))
        assert not train & val and len(fold["train"]) + len(fold["val"]) == 4


def test_nnunet_leaves_colour_out_of_grey_and_keeps_it_in_rgb(tmp_path: Path) -> None:
    def masked(rows: Rows) -> None:
        for roi in rows["rois"]:
            roi["mask"] = roi["mask"] or encode(np.ones(next(
                (i["height"], i["width"]) for i in rows["images"] if i["sample_id"] == roi["sample_id"]), bool))

    home = make_home(tmp_path, masked)
    for channels, n in (("grey", 8), ("rgb", 12)):
        out = tmp_path / channels
        run_export(home, "true", "nnunet", out, None, [f"channels={channels}", "overlap=order"], licences="all")
        record = json.loads((out / "manifest.json").read_text())
        assert record["written"] == n and record["left_out"] == ({"a picture in colour": 4} if n == 8 else {})
        written = [p.read_bytes() for p in (out / "Dataset001_medloom" / "imagesTr").iterdir()]
        modes = {Image.open(io.BytesIO(data)).mode for data in written}
        assert modes == {"L" if n == 8 else "RGB"}
