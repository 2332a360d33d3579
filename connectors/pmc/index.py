"""What is remembered of a bucket of PMC's layout, so that a listing fetches only what changed, in a SQLite file.

The invariant: metadata is fetched once for each ETag and only of versions that may be wanted; a killed listing
keeps what it has fetched, and a listing of the same inventory fetches nothing. An article version that once was listed
stays listed: when it is withdrawn, replaced, removed or no longer wanted, with the reason.

>>> with Index(folder, bucket) as index:
...     index.follow(params.inventory)
...     index.fetch(params, in_flight=16)
...     index.choose("pmc", params)
...     for name, versions in index.leaves(capacity=20):
...         print(name, [version.entry for version in versions])

No table is ever read into memory. Other processes that list the same bucket wait.
"""

from __future__ import annotations

import fcntl
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from connectors.pmc.inventory import newest, read_metadata, rows
from connectors.pmc.params import Params
from connectors.pmc.selection import GONE, Known, verdicts
from infra.errors import ConfigError, Terminal, Transient
from infra.keys import key, sha256
from infra.s3 import Bucket
from infra.storage import resolve

BATCH = 400
"""Metadata fetched between two commits: what a killed listing may lose."""
LOST = 20
"""Metadata of a batch that may be lost, and more as long as it is not most of them, before a listing gives up."""
ROWS = 20_000
"""Rows of an inventory written at once."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inventory (place BLOB, version INTEGER, number INTEGER, etag TEXT, seen INTEGER,
    PRIMARY KEY (place, version)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS metadata (place BLOB, version INTEGER, etag TEXT, problem TEXT, licence TEXT,
    retracted INTEGER, cited TEXT, files BLOB, PRIMARY KEY (place, version)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS listed (selection TEXT, place BLOB, version INTEGER, number INTEGER, code TEXT,
    message TEXT, licence TEXT, chosen INTEGER, PRIMARY KEY (selection, place, version)) WITHOUT ROWID;
CREATE TEMP TABLE wanted (place BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TEMP TABLE fresh AS SELECT * FROM listed LIMIT 0;
PRAGMA cache_size = -32000;
"""
VERSION = 1
SELECTS = ("licences", "published_from", "published_to", "versions", "ids")
"""Parameters that decide a listing. With others it is another listing, with no memory of what this one had."""


class Listed(NamedTuple):
    """An article version of a listing: wanted, or with the code and message that tell why it no longer is."""

    number: int
    version: int
    code: str | None
    message: str | None
    licence: str | None
    retracted: bool
    cited: str | None
    files: bytes | None

    @property
    def article(self) -> str:
        return f"PMC{self.number}"

    @property
    def entry(self) -> str:
        return f"PMC{self.number}.{self.version}"


