"""Where a stored slice came from in its series: the way back from a picture to the frame of a DICOM file.

The invariant: axes are swapped and flipped back as they were (transforms/scans/volumes.py, which never resamples), so
each pixel is one pixel of the frame; where that is not so there is a reason instead.

>>> why_nowhere(image, volume)
>>> frame_mask(mask, image, volume).shape          # rows and columns of the frame
(512, 512)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from catalog.masks import Mask

PLANES = {"sagittal": (0, "PI"), "coronal": (1, "LI"), "axial": (2, "LP")}
"""view -> (axis of an LPS array that it cuts across, directions in which its columns and rows grow)"""
NEEDED = ("study_uid", "series_uid", "frame_of_reference_uid", "sop_class_uid", "sop_uids", "slice_positions", "affine",
          "spacing")


def why_nowhere(image: Mapping[str, Any], volume: Mapping[str, Any] | None) -> str | None:
    """Why a picture is no frame of a DICOM series, pixel for pixel; None: it is."""
    if image["volume_id"] is None or volume is None:
        return "no slice of a volume"
    if volume["sop_uids"] is None:
        return "a volume that was not made of DICOM frames, or by a build before medloom kept their UIDs"
    if lacking := [name for name in NEEDED if volume[name] is None]:
        return f"a series without {', '.join(lacking)}"
    frames = list(zip(volume["sop_uids"], volume["sop_frames"] or [1] * len(volume["sop_uids"]), strict=True))
    if len(set(frames)) < len(frames) or len(frames) != volume["shape"][2]:
        return "a series whose files share a UID"
    if image["parent_id"] is not None or image["view"] not in PLANES:
        return "a picture that is no whole slice"
    axis, directions = PLANES[image["view"]]
    axes, _ = _lay(volume)
    if axes[axis] != 2:
        return "a slice across the frames of its series"
    if image["orientation"] != directions or image["slice_index"] not in range(len(frames)):
        return "a slice whose place in the series is not known"
    if (image["height"], image["width"]) != _picture_size(volume, axis):
        return "a picture that was shrunk: its pixels are not those of the frame"
    return None


def frame_mask(mask: Mask, image: Mapping[str, Any], volume: Mapping[str, Any]) -> Mask:
    """A mask (height, width) of a picture on the pixels (rows, columns) of the frame it shows."""
    axis, _ = PLANES[image["view"]]
    axes, flipped = _lay(volume)
    plane = (mask if axis == 2 else mask[::-1]).T  # along the two LPS axes that are left, in their order
    left = [a for a in range(3) if a != axis]
    plane = plane[tuple(slice(None, None, -1 if flipped[a] else 1) for a in left)]
    columns_first = plane if axes[left[0]] == 0 else plane.T
    return np.ascontiguousarray(columns_first.T)


def _picture_size(volume: Mapping[str, Any], axis: int) -> tuple[int, int]:
    axes, _ = _lay(volume)
    across, down = (volume["shape"][axes[a]] for a in range(3) if a != axis)
    return down, across


def _lay(volume: Mapping[str, Any]) -> tuple[list[int], list[bool]]:
    """For each LPS axis, the volume's own axis that lies closest to it, and whether that grows the other way."""
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    own = io_orientation(np.array(volume["affine"]).reshape(4, 4))  # type: ignore[no-untyped-call]
    steps = ornt_transform(own, axcodes2ornt("LPS"))  # type: ignore[no-untyped-call]
    axes = [int(axis) for axis in np.argsort(steps[:, 0])]
    return axes, [bool(steps[axis, 1] < 0) for axis in axes]
