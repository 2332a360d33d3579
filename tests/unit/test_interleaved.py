"""A figure among its paragraphs: the source's words, one place for the picture, the texts it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transforms.captioners.interleaved import Params, open_captioner
from transforms.facts import facts_of
from transforms.stage import Context, SampleRows


def documents(*texts: tuple[str, str], **options: Any) -> list[dict[str, Any]]:
    rows = [{"text_id": str(n), "kind": kind, "text": text, "generator": "source", "language": "de"}
            for n, (kind, text) in enumerate(texts)]
    one = SampleRows({"sample_id": "s", "width": 9, "height": 9, "source": "pmc"},
                     {"labels": [], "rois": [], "measures": [], "passages": [], "texts": rows})
    return open_captioner(Params(**options), Context(Path()))(facts_of(one), one)


def test_the_picture_stands_between_its_paragraphs() -> None:
    [row] = documents(("mention", "As Figure 2\nshows."), ("original_caption", "A CT <image>."), ("mention", "Later."))
    assert row["text"] == "As Figure 2 shows.\n\n<image>\nA CT image.\n\nLater."
    assert row["evidence"] == ["text:1", "text:0", "text:2"] and row["kind"] == "interleaved"
    assert row["language"] == "de"


def test_a_paragraph_stands_once_and_few_where_few_are_wanted() -> None:
    told = [("original_caption", "C."), *[("mention", f"P{n % 3}.") for n in range(6)]]
    [row] = documents(*told)
    assert row["text"] == "P0.\n\n<image>\nC.\n\nP1.\n\nP2." and row["evidence"] == [f"text:{n}" for n in range(4)]
    assert documents(*told, around=1)[0]["text"] == "P0.\n\n<image>\nC."


@pytest.mark.parametrize("texts", [[], [("original_caption", "C.")], [("mention", "P.")]])
def test_there_is_no_document_without_both(texts: list[tuple[str, str]]) -> None:
    assert documents(*texts) == []
