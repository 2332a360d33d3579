"""Bugs that other people's literature pipelines had, each a test of ours; where one is tested elsewhere, it is named.

    case                                    whose bug                     tested in
    join by key, not by place               BIOMEDICA 05                  here
    href with suffix, in a subfolder        BIOMEDICA 04                  here, test_pmc
    alternatives, caption further up        BIOMEDICA 04                  here, test_jats
    "CT," is a keyword, "fact" is not       Open-PMC                      test_pmc_bucket
    unknown licence, contradicting ones     BIOMEDICA: file list only     here, test_jats_licences
    the strictest licence of a text         nobody computes it            test_template
    retracted, withdrawn or replaced        all: nothing is followed      here, test_jats, test_pmc_bucket
    killed in the middle                    BIOMEDICA's CSV logs          faults/test_kill, test_pmc_bucket
    long captions                           CLIP encoders cut at 77       here
    names outside the archive, links        BIOMEDICA: tar.extractall     here, test_archives
    bombs                                   all: no limits                here, test_archives
    truncated archives                      img2dataset: half is kept     test_archives
    wrong checksums                         all: nothing is checked       test_pmc_bucket
    external entities, billion laughs       lxml as it comes              test_jats
    entities that only the DTD explains     pubmed_parser: article lost   here, test_jats
    figures of every form                   pubmed_parser                 here, test_jats, benchmarks/jats_extraction
    image bombs, damaged pictures           Pillow only warns             test_imagefile
    a GIF called .jpg, HTML called .jpg     BIOMEDICA: JPG only           here, test_imagefile, test_pmc
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.jats_extraction import Score, by_medloom, by_pubmed_parser, make_articles
from jatsfiles import picture, tarball, write, xml, zipped

from connectors.archives import is_archive, members
from connectors.pmc import Params, list_partitions
from connectors.pmc.jats import parse_article
from infra.fileindex import FileIndex
from transforms.decoded import IngestParams
from transforms.ingest import Ingest, SourceTerms

LAYERS = ("images", "articles", "texts")


def built(root: Path, home: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows that ingest makes of a folder, and its rejects as (item, code)."""
    params = Params(root=str(root))
    work = Ingest("pmc", "pmc", params, IngestParams(), SourceTerms(identifiers="public"))
    rows: dict[str, list[Any]] = {layer: [] for layer in (*LAYERS, "rejects")}
    for partition in list_partitions("pmc", params, FileIndex(None)):
        for outcome in work.outcomes(partition, home):
            for layer in LAYERS:
                if layer in outcome.tables:
                    rows[layer] += outcome.tables[layer].to_pylist()
            rows["rejects"] += [(reject.item, reject.error.code) for reject in outcome.rejects]
    return rows


def whole(pmcid: int) -> dict[str, bytes]:
    """An article that says its own number everywhere."""
    text = xml("g", pmcid=str(pmcid)).replace(b"Caption 1", b"Caption of %d" % pmcid)
    return {f"PMC{pmcid}/a.xml": text, f"PMC{pmcid}/g.jpg": picture(grey=pmcid)}


@pytest.mark.parametrize("gone", [{"a.xml", "g.jpg"}, {"a.xml"}, {"g.jpg"}])
def test_metadata_is_joined_by_key_and_a_gap_shifts_nothing(tmp_path: Path, gone: set[str]) -> None:
    """BIOMEDICA joined by position: one missing PMID gave every later article its neighbour's metadata."""
    for number in range(1, 7):
        write(tmp_path / "root", {name: data for name, data in whole(number).items() if number != 3 or
                                  name.rpartition("/")[2] not in gone})
    rows = built(tmp_path / "root", tmp_path)
    captions = {row["sample_id"]: row["text"] for row in rows["texts"]}
    pairs = [(row["article_id"], captions[row["sample_id"]], row["source_item"]) for row in rows["images"]]
    assert sorted(pairs) == [(f"PMC{n}", f"Caption of {n}", f"PMC{n}/a.xml#f1") for n in (1, 2, 4, 5, 6)]
    assert {row["article_id"] for row in rows["articles"]} >= {row["article_id"] for row in rows["images"]}


def test_pictures_are_found_where_the_caption_is_further_up(tmp_path: Path) -> None:
    """BIOMEDICA took the caption from the graphic's parent, and only a href that equals a file's stem."""
    body = (
        '<fig-group id="g"><caption><p>Of all.</p></caption><fig id="deep"><alternatives>'
        '<graphic xlink:href="sub/deep.tif"/><graphic xlink:href="deep-thumb.gif"/></alternatives></fig></fig-group>'
    )
    files = {"a.xml": xml(extra=body), "sub/deep.jpg": picture(), "deep-thumb.gif": picture("GIF")}
    root = write(tmp_path / "root", files)
    rows = built(root, tmp_path)
    assert [(row["source_item"], row["image"]["path"][-4:]) for row in rows["images"]] == [("a.xml#deep", ".jpg")]
    assert [row["text"] for row in rows["texts"]] == ["Of all."]


