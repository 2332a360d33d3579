"""Panels of synthetic compound figures: how many are found, how exactly, and how fast, beside plain white gutters.

    python tests/benchmarks/panels.py --figures 210 --first 100000

The figures are those of `tests/compound.py`; the expert was developed on seeds below 1000 and is measured on seeds from
100000 on. A panel is found where its box and a predicted one have an intersection over union of at least 0.5 (0.75),
each predicted box counting once. `whole` is the share of single figures in which nothing was cut; `letters` is the
share of the panels found at 0.5 that carry a letter of which it was told right, `wrong` of which another was told; the
rest were told to have none.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))
from compound import COMPOUND, SINGLE, Compound, make

from transforms.experts import panels

Box = tuple[float, float, float, float]
Found = list[tuple[str, Box]]
Finder = Callable[[npt.NDArray[np.uint8]], Found]
DEVELOPED, MEASURED = 0, 100_000


def expert(pixels: npt.NDArray[np.uint8]) -> Found:
    """The panel expert with its defaults."""
    regions = panels.find(pixels, {"article_id": "a"}, panels.Params())
    return [(region.label, region.box) for region in regions if region.box]


def white_gutters(pixels: npt.NDArray[np.uint8]) -> Found:
    """The naive peer: recursive cuts along all lines that are white from end to end, wherever both sides are left 32
    pixels."""
    white = pixels.min(axis=2) > 240

    def split(x0: int, y0: int, x1: int, y1: int) -> list[Box]:
        for axis in (0, 1):
            blank = white[y0:y1, x0:x1].all(axis=1 - axis)
            steps = np.flatnonzero(np.diff(np.concatenate([[True], blank, [True]]).astype(np.int8)))
            runs = [(a, b) for a, b in zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True) if b - a >= 32]
            if len(runs) > 1:
                boxes = [(x0, y0 + a, x1, y0 + b) if axis == 0 else (x0 + a, y0, x0 + b, y1) for a, b in runs]
                return [box for part in boxes for box in split(*part)]
        rows, columns = np.nonzero(~white[y0:y1, x0:x1])
        if not len(rows):
            return []
        return [(x0 + columns.min(), y0 + rows.min(), x0 + columns.max() + 1, y0 + rows.max() + 1)]

    boxes = split(0, 0, pixels.shape[1], pixels.shape[0])
    return [("panel", box) for box in boxes] if len(boxes) > 1 else []


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or tall <= 0:
        return 0.0
    both = wide * tall
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def matched(made: Compound, found: Found, least: float) -> list[tuple[int, int]]:
    """Pairs of a true and a found panel, best overlaps first, each used once."""
    scores = sorted(
        ((overlap(box, other), i, j) for i, (_, box) in enumerate(made.panels) for j, (_, other) in enumerate(found)),
        reverse=True,
    )
    pairs: list[tuple[int, int]] = []
    for score, i, j in scores:
        if score >= least and all(i != a and j != b for a, b in pairs):
            pairs.append((i, j))
    return pairs


@dataclass
class Tally:
    """Counts over some figures."""

    true: int = 0
    told: int = 0
    hits: dict[float, int] = field(default_factory=lambda: {0.5: 0, 0.75: 0})
    lettered: int = 0
    right: int = 0
    wrong: int = 0
    exact: int = 0
    figures: int = 0

    def add(self, made: Compound, found: Found) -> None:
        self.figures += 1
        self.true += len(made.panels)
        self.told += len(found)
        for least in self.hits:
            self.hits[least] += len(matched(made, found, least))
        pairs = matched(made, found, 0.5)
        self.exact += len(pairs) == len(made.panels) == len(found)
        for i, j in pairs:
            if (letter := made.panels[i][0]) is not None:
                self.lettered += 1
                self.right += found[j][0] == letter
                self.wrong += found[j][0] not in (letter, "panel")

    def row(self) -> str:
        cells = []
        for hits in self.hits.values():
            precision, recall = hits / max(1, self.told), hits / max(1, self.true)
            cells.append(f"{precision:.3f} {recall:.3f} {2 * precision * recall / max(1e-9, precision + recall):.3f}")
        letters = "  -      -"
        if self.lettered:
            letters = f"{self.right / self.lettered:.3f}  {self.wrong / self.lettered:.3f}"
        return f"{'  '.join(cells)}  {self.exact / self.figures:6.3f}  {letters}"


def measure(finder: Finder, seeds: Sequence[int]) -> None:
    """Print one finder's table."""
    every = COMPOUND + SINGLE
    tallies = {style: Tally() for style in (*COMPOUND, "all")}
    whole = dict.fromkeys(SINGLE, 0)
    seen = dict.fromkeys(SINGLE, 0)
    seconds = []
    for at, seed in enumerate(seeds):
        made = make(seed, every[at % len(every)])
        start = time.perf_counter()
        found = finder(made.pixels)
        seconds.append(time.perf_counter() - start)
        if made.style in SINGLE:
            seen[made.style] += 1
            whole[made.style] += not found
        else:
            tallies[made.style].add(made, found)
            tallies["all"].add(made, found)
    print(f"{'':12} {'P      R     F1   (0.5)':19}  {'P     R     F1  (0.75)':19}  exact  letters  wrong")
    for style, tally in tallies.items():
        if tally.figures:
            print(f"{style:12} {tally.row()}  ({tally.figures} figures, {tally.true} panels)")
    print("kept whole: " + ", ".join(f"{style} {whole[style]}/{seen[style]}" for style in SINGLE))
    print(f"seconds a figure: median {statistics.median(seconds):.3f}, slowest {max(seconds):.3f}\n")


def main() -> None:
    """Measure the expert and the naive peer on the same figures."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    options.add_argument("--figures", type=int, default=210)
    options.add_argument("--first", type=int, default=MEASURED, help="first seed")
    chosen = options.parse_args()
    seeds = range(chosen.first, chosen.first + chosen.figures)
    expert(make(DEVELOPED).pixels)  # loads the recogniser
    for name, finder in (("panels expert", expert), ("white gutters", white_gutters)):
        print(f"{name}, seeds {seeds.start} to {seeds.stop - 1}")
        measure(finder, seeds)


if __name__ == "__main__":
    main()
