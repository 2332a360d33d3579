"""Labelled sets as they come: every layout, every convention of boxes and masks, and each file accounted for."""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from imagefolders import area, codes, items, partitions, put, put_mask, refused, regions, sample, write
from PIL import Image
from pydantic import ValidationError

from catalog.items import Label
from connectors import images, reports, vqa
from connectors.images import Params


def save(path: Path, pixels: Any, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels))
    if mode == "P":
        image = image.convert("L")
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(path)
    return path


# --- masks --------------------------------------------------------------------------------------------------------


def test_masks_of_values_palettes_and_colours(tmp_path: Path) -> None:
    values = np.zeros((20, 30), np.uint8)
    values[:2, :5], values[5:8, :10], values[19, 29] = 1, 2, 255
    palette, colours = values.copy(), np.zeros((20, 30, 3), np.uint8)
    palette[19, 29] = 3
    colours[values == 1], colours[values == 2] = (255, 0, 0), (0, 0, 255)
    for n, (folder, pixels, mode) in enumerate((("v", values, None), ("p", palette, "P"), ("c", colours, None))):
        put(tmp_path / folder / "img" / "x.png", n)
        save(tmp_path / folder / "seg" / "x.png", pixels, mode)
    base = {"layout": "imagefolder", "class_mask": "seg/{stem}.png", "class_folder": "first"}
    for folder, classes in (
        ("v", {"1": "liver", "2": "spleen", "255": ""}), ("p", {"1": "liver", "2": "spleen", "3": ""}),
        ("c", {"#FF0000": "liver", "#0000ff": "spleen"}),
    ):
        params = Params(root=str(tmp_path / folder), classes=classes, roles={"liver": "organ"}, **base)
        found = items(params)
        assert area(found["img/x.png"]) == [("liver", 10), ("spleen", 30)], folder
        assert [r.role for r in sample(found["img/x.png"]).regions] == ["organ", "region"]
        fewer = params.model_copy(update={"classes": dict(list(classes.items())[:1])})
        assert refused(items(fewer)["img/x.png"]) == "LABEL_VALUE_UNKNOWN"
        assert partitions(fewer)[0].key != partitions(params)[0].key
    numbers = Params(root=str(tmp_path / "c"), classes={"1": "liver"}, **base)
    assert refused(items(numbers)["img/x.png"]) == "MASK_NOT_CLASSES"


def test_a_mask_of_instances_is_a_region_each(tmp_path: Path) -> None:
    put(tmp_path / "x.png")
    values = np.zeros((20, 30), np.uint16)
    values[:2, :5], values[5:8, :10], values[15:, 20:] = 1, 300, 7
    save(tmp_path / "cells" / "x_masks.png", values)
    found = items(Params(
        root=str(tmp_path), layout="imagefolder", class_mask="cells/{stem}_masks.png", classes={"*": "cell"},
    ))
    assert area(found["x.png"]) == [("cell", 10), ("cell", 50), ("cell", 30)]


def test_blurred_masks_of_classes_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "x.png")
    save(tmp_path / "seg" / "x.jpg", np.zeros((20, 30), np.uint8))
    params = Params(root=str(tmp_path), layout="imagefolder", class_mask="seg/{stem}.*", classes={"1": "a"})
    assert refused(items(params)["x.png"]) == "MASK_LOSSY"
    for wrong in ({"classes": {"one": "a"}}, {"classes": {}}):
        with pytest.raises(ValidationError):
            Params(root=".", layout="imagefolder", class_mask="seg/{stem}.*", **wrong)


def test_several_raters_keep_their_own_regions(tmp_path: Path) -> None:
    put(tmp_path / "x.png")
    put_mask(tmp_path / "gt" / "x-cup-R1.png", (0, 0, 10, 10))
    put_mask(tmp_path / "gt" / "x-cup-R2.png", (0, 0, 10, 12))
    put_mask(tmp_path / "gt" / "x-cup-R3.png", (0, 0, 0, 0))
    put_mask(tmp_path / "gt" / "x-cup-R4.png", (0, 0, 10, 12))
    found = items(Params(root=str(tmp_path), layout="imagefolder", masks={"cup": "gt/{stem}-cup-{rater}.png"}))
    assert area(found["x.png"]) == [("cup", 100), ("cup", 120)]
    assert [(label.name, label.value, label.origin) for label in sample(found["x.png"]).labels] == [
        ("cup", "present", "rater:R1"), ("cup", "present", "rater:R2"), ("cup", "absent", "rater:R3"),
        ("cup", "present", "rater:R4"),
    ]


