"""Whether regions can be what they are called: size, place, pieces, field of view and Hounsfield units.

The invariant: a rule is judged only where its facts are known, a region that breaks one is told and never left out, and
what no rule speaks of is unknown, not well. The rules are data: plausible.yaml.

>>> judged(rows, image).verdict, judged(rows, image).detail
('fail', 'lung 3fa1c09d2b77: seen in OP, where it cannot be')

The anomaly of an expert on a picture is the share of the rules judged that its regions break, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field

from catalog.masks import decode_mask
from transforms.decoded import Pixels
from transforms.grounding.agreement import thing_of
from transforms.vocabulary import modality

FILE = Path(__file__).with_name("plausible.yaml")
TOLD = 5
"""Broken rules that a detail names; it counts the others."""
SMALL = 0.01
"""A piece of a mask below this share of it does not count as one."""
CLIPPED = 0.1
"""Where a larger share of a region is black or white under the window, its Hounsfield units are not known."""

Row = Mapping[str, Any]
Span = tuple[float, float]


class Looks(BaseModel):
    """What regions of a class may look like; plausible.yaml says what each field means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str | None = None
    modalities: tuple[str, ...] = ()
    anatomy: tuple[str, ...] = ()
    margin: tuple[str, ...] = ()
    margin_share: float = Field(0, ge=0, le=1)
    share: Span | None = None
    side_mm: Span | None = None
    count: tuple[int, int] | None = None
    pieces: int | None = None
    centre: tuple[float, float, float, float] | None = None
    hu: Span | None = None


@dataclass(frozen=True)
class Judged:
    """What became of the rules on the regions of one expert on one picture."""

    rules: int
    """how many were judged"""
    broken: tuple[str, ...]
    """the regions and the rules that they break, in words"""
    unknown: tuple[str, ...]
    """labels that no rule speaks of"""

    @property
    def anomaly(self) -> float | None:
        """The share of rules broken; None: none was judged."""
        return round(len(self.broken) / self.rules, 4) if self.rules else None

    @property
    def verdict(self) -> str:
        return "fail" if self.broken else "pass" if self.rules and not self.unknown else "unknown"

    @property
    def detail(self) -> str:
        more = f"; and {len(self.broken) - TOLD} more" if len(self.broken) > TOLD else ""
        parts = ["; ".join(self.broken[:TOLD]) + more] if self.broken else [f"{self.rules} rules hold"]
        parts += [f"no rule speaks of {', '.join(self.unknown)}"] if self.unknown else []
        return "; ".join(parts)


def judged(
    rows: Sequence[Row], image: Row, pixels: Pixels | None = None, hu: Mapping[str, float] | None = None
) -> Judged:
    """Judge rows of `rois` of one expert on a picture, by its row of `images`.

    Mean Hounsfield units of a region come from `hu` (label -> mean over the scan) where that is given, else from
    `pixels` through `images.window`, where little of the region is clipped by it.
    """
    broken: list[str] = []
    unknown: dict[str, None] = {}
    count = 0
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    for label, regions in by_label.items():
        looks = looks_of(label, regions[0]["ontology_id"])
        if looks is None:
            unknown[label] = None
            continue
        answers = [(label, answer) for answer in _of_class(looks, len(regions), image)]
        for row in regions:
            name, mean = f"{label} {row['roi_id'][:12]}", (hu or {}).get(label)
            answers += [(name, answer) for answer in _of_region(looks, row, image)]
            answers += [(name, answer) for answer in _hounsfield(looks, row, image, pixels, mean)]
        count += len(answers)
        broken += [f"{name}: {words}" for name, words in answers if words]
    return Judged(count, tuple(broken), tuple(unknown))


def looks_of(label: str, ontology_id: str | None) -> Looks | None:
    """What plausible.yaml says of a class; None: nothing."""
    table = _by_thing()
    return table.get(thing_of(label, ontology_id)[0]) or table.get(thing_of(label, None)[0])


@cache
def _by_thing() -> Mapping[str, Looks]:
    read = yaml.safe_load(FILE.read_text(encoding="utf-8"))["classes"]
    return {thing_of(name, entry.get("id"))[0]: Looks.model_validate(entry) for name, entry in read.items()}


def _of_class(looks: Looks, count: int, image: Row) -> Iterator[str | None]:
    """For each rule that can be judged for all regions of a class at once: how it is broken, or None."""
    known = modality(image.get("modality"))
    if looks.modalities and known is not None:
        fits = known.code in looks.modalities
        yield None if fits else f"seen in {known.name}, where it cannot be"
    if looks.count:
        yield None if looks.count[0] <= count <= looks.count[1] else f"{count} of them, at most {looks.count[1]} can be"


def _of_region(looks: Looks, row: Row, image: Row) -> Iterator[str | None]:
    """Likewise, for each rule on one region."""
    share = row["area_fraction"]
    anatomy = (image.get("anatomy") or "").casefold()
    if looks.anatomy and anatomy and not any(word in anatomy for word in looks.anatomy):
        if not any(word in anatomy for word in looks.margin):
            yield f"outside the field of view, which is {anatomy}"
        else:
            yield None if share <= looks.margin_share else (
                f"covers {share:.1%} of a picture of the {anatomy}, more than its margin ({looks.margin_share:.0%})"
            )
    elif looks.anatomy and anatomy:
        yield None
    if looks.share:
        yield _within(share, looks.share, "share of the picture")
    x0, y0, x1, y1 = row["box"]
    if looks.side_mm and image.get("pixel_spacing"):
        tall, wide = image["pixel_spacing"]
        yield _within(max((x1 - x0) * wide, (y1 - y0) * tall), looks.side_mm, "length in mm")
    if looks.centre:
        x, y = (x0 + x1) / 2 / image["width"], (y0 + y1) / 2 / image["height"]
        left, top, right, bottom = looks.centre
        yield None if left <= x <= right and top <= y <= bottom else f"its centre at {x:.2f}, {y:.2f} of the picture"
    if looks.pieces is not None and row["mask"] is not None:
        pieces = _pieces(row)
        yield None if pieces <= looks.pieces else f"in {pieces} pieces, at most {looks.pieces} can be"


def _hounsfield(
    looks: Looks, row: Row, image: Row, pixels: Pixels | None, mean: float | None
) -> Iterator[str | None]:
    if looks.hu is None or image.get("modality") != "CT":
        return
    if mean is None and pixels is not None and pixels.ndim == 2 and image.get("window") and row["mask"] is not None:
        grey = pixels[decode_mask(row["mask"])]
        low, high = image["window"]
        if np.isin(grey, (0, 255)).mean() <= CLIPPED:
            mean = low + (high - low) * float(grey.mean()) / 255
    if mean is not None:
        yield _within(mean, looks.hu, "mean in HU")


def _within(value: float, span: Span, what: str) -> str | None:
    return None if span[0] <= value <= span[1] else f"{what} {value:.4g}, not {span[0]:g} to {span[1]:g}"


def _pieces(row: Row) -> int:
    from scipy import ndimage

    x0, y0, x1, y1 = row["box"]
    pieces, count = ndimage.label(decode_mask(row["mask"])[y0:y1, x0:x1], np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    return int((sizes > SMALL * sizes.sum()).sum())
