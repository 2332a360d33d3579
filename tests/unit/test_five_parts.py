"""MedTrinity's five parts: which there are, what they say, what they rest on."""

from __future__ import annotations

from typing import Any

import pytest

from transforms.captioners.english import counted, does, sentence, the
from transforms.captioners.parts import parts_of, prose_of, region_text, relation_text
from transforms.captioners.template import Params, open_captioner
from transforms.facts import facts_of
from transforms.stage import Context, SampleRows


def roi(id: str, label: str, box: list[int], role: str = "organ", trust: str = "boundary", area: float = 0.1) -> Any:
    return {"roi_id": id, "label": label, "role": role, "box": box, "position": "upper left", "area_fraction": area,
            "trust": trust, "origin": "given", "expert": "source", "mask": None}


def measure(roi_id: str, name: str, words: str | None, other: str | None = None) -> Any:
    return {"measure_id": f"{roi_id}-{name}", "roi_id": roi_id, "other_roi_id": other, "name": name, "value": 1.0,
            "unit": None, "words": words}


def sample(rois: Any = (), measures: Any = (), labels: Any = (), texts: Any = (), **image: Any) -> SampleRows:
    row = {"sample_id": "s", "width": 100, "height": 100, "source": "x", "licence_image": None, **image}
    return SampleRows(row, {
        "rois": list(rois), "measures": list(measures), "labels": list(labels), "passages": [], "texts": list(texts),
    })


LIVER = roi("liver", "liver", [0, 0, 60, 60], area=0.3)
NODULE = roi("n", "liver_nodule", [10, 10, 20, 20], "lesion", area=0.009)
LOOKS = [
    measure("n", "long_axis_mm", "about 34 by 21 mm in this slice"), measure("n", "roundness", "roughly round"),
    measure("n", "median", "a median of about 55 HU"), measure("n", "contrast", "darker than its surroundings"),
    measure("n", "texture", "homogeneous"), measure("n", "area", None),
]


def told(one: SampleRows) -> dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return {part.name: (part.text, part.evidence, part.roi_ids) for part in parts_of(facts_of(one))}


def test_each_part_is_said_with_its_own_evidence() -> None:
    one = sample([LIVER, NODULE], LOOKS, modality="CT", view="Axial", anatomy="ABDOMEN", orientation="LP")
    said = told(one)
    assert list(said) == ["modality", "organs", "region", "texture", "relation"]
    assert said["modality"] == ("This is an axial CT image.", ("image:view", "image:modality"), ())
    assert said["organs"] == (
        "The image shows the abdomen. The source marks the liver.", ("image:anatomy", "roi:liver"), ("liver",)
    )
    assert said["region"] == (
        "The source marks the liver nodule. The liver nodule lies in the upper part of the image, toward the patient's "
        "right, and covers 0.9% of the image. It measures about 34 by 21 mm in this slice and is roughly round.",
        ("roi:n", "measure:n-long_axis_mm", "measure:n-roundness"), ("n",),
    )
    assert said["texture"] == (
        "The liver nodule is homogeneous and darker than its surroundings and has a median of about 55 HU.",
        ("roi:n", "measure:n-texture", "measure:n-contrast", "measure:n-median"), ("n",),
    )
    assert said["relation"][0] == "The liver nodule lies inside the liver."
    whole = prose_of(facts_of(one))
    assert whole and whole.text.startswith("This is an axial CT image of the abdomen. The source marks the liver. ")
    assert whole.text.endswith(f"{said['texture'][0]} {said['relation'][0]}")
    assert {id for _, evidence, _ in said.values() for id in evidence} == set(whole.evidence)


def test_a_part_that_nobody_knows_anything_of_is_not_there() -> None:
    assert told(sample()) == {} and prose_of(facts_of(sample())) is None
    assert list(told(sample(modality="CT"))) == ["modality"]
    assert list(told(sample(anatomy="chest"))) == ["organs"]
    assert list(told(sample(labels=[{"label_id": "1", "name": "mass", "value": "absent", "origin": "csv:x"}]))) == [
        "region"]


