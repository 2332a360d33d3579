"""The verify stage: a planted fault fails its check and no other; what the template writes passes all of them."""

from pathlib import Path

import pytest
from test_template import captions, label, passage, roi, tables

from catalog.schema import LAYERS
from transforms import verify
from transforms.stage import Context, fingerprint

CONTEXT = Context(Path("."))
LIVER = roi("liver", (10, 40), (10, 40))
SPLEEN = roi("spleen", (30, 50), (70, 95))


def known(**image):
    image = {"modality": "CT", "anatomy": "abdomen", "orientation": "LP", **image}
    return tables([LIVER, SPLEEN], [label("stage", "T2")], [passage("Up to 17% on MRI.")], **image)


def judged(given, *texts) -> dict[str, tuple[str, float | None]]:
    stage = verify.make_stage(verify.Params(), CONTEXT)
    outcome = stage({**given, "texts": LAYERS["texts"].table(texts)}, None)
    assert list(outcome.kept) == ["s"] and not outcome.rejects
    return {check["check"]: (check["verdict"], check["value"]) for check in outcome.tables["checks"].to_pylist()}


def outcome_texts(given) -> list[dict]:
    return captions(given)


def text(words, kind="global", evidence=("image:modality",), rois=(), generator="llm@1"):
    return {"sample_id": "s", "text_id": "t", "roi_ids": list(rois), "kind": kind, "language": "en", "text": words,
            "evidence": list(evidence), "generator": generator}


def failed(given, *args, **kwargs) -> set[str]:
    """The checks of the whole text that failed."""
    checks = judged(given, text(*args, **kwargs)).items()
    return {check for check, (verdict, _) in checks if verdict == "fail" and "/" not in check and check != "support"}


def test_what_the_template_says_passes():
    given = known()
    stage = verify.make_stage(verify.Params(), CONTEXT)
    outcome = stage({**given, "texts": LAYERS["texts"].table(captions(given))}, None)
    checks = outcome.tables["checks"].to_pylist()
    assert {check["verdict"] for check in checks} == {"pass"}
    support = [check["value"] for check in checks if check["check"] == "support"]
    assert len(support) == len(outcome_texts(given)) and set(support) == {1.0}


def test_a_source_text_is_not_judged():
    assert judged(known(), text("The caption states MRI.", generator="source")) == {}


def test_evidence_must_exist():
    words = "A CT image."
    assert judged(known(), text(words))["evidence"] == ("pass", 1.0)
    assert judged(known(), text(words, evidence=["image:modality", "label:no"]))["evidence"] == ("fail", 0.5)
    assert judged(known(), text(words, evidence=["image:view"]))["evidence"] == ("fail", 0.0)
    assert judged(known(), text(words, evidence=["text:t"]))["evidence"] == ("fail", 0.0)
    assert judged(known(), text(words, rois=["gone"]))["evidence"] == ("fail", 0.5)
    assert judged(known(), text(words, evidence=[]))["evidence"] == ("unknown", None)


@pytest.mark.parametrize(
    ("words", "modality", "verdict"),
    [
        ("A CT scan.", "CT", "pass"), ("A computed tomography image.", "CT", "pass"), ("An MRI.", "CT", "fail"),
        ("A chest x-ray.", "DX", "pass"), ("A chest radiograph.", "CR", "pass"), ("A CT scan.", "DX", "fail"),
        ("In fact, an image.", "CT", "pass"), ("A CT scan.", None, "unknown"), ("A CT angiography.", "CT", "pass"),
        ("An OCT scan.", "OP", "fail"), ("A CT scan.", "something new", "unknown"),
    ],
)
def test_modality(words, modality, verdict):
    assert judged(known(modality=modality), text(words, evidence=[]))["modality"][0] == verdict


