"""The report and the contact sheet: what they show, that they stand alone, and that nobody's words become markup."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from makehome import Rows, make_home
from PIL import Image

from catalog import catalog, checks, report, sheet
from catalog.builds import Build, Validation, builds
from infra.errors import ConfigError
from infra.keys import key

HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(1)> | `code` ![x](http://example.org/x) {{ 7*7 }} *b* </dd>"
)


class Page(HTMLParser):
    """The tags and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def plant_hostile(rows: Rows) -> None:
    rows["texts"][0].update(text=HOSTILE, kind="<i>kind</i>")
    rows["rois"][0].update(label=HOSTILE)
    rows["images"][0].update(modality=HOSTILE, licence_image=HOSTILE)
    rows["rejects"][0].update(message=HOSTILE, code="<B>")


def written(home: Path, build: Build | None = None) -> Page:
    build = build or builds(home)[-1]
    report.write(home, build)
    return Page((home / report.path(build)).read_text())


def cards(home: Path, per_source: int = 2) -> list[sheet.Card]:
    with catalog.reader(home) as con:
        return sheet.cards(con, home, per_source)


def test_the_report_shows_the_build(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    assert report.path(builds(home)[-1]) == "reports/000001/index.html"
    page = written(home)
    text = " ".join(page.text.split())
    for words in (
        "small snapshot 1", "12 samples", "24 regions", "36 texts", "IMAGE_TRUNCATED", "fetch the file again",
        "CC-BY-4.0 12 attribution", "small-lm 12 1,200 240 0.012", "medloom sql", "medloom export",
        "photos ingest 1 5 4 0 1 0 yes", "A picture of modality CT that shows a nodule.",
        "This build was not checked",
    ):
        assert words in text, words
    assert sum(tag == "article" for tag, _ in page.tags) == 2 * report.PER_SOURCE


def test_the_report_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = written(make_home(tmp_path, plant_hostile))
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:")
    assert {tag for tag, _ in page.tags} & {"script", "iframe", "link", "i", "object", "form"} == set()
    addresses = [a.get("src") or a.get("href") or "" for _, a in page.tags if "src" in a or "href" in a]
    assert all(address.startswith(("data:image/jpeg;base64,", "#", "../../builds/")) for address in addresses)
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert page.text.count(HOSTILE) >= 4  # at least modality, licence, reject and label


def test_equal_builds_give_equal_reports(tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        home = make_home(tmp_path / name)
        report.write(home, builds(home)[-1])
        pages.append((home / "reports/000001/index.html").read_bytes())
    assert pages[0] == pages[1]


def test_failed_expectations_come_first(tmp_path: Path) -> None:
    home = make_home(tmp_path)

    def result(expectation: str, critical: bool, success: bool) -> Validation:
        return Validation(
            layer="rois", expectation=expectation, critical=critical, success=success, unexpected=int(not success),
            detail="",
        )

    results = (result("is met", True, True), result("is odd", False, False), result("is broken", True, False))
    text = written(home, builds(home)[-1].model_copy(update={"validations": results})).text
    assert text.index("is broken") < text.index("is odd") < text.index("is met")
    assert "1 critical not met" in text and "1 to look at" in text


def test_a_refused_build_is_reported_from_the_writer(tmp_path: Path) -> None:
    def plant(rows: Rows) -> None:
        rows["rois"][0].update(box=[-5, 0, 20, 20], label="outside")
        rows["rois"][8]["box"] = [0, 0, 0, 0]
        rows["rois"][2]["mask"] = {"size": [3, 3], "counts": "09"}

    home = make_home(tmp_path, plant)
    with catalog.writer(home) as con:
        build = builds(home)[-1]
        results = checks.validate(con, home, build, ())
        refused = build.model_copy(update={"validations": results, "status": "refused"})
        report.write(home, refused, con)
    text = " ".join(Page((home / report.path(refused)).read_text()).text.split())
    assert "refused build 1" in text and "This build is no snapshot" in text
    assert "rois: the box lies inside the image . 1 of 24 rows (4.2%), such as" in text
    assert "Data Docs" in text

    refused.write(home)
    catalog.rebuild(home)
    with pytest.raises(ConfigError, match="no snapshot 1"):
        report.write(home, refused)


def test_an_empty_build_is_reported(tmp_path: Path) -> None:
    def empty(rows: Rows) -> None:
        for layer in rows:
            rows[layer].clear()

    home = make_home(tmp_path, empty)
    text = written(home).text
    assert "There is no sample to show." in text and "Nothing was rejected." in text
    assert sheet.markdown(cards(home)) == "There is no sample to show.\n"


def test_the_sheet_shows_each_source_and_modality(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    shown = cards(home, 2)
    assert [(c.source, c.modality) for c in shown] == [("photos", "XC")] * 2 + [("scans", "CT"), ("scans", "DX")]
    assert shown == cards(home, 2)
    card = shown[2]
    assert (card.width, card.height) == (80, 96)
    assert [(r.number, r.label) for r in card.regions] == [(1, "lesion"), (2, "device")]
    assert [(t.kind, t.origin) for t in card.texts] == [
        ("global", "template@1"), ("original_caption", "source"), ("region", "template@1"),
    ]
    for card in shown:
        with Image.open(io.BytesIO(card.png)) as image:
            assert image.format == "PNG" and max(image.size) <= sheet.SIDE
            assert abs(image.width / image.height - card.width / card.height) < 0.05


def test_the_richest_sample_is_chosen(tmp_path: Path) -> None:
    def enrich(rows: Rows) -> None:
        sample = key("sample", "DX", 3)
        roi = next(r for r in rows["rois"] if r["sample_id"] == sample)
        rows["rois"].append({**roi, "roi_id": "extra", "label": "a third kind of region"})

    home = make_home(tmp_path, enrich)
    shown = [c for c in cards(home, 4) if c.modality == "DX"]
    assert shown[0].sample_id == key("sample", "DX", 3) and len(shown[0].regions) == 3
    others = [c.sample_id for c in shown[1:]]
    assert others == sorted(key("sample", "DX", n) for n in range(3))[: len(others)]


def test_regions_are_drawn_and_those_that_do_not_fit_are_named(tmp_path: Path) -> None:
    bare = make_home(tmp_path / "bare", lambda rows: rows["rois"].clear())
    assert {c.png for c in cards(bare)}.isdisjoint(c.png for c in cards(make_home(tmp_path / "drawn")))

    def misplace(rows: Rows) -> None:
        for roi in rows["rois"]:
            roi["box"] = [900, 900, 950, 950]

    for card in cards(make_home(tmp_path / "misplaced", misplace)):
        assert [r.number for r in card.regions] == [None, None]
        assert card.png == next(c.png for c in cards(bare, 4) if c.sample_id == card.sample_id)


def test_markdown_shows_words_as_words(tmp_path: Path) -> None:
    home = make_home(tmp_path, plant_hostile)
    text = sheet.markdown(cards(home, 8))
    assert re.findall(r"(?<!\\)[<`{\[]", text.replace("![", "")) == [] and "http://" not in text
    assert r"\<script\>alert\(1\)" in text
    assert text.count("](data:image/jpeg;base64,") == text.count("![") == 12
    assert all(line.startswith(("#", "!", "-")) or line[:1].isdigit() or not line for line in text.splitlines())


def test_markdown_stays_small_and_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = cards(make_home(tmp_path), 2)
    monkeypatch.setattr(sheet, "MARKDOWN_BYTES", 2 * len(sheet.markdown(shown[:1])))
    text = sheet.markdown(shown)
    assert text.count("![") < 4 and f"*{4 - text.count('![')} more samples are in the report.*" in text


@pytest.mark.parametrize(("code", "words"), [
    ("CC0-1.0", "free"), ("CC-BY-4.0", "attribution"), ("CC-BY-SA-4.0", "share-alike"), ("MIT", "attribution"),
    ("CC-BY-NC-SA-4.0", "non-commercial"), ("CC-BY-NC-ND-4.0", "no derivatives"), (None, "unknown, not open"),
    ("MNI-ICBM152", "other terms, read them"),
])
def test_licence_classes(code: str | None, words: str) -> None:
    assert report.licence_class(code) == words


def test_a_home_that_is_made_twice_is_the_same(tmp_path: Path) -> None:
    homes = [make_home(tmp_path / name) for name in ("a", "b")]
    files = [{p.relative_to(h): p.read_bytes() for p in h.rglob("*.parquet")} for h in homes]
    assert files[0] == files[1] and len(files[0]) == 20
    assert json.loads((homes[0] / "builds/000001.json").read_text())["name"] == "small"
