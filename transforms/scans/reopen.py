"""A row of `volumes` opened again for work in three dimensions: its voxels on their own grid, checked by hash.

The invariant: what comes back is the scan the row speaks of, or an error; never other bytes, frame or grid.

>>> scan = reopen(row, [path.read_bytes() for path in paths])     # as many files as row["sha256"], in that order
>>> scan.values.shape, scan.affine, scan.spacing
((512, 512, 90), array([[-0.7, …]]), (0.7, 0.7, 3.0))
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from infra.errors import Terminal
from infra.keys import sha256
from transforms.scans.volumes import Scan

SAME_AFFINE = 1e-3
"""mm; the affine of a row and that of its files differ by no more in any element."""


def reopen(row: Mapping[str, Any], files: Sequence[bytes]) -> Scan:
    """The scan of a row of `volumes`, made of the bytes of its items in the row's order; of a pair, header and voxels.

    Values are in the modality's unit where the row's `rescale_applied` says so, and may be written to. Raises Terminal
    VOLUME_CHANGED when files are missing or are others than those the row was made from, and the reader's errors.
    """
    from transforms.decoders import dicom, nifti  # they import volumes.py themselves

    hashes = [sha256(data) for data in files]
    if hashes != list(row["sha256"]):
        differ = sum(ours != theirs for ours, theirs in zip(hashes, row["sha256"], strict=False))
        raise Terminal(
            "VOLUME_CHANGED", f"{len(row['sha256'])} files are wanted in the order of the row's sha256; {len(files)} "
            f"were given, {differ} of them with another hash; fetch that version of the source again, or build again"
        )
    facts = json.loads(row["header"] or "{}")
    open_scan = dicom.open_scan if _is_dicom(files[0]) else nifti.open_scan
    opened = open_scan(files, int(facts.get("frame", 0)))
    _check_grid(row, opened)
    return replace(opened, modality=row.get("modality"), values=np.require(opened.values, requirements="W"))


def _is_dicom(data: bytes) -> bool:
    """A DICOM file has its prefix, or, without a preamble, begins with an element of a low group."""
    return data[128:132] == b"DICM" or data[:1] in (b"\x02", b"\x08")


def _check_grid(row: Mapping[str, Any], opened: Scan) -> None:
    affine = None if row["affine"] is None else np.array(row["affine"]).reshape(4, 4)
    same = (affine is None) == (opened.affine is None) and list(opened.values.shape) == list(row["shape"])
    if not same or (affine is not None and opened.affine is not None and
                    float(np.abs(affine - opened.affine).max()) > SAME_AFFINE):
        raise Terminal("VOLUME_CHANGED", "the files give another grid than the row has; build again with this version")
