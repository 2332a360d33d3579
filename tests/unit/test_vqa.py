"""Questions about images: SLAKE, VQA-RAD and tables, from the files to samples."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagefolders import codes, items, partitions, put, sample, write
from PIL import Image
from pydantic import ValidationError

from connectors import vqa
from connectors.vqa import Params
from infra.errors import ConfigError


def row(image: str, question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {
        "img_name": image, "question": question, "answer": answer, "q_lang": "en", "location": "Abdomen",
        "modality": "MRI", "answer_type": "OPEN", "qid": 1, **more,
    }


def slake(root: Path) -> Path:
    put(root / "imgs" / "xmlab1" / "source.jpg", 1)
    put(root / "imgs" / "xmlab2" / "source.jpg", 2)
    put(root / "imgs" / "xmlab3" / "source.jpg", 3)
    train = [
        row("xmlab1/source.jpg", "What modality?", "MRI", qid=7),
        row("xmlab1/source.jpg", "什么模态?", "MRI", q_lang="zh", qid=8),
        row("xmlab1/source.jpg", "Is it MRI?", "Yes", answer_type="CLOSED", qid=9),
        row("xmlab1/source.jpg", "Is it normal?", "Yes", answer_type="CLOSED", qid=10),
        row("xmlab9/source.jpg", "What?", "CT"), row("xmlab9/source.jpg", "Where?", "Head"),
    ]
    write(root / "train.json", json.dumps(train))
    write(root / "test.json", json.dumps([row("xmlab2/source.jpg", "What modality?", "CT", modality="CT")]))
    write(root / "imgs" / "xmlab1" / "detection.json", json.dumps([{"Liver": [2, 3, 10, 5]}]))
    write(root / "imgs" / "xmlab1" / "question.json", json.dumps(train[:4]))
    mask = np.zeros((20, 30), np.uint8)
    mask[:5, :6] = 3
    Image.fromarray(mask).save(root / "imgs" / "xmlab1" / "mask.png")
    return root


def test_slake_is_an_item_an_image_with_all_its_questions(tmp_path: Path) -> None:
    params = Params(
        root=str(slake(tmp_path)), layout="slake", fact_map={"MRI": "MR"}, classes={"3": "spleen"},
        roles={"Liver": "organ", "spleen": "organ"}, question_labels=("answer_type",),
    )
    found = items(params, vqa)
    assert codes(found) == {
        "imgs/xmlab1/source.jpg": None, "imgs/xmlab2/source.jpg": None, "imgs/xmlab3/source.jpg": "NO_METADATA_ROW",
        "xmlab9/source.jpg": "FILE_MISSING",
    }
    assert "2 questions are lost" in str(found["xmlab9/source.jpg"].error)
    one = sample(found["imgs/xmlab1/source.jpg"])
    asked = [text for text in one.texts if text.kind == "question"]
    answers = [(text.about.text, text.text, text.language) for text in one.texts if text.about]
    assert [text.text for text in asked] == ["What modality?", "什么模态?", "Is it MRI?", "Is it normal?"]
    assert answers == [
        ("What modality?", "MRI", "en"), ("什么模态?", "MRI", "zh"), ("Is it MRI?", "Yes", "en"),
        ("Is it normal?", "Yes", "en"),
    ]
    assert (one.columns["modality"], one.columns["anatomy"]) == ("MR", "Abdomen")
    assert {(label.name, label.value, label.origin) for label in one.labels} >= {
        ("split", "train", "vqa:table"), ("answer_type", "CLOSED", "question:9"),
    }
    regions = {region.label: region for region in one.regions}
    assert regions["Liver"].box == (2, 3, 12, 8) and regions["Liver"].role == "organ"
    assert np.sum(regions["spleen"].mask) == 30
    assert sample(found["imgs/xmlab2/source.jpg"]).columns["modality"] == "CT"


def test_slake_without_a_table_of_classes_leaves_masks_out(tmp_path: Path) -> None:
    found = items(Params(root=str(slake(tmp_path)), layout="slake"), vqa)
    assert "imgs/xmlab1/mask.png" not in found
    assert [r.label for r in sample(found["imgs/xmlab1/source.jpg"]).regions] == ["Liver"]


def test_vqa_rad_has_splits_in_its_phrase_types(tmp_path: Path) -> None:
    put(tmp_path / "VQA_RAD Image Folder" / "synpic1.jpg", 1)
    rows = [
        {"qid": 0, "image_name": "synpic1.jpg", "question": "Is there a mass?", "answer": "No", "answer_type": "CLOSED",
         "phrase_type": "freeform", "image_organ": "HEAD"},
        {"qid": "1", "image_name": "synpic1.jpg", "question": "Any lesion?", "answer": 2, "answer_type": "OPEN",
         "phrase_type": "test_para", "image_organ": "HEAD"},
    ]
    write(tmp_path / "VQA_RAD Dataset Public.json", json.dumps(rows))
    found = items(Params(root=str(tmp_path), layout="vqa-rad"), vqa)
    made = sample(found["VQA_RAD Image Folder/synpic1.jpg"])
    assert [(label.name, label.value) for label in made.labels] == [("split", "train"), ("split", "test")]
    assert [(t.kind, t.text) for t in made.texts] == [
        ("question", "Is there a mass?"), ("answer", "No"), ("question", "Any lesion?"), ("answer", "2"),
    ]
    assert made.columns["anatomy"] == "HEAD"


def test_any_table_and_bad_rows(tmp_path: Path) -> None:
    for n in range(3):
        put(tmp_path / "img" / f"{n}.png", n)
    lines = [
        {"image": "0.png", "question": "a?", "answer": ["x", "y"], "case": 4},
        {"image": "1.png", "answer": "x", "case": 4}, {"image": "2.png", "question": "b?", "answer": "z", "case": 4},
        {"image": "2.png", "question": "c?", "case": 5},
    ]
    write(tmp_path / "train.jsonl", "\n".join(map(json.dumps, lines)) + "\n{\n")
    params = Params(root=str(tmp_path), layout="table", tables="*.jsonl", patient_column="case")
    found = items(params, vqa)
    assert codes(found) == {
        "img/0.png": None, "img/1.png": "QUESTION_MISSING", "img/2.png": "ROWS_DISAGREE",
        "train.jsonl line 5": "ROW_MALFORMED",
    }
    assert Counter(text.kind for text in sample(found["img/0.png"]).texts) == {"question": 1, "answer": 2}
    with pytest.raises(ConfigError, match="the column 'q' is not there"):
        partitions(params.model_copy(update={"question_column": "q"}), vqa)
    with pytest.raises(ConfigError, match="no questions"):
        partitions(params.model_copy(update={"tables": "*.csv"}), vqa)
    with pytest.raises(ValidationError, match="needs tables"):
        Params(root=".", layout="table")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    write(tmp_path / "t.csv", "image,question,answer\na.png,q?,yes\n")
    (tmp_path / "train.pkl").write_bytes(b"\x80\x04.")
    found = items(Params(root=str(tmp_path), layout="table", tables="t.csv"), vqa)
    assert codes(found) == {"a.png": None, "train.pkl": "NOT_READ"}


def test_the_real_rows_are_all_accounted_for(sample_data: Path) -> None:
    root = sample_data / "vqa" / "slake_text_only" / "Slake1.0"
    found = items(Params(root=str(root), layout="slake"), vqa)
    rows = [row for name in ("train", "validate") for row in json.loads((root / f"{name}.json").read_bytes())]
    assert set(codes(found).values()) == {"FILE_MISSING"}
    assert set(found) == {row["img_name"] for row in rows}
    lost = sum(int(str(item.error).rsplit("; ", 1)[1].split()[0]) for item in found.values())
    assert lost == len({(r["img_name"], r["question"], r["q_lang"]) for r in rows})
