"""Masks as the layer `rois` holds them: COCO run-length codes.

The invariant: decoding what was encoded gives the same mask, equal masks have equal codes, and every code is, byte for
byte, the one that pycocotools writes.

A code lists the lengths of the runs of a mask read column by column, off and on in turns, beginning with off. From the
fourth on each is written as its difference to the one two before, in digits of 5 bits, least first, as ASCII from "0";
the sixth bit says that more follow (rleToString of the COCO API). Runs are found here, of all masks of a picture at
once; the text is written by pycocotools.

>>> decode_mask(encode_mask(mask)).shape == mask.shape
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
"""(height, width) of the stored image; true inside the region."""
Ints = npt.NDArray[np.int64]

AT_ONCE = 32
"""Rows transposed at a time: 512 bytes apart, a column's pixels push each other out of the cache."""


@dataclass(frozen=True)
class Runs:
    """The runs of one or more masks over one image, mask after mask; none of them is empty.

    Pixels are counted down the columns: the pixel (row, column) has the number column * height + row.
    """

    size: tuple[int, int]
    """height, width"""
    starts: Ints
    """first pixel of each run; rising within a mask"""
    ends: Ints
    """one past its last pixel; less than the next start"""
    first: Ints
    """index of each mask's first run"""

    def areas(self) -> list[int]:
        """Pixels of each mask."""
        areas: list[int] = np.add.reduceat(self.ends - self.starts, self.first).tolist() if self.first.size else []
        return areas

    def boxes(self) -> list[list[int]]:
        """x0, y0, x1, y1 of each mask, half-open."""
        if not self.first.size:
            return []
        height, last = self.size[0], np.append(self.first[1:], self.starts.size) - 1
        left, top = np.divmod(self.starts, height)
        right, bottom = np.divmod(self.ends - 1, height)
        turned = left != right  # it goes on in the next column: through the lowest row and the topmost
        top[turned], bottom[turned] = 0, height - 1
        boxes: list[list[int]] = np.stack([
            left[self.first], np.minimum.reduceat(top, self.first),
            right[last] + 1, np.maximum.reduceat(bottom, self.first) + 1,
        ], axis=1).tolist()
        return boxes

    def codes(self) -> list[dict[str, Any]]:
        """The code of each mask: {"size": [height, width], "counts": ascii}."""
        if not self.first.size:
            return []
        total, count = self.size[0] * self.size[1], self.starts.size
        last = np.append(self.first[1:], count) - 1
        before = np.empty_like(self.starts)
        before[0], before[1:] = 0, self.ends[:-1]
        before[self.first] = 0
        lengths = np.empty(2 * count, np.int64)
        lengths[0::2], lengths[1::2] = self.starts - before, self.ends - self.starts
        rest = total - self.ends[last]
        open_ = rest > 0  # the code ends with an off-run only where there is one
        lengths = np.insert(lengths, 2 * (last[open_] + 1), rest[open_])
        begin = (2 * self.first + np.concatenate([[0], np.cumsum(open_)[:-1]])).tolist()
        numbers = lengths.tolist()
        return _written([numbers[a:b] for a, b in zip(begin, [*begin[1:], len(numbers)], strict=True)], self.size)


