"""The grid that networks of the head were trained on, there and back: 1 mm voxels along the body's axes, 256 on a side.

The orientation is LIA, as FreeSurfer's `mri_convert --conform` has it: the first index grows to the patient's left, the
second to the feet, the third to the face. The invariant: a label comes back to the voxel of the native grid that lies
where it was given, by the affines alone, so a volume stored in reverse has the same labels at the same places.

>>> conformed, affine = conform(values, native)
>>> labels = to_native(network(conformed), affine, values.shape, native)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infra.errors import Terminal

SIDE = 256
LIA = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""Columns: where a step along each index leads, in mm to the right, the front and the head (RAS)."""
LONGEST = 1024
"""Millimetres on a side beyond which an affine is not that of a body."""

Affine = npt.NDArray[np.float64]
Volume = npt.NDArray[np.float32]


def conform(values: npt.ArrayLike, affine: npt.ArrayLike) -> tuple[Volume, Affine]:
    """A volume (x, y, z) with its affine (4, 4; voxel to RAS mm) on the grid, by linear interpolation, and that affine.

    The grid shares the volume's centre and is larger than 256 where the volume is; around the volume, and where a value
    is not finite, lies the lowest value. Raises Terminal for what is no volume, or has no place in space.
    """
    from scipy import ndimage

    native = checked(affine)
    volume = np.asarray(values, np.float32)
    if volume.ndim != 3 or 0 in volume.shape:
        raise Terminal("VOLUME_NOT_3D", f"a volume of three axes is needed, not of shape {volume.shape}")
    finite = np.isfinite(volume)
    if not finite.any():
        raise Terminal("VOLUME_EMPTY", "no value of the volume is finite")
    low = float(volume[finite].min())
    volume = np.where(finite, volume, low)
    extent = np.abs(LIA.T @ native[:3, :3]) @ volume.shape
    if extent.max() > LONGEST:
        raise Terminal("VOLUME_TOO_LARGE", f"the volume is {extent.max():.0f} mm long; its affine is no affine in mm")
    shape = np.maximum(SIDE, np.ceil(extent)).astype(int)
    there = np.eye(4)
    there[:3, :3] = LIA
    centre = native[:3, :3] @ ((np.array(volume.shape) - 1) / 2) + native[:3, 3]
    there[:3, 3] = centre - LIA @ ((shape - 1) / 2)
    step = np.linalg.inv(native) @ there
    conformed = ndimage.affine_transform(
        volume, step[:3, :3], step[:3, 3], tuple(shape), order=1, mode="constant", cval=low, prefilter=False
    )
    return conformed, there


def to_native(
    labels: npt.NDArray[np.uint8], there: Affine, shape: tuple[int, ...], affine: npt.ArrayLike
) -> npt.NDArray[np.uint8]:
    """A label map on the grid of `there`, at the nearest voxels of a native grid; 0 where there is none."""
    from scipy import ndimage

    step = np.linalg.inv(there) @ checked(affine)
    back = ndimage.affine_transform(labels, step[:3, :3], step[:3, 3], shape, order=0, mode="constant", prefilter=False)
    return np.asarray(back, np.uint8)


def checked(affine: npt.ArrayLike) -> Affine:
    """The affine as an array. Raises Terminal for one that is not 4 by 4, not finite, or flat."""
    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise Terminal("AFFINE_UNUSABLE", "the affine gives the voxels no place in space; a 4 by 4 one is needed")
    return matrix


def crop_to(mask: npt.NDArray[np.bool_], margin: int) -> tuple[slice, ...]:
    """The box of a mask and `margin` voxels around it, within the grid; the whole grid where the mask is empty."""
    slices = []
    for axis, length in enumerate(mask.shape):
        at = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        first, last = (int(at[0]), int(at[-1])) if len(at) else (0, length - 1)
        slices.append(slice(max(0, first - margin), min(length, last + 1 + margin)))
    return tuple(slices)
