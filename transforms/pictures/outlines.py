"""Outlines and class masks as given by a source, as masks: polygons, COCO run lengths, images of values or colours.

The invariant: a mask is what the source drew or an error; run lengths are added up before anything is allocated,
because the data is untrusted, and a value that nobody named is never passed over.

>>> polygon_mask([[2, 1, 8, 1, 8, 5, 2, 5]], (10, 20)).sum()
24
>>> rle_mask({"size": [2, 3], "counts": [1, 2, 3]}).astype(int).tolist()
[[0, 1, 0], [1, 0, 0]]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from catalog.masks import Mask, decode_mask
from infra.errors import Terminal
from transforms.pictures.imagefile import MAX_PIXELS, load_picture, turned_upright

MAX_INSTANCES = 5_000
"""Regions that one mask of instances may hold: more are an image that is no mask, and would fill the memory."""


def polygon_mask(polygons: Iterable[Sequence[float]], size: tuple[int, int]) -> Mask:
    """The union of polygons [x0, y0, x1, y1, …] on an image of `size` (height, width), clipped to it, as COCO draws it.

    Raises Terminal OUTLINE_INVALID for a polygon of less than three points.
    """
    from pycocotools import mask as coco

    height, width = size
    clipped = []
    for polygon in polygons:
        points = np.asarray(polygon, np.float64).reshape(-1, 2) if len(polygon) % 2 == 0 else np.empty((0, 2))
        if len(points) < 3 or not np.isfinite(points).all():
            raise Terminal("OUTLINE_INVALID", f"an outline of {len(polygon)} numbers is no polygon; correct the source")
        clipped.append(np.clip(points, 0, [width, height]).ravel().tolist())
    code = coco.merge(coco.frPyObjects(clipped, height, width))
    return decode_mask({"size": [height, width], "counts": code["counts"].decode("ascii")})


def rle_mask(rle: Mapping[str, Any]) -> Mask:
    """The mask of a COCO run-length code, compressed (a string) or not (numbers).

    Raises Terminal OUTLINE_INVALID where the runs do not add up to the size.
    """
    height, width = rle["size"]
    counts = _unpacked(rle["counts"]) if isinstance(rle["counts"], str) else list(rle["counts"])
    if height < 1 or width < 1 or height * width > MAX_PIXELS or any(n < 0 for n in counts):
        raise Terminal("OUTLINE_INVALID", f"run lengths of an image of {width} x {height} pixels; correct the source")
    if sum(counts) != height * width:
        why = f"run lengths add up to {sum(counts)}, the image has {height * width} pixels; correct the source"
        raise Terminal("OUTLINE_INVALID", why)
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(inside.reshape(width, height).T)


def _unpacked(code: str) -> list[int]:
    """Run lengths of COCO's string: six-bit groups, least first; from the fourth on, differences to two before."""
    counts: list[int] = []
    value = shift = 0
    for letter in code:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise Terminal("OUTLINE_INVALID", "the string of run lengths is damaged; correct the source")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (1 << shift) if bits & 0x10 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise Terminal("OUTLINE_INVALID", "the string of run lengths is cut short; correct the source")
    return counts


def class_masks(data: bytes, table: Mapping[str, str]) -> tuple[list[tuple[str, Mask]], int]:
    """(label, mask) of every class in an image of values or colours, upright, and the EXIF orientation applied.

    `table` says what a value ("3") or a colour ("#ff0000") is; "" is no region, and "*" names all others, each of
    which is a region of its own. 0 and black are the background unless named. Palette images go by their index where
    the table holds values. Raises Terminal LABEL_VALUE_UNKNOWN, MASK_LOSSY, MASK_NOT_CLASSES, and as `open_image`.
    """
    loaded = load_picture(data)
    if loaded.lossy is not False:
        raise Terminal("MASK_LOSSY", f"values of a {loaded.format} are blurred by its codec; give the mask as PNG")
    coloured = any(value.startswith("#") for value in table)
    image = loaded.image
    if coloured:
        image = image.convert("RGB")
    elif image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        image = image.getchannel(0) if _grey(image) else image
        if image.mode != "L":
            raise Terminal("MASK_NOT_CLASSES", f"a mask of mode {image.mode} has colours; name them as #rrggbb")
    values = np.asarray(turned_upright(image, loaded)).astype(np.int64)
    if coloured:
        values = (values[..., 0] << 16) | (values[..., 1] << 8) | values[..., 2]
    return list(_classes(values, table, coloured)), loaded.orientation


def _grey(image: Any) -> bool:
    if image.mode not in ("LA", "RGB", "RGBA"):
        return False
    channels = np.asarray(image)
    return image.mode == "LA" or bool((channels[..., :3] == channels[..., :1]).all())


def _classes(values: npt.NDArray[np.int64], table: Mapping[str, str], coloured: bool) -> Iterator[tuple[str, Mask]]:
    names = {int(value.lstrip("#"), 16 if coloured else 10): label for value, label in table.items() if value != "*"}
    names.setdefault(0, "")
    found = np.unique(values)
    others = [int(value) for value in found if int(value) not in names]
    if others and "*" not in table:
        shown = ", ".join(f"#{value:06x}" if coloured else str(value) for value in others[:5])
        why = f"{len(others)} values without a name in the mask ({shown}); name them in classes, '' leaves one out"
        raise Terminal("LABEL_VALUE_UNKNOWN", why)
    if len(others) > MAX_INSTANCES:
        raise Terminal("MASK_NOT_CLASSES", f"{len(others)} instances in one mask, more than {MAX_INSTANCES}")
    for label in dict.fromkeys(label for value, label in names.items() if label and value in found):
        yield label, np.isin(values, [value for value, named in names.items() if named == label])
    for value in others:
        if table["*"]:
            yield table["*"], values == value


def resized(mask: Mask, size: tuple[int, int]) -> Mask:
    """The mask on another grid of the same field of view: each pixel takes the nearest one."""
    height, width = size
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
