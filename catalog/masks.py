"""Masks as the layer `rois` holds them: COCO run-length codes.

The invariant: decoding what was encoded gives the same mask, and equal masks have equal codes.

>>> decode_mask(encode_mask(mask)).shape == mask.shape
True
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
"""(height, width) of the stored image; true inside the region."""


def encode_mask(mask: Mask) -> dict[str, Any]:
    """COCO run-length code of a (height, width) mask: {"size": [height, width], "counts": ascii}."""
    from pycocotools import mask as coco

    code = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}


def decode_mask(rle: Mapping[str, Any]) -> Mask:
    """The (height, width) mask of a COCO run-length code."""
    from pycocotools import mask as coco

    with warnings.catch_warnings():  # pycocotools 2.0.11 lacks the copy keyword of NumPy 2's __array__
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        pixels = coco.decode({"size": list(rle["size"]), "counts": rle["counts"].encode("ascii")})
    return np.ascontiguousarray(pixels > 0)
