"""DICOM folders: every file below a root, the files of a series together; zip archives are read, never unpacked.

The invariant: a file is listed by what it holds, not by its name, and what stands in partitions and in the file index
is a hash of its SeriesInstanceUID, never an identifier of the header. Files that are no DICOM are items with an error.
Files whose series has no UID (it is often emptied) go together when folder, study and frame of reference are the same.

>>> for partition in list_partitions("ct", Params(root="/data/ct"), FileIndex(home / "cache" / "files.sqlite")):
...     for item in read(partition, Params(root="/data/ct")):
...         print(item.id, item.group[:8], len(item.files["main"]))
patient1/scan.zip!IM0001 5f6a… 526336
"""

from __future__ import annotations

import io
import logging
import posixpath
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from catalog.items import Item, Partition
from connectors.archives import members
from infra.errors import Dropped, ItemError, Terminal, Transient
from infra.fileindex import FileIndex
from infra.keys import sha256, split_by_key
from infra.storage import resolve, walk

NAME = "dicom"
VERSION = "1"
REQUIRES = {"pydicom": "pydicom"}

PROBE = "dicom-1"
"""Name of this module's answers in the file index; it changes when `_look` does."""
HEAD = 1 << 20
"""Bytes of a deflated dataset that are inflated to find its UIDS, which stand near its beginning."""
MARK = b"DICM"
UIDS = ("SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
LAST_UID = 0x00200052
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


class Params(BaseModel):
    """Where the files are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="folder or file, or pkg:PACKAGE/PATH; ~ and $VARIABLES are expanded")
    include: tuple[str, ...] = Field(("*",), description="globs of paths below root, of which one must match")
    exclude: tuple[str, ...] = Field((), description="globs of paths below root that are left out")
    capacity: int = Field(200, ge=1, description="files a partition; a series is never divided")
    modality: str | None = Field(None, description="says the modality, whatever the headers say")
    anatomy: str | None = Field(None, description="says the body region, whatever the headers say")


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of at most `capacity` files, series kept together. Files that `since` knows are not opened.

    Raises ConfigError when there is nothing at the root.
    """
    refs = [ref for path, name in _files(params) for ref in _refs(path, name, since)]
    for name, part in split_by_key(refs, lambda ref: ref["group"], params.capacity).items():
        yield Partition(source, name, tuple(part), tuple((ref["id"], ref["sha256"]) for ref in part))


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition, one a file, with its bytes or the error met.

    Errors: Dropped DICOMDIR; Terminal NOT_DICOM and ARCHIVE_… ; Transient SOURCE_CHANGED when a file is no longer the
    one that was listed, SOURCE_UNREADABLE when it cannot be opened.
    """
    stated = {"modality": params.modality, "anatomy": params.anatomy}
    facts = {name: fact for name, fact in stated.items() if fact is not None}
    for path, run in groupby(partition.refs, key=lambda ref: ref["path"]):
        refs = list(run)
        data = _load(Path(path), {ref["member"] for ref in refs})
        for ref in refs:
            files, error = _checked(ref, data)
            hashes = {"main": ref["sha256"]} if files else {}
            yield Item(ref["id"], "dicom", ref["group"], files, facts=facts, error=error, hashes=hashes)


def _files(params: Params) -> Iterator[tuple[Path, str]]:
    root = resolve(params.root)
    for path in walk(root):
        name = path.name if root.is_file() else path.relative_to(root).as_posix()
        if any(fnmatch(name, glob) for glob in params.include) and not any(fnmatch(name, g) for g in params.exclude):
            yield path, name


def _refs(path: Path, name: str, since: FileIndex) -> list[dict[str, Any]]:
    """What `read` needs for each item of a file: id, path, member of the archive, hash, group, and what was found."""
    try:
        if path.suffix.lower() == ".zip":
            whole = since.sha256(path)
            found = since.probe(path, PROBE, _look_inside)
        else:
            whole, found = since.sha256(path), [{"member": None, **since.probe(path, PROBE, _look)}]
    except OSError:
        return [_ref(path, name, {"member": None, "sha256": "unreadable"})]
    return [_ref(path, name, {"sha256": whole, **one}) for one in found]


def _ref(path: Path, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    item = name if found["member"] is None else f"{name}!{found['member']}"
    place = f"{found['study']}\0{posixpath.dirname(item)}" if "study" in found else item
    return {"id": item, "path": str(path), "group": found.get("series") or sha256(place.encode()), **found}


def _look_inside(data: bytes) -> list[dict[str, Any]]:
    """`_look` at each member of a zip; a bad archive is one finding."""
    try:
        found = [
            {"member": member.name, "sha256": sha256(member.data), **_look(member.data)}
            for member in members(data, _visible) if member.data is not None
        ]
    except Terminal as error:
        return [{"member": None, "code": error.code, "message": error.message}]
    return found or [{"member": None, "code": "ARCHIVE_EMPTY", "message": "there is no file in it; nothing to do"}]


def _visible(member: str) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in member.split("/"))


def _look(data: bytes) -> dict[str, Any]:
    """A finding about the bytes of a file: {"series": hash} or {"study": hash}, {}, or {"code": …, "message": …}."""
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


def _probe(data: bytes) -> dict[str, Any]:
    """`_look`, when all goes well. Reads no further than group 0020, and inflates no more than HEAD bytes."""
    from pydicom.filereader import read_dataset
    from pydicom.tag import Tag

    marked = data[128:132] == MARK
    start = 132 if marked else 0
    if data[start : start + 2] not in (b"\2\0", b"\x08\0", b"\0\x08"):
        return {} if marked else NOT_DICOM
    file = io.BytesIO(data)
    file.seek(start)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("MediaStorageSOPClassUID") == DICOMDIR:
        return {"code": "DICOMDIR", "message": "a table of contents, not an image; nothing to do"}
    body = file.read()
    syntax = meta.get("TransferSyntaxUID")
    if syntax == DEFLATED:
        body = zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, HEAD)
    found = read_dataset(
        io.BytesIO(body), not body[4:6].isalpha(), syntax != BIG_ENDIAN and body[:1] != b"\0",
        stop_when=lambda tag, vr, length: tag > LAST_UID, specific_tags=[Tag(keyword) for keyword in UIDS],
    )
    if not marked and not any(keyword in found for keyword in UIDS):
        return NOT_DICOM
    series, study, frame = (str(found.get(keyword) or "").strip(" \0") for keyword in UIDS[1:])
    if series:
        return {"series": sha256(series.encode())}
    return {"study": sha256(f"{study}\0{frame}".encode())} if study or frame else {}


def _load(path: Path, wanted: set[str | None]) -> Mapping[str | None, bytes] | ItemError:
    """The bytes of a file under None, or those of the wanted members of an archive under their names."""
    try:
        data = path.read_bytes()
        if wanted == {None}:
            return {None: data}
        return {m.name: m.data for m in members(data, lambda name: name in wanted) if m.data is not None}
    except OSError as error:
        return Transient("SOURCE_UNREADABLE", f"{error.strerror}; check the file and its permissions, then try again")
    except Terminal as error:
        return Transient("SOURCE_CHANGED", f"the archive was whole when it was listed ({error.code}); build again")


def _checked(
    ref: Mapping[str, Any], data: Mapping[str | None, bytes] | ItemError
) -> tuple[dict[str, bytes], ItemError | None]:
    """The files of an item, or why there are none."""
    if isinstance(data, ItemError):
        return {}, data
    found = data.get(ref["member"])
    if found is None or sha256(found) != ref["sha256"]:
        return {}, Transient("SOURCE_CHANGED", "the file is not the one that was listed; build again")
    if code := ref.get("code"):
        return {}, (Dropped if code in DROPPED else Terminal)(code, ref["message"])
    return {"main": found}, None
