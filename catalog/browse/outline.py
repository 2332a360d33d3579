"""The outline of a region as an SVG path, along the edges of its pixels.

The invariant: the path encloses exactly the pixels of the mask (holes too, by the rule evenodd), so a reviewer sees
what is stored, not a smoothed likeness of it.

>>> outline(row_with_box_only)
'M2 2H22V12H2Z'
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from catalog.masks import Mask, decode_mask


def outline(roi: Mapping[str, Any]) -> str:
    """The path of a row of `rois`, in pixels of the stored image: of its mask, else of its box.

    A mask that is broken gives its box: the page must open to show what is wrong.
    """
    x0, y0, x1, y1 = roi["box"]
    if roi["mask"] is not None:
        try:
            return path_of(decode_mask(roi["mask"]))
        except ValueError:
            pass
    return f"M{x0} {y0}H{x1}V{y1}H{x0}Z"


def path_of(mask: Mask) -> str:
    """The closed paths around a (height, width) mask; "" for an empty one."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    ends: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # each edge has the region on its right; (from, to) relative to the pixel's upper left corner, as x, y
    for missing, start, end in (
        (padded[:-2, 1:-1], (0, 0), (1, 0)), (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)), (padded[1:-1, :-2], (0, 1), (0, 0)),
    ):
        for y, x in np.argwhere(inside & ~missing).tolist():
            ends.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    loops = []
    for first in sorted(ends):
        while ends[first]:
            corners, at = [first], ends[first].pop()
            while at != first:
                corners.append(at)
                at = ends[at].pop()
            loops.append(_written(corners))
    return "".join(loops)


def _written(corners: list[tuple[int, int]]) -> str:
    """A loop as a path, a command a straight line."""
    turns = [
        b for a, b, c in zip([corners[-1], *corners[:-1]], corners, [*corners[1:], corners[0]], strict=True)
        if not (a[0] == b[0] == c[0] or a[1] == b[1] == c[1])
    ]
    steps = [f"H{b[0]}" if a[1] == b[1] else f"V{b[1]}" for a, b in pairwise(turns)]
    return f"M{turns[0][0]} {turns[0][1]}{''.join(steps)}Z"
