"""What one entry of a table or of an annotation file says about one image, whatever the format.

The invariant: every entry comes out, as what it states or with the error that makes it unusable; and boxes come out in
one convention: x0, y0, x1, y1 from 0, half-open, in the frame that the facts name.

The frame is a matter of three facts, which the decoder `image` understands:

    annotated_size      [height, width] on which boxes and outlines were drawn; [1, 1]: they are fractions
    annotated_fit       "scale": an image of another size but the same shape is fine; else it is refused
    annotated_upright   true: they were drawn on the image as EXIF turns it; else on the image as it is stored
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from catalog.items import Box, Label, Text
from infra.errors import ItemError, Terminal


@dataclass(frozen=True)
class Stated:
    """What one entry says about one image."""

    id: str
    """what the entry is called where no image belongs to it; it does not change when other entries do"""
    file: str
    """of the entry, relative to the root"""
    names: tuple[str, ...] = ()
    """what the entry calls the image, best first: a path, a file name, or a name without suffix"""
    labels: tuple[Label, ...] = ()
    boxes: tuple[Box, ...] = ()
    outlines: tuple[Mapping[str, Any], ...] = ()
    """regions that are more than a box: {"label", one of "polygons", "rle", "box", perhaps "rater" and "score"}"""
    texts: tuple[Text, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    patient: str | None = None
    licence: tuple[str, ...] | None = None
    """code, evidence, and a third word where the code holds for the texts as well as for the image"""
    error: ItemError | None = None


def beside(file: str, image: str) -> str:
    """The path below the root of an image that a file of annotations names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(file), image.replace("\\", "/")))


def finite(values: Iterable[Any]) -> list[float]:
    """The numbers of a box or an outline. Raises ValueError, also for NaN and infinity."""
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{numbers} is not finite")
    return numbers


def annotated(size: Iterable[float]) -> dict[str, Any]:
    """The fact of height and width of the image that was annotated; files that do not know them state 0."""
    sides = [int(side) for side in size]
    return {"annotated_size": sides} if all(side >= 1 for side in sides) else {}


def unreadable(where: str, error: object) -> Terminal:
    """Terminal ANNOTATION_UNREADABLE; says nothing of where the file lies on this machine."""
    what = error
    if isinstance(error, KeyError):
        what = f"it has no {error}"
    elif isinstance(error, OSError):
        what = error.strerror
    return Terminal("ANNOTATION_UNREADABLE", f"{where} cannot be read: {what}; correct or exclude it")
