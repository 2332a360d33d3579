"""A picture to be measured, a region cut out of it, and the rows that measuring gives.

The invariant: a cut holds the region and `MARGIN` pixels around it, as far as the image goes, so that measuring a cell
costs what a cell costs, however large the slide.

>>> cut(picture, row).mask.sum() == area_of(code_of(row["mask"]))
True
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from catalog.masks import Mask, decode_mask
from transforms.decoded import Pixels

PROJECTIONS = frozenset({"CR", "DX", "RG", "MG", "PX", "IO", "RF", "XA", "BMD"})
"""Modalities whose pixel spacing may be that of the detector: mm are measured there, and nothing is said of them."""
MARGIN = 18
"""Pixels kept around a region: the widest ring, and the gap before it."""
DIGITS = 6
"""Decimals kept of a measure: libraries differ in the last bits."""


class Measure(NamedTuple):
    """A measure before it is a row of `measures`."""

    name: str
    value: float
    unit: str | None = None
    words: str | None = None


Measures = Iterator[Measure]


@dataclass(frozen=True)
class Picture:
    """What is known of a picture."""

    grey: Pixels
    """(height, width), 0 to 255"""
    spacing: tuple[float, float] | None
    """mm per row, mm per column; None: unknown"""
    window: tuple[float, float] | None
    """HU shown as grey 0 and 255, of a CT; None: grey is all that is known"""
    in_patient: bool
    """whether a mm in the picture is a mm in the patient"""
    slice: bool
    """whether it is a slice of a volume: what it shows goes on beyond it"""

    @property
    def where(self) -> str:
        """What limits every size told of the picture."""
        return " in this slice" if self.slice else ""


@dataclass(frozen=True)
class Cut:
    """A region and what lies around it."""

    mask: Mask
    grey: Pixels
    corner: tuple[int, int]
    """row and column, in the image, of its first pixel"""
    at_edge: bool
    """the region touches the edge of the image: it may go on beyond"""


def picture_of(image: Mapping[str, Any], pixels: Pixels) -> Picture:
    """The picture of a row of `images`; colours as luma (ITU-R 601)."""
    grey = pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))
    spacing, window, modality = image.get("pixel_spacing"), image.get("window"), image.get("modality")
    if window is not None and (modality != "CT" or window[1] <= window[0]):
        window = None
    return Picture(
        grey, (float(spacing[0]), float(spacing[1])) if spacing and min(spacing) > 0 else None,
        (float(window[0]), float(window[1])) if window else None, modality not in PROJECTIONS,
        image.get("volume_id") is not None,
    )


def cut(picture: Picture, row: Mapping[str, Any]) -> Cut:
    """The region of a row of `rois` that has a mask."""
    height, width = picture.grey.shape
    x0, y0, x1, y1 = row["box"]
    left, top = max(0, x0 - MARGIN), max(0, y0 - MARGIN)
    right, bottom = min(width, x1 + MARGIN), min(height, y1 + MARGIN)
    mask: npt.NDArray[np.bool_] = decode_mask(row["mask"], (left, top, right, bottom))
    at_edge = x0 == 0 or y0 == 0 or x1 == width or y1 == height
    return Cut(mask, picture.grey[top:bottom, left:right], (top, left), at_edge)
