"""The decoder of plain images: masks and boxes stay where they were drawn."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from imagefolders import refused, sample
from PIL import Image

from catalog.items import Box, Item


def bytes_of(pixels: np.ndarray, format: str = "PNG", orientation: int = 1) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, format, **({"exif": exif} if orientation > 1 else {}))
    return file.getvalue()


def item(main: bytes, **more: Any) -> Item:
    masks = more.pop("masks", {})
    return Item("i", "image", "i", {"main": main, **masks}, **more)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_and_boxes_turn_with_the_image(orientation: int) -> None:
    raw = np.zeros((24, 40, 3), np.uint8)
    raw[4:10, 8:30] = 255
    mask = np.uint8(255) * (raw[..., 0] > 0)
    for main in (bytes_of(raw, "JPEG", orientation), bytes_of(raw, "TIFF", orientation)):
        box = Box("b", (8, 4, 30, 10))
        made = sample(item(main, masks={"mask:m": bytes_of(mask)}, boxes=(box, box)))
        bright = made.pixels[..., 0] > 127
        region, drawn = made.regions
        assert region.mask is not None and np.array_equal(region.mask, bright)
        x0, y0, x1, y1 = map(int, drawn.box or ())
        assert bright[y0:y1, x0:x1].all() and bright.sum() == (x1 - x0) * (y1 - y0)
        if orientation >= 5:
            upright = sample(item(main, boxes=(Box("b", (x0, y0, x1, y1)),), facts={"annotated_size": [40, 24]}))
            assert upright.regions[0].box == drawn.box
            fits = sample(item(main, masks={"mask:m": bytes_of(np.uint8(255) * bright)}))
            assert fits.regions[0].mask is not None and np.array_equal(fits.regions[0].mask, bright)


def test_what_cannot_belong_to_the_image_fails_the_item() -> None:
    main = bytes_of(np.zeros((20, 30), np.uint8))
    assert refused(item(main, masks={"mask:m": bytes_of(np.ones((30, 20), np.uint8))})) == "MASK_SIZE_MISMATCH"
    assert refused(item(main, masks={"mask:m": main[:-9]})) == "IMAGE_TRUNCATED"
    for box in ((5, 5, 5, 9), (9, 5, 5, 9), (30, 0, 40, 9), (-5, 0, 0, 9), (float("nan"), 0, 4, 4)):
        assert refused(item(main, boxes=(Box("b", box),))) == "BOX_INVALID"
    wrong = item(main, boxes=(Box("b", (1, 1, 5, 5)),), facts={"annotated_size": [200, 300]})
    assert refused(wrong) == "ANNOTATION_SIZE_MISMATCH"
    assert refused(Item("i", "image", "i", {"labels": main})) == "NO_IMAGE"
    over = sample(item(main, boxes=(Box("b", (-2, 3, 31, 50)),)))
    assert over.regions[0].box == (0, 3, 30, 20)


def test_depth_and_frames_are_told() -> None:
    deep = sample(item(bytes_of(np.full((4, 4), 4000, np.uint16))))
    assert deep.columns == {"window": [0.0, 4095.0]} and deep.encoded is None and deep.locator == ""
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "TIFF", save_all=True, append_images=[Image.new("L", (4, 4), 9)])
    many = sample(item(file.getvalue(), facts={"modality": "OCT", "sha256": "no column to state", "anatomy": None}))
    assert many.columns == {"slice_index": 0, "modality": "OCT"} and many.locator == "frame:0"
    assert sample(item(bytes_of(np.zeros((8, 8, 3), np.uint8), "JPEG"))).columns == {"lossy": True}
