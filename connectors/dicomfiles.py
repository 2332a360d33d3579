"""What DICOM connectors share: what a file's first bytes say, and which files are decoded together.

The invariant: a finding holds hashes, never an identifier of the header. Files of a series go together; so do the
segmentations and structure sets that outline its images, and files without a series UID (it is often emptied) whose
folder, study and frame of reference are the same.

>>> look(Path("liver.dcm").read_bytes())
{'series': '5f6a…', 'refers': ['77c0…']}
"""

from __future__ import annotations

import io
import logging
import posixpath
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from connectors.archives import Limits, Member, members
from infra.errors import Dropped, ItemError, Terminal
from infra.keys import sha256

PROBE = "dicom-2"
"""Name of the answers of `look` in the file index; it changes when they do."""
HEAD = 1 << 20
"""Bytes of a file that are read, or inflated, to find its UIDS, which stand near its beginning."""
MARK = b"DICM"
UIDS = ("SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
LAST_UID = 0x00200052
REFERENCES = 0x30060010
"""Where a structure set says which series it outlines: ReferencedFrameOfReferenceSequence."""
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
DICOMDIR = "1.2.840.10008.1.3.10"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DROPPED = ("DICOMDIR", "ARCHIVE_EMPTY")
NOT_DICOM = {"code": "NOT_DICOM", "message": "not a DICOM file; leave it out with `exclude`"}
UNREADABLE = (
    ValueError, TypeError, ArithmeticError, LookupError, AttributeError, NotImplementedError, RecursionError,
    struct.error, EOFError, OSError, zlib.error,
)
"""What pydicom raises for a damaged header."""
NESTED = 2
"""How deep zips may lie in zips."""


def look(data: bytes) -> dict[str, Any]:
    """A finding about the bytes of a file: some of "series", "study" (hashes) and "refers" (hashes of series), or
    {"code": …, "message": …}."""
    log = logging.getLogger("pydicom")
    before, log.disabled = log.disabled, True  # pydicom's warnings quote the header
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _probe(data)
    except UNREADABLE:
        return {} if data[128:132] == MARK else NOT_DICOM  # the decoder says what is wrong with it
    finally:
        log.disabled = before


def look_inside(data: bytes) -> list[dict[str, Any]]:
    """`look` at each member of a zip, with its name and hash; a bad archive is one finding."""
    try:
        found = [
            {"member": member.name, "sha256": sha256(member.data), **look(member.data)}
            for member in unpacked(data, _visible) if member.data is not None
        ]
    except Terminal as error:
        return [{"member": None, "code": error.code, "message": error.message}]
    return found or [{"member": None, "code": "ARCHIVE_EMPTY", "message": "there is no file in it; nothing to do"}]


def unpacked(data: bytes, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """The files of a zip, and of zips in it (called INNER.zip!NAME), whose names are wanted.

    A zip in it is opened when its own name is wanted. Raises what `members` raises; all of it may inflate to no more
    than one archive may.
    """
    limits = Limits()
    most, given = min(limits.total, max(limits.free, len(data) * limits.ratio)), 0
    for member in _unpacked(data, wanted, NESTED):
        given += member.size
        if given > most:
            raise Terminal("ARCHIVE_BOMB", f"{len(data)} bytes inflate to {given} or more; unpack it by hand")
        yield member


def _unpacked(data: bytes, wanted: Callable[[str], bool], depth: int) -> Iterator[Member]:
    for member in members(data, wanted):
        if member.data is not None and depth > 1 and member.data[:4] == b"PK\3\4":
            outer = f"{member.name}!"
            for inner in _unpacked(member.data, lambda name, outer=outer: wanted(outer + name), depth - 1):  # type: ignore[misc]
                yield replace(inner, name=outer + inner.name)
        else:
            yield member


def reference(place: Mapping[str, Any], item: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of a partition: where the item lies, its id, what was found, and the group that follows from it."""
    folder = f"{found['study']}\0{posixpath.dirname(item)}" if "study" in found else item
    return {"id": item, **place, "group": found.get("series") or sha256(folder.encode()), **found}


def together(refs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of which those that outline images have the group of the first series they refer to that is here."""
    refs = list(refs)
    here = {ref["series"] for ref in refs if "series" in ref and "refers" not in ref}
    for ref in refs:
        ref["group"] = next((series for series in ref.get("refers", ()) if series in here), ref["group"])
    return refs


def stated_error(ref: Mapping[str, Any]) -> ItemError | None:
    """What the listing found wrong with an item."""
    code = ref.get("code")
    return None if code is None else (Dropped if code in DROPPED else Terminal)(code, ref["message"])


def fetched(
    fetch: Callable[[Mapping[str, Any]], bytes], refs: Iterable[Mapping[str, Any]], in_flight: int
) -> Iterator[tuple[Mapping[str, Any], bytes | ItemError]]:
    """The bytes of items in their order, or the error met; `in_flight` are fetched at once, and as many ahead."""

    def one(ref: Mapping[str, Any]) -> bytes | ItemError:
        error = stated_error(ref)
        try:
            return fetch(ref) if error is None else error
        except ItemError as met:
            return met

    with ThreadPoolExecutor(in_flight) as pool:
        waiting: deque[tuple[Mapping[str, Any], Future[bytes | ItemError]]] = deque()
        for ref in refs:
            waiting.append((ref, pool.submit(one, ref)))
            if len(waiting) > 2 * in_flight:
                first, found = waiting.popleft()
                yield first, found.result()
        while waiting:
            first, found = waiting.popleft()
            yield first, found.result()


def _visible(member: str) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in member.split("/"))


def _probe(data: bytes) -> dict[str, Any]:
    """`look`, when all goes well. Reads no further than group 0020, and no more than HEAD bytes."""
    from pydicom.filereader import read_dataset

    marked = data[128:132] == MARK
    start = 132 if marked else 0
    if data[start : start + 2] not in (b"\2\0", b"\x08\0", b"\0\x08"):
        return {} if marked else NOT_DICOM
    file = io.BytesIO(data[: start + HEAD])
    file.seek(start)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("MediaStorageSOPClassUID") == DICOMDIR:
        return {"code": "DICOMDIR", "message": "a table of contents, not an image; nothing to do"}
    body = file.read()
    syntax = meta.get("TransferSyntaxUID")
    if syntax == DEFLATED:
        body = zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, HEAD)
    found = _read(body, syntax, LAST_UID, UIDS)
    if not marked and not any(keyword in found for keyword in UIDS):
        return NOT_DICOM
    kind, series, study, frame = (str(found.get(keyword) or "").strip(" \0") for keyword in UIDS)
    made: dict[str, Any] = {}
    if series:
        made["series"] = sha256(series.encode())
    elif study or frame:
        made["study"] = sha256(f"{study}\0{frame}".encode())
    if kind == STRUCTURE_SET or kind in SEGMENTATIONS:
        made["refers"] = [sha256(uid.encode()) for uid in dict.fromkeys(_outlined(body, syntax, kind)) if uid]
    return made


def _read(body: bytes, syntax: Any, last: int, wanted: Iterable[str]) -> Any:
    from pydicom.filereader import read_dataset
    from pydicom.tag import Tag

    return read_dataset(
        io.BytesIO(body), not body[4:6].isalpha(), syntax != BIG_ENDIAN and body[:1] != b"\0",
        stop_when=lambda tag, vr, length: tag > last, specific_tags=[Tag(keyword) for keyword in wanted],
    )


def _outlined(body: bytes, syntax: Any, kind: str) -> Iterator[str]:
    """UIDs of the series that a segmentation or structure set says it outlines."""
    name = "ReferencedFrameOfReferenceSequence" if kind == STRUCTURE_SET else "ReferencedSeriesSequence"
    found = _read(body, syntax, REFERENCES, [name])
    if kind != STRUCTURE_SET:
        yield from (str(series.get("SeriesInstanceUID", "")) for series in found.get(name) or ())
        return
    for frame in found.get(name) or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for series in study.get("RTReferencedSeriesSequence") or ():
                yield str(series.get("SeriesInstanceUID", ""))
