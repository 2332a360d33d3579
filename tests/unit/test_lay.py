"""Lay words and other languages: only what the tables say, with every key term kept."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from test_five_parts import roi, sample

from transforms.captioners.languages import FILE, translated
from transforms.captioners.lay import FILE as LAY
from transforms.captioners.lay import lay_text, plain_name
from transforms.captioners.translation import kept, lost
from transforms.facts import facts_of
from transforms.regions import position
from transforms.terms.lookup import bundled
from transforms.vocabulary import table


def label(name: str, value: str = "present") -> Any:
    return {"label_id": name, "name": name, "value": value, "origin": "csv:x"}


TERMS = {terms[0].name for terms in bundled().values() if len(terms) == 1}


def test_the_tables_speak_of_terms_that_there_are() -> None:
    lay = yaml.safe_load(LAY.read_text(encoding="utf-8"))
    assert set(lay["anatomy"]) | set(lay["findings"]) <= TERMS and set(lay["modalities"]) <= set(table())
    places = {position(x, y, 90, 90) for x in (10, 45, 80) for y in (10, 45, 80)}
    languages = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    for words in languages.values():
        assert set(words["terms"]) <= TERMS and set(words["modalities"]) <= set(table())
        assert set(words["positions"]) == places and set(words["fields"]) == set(languages["de"]["fields"])
        assert all(isinstance(word, str) for word in words["terms"].values())


def test_lay_words_keep_the_term_in_brackets() -> None:
    assert plain_name("pulmonary_nodule".replace("_", " ")) == "a small spot in the lung (pulmonary nodule)"
    assert plain_name("liver") is None and plain_name("mystery") is None and plain_name("small bowel") is None
    one = sample([roi("a", "colon", [0, 0, 9, 9])], labels=[label("pleural effusion"), label("pneumothorax", "absent")],
                 modality="CT", anatomy="abdomen")
    said = lay_text(facts_of(one))
    assert said and said.text == (
        "This is a picture made with X-rays from all around the body (CT image). It shows the belly (abdomen). In the "
        "picture these are marked: the large bowel (colon). The source says that it shows fluid around the lung "
        "(pleural effusion). The source says that it lacks air around the lung (pneumothorax)."
    )
    assert {"image:modality", "roi:a", "label:pneumothorax"} <= set(said.evidence)
    assert lay_text(facts_of(sample([roi("a", "liver", [0, 0, 9, 9])]))) is None, "nothing there to make plainer"


@pytest.mark.parametrize(("language", "words"), [
    ("de", "Bildart: CT-Bild. Ebene oder Ansicht: axial. Körperregion: Bauch. Markiert: Niere (links) (left kidney); "
           "Lage im Bild: oben links; Anteil am Bild: 0,9 %. Markiert: “mystery” (mystery); Lage im Bild: oben links."),
    ("fr", "Type d'image : image de scanner. Plan ou incidence : axial. Région anatomique : abdomen. "
           "Structures marquées : rein (côté gauche) (left kidney); "
           "Position dans l'image : en haut à gauche; Part de l'image : 0,9 %. "
           "Structures marquées : “mystery” (mystery); Position dans l'image : en haut à gauche."),
])
def test_another_language_is_put_together_from_its_table(language: str, words: str) -> None:
    rois = [roi("a", "kidney_left", [0, 0, 9, 9], area=0.009), roi("b", "mystery", [0, 0, 9, 9], "lesion", "box")]
    said = translated(facts_of(sample(rois, modality="CT", view="Axial", anatomy="abdomen")), {}, language)
    assert said and said.text == words and "roi:b" in said.evidence
    assert translated(facts_of(sample()), {}, language) is None


def test_a_translation_that_loses_a_term_or_a_number_is_found() -> None:
    english = "The left kidney covers 9.0% of the image."
    assert kept("Die linken Nieren sind groß.", "linke Niere") and not kept("Die Leber", "Niere")
    assert lost(english, "Die linke Niere bedeckt 9,0 % des Bildes.", {"left kidney": "linke Niere"}) is None
    assert "lacks" in str(lost(english, "Das Organ bedeckt 9,0 %.", {"left kidney": "linke Niere"}))
    assert "numbers" in str(lost(english, "Die linke Niere bedeckt 8 %.", {"left kidney": "linke Niere"}))
    assert lost(english, "Es sind 9,0 %.", {"spleen": "Milz"}) is None, "a term that the text does not name"
