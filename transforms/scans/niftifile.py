"""NIfTI files: from bytes to voxels and geometry.

The invariant: what a file may cost is bounded by what its header declares before a voxel is read, and its free text
(descrip, aux_file, extensions) is never read at all. Errors quote numbers of the header, never words.

Geometry rule: the sform, if its code is above 0, else the qform, else none. Where both are set and differ, the sform
wins and the file is flagged; where they differ by more than 60 degrees on some axis (a flip, a swap), nobody can tell
left from right, and the file is refused.

>>> scan = read_nifti(Path("ct.nii.gz").read_bytes())
>>> scan.shape, scan.frames, scan.flags
((512, 512, 90), 1, ())
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import Terminal

GZIP = b"\x1f\x8b"
HEADER_BYTES = 540
"""The longer of the two headers: NIfTI-2."""
SLACK = 1 << 20
"""Bytes that may follow the voxels; some writers pad."""
MOST_BYTES = 4 << 30
"""No file may declare more than this."""
MOST_ANGLE_COS = 0.5
"""sform and qform that turn an axis by more than 60 degrees against each other contradict each other."""
SAME_MM = 0.1
"""sform and qform that put no corner of the volume farther apart than this are the same."""
MOST_MM = 1e6
"""An affine with a larger number in it is no affine; nor is one with voxels smaller than 1 / MOST_MM."""
MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}
"""code of xyzt_units -> mm; 0 (unknown) is taken for mm, as everyone does"""

Affine = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Nifti:
    """An open NIfTI file."""

    shape: tuple[int, int, int]
    frames: int
    """length of the fourth axis (time, echo, channel), 1 without"""
    affine: Affine | None
    """4 x 4, voxel index to millimetres in RAS+; None: the file gives no orientation"""
    spacing: tuple[float, float, float] | None
    """mm along the three axes; None: unknown"""
    flags: tuple[str, ...]
    """sform_qform_differ, qform_invalid, no_orientation"""
    rescaled: bool
    """the header has a slope or intercept, applied once when voxels are read"""
    facts: Mapping[str, Any]
    """datatype, qform_code, sform_code, scl_slope, scl_inter: no free text"""
    _voxels: Any

    def values(self, frame: int = 0) -> tuple[npt.NDArray[Any], int]:
        """(x, y, z) values after slope and intercept; how many were NaN or infinite and became the least finite one.

        Integers of up to 16 bits stay integers, all else becomes float32. Raises Terminal NO_FINITE_VALUES.
        """
        values = np.asarray(self._voxels[..., frame])
        if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
            return values.astype(values.dtype.newbyteorder("=")), 0
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        finite = np.isfinite(values)
        lost = int(finite.size - np.count_nonzero(finite))
        if lost == finite.size:
            raise Terminal("NO_FINITE_VALUES", "every voxel is NaN or infinite; check how the file was made")
        if lost:
            values[~finite] = values[finite].min()
        return values, lost


def read_nifti(data: bytes) -> Nifti:
    """Open a single-file NIfTI-1 or NIfTI-2, plain or gzipped (told by content, not by name).

    Raises Terminal: NOT_NIFTI, NIFTI_CORRUPT, NIFTI_TRUNCATED, NIFTI_BOMB (holds far more than its header declares, or
    declares too much), UNSUPPORTED_DATATYPE (RGB, complex), UNSUPPORTED_SHAPE, GEOMETRY_INVALID, GEOMETRY_AMBIGUOUS.
    """
    from nibabel.arrayproxy import ArrayProxy
    from nibabel.spatialimages import HeaderDataError

    raw = _header(_inflate(data, HEADER_BYTES)[:HEADER_BYTES] if data[:2] == GZIP else data[:HEADER_BYTES])
    try:
        header = raw.copy()
        header.check_fix(logger=logging.Logger("nifti", logging.CRITICAL), error_level=40)
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise Terminal("NIFTI_CORRUPT", f"the header contradicts itself: {error}; write the file again") from None
    dtype, shape, frames = header.get_data_dtype(), *_shape(raw)
    if dtype.kind not in "iuf":
        raise Terminal("UNSUPPORTED_DATATYPE", f"datatype code {int(raw['datatype'])}: only real numbers are read")
    offset = float(raw["vox_offset"])
    if not (offset.is_integer() and offset >= int(raw["sizeof_hdr"]) + 4):
        raise Terminal("NIFTI_CORRUPT", f"vox_offset {offset} lies within the header; write the file again")
    declared = int(offset) + int(np.prod(shape, dtype=object)) * frames * dtype.itemsize
    if declared > MOST_BYTES:
        raise Terminal("NIFTI_BOMB", f"the header declares {declared} bytes; the most that is read is {MOST_BYTES}")
    body = _inflate(data, declared, whole=True) if data[:2] == GZIP else data
    if len(body) < declared:
        raise Terminal("NIFTI_TRUNCATED", f"{len(body)} of {declared} bytes present; fetch the file again")
    affine, flags = _affine(raw, header, shape)
    steps = np.abs(raw["pixdim"][1:4].astype(float)) * _unit(raw)
    spacing = steps if affine is None else np.linalg.norm(affine[:3, :3], axis=0)
    usable = bool(np.isfinite(spacing).all() and (spacing > 0).all())
    layout = ((*shape, frames), dtype, int(offset), 1 if slope is None else slope, inter or 0)
    return Nifti(
        shape, frames, affine, (float(spacing[0]), float(spacing[1]), float(spacing[2])) if usable else None, flags,
        slope is not None and (slope, inter) != (1, 0),
        {
            "datatype": dtype.name, "qform_code": int(raw["qform_code"]), "sform_code": int(raw["sform_code"]),
            "scl_slope": slope, "scl_inter": inter,
        },
        ArrayProxy(io.BytesIO(body), layout),  # type: ignore[no-untyped-call]
    )


def _inflate(data: bytes, most: int, whole: bool = False) -> bytes:
    """The first bytes of a gzip stream of one or more members; `whole`: all of it, and no more than SLACK above `most`.

    Never inflates more than `most` + SLACK + 1 bytes.
    """
    limit = most + SLACK + 1 if whole else most
    parts, size, rest = [], 0, data
    try:
        while rest[:2] == GZIP and size < limit:
            stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
            parts.append(stream.decompress(rest, limit - size))
            size += len(parts[-1])
            if whole and size < limit and not stream.eof:
                raise Terminal("NIFTI_TRUNCATED", f"the gzip stream ends after {size} bytes; fetch the file again")
            rest = stream.unused_data
    except zlib.error as error:
        raise Terminal("NIFTI_CORRUPT", f"the gzip stream is damaged ({error}); fetch the file again") from None
    if whole and size == limit:
        raise Terminal("NIFTI_BOMB", f"inflates far beyond the {most} bytes that its header declares; not read further")
    return b"".join(parts)


def _header(start: bytes) -> Any:
    """The header as it stands, nothing fixed."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    for kind, size, magic, at in ((Nifti1Header, 348, b"n+1\0", 344), (Nifti2Header, 540, b"n+2\0", 4)):
        for endianness in "<>":
            if start[:4] != struct.pack(f"{endianness}i", size):
                continue
            if len(start) < size:
                raise Terminal("NIFTI_TRUNCATED", "the file ends within its header; fetch it again")
            if start[at : at + 4] == magic:
                return kind(start[:size], endianness=endianness, check=False)  # type: ignore[no-untyped-call]
    raise Terminal("NOT_NIFTI", "no single-file NIfTI-1 or NIfTI-2 header; convert .hdr and .img pairs to .nii first")


