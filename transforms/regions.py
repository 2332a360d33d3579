"""Regions of a sample in numbers and words: rows of the layer `rois`, places, sides, relations.

The invariant: a box is always the extent of its mask, half-open and inside the image, and every word said about a place
follows from the numbers by the rules below, which are part of the product.

Place (`position`): the centre of the box against the thirds of the image, in image directions. With cx the column of
the centre: left where cx < width/3, right where cx > 2 width/3, else centre; likewise upper, middle, lower. A centre on
an edge belongs to the middle third. The nine words:

    upper left    upper center    upper right
    middle left   center          middle right
    lower left    lower center    lower right

Side (`patient_side`): the patient's right or left where at least two thirds of the width of the box lie on that side of
the midline and its centre is more than a tenth of the image's width away from it, else "midline": patients do not lie
in the very middle. The midline is the middle of the image, or the one the caller knows (of the imaged body).

Relation (`relation`): see its docstring.

>>> position(10, 10, 90, 90), patient_side((5, 5, 15, 15), 90, "LP")
('upper left', 'right')
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.masks import Runs, area_of, code_of, common_area, decode_mask, encode_mask, runs_of, runs_of_labels
from infra.errors import Terminal
from infra.keys import key
from transforms.decoded import Region

__all__ = [
    "RELATIONS", "decode_mask", "encode_mask", "patient_side", "position", "relation", "relations", "roi_row",
    "rows_of_labelmap", "scaled", "scaled_size",
]

Row = Mapping[str, Any]

RELATIONS = ("inside", "contains", "overlaps", "left of", "right of", "above", "below", "touching")
"""Every word for a relation; directions are those of the image. `relation` answers all but the last, which facts say of
a pair without another word whose measured outlines have no gap."""

MIDLINE = 0.1
"""Share of the image's width within which a centre counts as on the midline."""
INSIDE = 0.95
"""Share of the smaller region that must lie in the larger one for "inside"."""
OVERLAP = 0.05
"""Share of the smaller region that must be common for "overlaps"."""


def roi_row(
    sample_id: str, region: Region, size: tuple[int, int], *, expert: str, origin: str, trust: str,
    weights_sha256: str | None = None,
) -> dict[str, Any] | None:
    """A row of the layer `rois` for a region of an image of `size` (height, width).

    Returns None where nothing of the region lies in the image: an empty mask, a box without area or wholly outside. The
    caller leaves it out; an empty region is an answer, not an error. Raises Terminal BOX_NOT_FINITE for a box of NaN
    or infinity, ValueError for a mask of another size or a region with neither mask nor box.
    """
    if region.mask is not None:
        if region.mask.shape != size:
            raise ValueError(f"region {region.label!r}: mask is {region.mask.shape}, the image is {size}")
        rows = _rows(sample_id, [region], runs_of(region.mask), expert, origin, trust, weights_sha256)
        return rows[0] if rows else None
    box = _box(region, size)
    if box is None:
        return None
    area = (box[2] - box[0]) * (box[3] - box[1])
    return _row(sample_id, region, box, None, area, size, expert, origin, trust, weights_sha256)


def rows_of_labelmap(
    sample_id: str, labels: npt.NDArray[Any], regions: Mapping[int, Region], *, expert: str, origin: str, trust: str,
    weights_sha256: str | None = None,
) -> list[dict[str, Any]]:
    """The rows of all regions of a (height, width) map of integers, as `roi_row` would make each, in one pass.

    `regions` says what a value stands for; a Region without a mask. Values that it does not name, such as 0, are
    background; values that the map does not hold give no row. Rows come in rising order of value.
    """
    values, runs = runs_of_labels(labels, list(regions))
    return _rows(sample_id, [regions[value] for value in values], runs, expert, origin, trust, weights_sha256)


def _rows(
    sample_id: str, regions: Sequence[Region], runs: Runs, expert: str, origin: str, trust: str, weights: str | None
) -> list[dict[str, Any]]:
    """A row for each mask of the runs; none where there is none."""
    found = zip(regions, runs.boxes(), runs.codes(), runs.areas(), strict=False)  # an empty mask has no runs
    return [
        _row(sample_id, region, box, mask, area, runs.size, expert, origin, trust, weights)
        for region, box, mask, area in found
    ]


def _row(
    sample_id: str, region: Region, box: list[int], mask: dict[str, Any] | None, area: int, size: tuple[int, int],
    expert: str, origin: str, trust: str, weights: str | None,
) -> dict[str, Any]:
    height, width = size
    return {
        "sample_id": sample_id,
        "roi_id": key(sample_id, region.label, box, mask, expert),
        "label": region.label,
        "ontology_id": region.ontology_id,
        "role": region.role,
        "box": box,
        "mask": mask,
        "area_fraction": area / (height * width),
        "position": position(*_centre(box), width, height),
        "score": region.score,
        "expert": expert,
        "expert_weights_sha256": weights,
        "origin": origin,
        "trust": trust,
    }


def _box(region: Region, size: tuple[int, int]) -> list[int] | None:
    """The pixels that a box touches."""
    height, width = size
    if region.box is None:
        raise ValueError(f"region {region.label!r} has neither a mask nor a box")
    if not all(map(math.isfinite, region.box)):
        raise Terminal("BOX_NOT_FINITE", f"region {region.label!r} has the box {region.box}; correct it in the source")
    x0, y0, x1, y1 = region.box
    if x1 <= x0 or y1 <= y0:
        return None
    box = [max(0, math.floor(x0)), max(0, math.floor(y0)), min(width, math.ceil(x1)), min(height, math.ceil(y1))]
    return box if box[0] < box[2] and box[1] < box[3] else None


