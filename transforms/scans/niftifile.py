"""NIfTI files: from bytes to voxels and geometry.

The invariant: what a file may cost is bounded by what its header declares before a voxel is read, and of its free text
(descrip, aux_file, extensions) only a table of labels is read. Errors quote numbers of the header, never words.

Geometry rule: the sform, if its code is above 0, else the qform, else none. Where both are set and differ, the sform
wins and the file is flagged; where they differ by more than 60 degrees on some axis (a flip, a swap), nobody can tell
left from right, and the file is refused.

>>> scan = read_nifti(Path("ct.nii.gz").read_bytes())
>>> scan.shape, scan.frames, scan.flags
((512, 512, 90), 1, ())
"""

from __future__ import annotations

import io
import json
import logging
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import Terminal
from transforms.scans.volumefile import (
    GZIP,
    Affine,
    VolumeFile,
    body,
    check_size,
    inflate,
    label_table,
    lengths,
    usable,
)

KIND = "NIFTI"
HEADER_BYTES = 540
"""The longer of the two headers: NIfTI-2."""
MOST_EXTENSION = 1 << 20
"""A longer header extension is not looked at."""
MOST_ANGLE_COS = 0.5
"""sform and qform that turn an axis by more than 60 degrees against each other contradict each other."""
SAME_MM = 0.1
"""sform and qform that put no corner of the volume farther apart than this are the same."""
MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}
"""code of xyzt_units -> mm; 0 (unknown) is taken for mm, as everyone does"""


def read_nifti(data: bytes, header_file: bytes | None = None) -> VolumeFile:
    """Open a NIfTI-1 or NIfTI-2, plain or gzipped (told by content, not by name); of a pair, the .img and the .hdr.

    Raises Terminal: NOT_NIFTI, NIFTI_CORRUPT, NIFTI_TRUNCATED, NIFTI_BOMB (holds far more than its header declares, or
    declares too much), UNSUPPORTED_DATATYPE (RGB, complex), UNSUPPORTED_SHAPE, GEOMETRY_INVALID, GEOMETRY_AMBIGUOUS.
    """
    from nibabel.spatialimages import HeaderDataError

    pair, start = header_file is not None, data if header_file is None else header_file
    raw = _header(inflate(start, HEADER_BYTES, KIND) if start[:2] == GZIP else start[:HEADER_BYTES], pair)
    try:
        header = raw.copy()
        header.check_fix(logger=logging.Logger("nifti", logging.CRITICAL), error_level=40)
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise Terminal("NIFTI_CORRUPT", f"the header contradicts itself: {error}; write the file again") from None
    dtype, shape, frames = header.get_data_dtype(), *_shape(raw)
    if dtype.kind not in "iuf":
        raise Terminal("UNSUPPORTED_DATATYPE", f"datatype code {int(raw['datatype'])}: only real numbers are read")
    offset, size = float(raw["vox_offset"]), int(raw["sizeof_hdr"])
    if not (offset.is_integer() and offset >= (0 if pair else size + 4)):
        raise Terminal("NIFTI_CORRUPT", f"vox_offset {offset} lies within the header; write the file again")
    declared = int(offset) + int(np.prod(shape, dtype=object)) * frames * dtype.itemsize
    check_size(declared, KIND)
    voxels = body(data, declared, KIND)
    words = body(start, size, KIND)[size : MOST_EXTENSION] if pair else voxels[size : int(offset)]
    affine, flags = _affine(raw, header, shape)
    steps = np.abs(raw["pixdim"][1:4].astype(float)) * _unit(raw)
    known = bool(np.isfinite(steps).all() and (steps > 0).all())
    spacing = (float(steps[0]), float(steps[1]), float(steps[2])) if known else None
    return VolumeFile(
        shape, frames, affine, spacing if affine is None else lengths(affine), flags,
        slope is not None and (slope, inter) != (1, 0),
        {
            "datatype": dtype.name, "qform_code": int(raw["qform_code"]), "sform_code": int(raw["sform_code"]),
            "scl_slope": slope, "scl_inter": inter,
        },
        _voxels(voxels, (*shape, frames), dtype, int(offset), slope, inter), _named(words, raw.endianness),
    )


