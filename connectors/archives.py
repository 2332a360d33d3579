"""Archives (zip, tar, tar.gz) read as one stream of members from bytes in memory; nothing is ever extracted to disk.

The invariant: what an archive may cost is bounded before it is paid. An archive that names a place outside itself,
holds links or devices, or inflates beyond `Limits` fails as a whole with a Terminal; nothing of it is half believed.

>>> {member.name: member.data for member in members(Path("PMC123.tar.gz").read_bytes(), lambda name: name == "a.nxml")}
{'a.nxml': b'<article>…', 'a-g001.jpg': None}
"""

from __future__ import annotations

import gzip
import io
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from infra.errors import Terminal

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip", ".meca")
BLOCK = 512
"""Bytes of a tar block; an archive ends with at least one block of zeros."""
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, ValueError, NotImplementedError,
)
"""What the readers raise: the last two for offsets before the file, names that are not UTF-8, and unknown methods."""


@dataclass(frozen=True)
class Limits:
    """What one archive may cost."""

    total: int = 4 << 30
    """bytes of all members together, as declared and as inflated"""
    ratio: int = 200
    """inflated over packed bytes, once more than `free` bytes were inflated; deflate can reach about 1030"""
    free: int = 64 << 20
    members: int = 20_000


@dataclass(frozen=True)
class Member:
    """A regular file of an archive: its path in it (posix, normal form), bytes it declares, and its data if wanted."""

    name: str
    size: int
    data: bytes | None = None


def is_archive(path: Path) -> bool:
    """Whether the file's name is that of an archive we read."""
    return path.name.lower().endswith(SUFFIXES)


def members(data: bytes, wanted: Callable[[str], bool], limits: Limits | None = None) -> Iterator[Member]:
    """The regular files of an archive in its order; `data` is read for those whose name is wanted.

    Raises Terminal: ARCHIVE_UNSAFE (a name outside the archive, a link, a device, two members of one name),
    ARCHIVE_BOMB (beyond the limits), ARCHIVE_TRUNCATED, ARCHIVE_UNREADABLE (corrupt, encrypted, not an archive).
    """
    limits = limits or Limits()
    stream = _zip_members if data[:2] == b"PK" else _tar_members
    seen: set[str] = set()
    try:
        if not data:
            raise _Truncated("it is empty")
        for member in stream(data, wanted, limits):
            if member.name in seen:
                raise Terminal("ARCHIVE_UNSAFE", f"two members are called {member.name!r}; which one counts is unknown")
            seen.add(member.name)
            yield member
    except (EOFError, _Truncated) as error:
        raise Terminal("ARCHIVE_TRUNCATED", f"ends early ({error}); fetch the file again") from error
    except _DAMAGED as error:
        raise Terminal("ARCHIVE_UNREADABLE", f"not a readable zip, tar or tar.gz ({error}); fetch it again") from error


class _Truncated(Exception):
    """The archive lacks its end."""


def _tar_members(data: bytes, wanted: Callable[[str], bool], limits: Limits) -> Iterator[Member]:
    packed = io.BytesIO(data)
    plain = cast(IO[bytes], gzip.GzipFile(fileobj=packed)) if data[:2] == b"\x1f\x8b" else packed
    stream = _Metered(plain, len(data), limits)
    try:
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|") as archive:
            count = total = 0
            for info in archive:
                if info.size < 0:
                    raise tarfile.TarError("a member declares a negative size")
                count, total = count + 1, total + info.size
                _check_cost(count, total, len(data), limits)
                name = _safe_name(info.name)
                if not (info.isreg() or info.isdir()):
                    raise Terminal("ARCHIVE_UNSAFE", f"member {name!r} is a link or a device; only files are read")
                if info.isreg():
                    file = archive.extractfile(info) if wanted(name) else None
                    yield Member(name, info.size, file.read() if file else None)
            _check_end(cast(IO[bytes], archive.fileobj), stream)
    except tarfile.ReadError as error:
        if stream.ended:
            raise _Truncated(error) from error
        raise


def _check_end(rest: IO[bytes], stream: _Metered) -> None:
    """tarfile takes a broken header for the end and says nothing; a whole archive ends in zeros, and only in zeros."""
    while block := rest.read(1 << 16):
        if block.strip(b"\0"):
            raise tarfile.TarError("there is more after what looks like the end: a header is damaged")
    if stream.tail != bytes(BLOCK):
        raise _Truncated("no end mark")


class _Metered:
    """A stream that refuses to inflate beyond the limits, and knows the last `BLOCK` bytes it gave."""

    def __init__(self, plain: IO[bytes], packed: int, limits: Limits) -> None:
        self._plain, self._packed, self._limits = plain, packed, limits
        self._given = 0
        self.tail = b""
        self.ended = False

    def read(self, size: int) -> bytes:
        block = self._plain.read(size)
        self._given += len(block)
        _check_cost(0, self._given, self._packed, self._limits)
        self.ended = not block
        self.tail = (self.tail + block[-BLOCK:])[-BLOCK:]
        return block


def _zip_members(data: bytes, wanted: Callable[[str], bool], limits: Limits) -> Iterator[Member]:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise _Truncated("no table of contents")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        _check_cost(len(infos), sum(info.file_size for info in infos), len(data), limits)
        for info in infos:
            name = _safe_name(info.orig_filename)
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise Terminal("ARCHIVE_UNSAFE", f"member {name!r} is a link or a device; only files are read")
            if info.is_dir():
                continue
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile(f"{name!r} is encrypted or packed by an unusual method")
            found = archive.read(info) if wanted(name) else None
            if found is not None and len(found) != info.file_size:
                raise zipfile.BadZipFile(f"{name!r} holds {len(found)} bytes, not the {info.file_size} it declares")
            yield Member(name, info.file_size, found)


def _check_cost(count: int, total: int, packed: int, limits: Limits) -> None:
    if count > limits.members:
        raise Terminal("ARCHIVE_BOMB", f"more than {limits.members} members; split the archive if they are all needed")
    if total > limits.total or total > max(limits.free, packed * limits.ratio):
        raise Terminal("ARCHIVE_BOMB", f"{packed} bytes inflate to {total} or more; unpack it by hand if it is honest")


def _safe_name(name: str) -> str:
    """The normal form of a member's path, as text that UTF-8 can hold. Raises Terminal when it leads outside."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name) or "\\" in name or "\0" in name:
        raise Terminal("ARCHIVE_UNSAFE", f"member {name!r} names a place outside the archive; it was not read")
    return posixpath.normpath(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