def test_a_caption_of_any_length_is_kept_whole_and_counted(tmp_path: Path) -> None:
    """Open-PMC: a fifth of its captions is longer than 256 tokens, one has 7,352; encoders cut them in silence."""
    words = " ".join(f"word{n}" for n in range(8000))
    root = write(tmp_path / "root", {"a.xml": xml("g").replace(b"Caption 1", words.encode()), "g.jpg": picture()})
    (text,) = built(root, tmp_path)["texts"]
    assert text["text"] == words and len(text["text"].split()) == 8000


def test_only_a_licence_that_is_stated_counts(tmp_path: Path) -> None:
    """Pipelines trust the folder (oa_comm) or the file list: articles that say otherwise, or nothing, are open."""
    url = "https://creativecommons.org/licenses"
    licence = '<permissions><license xlink:href="%s"/></permissions></article-meta>'
    both = licence.replace("</permissions>", '<license xlink:href="%s"/></permissions>')
    stated = {"1": "", "2": licence % f"{url}/by/4.0", "3": both % (f"{url}/by/4.0", f"{url}/by-nc/4.0")}
    for number, said in stated.items():
        text = xml("g", pmcid=number).replace(b"</article-meta>", (said or "</article-meta>").encode())
        write(tmp_path / "root", {f"{number}/a.xml": text, f"{number}/g.jpg": picture(grey=int(number))})
    rows = built(tmp_path / "root", tmp_path)
    assert sorted((row["article_id"], row["licence_image"]) for row in rows["images"]) == [
        ("PMC1", None), ("PMC2", "CC-BY-4.0"), ("PMC3", None),
    ]
    assert {row["article_id"]: row["licence"] for row in rows["articles"]} == {
        "PMC1": None, "PMC2": "CC-BY-4.0", "PMC3": None,
    }


def test_a_revision_and_a_retraction_are_seen_and_the_newest_leads(tmp_path: Path) -> None:
    """Released sets are made once: what was retracted or corrected since stays in them as it was."""
    root = write(tmp_path / "root", {"1/a.xml": xml("g"), "1/g.jpg": picture()})
    (first,) = list_partitions("pmc", Params(root=str(root)), FileIndex(None))
    link = b'<related-article related-article-type="retraction-forward"/></article-meta>'
    write(root, {"2/a.xml": xml("g", version="2").replace(b"</article-meta>", link), "2/g.jpg": picture()})
    (second,) = list_partitions("pmc", Params(root=str(root)), FileIndex(None))
    assert first.key != second.key
    rows = built(root, tmp_path)
    assert [(row["version"], row["retracted"]) for row in rows["articles"]] == [("2", True)]
    assert len(rows["images"]) == 1, "what the retracted version shows is left out, with a reject that says so"


def test_hostile_archives_cost_themselves(tmp_path: Path) -> None:
    """BIOMEDICA calls tar.extractall without a filter: a name may lead anywhere on the disk."""
    inner = tarball({"b.xml": xml("g"), "zeros": bytes(70 << 20)})
    root = write(tmp_path / "root", {
        "climbs.tar.gz": tarball({"../../stolen.xml": xml("g")}), "rooted.zip": zipped({"/etc/stolen.xml": xml("g")}),
        "nested.zip": zipped({"a.xml": xml("g", pmcid="7"), "g.jpg": picture(), "more.tar.gz": inner}),
    })
    before = sorted(path.name for path in tmp_path.rglob("*"))
    rows = built(root, tmp_path)
    assert sorted(rows["rejects"]) == [("climbs.tar.gz", "ARCHIVE_UNSAFE"), ("rooted.zip", "ARCHIVE_UNSAFE")]
    assert [row["article_id"] for row in rows["images"]] == ["PMC7"], "an archive in an archive is a file like others"
    assert sorted(path.name for path in tmp_path.rglob("*")) == before, "nothing was unpacked"


def test_the_content_of_a_file_decides_what_it_is(tmp_path: Path) -> None:
    """BIOMEDICA reads .jpg only, and trusts the name; PMC's mirrors hold GIFs and error pages of that name."""
    root = write(tmp_path / "root", {
        "a.xml": xml("gif", "tiff", "page"), "gif.jpg": picture("GIF"), "tiff.jpg": picture("TIFF"),
        "page.jpg": b"<!DOCTYPE html><html>404</html>",
    })
    rows = built(root, tmp_path)
    assert [row["image"]["path"][-4:] for row in rows["images"]] == [".gif", ".png"]
    assert rows["rejects"] == [("a.xml#f3", "NOT_IMAGE")]


