"""Expert: the optic disc in a fundus photograph, as the bright blob of the right size.

The invariant: at most one region, convex and within the field of view; where no bright blob of the size of a disc
stands out there is none. Box-grade (trust "box"): it tells where the disc lies; its area is not to be believed, and
large bright lesions may be taken for it.

Method: on a copy of 384 px, the mean of red and green without vessels (grey closing) and without slow shading (less
a wide Gaussian); the brightest place at the scale of a disc, `diameter` of the field of view; Otsu's threshold around
it; the part there, and its convex hull.

Not measured here, since no photographs with references are at hand. Looked at on one (the retina of scikit-image): in
its place, a third too large.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Class
from transforms.experts.foreground import closed, grey, otsu
from transforms.experts.shapes import Floats, Mask, best_part, grown, hull, shrunk

NAME = "optic_disc"
VERSION = "1"
REQUIRES: Mapping[str, str] = {"scipy": "scipy"}
CARD = Card(
    family="classical", trust="box", kinds=("ophthalmology",), modalities=("OP",),
    classes=(Class("optic disc", "organ"),), value_space="rgb8",
)
TRUST = CARD.trust

SIDE = 384
"""Longer side, in pixels, of the copy that is looked at."""
DARK = 20
"""Grey level up to which a pixel lies outside the field of view."""


class Params(BaseModel):
    """What a recipe may set for the optic disc expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    diameter: float = Field(
        0.15, gt=0, lt=1, description="expected diameter of the disc, as a share of that of the field of view; 0.15 "
        "suits a view of 45 degrees",
    )
    contrast: float = Field(
        2.5, ge=0, description="how much brighter than the retina a disc is, in standard deviations of the view"
    )


def applies(image: Mapping[str, Any]) -> str | None:
    """Why the expert does not look at this image (a row of `images`), or None when it does."""
    return CARD.why_not(image)


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> list[Region]:
    """The optic disc, or nothing."""
    from scipy import ndimage

    small = shrunk(pixels, SIDE)
    view = ndimage.binary_fill_holes(best_part(ndimage.binary_opening(grey(small) > DARK, iterations=2)))
    if view.mean() < 0.1:
        return []
    size = params.diameter * float(np.ptp(np.flatnonzero(view.any(axis=0))) + 1)
    bright = _bright(small, view, size)
    blobs = np.where(_inside(view, size / 4), ndimage.gaussian_filter(bright, size / 3), -np.inf)
    row, column = np.unravel_index(int(np.argmax(blobs)), blobs.shape)
    usual = blobs[np.isfinite(blobs)]
    if usual.size == 0 or blobs[row, column] - usual.mean() < params.contrast * usual.std():
        return []
    disc = _disc(bright, view, (int(row), int(column)), size)
    share = disc.sum() / (np.pi * (size / 2) ** 2)
    return [Region(label="optic disc", role="organ", mask=grown(disc, pixels.shape))] if 0.3 < share < 2.5 else []


def _bright(small: Pixels, view: Mask, size: float) -> Floats:
    """Brightness without vessels and shading; outside the view, that of its middle."""
    from scipy import ndimage

    values = small.astype(float) if small.ndim == 2 else small[..., :2].mean(axis=2)
    values = np.where(view, values, np.median(values[view]))
    values = ndimage.gaussian_filter(ndimage.grey_closing(values, size=max(3, round(size / 4))), size / 20)
    return np.asarray(values - ndimage.gaussian_filter(values, 1.5 * size))


def _inside(view: Mask, depth: float) -> Mask:
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(np.pad(view, 1))[1:-1, 1:-1] > depth)


def _disc(bright: Floats, view: Mask, middle: tuple[int, int], size: float) -> Mask:
    """The bright part around a place, cut by the threshold that suits its surroundings."""
    from scipy import ndimage

    rows, columns = np.ogrid[: view.shape[0], : view.shape[1]]
    away = np.hypot(rows - middle[0], columns - middle[1])
    near = view & (away < size)
    threshold = otsu(bright[near])
    if threshold is None:
        return np.zeros(view.shape, bool)
    disc = ndimage.binary_opening((bright > threshold) & near, iterations=max(1, round(size / 12)))
    return hull(closed(best_part(disc, np.exp(-((away / size) ** 2))), round(size / 10))) & view