def _voxels(
    data: bytes, shape: tuple[int, ...], dtype: Any, offset: int, slope: float | None, inter: float | None
) -> Any:
    """(x, y, z, frames), indexable; as nibabel scales them, frame by frame, where there is a slope."""
    from nibabel.arrayproxy import ArrayProxy

    if slope is None or (slope, inter) == (1, 0):
        return np.frombuffer(data, dtype, int(np.prod(shape)), offset).reshape(shape, order="F")
    layout = (shape, dtype, offset, slope, inter or 0)
    return ArrayProxy(io.BytesIO(data), layout)  # type: ignore[no-untyped-call]


def _header(start: bytes, pair: bool) -> Any:
    """The header as it stands, nothing fixed."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    for kind, size, number, at in ((Nifti1Header, 348, b"1", 344), (Nifti2Header, 540, b"2", 4)):
        for endianness in "<>":
            if start[:4] != struct.pack(f"{endianness}i", size):
                continue
            if len(start) < size:
                raise Terminal("NIFTI_TRUNCATED", "the file ends within its header; fetch it again")
            if start[at : at + 4] == (b"ni" if pair else b"n+") + number + b"\0":
                return kind(start[:size], endianness=endianness, check=False)  # type: ignore[no-untyped-call]
    wanted = "NIfTI header (Analyze 7.5 says nothing of left and right)" if pair else "single-file NIfTI header"
    raise Terminal("NOT_NIFTI", f"no {wanted}; convert it to .nii first")


def _named(words: bytes, endianness: str) -> dict[int, str]:
    """Label value -> name by the header's extensions: Caret's XML, as TotalSegmentator writes it, or JSON."""
    table: dict[int, str] = {}
    for content in _extensions(words, endianness):
        if b"<LabelTable" in content:
            table |= _caret(content)
        elif content.startswith(b"{"):
            try:
                stated = json.loads(content)
            except (ValueError, RecursionError):
                continue
            table |= label_table(stated["labels"] if isinstance(stated.get("labels"), dict) else stated)
    return table


def _extensions(words: bytes, endianness: str) -> Iterator[bytes]:
    """Contents of the extensions after the header: four bytes, the first of them not 0, then (size, code, content)."""
    at = 4
    while words[:1] not in (b"", b"\0") and at + 8 <= len(words):
        size, _ = struct.unpack_from(f"{endianness}2i", words, at)
        if not 8 <= size <= len(words) - at:
            return
        if size <= MOST_EXTENSION:
            yield words[at + 8 : at + size].strip(b"\0 \r\n\t")
        at += size


def _caret(content: bytes) -> dict[int, str]:
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        tree = etree.fromstring(content, parser)
    except etree.XMLSyntaxError:
        return {}
    return label_table({label.get("Key"): label.text or "" for label in tree.iter("Label")})


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
    if not usable(used):
        raise Terminal("GEOMETRY_INVALID", "the affine is zero, flat or not a number; repair the header")
    flags: tuple[str, ...] = ()
    if sform is not None and qform is not None:
        if not usable(qform):
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


def _farthest(one: Affine, other: Affine, shape: tuple[int, int, int]) -> float:
    """Largest distance, in the file's unit, between the places that two affines give the same corner of a volume."""
    corners = np.array([[*index, 1] for index in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in shape), 1]
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max())


def _cosines(one: Affine, other: Affine) -> npt.NDArray[np.float64]:
    """Cosine of the angle between the directions that two affines give each axis."""
    a, b = one[:3, :3], other[:3, :3]
    cosines: npt.NDArray[np.float64] = (a * b).sum(axis=0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
    return cosines