def runs_of(mask: Mask) -> Runs:
    """The runs of a (height, width) mask; of an empty mask none, and no mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return Runs(_size(mask), *(np.zeros(0, np.int64) for _ in range(3)))
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    # one row that is off between the columns, so that no run of the cut goes on from one to the next
    cut = np.zeros((x1 - x0, y1 - y0 + 1), np.bool_)
    cut[:, :-1] = _turned(mask[y0:y1, x0:x1])
    flat = cut.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.insert(edges, 0, 0) if flat[0] else edges
    column, row = np.divmod(edges, y1 - y0 + 1)
    place = (column + x0) * mask.shape[0] + row + y0
    starts, ends = place[0::2], place[1::2]
    if y1 - y0 == mask.shape[0]:
        parted = ends[:-1] != starts[1:]
        starts, ends = starts[np.insert(parted, 0, True)], ends[np.append(parted, True)]
    return Runs(_size(mask), starts, ends, np.zeros(1, np.int64))


def runs_of_labels(labels: npt.NDArray[Any], values: Sequence[int]) -> tuple[list[int], Runs]:
    """The runs of many masks at once: those of `values` in a (height, width) map of integers.

    Returns the values that there are, rising, and their runs in that order.
    """
    flat = _turned(labels).ravel()
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.insert(starts, 0, 0) if flat.size else starts
    ends, value = np.append(starts[1:], flat.size), flat[starts]
    kept = np.isin(value, np.array(sorted(values), np.int64)) if len(values) else np.zeros(value.shape, np.bool_)
    starts, ends, value = starts[kept], ends[kept], value[kept]
    order = np.argsort(value, kind="stable")
    value = value[order]
    first = np.flatnonzero(np.insert(value[1:] != value[:-1], 0, True)) if value.size else np.zeros(0, np.int64)
    return value[first].tolist(), Runs(_size(labels), starts[order], ends[order], first)


def encode_mask(mask: Mask) -> dict[str, Any]:
    """COCO run-length code of a (height, width) mask: {"size": [height, width], "counts": ascii}."""
    found = runs_of(np.asarray(mask, np.bool_)).codes()
    if found:
        return found[0]
    return _written([[mask.size]], _size(mask))[0]


def decode_mask(rle: Mapping[str, Any], box: Sequence[int] | None = None) -> Mask:
    """The (height, width) mask of a COCO run-length code, or what lies of it in a box (x0, y0, x1, y1) of the image.

    Raises ValueError for a code that is broken, or of an image of another size.
    """
    height, width = rle["size"]
    x0, y0, x1, y1 = (0, 0, width, height) if box is None else box
    lengths = _lengths(rle["counts"])
    if int(lengths.sum()) != height * width or int(lengths.min()) < 0:
        raise ValueError(f"a run-length code of {int(lengths.sum())} pixels, for an image of {width} x {height}")
    edges = np.clip(np.cumsum(lengths), x0 * height, x1 * height) - x0 * height
    steps = np.diff(edges, prepend=0)
    flat = np.repeat(np.arange(steps.size) % 2 == 1, steps)
    return _turned(flat.reshape(x1 - x0, height)[:, y0:y1])


Code = Mapping[str, Any]
"""A code as pycocotools takes it: `counts` are bytes."""


def code_of(rle: Mapping[str, Any]) -> Code:
    """A code of the layer `rois`, for `area_of` and `common_area`."""
    return {"size": list(rle["size"]), "counts": rle["counts"].encode("ascii")}


def area_of(code: Code) -> int:
    """Pixels of a mask, from its code."""
    from pycocotools import mask as coco

    return int(coco.area(code))


def common_area(a: Code, b: Code) -> int:
    """Pixels that two masks of one image have in common, from their codes."""
    from pycocotools import mask as coco

    return int(coco.area(coco.merge([a, b], intersect=True)))


def _size(mask: npt.NDArray[Any]) -> tuple[int, int]:
    return mask.shape[0], mask.shape[1]


def _written(lengths: Sequence[list[int]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Lengths of runs as codes."""
    from pycocotools import mask as coco

    made = coco.frPyObjects([{"size": size, "counts": each} for each in lengths], *size)
    return [{"size": list(size), "counts": code["counts"].decode("ascii")} for code in made]


def _turned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The transpose as an array of its own; some rows at a time, which keeps the processor's cache."""
    made = np.empty(array.shape[::-1], array.dtype)
    for start in range(0, array.shape[0], AT_ONCE):
        made[:, start : start + AT_ONCE] = array[start : start + AT_ONCE].T
    return made


def _lengths(counts: str) -> Ints:
    """The lengths of the runs that a text lists. ValueError for one that ends within a number."""
    digits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    final = np.flatnonzero(digits & 32 == 0)
    if not digits.size or final[-1:].tolist() != [digits.size - 1]:
        raise ValueError("a run-length code that is empty or ends within a number")
    begin = np.insert(final[:-1] + 1, 0, 0)
    place = np.arange(digits.size) - np.repeat(begin, final - begin + 1)
    numbers = np.add.reduceat((digits & 31) << 5 * place, begin)
    numbers -= np.where(digits[final] & 16, np.int64(1) << 5 * (final - begin + 1), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