def scaled_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """The (height, width) of an image shrunk by `factor`: rounded, at least one pixel. `scaled` uses the same rule."""
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def scaled(region: Region, factor: float) -> Region:
    """The region in an image resized by `factor`.

    A pixel of the new mask is set where at least half of its area was covered. A region too small for that keeps its
    best covered pixels: shrinking never makes a region vanish. A box without a mask is multiplied and stays fractional.
    """
    from PIL import Image

    box, mask = region.box, region.mask
    if box is not None:
        box = (factor * box[0], factor * box[1], factor * box[2], factor * box[3])
    if mask is not None:
        height, width = scaled_size((mask.shape[0], mask.shape[1]), factor)
        area = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
        cover = np.asarray(area)
        mask = cover >= min(0.5, cover.max()) if cover.max() > 0 else np.zeros((height, width), bool)
    return replace(region, mask=mask, box=box)


def position(center_x: float, center_y: float, width: int, height: int) -> str:
    """The place of a point (column, row) in an image, in words and image directions; rule in the module docstring."""
    column = _third(center_x, width, "left", "center", "right")
    row = _third(center_y, height, "upper", "middle", "lower")
    if column == "center":
        return "center" if row == "middle" else f"{row} center"
    return f"{row} {column}"


def _third(at: float, length: int, low: str, middle: str, high: str) -> str:
    return low if 3 * at < length else high if 3 * at > 2 * length else middle


def patient_side(
    box: tuple[int, ...] | list[int], width: int, orientation: str | None, midline: float | None = None
) -> str | None:
    """The patient's "right", "left" or "midline"; None where columns do not run from side to side, or nobody knows.

    `orientation` is the column of `images`: two letters, the patient directions in which columns and rows grow. With
    columns that grow to the patient's left (L), the image's left is the patient's right. `midline` is the column of
    the patient's midline where it is known (middle of the imaged body), else the middle of the image is taken.
    """
    if not orientation or orientation[0] not in "LR":
        return None
    middle = width / 2 if midline is None else midline
    x0, x1 = box[0], box[2]
    if abs((x0 + x1) / 2 - middle) <= MIDLINE * width:
        return "midline"
    on_left = min(max(middle - x0, 0), x1 - x0) / (x1 - x0)
    sides = ("right", "left") if orientation[0] == "L" else ("left", "right")
    if on_left >= 2 / 3:
        return sides[0]
    return sides[1] if on_left <= 1 / 3 else "midline"


def relation(a: Row, b: Row) -> str | None:
    """How region `a` lies to region `b` of the same sample: one of RELATIONS, or None where no word would be true.

    With `common` the pixels in both (masks where known, else boxes) over those of the smaller region: `inside` where
    `a` is the smaller and common >= 0.95, `contains` the other way round, `overlaps` where common >= 0.05. Otherwise
    the direction, in the image, from the centre of b's box to that of a's, along the axis on which they lie further
    apart (columns where equal), but only where neither centre lies within the extent of the other box on that axis:
    tissues that run through each other have no direction.
    """
    return _relation(_Placed(a), _Placed(b))


def relations(rows: Sequence[Row]) -> list[tuple[int, int, str]]:
    """The relation of each pair of regions of one sample: index of a, of b (a before b), the word. Pairs of which no
    word is true are left out.

    As `relation` of each pair, but each mask is looked into once.
    """
    placed = [_Placed(row) for row in rows]
    found = ((i, j, _relation(placed[i], placed[j])) for i, j in combinations(range(len(placed)), 2))
    return [(i, j, words) for i, j, words in found if words is not None]


class _Placed:
    """A region as relations see it."""

    def __init__(self, row: Row) -> None:
        self.box: list[int] = row["box"]
        self.code = None if row["mask"] is None else code_of(row["mask"])
        self.mask = row["mask"]

    @cached_property
    def area(self) -> int:
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0) if self.code is None else area_of(self.code)


def _relation(a: _Placed, b: _Placed) -> str | None:
    if shared := _shared(a.box, b.box):
        area_a, area_b = a.area, b.area
        least = min(area_a, area_b)
        x0, y0, x1, y1 = shared
        # what two boxes have in common bounds what their masks have
        common = _common(a, b, shared) / least if (x1 - x0) * (y1 - y0) >= OVERLAP * least else 0
        if common >= INSIDE and area_a != area_b:
            return "inside" if area_a < area_b else "contains"
        if common >= OVERLAP:
            return "overlaps"
    (ax, ay), (bx, by) = _centre(a.box), _centre(b.box)
    dx, dy = ax - bx, ay - by
    axis = 0 if abs(dx) >= abs(dy) else 1
    if _within((ax, ay)[axis], b.box, axis) or _within((bx, by)[axis], a.box, axis):
        return None
    if axis == 0:
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _within(centre: float, box: list[int], axis: int) -> bool:
    return box[axis] < centre < box[axis + 2]


def _centre(box: list[int]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _shared(a: list[int], b: list[int]) -> list[int] | None:
    """What two boxes have in common."""
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return [x0, y0, x1, y1] if x0 < x1 and y0 < y1 else None


def _common(a: _Placed, b: _Placed, shared: list[int]) -> int:
    """Pixels that two regions have in common, whose boxes share a box."""
    if a.code is not None and b.code is not None:
        return common_area(a.code, b.code)
    if a.mask is not None or b.mask is not None:
        return int(np.count_nonzero(decode_mask(a.mask or b.mask, shared)))
    return (shared[2] - shared[0]) * (shared[3] - shared[1])
