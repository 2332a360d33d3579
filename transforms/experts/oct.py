"""Expert: the band of the retina in an OCT B-scan, from the inner limiting membrane to the pigment epithelium.

The invariant: at most one region, one run of rows in each column it covers; a picture without a band across it has
none. Its outline is believed (trust "boundary") where the layers run through; at the optic disc, where the pigment
epithelium ends, the lower line is a guess between its sides.

Method: smoothed against speckle; what is over Otsu's threshold and runs across; the upper line (ILM) along the steepest
dark-to-bright edge near the band's upper side; the lower (RPE) along the brightest ridge in the lower part of the band,
then down to the steepest bright-to-dark edge. Each line is the best path from left to right by dynamic programming
(after Chiu et al., Opt. Express 18:19413, 2010).

Not measured here, since no B-scans with references are at hand. Another writing of the method had a Dice of 0.97 on
three Cirrus scans of the disc.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Class
from transforms.experts.foreground import closed, grey, otsu
from transforms.experts.shapes import Floats, Mask, grown, shrunk

NAME = "retina_band"
VERSION = "1"
REQUIRES: Mapping[str, str] = {"scipy": "scipy"}
CARD = Card(
    family="classical", trust="boundary", kinds=("ophthalmology",), modalities=("OPT", "OCT"),
    classes=(Class("retina", "organ"),),
)
TRUST = CARD.trust

SIDE = 512
"""Longer side, in pixels, of the copy that is looked at."""
SPECKLE = (2.0, 4.0)
"""Standard deviation, in rows and columns, of the smoothing."""
STEP = 2
"""Rows that a line may move from one column to the next."""

Rows = npt.NDArray[np.int64]
"""a row for each column"""


class Params(BaseModel):
    """What a recipe may set for the retina expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    span: float = Field(0.7, gt=0, le=1, description="least width of the band, as a share of the scan's")
    lower: float = Field(0.4, ge=0, lt=1, description="the pigment epithelium lies below this share of the band")
    vitreous: float = Field(0.6, gt=0, le=1, description="most brightness above the retina, as a share of the retina's")
    thin: float = Field(0.03, gt=0, description="least thickness of the retina, as a share of the scan's height")


def applies(image: Mapping[str, Any]) -> str | None:
    """Why the expert does not look at this image (a row of `images`), or None when it does."""
    return CARD.why_not(image)


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> list[Region]:
    """The retina, or nothing."""
    from scipy import ndimage

    small = grey(shrunk(pixels, SIDE))
    smooth = ndimage.gaussian_filter(small, SPECKLE)
    threshold = otsu(smooth)
    if threshold is None:
        return []
    band = _across(closed(smooth > threshold, 3))
    columns = np.flatnonzero(band.any(axis=0))
    if columns.size < params.span * band.shape[1]:
        return []
    first, last = columns[0], columns[-1] + 1
    rows = np.arange(band.shape[0])[:, None]
    upper, lower = _lines(smooth[:, first:last], band[:, first:last], params)
    found, vitreous = np.zeros(band.shape, bool), np.zeros(band.shape, bool)
    found[:, first:last] = (rows >= upper) & (rows <= lower)
    vitreous[:, first:last] = rows < upper
    thin = np.median(lower - upper) < params.thin * band.shape[0]
    if thin or not vitreous.any() or smooth[vitreous].mean() > params.vitreous * smooth[found].mean():
        return []
    return [Region(label="retina", role="organ", mask=grown(found, pixels.shape))]


def _across(bright: Mask) -> Mask:
    """The parts that run across at least a third of the scan."""
    from scipy import ndimage

    parts, _ = ndimage.label(bright)
    long = [0.33 * bright.shape[1] <= window[1].stop - window[1].start for window in ndimage.find_objects(parts)]
    return np.asarray(np.array([False, *long])[parts])


def _lines(smooth: Floats, band: Mask, params: Params) -> tuple[Rows, Rows]:
    """The rows of the ILM and of the lower edge of the RPE."""
    from scipy import ndimage

    height, width = band.shape
    here = np.flatnonzero(band.any(axis=0))
    top = np.interp(np.arange(width), here, band.argmax(axis=0)[here])
    bottom = np.interp(np.arange(width), here, height - 1 - band[::-1].argmax(axis=0)[here])
    top, bottom = (ndimage.median_filter(line, 31, mode="nearest") for line in (top, bottom))
    edge = ndimage.gaussian_filter1d(smooth, 2.0, axis=0, order=1)
    upper = _path(edge, top - 0.03 * height - 4, top + 0.03 * height + 4)
    start = upper + np.maximum(params.lower * (bottom - upper), params.thin * height)
    ridge = _path(smooth, start, np.maximum(bottom, start + 4))
    lower = _path(-edge, ridge.astype(float), ridge + 0.03 * height)
    return upper, lower


def _path(gain: Floats, above: Floats, below: Floats) -> Rows:
    """The line from left to right, within the two given, along which the sum of `gain` is largest."""
    height, width = gain.shape
    rows = np.arange(height)[:, None]
    allowed = (rows >= np.clip(above, 0, height - 1).astype(int)) & (rows <= np.clip(below, 0, height - 1).astype(int))
    gain = np.where(allowed, gain / (np.abs(gain).max() + 1e-9), -1e3)
    total, came = gain[:, 0], np.zeros(gain.shape, np.int64)
    for column in range(1, width):
        padded = np.pad(total, STEP, constant_values=-np.inf)
        options = np.stack([padded[shift : shift + height] for shift in range(2 * STEP + 1)])
        best = options.argmax(axis=0)
        came[:, column] = rows[:, 0] + best - STEP
        total = options[best, rows[:, 0]] + gain[:, column]
    line = np.empty(width, np.int64)
    line[-1] = int(total.argmax())
    for column in range(width - 1, 0, -1):
        line[column - 1] = came[line[column], column]
    return line
