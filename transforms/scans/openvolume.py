"""Any volume file, told by its first bytes: NIfTI-1 and -2 (single or in pairs), NRRD, FreeSurfer's MGH and MGZ.

The invariant: the name of a file decides nothing.

>>> open_volume(Path("aseg.mgz").read_bytes()).shape
(256, 256, 256)
"""

from __future__ import annotations

from infra.errors import Terminal
from transforms.scans.mghfile import is_mgh, read_mgh
from transforms.scans.niftifile import read_nifti
from transforms.scans.nrrdfile import MAGIC, read_nrrd
from transforms.scans.volumefile import GZIP, VolumeFile, inflate


def open_volume(data: bytes, header: bytes | None = None) -> VolumeFile:
    """Open a file, or a pair: the voxels of an .img and the `header` of its .hdr. Raises Terminal, see the readers."""
    if header is not None:
        return read_nifti(data, header)
    if data.startswith(MAGIC):
        return read_nrrd(data)
    try:
        start = inflate(data, 32, "MGH") if data[:2] == GZIP else data[:32]
    except Terminal:
        start = b""  # whatever it was meant to be, the reader of NIfTI says what is wrong
    return read_mgh(data) if is_mgh(start) else read_nifti(data)
