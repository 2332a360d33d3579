"""Facts: what is known of a sample, grouped and related by the published rules, and the words for it."""

import json

import numpy as np
import pytest

from transforms.decoded import Region
from transforms.facts import as_json, evidence, facts_of, percent
from transforms.regions import roi_row
from transforms.stage import SampleRows
from transforms.vocabulary import article, listed, modality, named_modalities, phrase, table

SIZE = (100, 100)


def roi(label, y, x, role="organ", trust="boundary", origin="given"):
    mask = np.zeros(SIZE, bool)
    mask[slice(*y), slice(*x)] = True
    return roi_row("s", Region(label, role, mask=mask), SIZE, expert="source", origin=origin, trust=trust)


def sample(rois=(), labels=(), passages=(), texts=(), **image):
    image = {"sample_id": "s", "width": 100, "height": 100, "modality": None, **image}
    return SampleRows(image, {"rois": rois, "labels": labels, "measures": [], "passages": passages, "texts": texts})


def test_nothing_known_is_an_empty_record():
    facts = facts_of(sample())
    assert (facts.modality_name, facts.anatomy, facts.regions, facts.relations) == (None, None, (), ())
    assert as_json(facts) == {}


def test_words_come_from_the_vocabulary_and_shouting_stops():
    facts = facts_of(sample(modality="CT", anatomy="HEAD_NECK", view="axial"))
    assert (facts.modality_name, facts.modality_image) == ("computed tomography", "CT image")
    assert facts.anatomy == "head neck"
    assert facts_of(sample(modality="new thing")).modality_image == "new thing image"


def test_many_instances_become_one_group_and_keep_all_ids():
    cells = [roi("cell", (10 * n, 10 * n + 5), (0, 5), "cell") for n in range(7)]
    facts = facts_of(sample([*cells, roi("nucleolus", (50, 60), (50, 60))]), group_above=5)
    (group,) = facts.groups
    assert group.count == 7 and set(group.ids) == {c["roi_id"] for c in cells}
    assert group.area_fraction == pytest.approx(7 * 25 / 10_000)
    assert [r.label for r in facts.single] == ["nucleolus"]
    assert evidence(facts, ["group:0", "image:view", "group:9"]) == [
        *(f"roi:{c['roi_id']}" for c in cells), "image:view", "group:9"
    ]


def test_relations_are_told_of_the_largest_without_the_body():
    rois = [
        roi("imaged body", (0, 100), (0, 100), "body"), roi("liver", (10, 60), (10, 50)),
        roi("cyst", (20, 30), (20, 30), "lesion"), roi("spleen", (20, 40), (70, 90)), roi("dot", (90, 92), (90, 92)),
    ]
    facts = facts_of(sample(rois), relations_among=3)
    told = [(facts.region(r.a).label, r.words, facts.region(r.b).label) for r in facts.relations]
    assert told == [("spleen", "right of", "liver"), ("cyst", "inside", "liver"), ("cyst", "left of", "spleen")]
    assert facts_of(sample(rois), relations_among=0).relations == ()


def test_an_outline_that_is_not_believed_encloses_nothing():
    rois = [roi("liver", (10, 60), (10, 50), trust="box"), roi("cyst", (20, 30), (20, 30), "lesion")]
    assert facts_of(sample(rois)).relations == ()
    assert facts_of(sample(rois)).regions[0].percent is None


def test_sides_follow_the_orientation_and_the_body():
    rois = [roi("imaged body", (0, 100), (40, 100), "body"), roi("kidney", (40, 60), (50, 60))]
    assert [r.side for r in facts_of(sample(rois, orientation="LP")).regions] == [None, "right"]
    assert [r.side for r in facts_of(sample(rois, orientation="RP")).regions] == [None, "left"]
    assert facts_of(sample(rois)).regions[1].side is None


def test_the_json_is_allow_listed_and_the_same_twice():
    label = {"label_id": "l", "name": "effusion", "value": "present", "origin": "csv:x", "ontology_id": "HP:1"}
    passage = {"passage_id": "p", "corpus": "c", "text": "Fluid.", "score": 0.5, "licence": None, "rank": 1}
    texts = [
        {"text_id": "t", "kind": "report", "text": "Small effusion.", "generator": "source"},
        {"text_id": "u", "kind": "global", "text": "made", "generator": "template@1"},
    ]
    facts = facts_of(sample([roi("lung", (0, 50), (0, 20))], [label], [passage], texts, modality="CR", source="secret"))
    told = as_json(facts)
    assert set(told) == {"image", "labels", "regions", "source_texts", "passages"}
    assert told["labels"] == [{"id": "label:l", "name": "effusion", "value": "present"}]
    assert told["source_texts"] == [{"id": "text:t", "kind": "report", "text": "Small effusion."}]
    assert "secret" not in json.dumps(told) and "made" not in json.dumps(told)
    assert json.dumps(told) == json.dumps(as_json(facts))


@pytest.mark.parametrize(
    ("fraction", "words"),
    [(0.0004, "under 0.1%"), (0.001, "0.1%"), (0.0412, "4.1%"), (0.0994, "9.9%"), (0.12, "12%"), (0.998, "99.8%"),
     (1.0, "100%")],
)
def test_percents(fraction, words):
    assert percent(fraction) == words


@pytest.mark.parametrize(
    ("noun", "said"),
    [("MR image", "an MR image"), ("CT image", "a CT image"), ("x-ray", "an x-ray"), ("ultrasound image",
     "an ultrasound image"), ("uterus", "a uterus"), ("PET image", "a PET image"), ("urinary bladder",
     "a urinary bladder"), ("PA radiograph", "a PA radiograph"), ("AP radiograph", "an AP radiograph"),
     ("unusual mass", "an unusual mass"), ("axial CT image", "an axial CT image"), ("RBC", "an RBC")],
)
def test_articles(noun, said):
    assert article(noun) == said


def test_phrases_and_lists():
    assert phrase("kidney_left") == "left kidney"
    assert phrase("rib_right_4") == "right rib 4"
    assert phrase("0_normal") == "normal"
    assert phrase("left") == "left"
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_modality_words_are_whole_words():
    assert named_modalities("The effect is a fact; he sat upon the pet.") == {}
    assert list(named_modalities("CT, (MRI) and X-rays")) == ["CT", "MRI", "X-ray"]
    assert named_modalities("PET/CT")["PET/CT"] == {"CT", "PT"}
    assert modality(None) is None
    for entry in table().values():
        assert entry.code in {code for codes in named_modalities(entry.image).values() for code in codes}, entry.code
