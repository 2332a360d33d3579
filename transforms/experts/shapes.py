"""What the classical experts share: copies small enough to be quick, and masks drawn back at full size.

The invariant: `grown(mask, size)` puts a mask of the small copy on the grid of the picture that `shrunk` made it from,
and `structure` keeps every voxel of a mask in three dimensions where it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from transforms.decoded import Pixels
from transforms.experts.card import Class
from transforms.scans.volumes import Structure

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def shrunk(pixels: Pixels, side: int) -> Pixels:
    """The picture with its longer side resized to `side`, means of areas where it shrinks."""
    from PIL import Image

    height, width = pixels.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = Image.Resampling.BOX if factor < 1 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def grown(mask: Mask, size: tuple[int, ...]) -> Mask:
    """A mask on the grid of a picture of (height, width), its outline interpolated."""
    from PIL import Image

    cover = Image.fromarray(mask.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(cover) >= 0.5


def hull(mask: Mask) -> Mask:
    """The convex hull of a mask; a mask that is a line, or less, is its own."""
    from PIL import Image, ImageDraw
    from scipy.spatial import ConvexHull

    points = np.argwhere(mask)
    if len(points) < 3 or not np.ptp(points, axis=0).all() or np.linalg.matrix_rank(points - points[0]) < 2:
        return mask
    corners = points[ConvexHull(points).vertices]
    drawn = Image.new("1", (mask.shape[1], mask.shape[0]))
    ImageDraw.Draw(drawn).polygon([(int(x), int(y)) for y, x in corners], fill=1, outline=1)
    return np.asarray(drawn, bool)


def best_part(mask: Mask, weight: Any = 1.0) -> Mask:
    """The part of a mask with the largest sum of `weight` (an image, or 1 for the largest area); empty stays empty."""
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    if not count:
        return mask
    sums = np.bincount(parts.ravel(), np.broadcast_to(weight, mask.shape).ravel().astype(float), count + 1)
    return np.asarray(parts == 1 + int(np.argmax(sums[1:])))


def structure(found: Class, mask: Mask) -> Structure | None:
    """A mask of (x, y, z) as a structure of a scan, no larger than it must be; None where it is empty."""
    places = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not len(places[0]):
        return None
    first, last = [int(p[0]) for p in places], [int(p[-1]) + 1 for p in places]
    window = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    corner = (first[0], first[1], first[2])
    return Structure(found.label, found.role, np.ascontiguousarray(mask[window]), corner, found.ontology_id)
