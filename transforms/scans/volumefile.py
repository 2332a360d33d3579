"""Volume files, whatever their format: what an open one offers, and gzip streams that cannot explode.

The invariant: a `VolumeFile` has voxels of real numbers and at most four axes, its affine speaks RAS+ and millimetres,
and nothing in it is free text but the names of a label table.

>>> scan = open_volume(Path("ct.nrrd").read_bytes())          # transforms/scans/openvolume.py
>>> scan.shape, scan.frames, scan.flags
((512, 512, 90), 1, ())
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import Terminal

GZIP = b"\x1f\x8b"
SLACK = 1 << 20
"""Bytes that may follow the voxels; some writers pad."""
MOST_BYTES = 4 << 30
"""No file may declare more than this."""
MOST_MM = 1e6
"""An affine with a larger number in it is no affine; nor is one with voxels smaller than 1 / MOST_MM."""
MOST_LABELS = 10_000
LABEL_NAME = re.compile(r"[\w .,:+/()'&-]{1,100}")
"""What may be the name of a label: a word or a few, so that no other text comes in by this door."""

Affine = npt.NDArray[np.float64]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class VolumeFile:
    """An open volume file."""

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
    """datatype and what else the header says in numbers: no free text"""
    voxels: Any
    """(x, y, z, frames), indexable; slope and intercept applied"""
    label_table: Mapping[int, str] = field(default_factory=dict)
    """label value -> name, where the file itself carries them"""

    def values(self, frame: int = 0) -> tuple[npt.NDArray[Any], int]:
        """(x, y, z) values after slope and intercept; how many were NaN or infinite and became the least finite one.

        Integers of up to 16 bits stay as they are, longer ones become int32 where they fit, all else float32. The array
        may be a view of the file's bytes, not to be written to. Raises Terminal NO_FINITE_VALUES.
        """
        values = np.asarray(self.voxels[..., frame])
        if values.dtype.kind in "iu":
            if values.dtype.itemsize <= 2:
                return values.astype(values.dtype.newbyteorder("="), copy=False), 0
            if int(values.min()) >= -(2**31) and int(values.max()) < 2**31:
                return values.astype(np.int32), 0
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        finite = np.isfinite(values)
        lost = int(finite.size - np.count_nonzero(finite))
        if lost == finite.size:
            raise Terminal("NO_FINITE_VALUES", "every voxel is NaN or infinite; check how the file was made")
        if lost:
            values[~finite] = values[finite].min()
        return values, lost


def inflate(data: bytes, most: int, kind: str, whole: bool = False) -> bytes:
    """The first bytes of a gzip stream of one or more members; `whole`: all of it, and no more than SLACK above `most`.

    Never inflates more than `most` + SLACK + 1 bytes. Raises Terminal KIND_TRUNCATED, KIND_CORRUPT, KIND_BOMB; the kind
    of file is NIFTI, NRRD or MGH.
    """
    limit = most + SLACK + 1 if whole else most
    parts, size, rest = [], 0, data
    try:
        while rest[:2] == GZIP and size < limit:
            stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
            parts.append(stream.decompress(rest, limit - size))
            size += len(parts[-1])
            if whole and size < limit and not stream.eof:
                raise Terminal(f"{kind}_TRUNCATED", f"the gzip stream ends after {size} bytes; fetch the file again")
            rest = stream.unused_data
    except zlib.error as error:
        raise Terminal(f"{kind}_CORRUPT", f"the gzip stream is damaged ({error}); fetch the file again") from None
    if whole and size == limit:
        raise Terminal(f"{kind}_BOMB", f"inflates far beyond the {most} bytes that its header declares; not read on")
    return b"".join(parts)


def check_size(declared: int, kind: str) -> None:
    """Raise Terminal KIND_BOMB if a header declares more bytes than are ever read."""
    if declared > MOST_BYTES:
        raise Terminal(f"{kind}_BOMB", f"the header declares {declared} bytes; the most that is read is {MOST_BYTES}")


def body(data: bytes, declared: int, kind: str) -> bytes:
    """The bytes of a file, inflated if need be, at least as many as declared. Raises Terminal, see `inflate`."""
    whole = inflate(data, declared, kind, whole=True) if data[:2] == GZIP else data
    if len(whole) < declared:
        raise Terminal(f"{kind}_TRUNCATED", f"{len(whole)} of {declared} bytes present; fetch the file again")
    return whole


def usable(affine: Affine) -> bool:
    """Whether an affine is made of numbers, with axes that have a length and point three ways."""
    if not (np.abs(affine) < MOST_MM).all():  # nor NaN
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((lengths > 1 / MOST_MM).all() and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3)


def lengths(affine: Affine) -> tuple[float, float, float]:
    """Millimetres along the three axes."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def label_table(pairs: Mapping[Any, Any]) -> dict[int, str]:
    """Of (value, name) pairs read in a file, those that are a whole number and a plausible name."""
    table: dict[int, str] = {}
    for value, name in list(pairs.items())[:MOST_LABELS]:
        if re.fullmatch(r"\d{1,9}", str(value).strip()) and LABEL_NAME.fullmatch(str(name).strip()):
            table[int(value)] = str(name).strip()
    return table
