"""Expert: a semantic segmentation model in a folder (SegFormer, UperNet, BEiT, DPT …), one class a pixel.

The invariant: a pixel belongs to at most one region, regions lie on the grid of the stored picture, and only classes
that the recipe names become regions. A picture without any of them has no regions, and that is an answer.

    - use: ground
      experts: [label_map]
      options:
        label_map:
          model: /models/segformer-lungs
          labels: {LUNG: {label: lung, role: organ}, "3": {label: heart, role: organ}}
          modalities: [DX, CR]

Method: the model's scores are enlarged to the picture (bilinear) and the best class of each pixel is taken; the score
of a region is its pixels' mean probability. With `patch`, a picture larger than that is seen through windows of so many
pixels that overlap by a quarter; each pixel is taken from the window in which it lies furthest inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from transforms.adapters.folders import model_folder
from transforms.adapters.networks import DIGITS, REQUIRES, Network, finite, opened, steady, whole_picture
from transforms.adapters.wanted import ClassParams, card_of, class_ingredients, class_values, refuse_others
from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Trust

__all__ = ["REQUIRES"]

NAME = "label_map"
VERSION = "1"
CARD = Card(
    family="label_map", trust="boundary", value_space="rgb8", licence_weights="as the model says", commercial=None
)
TRUST = CARD.trust

OVERLAP = 0.25
"""Share of a window that it has in common with the next."""
AT_ONCE = 16
"""Classes enlarged at a time: a model of 150 classes need not hold 150 pictures."""


class Params(ClassParams):
    """What a recipe may set for the label_map expert."""

    patch: int | None = Field(None, ge=32, description="side, in pixels, of windows a larger picture is seen through")
    pieces: bool = Field(False, description="each connected piece of a class is a region of its own")
    min_area: int = Field(1, ge=1, description="smallest region, in pixels")
    trust: Trust = Field("boundary", description="how far its outlines may be believed: boundary, box or presence")


def card(params: Params) -> Card:
    """What it finds with these parameters."""
    classes = class_values(model_folder(params.model), params.labels)
    return card_of(CARD, params, (n.as_class(v) for v, n in classes.items()), trust=params.trust)


ingredients = class_ingredients


def applies(image: Mapping[str, Any]) -> str | None:
    """None: which pictures it looks at is for the recipe to say, and `find` keeps to it."""
    return None


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> Iterator[Region]:
    """Regions by class. Raises Dropped for a picture it is not to see, Terminal where it does not fit into memory."""
    refuse_others(card(params), image)
    network = opened("AutoModelForSemanticSegmentation", params)
    whole_picture(network)
    values, shares = _classes(network, pixels, params)
    for value, named in class_values(network.folder, params.labels).items():
        for mask in _pieces(values == value, params.pieces):
            if mask.sum() >= params.min_area:
                score = round(float(shares[mask].mean()), DIGITS)
                yield Region(named.label, named.role, mask=mask, ontology_id=named.ontology_id, score=score)


def _pieces(mask: npt.NDArray[np.bool_], apart: bool) -> Iterator[npt.NDArray[np.bool_]]:
    if not apart:
        yield mask
        return
    from scipy import ndimage

    pieces, count = ndimage.label(mask, structure=np.ones((3, 3)))
    for piece in range(1, count + 1):
        yield pieces == piece


def _classes(network: Network, pixels: Pixels, params: Params) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The best class of each pixel and its probability, (height, width) each."""
    height, width = pixels.shape[:2]
    values, shares = np.zeros((height, width), np.int32), np.zeros((height, width), np.float32)
    places = [(rows, columns) for rows in windows(height, params.patch) for columns in windows(width, params.patch)]

    def seen(batch: Sequence[tuple[Window, Window]]) -> list[tuple[Any, Any]]:
        with steady():
            cuts = [pixels[rows.start : rows.stop, columns.start : columns.stop] for rows, columns in batch]
            logits = finite(network.model(**network.prepared(cuts)).logits)
            size = cuts[0].shape[:2]
            return [_best(one, size) for one in logits]

    found = (answer for answers in network.batches(seen, places, params.batch) for answer in answers)
    for (rows, columns), (best, share) in zip(places, found, strict=True):
        kept = np.s_[rows.first : rows.last, columns.first : columns.last]
        own = np.s_[rows.first - rows.start : rows.last - rows.start,
                    columns.first - columns.start : columns.last - columns.start]
        values[kept], shares[kept] = best[own], share[own]
    return values, shares


def _best(logits: Any, size: tuple[int, ...]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """(classes, h, w) scores to the best class and its softmax at full size, some classes at a time."""
    import torch

    best = torch.full(size, -torch.inf, device=logits.device)
    total, number = torch.zeros_like(best), torch.zeros_like(best, dtype=torch.int64)
    for start in range(0, len(logits), AT_ONCE):
        some = logits[None, start : start + AT_ONCE]
        large = torch.nn.functional.interpolate(some, size=size, mode="bilinear", align_corners=False)[0]
        peak, which = large.max(0)
        higher = torch.maximum(best, peak)
        total = total * (best - higher).exp() + (large - higher).exp().sum(0)
        number, best = torch.where(peak > best, which + start, number), higher
    return number.int().cpu().numpy(), (1 / total).cpu().numpy()


@dataclass(frozen=True)
class Window:
    """A stretch of an axis that is seen, [start, stop), and the part of it that is kept, [first, last)."""

    start: int
    stop: int
    first: int
    last: int


def windows(length: int, patch: int | None) -> list[Window]:
    """Windows of `patch` pixels that cover an axis; what they keep covers it once. One window where there is no need.

    >>> windows(10, 6)
    [Window(start=0, stop=6, first=0, last=5), Window(start=4, stop=10, first=5, last=10)]
    """
    if patch is None or patch >= length:
        return [Window(0, length, 0, length)]
    count = int(np.ceil((length - patch) / (patch * (1 - OVERLAP)))) + 1
    starts = [round(number * (length - patch) / (count - 1)) for number in range(count)]
    edges = [0, *((a + patch + b) // 2 for a, b in pairwise(starts)), length]
    return [Window(s, s + patch, a, b) for s, (a, b) in zip(starts, pairwise(edges), strict=True)]
