"""Numbers that say how usable a picture is: plain arithmetic on its grey values, no model.

The invariant: each number has a unit and a range that do not depend on the dataset, and thresholds stay with whoever
asks, save one: a picture of at most MASK_LEVELS grey levels is a drawing or a mask, not a picture of anything.

>>> numbers(np.zeros((64, 64), np.uint8)).grey_levels
1
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from transforms.curation.hashes import grey, small, trimmed
from transforms.decoded import Pixels

SIDE = 512
"""Pixels of the longer side at which sharpness is taken, so that sizes can be compared; smaller ones are left."""
MASK_LEVELS = 3
"""SAM-Med2D issue 63: masks of at most 3 grey levels were handed out as images."""


@dataclass(frozen=True)
class Numbers:
    """What was measured on a picture without its plain border, save where it says otherwise."""

    sharpness: float
    """variance of the Laplacian, grey levels squared; it grows with contrast and noise"""
    contrast: float
    """95th less 5th percentile of the grey values, 0 to 255"""
    grey_levels: int
    """different grey values in the whole picture, 1 to 256; of a colour picture, of its luma"""
    border: float
    """share of the whole picture that is plain border, 0 to 1"""


def numbers(pixels: Pixels) -> Numbers:
    """Measure a picture; 8-bit pixels, grey or RGB."""
    whole = grey(pixels)
    inner = trimmed(whole)
    low, high = np.percentile(inner, (5, 95))
    values = small(inner, SIDE).astype(np.float64)
    laplacian = (
        values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * values[1:-1, 1:-1]
    )
    return Numbers(
        sharpness=round(float(laplacian.var()), 2) if laplacian.size else 0.0,
        contrast=round(float(high - low), 1),
        grey_levels=len(np.unique(whole)),
        border=round(1 - inner.size / whole.size, 4),
    )


def covered(boxes: Iterable[Sequence[int]], width: int, height: int) -> float:
    """Share of a picture that boxes (x0, y0, x1, y1, half-open) cover between them, 0 to 1."""
    area = np.zeros((height, width), np.bool_)
    for x0, y0, x1, y1 in boxes:
        area[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = True
    return round(float(area.mean()), 4)
