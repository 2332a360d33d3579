"""Where the tables of the catalog stand: a DuckDB file beside the shards, or a DuckLake, chosen by address.

MEDLOOM_CATALOG names it: unset or `duckdb:` is the file, `ducklake:…` a lake (catalog/lake.py). Both keep the same
tables (catalog/views.py) and give the same connections, so whoever asks or writes cannot tell them apart.

The invariant of both: a reader sees a whole commit or the one before it, and however long it stays open it stops no
writer; a writer that dies leaves nothing that anybody reads.

    HOME/catalog.duckdb      the index: the writer's
    HOME/catalog.ro.duckdb   its published copy: what everybody reads
    HOME/segments/           the rows of shards (catalog/segments.py)

>>> with index_of(home).writing() as con:
...     con.execute("DELETE FROM builds WHERE number = 3")
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from catalog import segments
from catalog.fence import QUIET, CatalogError, close_off, settings
from catalog.views import FORMAT
from infra import disk, mirror
from infra.errors import ConfigError
from infra.storage import locked, write_atomic

FILE, PUBLISHED, LOCK = "catalog.duckdb", "catalog.ro.duckdb", ".catalog.lock"
HELD_WAIT_S = 60.0
"""A program that has the writer's file open is waited for so long."""
LOCK_WAIT_S = 600.0
"""A commit checks the whole snapshot: of a large one that takes minutes."""
REOPEN = 5
"""How often a reader tries to open what a writer may be replacing at that moment."""
REBUILD = "`medloom catalog rebuild` makes it again"


class Index(Protocol):
    """Where the tables of one home's catalog stand."""

    def open(self) -> Any | None:
        """A DuckDB connection of its own to the last commit, not fenced yet; None where nothing was ever committed.
        Raises CatalogError."""

    def folders(self) -> Sequence[Path]:
        """Where the files lie that an open connection still has to read."""

    def writing(self, afresh: bool = False) -> AbstractContextManager[Any]:
        """The one writer's connection, in a transaction that is committed and published where the block ends well.
        `afresh`: without what stood there. Waits for another one, then raises CatalogError."""

    def attach(self, con: Any) -> Sequence[str]:
        """Inside a writer: open the segments that the index names; what to make views of. Raises CatalogError."""

    def insert(self, con: Any, rows: Mapping[str, pa.Table]) -> None:
        """Inside a writer: add rows, layer -> a table of its indexed columns (those it lacks are null) and shard_id."""


def insert(con: Any, rows: Mapping[str, pa.Table]) -> None:
    """Into the index's own tables."""
    for layer, table in rows.items():
        con.register("fresh", table)
        con.execute(f"INSERT INTO {layer}_rows BY NAME SELECT * FROM fresh")
        con.unregister("fresh")


def index_of(home: Path) -> Index:
    """The index that MEDLOOM_CATALOG names. Raises ConfigError for an address that is none."""
    address = os.environ.get("MEDLOOM_CATALOG", "")
    if address.startswith("ducklake:"):
        from catalog.lake import Lake

        return Lake.at(home, address.removeprefix("ducklake:"))
    if address not in ("", "duckdb:"):
        raise ConfigError(
            "MEDLOOM_CATALOG is no address of a catalog: leave it unset, or give duckdb:, ducklake:postgres:host=… "
            "dbname=…, or ducklake:FILE"
        )
    return IndexFile(home)


@dataclass(frozen=True)
class IndexFile:
    """A DuckDB file for the writer, a published copy for readers, and segments for rows."""

    home: Path

    def folders(self) -> Sequence[Path]:
        return ()  # segments stay open

    def open(self) -> Any | None:
        """The published copy with its segments; a segment that was merged away meanwhile is looked for again."""
        import duckdb

        path = mirror.current(self.home / PUBLISHED)
        if not path.exists():
            return None
        for attempt in range(REOPEN):
            con = None
            try:
                # in memory: connections of one process to one file would share their settings, and the fence
                con = duckdb.connect(config=settings())
                con.execute(f"ATTACH '{segments.quoted(path)}' AS catalog (READ_ONLY); USE catalog")
                if con.execute("SELECT number FROM format").fetchone() != (FORMAT,):
                    raise CatalogError(f"{path} is of another version of medloom; {REBUILD}")
                segments.attach(con, self.home)
                return con
            except (duckdb.Error, OSError, pa.ArrowException) as error:
                if con:
                    con.close()
                if attempt + 1 == REOPEN:
                    raise CatalogError(f"{path} cannot be opened; {REBUILD}: {error}") from None
                time.sleep(0.05)
        raise AssertionError("unreachable: the last attempt raises")

    @contextmanager
    def writing(self, afresh: bool = False) -> Iterator[Any]:
        with alone(self.home):
            if not (self.home / FILE).exists() and mirror.current(self.home / PUBLISHED).exists():
                shutil.copyfile(self.home / PUBLISHED, self.home / FILE)  # a new working copy of a bucket
            if afresh:
                (self.home / FILE).unlink(missing_ok=True)
                (self.home / f"{FILE}.wal").unlink(missing_ok=True)
            with _connected(self.home / FILE) as con:
                con.execute("SET checkpoint_threshold = '1KB'")  # rows go to the file at once, not to its log first
                close_off(con, [self.home.resolve()])  # somebody else may have made the catalog and its views
                con.execute("BEGIN")
                yield con
                con.execute("COMMIT")
                if segments.spill(con, self.home):
                    con.execute("CHECKPOINT")
                named = set(segments.names(con))
            self._publish(named)
            segments.sweep(self.home, named)  # who has an old copy open keeps it, and its segments

    def attach(self, con: Any) -> Sequence[str]:
        try:
            return segments.attach(con, self.home)
        except (OSError, pa.ArrowException) as error:
            raise CatalogError(f"a segment of {self.home} cannot be read; {REBUILD}: {error}") from None

    def insert(self, con: Any, rows: Mapping[str, pa.Table]) -> None:
        if sum(len(table) for table in rows.values()) <= segments.SPILL:
            segments.add(con, self.home, rows)
        else:  # they will make a large segment after the commit
            insert(con, rows)

    def _publish(self, named: set[str]) -> None:
        """Let readers see the index as it is; what it names must be where they are first."""
        for name in sorted(named):
            mirror.share(segments.file_of(self.home, name))
        write_atomic(self.home / PUBLISHED, lambda draft: shutil.copyfile(self.home / FILE, draft))


def _connected(path: Path) -> Any:
    """The writer's connection; who has the file open (a notebook, say) is waited for, HELD_WAIT_S at the most."""
    import duckdb

    until = time.monotonic() + HELD_WAIT_S
    while True:
        try:
            return duckdb.connect(str(path), config=QUIET)
        except duckdb.Error as error:
            if disk.reason(error):
                raise
            if "Could not set lock" not in str(error):  # DuckDB has one type for both
                raise CatalogError(f"{path} is damaged; {REBUILD}: {error}") from None
            if time.monotonic() > until:
                raise CatalogError(
                    f"{path} is held by another process for longer than {HELD_WAIT_S:g} s; close it there and build "
                    f"again, nothing is lost: {error}"
                ) from None
            time.sleep(0.1)


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """The only writer of this home on this machine; raises CatalogError when another one takes too long."""
    try:
        with locked(home / LOCK, wait_s=LOCK_WAIT_S):
            yield
    except TimeoutError as error:
        raise CatalogError(f"another build is committing for longer than {LOCK_WAIT_S:g} s: {error}") from None
