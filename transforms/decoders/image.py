"""Plain images: JPEG, PNG, TIFF, WebP, GIF, BMP, JPEG 2000, PNM, with their given masks and boxes.

The invariant: masks and boxes lie where they lay in the file, also after EXIF orientation was applied: all are turned
with the image, once. A mask or box that cannot belong to the image fails the item; nothing is fitted or left out.

An item has the files

    main                      the image
    mask:LABEL                an image whose non-zero pixels are the region
    mask:LABEL/INSTANCE       the same, for one of several regions of a label
    classes, classes:RATER    an image whose values or colours say the class

and may have, beside columns of `images`, the facts

    roles               label -> role of the regions of its masks (organ, lesion, cell …; default "region")
    raters              role of a mask -> who drew it
    classes             value or #rrggbb -> label, for the masks of classes; see transforms/pictures/outlines.py
    outlines            regions: {"label", "role", one of "polygons", "rle", "box", perhaps "rater" and "score"}
    annotated_size      [height, width] of the image that boxes and outlines were drawn on; [1, 1]: they are fractions
    annotated_fit       "scale": fit them to an image of another size but the same shape; else that is refused
    annotated_upright   true: they were drawn on the image as EXIF turns it

What a rater drew is a region like any other; a label "LABEL: present" (of an empty mask: "absent") of origin
"rater:NAME" says who stated it. An image of three colours or less is labelled "looks like: mask".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from catalog.items import Item, Label
from catalog.masks import Mask
from infra.errors import ItemError, Terminal
from transforms.decoded import Decoded, IngestParams, Pseudonym, Refused, Region, Sample
from transforms.pictures.imagefile import Opened, open_image, open_mask, upright_box
from transforms.pictures.outlines import class_masks, polygon_mask, resized, rle_mask

NAME = "image"
VERSION = "2"
REQUIRES: dict[str, str] = {}
MASK_COLOURS = 3
COLUMNS = ("source_uri", "source_version", "modality", "anatomy", "view", "pixel_spacing", "orientation")
"""Columns of `images` that an item may state."""


class Params(BaseModel):
    """This decoder has no settings of its own; `ingest:` in the recipe holds them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def decode(items: Sequence[Item], params: IngestParams, pseudonym: Pseudonym) -> Iterator[Decoded]:
    """One sample an item. Codes of refusals: those of `open_image`, and `class_masks`, MASK_SIZE_MISMATCH,
    BOX_INVALID, OUTLINE_INVALID, ANNOTATION_SIZE_MISMATCH, NO_IMAGE."""
    for item in items:
        try:
            yield _sample(item, pseudonym)
        except ItemError as error:
            yield Refused(item.id, error)


def _sample(item: Item, pseudonym: Pseudonym) -> Sample:
    if "main" not in item.files:
        raise Terminal("NO_IMAGE", f"the item has the files {sorted(item.files)} but no 'main'; mend its connector")
    opened = open_image(item.files["main"])
    masks = [found for role in item.files if role != "main" for found in _masks(item, role, opened)]
    frame = _frame(item.facts, opened) if item.boxes or item.facts.get("outlines") else None
    boxes = [_box(box.label, box.role, box.xyxy, frame) for box in dict.fromkeys(item.boxes) if frame]
    outlines = [(_outline(one, frame), one.get("rater")) for one in item.facts.get("outlines", ()) if frame]
    rated = [(region, rater) for region, rater in (*masks, *outlines) if rater]
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
        regions=tuple(_different(region for region, _ in (*masks, *((box, None) for box in boxes), *outlines))),
        labels=tuple(dict.fromkeys((*item.labels, *(_by(region, rater) for region, rater in rated), *_odd(opened)))),
        texts=tuple(dict.fromkeys(item.texts)),
        licences=item.licences,
    )


def _masks(item: Item, role: str, image: Opened) -> Iterator[tuple[Region, str | None]]:
    """The regions of one mask file with who drew them. An empty one says that the label is not there."""
    kind, _, name = role.partition(":")
    roles, rater = item.facts.get("roles", {}), item.facts.get("raters", {}).get(role)
    try:
        if kind == "classes":
            found, orientation = class_masks(item.files[role], item.facts.get("classes", {}))
        elif kind == "mask":
            mask = open_mask(item.files[role])
            found, orientation = [(name.rpartition("/")[0] or name, mask.pixels > 0)], mask.orientation
        else:
            return
    except ItemError as error:
        raise Terminal(error.code, f"{role}: {error.message}") from error
    for label, drawn in found:
        yield Region(label, roles.get(label, "region"), mask=_turned_with(image, drawn, orientation)), rater


def _different(regions: Iterator[Region]) -> Iterator[Region]:
    """Regions that are not empty, each once: two raters may have drawn the same."""
    seen = set()
    for region in regions:
        drawn = None if region.mask is None else region.mask.tobytes()
        if _there(region) and (region.label, drawn, region.box) not in seen:
            seen.add((region.label, drawn, region.box))
            yield region


def _by(region: Region, rater: str | None) -> Label:
    return Label(region.label, "present" if _there(region) else "absent", f"rater:{rater}")


