"""Plain images: JPEG, PNG, TIFF, WebP, GIF, BMP, JPEG 2000, PNM, with their given masks and boxes.

The invariant: masks and boxes lie where they lay in the file, also after EXIF orientation was applied: all are turned
with the image, once. A mask or box that cannot belong to the image fails the item; nothing is fitted or left out.

An item has the files

    main                      the image
    mask:LABEL                an image whose non-zero pixels are the region
    mask:LABEL/INSTANCE       the same, for one of several regions of a label

and may have, beside columns of `images`, the facts

    roles            label -> role of the regions of its masks (organ, lesion, cell …; default "region")
    annotated_size   [height, width] of the image that the boxes were drawn on, where the source says so
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from catalog.items import Box, Item
from infra.errors import ItemError, Terminal
from transforms.decoded import Decoded, IngestParams, Pseudonym, Refused, Region, Sample
from transforms.pictures.imagefile import Opened, open_image, open_mask, upright_box

NAME = "image"
VERSION = "1"
REQUIRES: dict[str, str] = {}
COLUMNS = ("source_uri", "source_version", "modality", "anatomy", "view", "pixel_spacing", "orientation")
"""Columns of `images` that an item may state."""


class Params(BaseModel):
    """This decoder has no settings of its own; `ingest:` in the recipe holds them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def decode(items: Sequence[Item], params: IngestParams, pseudonym: Pseudonym) -> Iterator[Decoded]:
    """One sample an item. Codes of refusals: those of `open_image`, and MASK_SIZE_MISMATCH, BOX_INVALID,
    ANNOTATION_SIZE_MISMATCH, NO_IMAGE."""
    for item in items:
        try:
            yield _sample(item, pseudonym)
        except ItemError as error:
            yield Refused(item.id, error)


def _sample(item: Item, pseudonym: Pseudonym) -> Sample:
    if "main" not in item.files:
        raise Terminal("NO_IMAGE", f"the item has the files {sorted(item.files)} but no 'main'; mend its connector")
    opened = open_image(item.files["main"])
    masks = [region for role in item.files if role.startswith("mask:") for region in _mask(item, role, opened)]
    size = item.facts.get("annotated_size")
    boxes = [_box(box, opened, tuple(size) if size else None) for box in dict.fromkeys(item.boxes)]
    first_of_many = opened.frames > 1
    columns: dict[str, Any] = {name: item.facts[name] for name in COLUMNS if item.facts.get(name) is not None}
    if opened.window:
        columns["window"] = list(opened.window)
    if first_of_many:
        columns["slice_index"] = 0
    if opened.lossy:  # a PNG may have been a JPEG before: only a yes is certain
        columns["lossy"] = True
    return Sample(
        items=(item.id,),
        content=(item.sha256(),),
        locator="frame:0" if first_of_many else "",
        pixels=opened.pixels,
        encoded=opened.encoded,
        group=None if item.patient is None else pseudonym("patient", item.patient),
        columns=columns,
        regions=(*masks, *boxes),
        labels=tuple(dict.fromkeys(item.labels)),
        texts=tuple(dict.fromkeys(item.texts)),
        licences=item.licences,
    )


def _mask(item: Item, role: str, image: Opened) -> Iterator[Region]:
    """The region of one mask file; none where the mask is empty, which says that the label is not there."""
    label = role.removeprefix("mask:").rpartition("/")[0] or role.removeprefix("mask:")
    try:
        mask = open_mask(item.files[role])
    except ItemError as error:
        raise Terminal(error.code, f"{role}: {error.message}") from error
    inside = _turned_with(image, mask) > 0
    if inside.any():
        yield Region(label, item.facts.get("roles", {}).get(label, "region"), mask=inside)


def _turned_with(image: Opened, mask: Opened) -> Any:
    """The mask in the upright image: drawn on the raw image unless it has an orientation of its own or fits only so."""
    shape, upright = mask.pixels.shape[:2], image.pixels.shape[:2]
    if mask.orientation == 1 and shape == image.raw_size:
        turned = mask.pixels
        if image.orientation in (2, 3, 7, 8):
            turned = np.fliplr(turned)
        if image.orientation in (3, 4, 6, 7):
            turned = np.flipud(turned)
        return turned.T if image.orientation >= 5 else turned
    if shape == upright:
        return mask.pixels
    raise Terminal(
        "MASK_SIZE_MISMATCH",
        f"a mask is {shape[1]} x {shape[0]} pixels, its image {upright[1]} x {upright[0]}; "
        "give the mask that was drawn on this image",
    )


def _box(box: Box, image: Opened, annotated: tuple[int, ...] | None) -> Region:
    height, width = image.pixels.shape[:2]
    if annotated in (None, image.raw_size):
        x0, y0, x1, y1 = upright_box(box.xyxy, image.orientation, image.raw_size)
    elif annotated == (height, width):
        x0, y0, x1, y1 = box.xyxy
    else:
        raise Terminal(
            "ANNOTATION_SIZE_MISMATCH",
            f"the boxes were drawn on {annotated[1]} x {annotated[0]} pixels, the image has {width} x {height}; "
            "give the image that was annotated",
        )
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if not (x0 < x1 and y0 < y1 and inside[0] < inside[2] and inside[1] < inside[3]):
        raise Terminal(
            "BOX_INVALID",
            f"box {box.xyxy} of {box.label!r} has no area inside the image of {width} x {height}; correct the source",
        )
    return Region(box.label, box.role, box=inside)
