"""Exporters: plug-in modules that write a selection in a format some trainer loads as it is.

    NAME, REQUIRES, Params, and
    def write(rows: Iterable[Row], out: Path, params: Params) -> Counts

`out` is an empty folder. An exporter streams, leaves the pixels as they are stored (or says in its docstring where it
cannot), and accounts for every row: written, or left out and counted. Files of a sample are called `row.name`, never
by what a source says.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from catalog.selection import Row

CAPTION_KINDS = ("global", "original_caption", "report")
"""What serves as the caption of an image where the format has room for one."""


@dataclass
class Counts:
    """What an exporter wrote and what it left out."""

    written: int = 0
    without_caption: int = 0
    """samples left out since the format needs a caption and they have none"""
    licences: Counter[str] = field(default_factory=Counter)
    """image licence -> samples written; 'unknown' where there is none"""

    def add(self, row: Row) -> None:
        self.written += 1
        self.licences[row.image["licence_image"] or "unknown"] += 1


def facts(row: Row) -> dict[str, Any]:
    """The metadata columns of a sample: all of `images` but the bytes."""
    return {name: value for name, value in row.image.items() if name != "image"}
