"""Regions drawn on a copy of an image: masks as contours, boxes as rectangles, each with its number.

The invariant: the pixels given are never changed, and only lines and numbers differ in the copy.

>>> draw_regions(sample.pixels(), sample.rows("rois")).save("look.png")
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from catalog.masks import Mask, decode_mask

Pixels = npt.NDArray[np.uint8]
"""(height, width) grey or (height, width, 3) RGB, 8 bit."""

GOLDEN = 0.618033988749895
"""Step around the colour circle that keeps any number of hues apart."""


def draw_regions(
    pixels: Pixels, rois: Sequence[Mapping[str, Any]], numbers: bool = True, zoom: int = 1
) -> Image.Image:
    """An RGB copy with rows of `rois` drawn, the first as number 1; lines and digits grow with the image.

    `pixels` is the stored image, (height, width) or (height, width, 3); boxes and masks are on its grid. `zoom` repeats
    every pixel that many times each way, to make room for numbers in a small image. ValueError for a mask of another
    size.
    """
    large = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    canvas = np.stack([large] * 3, axis=-1) if large.ndim == 2 else large
    thickness = max(1, round(max(canvas.shape) / 400))
    for n, roi in enumerate(rois):
        region = _region(roi, pixels.shape[:2]).repeat(zoom, axis=0).repeat(zoom, axis=1)
        canvas[_edge(region, thickness)] = _colour(n)
    image = Image.fromarray(canvas)
    if numbers:
        _number(image, [[zoom * side for side in roi["box"]] for roi in rois])
    return image


def _colour(n: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb((0.14 + n * GOLDEN) % 1, 0.85 if n % 2 == 0 else 0.6, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


def _region(roi: Mapping[str, Any], size: tuple[int, ...]) -> Mask:
    if roi["mask"] is None:
        x0, y0, x1, y1 = roi["box"]
        region = np.zeros(size, bool)
        region[y0:y1, x0:x1] = True
        return region
    region = decode_mask(roi["mask"])
    if region.shape != size:
        raise ValueError(f"roi {roi.get('roi_id')}: its mask is {region.shape}, the image is {size}")
    return region


def _edge(region: Mask, thickness: int) -> Mask:
    """The outermost pixels of a region."""
    inner = region
    for _ in range(thickness):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~inner


def _number(image: Image.Image, boxes: Sequence[Sequence[int]]) -> None:
    """Write each box's number beside or in it, at the first place where no other number stands."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(10, round(max(image.size) / 32)))
    taken: list[tuple[float, float, float, float]] = []
    for n, box in enumerate(boxes):
        left, top, right, bottom = draw.textbbox((0, 0), str(n + 1), font=font, stroke_width=1)
        wide, high = right - left, bottom - top
        places = [
            (x, y, x + wide, y + high) for x, y in _places(box, wide, high)
            if 0 <= x <= image.width - wide and 0 <= y <= image.height - high
        ] or [(0, 0, wide, high)]
        x0, y0, *_ = place = next((p for p in places if not any(_meet(p, other) for other in taken)), places[0])
        taken.append(place)
        draw.text((x0 - left, y0 - top), str(n + 1), fill=_colour(n), font=font, stroke_width=1, stroke_fill=(0, 0, 0))


def _places(box: Sequence[int], wide: float, high: float) -> Iterator[tuple[float, float]]:
    """Corners for a number: above the box, below it, then in its middle and its corners."""
    x0, y0, x1, y1 = box
    yield from ((x, y) for y in (y0 - high - 1, y1 + 1) for x in (x0, (x0 + x1 - wide) / 2, x1 - wide))
    yield (x0 + x1 - wide) / 2, (y0 + y1 - high) / 2
    yield from ((x, y) for y in (y0 + 2, y1 - high - 2) for x in (x0 + 2, x1 - wide - 2))


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