def test_zero_one_and_many_instances_are_all_kept(tmp_path: Path) -> None:
    for count in (0, 1, 40):
        put(tmp_path / f"s{count}" / "images" / f"{count}.png", count, (40, 60))
        for n in range(count):
            put_mask(tmp_path / f"s{count}" / "masks" / f"{n}.png", (n, n, n + 3, n + 2), (40, 60))
    found = items(Params(root=str(tmp_path), layout="pairs", mask_label="nucleus"))
    assert {id: len(sample(item).regions) for id, item in found.items()} == {
        "s0/images/0.png": 0, "s1/images/1.png": 1, "s40/images/40.png": 40,
    }


# --- tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "more"), [
    ("4,3,10,8", {}), ("5,4,10,8", {"box_first": 1, "box_last_inside": True}), ("5,4,11,9", {"box_first": 1}),
    ("4,3,6,5", {"box_format": "xywh"}), ("5,4,6,5", {"box_format": "xywh", "box_first": 1}),
    ("7,5.5,6,5", {"box_format": "cxcywh"}), ("4,3,9,7", {"box_last_inside": True}),
])
def test_conventions_of_boxes(tmp_path: Path, cells: str, more: dict[str, Any]) -> None:
    put(tmp_path / "a.png")
    write(tmp_path / "four.csv", f"filename,p,q,r,s,what\na.png,{cells},mass\na.png,,,,,\n")
    write(tmp_path / "one.csv", f'filename,box,what\na.png,"[{cells}]",mass\n')
    base = {"root": str(tmp_path), "layout": "table", "box_label": "what", **more}
    for table, columns in (("four.csv", ("p", "q", "r", "s")), ("one.csv", ("box",))):
        found = items(Params(**base, table=table, box_columns=columns))
        assert regions(found["a.png"]) == [("mass", (4, 3, 10, 8))]


