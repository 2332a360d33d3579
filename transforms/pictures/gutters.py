"""Where a page of pictures may be cut: blank gutters, straight edges between tiles that touch, and what lies between.

The invariant: a cut is a full-span line of its box; nothing here decides which cuts are right (see experts/panels.py).

>>> page = Page(pixels)
>>> page.cuts(page.whole, axis=1)
[Cut(axis=1, start=402, stop=418, kind='gutter')]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from transforms.decoded import Pixels

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1, half-open"""
Mask = npt.NDArray[np.bool_]

INK = 40
"""Grey levels from the paper from which a pixel counts as ink: above the ringing of JPEG at quality 60. A blank line
holds none at all, as the axis of a plot is one pixel wide."""
ABRUPT = 0.75
"""Share of the lines next to a black gutter that is not black: tiles have straight sides, dark pictures have not."""
STEP = 16
"""Grey levels across an edge between two tiles."""
EDGE = 0.55
"""Share of a line's length along which an edge must run."""
OUTSTANDING = 1.6
"""How many times that of nearly all other lines (95 %) this share must be: textures are full of edges."""
LONGEST = 6
"""Times that a picture may be longer than it is wide: legends and scales are longer."""
BLOCK = 4
"""Pixels that ink is pooled by before it is asked what hangs together."""


@dataclass(frozen=True)
class Cut:
    """A place to cut a box: the lines from `start` to `stop` lie between its parts."""

    axis: int
    """1: upright, between columns; 0: level, between rows"""
    start: int
    stop: int
    kind: str
    """gutter (blank, white), dark (blank, black, with content right up to it), shadow (blank, black, perhaps within a
    picture), edge (no gutter between tiles that touch) or guess"""

    @property
    def width(self) -> int:
        return self.stop - self.start


