"""NIfTI files for tests, made as nibabel makes them, with a header that a test may then spoil."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (8, 6, 5)
RAS = np.diag([2.0, 2.0, 3.0, 1.0])


def voxels(dtype: Any = np.int16) -> Any:
    return (np.arange(np.prod(SHAPE)).reshape(SHAPE) - 100).astype(dtype)


def make(
    values: Any = None, affine: Any = RAS, change: Callable[[Any], object] | None = None, kind: Any = nib.Nifti1Image,
    packed: bool = True,
) -> bytes:
    """A NIfTI file; `change` may edit the header."""
    image = kind(voxels() if values is None else values, affine)
    raw = bytearray(image.to_bytes())
    if change:
        size = image.header.template_dtype.itemsize
        header = type(image.header)(bytes(raw[:size]), check=False)
        change(header)
        raw[:size] = header.binaryblock
    return gzip.compress(bytes(raw), mtime=0) if packed else bytes(raw)