@pytest.mark.parametrize(
    ("words", "rois", "verdict"),
    [
        ("Liver on the right.", [LIVER], "pass"), ("Liver on the left.", [LIVER], "fail"),
        ("Left-sided mass.", [LIVER], "fail"), ("Liver in the upper left of the image.", [LIVER], "pass"),
        ("Liver on the right side of the image.", [LIVER], "fail"), ("Liver.", [LIVER], "pass"),
        ("A mass on the left.", [], "pass"),
    ],
)
def test_laterality(words, rois, verdict):
    made = text(words, "region" if rois else "global", rois=[r["roi_id"] for r in rois])
    assert judged(known(), made)["laterality"][0] == verdict


def test_laterality_without_orientation_is_unknown_and_names_are_not_statements():
    made = text("Liver on the left.", "region", rois=[LIVER["roi_id"]])
    assert judged(known(orientation=None), made)["laterality"][0] == "unknown"
    ventricle = roi("left ventricle", (40, 60), (10, 20))
    named = text("Left ventricle toward the patient's right.", "region", rois=[ventricle["roi_id"]])
    assert judged(tables([ventricle], orientation="LP"), named)["laterality"][0] == "pass"


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ("Spleen to the patient's left of liver.", "pass"), ("Spleen to the right of liver.", "fail"),
        ("Spleen right of liver in the image.", "pass"), ("Spleen left of liver in the image.", "fail"),
    ],
)
def test_laterality_of_pairs(words, verdict):
    made = text(words, "relation", rois=[SPLEEN["roi_id"], LIVER["roi_id"]])
    assert judged(known(), made)["laterality"][0] == verdict


@pytest.mark.parametrize(
    ("words", "share"),
    [
        ("Liver covering 9.0% of the image.", 1), ("About 9% of it.", 1), ("About 8 percent of it.", 0),
        ("2 regions, 5 lesions.", 0.5), ("Stage T2, level L5.", 1), ("Nothing counted.", 1), ("17% of it.", 0),
        ("A slice of 100 by 100 pixels.", 1), ("Some 1,024 of them.", 0),
    ],
)
def test_numbers(words, share):
    verdict, value = judged(known(), text(words))["numbers"]
    assert (verdict, value) == ("pass" if share == 1 else "fail", share)


def test_numbers_of_a_passage_count_where_it_is_cited():
    assert "numbers" not in failed(known(), "Up to 17%.", evidence=["passage:p"])


def test_extent_of_a_box_is_no_known_number():
    given = tables([roi("nodule", (10, 40), (10, 40), "lesion", "box")])
    assert "numbers" in failed(given, "Nodule covering 9.0% of the image.")


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("<ref>liver</ref><box>[[100, 100, 400, 400]]</box>", set()), ("[10, 10, 40, 40]", set()),
        ("<ref>liver</ref><box>[[100, 100, 400, 401]]</box>", {"numbers", "support"}),
        ("<ref>spleen</ref><box>[[100, 100, 400, 400]]</box>", {"support"}),
    ],
)
def test_an_answer_in_boxes_holds_where_they_are_those_of_its_regions(words, wrong):
    given = known()
    checks = judged(given, text(words, "answer", rois=[LIVER["roi_id"]], generator="questions@1/text_to_region/open"))
    assert {name for name, (verdict, _) in checks.items() if verdict == "fail" and "/" not in name} == wrong


@pytest.mark.parametrize(
    "words", ["The caption states a mass.", "Based  on the provided facts, a mass.", "I’m sorry, I see nothing."]
)
def test_leak_phrases(words):
    assert failed(known(), words) == {"leak_phrase"}


def test_knowledge_and_questions_are_judged_for_evidence_and_leaks_only():
    for kind in ("knowledge", "question"):
        checks = judged(known(), text("Is it MRI, on the left, 44?", kind))
        assert {name for name in checks if "/" not in name} == {"support", "evidence", "leak_phrase"}


def test_the_word_lists_are_part_of_the_key(tmp_path, monkeypatch):
    before = fingerprint(verify.make_stage(verify.Params(), CONTEXT))
    other = tmp_path / "leak_phrases.yaml"
    other.write_text(verify.LEAK_PHRASES.read_text() + "- as requested\n")
    monkeypatch.setattr(verify, "LEAK_PHRASES", other)
    assert fingerprint(verify.make_stage(verify.Params(), CONTEXT)) != before