@pytest.mark.parametrize(("body", "expected"), [
    ('<fig><caption><p>C</p></caption><graphic xlink:href="a"/></fig>', [("fig-1", "C", 1)]),
    ('<fig id="f"><graphic xlink:href="a"/></fig>', [("f", None, 1)]),
    ('<fig id="f"><caption><p>C</p></caption><graphic mimetype="image" xlink:href="a"/><graphic xlink:href="b"/></fig>',
     [("f", "C", 2)]),
    ('<fig id="f"><caption><p>A <bold>b <italic>c</italic></bold></p><p>d</p></caption></fig>', [("f", "A b c d", 0)]),
    ('<fig id="f"><caption><list><list-item><p>C</p></list-item></list></caption></fig>', [("f", "C", 0)]),
    ('<fig id="f"><caption><p>TGF-&beta;</p></caption></fig>', [("f", "TGF-β", 0)]),
    ('<fig id="a"><caption><p>C</p></caption></fig><fig id="b"/>', [("a", "C", 0), ("b", None, 0)]),
])
def test_what_pubmed_parser_loses_is_kept(body: str, expected: list[tuple[str, str | None, int]]) -> None:
    """pubmed_parser: KeyError without an id, the first attribute taken for the href, one graphic, one level of marks,
    a list without labels or an entity loses the article, and a figure without a caption gets the one before."""
    found = parse_article(xml(extra=body)).figures
    assert [(f.key, f.caption, len(f.graphics)) for f in found] == expected


def test_figures_of_every_form_come_out(tmp_path: Path) -> None:
    """The benchmark's files in small: all figures, pictures and captions, none invented, and more than the peer."""
    pytest.importorskip("pubmed_parser")
    known = make_articles(tmp_path, 60)
    ours, theirs = Score(), Score()
    for path, figures in known.items():
        ours.add(figures, by_medloom(path))
        theirs.add(figures, by_pubmed_parser(path))
    everything = [figure for figures in known.values() for figure in figures]
    assert ours.figures == len(everything) > theirs.figures
    assert ours.pictures == sum(len(figure.hrefs) for figure in everything) > theirs.pictures
    assert ours.captions == sum(bool(figure.caption) for figure in everything) > theirs.captions
    assert ours.invented == 0


# all sample data


def documents(root: Path) -> Iterator[tuple[str, bytes]]:
    """Item prefix -> XML, of every article in folders and archives."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.suffix in (".xml", ".nxml"):
            yield name, path.read_bytes()
        elif path.is_file() and is_archive(path):
            for member in members(path.read_bytes(), lambda inner: inner.endswith("xml")):
                if member.data and b"<article" in member.data:
                    yield name, member.data


def figs_by_xpath(data: bytes) -> int | None:
    from lxml import etree

    root = etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    return int(root.xpath("count(//*[local-name()='fig'])")) if root.xpath("//*[local-name()='article']") else None


def test_every_fig_of_the_real_articles_is_listed_and_every_picture_there_is_an_image(
    sample_data: Path, tmp_path: Path
) -> None:
    root = sample_data / "pmc"
    rows = built(root, tmp_path)
    kept = Counter(row["source_item"].partition("#")[0] for row in rows["images"])
    missed: dict[str, Counter[str]] = {}
    for item, code in rows["rejects"]:
        missed.setdefault(item.partition("#")[0], Counter())[code] += 1
    total = 0
    print(f"\n{'article':70} figs items images rejects")
    for name, data in documents(root):
        figs = figs_by_xpath(data)
        if figs is None:
            continue
        figures = parse_article(data).figures
        assert sum(figure.kind == "fig" for figure in figures) == figs, name
        items = kept[name] + missed.get(name, Counter()).total()
        pictures = sum(max(1, len(figure.graphics)) for figure in figures) or 1
        assert items == pictures, name
        there = pictures - sum(missed.get(name, Counter()).values())
        assert kept[name] == there and set(missed.get(name, ())) <= {"FILE_MISSING", "NO_GRAPHIC", "NO_FIGURES"}, name
        total += figs
        print(f"{name[:70]:70} {figs:4} {items:5} {kept[name]:6} {dict(missed.get(name, {}))}")
    assert total == 138
    assert {row["article_id"] for row in rows["images"]} <= {row["article_id"] for row in rows["articles"]}
    assert len(rows["articles"]) == 30, "also those of which every figure failed"
