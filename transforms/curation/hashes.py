"""Hashes of what a picture shows, and the search for pairs of near hashes.

The invariant: hashes are made in integers, so every machine computes the same, and `near_pairs` finds every pair within
the radius and no other, whatever the order of its arguments' rows.

A picture has several hashes, for the things that happen to pictures on their way from one set to another: its plain
border is cut or added, its grey values are windowed, its sides mirrored, a part of it is cut out. The hash of the whole
is compared with all hashes of the other picture:

>>> found = views(pixels)
>>> found["whole"], found["mirror"], found["crop:0.8:1:1"]
('d1c4…', '84b1…', '91c6…')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from PIL import Image

from transforms.decoded import Pixels
from transforms.pictures.imagefile import phash

Bits = npt.NDArray[np.uint64]
Index = npt.NDArray[np.int64]

SIDE = 160
"""Pixels of the longer side at which views are cut: enough for hashes of 32 x 32."""
BORDER = 12
"""A line belongs to the border while 99 % of its pixels differ by no more grey levels from the corner's: the noise that
JPEG leaves in plain areas at quality 50."""
SMALLEST = 0.34
"""A border is trimmed only if so much of each side is left."""
BORDERS = 4
"""Borders within one another that are trimmed."""
CROPS = ((0.9, 2), (0.8, 3), (0.7, 4))
"""Parts of a picture that have a hash of their own: share of each side, places along it."""
VIEWS = ("whole", "mirror", *(f"crop:{s:g}:{y}:{x}" for s, n in CROPS for y in range(n) for x in range(n)))
"""Names of the hashes of a picture, in the order in which they are written down."""
BANDS = 4
"""A 64-bit hash is found by bands of 16 bits: pairs within r bits differ by at most r // 4 bits in one of them."""
CHUNK = 1 << 22
"""Pairs looked at at a time in the search, which bounds its memory."""


def grey(pixels: Pixels) -> Pixels:
    """As one channel (ITU-R 601 luma)."""
    return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))


def trimmed(picture: Pixels) -> Pixels:
    """A grey picture without its plain border, of whatever colour, and the border within that border (a film's)."""
    least = [max(1, round(side * SMALLEST)) for side in picture.shape]
    for _ in range(BORDERS):
        before = picture.shape
        top, bottom = _edges(picture, least[0])
        left, right = _edges(picture.T, least[1])
        picture = picture[top:bottom, left:right]
        if picture.shape == before:
            break
    return picture


def _edges(lines: Pixels, least: int) -> tuple[int, int]:
    """First line that is not border, and the one after the last."""
    count = len(lines)
    wide = lines.astype(np.int16)
    first = (np.abs(wide - wide[0, 0]) > BORDER).mean(axis=1) > 0.01
    last = (np.abs(wide - wide[-1, -1]) > BORDER).mean(axis=1) > 0.01
    start = int(np.argmax(first)) if first.any() else 0
    end = count - int(np.argmax(last[::-1])) if last.any() else count
    return (start, end) if end - start >= least else (0, count)


def small(picture: Pixels, side: int = SIDE) -> Pixels:
    """With its longer side at most so many pixels, each the mean of the area it covers."""
    height, width = picture.shape
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BOX))


def equalised(picture: Pixels) -> Pixels:
    """Each grey value replaced by the share of pixels that are darker: the same for any window over the same values."""
    counts = np.bincount(picture.ravel(), minlength=256)
    below = np.cumsum(counts) - counts
    table = (2 * below + counts) * 255 // (2 * picture.size)
    return table.astype(np.uint8)[picture]


def views(pixels: Pixels) -> Mapping[str, str]:
    """Hashes of a picture: whole (its border trimmed), mirrored, and of the parts that CROPS names.

    8-bit pixels, grey or RGB; each hash 16 hex digits, as `images.phash`, of the equalised picture.
    """
    base = small(trimmed(grey(pixels)))
    height, width = base.shape
    found = {}
    for name in VIEWS:
        kind, *place = name.split(":")
        part = base[:, ::-1] if kind == "mirror" else base
        if kind == "crop":
            share, places = float(place[0]), dict(CROPS)[float(place[0])]
            rows, columns = max(1, round(height * share)), max(1, round(width * share))
            y, x = ((side - size) * int(at) // (places - 1)
                    for side, size, at in ((height, rows, place[1]), (width, columns, place[2])))
            part = base[y : y + rows, x : x + columns]
        found[name] = phash(equalised(part))
    return found


