"""From a label map to finished rows of `rois`: ours beside pycocotools, scikit-image and cc3d, used as one would.

    python tests/benchmarks/roi_chain.py [--slices 20] [--structures 31]

Needs scikit-image and connected-components-3d. Slices of 512 x 512 with blobs, from a seeded generator. Counts before
speed: boxes, areas and codes of all rows are compared first, and any difference ends the run with status 1. Then, in
one process and in turns, medians over the slices, in milliseconds of processor time a slice:

    ours        rows_of_labelmap: box, code, area, place and id of every region
    ours, each  roi_row on one mask after the other, as experts and masks that overlap use it
    peers       coco.encode of each mask, skimage.measure.regionprops (area, box, place), cc3d.statistics
    relations   of each pair of the regions of a slice (all of them; captions ask for six), from the rows
    measure     every measure of the stage `measure` on a slice, pairs too

The goal: ours with relations under 5 ms.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from transforms.decoded import Region
from transforms.measure import Params, make_stage
from transforms.regions import position, relations, roi_row, rows_of_labelmap
from transforms.stage import Context, SampleRows

SIDE = 512
HOW = {"expert": "bench@1", "origin": "predicted", "trust": "boundary"}


def label_map(seed: int, structures: int) -> npt.NDArray[np.uint8]:
    """Ragged blobs on a body, some under others."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for value in range(1, structures + 1):
        cy, cx, ry, rx = *rng.uniform(90, 420, 2), *rng.uniform(8, 60, 2)
        turn = np.arctan2(y - cy, x - cx)
        ragged = 1 + 0.15 * np.sin(turn * rng.integers(3, 9)) + 0.04 * np.sin(turn * 31)
        labels[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < ragged] = value
    return labels


def peers(labels: npt.NDArray[np.uint8]) -> list[tuple[list[int], int, str, str]]:
    """Box, area, code and place of each structure."""
    import cc3d
    from pycocotools import mask as coco
    from skimage.measure import regionprops

    cc3d.statistics(labels)
    found = []
    for props in regionprops(labels):
        code = coco.encode(np.asfortranarray(labels == props.label, dtype=np.uint8))["counts"].decode("ascii")
        y0, x0, y1, x1 = (int(v) for v in props.bbox)
        found.append(([x0, y0, x1, y1], int(props.area), code, position((x0 + x1) / 2, (y0 + y1) / 2, SIDE, SIDE)))
    return found


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--slices", type=int, default=20)
    asked.add_argument("--structures", type=int, default=31)
    given = asked.parse_args()
    regions = {value: Region(f"structure {value}", "organ") for value in range(1, given.structures + 1)}
    maps = [label_map(seed, given.structures) for seed in range(given.slices)]

    def ours(labels: npt.NDArray[Any]) -> list[dict[str, Any]]:
        return rows_of_labelmap("s", labels, regions, **HOW)

    def each(labels: npt.NDArray[Any]) -> list[dict[str, Any]]:
        rows = []
        for value in (int(v) for v in np.unique(labels) if v):
            region = Region(regions[value].label, "organ", mask=labels == value)
            rows.append(roi_row("s", region, (SIDE, SIDE), **HOW))
        return [row for row in rows if row is not None]

    count = 0
    for labels in maps:
        rows, theirs = ours(labels), peers(labels)
        mine = [(r["box"], round(r["area_fraction"] * SIDE**2), r["mask"]["counts"], r["position"]) for r in rows]
        if mine != theirs or rows != each(labels):
            print("DIFFERENT results: nothing was timed")
            return 1
        count += len(rows)
    print(f"{len(maps)} slices, {count} regions: boxes, areas, codes and places are the same")
    rows_of = [ours(labels) for labels in maps]
    grey = [(labels * 8).astype(np.uint8) for labels in maps]
    image = {"sample_id": "s", "width": SIDE, "height": SIDE, "pixel_spacing": [0.8, 0.8]}
    stage: Any = make_stage(Params(), Context(home=None))  # type: ignore[arg-type]

    def measured(at: int) -> Any:
        sample = SampleRows(image, {"rois": rows_of[at]})
        sample._pixels = grey[at]
        return stage.row(sample, None)

    timed: dict[str, tuple[Callable[[int], Any], list[float]]] = {
        "ours": (lambda at: ours(maps[at]), []),
        "ours, each": (lambda at: each(maps[at]), []),
        "peers": (lambda at: peers(maps[at]), []),
        "relations": (lambda at: relations(rows_of[at]), []),
        "measure": (measured, []),
    }
    for at in range(len(maps)):
        for call, took in timed.values():
            began = time.process_time()
            call(at)
            took.append(1000 * (time.process_time() - began))
    medians = {name: statistics.median(took) for name, (_, took) in timed.items()}
    for name, median in medians.items():
        print(f"{name:<12} {median:8.2f} ms a slice   {medians['peers'] / median:6.1f} times the speed of the peers")
    total = medians["ours"] + medians["relations"]
    print(f"ours and relations: {total:.2f} ms a slice; the goal is 5 ms: {'met' if total < 5 else 'MISSED'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
