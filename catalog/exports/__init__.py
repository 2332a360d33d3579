"""Exporters: plug-in modules that write a selection in a format some trainer loads as it is.

    NAME, REQUIRES, Params, and
    def write(rows: Iterable[Row], out: Path, params: Params) -> Counts
    def finish(out: Path, record: Mapping[str, Any]) -> None                      optional: what the manifest will say
    RESUMES = True                                                                 optional: catalog/exports/progress.py
    VOLUMES = True                                                                 optional: rows come with `volume`

`out` is an empty folder, or holds whole files of the same export that was interrupted. An exporter streams, leaves the
pixels as they are stored (or says in its docstring where it cannot), and accounts for every row: written, or left out
and counted by reason. Files of a sample are called `row.name`, never by what a source says.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from catalog.selection import Row

CAPTION_KINDS = ("global", "original_caption", "report")
"""What serves as the caption of an image where the format has room for one."""
NO_CAPTION = "no caption"
WEB = ("png", "jpg", "webp")
"""Formats that all trainers open; a GIF is none of them."""


@dataclass
class Counts:
    """What an exporter wrote and what it left out."""

    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """reason -> samples left out since the format has no room for them"""
    licences: Counter[str] = field(default_factory=Counter)
    """image licence -> samples written; 'unknown' where there is none"""
    notes: Counter[str] = field(default_factory=Counter)
    """what was written otherwise than it is stored, or not, of samples that were written -> how often"""

    def add(self, row: Row) -> None:
        self.written += 1
        self.licences[row.image["licence_image"] or "unknown"] += 1

    @property
    def seen(self) -> int:
        """Rows accounted for."""
        return self.written + self.left_out.total()


def facts(row: Row) -> dict[str, Any]:
    """The metadata columns of a sample: all of `images` but the bytes."""
    return {name: value for name, value in row.image.items() if name != "image"}


def picture(row: Row, formats: Collection[str] = WEB) -> tuple[str, bytes]:
    """(suffix, bytes) of the stored image; as a PNG of the same pixels where it is of none of these formats."""
    suffix, data = row.suffix, bytes(row.image["image"]["bytes"])
    if suffix in formats:
        return suffix, data
    png = io.BytesIO()
    with Image.open(io.BytesIO(data), formats=["GIF", "WEBP", "JPEG", "PNG"]) as image:
        image.save(png, "PNG")
    return "png", png.getvalue()


def inside(box: Any, row: Row) -> list[int] | None:
    """The part of a box that lies in the image, or None: trainers refuse boxes beyond the edge."""
    width, height = row.image["width"], row.image["height"]
    x0, y0, x1, y1 = max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)
    return [x0, y0, x1, y1] if x0 < x1 and y0 < y1 else None
