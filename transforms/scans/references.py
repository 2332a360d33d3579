"""The files of a scan as others know them: what a DICOM object must name to speak of its frames.

The invariant: a UID leaves here as the receiver's own files have it, or not at all. Whoever has files of a source whose
identifiers are public has the original ones; of a private source only `medloom deid` gives files away, and the UIDs in
those are made from the same key by the same rule (`transforms/deid/values.py`), so the two fit. Which of them a source
is, the `pseudonym` given knows: it answers for the kind "uid".

>>> references(stack.slices, pseudonym)["sop_uids"]
['2.25.318…', '2.25.204…']
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from transforms.decoded import Pseudonym
from transforms.deid.values import Identity, Values
from transforms.scans.deidentify import text
from transforms.scans.series import Slice

_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")
"""PS3.5 9.1; what a careless tool put in its place may be anything, a name too."""


def uids_in_public(secret: bytes | None) -> Callable[[str], str]:
    """UID in clear -> the UID of the files that others have; `secret` None: identifiers are public, UIDs stay."""
    if secret is None:
        return lambda uid: uid
    values = Values(secret, Identity("", ()))
    return lambda uid: values.uids(uid.encode("latin-1", "replace")).decode("latin-1")


def references(slices: Sequence[Slice], pseudonym: Pseudonym) -> dict[str, Any]:
    """Columns of `volumes` for the slices of a scan, in the order of its third axis."""
    def public(uid: str) -> str | None:
        return pseudonym("uid", uid) if len(uid) <= 64 and _UID.fullmatch(uid) else None

    first = slices[0]
    columns: dict[str, Any] = {
        "study_uid": public(first.owner[1]), "series_uid": public(first.owner[2]),
        "frame_of_reference_uid": public(first.owner[3]),
        "sop_class_uid": _same(text(s.dataset, "SOPClassUID") for s in slices),
        "sop_uids": None, "sop_frames": None, "slice_positions": None,
    }
    uids = [public(s.uid) for s in slices]
    if first.mosaic or None in uids:
        return columns
    if all(s.position is not None for s in slices):
        columns["slice_positions"] = [[float(mm) for mm in s.position] for s in slices if s.position is not None]
    frames = [s.frame + 1 for s in slices if s.frame is not None]
    return {**columns, "sop_uids": uids, "sop_frames": frames or None}


def _same(values: Iterable[str]) -> str | None:
    found = set(values)
    return found.pop() or None if len(found) == 1 else None
