"""Reports with their images: OpenI XML, tables, and text files beside images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from imagefolders import codes, items, partitions, put, sample, write
from pydantic import ValidationError

from catalog.items import Label, Licences
from connectors import reports
from connectors.reports import Params, sections
from infra.errors import ConfigError

REPORT = """FINAL REPORT
EXAMINATION: CHEST (PA AND LAT)

INDICATION: Cough, r/o pneumonia. COMPARISON: None.

FINDINGS:
The lungs are clear. No findings: of note.

IMPRESSION: Normal chest.
"""
OPENI = """<?xml version="1.0"?><eCitation><uId id="CXR7"/>
<licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>
<MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON"/><AbstractText Label="INDICATION">XXXX-year-old &amp; cough</AbstractText>
<AbstractText Label="FINDINGS">Clear  lungs.</AbstractText><AbstractText Label="IMPRESSION">Normal.</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH><major>Calcinosis/bilateral</major><automatic>granuloma</automatic></MeSH>
<parentImage id="CXR7_IM-1-1001"><caption>Chest PA</caption>
<panel><url>/x/CXR7_IM-1-1001.jpg</url></panel></parentImage>
<parentImage id="CXR7_IM-1-2001"><panel><url>/x/CXR7_IM-1-2001.jpg</url></panel></parentImage>
</eCitation>"""


def test_sections_are_cut_out_and_never_rewritten() -> None:
    found = [(text.kind, text.text) for text in sections(REPORT)]
    assert found == [
        ("technique", "CHEST (PA AND LAT)"), ("indication", "Cough, r/o pneumonia."), ("comparison", "None."),
        ("findings", "The lungs are clear. No findings: of note."), ("impression", "Normal chest."),
    ]
    assert all(text in REPORT for _, text in found)
    assert sections("No headings here, the impression: is fine.") == []
    assert [t.kind for t in sections("findings: a\nWET READ: b\nConclusion: c")] == ["findings", "impression"]


def test_openi_states_sections_terms_and_licence_for_each_image(tmp_path: Path) -> None:
    write(tmp_path / "ecgen" / "7.xml", OPENI)
    write(tmp_path / "ecgen" / "8.xml", OPENI.split("<parentImage")[0].replace("CXR7", "CXR8") + "</eCitation>")
    write(tmp_path / "ecgen" / "9.xml", OPENI[:200])
    put(tmp_path / "png" / "CXR7_IM-1-1001.png", 1)
    put(tmp_path / "png" / "CXR99.png", 2)
    found = items(Params(root=str(tmp_path), layout="openi", modality="DX"), reports)
    assert codes(found) == {
        "png/CXR7_IM-1-1001.png": None, "png/CXR99.png": "NO_METADATA_ROW",
        "ecgen/7.xml#CXR7_IM-1-2001": "FILE_MISSING",
        "ecgen/8.xml": "NO_IMAGE", "ecgen/9.xml": "ANNOTATION_UNREADABLE",
    }
    made = sample(found["png/CXR7_IM-1-1001.png"])
    assert [(t.kind, t.text) for t in made.texts] == [
        ("indication", "XXXX-year-old & cough"), ("findings", "Clear  lungs."), ("impression", "Normal."),
        ("original_caption", "Chest PA"),
    ]
    assert made.labels == (
        Label("Calcinosis/bilateral", origin="openi:MeSH"), Label("granuloma", origin="openi:automatic")
    )
    assert made.licences == Licences(
        image="CC-BY-NC-ND-4.0", text="CC-BY-NC-ND-4.0", evidence="openi:licenseURL"
    )
    alone = items(Params(root=str(tmp_path), layout="openi", images=False), reports)
    assert codes(alone)["ecgen/7.xml"] == "NO_IMAGE"


def test_text_files_go_with_the_image_or_the_folder_of_their_name(tmp_path: Path) -> None:
    write(tmp_path / "p10" / "s1.txt", REPORT)
    put(tmp_path / "p10" / "s1" / "a.jpg", 1)
    put(tmp_path / "p10" / "s1" / "b.jpg", 2)
    write(tmp_path / "p10" / "s2.txt", "Normal.")
    put(tmp_path / "p10" / "s2.png", 3)
    write(tmp_path / "p10" / "s3.txt", "no image")
    (tmp_path / "p10" / "s4.txt").write_bytes(b"\xff\xfe\xff")
    put(tmp_path / "p10" / "s4.png", 4)
    found = items(Params(root=str(tmp_path), layout="stem", patient_pattern=r"^(p\d+)/"), reports)
    assert codes(found) == {
        "p10/s1/a.jpg": None, "p10/s1/b.jpg": None, "p10/s2.png": None, "p10/s3.txt": "NO_IMAGE",
        "p10/s4.png": "ANNOTATION_UNREADABLE",
    }
    a, b, c = (sample(found[name]) for name in ("p10/s1/a.jpg", "p10/s1/b.jpg", "p10/s2.png"))
    assert a.texts == b.texts and [t.kind for t in a.texts][:2] == ["report", "technique"]
    assert a.texts[0].text == REPORT.strip() and [t.kind for t in c.texts] == ["report"]
    assert a.group == b.group == c.group
    studies = items(Params(root=str(tmp_path), layout="stem"), reports)
    groups = {name: sample(studies[name]).group for name in ("p10/s1/a.jpg", "p10/s1/b.jpg", "p10/s2.png")}
    assert groups["p10/s1/a.jpg"] == groups["p10/s1/b.jpg"] != groups["p10/s2.png"]


def test_a_table_of_reports(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 1)
    write(tmp_path / "t.csv", 'image,text,caption\na.png,"FINDINGS: x\nIMPRESSION: y",A chest.\ngone.png,z,\n')
    params = Params(
        root=str(tmp_path), layout="table", table="t.csv", report_columns=("text",),
        text_columns={"caption": "original_caption"}, language="de",
    )
    found = items(params, reports)
    assert codes(found) == {"a.png": None, "gone.png": "FILE_MISSING"}
    assert [(t.kind, t.text) for t in sample(found["a.png"]).texts] == [
        ("original_caption", "A chest."), ("report", "FINDINGS: x\nIMPRESSION: y"), ("findings", "x"),
        ("impression", "y"),
    ]
    with pytest.raises(ValidationError, match="needs table"):
        Params(root=".", layout="table")
    with pytest.raises(ConfigError, match="the column 'nothing'"):
        partitions(params.model_copy(update={"report_columns": ("nothing",)}), reports)


def test_the_real_reports_are_all_counted(sample_data: Path) -> None:
    root = str(sample_data / "reports" / "openi_iu_xray")
    whole = items(Params(root=root, layout="openi"), reports)
    assert Counter(codes(whole).values()) == {"FILE_MISSING": 302, "NO_IMAGE": 3}
    assert len({id.partition("#")[0] for id in whole}) == 160
    assert Counter(codes(items(Params(root=root, layout="openi", images=False), reports)).values()) == {"NO_IMAGE": 160}
