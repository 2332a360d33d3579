"""What a seeing model is shown of a sample: the image, drawn on or clean, and regions cut out of it.

The invariant: the stored pixels are never changed; what is drawn is drawn on a copy.

>>> note, shown = pictures(sample, brief, "both", max_side=1024)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from PIL import Image

from catalog.drawing import draw_regions
from infra.llm import Picture
from transforms.captioners.brief import Brief
from transforms.decoded import Pixels
from transforms.stage import SampleRows

Shown = Literal["drawn", "cropped", "both", "clean"]
LEGIBLE = 512
"""Pixels of the longer side up to which a small image is enlarged, so that the numbers drawn on it can be read."""
MARGIN = 0.25
"""What a region is cut out with around it: this share of the longer side of its box, on every side."""
LEAST = 16
"""Pixels around a region, at least: a small lesion is nothing without what surrounds it."""


def pictures(sample: SampleRows, brief: Brief, shown: Shown, max_side: int) -> tuple[str, tuple[Picture, ...]]:
    """A note for the prompt that says what is what, and the pictures. Crops are of the regions the brief asks for."""
    rois = {row["roi_id"]: row for row in sample.rows("rois")}
    pixels = sample.pixels()
    drawn = shown in ("drawn", "both") and bool(brief.shown)
    if drawn:
        zoom = max(1, LEGIBLE // max(pixels.shape))
        image = draw_regions(pixels, [rois[roi] for roi in brief.shown], zoom=zoom)
    else:
        image = Image.fromarray(pixels)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    note = "The image is attached." + (" Number 1 is drawn on region_1, and so on." if drawn else "")
    cut = list(brief.regions) if shown in ("cropped", "both") else []
    if cut:
        note += f" After it follow, cut out of the clean image: {', '.join(cut)}."
    crops = [_cut_out(pixels, rois[brief.regions[handle]], max_side) for handle in cut]
    return note + "\n", tuple(Picture.of(each) for each in (image, *crops))


def _cut_out(pixels: Pixels, roi: Mapping[str, Any], max_side: int) -> Image.Image:
    x0, y0, x1, y1 = roi["box"]
    margin = max(LEAST, round(MARGIN * max(x1 - x0, y1 - y0)))
    part = pixels[max(0, y0 - margin) : y1 + margin, max(0, x0 - margin) : x1 + margin]
    zoom = max(1, LEGIBLE // max(part.shape[:2]))
    image = Image.fromarray(part.repeat(zoom, axis=0).repeat(zoom, axis=1))
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return image