@pytest.mark.parametrize("trust", ["box", "presence"])
def test_extent_shape_and_look_are_told_of_believed_outlines_only(trust: str) -> None:
    one = sample([roi("n", "nodule", [10, 10, 20, 20], "lesion", trust)], LOOKS, modality="CT")
    said = told(one)
    assert "texture" not in said and "relation" not in said
    words = said["region"][0]
    assert not any(word in words for word in ("%", "mm", "round", "darker"))
    assert ("upper left" in words) == (trust == "box")
    spoken = region_text(facts_of(one).regions[0])
    assert spoken and not any(id.startswith("measure:") for id in spoken.evidence)
    if trust == "presence":
        assert spoken.text == "The nodule is seen; the place is not known."


def test_distances_are_told_with_their_measure() -> None:
    rois = [roi("a", "spleen", [70, 0, 90, 20], area=0.04), roi("b", "lungs", [0, 0, 40, 40], area=0.2)]
    for words, end in (("about 12 mm apart", "; the two are about 12 mm apart."), ("touching", " and touches them.")):
        facts = facts_of(sample(rois, [measure("a", "distance_mm", words, "b")]))
        said = relation_text(facts.relations[0], facts)
        assert said.text == f"The spleen lies to the right of the lungs in the image{end}"
        assert said.evidence == ("roi:a", "roi:b", "measure:a-distance_mm")


def test_a_lone_region_is_set_against_the_whole_image_and_twins_are_counted() -> None:
    assert told(sample([LIVER]))["relation"][0] == "The liver takes up 30% of the whole image."
    twins = [roi("1", "lung", [0, 0, 30, 60]), roi("2", "lung", [70, 0, 100, 60])]
    facts = facts_of(sample(twins))
    spoken = region_text(facts.regions[0], others=1)
    assert spoken and spoken.text.startswith("One of the two regions labelled lung lies in the")


def test_a_slice_says_where_it_was_taken_and_a_panel_what_its_figure_says() -> None:
    words = {"text_id": "t", "kind": "original_caption", "text": "CT of  the liver", "generator": "panels@1"}
    one = sample(texts=[words], modality="CT", view="axial", volume_id="v", slice_index=7, pixel_spacing=[3.0, 1.5],
                 window=[-140.0, 260.0])
    rows = {row["kind"]: row for row in open_captioner(Params(), Context(None))(facts_of(one), one)}  # type: ignore
    assert rows["volume"]["text"] == (
        "The image is an axial slice of a computed tomography scan, number 7 counted from 0; a pixel is 3 mm high and "
        "1.5 mm wide; grey levels run from -140 to 260 HU."
    )
    assert "image:window" in rows["volume"]["evidence"]
    assert rows["panel"]["text"] == "This is a panel of a figure, described there as follows: “CT of the liver”"
    assert rows["panel"]["evidence"] == ["text:t"]


def test_panels_are_called_so() -> None:
    said = told(sample([roi("a", "A", [0, 0, 9, 9], "panel", "box"), roi("b", "B", [0, 50, 9, 60], "panel", "box")]))
    assert said["region"][0] == "The source marks panel A and panel B."
    spoken = region_text(facts_of(sample([roi("a", "A", [0, 0, 9, 9], "panel", "box")])).regions[0])
    assert spoken and spoken.text == "Panel A lies in the upper left of the image."


@pytest.mark.parametrize(("label", "many"), [
    ("lungs", True), ("vertebrae", True), ("portal vein and splenic vein", True), ("kidneys", True),
    ("pancreas", False),
    ("mass", False), ("uterus", False), ("ascites", False), ("pelvis", False), ("WBC", False), ("liver", False),
    ("opacities", True), ("vertebrae L1", False),
])
def test_verbs_agree_with_labels(label: str, many: bool) -> None:
    assert does(label, "one", "many") == ("many" if many else "one")


def test_articles_numbers_and_stops() -> None:
    assert (the("liver"), the("vertebrae L1"), the("left rib 8")) == ("the liver", "vertebrae L1", "left rib 8")
    assert (counted(1, "x"), counted(13, "x")) == ("one region labelled x", "13 regions labelled x")
    assert (sentence("it is"), sentence("It is.")) == ("It is.", "It is.")
