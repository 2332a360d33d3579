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
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from catalog.masks import decode_mask, encode_mask
from infra.errors import Terminal
from infra.keys import key
from transforms.decoded import Region

Row = Mapping[str, Any]

RELATIONS = ("inside", "contains", "overlaps", "left of", "right of", "above", "below")
"""Every word that `relation` may answer; directions are those of the image."""

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
    box = _box(region, size)
    if box is None:
        return None
    height, width = size
    mask = None if region.mask is None else encode_mask(region.mask)
    area = (box[2] - box[0]) * (box[3] - box[1]) if region.mask is None else int(region.mask.sum())
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
        "expert_weights_sha256": weights_sha256,
        "origin": origin,
        "trust": trust,
    }


def _box(region: Region, size: tuple[int, int]) -> list[int] | None:
    height, width = size
    if region.mask is not None:
        if region.mask.shape != size:
            raise ValueError(f"region {region.label!r}: mask is {region.mask.shape}, the image is {size}")
        rows, columns = np.flatnonzero(region.mask.any(axis=1)), np.flatnonzero(region.mask.any(axis=0))
        if not rows.size:
            return None
        return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
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
    area_a, area_b = _area(a), _area(b)
    common = _common(a, b) / min(area_a, area_b)
    if common >= INSIDE and area_a != area_b:
        return "inside" if area_a < area_b else "contains"
    if common >= OVERLAP:
        return "overlaps"
    (ax, ay), (bx, by) = _centre(a["box"]), _centre(b["box"])
    dx, dy = ax - bx, ay - by
    axis = 0 if abs(dx) >= abs(dy) else 1
    if _within((ax, ay)[axis], b["box"], axis) or _within((bx, by)[axis], a["box"], axis):
        return None
    if axis == 0:
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _within(centre: float, box: list[int], axis: int) -> bool:
    return box[axis] < centre < box[axis + 2]


def _centre(box: list[int]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _area(row: Row) -> int:
    if row["mask"] is not None:
        return int(decode_mask(row["mask"]).sum())
    x0, y0, x1, y1 = row["box"]
    return int((x1 - x0) * (y1 - y0))


def _common(a: Row, b: Row) -> int:
    x0, y0 = max(a["box"][0], b["box"][0]), max(a["box"][1], b["box"][1])
    x1, y1 = min(a["box"][2], b["box"][2]), min(a["box"][3], b["box"][3])
    if x0 >= x1 or y0 >= y1:
        return 0
    both = np.ones((y1 - y0, x1 - x0), bool)
    for row in (a, b):
        if row["mask"] is not None:
            both &= decode_mask(row["mask"])[y0:y1, x0:x1]
    return int(both.sum())
