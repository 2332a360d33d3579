"""Masks of a sample as one map of integers: what segmentation trainers read.

The invariant: a pixel has one class. Where masks of two classes overlap, the sample is refused, or by `overlap=order`
the class with the higher number wins. Regions with a box alone have no pixels, and a sample without a mask is left out:
not marked is not background.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from catalog.exports import Counts
from catalog.exports.regions import SplitParams, Spool, chosen
from catalog.masks import code_of, common_area, decode_mask
from catalog.selection import Row
from infra.errors import ConfigError

NO_MASK, OVERLAP = "no mask", "masks of two classes overlap"
MOST = 65535
"""Numbers of a 16-bit PNG."""


class MapParams(SplitParams):
    """Which masks become classes."""

    overlap: Literal["refuse", "order"] = Field(
        "refuse", description="what happens to samples where masks of two classes share pixels: left out, or the class "
        "that is later in `classes` wins"
    )


def masks_of(row: Row, params: MapParams, counts: Counts) -> list[dict[str, Any]] | None:
    """The regions of a row that go into its map, or None when the row is left out and counted."""
    rois = chosen(row, params, counts)
    masks = [roi for roi in rois if roi["mask"] is not None and roi["area"]]
    counts.notes["regions without a mask, not written"] += len(rois) - len(masks)
    if not masks and not (params.empty and not rois):
        counts.left_out[NO_MASK] += 1
        return None
    if params.overlap == "refuse" and _overlap(masks):
        counts.left_out[OVERLAP] += 1
        return None
    return masks


def _overlap(rois: Sequence[Mapping[str, Any]]) -> bool:
    codes = [(roi["label"], code_of(roi["mask"])) for roi in rois]
    return any(
        a != b and common_area(one, other) > 0
        for n, (a, one) in enumerate(codes) for b, other in codes[n + 1 :]
    )


def write_maps(spool: Spool, out: Path) -> dict[str, int]:
    """Write the map of each spooled record {at, size, rois}; returns label -> number, background first."""
    labels = {"background": 0, **{label: n for n, (label, _) in enumerate(spool.classes, 1)}}
    if len(labels) != len(spool.classes) + 1 or len(labels) > MOST:
        raise ConfigError("a class may not be called 'background', and there may be 65534; name --option classes=[…]")
    for record in spool.records():
        found = np.zeros(record["size"], np.uint16 if len(labels) > 256 else np.uint8)
        for number, code in sorted(((labels[label], code) for label, code in record["rois"]), key=lambda r: r[0]):
            found[decode_mask(code)] = number
        Image.fromarray(found).save(out / record["at"], "PNG")
    return labels


def spooled(row: Row, at: str, rois: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What `write_maps` needs to know of a sample."""
    size = [row.image["height"], row.image["width"]]
    return {"at": at, "size": size, "rois": [(roi["label"], roi["mask"]) for roi in rois]}


def as_png(row: Row, mode: str) -> bytes:
    """The picture as a PNG with one channel (L) or three (RGB)."""
    png = io.BytesIO()
    with Image.open(io.BytesIO(bytes(row.image["image"]["bytes"])), formats=["GIF", "WEBP", "JPEG", "PNG"]) as image:
        (image if image.mode == mode else image.convert(mode)).save(png, "PNG")
    return png.getvalue()


def has_colour(row: Row) -> bool:
    """Whether the picture's channels differ anywhere."""
    with Image.open(io.BytesIO(bytes(row.image["image"]["bytes"])), formats=["GIF", "WEBP", "JPEG", "PNG"]) as image:
        if image.mode in ("1", "L", "I;16", "I", "LA"):
            return False
        rgb = np.asarray(image.convert("RGB"))
    return bool((rgb[..., 0] != rgb[..., 1]).any() or (rgb[..., 1] != rgb[..., 2]).any())