def flat(code: str) -> bool:
    """Whether a hash says nothing: that of a plain picture has all bits or all but the first equal."""
    return code[1:] in ("0" * 15, "f" * 15) and code[0] in "08f7"


def as_bits(codes: Sequence[str]) -> Bits:
    """Hashes of 16 hex digits as 64-bit numbers."""
    return np.array([int(code, 16) for code in codes], np.uint64)


def distance(a: str, b: str) -> int:
    """Bits in which two hashes differ."""
    return (int(a, 16) ^ int(b, 16)).bit_count()


def near_pairs(queries: Bits, among: Bits, within: int) -> Iterator[tuple[Index, Index, Index]]:
    """(query, among, bits) of every pair that differs by at most `within` bits, in blocks; a pair may come again.

    Multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012): of BANDS bands, one differs by at most within // BANDS
    bits, so each band is looked up with every such change.
    """
    if not len(queries) or not len(among):
        return
    for band in range(BANDS):
        shift = np.uint64(16 * band)
        keys, sought = ((bits >> shift).astype(np.uint16) for bits in (among, queries))
        order = np.argsort(keys, kind="stable")
        bounds = np.searchsorted(keys[order], np.arange((1 << 16) + 1))
        for change in _changes(within // BANDS):
            wanted = (sought ^ change).astype(np.int64)
            starts, counts = bounds[wanted], bounds[wanted + 1] - bounds[wanted]
            for begin, end in _cuts(counts):
                part = counts[begin:end]
                of_query = np.repeat(np.arange(begin, end), part)
                offset = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
                found = order[np.repeat(starts[begin:end], part) + offset]
                bits = np.bitwise_count(queries[of_query] ^ among[found]).astype(np.int64)
                close = bits <= within
                if close.any():
                    yield of_query[close], found[close], bits[close]


def _changes(most: int) -> list[np.uint16]:
    """All 16-bit numbers with at most so many bits set."""
    return [np.uint16(sum(1 << bit for bit in bits)) for n in range(most + 1) for bits in combinations(range(16), n)]


def _cuts(counts: Index) -> Iterator[tuple[int, int]]:
    """Runs of queries with about CHUNK pairs each."""
    total = np.cumsum(counts)
    begin = 0
    while begin < len(counts):
        done = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + CHUNK, side="right")))
        if total[end - 1] > done:
            yield begin, end
        begin = end


@dataclass(frozen=True)
class Near:
    """A pair worth a closer look: a query, and the picture of which a view is near to it."""

    query: int
    other: int
    view: str
    """empty where none is supposed: the pair was not found by hashes"""
    bits: int | None
    cosine: float | None = None
    """of the two pictures' vectors, where those found the pair"""


def nearest(queries: Bits, others: Bits, within: int, most: int, apart: bool = False) -> list[Near]:
    """For each query at most `most` pictures of which a view is within so many bits, the nearest first.

    `queries` (n,) are hashes of whole pictures, `others` (m, len(VIEWS)) those of all views. With `apart` the two are
    the same pictures, and none is near to itself.
    """
    count = len(VIEWS)
    held = np.empty((0, 4), np.int64)
    new: list[Index] = []

    def pruned() -> Index:
        """Query, bits, other, view: of each pair its nearest view, of each query its nearest others."""
        rows = np.concatenate([held, *new])
        rows = rows[np.lexsort((rows[:, 3], rows[:, 1], rows[:, 2], rows[:, 0]))]
        rows = rows[np.r_[True, (np.diff(rows[:, [0, 2]], axis=0) != 0).any(axis=1)]] if len(rows) else rows
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
        first = np.searchsorted(rows[:, 0], rows[:, 0])
        return np.asarray(rows[np.arange(len(rows)) - first < most])

    for query, found, bits in near_pairs(queries, others.reshape(-1), within):
        rows = np.stack([query, bits, found // count, found % count], axis=1)
        new.append(rows[rows[:, 0] != rows[:, 2]] if apart else rows)
        if sum(map(len, new)) > CHUNK:
            held, new = pruned(), []
    held = pruned()
    return [Near(query, other, VIEWS[view], bits) for query, bits, other, view in held.tolist()]
