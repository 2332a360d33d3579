"""From hashes to confirmed pairs: which pictures are looked at together, and what was seen.

The invariant: a pair is confirmed by its pixels or not at all, and memory holds the pictures of one block of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transforms.curation.dataset import Dataset
from transforms.curation.duplicates import Look, Match, look, match
from transforms.curation.hashes import VIEWS, Bits, Near, as_bits, views
from transforms.decoded import Pixels

SIGNATURE = "signature/views"
"""The check in which the stage `quality` writes down the hashes of a sample, so that nobody decodes it again."""
BLOCK = 10_000
"""Pictures held at a time while pairs are compared: at 16 KB each, 160 MB, and what is cut of them."""


@dataclass(frozen=True)
class Seen:
    """A pair that was compared."""

    near: Near
    match: Match


def written(pixels: Pixels) -> str:
    """The hashes of a picture as the check's detail: 16 hex digits each, in the order of VIEWS."""
    return " ".join(views(pixels).values())


def signatures(dataset: Dataset, names: Sequence[str]) -> Bits:
    """(len(names), len(VIEWS)) hashes, as the checks tell them; of samples without that check, from their pixels."""
    tables = dataset.tables("checks", ("sample_id", "check", "detail"))
    known = known_signatures(row for table in tables for row in table.to_pylist())
    if missing := {name for name in names if name not in known}:
        known.update((name, written(pixels)) for name, pixels in dataset.pictures(missing))
    return table_of(known[name] for name in names)


def known_signatures(checks: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """sample_id -> its hashes, of the rows that hold any of today's number."""
    return {
        row["sample_id"]: row["detail"] for row in checks
        if row["check"] == SIGNATURE and row["detail"] and row["detail"].count(" ") == len(VIEWS) - 1
    }


def table_of(codes: Iterable[str]) -> Bits:
    """(n, len(VIEWS)) from hashes as they are written down."""
    rows = [as_bits(code.split(" ")) for code in codes]
    return np.stack(rows) if rows else np.empty((0, len(VIEWS)), np.uint64)


Looks = Callable[[Collection[int]], Iterable[tuple[int, Pixels]]]
"""numbers of pictures -> their pixels, in any order"""


def compared(pairs: Sequence[Near], queries: Looks, others: Looks) -> Iterator[Seen]:
    """Lay the pictures of each pair over each other. A pair is compared once for each view that makes it one."""
    begin = 0
    ordered = sorted(pairs, key=lambda pair: (pair.query, pair.other))
    while begin < len(ordered):
        first: set[int] = set()
        second: set[int] = set()
        end = begin
        while end < len(ordered) and len(first) + len(second) < BLOCK:
            first.add(ordered[end].query)
            second.add(ordered[end].other)
            end += 1
        left: dict[int, Look] = {number: look(pixels) for number, pixels in queries(first)}
        right: dict[int, Look] = {number: look(pixels) for number, pixels in others(second)}
        last = -1
        for near in ordered[begin:end]:
            if near.query != last:
                left.get(last, _NONE).kept.clear()
                last = near.query
            yield Seen(near, match(left[near.query], right[near.other], near.view))
            right[near.other].kept.clear()
        begin = end


_NONE = Look(np.zeros((1, 1), np.uint8))
