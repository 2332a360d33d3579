"""Captioner: a figure among the paragraphs that speak of it, as one document of words and the place of the picture.

The invariant: every word is the source's own, each paragraph stands once, and exactly one `<image>` stands for the
picture: after the first paragraph that mentions it, before its caption, as it would in print.

    As Figure 2 shows, the mass had grown.

    <image>
    Axial CT of the abdomen.

    In panel B it is gone.

Kind: `interleaved`, with the texts it was made of as evidence. A picture without a mention gets none: a caption alone
is no document. Paragraphs that speak of no figure are in `articles.body`, which the stage `caption` does not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from transforms.facts import Facts
from transforms.stage import Context, SampleRows

NAME = "interleaved"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}
TOKEN = "<image>"
CAPTIONS = ("original_caption", "group_caption")


class Params(BaseModel):
    """What a recipe may set for the interleaved captioner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    around: int = Field(4, ge=1, description="at most so many paragraphs, the first ones")


def ingredients(params: Params) -> Mapping[str, str]:
    """What else decides the texts: nothing but this module's version."""
    return {}


def open_captioner(params: Params, context: Context) -> Callable[[Facts, SampleRows], list[dict[str, Any]]]:
    """The captioner; there is nothing to load."""

    def captions(facts: Facts, sample: SampleRows) -> list[dict[str, Any]]:
        caption = next((text for kind in CAPTIONS for text in facts.originals if text[1] == kind), None)
        paragraphs = {" ".join(t.split()): id for id, kind, t in reversed(facts.originals) if kind == "mention"}
        told = list(reversed(paragraphs.items()))[: params.around]
        if caption is None or not told:
            return []
        words = [text.replace(TOKEN, "image") for text, _ in told]
        picture = f"{TOKEN}\n{' '.join(caption[2].split()).replace(TOKEN, 'image')}"
        return [{
            "kind": "interleaved", "text": "\n\n".join([words[0], picture, *words[1:]]), "roi_ids": [],
            "evidence": [f"text:{id}" for id in (caption[0], *(id for _, id in told))], "language": _language(sample),
            "generator": f"{NAME}@{VERSION}",
        }]

    return captions


def _language(sample: SampleRows) -> str:
    return next((str(row["language"]) for row in sample.rows("texts") if row["kind"] in CAPTIONS), "en")
