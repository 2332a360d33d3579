"""NRRD files (Slicer, ITK, teem): from bytes to voxels and geometry.

The invariant: what a file may cost is bounded by what its header declares before a voxel is read, and of its free text
(content, key/value pairs) only the names of Slicer's segments are read. https://teem.sourceforge.net/nrrd/format.html

>>> read_nrrd(Path("ct.nrrd").read_bytes()).affine
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import Terminal
from transforms.scans.volumefile import (
    LPS_TO_RAS,
    SLACK,
    Affine,
    VolumeFile,
    body,
    check_size,
    inflate,
    label_table,
    lengths,
    usable,
)

KIND = "NRRD"
MAGIC = b"NRRD000"
MOST_HEADER = 1 << 20
"""A header without an end by then is none."""
TYPES: Mapping[str, str] = {
    name: code
    for code, names in {
        "i1": "signed char|int8|int8_t", "u1": "uchar|unsigned char|uint8|uint8_t",
        "i2": "short|short int|signed short|signed short int|int16|int16_t",
        "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
        "i4": "int|signed int|int32|int32_t", "u4": "uint|unsigned int|uint32|uint32_t",
        "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
        "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t", "f4": "float", "f8": "double",
    }.items()
    for name in names.split("|")
}
SPACES: Mapping[str, Affine] = {
    "right-anterior-superior": np.eye(4), "ras": np.eye(4),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]), "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "left-posterior-superior": LPS_TO_RAS, "lps": LPS_TO_RAS,
}
"""Anatomical spaces, and what turns their coordinates to RAS+; any other space says nothing of a patient."""
MILLIMETRES = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001, "microns": 0.001}
SPATIAL = ("domain", "space", "???", "none", "")
"""kinds of an axis along which places lie"""
FRAMES = ("list", "time", "vector", "point", "covariant-vector", "normal", "scalar", "stub")
"""kinds of an axis that counts frames; the others (colour, complex, tensor) are no scans"""


def read_nrrd(data: bytes) -> VolumeFile:
    """Open an NRRD file with its data in it, raw or gzipped, of three axes of space and at most one of frames.

    Raises Terminal: NRRD_CORRUPT, NRRD_TRUNCATED, NRRD_BOMB, UNSUPPORTED_DATATYPE, UNSUPPORTED_SHAPE,
    UNSUPPORTED_ENCODING (text, hex, bzip2, data in another file), GEOMETRY_INVALID.
    """
    fields, pairs, begin = _header(data)
    sizes = _wholes(fields.get("sizes", ""))
    if not sizes or min(sizes) < 1 or [len(sizes)] != _wholes(fields.get("dimension", "")):
        raise Terminal("NRRD_CORRUPT", f"sizes {sizes} are no shape; write the file again")
    if fields.get("type", "").lower() not in TYPES:
        raise Terminal("UNSUPPORTED_DATATYPE", "its type is no real number; only those are read")
    dtype = np.dtype((">" if fields.get("endian", "little").lower() == "big" else "<") + TYPES[fields["type"].lower()])
    axis = _frames_axis(fields, len(sizes))
    declared = int(np.prod(sizes, dtype=object)) * dtype.itemsize
    check_size(declared, KIND)
    voxels = np.frombuffer(_content(data[begin:], fields, declared), dtype, declared // dtype.itemsize)
    voxels = voxels.reshape(sizes, order="F")
    voxels = voxels[..., np.newaxis] if axis is None else np.moveaxis(voxels, axis, 3)
    x, y, z, frames = voxels.shape
    affine, spacing = _geometry(fields, axis)
    return VolumeFile(
        (x, y, z), frames, affine, spacing, () if affine is not None else ("no_orientation",), False,
        {"datatype": dtype.name}, voxels, _segments(pairs),
    )


def _header(data: bytes) -> tuple[dict[str, str], dict[str, str], int]:
    """The fields, the key/value pairs, and where the data begin."""
    end = re.search(rb"\r?\n\r?\n", data[:MOST_HEADER])
    if end is None:
        raise Terminal("NRRD_TRUNCATED", "the header does not end; fetch the file again")
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    for line in data[: end.start()].decode("utf-8", "replace").splitlines()[1:]:
        if line.startswith("#"):
            continue
        where, mark = (pairs, ":=") if ":=" in line else (fields, ": ")
        name, found, value = line.partition(mark)
        if found:
            where[name.strip() if where is pairs else name.strip().lower()] = value.strip()
    return fields, pairs, end.end()


def _content(rest: bytes, fields: Mapping[str, str], declared: int) -> bytes:
    if "data file" in fields or "datafile" in fields:
        raise Terminal("UNSUPPORTED_ENCODING", "its data lie in another file; write header and data into one .nrrd")
    if any(value != "0" for name, value in fields.items() if name.replace(" ", "") in ("lineskip", "byteskip")):
        raise Terminal("UNSUPPORTED_ENCODING", "it skips lines or bytes before its data; write the file again")
    encoding = fields.get("encoding", "").lower()
    if encoding in ("gzip", "gz"):
        return body(inflate(rest, declared, KIND, whole=True), declared, KIND)
    if encoding != "raw":
        raise Terminal("UNSUPPORTED_ENCODING", "only the encodings raw and gzip are read; write the file again")
    if len(rest) > declared + SLACK:
        raise Terminal("NRRD_CORRUPT", f"{len(rest)} bytes of data where {declared} are declared; write the file again")
    if len(rest) < declared:
        raise Terminal("NRRD_TRUNCATED", f"{len(rest)} of {declared} bytes present; fetch the file again")
    return rest


def _frames_axis(fields: Mapping[str, str], count: int) -> int | None:
    """The axis that is not one of space, by `space directions`, else by `kinds`, else the last of four."""
    kinds = [kind.lower() for kind in fields.get("kinds", "").split()] or [""] * count
    if strange := [kind for kind in kinds if kind not in SPATIAL and kind not in FRAMES]:
        raise Terminal("UNSUPPORTED_DATATYPE", f"an axis counts parts of one value ({len(strange)} such); not a scan")
    directions = _vectors(fields)
    if directions and len(directions) != count:
        raise Terminal("NRRD_CORRUPT", f"{len(directions)} space directions for {count} axes; write the file again")
    if directions:
        others = [axis for axis, direction in enumerate(directions) if direction is None]
    else:
        others = [axis for axis, kind in enumerate(kinds) if kind in FRAMES] or ([3] if count == 4 else [])
    if count - len(others) != 3 or len(others) > 1:
        raise Terminal("UNSUPPORTED_SHAPE", f"{count} axes, {len(others)} of them not of space: not one 3-D scan")
    return others[0] if others else None


def _vectors(fields: Mapping[str, str]) -> list[npt.NDArray[np.float64] | None]:
    """`space directions`: a vector an axis, None for an axis that is not one of space."""
    stated = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""))
    return [None if one == "none" else np.array(_floats(one.strip("()").split(","))) for one in stated]


def _geometry(
    fields: Mapping[str, str], frames_axis: int | None
) -> tuple[Affine | None, tuple[float, float, float] | None]:
    """Affine in RAS+ where the space is a patient's, and mm along the axes where they are known."""
    directions = [one for one in _vectors(fields) if one is not None]
    if not directions:
        steps = [step for axis, step in enumerate(_numbers(fields, "spacings")) if axis != frames_axis]
        known = len(steps) == 3 and all(np.isfinite(step) and step for step in steps)
        return None, (abs(steps[0]), abs(steps[1]), abs(steps[2])) if known else None
    origin = np.array(_floats(fields.get("space origin", "(0,0,0)").strip("()").split(",")))
    if any(one.shape != (3,) for one in (*directions, origin)):
        raise Terminal("GEOMETRY_INVALID", "its space has not three dimensions; repair the header")
    unit = re.match(r'"?([^"\s]+)', fields.get("space units", ""))
    affine = np.eye(4)
    with np.errstate(over="ignore"):  # `usable` says so
        affine[:3] = np.stack([*directions, origin], axis=1) * MILLIMETRES.get(unit[1] if unit else "mm", 1.0)
    if not usable(affine):
        raise Terminal("GEOMETRY_INVALID", "the space directions are zero, flat or not numbers; repair the header")
    space = SPACES.get(fields.get("space", "").lower())
    return None if space is None else space @ affine, lengths(affine)


def _segments(pairs: Mapping[str, str]) -> dict[int, str]:
    """Names of Slicer's segments by label value, unless they lie in layers, where one value has several meanings."""
    if any(name.endswith("_Layer") and layer != "0" for name, layer in pairs.items()):
        return {}
    numbers = [name.removesuffix("_LabelValue") for name in pairs if re.fullmatch(r"Segment\d+_LabelValue", name)]
    return label_table({pairs[f"{one}_LabelValue"]: pairs.get(f"{one}_Name", "") for one in numbers})


def _numbers(fields: Mapping[str, Any], name: str) -> list[float]:
    return _floats(fields.get(name, "").split())


def _wholes(words: str) -> list[int]:
    if not all(re.fullmatch(r"[0-9]{1,9}", word) for word in words.split()):
        raise Terminal("NRRD_CORRUPT", "a number of its header is none; write the file again")
    return [int(word) for word in words.split()]


def _floats(words: list[str]) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError:
        raise Terminal("NRRD_CORRUPT", "a number of its header is none; write the file again") from None
