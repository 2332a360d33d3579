"""Facts: what is known of a sample, grouped and related by the published rules, and the words for it."""

import json

import numpy as np
import pytest

from transforms.decoded import Region
from transforms.facts import as_json, evidence, extent, facts_of, percent
from transforms.regions import roi_row
from transforms.stage import SampleRows
from transforms.vocabulary import article, listed, modality, named_modalities, phrase, table

SIZE = (100, 100)


def roi(label, y, x, role="organ", trust="boundary", origin="given"):
    mask = np.zeros(SIZE, bool)
    mask[slice(*y), slice(*x)] = True
    return roi_row("s", Region(label, role, mask=mask), SIZE, expert="source", origin=origin, trust=trust)


def sample(rois=(), labels=(), passages=(), texts=(), measures=(), **image):
    image = {"sample_id": "s", "width": 100, "height": 100, "modality": None, **image}
    rows = {"rois": rois, "labels": labels, "measures": measures, "passages": passages, "texts": texts}
    return SampleRows(image, rows)


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


def measure(name, roi, other=None, value=1.0, unit=None, words=None):
    return {"measure_id": f"{name}-{roi['roi_id']}", "roi_id": roi["roi_id"], "name": name, "value": value,
            "other_roi_id": None if other is None else other["roi_id"], "unit": unit, "words": words}


def test_what_was_measured_is_said_with_its_evidence():
    liver, cyst = roi("liver", (10, 60), (10, 50)), roi("cyst", (20, 30), (20, 30), "lesion")
    rows = [
        measure("long_axis_mm", cyst, value=12.0, unit="mm", words="about 12 by 10 mm"),
        measure("contrast", cyst, value=-30, unit="grey", words="darker than its surroundings"),
        measure("median_at_most", cyst, value=-139, unit="HU", words="a median of at most -139 HU"),
        measure("texture", cyst, value=20, unit="grey"), measure("area", cyst, value=100, unit="px"),
        measure("distance_mm", cyst, liver, 0, "mm"), measure("common", cyst, liver, 100, "%"),
    ]
    facts = facts_of(sample([liver, cyst], measures=rows))
    fact = facts.region(cyst["roi_id"])
    assert (fact.size, fact.brightness, fact.texture) == ("about 12 by 10 mm", "darker than its surroundings", None)
    assert fact.intensity == "a median of at most -139 HU"
    assert fact.measure("contrast").evidence == f"measure:contrast-{cyst['roi_id']}"
    assert (fact.extent, fact.percent) == ("a part of the image", "1.0%")
    assert {m.name for m in facts.measures} == {row["name"] for row in rows}
    told = next(region for region in as_json(facts)["regions"] if region["label"] == "cyst")
    assert [m["name"] for m in told["measured"]] == ["long_axis", "median_at_most", "contrast"]
    assert told["measured"][0] == {
        "id": f"measure:long_axis_mm-{cyst['roi_id']}", "name": "long_axis", "says": "about 12 by 10 mm",
    }
    assert "measured" not in next(region for region in as_json(facts)["regions"] if region["label"] == "liver")
    assert evidence(facts, ["measure:m"]) == ["measure:m"]


def test_pairs_touch_only_where_that_was_measured():
    ring = np.zeros(SIZE, bool)
    ring[10:60, 10:60] = True
    ring[20:50, 20:50] = False
    around = roi_row("s", Region("ring", "organ", mask=ring), SIZE, expert="source", origin="given", trust="boundary")
    core = roi("core", (20, 50), (20, 50))
    assert facts_of(sample([around, core])).relations == ()
    rows = [measure("distance", core, around, 0.0, "px", "touching")]
    (fact,) = facts_of(sample([around, core], measures=rows)).relations
    assert (fact.words, fact.distance, fact.touching) == ("touching", "touching", True)
    apart = [measure("distance", core, around, 3.0, "px", "about 3 pixels apart")]
    assert facts_of(sample([around, core], measures=apart)).relations == ()


def test_measured_pairs_beyond_the_relations_are_neighbours():
    rois = [roi("liver", (10, 60), (10, 50)), roi("spleen", (20, 40), (70, 90)), roi("dot", (90, 92), (94, 96))]
    rows = [measure("distance", rois[2], rois[1], 50.2, "px", "about 50 pixels apart")]
    facts = facts_of(sample(rois, measures=rows), relations_among=2)
    assert [r.words for r in facts.relations] == ["right of"]
    (fact,) = facts.neighbours
    assert (fact.a, fact.words, fact.distance) == (rois[2]["roi_id"], "below", "about 50 pixels apart")


def test_a_group_says_what_is_true_of_all():
    cells = [roi("cell", (10 * n, 10 * n + 5), (0, 5), "cell") for n in range(7)]
    dark = [measure("contrast", c, words="darker than its surroundings") for c in cells]
    (group,) = facts_of(sample(cells, measures=dark)).groups
    assert (group.brightness, group.texture) == ("darker than its surroundings", None)
    (group,) = facts_of(sample(cells, measures=dark[1:])).groups
    assert group.brightness is None


@pytest.mark.parametrize(
    ("fraction", "words"),
    [(0.0009, "a tiny part"), (0.001, "a small part"), (0.01, "a part"), (0.1, "a large part"), (0.5, "most")],
)
def test_extents(fraction, words):
    assert extent(fraction) == f"{words} of the image"
