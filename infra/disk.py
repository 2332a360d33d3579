"""Room on a disk: asked for before work begins, and named in plain words when it ends in the middle.

The invariant: whatever library meets a full disk below `watched` (the kernel's OSError, SQLite, DuckDB, pyarrow),
what comes out is one `DiskFull` that says what was being written, where, how much is free there and what to do; any
other error passes through untouched. A full disk is never an item's fault: it must not become a reject.

>>> room(home, 40 << 30, "this export")
Traceback (most recent call last):
infra.disk.DiskFull: this export needs about 42.9 GB in /data/home, 11.2 GB are free; …
>>> with watched(home, "ingest of photos/0"):
...     ...
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.errors import MedloomError

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_NEXT = "free some room there (`medloom catalog gc` says what it could give back), or name a larger disk"


class DiskFull(MedloomError):
    """There is no room, or not enough; what was committed stays, drafts are removed, the same command goes on."""


@dataclass(frozen=True)
class Free:
    """What the disk under a path has left for this user."""

    bytes: int
    files: int | None
    """how many more files it can hold; None where the file system sets no such limit"""

    @classmethod
    def at(cls, path: Path) -> Free:
        """Of the disk that holds a path, or will once its folders are made."""
        while not path.exists():
            path = path.parent
        found = os.statvfs(path)
        return cls(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)

    def __str__(self) -> str:
        files = "" if self.files is None or self.files > 1000 else f" and {self.files} files"
        return f"{_amount(self.bytes)}{files}"


def room(path: Path, bytes: int, what: str, files: int = 0) -> None:
    """Raise DiskFull, before anything is written, unless the disk under `path` has so many bytes and files to spare."""
    free = Free.at(path)
    short = free.bytes < bytes or (free.files is not None and free.files < files)
    if short:
        needs = f"{_amount(bytes)}" + (f" in {files} files" if files else "")
        raise DiskFull(
            f"{what} needs about {needs} in {path}, {free} are free; nothing was written: {_NEXT}"
        )


@contextmanager
def watched(path: Path, what: str) -> Iterator[None]:
    """Let a full disk under `path` come out as DiskFull. Drafts are the business of whoever writes them."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        why = reason(error, path)
        if why is None:
            raise
        place = getattr(error, "filename", None) or path
        raise DiskFull(
            f"{why} at {place} while {what} was written: {Free.at(path)} are free; what was committed stays. "
            f"Then give the same command again, it goes on from there: {_NEXT}"
        ) from error


def reason(error: BaseException, path: Path | None = None) -> str | None:
    """Why an error means that the disk (under `path`, where it is known) is full; None where it means something else.

    The kernel and SQLite say so by a number; but where no further file can be made, SQLite only says that it cannot
    open one, so the disk is asked. DuckDB has no number: its message ends with the kernel's words.
    """
    if isinstance(error, OSError):
        return _FULL.get(error.errno or 0)
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        no_file = code == sqlite3.SQLITE_CANTOPEN and path is not None and Free.at(path).files == 0
        return _FULL[errno.ENOSPC] if code == sqlite3.SQLITE_FULL or no_file else None
    if type(error).__module__.partition(".")[0] in ("duckdb", "_duckdb"):
        return next((words for code, words in _FULL.items() if os.strerror(code) in str(error)), None)
    return None


def _amount(bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if bytes >= size:
            return f"{bytes / size:.1f} {unit}"
    return f"{bytes} bytes"