def _shape(header: Any) -> tuple[tuple[int, int, int], int]:
    """Voxels along x, y, z, and frames; axes of length 1 after those count for nothing."""
    count = int(header["dim"][0])
    sizes = [int(size) for size in header["dim"][1 : count + 1]]
    if not 1 <= count <= 7 or min(sizes) < 1:
        raise Terminal("NIFTI_CORRUPT", f"dim = {[int(n) for n in header['dim']]} is no shape; write the file again")
    x, y, z, frames, *more = sizes + [1] * (7 - count)
    if any(size > 1 for size in more):
        raise Terminal("UNSUPPORTED_SHAPE", f"{count} dimensions {sizes}: at most four are read; split the file")
    return (x, y, z), frames


def _unit(header: Any) -> float:
    return MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)


def _affine(raw: Any, header: Any, shape: tuple[int, int, int]) -> tuple[Affine | None, tuple[str, ...]]:
    """The matrix of the geometry rule, in mm, and flags. Raises Terminal."""
    sform, qform = header.get_sform(coded=True)[0], _qform(raw, header)
    used = sform if sform is not None else qform
    if used is None:
        return None, ("no_orientation",)
    if not _usable(used):
        raise Terminal("GEOMETRY_INVALID", "the affine is zero, flat or not a number; repair the header")
    flags: tuple[str, ...] = ()
    if sform is not None and qform is not None:
        if not _usable(qform):
            flags = ("qform_invalid",)
        elif _farthest(sform, qform, shape) > SAME_MM:
            flags = ("sform_qform_differ",)
            if (_cosines(sform, qform) < MOST_ANGLE_COS).any():
                raise Terminal(
                    "GEOMETRY_AMBIGUOUS", "sform and qform contradict each other about the direction of an axis; find "
                    "out which is right and set the other's code to 0"
                )
    return _scaled(used, _unit(raw)), flags


def _qform(raw: Any, header: Any) -> Affine | None:
    """The qform where its code is set; NaN where it cannot be computed, as with a voxel size of 0."""
    from nibabel.spatialimages import HeaderDataError

    if not int(header["qform_code"]):
        return None
    try:
        affine: Affine = header.get_qform(coded=False)
    except (HeaderDataError, ValueError):
        return np.full((4, 4), np.nan)
    return affine if (raw["pixdim"][1:4] != 0).all() else np.full((4, 4), np.nan)  # nibabel makes 0 to 1


def _scaled(affine: Affine, millimetres: float) -> Affine:
    scaled = affine.astype(np.float64)
    scaled[:3] *= millimetres
    return scaled


def _usable(affine: Affine) -> bool:
    if not (np.abs(affine) < MOST_MM).all():  # nor NaN
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((lengths > 1 / MOST_MM).all() and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3)


def _farthest(one: Affine, other: Affine, shape: tuple[int, int, int]) -> float:
    """Largest distance, in the file's unit, between the places that two affines give the same corner of a volume."""
    corners = np.array([[*index, 1] for index in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in shape), 1]
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max())


def _cosines(one: Affine, other: Affine) -> npt.NDArray[np.float64]:
    """Cosine of the angle between the directions that two affines give each axis."""
    a, b = one[:3, :3], other[:3, :3]
    cosines: npt.NDArray[np.float64] = (a * b).sum(axis=0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
    return cosines
