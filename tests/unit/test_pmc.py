"""The connector pmc and the decoder figure: every figure an item, pictures joined by key, archives as folders."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jatsfiles import picture, tarball, write, xml, zipped
from PIL import Image

from catalog.items import Item, Licences, Partition
from catalog.schema import LAYERS
from connectors.pmc import Params, list_partitions, read
from infra.errors import ConfigError, Dropped, Terminal, Transient
from infra.fileindex import FileIndex
from infra.keys import pseudonym, sha256
from infra.plugins import load
from transforms.decoded import Article, IngestParams, Refused, Sample
from transforms.decoders.figure import decode

EXAMPLE = Path(__file__).parents[2] / "flows/recipes/data/article"
HIDE = partial(pseudonym, b"secret")


def listed(root: Path, **params: Any) -> list[Partition]:
    return list(list_partitions("pmc", Params(root=str(root), **params), FileIndex(None)))


def items(root: Path, **params: Any) -> list[Item]:
    settings = Params(root=str(root), **params)
    found = []
    for partition in list_partitions("pmc", settings, FileIndex(None)):
        part = list(read(partition, settings))
        assert [item.id for item in part] == [ref["id"] for ref in partition.refs] == [c[0] for c in partition.contents]
        found += part
    return found


def outcomes(root: Path, **params: Any) -> dict[str, Any]:
    """item id -> its bytes, or the code of its error"""
    found = items(root, **params)
    return {item.id: getattr(item.error, "code", "?") if item.error else item.files["main"] for item in found}


def test_the_example_article_becomes_two_samples_and_a_row() -> None:
    assert load("connector", "pmc").NAME == "pmc"
    first, second = items(EXAMPLE)
    assert (first.id, second.id, first.group) == ("article.nxml#fig1", "article.nxml#fig2", second.group)
    evidence = "license_ref: creativecommons.org/publicdomain/zero/1.0"
    assert first.licences == Licences("CC0-1.0", "CC0-1.0", None, evidence)
    article, *samples = decode([first, second], IngestParams(), HIDE)
    assert isinstance(article, Article)
    assert LAYERS["articles"].table([{**article.row, "source": "pmc"}]).num_rows == 1
    for sample, name in zip(samples, ("example-g001.jpg", "example-g002.png"), strict=True):
        assert isinstance(sample, Sample)
        data = (EXAMPLE / name).read_bytes()
        assert sample.content == (sha256(data),)
        assert sample.group == HIDE("article", "10.5555/medloom.example.1")
        assert sample.columns["source_uri"] == "https://doi.org/10.5555/medloom.example.1"
        assert sample.columns["article_id"] == article.row["article_id"] == "10.5555/medloom.example.1"
        assert [text.kind for text in sample.texts] == ["original_caption", "mention", "mention"]
        assert sample.encoded is not None
    assert [sample.columns["lossy"] for sample in samples if isinstance(sample, Sample)] == [True, None]


def test_the_examples_figures_are_what_its_script_makes(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "make_figures.py", tmp_path)
    runpy.run_path(str(tmp_path / "make_figures.py"), run_name="__main__")
    for name in ("example-g001.jpg", "example-g002.png"):
        made, kept = (np.asarray(Image.open(folder / name), int) for folder in (tmp_path, EXAMPLE))
        assert made.shape == kept.shape and abs(made - kept).max() <= 2, name
        assert (EXAMPLE / name).stat().st_size < 60_000


@pytest.mark.parametrize("href", [
    "x-g001", "x-g001.jpg", "x-g001.tif", "X-G001.JPG", "images/x-g001", "info:doi/10.1371/x-g001",
    "info:doi/10.1371/journal.x-g001", "x%2Dg001.jpg", "images\\x-g001.tif", "https://host/a/x-g001.jpg?download=true",
    "https://host/image?size=large&id=info:doi/10.1371/journal.x-g001",
])
def test_hrefs_name_files_with_or_without_suffix_folder_and_scheme(tmp_path: Path, href: str) -> None:
    data = picture()
    write(tmp_path, {"a.xml": xml(href), "x-g001.jpg": data, "x-g0011.jpg": picture(grey=1), "x-g001.xlsx": b"data"})
    assert outcomes(tmp_path) == {"a.xml#f1": data}


@pytest.mark.parametrize(("href", "name"), [
    ("info:doi/10.1371/journal.pone.0000217.g001", "pone.0000217.g001.tif"),
    ("info:doi/10.1371/journal.pone.0000217.g001", "journal.pone.0000217.g001.png"),
    ("info:doi/10.1371/journal.pone.0000217.g001", "info%3Adoi%2F10.1371%2Fjournal.pone.0000217.g001.png"),
    ("pone.0000217.g001", "images/pone.0000217.g001.tif"), ("fig 1.jpg", "fig%201.jpg"), ("fig1.tif", "fig1.tif.jpg"),
    ("Abbildu\u0308ng", "abbild\u00fcng.png"), ("https://minio.scielo.br/a/9f3c0e.jpg", "9f3c0e.jpg"),
])
def test_hrefs_and_names_that_are_written_otherwise(tmp_path: Path, href: str, name: str) -> None:
    data = picture("TIFF" if name.endswith("tif") else "PNG")
    write(tmp_path, {"a.xml": xml(href), name: data, "other.g001.tif": picture()})
    assert outcomes(tmp_path) == {"a.xml#f1": data}


def test_dots_in_names_are_no_suffixes(tmp_path: Path) -> None:
    one, two = picture(grey=1), picture(grey=2)
    write(tmp_path, {"a.xml": xml("p.1.g001", "p.1.g002"), "p.1.g002.jpg": two, "p.1.g001": one, "p.1.jpg": picture()})
    assert outcomes(tmp_path) == {"a.xml#f1": one, "a.xml#f2": two}


def test_of_several_files_the_largest_web_format_is_taken(tmp_path: Path) -> None:
    small, large, tiff = picture("GIF", side=8), picture(side=64), picture("TIFF", side=200)
    write(tmp_path, {"a.xml": xml("g.gif"), "g.gif": small, "g.jpg": large, "g.tif": tiff, "g.pdf": bytes(99_999)})
    assert outcomes(tmp_path) == {"a.xml#f1": large}
    (tmp_path / "g.jpg").unlink()
    (tmp_path / "g.gif").unlink()
    assert outcomes(tmp_path) == {"a.xml#f1": tiff}


def test_files_at_the_very_path_win(tmp_path: Path) -> None:
    full, thumb = picture(side=16), picture(side=64)
    write(tmp_path, {"a.xml": xml("full/g.jpg"), "full/g.jpg": full, "thumb/g.jpg": thumb})
    assert outcomes(tmp_path) == {"a.xml#f1": full}


def test_articles_do_not_take_each_others_files(tmp_path: Path) -> None:
    pictures = [picture(grey=n) for n in range(4)]
    write(tmp_path, {
        "top.xml": xml("fig1", pmcid="9"),
        "one/a.xml": xml("fig1", pmcid="1"), "one/fig1.jpg": pictures[0],
        "two/b.xml": xml("fig1", pmcid="2"), "two/img/fig1.jpg": pictures[1],
        "flat/c.xml": xml("fig1", pmcid="3"), "flat/c/fig1.jpg": pictures[2],
        "flat/d.xml": xml("fig1", pmcid="4"), "flat/d/fig1.jpg": pictures[3],
    })
    assert outcomes(tmp_path) == {
        "top.xml#f1": "FILE_MISSING", "one/a.xml#f1": pictures[0], "two/b.xml#f1": pictures[1],
        "flat/c.xml#f1": pictures[2], "flat/d.xml#f1": pictures[3],
    }


def test_what_has_no_picture_says_why(tmp_path: Path) -> None:
    data = picture()
    more = (
        '<fig id="video"/><fig id="two"><graphic xlink:href="dir/g"/><graphic xlink:href="h.gif"/></fig>'
        '<table-wrap id="t"><graphic xlink:href="g"/></table-wrap><table-wrap id="plain"><table/></table-wrap>'
        '<p>An equation: <graphic id="e" xlink:href="g"/></p>'
    )
    write(tmp_path, {"a.xml": xml("lost", extra=more), "g.jpg": data})
    write(tmp_path, {"none/b.xml": xml(pmcid="2"), "none/manifest.xml": b"<m/>"})
    assert outcomes(tmp_path) == {
        "a.xml#f1": "FILE_MISSING", "a.xml#video": "NO_GRAPHIC", "a.xml#two/g": data, "a.xml#two/h": "FILE_MISSING",
        "a.xml#t": data, "a.xml#e": "LOOSE_GRAPHIC", "none/b.xml": "NO_FIGURES",
    }
    assert outcomes(tmp_path, tables_as_images=False)["a.xml#t"] == "TABLE_IMAGE"
    errors = {item.id: item.error for item in items(tmp_path, tables_as_images=False)}
    assert "lost" in str(errors["a.xml#f1"])
    assert isinstance(errors["a.xml#f1"], Terminal)
    assert all(isinstance(errors[name], Dropped) for name in ("a.xml#video", "a.xml#t", "a.xml#e", "none/b.xml"))


def test_an_article_is_told_though_its_every_figure_failed(tmp_path: Path) -> None:
    write(tmp_path, {
        "1/a.xml": xml("lost", pmcid="1"), "2/b.xml": xml(pmcid="2"), "3/c.xml": xml("g", pmcid="3"),
        "3/g.jpg": picture(), "4/d.xml": xml("g", pmcid="4")[:-9], "5.zip": zipped({"e.xml": xml("lost", pmcid="5")}),
        "6/f.xml": xml("g", pmcid="6"), "6/g.jpg": picture(),
    })
    (partition,) = listed(tmp_path)
    (tmp_path / "6/g.jpg").unlink()
    found = read(partition, Params(root=str(tmp_path)))
    told = {item.id: item.facts.get("article", {}).get("article_id") for item in found}
    assert told == {
        "1/a.xml#f1": "PMC1", "2/b.xml": "PMC2", "3/c.xml#f1": "PMC3", "4/d.xml": None, "5.zip#f1": "PMC5",
        "6/f.xml#f1": "PMC6",
    }


def test_a_record_beside_the_xml_states_a_licence_and_a_retraction(tmp_path: Path) -> None:
    record = {"pmcid": "PMC1", "version": 1, "license_code": "CC BY-NC", "is_retracted": True}
    root = write(tmp_path, {"PMC1.1.xml": xml("g"), "g.jpg": picture(), "PMC1.json": b"{}", "g.json": b"[1]"})
    (bare,) = listed(root)
    write(root, {"PMC1.1.json": json.dumps(record).encode()})
    (stated,) = listed(root)
    assert stated.key != bare.key, "the record decides the rows"
    (item,) = items(root)
    row = item.facts["article"]
    assert (row["licence"], row["licence_stated"], row["licence_agrees"]) == ("CC-BY-NC", "CC-BY-NC", None)
    assert row["retracted"] is True and isinstance(item.error, Dropped) and item.error.code == "RETRACTED"
    write(root, {"PMC1.1.json": json.dumps({**record, "is_retracted": False}).encode()})
    (item,) = items(root)
    assert item.error is None and item.licences is not None and item.licences.image == "CC-BY-NC"
    for other in (b"{", b"[]", b'{"pmcid": "PMC1"}', b'{"license_code": 3}'):
        write(root, {"PMC1.1.json": other})
        (item,) = items(root)
        assert (item.facts["article"]["licence"], item.licences) == (None, None), other


@pytest.mark.parametrize("pack", [tarball, zipped])
def test_archives_give_what_folders_give(tmp_path: Path, pack: Any) -> None:
    files = {"PMC5/a.nxml": xml("g1", "g2", pmcid="5"), "PMC5/g1.jpg": picture(), "PMC5/g1.gif": picture("GIF", side=8)}
    write(tmp_path / "folder", files)
    suffix = "tar.gz" if pack is tarball else "zip"
    write(tmp_path / "packed", {f"PMC5.{suffix}": pack(files)})
    folder, packed = items(tmp_path / "folder"), items(tmp_path / "packed")
    assert [item.id for item in packed] == [f"PMC5.{suffix}#f1", f"PMC5.{suffix}#f2"]
    for one, other in zip(folder, packed, strict=True):
        assert (one.files, one.texts, one.facts, one.group) == (other.files, other.texts, other.facts, other.group)
    assert packed[0].facts["source_uri"] == "https://pmc.ncbi.nlm.nih.gov/articles/PMC5"
    two = {"x/a.xml": xml("g", pmcid="1"), "x/g.jpg": picture(grey=1)}
    two |= {"y/b.xml": xml("g", pmcid="2"), "y/g.jpg": picture()}
    write(tmp_path / "several", {f"s.{suffix}": pack(two)})
    assert outcomes(tmp_path / "several") == {
        f"s.{suffix}!x/a.xml#f1": two["x/g.jpg"], f"s.{suffix}!y/b.xml#f1": two["y/g.jpg"],
    }


def test_bad_articles_cost_themselves_only(tmp_path: Path) -> None:
    good = picture()
    whole = tarball({"P/a.nxml": xml("g", pmcid="3"), "P/g.jpg": good})
    write(tmp_path, {
        "1/a.xml": xml("g"), "1/g.jpg": good, "1/data.zip": zipped({"table.csv": b"1"}),
        "2/b.xml": xml("g")[:-9], "2/g.jpg": good,
        "cut.tar.gz": whole[:-20], "whole.tar.gz": whole,
        "unsafe.tar.gz": tarball({"../x.nxml": xml("g"), "g.jpg": good}),
        "empty.zip": zipped({}), "other.zip": zipped({"readme.txt": b"no article"}),
        "bomb.tar.gz": tarball({"a.xml": bytes(70 << 20)}), "garbage.zip": b"PK this is no zip",
        "mixed.zip": zipped({"a.xml": xml("g", pmcid="8"), "g.jpg": good, "b.xml": b"<"}),
    })
    assert outcomes(tmp_path) == {
        "1/a.xml#f1": good, "2/b.xml": "XML_UNREADABLE", "cut.tar.gz": "ARCHIVE_TRUNCATED", "whole.tar.gz#f1": good,
        "unsafe.tar.gz": "ARCHIVE_UNSAFE", "empty.zip": "NO_ARTICLE", "other.zip": "NO_ARTICLE",
        "bomb.tar.gz": "ARCHIVE_BOMB",
        "garbage.zip": "ARCHIVE_TRUNCATED", "mixed.zip!a.xml#f1": good, "mixed.zip!b.xml": "XML_UNREADABLE",
    }


def test_partitions_keep_versions_together_newest_first(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path, {f"PMC{number}.{v}/a.xml": xml("g", pmcid=str(number), version=str(v)) for v in (1, 9, 10)})
    partitions = listed(tmp_path, capacity=9)
    assert len(partitions) > 1
    where = Counter(group for p in partitions for group in {ref["group"] for ref in p.refs})
    assert len(where) == 30 and set(where.values()) == {1}
    ids = [ref["id"] for p in partitions for ref in p.refs if ref["group"] == "PMC7"]
    assert ids == ["PMC7.10/a.xml#f1", "PMC7.9/a.xml#f1", "PMC7.1/a.xml#f1"]


def test_keys_follow_contents_not_places(tmp_path: Path) -> None:
    for name in ("here", "there"):
        write(tmp_path / name, {"a.xml": xml("g"), "g.jpg": picture()})
    (here,), (there,) = listed(tmp_path / "here"), listed(tmp_path / "there")
    assert here.key == there.key
    write(tmp_path / "there", {"g.jpg": picture(grey=1)})
    (changed,) = listed(tmp_path / "there")
    write(tmp_path / "there", {"g.jpg": picture(), "a.xml": xml("g", version="2")})
    (revised,) = listed(tmp_path / "there")
    assert len({here.key, changed.key, revised.key}) == 3


def test_a_source_that_changes_after_listing_is_told(tmp_path: Path) -> None:
    root = write(tmp_path, {
        "1/a.xml": xml("g", "h", pmcid="1"), "1/g.jpg": picture(), "1/h.jpg": picture(), "2/a.xml": xml("g", pmcid="2"),
        "2/g.jpg": picture(), "p.zip": zipped({"a.xml": xml("g", pmcid="3"), "g.jpg": picture()}),
    })
    (partition,) = listed(root)
    write(root, {"1/g.jpg": picture(grey=1), "2/a.xml": xml("g", pmcid="4"), "p.zip": b"PK"})
    (root / "1/h.jpg").unlink()
    errors = {item.id: item.error for item in read(partition, Params(root=str(root)))}
    assert all(isinstance(error, Transient) for error in errors.values())
    assert {name: getattr(error, "code", "") for name, error in errors.items()} == {
        "1/a.xml#f1": "SOURCE_CHANGED", "1/a.xml#f2": "SOURCE_UNREADABLE", "2/a.xml#f1": "SOURCE_CHANGED",
        "p.zip#f1": "SOURCE_CHANGED",
    }


def test_a_file_that_cannot_be_opened_costs_its_figure_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = picture()
    write(tmp_path, {"a.xml": xml("g", "h"), "g.jpg": good, "h.jpg": picture(grey=1)})
    really_open = Path.open

    def refuse(path: Path, *rest: Any, **more: Any) -> Any:
        if path.name == "h.jpg":
            raise PermissionError(13, "Permission denied")
        return really_open(path, *rest, **more)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("infra.fileindex.open", refuse, raising=False)
    assert outcomes(tmp_path) == {"a.xml#f1": good, "a.xml#f2": "SOURCE_UNREADABLE"}


def test_a_second_listing_opens_nothing(tmp_path: Path) -> None:
    packed = zipped({"a.xml": xml("g", pmcid="2")})
    root = write(tmp_path / "root", {"1/a.xml": xml("g"), "1/g.jpg": picture(), "p.zip": packed})
    for path in root.rglob("*.*"):
        os.utime(path, (time.time() - 60,) * 2)
    with FileIndex(tmp_path / "index.sqlite") as index:
        first = list(list_partitions("pmc", Params(root=str(root)), index))
    with FileIndex(tmp_path / "index.sqlite") as index:
        index.ask = partial(_known_only, index)  # type: ignore[method-assign]
        assert list(list_partitions("pmc", Params(root=str(root)), index)) == first


def _known_only(index: FileIndex, path: Path, name: str, fn: Any) -> Any:
    def opened(_: Path) -> None:
        raise AssertionError(f"{path} was opened for {name}")

    return FileIndex.ask(index, path, name, opened)


def test_an_empty_root_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing there"):
        listed(tmp_path / "nowhere")
    write(tmp_path, {"readme.txt": b"", "manifest.xml": b"<m/>"})
    with pytest.raises(ConfigError, match="neither JATS articles"):
        listed(tmp_path)


def test_the_decoder_refuses_what_is_no_picture_and_keeps_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, {
        "a.xml": xml("svg", "cut", "tif", "ok"), "svg.jpg": b"<svg/>", "cut.jpg": picture(side=200)[:300],
        "tif.tif": picture("TIFF"), "ok.png": picture("PNG"),
    })
    article, *decoded = decode(items(tmp_path, modality="CT"), IngestParams(), HIDE)
    assert isinstance(article, Article)
    assert [one.error.code for one in decoded if isinstance(one, Refused)] == ["NOT_IMAGE", "IMAGE_TRUNCATED"]
    tiff, png = (one for one in decoded if isinstance(one, Sample))
    assert (tiff.encoded, png.encoded is not None, tiff.columns["modality"]) == (None, True, "CT")
    assert (tiff.pixels == png.pixels).all() and tiff.group == png.group
    assert tiff.licences is None, "the XML says nothing, so the recipe may"


@pytest.mark.parametrize(("folder", "expected"), [
    ("article_dirs", {"kept": 52, "FILE_MISSING": 3, "NO_FIGURES": 2}),
    ("dar", {"kept": 5}),
    ("meca", {"kept": 7}),
    ("nxml_only", {"FILE_MISSING": 62, "NO_FIGURES": 1}),
    ("oa_package_tgz", {"kept": 15, "NO_FIGURES": 1}),
    ("preprint_dirs", {"kept": 18, "FILE_MISSING": 27}),
    ("publisher_zip", {"kept": 1, "FILE_MISSING": 2}),
])
def test_real_articles(sample_data: Path, folder: str, expected: dict[str, int]) -> None:
    found: Counter[str] = Counter()
    for item in items(sample_data / "pmc" / folder):
        if item.error:
            found[getattr(item.error, "code", "?")] += 1
            continue
        decoded = list(decode([item], IngestParams(), HIDE))
        found["kept"] += sum(isinstance(one, Sample) and one.texts[0].kind == "original_caption" for one in decoded)
    assert found == expected
