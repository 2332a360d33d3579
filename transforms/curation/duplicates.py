"""Whether two pictures are one picture: laid over each other and compared, not guessed from hashes.

The invariant: a pair whose pictures do not lie over each other in their fine structure is never called the same,
however alike their subjects are; and with no view supposed the score does not depend on which of the two comes first.

Two chest x-rays of two people in one view are alike in all that is coarse, so hashes and embeddings find them near
(arXiv 2606.10066: all of 20 flagged pairs were different patients). What tells them apart is fine: ribs, vessels,
noise. So both pictures are reduced to it (each pixel against its surroundings, in units of their spread, which also
makes windows cancel), one is sought in the other at several scales, mirrored and not, and the score is the correlation
where it lies best.

>>> match(chest, cropped_and_saved_as_jpeg).score
0.87
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from transforms.curation.hashes import grey, small, trimmed
from transforms.decoded import Pixels

Plane = npt.NDArray[np.float64]
K = TypeVar("K", str, int)

COARSE, FINE = 64, 128
"""Pixels of the longer side at which a place is sought, and at which the score is taken."""
HOPELESS = 0.3
"""A pair that does not lie better than this at COARSE is not laid over each other at FINE."""
SCALES = tuple(round(0.6 * (1 / 0.6) ** (step / 18), 4) for step in range(19))
"""Sizes of the part in the whole: from 0.6 of its side to all of it, 3 % apart."""
BLUR = 2.0
"""Standard deviation, pixels, of the surroundings that a pixel is compared with."""
LEAST_SPREAD = 3.0
"""Grey levels: a plainer place has no structure of its own, only noise."""
DIGITS = 4


@dataclass(frozen=True)
class Match:
    """How well two pictures lie over each other."""

    score: float
    """correlation of their fine structure where they overlap, -1 to 1; of one picture twice it is 1"""
    mirrored: bool = False
    scale: float = 1.0
    """side of the smaller part in the larger picture, as a share of it"""


@dataclass(frozen=True)
class Look:
    """A picture made ready for comparison; make it with `look`."""

    base: Pixels
    """grey, its border trimmed, the longer side at most FINE"""
    kept: dict[tuple[int, int, bool], Plane] = field(default_factory=dict, compare=False, repr=False)

    def fine(self, height: int, width: int, mirrored: bool = False) -> Plane:
        """Its fine structure at this size; zero where it is plain."""
        key = (height, width, mirrored)
        if key not in self.kept:
            picture = Image.fromarray(np.ascontiguousarray(self.base[:, ::-1] if mirrored else self.base))
            self.kept[key] = _structure(np.asarray(picture.resize((width, height), _filter(picture, width))))
        return self.kept[key]

    def size(self, side: float) -> tuple[int, int]:
        """(height, width) with the longer side so long."""
        height, width = self.base.shape
        scale = side / max(height, width)
        return max(8, round(height * scale)), max(8, round(width * scale))


def look(pixels: Pixels) -> Look:
    """Make a picture ready; 8-bit pixels, grey or RGB."""
    return Look(small(trimmed(grey(pixels)), FINE))


def match(a: Look, b: Look, view: str = "") -> Match:
    """How well two pictures lie over each other, the smaller part in the larger, in the best of all places tried.

    `view` is what is supposed already, as a name of `hashes.views`: that a is about this view of b. Then only such
    places are tried, a tenth of all.
    """
    tries = sorted(
        ((_peak(*((a, b) if turn == 0 else (b, a)), scale, mirrored, COARSE), scale, mirrored, turn)
         for scale, mirrored, turn in _places(view)), reverse=True,
    )
    if tries[0][0] < HOPELESS:
        return Match(round(tries[0][0], DIGITS), tries[0][2], tries[0][1] or 1.0)

    def fine(scale: float, mirrored: bool, turn: int) -> Match:
        part, whole = (a, b) if turn == 0 else (b, a)
        score = round(_peak(part, whole, scale, mirrored, FINE), DIGITS)
        return Match(score, mirrored, round(scale or 1.0, 2))

    found = [(fine(scale, mirrored, turn), (scale, mirrored, turn)) for _, scale, mirrored, turn in tries[:2]]
    best, (scale, mirrored, turn) = max(found, key=lambda one: one[0].score)
    if scale != 0.0:
        near = [fine(scale * change, mirrored, turn) for change in (0.985, 1.015) if scale * change <= 1]
        best = max((best, *near), key=lambda one: one.score)
    return best


@cache
def _places(view: str) -> tuple[tuple[float, bool, int], ...]:
    """(scale, mirrored, which of the two is the part) to try."""
    kind, _, rest = view.partition(":")
    if kind == "crop":
        share = float(rest.partition(":")[0])
        return tuple((scale, False, 0) for scale in SCALES if abs(scale - share) < 0.13)
    least = 0.8 if kind in ("whole", "mirror") else 0.0
    sides = {"whole": (False,), "mirror": (True,)}.get(kind, (False, True))
    return tuple(
        (scale, mirrored, turn) for turn in (0, 1) for mirrored in sides for scale in (0.0, *SCALES)
        if (turn == 0 or scale not in (0.0, 1.0)) and (scale == 0.0 or scale >= least)
    )


def _peak(part: Look, whole: Look, scale: float, mirrored: bool, side: int) -> float:
    """The best normalised correlation of the part within the whole. Scale 0: stretched to the whole's very shape."""
    side = min(side, max(*part.base.shape, *whole.base.shape))
    height, width = whole.size(side)
    if scale == 0.0:
        return _correlation(part.fine(height, width, mirrored), whole.fine(height, width))
    # the longer side of the part as a share of the side it runs along
    rows, columns = part.base.shape
    fit = min(height / rows, width / columns) * scale
    size = (max(8, round(rows * fit)), max(8, round(columns * fit)))
    if size[0] > height or size[1] > width:
        return -1.0
    return _best_place(part.fine(*size, mirrored), whole.fine(height, width))


