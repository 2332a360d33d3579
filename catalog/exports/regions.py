"""Regions for formats with numbered classes: which are written, how classes are numbered, outlines of masks.

The invariant: a class has the same number wherever the same set of labels is exported: classes are those given, in that
order, else all labels in alphabetical order. Since the last sample may bring a new label, what formats need numbers for
is spooled to a hidden file and written when the rows are over.

>>> polygons(np.ones((2, 3), bool))
[[(0, 0), (3, 0), (3, 2), (0, 2)]]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from catalog.exports import Counts, inside
from catalog.masks import Mask, area_of, code_of
from catalog.selection import Row
from infra.keys import sha256

NO_REGION = "no region"
Point = tuple[int, int]


class RegionParams(BaseModel):
    """Which regions are written and what their classes are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: tuple[str, ...] = Field((), description="labels to write, in the order of their numbers; (): all, sorted")
    roles: tuple[str, ...] = Field((), description="only regions of these roles, such as organ, lesion; (): all")
    empty: bool = Field(
        False, description="write samples without a region too, as pictures that show none; left out otherwise, since "
        "nobody may have looked"
    )


class SplitParams(RegionParams):
    """Which share is for validation."""

    validation: float = Field(
        0.1, ge=0, lt=1, description="share of groups (patients, articles) for validation, drawn by the group's id"
    )


def is_validation(row: Row, share: float) -> bool:
    """By the group, so that no patient or article is on both sides."""
    drawn = int(sha256(f"validation/{row.image['group_id']}".encode())[:12], 16) / 16**12
    return drawn < share


def chosen(row: Row, params: RegionParams, counts: Counts) -> list[dict[str, Any]]:
    """The regions of a row that are written, each with `box` cut to the image and `area` in pixels."""
    found = []
    for roi in row.rois:
        if params.classes and roi["label"] not in params.classes:
            continue
        if params.roles and roi["role"] not in params.roles:
            continue
        box = inside(roi["box"], row)
        if box is None:
            counts.notes["regions outside the image, not written"] += 1
            continue
        area = (box[2] - box[0]) * (box[3] - box[1]) if roi["mask"] is None else area_of(code_of(roi["mask"]))
        found.append({**roi, "box": box, "area": area})
    return found


class Spool:
    """Records that wait for the numbers of the classes."""

    def __init__(self, out: Path, classes: Sequence[str]) -> None:
        self._path = out / ".spool.jsonl"
        self._file = open(self._path, "w", encoding="utf-8")  # noqa: SIM115
        self._given = list(classes)
        self._seen: dict[str, str] = {}

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, record: Mapping[str, Any], rois: Sequence[Mapping[str, Any]]) -> None:
        """Keep a record, and note the labels of these regions."""
        for roi in rois:
            label, role = roi["label"], roi["role"]
            self._seen[label] = min(self._seen.get(label, role), role)
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    @property
    def classes(self) -> list[tuple[str, str]]:
        """(label, role), in the order of their numbers."""
        return [(label, self._seen.get(label, "")) for label in self._given or sorted(self._seen)]

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, in order."""
        self._file.flush()
        with open(self._path, encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def polygons(mask: Mask) -> list[list[Point]]:
    """The outer outlines of a (height, width) mask, along the edges of pixels, clockwise as seen; (x, y) of corners.

    Parts that touch at a corner alone are two. Holes have no outline: what is filled here has none.
    """
    loops = [loop for loop in _loops(mask) if _area(loop) > 0]
    return sorted((_corners(loop) for loop in loops), key=lambda loop: (loop[0][1], loop[0][0]))


def has_holes(mask: Mask) -> bool:
    """Whether `polygons` fills what the mask leaves open."""
    return any(_area(loop) < 0 for loop in _loops(mask))


def _loops(mask: Mask) -> list[list[Point]]:
    """Closed walks along pixel edges with the region on the right hand."""
    ahead: dict[Point, list[Point]] = {}
    wide = np.pad(mask, 1)
    for dy, dx, (y0, x0), (y1, x1) in (
        (-1, 0, (0, 0), (0, 1)), (1, 0, (1, 1), (1, 0)), (0, -1, (1, 0), (0, 0)), (0, 1, (0, 1), (1, 1)),
    ):
        edge = wide & ~np.roll(wide, (-dy, -dx), (0, 1))
        for y, x in np.argwhere(edge).tolist():
            ahead.setdefault((x - 1 + x0, y - 1 + y0), []).append((x - 1 + x1, y - 1 + y1))
    loops = []
    for start in sorted(ahead, key=lambda p: (p[1], p[0])):
        while ahead[start]:
            at, loop = start, [start]
            came = (1, 0)
            while True:
                ways = ahead[at]
                # right first: two parts that meet in a corner stay two
                way = min(ways, key=lambda p: _turn(came, (p[0] - at[0], p[1] - at[1])))
                ways.remove(way)
                came, at = (way[0] - at[0], way[1] - at[1]), way
                if at == start:
                    break
                loop.append(at)
            loops.append(loop)
    return loops


def _turn(came: Point, goes: Point) -> int:
    """0 for a turn to the right (y grows downwards), 1 straight on, 2 to the left."""
    return 1 - (came[0] * goes[1] - came[1] * goes[0])


def _area(loop: Sequence[Point]) -> float:
    """Signed: positive for an outer outline."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, [*loop[1:], loop[0]], strict=True)) / 2


def _corners(loop: Sequence[Point]) -> list[Point]:
    """A walk without the points on straight lines."""
    around = zip([loop[-1], *loop[:-1]], loop, [*loop[1:], loop[0]], strict=True)
    return [b for a, b, c in around if (b[0] - a[0]) * (c[1] - b[1]) != (b[1] - a[1]) * (c[0] - b[0])]
