"""The data card: true counts, what is wrong, alone on its page, the same each time, and no markup of others."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from makehome import Rows, make_home

from catalog import datacard
from catalog.builds import builds
from infra.errors import ConfigError
from infra.keys import key

HOSTILE = "<script>alert(1)</script> | `x` ![x](http://example.org/x) {{ 7*7 }}"


class Page(HTMLParser):
    """The tags and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def plant(rows: Rows) -> None:
    rows["images"][0].update(modality=HOSTILE, licence_image=None)
    rows["labels"][0].update(name=HOSTILE)
    rows["texts"][0].update(text=HOSTILE, kind=HOSTILE)
    sample = rows["images"][1]["sample_id"]
    rows["checks"].append({
        "sample_id": sample, "text_id": key("text", sample, "global"), "check": "support", "version": "1",
        "value": 0.5, "verdict": "fail",
    })


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("card"), plant, quarantined=("photos",))


@pytest.fixture(scope="module")
def page(home: Path) -> Page:
    (build,) = builds(home)
    datacard.write(home, build)
    first = (home / "reports/000001/card.html").read_bytes()
    datacard.write(home, build)
    assert (home / datacard.path(build)).read_bytes() == first
    return Page(first.decode())


def test_the_page_counts_and_says_what_is_wrong(page: Page) -> None:
    for words in (
        "8 samples", "Samples by modality", "CT: 3", "DX: 4", "Samples by label that is present", "nodule: 7",
        "samples whose image licence is unknown: 1", "texts of which not every claim is borne out by rows: 1",
        "units of work left out because too much of them failed: 2", "source scans (nifti)",
        "template@1", "not for care", "unknown, not open",
    ):
        assert words in page.text, words


def test_the_page_stands_alone_and_nobodys_words_are_markup(page: Page) -> None:
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert all(str(attrs["src"]).startswith("data:image/") for tag, attrs in page.tags if tag == "img")
    assert "<script>alert(1)</script>" in page.text and "{{ 7*7 }}" in page.text


def test_bars_are_as_long_as_their_counts(page: Page) -> None:
    first = next(n for n, (tag, attrs) in enumerate(page.tags) if attrs.get("aria-label") == "Samples by modality")
    widths = [float(str(attrs["width"])) for tag, attrs in page.tags[first:] if tag == "rect"][:3]
    assert widths == [236.0, 177.0, 59.0]


def test_the_markdown_says_the_same_and_escapes(home: Path) -> None:
    text = datacard.card_markdown(home)
    assert text == datacard.card_markdown(home, 1) and text.startswith("## Data card of small, snapshot 1\n")
    assert "| DX | 4 |" in text and "### Limits" in text
    assert "- samples whose image licence is unknown\\: 1" in text
    assert "<script>" not in text and "![x]" not in text and "\\<script\\>" in text
    assert all(line.count(" | ") == 1 for line in text.splitlines() if line.startswith("| ") and "CT" in line)
    with pytest.raises(ConfigError, match="no snapshot 7"):
        datacard.card_markdown(home, 7)
