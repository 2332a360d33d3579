"""Expert: the two lung fields of a frontal chest radiograph.

The invariant: both lungs or none, and each is called by the patient's side: the patient faces the viewer, so the lung
on the image's left is the right lung, unless `images.orientation` says that columns grow to the patient's right.
Box-grade (trust "box"): it tells where the lungs lie; what heart and diaphragm cover is in part left out.

Method: local contrast by CLAHE (Zuiderveld, Graphics Gems IV, 1994) on a copy of 256 px; on either side of the
mediastinum, the dark parts and their convex hulls at a sweep of thresholds; the pair that is best in size, symmetry,
compactness and edge. Where no pair looks like two lungs, none is found. Where the column `view` does not say that the
picture is frontal, a mediastinum must stand between the two: the brightest column from the middle of one to that of the
other is brighter, by `between` of the equalised scale, than the brighter of those middles. In a lateral view heart and
spine lie across the two dark fields, and there is no such column: the picture is refused. Another part of the body the
pixels alone hardly tell: the column `anatomy` does.

Measured on six radiographs with lung masks of the covid-chestxray set (masks reach behind the heart): found in five,
Dice 0.86 to 0.91, mean 0.88; the sixth was refused. On 40 small NIH radiographs without masks, looked at: found in 31,
each pair in its place. `area`, `clip` and `least` were chosen on the same six. The mediastinum, told the
view of none: of the 104 pairs found on 13 PA views of covid-chestxray and 120 pictures of NIH, the least was 0.16;
the one lateral view there is had 0.05, and a lateral projection of a chest CT 0.10. Two pictures set the limit between
them, so it is a first guess: look at what it refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from infra.errors import Dropped
from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Class
from transforms.experts.foreground import grey
from transforms.experts.shapes import Floats, Mask, grown, hull, shrunk

NAME = "lung_fields"
VERSION = "2"
REQUIRES: Mapping[str, str] = {"scipy": "scipy"}
CARD = Card(
    family="classical", trust="box", kinds=("radiology",), modalities=("CR", "DX", "RG"),
    anatomy=("chest", "thorax", "lung"), classes=(Class("right lung", "organ"), Class("left lung", "organ")),
)
TRUST = CARD.trust

FRONTAL = ("pa", "ap", "frontal")
"""First words of the views that are looked at."""
SIDE = 256
"""Longer side, in pixels, of the copy that is looked at."""
BLACK = 12
"""Grey level up to which a pixel shows air beside the patient or a collimator."""
LEVELS = np.linspace(0.08, 0.7, 32)
"""The sweep of thresholds, as shares of the pixels of the body."""
SOFT = 3.5
"""Gaussian, in pixels of the copy, over the equalised picture before its columns are compared: ribs do not count."""
TALL = 1.9
"""Usual height of a lung field over its width."""


class Params(BaseModel):
    """What a recipe may set for the lung field expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    area: float = Field(0.2, gt=0, lt=1, description="expected area of one lung, as a share of the imaged body")
    clip: float = Field(4.0, gt=1, description="CLAHE: a tile's histogram is cut at so many times its mean")
    least: float = Field(0.05, ge=0, le=1, description="pairs that score less are no lungs")
    between: float = Field(
        0.13, ge=0, le=1, description="how much brighter the mediastinum is than the lungs beside it, of black to "
        "white after equalisation; asked for where the view is not stated"
    )


@dataclass(frozen=True)
class Part:
    """A dark part on one side of the mediastinum, and how much it looks like a lung."""

    mask: Mask
    area: int
    top: int
    bottom: int
    score: float


def applies(image: Mapping[str, Any]) -> str | None:
    """Why the expert does not look at this image (a row of `images`), or None when it does."""
    view = (image.get("view") or "").casefold().split()
    if view and view[0] not in FRONTAL:
        return CARD.why_not(image) or f"looks at frontal views, not at {' '.join(view)}"
    return CARD.why_not(image)


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> Iterator[Region]:
    """The two lungs, the one on the image's left first, or nothing.

    Raises Dropped NOT_FRONTAL where the view is not stated and no mediastinum stands between the two.
    """
    from scipy import ndimage

    small = grey(shrunk(pixels, SIDE))
    body = ndimage.binary_opening(ndimage.gaussian_filter(small, 2.0) > BLACK, iterations=3)
    if body.mean() < 0.1 or min(small.shape) < SIDE / 4:
        return
    smooth = ndimage.gaussian_filter(_clahe(small, params.clip), 2.0)
    left_half = np.arange(small.shape[1])[None, :] < _mediastinum(small, body)
    lefts, rights = (list(_parts(smooth, body, half, params.area)) for half in (left_half, ~left_half))
    pairs = [(a.score * b.score * _alike(a, b), a, b) for a in lefts for b in rights]
    if not pairs:
        return
    score, *lungs = max(pairs, key=lambda pair: pair[0])
    if score < params.least:
        return
    if not image.get("view") and (found := _between(smooth, *lungs)) < params.between:
        raise Dropped(
            "NOT_FRONTAL", f"the view is not stated, and no mediastinum stands between two lungs ({found:.2f}, least "
            f"{params.between:.2f}): it may be a lateral view; state the view in the source where it is frontal"
        )
    mirrored = (image.get("orientation") or "L")[0] == "R"
    labels = ("left lung", "right lung") if mirrored else ("right lung", "left lung")
    for label, lung in zip(labels, lungs, strict=True):
        yield Region(label=label, role="organ", mask=grown(lung.mask, pixels.shape))


