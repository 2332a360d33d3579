"""FreeSurfer's volumes, .mgh and .mgz: from bytes to voxels and geometry.

The invariant: what a file may cost is bounded by what its header declares before a voxel is read; what follows the
voxels (scan parameters, command lines with paths and names) is never read.

>>> read_mgh(Path("orig.mgz").read_bytes()).shape
(256, 256, 256)
"""

from __future__ import annotations

import struct

import numpy as np

from infra.errors import Terminal
from transforms.scans.volumefile import GZIP, VolumeFile, body, check_size, inflate, lengths, usable

KIND = "MGH"
HEADER_BYTES = 284
DATATYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
"""type code -> dtype; the others (RGB, tensor, bitmap) are not real numbers of one channel"""


def is_mgh(start: bytes) -> bool:
    """Whether the first bytes of a file, inflated, are those of the format: version 1 and a type it knows."""
    return len(start) >= 24 and start[:4] == b"\0\0\0\1" and 0 <= struct.unpack_from(">i", start, 20)[0] <= 20


def read_mgh(data: bytes) -> VolumeFile:
    """Open an .mgh or .mgz, told by content.

    Raises Terminal: MGH_TRUNCATED, MGH_CORRUPT, MGH_BOMB, UNSUPPORTED_DATATYPE, GEOMETRY_INVALID.
    """
    from nibabel.freesurfer.mghformat import MGHHeader

    start = inflate(data, HEADER_BYTES, KIND) if data[:2] == GZIP else data[:HEADER_BYTES]
    if len(start) < HEADER_BYTES:
        raise Terminal("MGH_TRUNCATED", "the file ends within its header; fetch it again")
    x, y, z, frames, code = struct.unpack_from(">5i", start, 4)
    if min(x, y, z, frames) < 1:
        raise Terminal("MGH_CORRUPT", f"{[x, y, z, frames]} is no shape; write the file again")
    if code not in DATATYPES:
        raise Terminal("UNSUPPORTED_DATATYPE", f"type code {code}: only real numbers are read")
    dtype = np.dtype(DATATYPES[code])
    count = x * y * z * frames
    declared = HEADER_BYTES + count * dtype.itemsize
    check_size(declared, KIND)
    voxels = np.frombuffer(body(data, declared, KIND), dtype, count, HEADER_BYTES).reshape((x, y, z, frames), order="F")
    header = MGHHeader(start, check=False)  # type: ignore[no-untyped-call]
    placed = struct.unpack_from(">h", start, 28)[0] == 1  # nibabel takes a default where FreeSurfer says "unknown"
    with np.errstate(all="ignore"):  # `usable` says so
        affine = np.asarray(header.get_affine(), np.float64) if placed else None  # type: ignore[no-untyped-call]
    if affine is not None and not usable(affine):
        raise Terminal("GEOMETRY_INVALID", "the affine is zero, flat or not a number; repair the header")
    return VolumeFile(
        (x, y, z), frames, affine, lengths(affine) if affine is not None else None,
        () if placed else ("no_orientation",), False, {"datatype": dtype.name}, voxels,
    )