def _odd(image: Opened) -> Iterator[Label]:
    """A label for an image of no more than three colours: sets have masks among their images."""
    if Image.fromarray(np.ascontiguousarray(image.pixels)).getcolors(MASK_COLOURS):
        yield Label("looks like", "mask", "decoder:image")


def _there(region: Region) -> bool:
    return region.mask is None or bool(region.mask.any())


def _turned_with(image: Opened, mask: Mask, orientation: int) -> Mask:
    """The mask in the upright image: drawn on the raw image unless it has an orientation of its own or fits only so."""
    shape, upright = mask.shape, image.pixels.shape[:2]
    if orientation == 1 and shape == image.raw_size:
        return _turned(image, mask)
    if shape == upright:
        return mask
    raise Terminal(
        "MASK_SIZE_MISMATCH",
        f"a mask is {shape[1]} x {shape[0]} pixels, its image {upright[1]} x {upright[0]}; "
        "give the mask that was drawn on this image",
    )


def _turned(image: Opened, mask: Mask) -> Mask:
    if image.orientation in (2, 3, 7, 8):
        mask = np.fliplr(mask)
    if image.orientation in (3, 4, 6, 7):
        mask = np.flipud(mask)
    return mask.T if image.orientation >= 5 else mask


@dataclass(frozen=True)
class _Frame:
    """What boxes and outlines were drawn on."""

    image: Opened
    size: tuple[int, int]
    """(height, width) of the annotated image"""
    target: tuple[int, int]
    """(height, width) of the image here, as stored or upright, whichever was annotated"""
    turn: bool
    """whether the annotated image has yet to be turned upright"""

    def box(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """A box (or a point, twice) in the upright image."""
        sy, sx = self.target[0] / self.size[0], self.target[1] / self.size[1]
        x0, y0, x1, y1 = box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy
        return upright_box((x0, y0, x1, y1), self.image.orientation, self.target) if self.turn else (x0, y0, x1, y1)

    def mask(self, mask: Mask) -> Mask:
        if mask.shape != self.size and self.size != (1, 1):
            raise _size_mismatch(mask.shape, self.target)
        mask = mask if mask.shape == self.target else resized(mask, self.target)
        return _turned(self.image, mask) if self.turn else mask


def _frame(facts: Mapping[str, Any], image: Opened) -> _Frame:
    """Raises Terminal ANNOTATION_SIZE_MISMATCH where the image is not the one that was annotated."""
    raw, upright = image.raw_size, (image.pixels.shape[0], image.pixels.shape[1])
    turn = not facts.get("annotated_upright", False)
    stated = facts.get("annotated_size")
    size = (int(stated[0]), int(stated[1])) if stated else (raw if turn else upright)
    if size == (1, 1):
        return _Frame(image, size, raw if turn else upright, turn)
    if size in (raw, upright):
        turn = turn if raw == upright else size == raw
        return _Frame(image, size, size, turn)
    target = raw if turn else upright
    # the shape is the same if no side is off by more than rounding to whole pixels explains
    same = abs(size[0] * target[1] - size[1] * target[0]) <= max(*size, *target)
    if facts.get("annotated_fit") == "scale" and same:
        return _Frame(image, size, target, turn)
    raise _size_mismatch(size, target)


def _size_mismatch(size: Sequence[int], image: Sequence[int]) -> Terminal:
    return Terminal(
        "ANNOTATION_SIZE_MISMATCH",
        f"boxes and outlines were drawn on {size[1]} x {size[0]} pixels, the image has {image[1]} x {image[0]}; "
        "give the image that was annotated, or set annotated_fit: scale if it was only shrunk",
    )


def _outline(outline: Mapping[str, Any], frame: _Frame) -> Region:
    label, role, score = outline["label"], outline.get("role", "region"), outline.get("score")
    if "box" in outline:
        return _box(label, role, outline["box"], frame, score)
    if "rle" in outline:
        return Region(label, role, mask=frame.mask(rle_mask(outline["rle"])), score=score)
    turned = [
        [side for x, y in zip(points[::2], points[1::2], strict=True) for side in frame.box((x, y, x, y))[:2]]
        for points in outline["polygons"]
    ]
    mask = polygon_mask(turned, (frame.image.pixels.shape[0], frame.image.pixels.shape[1]))
    if mask.any():
        return Region(label, role, mask=mask, score=score)
    # too thin to hold the middle of a pixel: where it lies is known all the same
    xs, ys = ([side for points in outline["polygons"] for side in points[n::2]] for n in (0, 1))
    return _box(label, role, (min(xs), min(ys), max(xs), max(ys)), frame, score)


def _box(label: str, role: str, xyxy: Sequence[float], frame: _Frame, score: float | None = None) -> Region:
    height, width = frame.image.pixels.shape[:2]
    x0, y0, x1, y1 = frame.box(xyxy)
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if not (x0 < x1 and y0 < y1 and inside[0] < inside[2] and inside[1] < inside[3]):
        raise Terminal(
            "BOX_INVALID",
            f"box {tuple(xyxy)} of {label!r} has no area inside the image of {width} x {height}; correct the source",
        )
    return Region(label, role, box=inside, score=score)
