"""Folders of images, from the files to samples: the connector `images` and the decoder `image` together."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagefolders import codes, items, partitions, put, put_mask, refused, sample, write

from connectors.images import Params, read
from infra.errors import ConfigError, ItemError
from infra.plugins import load
from transforms.decoded import IngestParams, Refused, Sample
from transforms.decoders.image import decode


def test_both_are_plugins() -> None:
    assert load("connector", "images").Params is Params
    assert load("decoder", "image").decode is decode


def test_the_class_is_the_folder_and_splits_are_none(tmp_path: Path) -> None:
    put(tmp_path / "train" / "cat" / "a.png", 1)
    put(tmp_path / "test" / "dog" / "puppy" / "b.JPG", 2)
    put(tmp_path / "c", 3)
    write(tmp_path / "train" / "cat" / "notes.txt", "no image")
    write(tmp_path / "LICENSE", "no suffix and no image")
    (tmp_path / "train" / "cat" / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    params = Params(root=str(tmp_path), layout="imagefolder", splits=("train", "test"), modality="XC")
    found = items(params)
    notes = {"train/cat/notes.txt", "LICENSE", "train/cat/Thumbs.db"}
    assert {codes(found)[name] for name in notes} == {"NOT_READ"}
    found = {id: item for id, item in found.items() if id not in notes}
    assert {id: [(label.name, label.origin) for label in item.labels] for id, item in found.items()} == {
        "train/cat/a.png": [("split", "folder:split"), ("cat", "folder")],
        "test/dog/puppy/b.JPG": [("split", "folder:split"), ("puppy", "folder")],
        "c": [],
    }
    assert found["train/cat/a.png"].labels[0].value == "train"
    assert all(sample(item).columns["modality"] == "XC" for item in found.values())
    whole = params.model_copy(update={"class_folder": "all", "label_map": {"puppy": "young dog", "cat": ""}})
    labels = {
        id: [label.name for label in item.labels if label.name != "split"]
        for id, item in items(whole).items() if id in found
    }
    assert labels == {"train/cat/a.png": [], "test/dog/puppy/b.JPG": ["dog", "young dog"], "c": []}


def test_include_and_exclude_say_what_is_an_item(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.png")
    write(tmp_path / "a" / "page.html", "<html>")
    params = Params(root=str(tmp_path), layout="imagefolder", include=("a/*",))
    assert {id: refused(item) if id.endswith("html") else "ok" for id, item in items(params).items()} == {
        "a/x.png": "ok", "a/page.html": "NOT_IMAGE",
    }
    assert list(items(params.model_copy(update={"exclude": ("*.html",)}))) == ["a/x.png"]
    with pytest.raises(ConfigError, match="no image there"):
        partitions(params.model_copy(update={"include": ("*.tif",)}))
    with pytest.raises(ConfigError, match="nothing there"):
        partitions(Params(root=str(tmp_path / "gone"), layout="imagefolder"))
    with pytest.raises(ConfigError, match="is a file"):
        partitions(Params(root=str(tmp_path / "a" / "x.png"), layout="imagefolder"))


def test_bad_files_cost_themselves_only(tmp_path: Path) -> None:
    good = put(tmp_path / "k" / "good.png", 1)
    (tmp_path / "k" / "cut.png").write_bytes(good.read_bytes()[:-20])
    (tmp_path / "k" / "empty.png").write_bytes(b"")
    write(tmp_path / "k" / "page.jpg", "<html>404</html>")
    found = items(Params(root=str(tmp_path), layout="imagefolder"))
    made = list(decode(list(found.values()), IngestParams(), lambda kind, clear: clear))
    assert {m.item: m.error.code for m in made if isinstance(m, Refused)} == {
        "k/cut.png": "IMAGE_TRUNCATED", "k/empty.png": "NOT_IMAGE", "k/page.jpg": "NOT_IMAGE",
    }
    assert [m.items for m in made if isinstance(m, Sample)] == [("k/good.png",)]


def test_a_new_file_changes_one_partition_and_moving_the_root_none(tmp_path: Path) -> None:
    for n in range(40):
        put(tmp_path / "a" / f"class{n % 3}" / f"{n}.png", n, (4, 4))
    params = Params(root=str(tmp_path / "a"), layout="imagefolder", capacity=8)
    before = {part.name: part.key for part in partitions(params)}
    assert len(before) > 4 and all(len(part.refs) <= 8 for part in partitions(params))
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "b")
    moved = params.model_copy(update={"root": str(tmp_path / "elsewhere" / "b")})
    assert {part.name: part.key for part in partitions(moved)} == before
    put(tmp_path / "a" / "class1" / "new.png", 99, (4, 4))
    after = {part.name: part.key for part in partitions(params)}
    assert len(set(before.items()) - set(after.items())) == 1


def test_what_changes_an_item_changes_its_key(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    base = {"root": str(tmp_path), "layout": "csv", "csv": "t.csv", "label_columns": ("finding",)}

    def one(table: str, **more: Any) -> str:
        write(tmp_path / "t.csv", table)
        return partitions(Params(**{**base, **more}))[0].key

    plain = one("filename,finding\na.png,mass\n")
    assert one("finding ; filename\n mass;a.png \n") == plain
    others = [
        one("filename,finding\na.png,nodule\n"), one("filename,finding\na.png,mass\n", modality="CT"),
        one("filename,finding\na.png,mass\n", label_map={"mass": "tumour"}),
        one("filename,finding\na.png,mass\nb.png,mass\n"),
    ]
    assert len({plain, *others}) == 5


def test_a_file_that_changes_or_vanishes_after_listing_is_noticed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(tmp_path / f"{name}.png")
    params = Params(root=str(tmp_path), layout="imagefolder")
    (part,) = partitions(params)
    put(tmp_path / "a.png", 5)
    (tmp_path / "b.png").unlink()
    found = {item.id: item for item in read(part, params)}
    assert codes(found) == {"a.png": "SOURCE_CHANGED", "b.png": "FILE_UNREADABLE", "c.png": None}
    assert all(item.error.retryable for item in found.values() if isinstance(item.error, ItemError))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_an_item_with_an_error(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "b").chmod(0)
    assert codes(items(Params(root=str(tmp_path), layout="imagefolder"))) == {"a.png": None, "b": "FILE_UNREADABLE"}


def test_the_images_of_a_patient_stay_together_and_the_name_is_hidden(tmp_path: Path) -> None:
    for patient in range(9):
        for image in range(3):
            put(tmp_path / f"p{patient}_{image}.png", 10 * patient + image, (4, 4))
    params = Params(root=str(tmp_path), layout="imagefolder", patient_pattern=r"(p\d+)_", capacity=4)
    for part in partitions(params):
        assert set(Counter(ref["patient"] for ref in part.refs).values()) == {3}
    groups = {sample(item).group for item in items(params).values()}
    assert len(groups) == 9 and not any(group == "p1" for group in groups)


def test_pairs_have_one_region_a_mask_file(tmp_path: Path) -> None:
    put(tmp_path / "s1" / "images" / "s1.png", 1)
    put_mask(tmp_path / "s1" / "masks" / "m1.png", (2, 3, 10, 9))
    put_mask(tmp_path / "s1" / "masks" / "m2.png", (12, 3, 20, 9))
    put_mask(tmp_path / "s1" / "masks" / "m3.png", (0, 0, 0, 0))
    put(tmp_path / "s2" / "images" / "s2.png", 2)
    put_mask(tmp_path / "s3" / "masks" / "m.png", (0, 0, 5, 5))
    params = Params(root=str(tmp_path), layout="pairs", mask_label="nucleus", roles={"nucleus": "cell"})
    found = items(params)
    assert codes(found) == {"s1/images/s1.png": None, "s2/images/s2.png": None, "s3/masks/m.png": "FILE_MISSING"}
    regions = sample(found["s1/images/s1.png"]).regions
    assert [(r.label, r.role, np.sum(r.mask)) for r in regions] == [("nucleus", "cell", 48)] * 2
    assert sample(found["s2/images/s2.png"]).regions == ()
    before = partitions(params)[0].key
    put_mask(tmp_path / "s2" / "masks" / "m.png", (0, 0, 5, 5))
    assert partitions(params)[0].key != before


def test_pairs_in_common_folders_go_by_name(tmp_path: Path) -> None:
    for n, name in enumerate("abc"):
        put(tmp_path / "images" / f"{name}.jpg", n)
        put_mask(tmp_path / "masks" / f"{name}.png", (n, 0, 10, 2))
    (tmp_path / "masks" / "c.png").unlink()
    put_mask(tmp_path / "masks" / "d.png", (0, 0, 5, 5))
    found = items(Params(root=str(tmp_path), layout="pairs", mask_label="lesion"))
    sums = {id: [np.sum(r.mask) for r in sample(item).regions] for id, item in found.items() if not item.error}
    assert sums == {"images/a.jpg": [20], "images/b.jpg": [18], "images/c.jpg": []}
    assert codes(found)["masks/d.png"] == "FILE_MISSING"


def test_masks_may_join_any_layout(tmp_path: Path) -> None:
    put(tmp_path / "x[1].png", 1)
    put_mask(tmp_path / "seg" / "x[1]_lung.png", (0, 0, 10, 10))
    put_mask(tmp_path / "seg" / "x[1]_a_b.png", (0, 0, 5, 5))
    put_mask(tmp_path / "seg" / "x[1]_a_c.png", (5, 5, 9, 9))
    found = items(Params(
        root=str(tmp_path), layout="imagefolder", roles={"lung": "organ"},
        masks={"lung": "seg/{stem}_lung.*", "GGO/mixed": "seg/{stem}_a_*.png"},
    ))
    assert list(found) == ["x[1].png"]
    assert [(r.label, r.role) for r in sample(found["x[1].png"]).regions] == [
        ("lung", "organ"), ("GGO/mixed", "region"), ("GGO/mixed", "region"),
    ]


def test_real_sets_come_through_whole(sample_data: Path) -> None:
    def outcome(folder: str, **more: Any) -> tuple[Counter[str], int]:
        found = items(Params(root=str(sample_data / folder), **more))
        samples = [sample(item) for item in found.values() if not item.error]
        return Counter(code or "ok" for code in codes(found).values()), sum(len(made.regions) for made in samples)

    assert outcome("detection/bccd_voc", layout="voc") == ({"ok": 60}, 807)
    assert outcome("detection/bccd_coco", layout="coco") == ({"ok": 30}, 418)
    assert outcome("segmentation/dsb2018", layout="pairs", mask_label="nucleus") == ({"ok": 35}, 938)
    nih = {"csv": "Data_Entry_2017_v2020.csv", "image_column": "Image Index", "label_columns": ("Finding Labels",)}
    assert outcome("classification/nih_cxr64", layout="csv", split_on="|", **nih) == ({"ok": 120}, 0)
    covid = {"csv": "metadata.csv", "licence_column": "license", "fact_columns": {"url": "source_uri"}}
    masks = {"lungs": "semantic_masks_v7labs_lungs/{stem}.*"}
    expected = {"ok": 21, "FILE_MISSING": 16}
    assert outcome("classification/covid_cxr_nc", layout="csv", masks=masks, **covid) == (expected, 6)
