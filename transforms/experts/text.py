"""Expert: text in a picture, such as labels, scales and what is burned into it.

The invariant: it tells where text lies and never what it says: words in a picture may name a patient, so they are
neither kept nor logged. Every label is "text". Box-grade (trust "box").

Method: transforms/pictures/ocr.py finds the lines and reads them; what cannot be read is no text. Looks at pictures of
every modality, also where that is unknown. Not measured here; single letters may be missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Class
from transforms.pictures.imagefile import shrink
from transforms.pictures.ocr import DETECTOR, RECOGNISER, read_words
from transforms.pictures.ocr import REQUIRES as OCR_REQUIRES

NAME = "text"
VERSION = "1"
REQUIRES: Mapping[str, str] = {**OCR_REQUIRES}
CARD = Card(
    family="detector", trust="box", classes=(Class("text", "text"),), value_space="rgb8",
    licence_weights="Apache-2.0",
)
TRUST = CARD.trust


class Params(BaseModel):
    """What a recipe may set for the text expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_side: int = Field(1280, ge=200, description="longer side, in pixels, that pictures are shrunk to before")
    min_score: float = Field(0.5, ge=0, le=1, description="words read with less certainty are left out")
    threads: int = Field(1, ge=1, exclude=True, description="threads of the models")


def ingredients(params: Params) -> Mapping[str, str]:
    """Model file -> its SHA-256."""
    return dict((DETECTOR, RECOGNISER))


def applies(image: Mapping[str, Any]) -> str | None:
    """None: every picture may hold text."""
    return None


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> Iterator[Region]:
    """One region a run of text, from top to bottom."""
    small, scale = shrink(pixels, params.max_side)
    for word in read_words(small, params.min_score, params.threads):
        x0, y0, x1, y1 = (edge / scale for edge in word.box)
        yield Region(label="text", role="text", box=(x0, y0, x1, y1), score=round(word.score, 3))
