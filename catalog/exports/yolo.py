"""YOLO: images/SPLIT, labels/SPLIT with one text file an image, and data.yaml with the names of the classes.

A line is `class x y width height` (`task=detect`: centre and size) or `class x1 y1 x2 y2 …` (`task=segment`: an outline
along pixel edges), as shares of the stored image's width and height. For `segment`, regions with a box alone are not
written (counted in the notes): loaders take a box for an outline otherwise. The parts of a region in several parts are
joined by lines of no width, as converters do, since a line is an instance; holes are filled.

train and val are split by `group_id`. Training stops where one of the two is empty, as val is without `validation`: the
notes say so.

>>> YOLO("yolo11n.pt").train(data=out / "data.yaml")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from catalog.exports import Counts, picture
from catalog.exports.regions import NO_REGION, Point, SplitParams, Spool, chosen, has_holes, is_validation, polygons
from catalog.masks import decode_mask
from catalog.selection import Row

NAME = "yolo"
REQUIRES: dict[str, str] = {}


class Params(SplitParams):
    """Which regions, as boxes or outlines."""

    task: Literal["detect", "segment"] = Field("detect", description="boxes, or outlines of masks")


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write images/, labels/ and data.yaml. Samples without a region are left out and counted, unless `empty`."""
    counts = Counts()
    for folder in ("images", "labels"):
        for split in ("train", "val"):
            (out / folder / split).mkdir(parents=True)
    with Spool(out, params.classes) as spool:
        for row in rows:
            rois = chosen(row, params, counts)
            if params.task == "segment":
                counts.notes["regions without a mask, not written"] += sum(roi["mask"] is None for roi in rois)
                rois = [roi for roi in rois if roi["mask"] is not None and roi["area"]]
            if not rois and not params.empty:
                counts.left_out[NO_REGION] += 1
                continue
            split = "val" if is_validation(row, params.validation) else "train"
            suffix, data = picture(row)
            (out / "images" / split / f"{row.name}.{suffix}").write_bytes(data)
            lines = [(roi["label"], list(_numbers(roi, row, params, counts))) for roi in rois]
            spool.add({"at": f"labels/{split}/{row.name}.txt", "lines": lines}, rois)
            counts.add(row)
        numbers = {label: n for n, (label, _) in enumerate(spool.classes)}
        for record in spool.records():
            made = [" ".join((str(numbers[label]), *shares)) + "\n" for label, shares in record["lines"]]
            (out / record["at"]).write_text("".join(made))
    for split in ("train", "val"):
        if not any((out / "images" / split).iterdir()):
            counts.notes[f"{split} is empty, and training asks for it: choose another `validation`"] += 1
    head: dict[str, Any] = {"train": "images/train", "val": "images/val"}
    head["names"] = {n: label for label, n in numbers.items()}
    (out / "data.yaml").write_text(yaml.safe_dump(head, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return counts


def _numbers(roi: Mapping[str, Any], row: Row, params: Params, counts: Counts) -> Iterator[str]:
    """What follows the class."""
    width, height = row.image["width"], row.image["height"]
    if params.task == "detect":
        x0, y0, x1, y1 = roi["box"]
        shares = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
        yield from (f"{share:.6f}" for share in shares)
        return
    mask = decode_mask(roi["mask"])
    counts.notes["masks with holes that outlines fill"] += has_holes(mask)
    for x, y in _joined(polygons(mask)):
        yield f"{x / width:.6f}"
        yield f"{y / height:.6f}"


def _joined(loops: list[list[Point]]) -> list[Point]:
    """One outline of several: out to each further part and back to the first point."""
    first = loops[0]
    joined = list(first)
    for loop in loops[1:]:
        joined += [first[0], *loop, loop[0]]
    return [*joined, first[0]] if len(loops) > 1 else joined
