"""Sentences of reports, tied to regions by whole words and sides, kept letter by letter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transforms.caption import licence_of
from transforms.captioners.report_sentences import Params, open_captioner
from transforms.facts import facts_of
from transforms.stage import Context, SampleRows

REGIONS = {"L": ("left lung", 60, 95), "R": ("right lung", 5, 40), "H": ("heart", 40, 60),
           "A": ("pulmonary artery", 45, 55), "V": ("heart_ventricle_left", 50, 60)}


def roi(id: str, label: str, x0: int, x1: int) -> dict[str, Any]:
    return {"roi_id": id, "label": label, "role": "organ", "box": [x0, 10, x1, 90], "position": "center",
            "area_fraction": 0.2, "trust": "boundary", "origin": "predicted", "expert": "e", "mask": None}


def sample(texts: dict[str, str], regions: str = "LRHAV") -> SampleRows:
    rows = [{"text_id": kind, "kind": kind, "text": text, "generator": "source", "language": "en", "licence": "CC0-1.0"}
            for kind, text in texts.items()]
    image = {"sample_id": "s", "width": 100, "height": 100, "orientation": "LF", "licence_image": "CC-BY-4.0"}
    return SampleRows(image, {
        "rois": [roi(id, *REGIONS[id]) for id in regions], "labels": [], "measures": [], "passages": [], "texts": rows})


def tied(one: SampleRows, **options: Any) -> list[dict[str, Any]]:
    return open_captioner(Params(**options), Context(Path()))(facts_of(one), one)


@pytest.mark.parametrize(("words", "regions"), [
    ("The lungs are clear.", "LR"), ("No focal opacity in the left lung.", "L"), ("Right lower lobe atelectasis.", "R"),
    ("Bilateral lower lobe opacities.", "LR"), ("Left lung and right lung are clear.", "LR"),
    ("Heart size is normal.", "H"), ("The CARDIOMEDIASTINAL silhouette is stable.", "H"),
    ("The pulmonary artery is enlarged.", "A"), ("The left ventricle is dilated.", "V"),
    ("The right ventricle is dilated.", ""), ("No pneumothorax.", ""), ("The clinging vine.", ""),
])
def test_a_sentence_is_tied_to_what_it_names(words: str, regions: str) -> None:
    rows = tied(sample({"findings": f"Old. {words} End."}))
    assert ["".join(row["roi_ids"]) for row in rows] == ([regions] if regions else [])


def test_sentences_stand_letter_by_letter_with_their_place_and_licence() -> None:
    text = "No focal  infiltrate in the left lung.\nHeart size, normal!"
    one = sample({"findings": text, "report": "The lungs."})
    rows = tied(one)
    assert [row["text"] for row in rows] == ["No focal  infiltrate in the left lung.", "Heart size, normal!"]
    for row in rows:
        start, end = map(int, row["evidence"][0].removeprefix("text:findings@").split(":"))
        assert text[start:end] == row["text"] and row["kind"] == "report_sentence" and row["language"] == "en"
    assert licence_of(rows[0]["evidence"][:1], one) == "CC0-1.0"
    assert licence_of(rows[0]["evidence"], one) == "CC-BY-4.0"


def test_the_whole_report_is_taken_where_it_has_no_sections() -> None:
    one = sample({"report": "The lungs are clear."})
    assert [row["evidence"][0] for row in tied(one)] == ["text:report@0:20"]
    assert tied(one, otherwise=None) == []


def test_real_reports_lose_no_letter(sample_data: Path) -> None:
    from lxml import etree

    files = sorted((sample_data / "reports" / "openi_iu_xray" / "ecgen-radiology").glob("*.xml"))[:30]
    found = 0
    for file in files:
        texts = {e.get("Label", "").lower(): e.text for e in etree.parse(str(file)).iter("AbstractText") if e.text}
        for row in tied(sample(texts, "LRH")):
            kind, _, place = row["evidence"][0].removeprefix("text:").partition("@")
            start, end = map(int, place.split(":"))
            assert texts[kind][start:end] == row["text"]
            found += 1
    assert found > 40
