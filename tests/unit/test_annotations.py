"""What tables, VOC and COCO files say of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from imagefolders import codes, items, partitions, put, refused, sample, write
from pydantic import ValidationError

from catalog.items import Label, Licences
from connectors.images import Params
from connectors.images.coco import read_coco
from connectors.images.voc import read_voc
from infra.errors import ConfigError, ItemError

TABLE = """\ufefffilename, finding ,view,age,Edema,patient,licence,note, url,
a.png,Mass|Nodule,PA,61,1,7,CC BY-NC-SA,"seen, twice",https://example.org/a,
sub/b.png,No Finding,,,0,7,,,,
c,,L,40,-1.0,8,CC0-1.0,,,
gone.png,Mass,PA,50,,9,,,,
"""


def test_a_table_states_labels_facts_texts_patient_and_licence(tmp_path: Path) -> None:
    for n, name in enumerate(("img/a.png", "img/sub/b.png", "img/c.png", "img/extra.png")):
        put(tmp_path / name, n)
    write(tmp_path / "t.csv", TABLE)
    found = items(Params(
        root=str(tmp_path), layout="csv", csv="t.csv", label_columns=("finding",), split_on="|",
        binary_columns=("Edema",), attribute_columns=("age",), text_columns={"note": "report"},
        fact_columns={"view": "view", "url": "source_uri"},
        fact_map={"L": "lateral"}, patient_column="patient", licence_column="licence", modality="DX",
    ))
    assert codes(found) == {
        "img/a.png": None, "img/sub/b.png": None, "img/c.png": None, "img/extra.png": "NO_METADATA_ROW",
        "gone.png": "FILE_MISSING",
    }
    assert isinstance(found["img/extra.png"].error, ItemError) and found["img/extra.png"].error.outcome == "dropped"
    a, c = sample(found["img/a.png"]), sample(found["img/c.png"])
    assert a.labels == (
        Label("Mass", origin="csv:finding"), Label("Nodule", origin="csv:finding"),
        Label("Edema", "present", "csv:Edema"), Label("age", "61", "csv:age"),
    )
    assert [text.text for text in a.texts] == ["seen, twice"] and a.texts[0].kind == "report"
    assert a.columns == {"modality": "DX", "view": "PA", "source_uri": "https://example.org/a"}
    assert a.licences == Licences(image="CC-BY-NC-SA", evidence="csv:licence")
    b = sample(found["img/sub/b.png"])
    assert b.licences is None and b.group == a.group != c.group
    assert c.labels == (Label("Edema", "uncertain", "csv:Edema"), Label("age", "40", "csv:age"))
    assert c.columns["view"] == "lateral"


def test_rows_are_matched_by_as_much_of_the_path_as_it_takes(tmp_path: Path) -> None:
    for n, name in enumerate(("p1/view1.png", "p2/view1.png", "p2/other.png")):
        put(tmp_path / name, n)
    write(tmp_path / "t.csv", "path\nCheXpert/train/p1/view1.png\nview1.png\np2\\other.png\n")
    found = items(Params(root=str(tmp_path), layout="csv", csv="t.csv", image_column="path"))
    assert codes(found) == {
        "p1/view1.png": None, "view1.png": "FILE_AMBIGUOUS", "p2/view1.png": "NO_METADATA_ROW", "p2/other.png": None,
    }


def test_several_rows_of_an_image_are_one_item_if_they_agree(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 1)
    put(tmp_path / "b.png", 2)
    write(tmp_path / "t.csv", "filename,finding,patient\na.png,x,1\na.png,y,1\nb.png,x,1\nb.png,x,2\n")
    found = items(Params(
        root=str(tmp_path), layout="csv", csv="t.csv", label_columns=("finding",), patient_column="patient"
    ))
    assert [label.name for label in found["a.png"].labels] == ["x", "y"]
    assert codes(found) == {"a.png": None, "b.png": "ROWS_DISAGREE"}


def test_bad_rows_cost_themselves_only(tmp_path: Path) -> None:
    for n, name in enumerate("abcd"):
        put(tmp_path / f"{name}.png", n)
    write(tmp_path / "t.csv", "filename,edema,x\na.png,1,\nb.png,perhaps,\nc.png,1,,surplus\n\n,1,\nd.png,1\n")
    found = items(Params(root=str(tmp_path), layout="csv", csv="t.csv", binary_columns=("edema",)))
    assert codes(found) == {
        "a.png": None, "b.png": "LABEL_VALUE_UNKNOWN", "c.png": "ROW_MALFORMED", "d.png": "ROW_MALFORMED",
        "t.csv line 6": "FILE_MISSING",
    }


def test_an_unreadable_table_is_an_item_and_a_missing_column_stops_the_run(tmp_path: Path) -> None:
    put(tmp_path / "t.png")
    (tmp_path / "t.csv").write_bytes("filename,\xe9\nt.png,1\n".encode("latin-1"))
    params = Params(root=str(tmp_path), layout="csv", csv="t.csv")
    assert codes(items(params)) == {"t.csv": "ANNOTATION_UNREADABLE", "t.png": "NO_METADATA_ROW"}
    assert codes(items(params.model_copy(update={"encoding": "latin-1"}))) == {"t.png": None}
    write(tmp_path / "t.csv", 'filename,x\nt.png,"never closed\n')
    assert codes(items(params)) == {"t.csv": "ANNOTATION_UNREADABLE", "t.png": "NO_METADATA_ROW"}
    write(tmp_path / "t.csv", "File_name,x\nt.png,1\n")
    with pytest.raises(ConfigError, match="did you mean 'File_name'"):
        partitions(params)
    write(tmp_path / "t.csv", "filename,filename\nt.png,t.png\n")
    with pytest.raises(ConfigError, match="twice"):
        partitions(params)


def test_a_table_may_lie_elsewhere_and_its_place_is_in_no_key(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.png")
    keys = []
    for place in ("one", "two"):
        table = write(tmp_path / place / "t.csv", "filename\nx.png\ny.png\n")
        params = Params(root=str(tmp_path / "a"), layout="csv", csv=str(table))
        assert codes(items(params)) == {"x.png": None, "y.png": "FILE_MISSING"}
        keys.append(partitions(params)[0].key)
    assert keys[0] == keys[1]


def test_wrong_parameters_say_what_to_do() -> None:
    for wrong, hint in (
        ({"layout": "csv"}, "needs table"), ({"layout": "pairs"}, "needs mask_label"),
        ({"layout": "csv", "csv": "t.csv", "fact_columns": {"a": "modalty"}}, "did you mean 'modality'"),
        ({"layout": "voc", "patient_pattern": "("}, "patient_pattern"),
    ):
        with pytest.raises((ValidationError, ConfigError)) as caught:
            Params(root=".", **wrong)
        assert hint in str(caught.value)


def voc(name: str, *objects: tuple[str, int, int, int, int], size: tuple[int, int] = (20, 30)) -> str:
    inner = "".join(
        f"<object><name>{n}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for n, a, b, c, d in objects
    )
    height, width = size
    return (
        f"<annotation><folder>x</folder><filename>{name}</filename><path>/home/somebody/{name}</path>"
        f"<size><width>{width}</width><height>{height}</height></size>{inner}</annotation>"
    )


def test_voc_corners_are_counted_from_one_and_lie_inside(tmp_path: Path) -> None:
    put(tmp_path / "JPEGImages" / "a.jpg", 1)
    put(tmp_path / "JPEGImages" / "b.jpg", 2)
    put(tmp_path / "JPEGImages" / "lonely.jpg", 3)
    put(tmp_path / "JPEGImages" / "resized.jpg", 4)
    notes = tmp_path / "Annotations"
    write(notes / "a.xml", voc("a.jpg", ("RBC", 1, 1, 30, 20), ("WBC", 5, 5, 5, 5)))
    write(notes / "other.xml", voc("b.jpg"))
    write(notes / "gone.xml", voc("gone.jpg", ("RBC", 1, 1, 2, 2)))
    write(notes / "resized.xml", voc("resized.jpg", ("RBC", 1, 1, 300, 200), size=(200, 300)))
    found = items(Params(root=str(tmp_path), layout="voc", roles={"red cell": "cell"}, label_map={"RBC": "red cell"}))
    assert codes(found) == {
        "JPEGImages/a.jpg": None, "JPEGImages/b.jpg": None, "JPEGImages/lonely.jpg": "NO_METADATA_ROW",
        "JPEGImages/resized.jpg": None, "Annotations/gone.xml": "FILE_MISSING",
    }
    regions = sample(found["JPEGImages/a.jpg"]).regions
    assert [(r.label, r.role, r.box) for r in regions] == [
        ("red cell", "cell", (0, 0, 30, 20)), ("WBC", "region", (4, 4, 5, 5)),
    ]
    assert sample(found["JPEGImages/b.jpg"]).regions == ()
    assert refused(found["JPEGImages/resized.jpg"]) == "ANNOTATION_SIZE_MISMATCH"


@pytest.mark.parametrize("text", [
    "<annotation><object>", "", "<annotation><object><name>x</name></object></annotation>",
    "<annotation><object><name>x</name><bndbox><xmin>1</xmin><ymin>nan</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>"
    "</annotation>",
    "<annotation><object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>",
])
def test_unreadable_xml_fails_the_image_of_its_name(tmp_path: Path, text: str) -> None:
    put(tmp_path / "a.png", 1)
    put(tmp_path / "b.png", 2)
    write(tmp_path / "a.xml", text)
    write(tmp_path / "b.xml", voc("b.png"))
    write(tmp_path / "c.xml", text)
    found = items(Params(root=str(tmp_path), layout="voc"))
    assert codes(found) == {"a.png": "ANNOTATION_UNREADABLE", "b.png": None, "c.xml": "ANNOTATION_UNREADABLE"}


def test_xml_cannot_reach_out_or_blow_up(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.txt", "4711")
    entity = f'<!DOCTYPE annotation [<!ENTITY x SYSTEM "{secret.as_uri()}">]>'
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
    path = write(tmp_path / "a.xml", f"{entity}<annotation><object><name>n&x;</name>{box}</object></annotation>")
    assert "4711" not in repr(next(read_voc(path, "a.xml")).boxes)
    nested = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(12))
    path = write(tmp_path / "b.xml", f'<!DOCTYPE a [<!ENTITY a0 "ha">{nested}]><a><filename>&a12;</filename></a>')
    put(tmp_path / "b.png")
    found = items(Params(root=str(tmp_path), layout="voc"))
    assert codes(found) == {
        "a.xml": "FILE_MISSING", "b.png": "ANNOTATION_UNREADABLE", "secret.txt": "NOT_READ",
    }


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "licenses": [{"id": 4, "name": "CC-BY-4.0"}],
        "images": [
            {"id": 1, "file_name": "a.png", "width": 30, "height": 20, "license": 4}, {"id": 2, "file_name": "b.png"},
            {"id": 3, "file_name": "gone.png"}, {"id": 4, "file_name": "odd.png"},
        ],
        "categories": [{"id": 7, "name": "cell"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 3, 10.5, 4]},
            {"id": 2, "image_id": 1, "category_id": 7, "bbox": [0, 0, 30, 20]},
            {"id": 3, "image_id": 4, "category_id": 8, "bbox": [0, 0, 30, 20]},
            {"id": 4, "image_id": 99, "category_id": 7, "bbox": [0, 0, 30, 20]},
        ],
        **changes,
    }


def test_coco_boxes_are_corner_and_size(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for n, name in enumerate(("a", "b", "odd", "extra")):
            put(tmp_path / split / f"{name}.png", n + 10 * (split == "valid"))
        write(tmp_path / split / "_annotations.coco.json", json.dumps(coco()))
    found = items(Params(root=str(tmp_path), layout="coco", splits=("train", "valid")))
    per_split = {
        "a.png": None, "b.png": None, "odd.png": "ANNOTATION_UNREADABLE", "extra.png": "NO_METADATA_ROW",
        "gone.png": "FILE_MISSING", "_annotations.coco.json image 99": "FILE_MISSING",
    }
    assert codes(found) == {f"{split}/{name}": code for split in ("train", "valid") for name, code in per_split.items()}
    a = sample(found["valid/a.png"])
    assert [r.box for r in a.regions] == [(2, 3, 12.5, 7), (0, 0, 30, 20)]
    assert a.labels == (Label("split", "valid", "folder:split"),)
    assert a.licences == Licences(image="CC-BY-4.0", evidence="coco:licenses")
    assert sample(found["valid/b.png"]).regions == ()


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"images": 3}', json.dumps({"images": [{}]}), "[" * 200_000])
def test_unreadable_json_is_an_item_of_its_own(tmp_path: Path, text: str) -> None:
    put(tmp_path / "n.png")
    write(tmp_path / "n.json", text)
    found = items(Params(root=str(tmp_path), layout="coco"))
    assert codes(found) == {"n.json": "ANNOTATION_UNREADABLE", "n.png": "NO_METADATA_ROW"}


def test_odd_coco_entries_cost_themselves_only(tmp_path: Path) -> None:
    odd = [{"id": 1, "image_id": 1, "category_id": 7, "bbox": box} for box in ([1, 2, 3], None, [0, 0, "x", 1])]
    for note in odd:
        whole = coco(annotations=[note], images=[{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": None}])
        first, second = read_coco(write(tmp_path / "c.json", json.dumps(whole)), "c.json")
        assert [entry.error.code for entry in (first, second) if entry.error] == ["ANNOTATION_UNREADABLE"] * 2
