"""Label variants and phrases: ways of saying the same facts, in terms where there are some, all with evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transforms.captioners.variants import MOST, Params, open_captioner
from transforms.facts import facts_of
from transforms.stage import Context, SampleRows
from transforms.verify import check_evidence, check_laterality, check_modality, check_numbers


def label(id: str, name: str, value: str = "present", origin: str = "folder") -> dict[str, Any]:
    return {"label_id": id, "name": name, "value": value, "origin": origin}


def region(id: str, name: str, role: str = "organ") -> dict[str, Any]:
    return {
        "roi_id": id, "label": name, "role": role, "box": [1, 1, 5, 5], "position": "upper left", "area_fraction": 0.1,
        "trust": "boundary", "origin": "given", "expert": "source", "mask": None,
    }


def sample(labels: list[Any], rois: list[Any], **image: Any) -> SampleRows:
    row = {"sample_id": "s", "width": 50, "height": 50, "source": "x", "licence_image": None, **image}
    return SampleRows(row, {"labels": labels, "rois": rois, "measures": [], "passages": [], "texts": []})


def texts(one: SampleRows, **options: Any) -> list[dict[str, Any]]:
    return open_captioner(Params(**options), Context(Path()))(facts_of(one), one)


CHEST = {"modality": "CR", "anatomy": "chest", "view": "PA"}


def test_labels_are_said_in_ten_ways_in_their_terms_and_every_one_can_be_checked() -> None:
    labels = [label("1", "enlarged_heart"), label("2", "cardiomegaly", origin="harmonise:1"),
              label("3", "Pneumothorax", "absent"), label("4", "split", "train"), label("5", "effusion")]
    one = sample(labels, [], **CHEST)
    made = texts(one)
    assert len(made) == MOST == len({row["text"] for row in made})
    for row in made:
        text = row["text"].lower()
        assert "cardiomegaly and effusion" in text and "enlarged" not in text and "pneumothorax" not in text
        assert "pa radiograph of the chest" in text
        assert row["kind"] == "variant" and {"label:2", "label:5", "image:modality"} <= set(row["evidence"])
        judged = {**row, "text_id": "t", "roi_ids": []}
        facts = facts_of(one)
        verdicts = (check_evidence(judged, one), check_modality(row["text"], "CR"), check_laterality(judged, facts),
                    check_numbers(judged, facts))
        assert [verdict for verdict, *_ in verdicts] == ["pass"] * 4, row["text"]


def test_a_normal_study_is_said_as_one_and_no_label_gives_no_variant() -> None:
    normal = texts(sample([label("1", "0_normal")], [], **CHEST), variants=3)
    assert [row["text"] for row in normal] == [
        "A PA radiograph of the chest without a finding.", "No finding in a PA radiograph of the chest.",
        "A PA radiograph of the chest; no finding is labelled."]
    assert texts(sample([label("1", "x", "absent"), label("2", "view", "PA")], [], **CHEST)) == []
    both = texts(sample([label("1", "normal"), label("2", "goitre")], [], modality="CT"), variants=1)
    assert both[0]["text"] == "A CT image showing goitre."


@pytest.mark.parametrize(
    ("image", "phrase"),
    [({"modality": "CT", "anatomy": "abdomen"}, "liver in abdomen CT image"), ({}, "liver in image"),
     ({"modality": "blood smear", "anatomy": "blood"}, "liver in blood smear image")],
)
def test_regions_of_one_name_share_a_phrase_and_a_body_has_none(image: dict[str, Any], phrase: str) -> None:
    rois = [region("a", "liver"), region("b", "liver"), region("c", "spleen"), region("d", "imaged body", "body")]
    made = texts(sample([], rois, **image))
    spleen = phrase.replace("liver", "spleen")
    assert [(row["text"], row["roi_ids"]) for row in made] == [(phrase, ["a", "b"]), (spleen, ["c"])]
    assert {row["kind"] for row in made} == {"phrase"}
    assert texts(sample([], rois, **image), phrases=False) == []