def _mediastinum(values: Floats, body: Mask) -> int:
    """The brightest column in the middle third of the body: spine, heart and great vessels."""
    from scipy import ndimage

    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    top, height = int(rows[0]), int(np.ptp(rows)) + 1
    left, third = int(columns[0]), (int(np.ptp(columns)) + 1) // 3
    chest = values[top + height // 5 : top + 7 * height // 10]
    profile = ndimage.gaussian_filter1d(chest.mean(axis=0), 5.0)
    return left + third + int(np.argmax(profile[left + third : left + 2 * third]))


def _parts(smooth: Floats, body: Mask, half: Mask, share: float) -> Iterator[Part]:
    """The hulls of dark parts of one half of the body, at all thresholds, that are about as large as a lung."""
    from scipy import ndimage

    steep = np.hypot(*np.gradient(smooth))
    usual = float(steep[body].mean()) + 1e-9
    outside = ndimage.binary_dilation(~body, iterations=2, border_value=1)
    expected = share * float(body.sum())
    for level in np.quantile(smooth[body], LEVELS):
        dark = ndimage.binary_opening((smooth < level) & body & half, iterations=3)
        parts, count = ndimage.label(dark)
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        for part in range(1, count + 1):
            if not 0.2 * expected < sizes[part] < 2.5 * expected:
                continue
            mask = hull(parts == part) & half
            area = int(mask.sum())
            rows, columns = np.nonzero(mask)
            rim = mask & ~ndimage.binary_erosion(mask)
            edge = min(1.0, float(steep[rim].mean()) / usual / 2)
            free = 1 - float(outside[rim].mean())
            tall = (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
            likely = _usual(area / expected, 0.5) * _usual(tall / TALL, 0.5)
            score = edge * free**2 * float(sizes[part]) / area * likely
            yield Part(mask, area, int(rows.min()), int(rows.max()), score)


def _between(smooth: Floats, left: Part, right: Part) -> float:
    """How much the brightest column between the middles of two parts is brighter than either, over their rows."""
    from scipy import ndimage

    rows = slice(max(left.top, right.top), min(left.bottom, right.bottom) + 1)
    profile = ndimage.gaussian_filter(smooth, SOFT)[rows].mean(axis=0)
    first, last = (int(np.nonzero(part.mask)[1].mean()) for part in (left, right))
    if first >= last:
        return 0.0
    return float(profile[first:last].max() - max(profile[first], profile[last]))


def _usual(ratio: float, spread: float) -> float:
    """1 where a ratio is 1, less the further its logarithm is away."""
    return float(np.exp(-((np.log(ratio) / spread) ** 2) / 2))


def _alike(a: Part, b: Part) -> float:
    """How much two parts are of one size, and at one height."""
    common = min(a.bottom, b.bottom) - max(a.top, b.top)
    whole = max(a.bottom, b.bottom) - min(a.top, b.top)
    return float(max(0, common) / max(1, whole) * np.sqrt(min(a.area, b.area) / max(a.area, b.area)))


def _clahe(values: Floats, clip: float, tiles: int = 8) -> Floats:
    """Contrast-limited adaptive histogram equalisation of 0 to 255; the answer is 0 to 1."""
    from scipy import ndimage

    levels = values.astype(int)
    maps = np.empty((tiles, tiles, 256))
    for i, rows in enumerate(np.array_split(levels, tiles, axis=0)):
        for j, tile in enumerate(np.array_split(rows, tiles, axis=1)):
            counts = np.bincount(tile.ravel(), minlength=256).astype(float)
            top = clip * counts.mean()
            curve = np.cumsum(np.minimum(counts, top) + np.maximum(counts - top, 0).sum() / 256)
            maps[i, j] = curve / curve[-1]
    at = [(np.arange(n) + 0.5) / n * tiles - 0.5 for n in values.shape]
    grid = np.broadcast_arrays(at[0][:, None], at[1][None, :], levels)
    return np.asarray(ndimage.map_coordinates(maps, np.stack(grid), order=1, mode="nearest"))