def _best_place(part: Plane, whole: Plane) -> float:
    """Normalised cross-correlation (Lewis 1995) at every place where the part lies wholly within."""
    from scipy.signal import fftconvolve

    rows, columns = part.shape
    part = part - part.mean()
    norm = float(np.sqrt((part**2).sum()))
    if norm < 1e-9:
        return -1.0
    product = fftconvolve(whole, part[::-1, ::-1], mode="valid")
    total, squares = _sums(whole, rows, columns), _sums(whole**2, rows, columns)
    spread = np.sqrt(np.maximum(squares - total**2 / part.size, 0))
    scores = np.where(spread > 0.05 * np.sqrt(part.size), product / np.maximum(norm * spread, 1e-9), -1.0)
    return float(scores.max())


def _sums(plane: Plane, rows: int, columns: int) -> Plane:
    """Sums over every window of that size."""
    sums = np.pad(plane, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return np.asarray(sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns])


def _correlation(a: Plane, b: Plane) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / norm if norm > 1e-9 else -1.0


def _structure(picture: Pixels) -> Plane:
    """Each pixel's difference from its surroundings in units of their spread, at most 3 of them."""
    from scipy.ndimage import gaussian_filter

    values = picture.astype(np.float64)
    high = values - gaussian_filter(values, BLUR)
    spread = np.sqrt(gaussian_filter(high**2, 2 * BLUR))
    return np.asarray(np.clip(high / np.maximum(spread, LEAST_SPREAD), -3, 3))


def _filter(picture: Image.Image, width: int) -> Image.Resampling:
    return Image.Resampling.BOX if width < picture.width * 0.75 else Image.Resampling.BICUBIC


def components(pairs: Iterable[tuple[K, K]]) -> dict[K, K]:
    """Member -> the smallest member of its connected component, for all that stand in a pair."""
    parent: dict[K, K] = {}

    def root(x: K) -> K:
        parent.setdefault(x, x)
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for a, b in pairs:
        first, second = sorted((root(a), root(b)))
        parent[second] = first
    return {x: root(x) for x in list(parent)}
