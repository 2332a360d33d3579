"""Siemens mosaics: the slices of a whole scan laid out as tiles of one picture.

The invariant: tiles are cut where the private header says and nowhere else; a picture whose header does not fit is
refused, never shown as the patchwork it is.

>>> values, affine = unmosaic(slice, picture)
>>> picture.shape, values.shape
((384, 384), (64, 64, 35))
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import Terminal
from transforms.scans.deidentify import bad_values, quietly
from transforms.scans.series import Slice, Vector


def unmosaic(s: Slice, picture: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], Vector]:
    """(x, y, z) values and affine (mm, RAS+) of a Siemens mosaic, from its picture (rows, columns).

    How many tiles count and where they lie is in Siemens' private header, which nibabel reads; nothing else of it is
    used. Raises Terminal MOSAIC_UNSUPPORTED when it is missing or does not fit.
    """
    with quietly():  # the module warns when it is imported
        from nibabel.nicom.dicomwrappers import WrapperError, wrapper_from_data

    misfit: tuple[type[Exception], ...] = (WrapperError, *bad_values())
    try:
        with quietly():
            tiles: Any = wrapper_from_data(s.dataset)  # type: ignore[no-untyped-call]
            rows, columns, count = tiles.image_shape
            affine = np.asarray(tiles.affine, dtype=np.float64)
        side = s.size[0] // rows
        stack = picture.reshape(side, rows, side, columns).transpose(0, 2, 1, 3).reshape(-1, rows, columns)[:count]
    except misfit as error:
        advice = "convert the series with dcm2niix and ingest the NIfTI"
        message = f"the private header of a Siemens mosaic cannot be read ({type(error).__name__}); {advice}"
        raise Terminal("MOSAIC_UNSUPPORTED", message) from None
    return np.asfortranarray(stack.transpose(2, 1, 0)), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [1, 0, 2, 3]]