def test_boxes_of_raters_and_of_another_frame(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    rows = "a.png,8 6 20 16,mass,R1,40,60\na.png,8 6 22 16,mass,R2,40,60\n"
    write(tmp_path / "t.csv", f"filename,box,what,who,h,w\n{rows}")
    params = Params(
        root=str(tmp_path), layout="table", table="t.csv", box_columns=("box",), box_label="what", rater_column="who",
        label_columns=("what",), size_columns=("h", "w"), annotated_fit="scale",
    )
    made = sample(items(params)["a.png"])
    assert [(r.label, r.box) for r in made.regions] == [("mass", (4, 3, 10, 8)), ("mass", (4, 3, 11, 8))]
    assert {label.origin for label in made.labels} == {"csv:what by R1", "csv:what by R2", "rater:R1", "rater:R2"}
    write(tmp_path / "t.csv", "filename,box,what,who,h,w\na.png,8 6 x 16,mass,R1,40,60\n")
    assert codes(items(params)) == {"a.png": "BOX_INVALID"}


def test_json_lines_with_nested_values_and_names_made_of_columns(tmp_path: Path) -> None:
    put(tmp_path / "figures" / "h1_1-Figure1.png", 1)
    put(tmp_path / "figures" / "h1_2-Figure2.png", 2)
    rows = [
        {"hash": "h1", "uri": "1-Figure1.png", "caption": "One.", "refs": ["See 1.", "Also 1."],
         "oa": {"doi": "10.1/x", "open": {"license": "cc by"}}},
        {"hash": "h1", "uri": "2-Figure2.png", "caption": None, "refs": None, "oa": {"doi": "10.1/x"}},
        {"hash": "h2", "uri": "gone.png"},
    ]
    write(tmp_path / "meta.jsonl", "\n".join(map(json.dumps, rows)) + "\n[1]\n")
    found = items(Params(
        root=str(tmp_path), layout="table", table="meta.jsonl", image_column="{hash}_{uri}", patient_column="oa.doi",
        text_columns={"caption": "original_caption", "refs": "mention"}, licence_column="oa.open.license",
    ))
    assert codes(found) == {
        "figures/h1_1-Figure1.png": None, "figures/h1_2-Figure2.png": None, "h2_gone.png": "FILE_MISSING",
        "meta.jsonl line 4": "ROW_MALFORMED",
    }
    one, two = (sample(found[f"figures/h1_{n}-Figure{n}.png"]) for n in (1, 2))
    assert [(t.kind, t.text) for t in one.texts] == [
        ("original_caption", "One."), ("mention", "See 1."), ("mention", "Also 1."),
    ]
    assert one.group == two.group and one.licences and one.licences.image == "CC-BY" and two.texts == ()


def test_metadata_beside_an_image_folder(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "test")):
        put(tmp_path / split / "ok" / "a.png", n)
    write(tmp_path / "train" / "metadata.csv", "file_name,text\nok/a.png,first\n")
    rows = [{"file_name": "ok/a.png", "text": "second", "objects": {"bbox": [[1, 2, 3, 4]], "categories": ["cell"]}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test" / "metadata.parquet")
    params = Params(
        root=str(tmp_path), layout="imagefolder", table="*metadata.*", splits=("train", "test"),
        text_columns={"text": "original_caption"},
    )
    found = items(params)
    assert {id: [t.text for t in sample(item).texts] for id, item in found.items()} == {
        "train/ok/a.png": ["first"], "test/ok/a.png": ["second"],
    }
    assert [label.name for label in sample(found["test/ok/a.png"]).labels] == ["split", "ok"]
    (tmp_path / "train" / "metadata.csv").unlink()
    boxed = sample(items(params.model_copy(update={"objects_column": "objects"}))["test/ok/a.png"])
    assert [(r.label, r.box) for r in boxed.regions] == [("cell", (1, 2, 4, 6))]


def test_rows_never_take_the_image_of_another_folder(tmp_path: Path) -> None:
    put(tmp_path / "p1" / "source.jpg", 1)
    write(tmp_path / "t.csv", "path,finding\np1/source.jpg,a\np2/source.jpg,b\n")
    found = items(Params(root=str(tmp_path), layout="table", table="t.csv", label_columns=("finding",)))
    assert codes(found) == {"p1/source.jpg": None, "p2/source.jpg": "FILE_MISSING"}


def test_split_lists_of_any_layout_and_of_voc(tmp_path: Path) -> None:
    for n, name in enumerate("abc"):
        put(tmp_path / "JPEGImages" / f"{name}.jpg", n)
        write(tmp_path / "Annotations" / f"{name}.xml", f"<annotation><filename>{name}.jpg</filename></annotation>")
    sets = tmp_path / "ImageSets" / "Main"
    write(sets / "train.txt", "a\nb\n")
    write(sets / "test.txt", "c\ngone\n")
    write(sets / "trainval.txt", "a\nb\n")
    write(sets / "cat_train.txt", "a 1\nb -1\n")
    found = items(Params(root=str(tmp_path), layout="voc"))
    assert {id: code for id, code in codes(found).items() if code} == {"gone": "FILE_MISSING"}
    splits = {id[-5]: [label for label in sample(i).labels] for id, i in found.items() if not i.error}
    expected = {"a": "train", "b": "train", "c": "test"}
    assert splits == {name: [Label("split", split, "list:split")] for name, split in expected.items()}
    listed = items(Params(
        root=str(tmp_path), layout="imagefolder", include=("*.jpg",),
        split_lists={"held out": "ImageSets/Main/test.txt"},
    ))
    assert Label("split", "held out", "list:split") in sample(listed["JPEGImages/c.jpg"]).labels


# --- what sets get wrong ------------------------------------------------------------------------------------------


def test_slices_of_a_patient_share_the_key_that_splits_go_by(tmp_path: Path) -> None:
    for name in ("patient001_frame01", "patient001_frame12", "patient002_frame01"):
        put(tmp_path / f"{name}.png", len(name) + ord(name[9]) + ord(name[-1]))
    found = items(Params(root=str(tmp_path), layout="imagefolder", patient_pattern=r"^(patient\d+)_"))
    groups = [sample(item).group for item in found.values()]
    assert groups[0] == groups[1] != groups[2]


def test_the_modality_is_the_recipes_or_the_rows_and_never_a_guess(tmp_path: Path) -> None:
    put(tmp_path / "oct" / "fundus_01.png", 1)
    put(tmp_path / "oct" / "b.png", 2)
    write(tmp_path / "t.csv", "filename,kind\nfundus_01.png,OCT\nb.png,\n")
    base = {"root": str(tmp_path), "layout": "table", "table": "t.csv", "modality": "XC"}
    plain = items(Params(**base))
    assert {sample(item).columns["modality"] for item in plain.values()} == {"XC"}
    stated = items(Params(**base, fact_columns={"kind": "modality"}, fact_map={"OCT": "OPT"}))
    assert [sample(item).columns["modality"] for item in stated.values()] == ["XC", "OPT"]
    silent = items(Params(**{**base, "modality": None}))
    assert all("modality" not in sample(item).columns for item in silent.values())


def test_a_mask_that_is_presented_as_an_image_is_flagged(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[:5] = 255
    save(tmp_path / "grey.png", mask)
    save(tmp_path / "colour.png", np.stack([mask, mask // 2, mask], axis=2))
    save(tmp_path / "four.png", np.arange(600, dtype=np.uint8).reshape(20, 30) % 4)
    put(tmp_path / "picture.png")
    found = items(Params(root=str(tmp_path), layout="imagefolder"))
    flag = (Label("looks like", "mask", "decoder:image"),)
    assert {id: sample(item).labels for id, item in found.items()} == {
        "grey.png": flag, "colour.png": flag, "four.png": (), "picture.png": (),
    }


# --- every file of the sample data --------------------------------------------------------------------------------

SETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "captions/medicat_nc": (images, {
        "layout": "table", "table": "sample.jsonl", "image_column": "{pdf_hash}_{fig_uri}",
        "patient_column": "oa_info.doi",
        "text_columns": {"s2_caption": "original_caption", "s2orc_references": "mention"},
        "licence_column": "oa_info.oa.license",
    }),
    "classification/covid_cxr_nc": (images, {
        "layout": "table", "table": "metadata.csv", "licence_column": "license", "label_columns": ("finding",),
        "masks": {"lungs": "semantic_masks_v7labs_lungs/{stem}.*"},
    }),
    "classification/nih_cxr64": (images, {
        "layout": "table", "table": "Data_Entry_2017_v2020.csv", "image_column": "Image Index",
        "label_columns": ("Finding Labels",), "split_on": "|", "patient_column": "Patient ID",
        "splits": ("train", "valid", "test"),
    }),
    "detection/bccd_coco": (images, {"layout": "coco"}),
    "detection/bccd_voc": (images, {"layout": "voc"}),
    "segmentation/dsb2018": (images, {"layout": "pairs", "mask_label": "nucleus"}),
    "vqa/slake_text_only": (vqa, {"layout": "slake"}),
    "reports/openi_iu_xray": (reports, {"layout": "openi"}),
}


@pytest.mark.parametrize("folder", SETS)
def test_every_file_of_a_real_set_is_accounted_for(sample_data: Path, folder: str) -> None:
    connector, more = SETS[folder]
    root = sample_data / folder
    params = connector.Params(root=str(root), **more)
    on_disk = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    used: set[str] = set()
    found: Counter[str] = Counter()
    for part in partitions(params, connector):
        for ref, item in zip(part.refs, connector.read(part, params), strict=True):
            used |= {name for name, _ in ref["files"].values()} | {posixpath.normpath(str(ref["id"])).partition("#")[0]}
            found[codes({"": item})[""] or "kept"] += 1
    supporting = on_disk - used
    print(f"\n{folder}: {len(on_disk)} files, {len(on_disk & used)} in items, {len(supporting)} read, {dict(found)}")
    assert found["NOT_READ"] == 0
    # what no item names was read by the layout: tables, XML, JSON and lists, never a picture
    assert {Path(name).suffix for name in supporting} <= {".csv", ".jsonl", ".json", ".xml", ".txt"}
    assert len(on_disk & used) + len(supporting) == len(on_disk)
