"""Expert: the imaged body, or the field of view, as one region.

The invariant: at most one region, in one piece and without holes; a blank image has none, and that is an answer. The
outline is box-grade (trust "box"): it tells where the patient lies in the picture, not how large the patient is.

Method: smooth (Gaussian), threshold at `share` of Otsu's (IEEE Trans. SMC 9:62, 1979), opening, closing over gaps of
`gap` of the shorter side (muscle between bright fat; anechoic parts of a sector), largest component that is
not plain white (a collimator, a label), fill.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Class
from transforms.vocabulary import modality

NAME = "foreground"
VERSION = "1"
REQUIRES: Mapping[str, str] = {"scipy": "scipy"}

LABELS: Mapping[str, str] = {
    "radiology": "imaged body", "nuclear": "imaged body", "ultrasound": "field of view", "endoscopy": "field of view",
    "ophthalmology": "field of view",
}
"""kind of modality (vocabulary.yaml) -> what its foreground is called"""
CARD = Card(
    family="classical", trust="box", kinds=tuple(LABELS),
    classes=(Class("imaged body", "body"), Class("field of view", "body")),
)
TRUST = CARD.trust

GAP = 0.005
GAPS: Mapping[str, float] = {"ultrasound": 0.03}
"""An ultrasound sector is full of dark gaps; anywhere else a wide closing would join the patient to the table."""
WHITE = 250
"""A part with half of its pixels at least this bright is a collimator or a label, no tissue."""


class Params(BaseModel):
    """What a recipe may set for the foreground expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(0.3, gt=0, le=1, description="threshold, as a share of Otsu's")
    gap: float | None = Field(
        None, ge=0, le=0.2, description="gaps closed, as a share of the shorter side; null: 0.03 for ultrasound, "
        "else 0.005",
    )
    min_area: float = Field(0.02, ge=0, le=1, description="smallest foreground, as a share of the image")


def applies(image: Mapping[str, Any]) -> str | None:
    """Why the expert does not look at this image (a row of `images`), or None when it does."""
    named = modality(image.get("modality"))
    if named is None:
        return "the modality is unknown"
    return None if named.kind in LABELS else f"does not look at {named.name}"


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> list[Region]:
    """The foreground, or nothing where the image is blank or no bright part is large enough."""
    from scipy import ndimage

    named = modality(image.get("modality"))
    kind = named.kind if named else "radiology"
    gap = params.gap if params.gap is not None else GAPS.get(kind, GAP)
    values = grey(pixels)
    smooth = ndimage.gaussian_filter(values, max(1.0, min(values.shape) / 256))
    threshold = otsu(smooth)
    if threshold is None:
        return []
    lowest = float(smooth.min())
    bright = ndimage.binary_opening(smooth > lowest + params.share * (threshold - lowest), iterations=2)
    pieces, count = ndimage.label(closed(bright, round(gap * min(values.shape))))
    areas = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    for part in np.argsort(-areas, kind="stable")[:count]:
        mask = pieces == part + 1
        if areas[part] < params.min_area * mask.size:
            break
        if np.median(values[mask]) < WHITE:
            mask = ndimage.binary_fill_holes(mask)
            return [Region(label=LABELS.get(kind, "imaged body"), role="body", mask=mask)]
    return []


def closed(mask: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:
    """Closing with a disc, by distances: as fast for a large radius as for a small one."""
    from scipy import ndimage

    if radius < 1 or not mask.any():
        return mask
    padded = np.pad(mask, radius)  # so that the closing does not stick to the rim of the image
    grown = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(grown) > radius
    return np.asarray(closed[radius:-radius, radius:-radius] | mask)


def grey(pixels: Pixels) -> npt.NDArray[np.float64]:
    """(height, width) brightness: the pixels, or the brightest channel of a colour image (a blue stain counts)."""
    return (pixels if pixels.ndim == 2 else pixels.max(axis=2)).astype(np.float64)


def otsu(values: npt.NDArray[np.float64]) -> float | None:
    """The threshold that splits the values into the two classes furthest apart; None where all are equal."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        return None
    counts, edges = np.histogram(values, 256, (low, high))
    below = np.cumsum(counts)[:-1]
    above = values.size - below
    sums = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    between = (sums[-1] * below - sums[:-1] * values.size) ** 2 / (below * above)
    return float(edges[int(np.argmax(between)) + 1])