class Index:
    """The memory of one bucket. Use it as a context; it is locked meanwhile."""

    def __init__(self, folder: Path, bucket: Bucket) -> None:
        self._bucket = bucket
        name = key("pmc-bucket", VERSION, bucket.endpoint, bucket.name, bucket.prefix)
        self._path = folder / f"{name}.sqlite"
        self._lock = open(folder / f"{name}.lock", "w")  # noqa: SIM115
        self._selection = ""

    def __enter__(self) -> Index:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._db = _opened(self._path)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            self._path.unlink()
            self._db = _opened(self._path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._db.close()
        self._lock.close()

    # what there is

    def follow(self, name: str | None) -> str:
        """Read the inventory of that name, the newest for None, unless it is known; returns its name.

        Raises ConfigError when there is none or it cannot be understood, and as `Bucket.get` does.
        """
        state: dict[str, Any] = dict(self._db.execute("SELECT name, value FROM state"))
        if name is not None and name == state.get("inventory"):
            return name
        place = newest(self._bucket, name)
        name = place.rstrip("/").rpartition("/")[2]
        if name != state.get("inventory"):
            seen = state.get("seen", 0) + 1
            with self._db:  # a new number first: rows of a reading that was killed must not count
                self._db.execute("INSERT OR REPLACE INTO state VALUES ('seen', ?), ('inventory', NULL)", (seen,))
            self._read(place, seen)
            with self._db:
                self._db.execute("INSERT OR REPLACE INTO state VALUES ('inventory', ?)", (name,))
        return name

    def _read(self, place: str, seen: int) -> None:
        named = rows(self._bucket, place, self._path.with_suffix(".csv.gz"))
        found = ((place_of(number), version, number, etag, seen) for number, version, etag in named)
        count = 0
        while some := list(islice(found, ROWS)):
            count += len(some)
            with self._db:
                self._db.executemany(
                    "INSERT INTO inventory VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                    "etag = excluded.etag, seen = excluded.seen", some,
                )
        if not count:  # to believe it would be to lose every article
            raise ConfigError(f"{place}: the inventory names no metadata/PMC….json; take another by `inventory`")

    # what is said of it

    def fetch(self, params: Params, in_flight: int) -> int:
        """Fetch the metadata that is new and may be wanted; returns how many were fetched.

        One that cannot be fetched is tried again by the next listing. Raises ConfigError when most cannot.
        """
        self._want(params.ids)
        fetched, last = 0, (b"", 0)
        with ThreadPoolExecutor(in_flight) as pool:
            while some := self._unread(params, last):
                made = [row for row in pool.map(self._fetched, some) if row is not None]
                with self._db:
                    self._db.executemany("INSERT OR REPLACE INTO metadata VALUES (?, ?, ?, ?, ?, ?, ?, ?)", made)
                if (lost := len(some) - len(made)) > max(LOST, len(made)):
                    raise ConfigError(
                        f"{lost} of {len(some)} metadata of s3://{self._bucket.name} could not be fetched; what was "
                        "fetched before is kept: try again later"
                    )
                fetched, last = fetched + len(made), some[-1][:2]
        return fetched

    def _want(self, ids: str | None) -> None:
        with self._db:
            self._db.execute("DELETE FROM wanted")
            if ids is not None:
                self._db.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", ((place_of(n),) for n in _numbers(ids)))

    def _unread(self, params: Params, after: tuple[bytes, int]) -> list[tuple[bytes, int, int, str]]:
        newest = "AND i.version = (SELECT max(version) FROM inventory n WHERE n.place = i.place AND n.seen = i.seen)"
        newest = newest if params.versions == "newest" else ""
        asked = "" if params.ids is None else "AND i.place IN wanted"
        return self._db.execute(
            "SELECT i.place, i.version, i.number, i.etag FROM inventory i LEFT JOIN metadata m USING (place, version) "
            "WHERE (i.place, i.version) > (?, ?) AND m.etag IS NOT i.etag "
            f"AND i.seen = (SELECT value FROM state WHERE name = 'seen') {newest} {asked} "
            f"ORDER BY i.place, i.version LIMIT {BATCH}", after,
        ).fetchall()

    def _fetched(self, row: tuple[bytes, int, int, str]) -> tuple[Any, ...] | None:
        """A row of `metadata`, with a `problem` where it is gone or not understood; None: it could not be fetched."""
        place, version, number, etag = row
        entry = f"PMC{number}.{version}"
        try:
            found = read_metadata(self._bucket.get(f"metadata/{entry}.json"), entry)
        except Transient:
            return None
        except Terminal as error:
            if error.code == "ACCESS_DENIED":
                return None
            problem = GONE if error.code == "FILE_MISSING" else error.message
            return place, version, etag, problem, None, None, None, None
        return place, version, etag, None, found.licence, found.retracted, found.cited, found.files.packed()

    # what of it is wanted

    def choose(self, source: str, params: Params) -> Counter[str]:
        """Decide which article versions the listing has. Returns how many are wanted, and are not, by reason."""
        rules = params.model_dump(mode="json", include=set(SELECTS))
        self._selection = key("selection", source, rules)
        counts: Counter[str] = Counter()
        with self._db:
            self._db.execute("DELETE FROM fresh")
            for _, group in groupby(self._known(params), key=lambda known: known.place):
                for known, verdict in verdicts(list(group), params):
                    counts[verdict.reason] += 1
                    if verdict.listed:
                        self._db.execute("INSERT INTO fresh VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (
                            self._selection, known.place, known.version, known.number, verdict.code, verdict.message,
                            *((known.licence, 1) if verdict.code is None else (known.was, known.chosen)),
                        ))
            self._db.execute("DELETE FROM listed WHERE selection = ?", (self._selection,))
            self._db.execute("INSERT INTO listed SELECT * FROM fresh")
        return counts

    def _known(self, params: Params) -> Iterator[Known]:
        """Every version that may be wanted or was, newest first within its article."""
        wanted = "1" if params.ids is None else "i.place IN wanted"
        rows = self._db.execute(
            "SELECT i.place, i.version, i.number, i.seen = (SELECT value FROM state WHERE name = 'seen'), "
            f"{wanted}, m.place IS NOT NULL, m.problem, m.licence, m.retracted, m.cited, l.licence, l.chosen IS 1 "
            "FROM inventory i LEFT JOIN metadata m ON m.place = i.place AND m.version = i.version AND m.etag = i.etag "
            "LEFT JOIN listed l ON l.selection = ? AND l.place = i.place AND l.version = i.version "
            f"WHERE {wanted} OR l.place IS NOT NULL ORDER BY i.place, i.version DESC", (self._selection,),
        )
        return (Known(*row) for row in rows)

    # what is listed

    def leaves(self, capacity: int) -> Iterator[tuple[str, list[Listed]]]:
        """Partitions, by the rule of `infra.keys.split_by_key`: name, and the versions of its articles, newest first.

        An article's place is the hash of its name, so a leaf of the trie is a range of places.
        """
        return self._grow("", capacity)

    def _grow(self, prefix: str, capacity: int) -> Iterator[tuple[str, list[Listed]]]:
        within = (self._selection, *(int(prefix.ljust(128, bit), 2).to_bytes(16) for bit in "01"))
        count, first, last = self._db.execute(
            "SELECT count(*), min(place), max(place) FROM listed WHERE selection = ? AND place BETWEEN ? AND ?", within
        ).fetchone()
        if count > capacity and first != last:
            yield from self._grow(prefix + "0", capacity)
            yield from self._grow(prefix + "1", capacity)
        elif count:
            rows = self._db.execute(
                "SELECT l.number, l.version, l.code, l.message, m.licence, m.retracted, m.cited, m.files FROM listed l "
                "LEFT JOIN metadata m USING (place, version) WHERE l.selection = ? AND l.place BETWEEN ? AND ?", within,
            )
            leaf = sorted((Listed(*row) for row in rows), key=lambda one: (one.article, -one.version))
            yield f"b{prefix}" if prefix else "all", leaf


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60)
    connection.executescript(_SCHEMA)
    return connection


def place_of(number: int) -> bytes:
    """Where an article stands in the order of partitions: the head of the hash of its PMCID."""
    return bytes.fromhex(sha256(f"PMC{number}".encode()))[:16]


def _numbers(ids: str) -> Iterator[int]:
    """PMCIDs of a file, one a line, with or without PMC, blank lines and # comments left out."""
    with open(resolve(ids), encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            said = line.partition("#")[0].strip()
            found = re.fullmatch(r"(?:PMC)?(\d+)", said, re.IGNORECASE)
            if found:
                yield int(found[1])
            elif said:
                raise ConfigError(f"{ids}, line {number}: {said[:40]!r} is no PMCID such as PMC1234567; mend the file")
