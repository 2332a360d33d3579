"""A memory of what files held, so that a second listing of a large folder opens only the files that are new.

The invariant: an answer is remembered by (path, size, mtime, inode) and given again only while all four are the same; a
file whose mtime was younger than two seconds when it was read is not remembered at all, because it may change again
without its mtime moving (git calls such an entry racy). Losing the index costs time, never correctness: a corrupt one
is thrown away. Paths are kept as hashes, since file names may identify patients.

>>> with FileIndex(home / "cache" / "files.sqlite") as index:
...     index.sha256(path), index.probe(path, "lines", lambda data: data.count(b"\\n"))
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from infra.storage import file_sha256

JSON = Any
"""What `json` can write: None, bool, int, float, str, list, dict with string keys."""

VERSION = 1
RACY_SECONDS = 2.0
BATCH = 1000
"""New answers are committed in batches of this size, and by `flush`."""

Stamp = tuple[int, int, int]
"""size, mtime in nanoseconds, inode"""


class FileIndex:
    """Answers about files, remembered in a SQLite file, or in memory when `path` is None.

    No connection stays open between batches, so processes may share one index file; a killed process loses at most the
    answers of its last batch.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[tuple[str, str], tuple[Stamp, str]] = {}
        self._loaded = path is None
        self.failed = 0
        """questions that no answer could be read for: whoever rests on the others should ask again some time"""
        self._new: set[tuple[str, str]] = set()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def folder(self, name: str) -> Path:
        """A folder for a memory of another form, beside the index; losing it costs time, never correctness."""
        if self._path is not None:
            place = self._path.parent / name
        else:
            self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="medloom-")
            place = Path(self._scratch.name) / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def sha256(self, path: Path) -> str:
        """SHA-256 of the file's bytes, in hex; the file is read in pieces. Raises OSError."""
        return str(self.ask(path, "sha256", file_sha256))

    def probe(self, path: Path, name: str, fn: Callable[[bytes], JSON]) -> JSON:
        """What `fn` says about the file's bytes. Change `name` when the answer of `fn` changes. Raises OSError."""
        return self.ask(path, name, lambda p: fn(p.read_bytes()))

    def ask(self, path: Path, name: str, fn: Callable[[Path], JSON]) -> JSON:
        """What `fn` says about the file at a path, for files too large to be read at once. Raises OSError."""
        self._load()
        try:
            return self._ask(path, name, fn)
        except OSError:
            self.failed += 1
            raise

    def _ask(self, path: Path, name: str, fn: Callable[[Path], JSON]) -> JSON:
        entry = (_hashed(path), name)
        stamp = _stamp(path)
        known = self._known.get(entry)
        if known is not None and known[0] == stamp:
            return json.loads(known[1])
        began = time.time()
        answer = json.dumps(fn(path))
        if _stamp(path) == stamp and began - stamp[1] / 1e9 >= RACY_SECONDS:
            self._known[entry] = (stamp, answer)
            self._new.add(entry)
            if len(self._new) >= BATCH:
                self.flush()
        return json.loads(answer)

    def flush(self) -> None:
        """Commit what is new."""
        if self._path is not None and self._new:
            rows = [(*entry, *self._known[entry][0], self._known[entry][1]) for entry in sorted(self._new)]
            with _connect(self._path) as connection, connection:
                connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._new.clear()

    def __enter__(self) -> FileIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def __len__(self) -> int:
        """How many answers it remembers."""
        self._load()
        return len(self._known)

    def _load(self) -> None:
        """Read the file, when first asked: many a build need not ask."""
        if self._loaded or (path := self._path) is None:
            return
        try:
            rows = _rows(path)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            _throw_away(path)
            rows = _rows(path)
        self._loaded = True
        self._known = {(file, name): ((size, mtime, inode), answer) for file, name, size, mtime, inode, answer in rows}


@contextlib.contextmanager
def _connect(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, timeout=60)
    try:
        yield connection
    finally:
        connection.close()


def _rows(path: Path) -> list[tuple[str, str, int, int, int, str]]:
    with _connect(path) as connection, connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            connection.execute("DROP TABLE IF EXISTS answers")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS answers (file TEXT, name TEXT, size INTEGER, mtime_ns INTEGER, inode INTEGER, "
            "answer TEXT, PRIMARY KEY (file, name)) WITHOUT ROWID"
        )
        connection.execute(f"PRAGMA user_version = {VERSION}")
        return connection.execute("SELECT * FROM answers").fetchall()


def _throw_away(path: Path) -> None:
    for name in (path.name, f"{path.name}-journal"):
        path.with_name(name).unlink(missing_ok=True)


def _hashed(path: Path) -> str:
    return hashlib.blake2b(os.fsencode(os.path.abspath(path)), digest_size=16).hexdigest()


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    # inode numbers of some network file systems use all 64 bits; SQLite's integers are signed
    return found.st_size, found.st_mtime_ns, found.st_ino & 0x7FFF_FFFF_FFFF_FFFF
