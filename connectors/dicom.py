"""DICOM folders: every file below a root, the files of a series together; zip archives are read, never unpacked.

The invariant: a file is listed by what it holds, not by its name, and what stands in partitions and in the file index
is a hash of its SeriesInstanceUID, never an identifier of the header. Files that are no DICOM are items with an error;
so are files that a DICOMDIR names and that are missing. With a DICOMDIR as root, its files are listed and no others.

>>> for partition in list_partitions("ct", Params(root="/data/ct"), FileIndex(home / "cache" / "files.sqlite")):
...     for item in read(partition, Params(root="/data/ct")):
...         print(item.id, item.group[:8], len(item.files["main"]))
patient1/scan.zip!IM0001 5f6a… 526336
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from catalog.items import Item, Partition
from connectors.dicomdir import records
from connectors.dicomfiles import PROBE, look, look_inside, reference, stated_error, together, unpacked
from infra.errors import ItemError, Terminal, Transient
from infra.fileindex import FileIndex
from infra.keys import sha256, split_by_key
from infra.storage import resolve, walk

NAME = "dicom"
VERSION = "2"
REQUIRES = {"pydicom": "pydicom"}

ABSENT = "absent"
"""Hash of a file that is not there."""


class Params(BaseModel):
    """Where the files are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="folder, file, DICOMDIR, or pkg:PACKAGE/PATH; ~ and $VARIABLES are expanded")
    include: tuple[str, ...] = Field(("*",), description="globs of paths below root, of which one must match")
    exclude: tuple[str, ...] = Field((), description="globs of paths below root that are left out")
    capacity: int = Field(200, ge=1, description="files a partition; a series is never divided")
    modality: str | None = Field(None, description="says the modality, whatever the headers say")
    anatomy: str | None = Field(None, description="says the body region, whatever the headers say")


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of at most `capacity` files, series kept together. Files that `since` knows are not opened.

    Raises ConfigError when there is nothing at the root.
    """
    refs = together(_listed(params, since))
    for name, part in split_by_key(refs, lambda ref: ref["group"], params.capacity).items():
        yield Partition(source, name, tuple(part), tuple((ref["id"], ref["sha256"]) for ref in part))


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition, one a file, with its bytes or the error met.

    Errors: Dropped DICOMDIR; Terminal NOT_DICOM, FILE_MISSING, PATH_UNSAFE and ARCHIVE_… ; Transient SOURCE_CHANGED
    when a file is no longer the one that was listed, SOURCE_UNREADABLE when it cannot be opened.
    """
    stated = {"modality": params.modality, "anatomy": params.anatomy}
    facts = {name: fact for name, fact in stated.items() if fact is not None}
    for path, run in groupby(partition.refs, key=lambda ref: ref["path"]):
        refs = list(run)
        there = {ref["member"] for ref in refs if ref["sha256"] != ABSENT}
        data = _load(Path(path), there) if there else {}
        for ref in refs:
            files, error = _checked(ref, data)
            hashes = {"main": ref["sha256"]} if files else {}
            yield Item(ref["id"], "dicom", ref["group"], files, facts=facts, error=error, hashes=hashes)


def _listed(params: Params, since: FileIndex) -> Iterator[dict[str, Any]]:
    """What `read` needs for each item: id, path, member of the archive, hash, group, and what was found."""
    root = resolve(params.root)
    for path in _below(root, since):
        name = path.name if path == root else path.relative_to(root.parent if root.is_file() else root).as_posix()
        if not _wanted(name, params):
            continue
        refs = _refs(path, name, since)
        yield from refs
        if refs[0].get("code") == "DICOMDIR":
            yield from (ref for ref in _missing(path, name) if _wanted(ref["id"], params))


def _below(root: Path, since: FileIndex) -> Iterator[Path]:
    """The files of a folder, or of a DICOMDIR."""
    yield from walk(root)
    if root.is_file() and since.probe(root, PROBE, look).get("code") == "DICOMDIR":
        with contextlib.suppress(Terminal):  # `_missing` says so
            yield from sorted(record.path for record in records(root) if record.path is not None)


def _wanted(name: str, params: Params) -> bool:
    return any(fnmatch(name, glob) for glob in params.include) and not any(fnmatch(name, g) for g in params.exclude)


def _refs(path: Path, name: str, since: FileIndex) -> list[dict[str, Any]]:
    try:
        if path.suffix.lower() == ".zip":
            whole = since.sha256(path)
            found = since.probe(path, PROBE, look_inside)
        else:
            whole, found = since.sha256(path), [{"member": None, **since.probe(path, PROBE, look)}]
    except OSError:
        whole, found = "unreadable", [{"member": None}]
    made = []
    for one in found:
        item = name if one["member"] is None else f"{name}!{one['member']}"
        made.append(reference({"path": str(path)}, item, {"sha256": whole, **one}))
    return made


def _missing(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """Entries for what a DICOMDIR names and no folder holds."""
    folder = posixpath.dirname(name)
    try:
        named = list(records(path))
    except Terminal as error:
        named, broken = [], {"code": error.code, "message": error.message}
        yield reference({"path": str(path), "member": None}, f"{name}!records", {"sha256": ABSENT, **broken})
    for number, record in enumerate(named):
        if record.unsafe:
            item, code, what = f"{name}!record{number}", "PATH_UNSAFE", "names a place outside its medium; not read"
        elif record.path is None:
            item, code = posixpath.join(folder, record.name), "FILE_MISSING"
            what = "the DICOMDIR names it and it is not there; copy the whole medium"
        else:
            continue
        yield reference({"path": str(path), "member": None}, item, {"sha256": ABSENT, "code": code, "message": what})


def _load(path: Path, wanted: set[str | None]) -> Mapping[str | None, bytes] | ItemError:
    """The bytes of a file under None, or those of the wanted members of an archive under their names."""
    try:
        data = path.read_bytes()
        if wanted == {None}:
            return {None: data}
        names = {name for name in wanted if name is not None}
        opened = names | {name.partition("!")[0] for name in names}  # zips in the zip
        return {m.name: m.data for m in unpacked(data, opened.__contains__) if m.data is not None}
    except OSError as error:
        return Transient("SOURCE_UNREADABLE", f"{error.strerror}; check the file and its permissions, then try again")
    except Terminal as error:
        return Transient("SOURCE_CHANGED", f"the archive was whole when it was listed ({error.code}); build again")


def _checked(
    ref: Mapping[str, Any], data: Mapping[str | None, bytes] | ItemError
) -> tuple[dict[str, bytes], ItemError | None]:
    """The files of an item, or why there are none."""
    if ref["sha256"] == ABSENT:
        return {}, stated_error(ref)
    if isinstance(data, ItemError):
        return {}, data
    found = data.get(ref["member"])
    if found is None or sha256(found) != ref["sha256"]:
        return {}, Transient("SOURCE_CHANGED", "the file is not the one that was listed; build again")
    error = stated_error(ref)
    return ({"main": found}, None) if error is None else ({}, error)