class Page:
    """A figure, with what is ink on white and on black paper."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]
        colour = pixels if pixels.ndim == 3 else pixels[:, :, None]
        self.grey: npt.NDArray[np.uint8] = colour.mean(axis=2).astype(np.uint8) if pixels.ndim == 3 else pixels
        self.on_white: Mask = colour.min(axis=2) < 255 - INK
        self.on_black: Mask = colour.max(axis=2) > INK
        self._cuts: dict[tuple[Box, int], Sequence[Cut]] = {}
        self.side = float(np.sqrt(self.width * self.height))

    @property
    def whole(self) -> Box:
        return 0, 0, self.width, self.height

    @cached_property
    def dark(self) -> bool:
        """Whether the paper is black: nearly all of the figure's rim is."""
        on_black = self.on_black
        rim = np.concatenate([on_black[0], on_black[-1], on_black[:, 0], on_black[:, -1]])
        return bool(rim.mean() < 0.05)

    @property
    def ink(self) -> Mask:
        return self.on_black if self.dark else self.on_white

    def trimmed(self, box: Box) -> Box | None:
        """The box without the blank paper around its content; None where there is nothing else."""
        part = _at(self.ink, box)
        rows, columns = (_filled(part, axis) for axis in (0, 1))
        if not rows.any() or not columns.any():
            return None
        (top, bottom), (left, right) = _ends(rows), _ends(columns)
        return box[0] + left, box[1] + top, box[0] + right, box[1] + bottom

    def dense(self, box: Box) -> bool:
        """Whether a box is filled like a photograph, without paper in it."""
        part = _at(self.on_white, box)
        return bool(part.size and part.mean() > 0.8)

    def cuts(self, box: Box, axis: int) -> Sequence[Cut]:
        """All places where the box may be cut, in order of position and then kind; the rim is none."""
        if (box, axis) not in self._cuts:
            found = [*self._gutters(box, axis), *(self._edges(box, axis) if self.dense(box) else ())]
            self._cuts[box, axis] = sorted(found, key=lambda cut: (cut.start, cut.stop, cut.kind))
        return self._cuts[box, axis]

    def _gutters(self, box: Box, axis: int) -> Iterator[Cut]:
        origin = box[1 - axis]
        for ink, black in ((self.on_white, False), (self.on_black, True)):
            part = _at(ink, box)
            shares = part.mean(axis=1 - axis)
            for start, stop in _runs(shares == 0):
                if start == 0 or stop == len(shares):
                    continue
                kind = "gutter"
                if black:
                    reach = min(shares[max(0, start - 3) : start].max(), shares[stop : stop + 3].max())
                    kind = "dark" if reach > ABRUPT else "shadow"
                yield Cut(axis, origin + start, origin + stop, kind)

    def _edges(self, box: Box, axis: int) -> Iterator[Cut]:
        """Lines along which most of the picture changes at once, much more than beside them."""
        part = _at(self.grey, box).astype(np.int16)
        if part.shape[axis] < 24:
            return
        step = part[2:] - part[:-2] if axis == 0 else part[:, 2:] - part[:, :-2]
        shares = np.pad((np.abs(step) > STEP).mean(axis=1 - axis), 1)
        least = max(EDGE, OUTSTANDING * float(np.quantile(shares, 0.95)))
        for at in range(2, len(shares) - 2):
            if shares[at] >= least and shares[at] == shares[max(0, at - 6) : at + 7].max():
                line = box[1 - axis] + at
                yield Cut(axis, line, line, "edge")

    def edge(self, box: Box, axis: int, first: int, last: int) -> tuple[int, float]:
        """The line from `first` to `last` with the greatest change across it, and how many times the usual that is."""
        part = _at(self.grey, box).astype(np.int16)
        changes = np.abs(np.diff(part, axis=axis)).mean(axis=1 - axis)
        low = max(0, first - box[1 - axis] - 1)
        window = changes[low : max(low + 1, last - box[1 - axis])]
        at = low + int(np.argmax(window))
        return box[1 - axis] + at + 1, float(changes[at] / max(1.0, float(np.median(changes))))

    def pictures(self, box: Box, least: float) -> int:
        """Area of all that is a picture: what hangs together, is at least `least` wide and high, and no strip."""
        from scipy import ndimage

        part = _at(self.ink, box)
        height, width = (-(-size // BLOCK) for size in part.shape)
        padded = np.zeros((height * BLOCK, width * BLOCK), bool)
        padded[: part.shape[0], : part.shape[1]] = part
        pooled = padded.reshape(height, BLOCK, width, BLOCK).any(axis=(1, 3))
        area = 0
        for rows, columns in ndimage.find_objects(ndimage.label(pooled, np.ones((3, 3)))[0]):
            tall, wide = (rows.stop - rows.start) * BLOCK, (columns.stop - columns.start) * BLOCK
            if min(tall, wide) >= least and max(tall, wide) <= LONGEST * min(tall, wide):
                area += tall * wide
        return area

    def varied(self, box: Box) -> bool:
        """Whether a box shows more than one flat tone."""
        part = _at(self.grey, box)
        return bool(part.size and part.std() > 6)

    def crossing(self, box: Box, axis: int, at: int) -> float:
        """Share of a line that is ink."""
        part = _at(self.ink, box)
        return float(np.take(part, at - box[1 - axis], axis).mean())


def parts(box: Box, cut: Cut) -> tuple[Box, Box]:
    """What lies before and behind a cut."""
    x0, y0, x1, y1 = box
    if cut.axis == 1:
        return (x0, y0, cut.start, y1), (cut.stop, y0, x1, y1)
    return (x0, y0, x1, cut.start), (x0, cut.stop, x1, y1)


def _at(values: Any, box: Box) -> Any:
    x0, y0, x1, y1 = box
    return values[y0:y1, x0:x1]


def _filled(part: Mask, axis: int) -> Mask:
    return np.asarray(part.any(axis=1 - axis))


def _ends(filled: Mask) -> tuple[int, int]:
    at = np.flatnonzero(filled)
    return int(at[0]), int(at[-1]) + 1


def _runs(blank: Mask) -> Iterator[tuple[int, int]]:
    steps = np.flatnonzero(np.diff(np.concatenate([[0], blank.astype(np.int8), [0]])))
    yield from zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True)
