"""What is measured between two regions: how far apart they are, and what they have in common.

The invariant: only outlines that may be believed are measured against each other, and a distance is exact: pixels are
squares, so the gap between two regions is always one between corners of their outlines.

    distance, distance_mm   gap between the outlines, px and mm along rows and columns; 0 where they touch or overlap
    common                  % of the smaller region that lies in the other; only where there is some
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.masks import area_of, code_of, common_area, decode_mask
from transforms.facts import related, single_rows
from transforms.measures import words
from transforms.measures.picture import DIGITS, Measure, Measures, Picture

Row = Mapping[str, Any]
PIXELS = (1.0, 1.0)
"""The spacing in which distances are pixels."""


@dataclass(frozen=True)
class Outline:
    """The corners at which a region's outline runs, and a tree to search them."""

    row: Row
    spacing: tuple[float, float] = PIXELS

    @cached_property
    def corners(self) -> npt.NDArray[np.float64]:
        """(n, 2) row and column, in pixels or, with a spacing, in mm."""
        x0, y0, x1, y1 = self.row["box"]
        mask = np.pad(decode_mask(self.row["mask"], (x0, y0, x1, y1)), 1).view(np.uint8)
        around = mask[:-1, :-1] + mask[1:, :-1] + mask[:-1, 1:] + mask[1:, 1:]
        rows, columns = np.nonzero((around > 0) & (around < 4))
        return np.stack([(rows + y0) * self.spacing[0], (columns + x0) * self.spacing[1]], axis=1)

    @cached_property
    def tree(self) -> Any:
        from scipy.spatial import cKDTree

        return cKDTree(self.corners)

    def gap(self, other: Outline) -> float:
        """The gap to another outline."""
        a, b = (self, other) if len(self.corners) <= len(other.corners) else (other, self)
        return float(b.tree.query(a.corners)[0].min())


class Outlines:
    """The outlines of a picture's regions, each found once for each spacing."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, tuple[float, float]], Outline] = {}

    def gap(self, a: Row, b: Row, spacing: tuple[float, float] = PIXELS) -> float:
        """The gap between two regions, in units of `spacing`."""
        return self._of(a, spacing).gap(self._of(b, spacing))

    def _of(self, row: Row, spacing: tuple[float, float]) -> Outline:
        return self._found.setdefault((row["roi_id"], spacing), Outline(row, spacing))


def measured(rows: Sequence[Row]) -> list[Row]:
    """The regions whose pairs are measured: outlines that are believed, and no bodies."""
    return [row for row in rows if row["role"] != "body" and row["trust"] == "boundary" and row["mask"] is not None]


def pairs_of(
    rows: Sequence[Row], among: int, neighbours: int, most: int, outlines: Outlines
) -> Iterator[tuple[Row, Row]]:
    """Pairs to measure, the smaller region first, none twice: those of the `among` largest that are not one of many of
    a label (facts tells their relations), and each of the `most` largest with its nearest `neighbours` of these."""
    known: set[tuple[str, str]] = set()
    ranked = related(measured(rows), len(rows))
    near = ((ranked[i], ranked[j]) for i, j in _nearest(ranked[:most], neighbours, outlines))
    for larger, smaller in (*combinations(_single(rows, among), 2), *near):
        pair = smaller["roi_id"], larger["roi_id"]
        if pair not in known:
            known.add(pair)
            yield smaller, larger


def _single(rows: Sequence[Row], among: int) -> list[Row]:
    kept = {row["roi_id"] for row in measured(rows)}
    return [row for row in related(single_rows(rows), among) if row["roi_id"] in kept]


def _nearest(ranked: Sequence[Row], count: int, outlines: Outlines) -> list[tuple[int, int]]:
    """(larger, smaller) of every region and those nearest to it; candidates in order of the gap between their boxes."""
    if count == 0 or len(ranked) < 2:
        return []
    boxes = np.array([row["box"] for row in ranked], np.float64)
    gaps: dict[tuple[int, int], float] = {}
    found: dict[tuple[int, int], None] = {}
    for at in range(len(ranked)):
        across, down = (
            np.maximum(0, np.maximum(boxes[:, i] - boxes[at, i + 2], boxes[at, i] - boxes[:, i + 2])) for i in (0, 1)
        )
        least = np.hypot(across, down)
        best: list[tuple[float, int]] = []
        for other in np.argsort(least, kind="stable").tolist():
            if other == at:
                continue
            if len(best) == count and least[other] > best[-1][0]:
                break
            pair = min(at, other), max(at, other)
            if pair not in gaps:
                gaps[pair] = outlines.gap(ranked[at], ranked[other])
            best = sorted([*best, (gaps[pair], other)])[:count]
        found.update(dict.fromkeys((min(at, other), max(at, other)) for _, other in best))
    return sorted(found)


def measures_between(picture: Picture, smaller: Row, larger: Row, outlines: Outlines) -> Measures:
    """What may be measured between two regions."""
    codes = code_of(smaller["mask"]), code_of(larger["mask"])
    common = common_area(*codes)
    pixels = 0.0 if common else outlines.gap(smaller, larger)
    told = None if common else words.apart_pixels(pixels)
    yield Measure("distance", round(pixels, DIGITS), "px", told)
    if picture.spacing is not None:
        gap = outlines.gap(smaller, larger, picture.spacing) if pixels else 0.0
        told = words.apart(gap, max(picture.spacing), picture.where) if picture.in_patient and not common else None
        yield Measure("distance_mm", round(gap, DIGITS), "mm", told)
    if common:
        share = 100 * common / min(map(area_of, codes))
        yield Measure("common", round(share, DIGITS), "%")
