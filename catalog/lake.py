"""The catalog in a DuckLake: its metadata in Postgres (or in a file), its rows as Parquet under HOME/lake/.

    MEDLOOM_CATALOG='ducklake:postgres:host=db.example dbname=medloom'   the password by PGPASSWORD or PGPASSFILE
    MEDLOOM_CATALOG='ducklake:/data/medloom.ducklake'                    for one machine

The invariant: questions never touch Postgres. A reader asks once which files the last commit consists of, by DuckLake's
specification, on a connection that nobody else gets; questions run on another one, which reads those files and knows no
address, no password and no function that reaches a database. So a reader that stays open holds nothing, and works on
while Postgres is down. Files that merging left behind stay for a day, as long as such a reader may.

Writers commit through DuckLake in one transaction, one at a time: an advisory lock of Postgres, given back however its
holder ends, keeps others waiting. What a killed writer wrote belongs to no commit; it is removed after a day.

The extensions come from packages (`pip install 'medloom[lake]'`) and are loaded by path; nothing is downloaded.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import re
import secrets
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog.fence import QUIET, CatalogError, settings
from catalog.index import LOCK_WAIT_S, REBUILD, alone, insert
from catalog.segments import quoted
from catalog.views import FORMAT, TABLES, drop_all, make_tables, make_views
from infra import mirror
from infra.errors import ConfigError
from infra.storage import write_atomic, write_bytes

FOLDER = "lake"
PATIENCE_S = 20.0
"""How long a server that does not answer is waited for: one that is being started again is there by then."""
MERGE_FROM = 40
"""Files of one table, from which on they are merged after a commit."""
GRACE = "INTERVAL '1 day'"
LOCK_NUMBER = 0x6D65646C6F6F6D
"""Of the advisory lock, in the database that the address names."""

_FILES = """SELECT t.table_name AS name, s.path || t.path || f.path AS path, s.path || t.path || d.path AS deleted,
  s.path_is_relative AND t.path_is_relative AND f.path_is_relative AND coalesce(d.path_is_relative, true) AS ours
FROM ducklake_data_file f JOIN ducklake_table t ON t.table_id = f.table_id
JOIN ducklake_schema s ON s.schema_id = t.schema_id
LEFT JOIN (SELECT * FROM ducklake_delete_file WHERE end_snapshot IS NULL) d ON d.data_file_id = f.data_file_id
WHERE f.end_snapshot IS NULL AND t.end_snapshot IS NULL AND s.end_snapshot IS NULL AND s.schema_name = 'main'
ORDER BY f.data_file_id"""
"""The files of the last commit, and which of their rows are deleted: https://ducklake.select/docs/specification."""


@dataclass(frozen=True)
class Lake:
    """An index in a DuckLake; see catalog.index.Index."""

    home: Path
    postgres: str | None
    """libpq's words, without a password; None for a file"""
    file: Path | None

    @classmethod
    def at(cls, home: Path, address: str) -> Lake:
        """From what follows `ducklake:`. Raises ConfigError for an address that is none, or that tells a password."""
        if not address.startswith("postgres:"):
            if not address or ":" in address:
                raise ConfigError("MEDLOOM_CATALOG: after ducklake: comes postgres:host=… dbname=…, or a file's path")
            return cls(home, None, Path(address).expanduser().resolve())
        words = address.removeprefix("postgres:").strip()
        if "password" in words.lower() or "://" in words:
            raise ConfigError(
                "MEDLOOM_CATALOG: give host=… port=… dbname=… user=… and nothing secret; the password is read from "
                "PGPASSWORD, or from the file that PGPASSFILE names"
            )
        return cls(home, words if "connect_timeout" in words else f"{words} connect_timeout=5", None)

    @property
    def where(self) -> str:
        return f"Postgres ({self.postgres})" if self.postgres else str(self.file)

    @property
    def _published(self) -> Path:
        """The copy of the file that readers open: a writer keeps the file itself to itself."""
        assert self.file
        return self.file.with_name(f"{self.file.name}.ro")

    @property
    def folder(self) -> Path:
        return self.home.resolve() / FOLDER

    def folders(self) -> Sequence[Path]:
        return (self.folder,)

    def open(self) -> Any | None:
        import duckdb

        files = self._files()
        if not files.get("format"):
            return None
        con = duckdb.connect(config=settings())
        try:
            con.execute("SET parquet_metadata_cache = true")  # files never change
            (number,) = con.execute(f"SELECT max(number) FROM ({_rows(files['format'])})").fetchone() or (None,)
            if number != FORMAT:
                raise CatalogError(f"the catalog in {self.where} is of another version of medloom; {REBUILD}")
            con.execute(f"CREATE SCHEMA empty; USE empty; {TABLES}; INSERT INTO format VALUES ({FORMAT}, NULL)")
            make_tables(con)
            names = [name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
            con.execute("USE main; CREATE TABLE format AS FROM empty.format")
            names.remove("format")
            con.execute("".join(f"CREATE VIEW {name} AS FROM empty.{name};" for name in names))
            make_views(con, ())  # before the files come in: each view that is made would open them again
            con.execute("".join(
                f"CREATE OR REPLACE VIEW {name} AS FROM empty.{name} UNION ALL BY NAME {_rows(files[name])};"
                for name in names if name in files
            ))
        except duckdb.Error as error:
            con.close()
            raise CatalogError(f"{self.folder} cannot be read; {REBUILD}: {error}") from None
        return con

    def _files(self) -> Mapping[str, Sequence[tuple[Path, Path | None]]]:
        """table -> its files, each with the one that names its deleted rows; none where nothing was committed yet."""
        found: dict[str, list[tuple[Path, Path | None]]] = {}
        for name, path, deleted, ours in self._asked():
            if not ours or ".." in Path(f"{path}/{deleted}").parts:
                raise CatalogError(f"{self.where} names files that lie outside {self.folder}; {REBUILD}")
            pair = mirror.local(self.folder / path), None if deleted is None else mirror.local(self.folder / deleted)
            found.setdefault(name, []).append(pair)
        return found

    def _asked(self) -> Sequence[tuple[str, str, str | None, bool]]:
        import duckdb

        if self.file is not None:
            if not self._published.exists():
                return ()
            with duckdb.connect(config=QUIET) as con:
                self._attach(con, f"ATTACH '{quoted(self._published)}' AS meta (READ_ONLY)")
                return con.execute(f"USE meta; {_FILES}").fetchall()
        with _loaded("postgres_scanner") as con:
            self._attach(con, f"ATTACH '{self._words}' AS meta (TYPE postgres, READ_ONLY)")
            try:
                made = con.execute(_SERVER, ["SELECT to_regclass('ducklake_data_file') IS NOT NULL AS made"])
                found = con.execute(_SERVER, [_FILES]).fetchall() if made.fetchone() == (True,) else ()
                con.execute("DETACH meta")
                return found
            except duckdb.Error as error:
                raise CatalogError(f"{self.where} stopped answering; ask again: {error}") from None

    @contextmanager
    def writing(self, afresh: bool = False) -> Iterator[Any]:
        import duckdb

        needed = ("ducklake", "postgres_scanner") if self.postgres else ("ducklake",)
        with alone(self.home), _loaded(*needed) as root, self._gate(root) as still_alone:
            con = root.cursor()
            mirror.pull(self.folder)
            if afresh and self.file:
                self.file.unlink(missing_ok=True)
                self.file.with_name(f"{self.file.name}.wal").unlink(missing_ok=True)
            self._attach(con, (
                f"ATTACH 'ducklake:{f'postgres:{self._words}' if self.postgres else quoted(self.file or Path())}' "
                f"AS lake (DATA_PATH '{quoted(self.folder)}/', OVERRIDE_DATA_PATH true, DATA_INLINING_ROW_LIMIT 0)"
            ))
            con.execute("USE lake")
            try:
                con.execute("BEGIN")
                self._require_ours(con)
                if afresh:
                    drop_all(con)
                yield con
                mirror.push(self.folder)
                still_alone()
                con.execute("COMMIT")
            except BaseException as error:
                with suppress(duckdb.Error):
                    con.execute("ROLLBACK")  # an open transaction of a dead server would end this process later
                if isinstance(error, duckdb.Error):
                    still_alone()  # the cause, if it is the server's
                raise
            self._tidy(con)
            con.execute("USE memory; DETACH lake")
            mirror.push(self.folder)
            if self.file:
                write_atomic(self._published, functools.partial(shutil.copyfile, self.file))

    def attach(self, con: Any) -> Sequence[str]:
        return ()  # a lake minds its files itself

    def insert(self, con: Any, rows: Mapping[str, pa.Table]) -> None:
        insert(con, rows)

    @contextmanager
    def _gate(self, root: Any) -> Iterator[Any]:
        """The only writer of this lake; yields what raises CatalogError when that is no longer sure."""
        import duckdb

        if not self.postgres:
            yield lambda: None
            return
        con = root.cursor()
        self._attach(con, f"ATTACH '{self._words}' AS gate (TYPE postgres)")

        def ask(sql: str) -> Any:
            try:
                return con.execute("SELECT * FROM postgres_query('gate', ?)", [sql]).fetchone()
            except duckdb.Error as error:
                raise CatalogError(
                    f"{self.where} went away during a commit. Shards, manifests and records of builds in {self.home} "
                    f"are safe; once it runs again, the same command brings the catalog up to date: {error}"
                ) from None

        con.execute("BEGIN")
        try:
            until = time.monotonic() + LOCK_WAIT_S
            while ask(f"SELECT pg_try_advisory_xact_lock({LOCK_NUMBER}) AS got") != (True,):
                if time.monotonic() > until:
                    raise CatalogError(f"another build is committing to {self.where} for longer than {LOCK_WAIT_S:g} s")
                time.sleep(0.05)
            yield lambda: ask("SELECT 1 AS alive")
        finally:
            with suppress(duckdb.Error):
                con.execute("ROLLBACK")
            with suppress(duckdb.Error):
                con.execute("DETACH gate")

    @property
    def _words(self) -> str:
        return (self.postgres or "").replace("'", "''")

    def _attach(self, con: Any, sql: str) -> None:
        """Attach a database, waiting for a server that does not answer and a file that another process has open."""
        import duckdb

        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                con.execute(sql)
                return
            except duckdb.Error as error:
                hopeless = re.search(r"password|authentication|role .* does not exist|database .* does not exist",
                                     str(error))
                if hopeless or not isinstance(error, duckdb.IOException):
                    raise ConfigError(
                        f"{self.where} does not let us in; check MEDLOOM_CATALOG, PGPASSWORD or PGPASSFILE: {error}"
                    ) from None
                if time.monotonic() > until:
                    raise CatalogError(
                        f"{self.where} has not answered for {PATIENCE_S:g} s; start it, or wait for who has it open, "
                        f"and give the same command again. The files in {self.home} are safe: {error}"
                    ) from None
                time.sleep(0.25)

    def _require_ours(self, con: Any) -> None:
        """Raises ConfigError when the lake belongs to another home: two would forget each other's builds."""
        mark = self.folder / "home.id"
        con.execute("CREATE SCHEMA IF NOT EXISTS medloom; CREATE VIEW IF NOT EXISTS medloom.home AS SELECT NULL AS id")
        (known,) = con.execute("SELECT id FROM medloom.home").fetchone()  # a view: it needs no file
        if not mark.exists():
            write_bytes(mark, secrets.token_hex(12).encode())
        mine = mark.read_text().strip()
        if known is None:
            con.execute(f"CREATE OR REPLACE VIEW medloom.home AS SELECT '{quoted(Path(mine))}' AS id")
        elif known != mine:
            raise ConfigError(
                f"the lake in {self.where} belongs to another home than {self.home} (or {mark} was lost): name another "
                "database in MEDLOOM_CATALOG, an empty one; the catalog is made again from the files"
            )

    def _tidy(self, con: Any) -> None:
        """Merge small files where they are many, and remove what nobody reads any more. The commit stands already."""
        import duckdb

        counts = "SELECT max(file_count) FROM ducklake_table_info('lake')"
        try:
            if (con.execute(counts).fetchone() or (0,))[0] >= MERGE_FROM:
                con.execute("CALL ducklake_merge_adjacent_files('lake')")
                con.execute(f"CALL ducklake_expire_snapshots('lake', older_than => now() - {GRACE})")
                con.execute(f"CALL ducklake_cleanup_old_files('lake', older_than => now() - {GRACE})")
                con.execute(f"CALL ducklake_delete_orphaned_files('lake', older_than => now() - {GRACE})")
        except duckdb.Error as error:
            logging.getLogger(__name__).warning("small files of the lake were not merged, they will be: %s", error)


_SERVER = "SELECT * FROM postgres_query('meta', ?)"


def _rows(files: Sequence[tuple[Path, Path | None]]) -> str:
    """The SELECT of the rows of these files that are not deleted; columns that some lack are null."""
    whole = [f"'{quoted(path)}'" for path, deleted in files if deleted is None]
    shown = "SELECT COLUMNS(c -> NOT starts_with(c, '_ducklake') AND c <> 'file_row_number')"
    parts = [f"{shown} FROM read_parquet([{', '.join(whole)}], union_by_name = true)"] if whole else []
    parts += [
        f"{shown} FROM read_parquet('{quoted(path)}', file_row_number = true) "
        f"WHERE file_row_number NOT IN (SELECT pos FROM read_parquet('{quoted(deleted)}'))"
        for path, deleted in files if deleted is not None
    ]
    return " UNION ALL BY NAME ".join(parts)


@contextmanager
def _loaded(*extensions: str) -> Iterator[Any]:
    """A DuckDB instance with these extensions, kept for the next time unless something went wrong: loading takes
    most of a second. Raises ConfigError where a package is missing."""
    import duckdb

    kept = _INSTANCES[os.getpid(), extensions]
    try:
        root = kept.pop()
    except IndexError:
        root = duckdb.connect(config=QUIET)
        for name in extensions:
            root.execute(f"LOAD '{quoted(_packaged(name))}'")
    yield root.cursor()
    kept.append(root)


_INSTANCES: defaultdict[tuple[int, Sequence[str]], list[Any]] = defaultdict(list)
"""process, extensions -> instances that nobody uses at the moment"""


def _packaged(extension: str) -> Path:
    import duckdb

    package, version = f"duckdb_extension_{extension}", duckdb.__version__
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or () if spec else ()):
        path = Path(folder) / "extensions" / f"v{version}" / f"{extension}.duckdb_extension"
        if path.exists():
            return path
    name = package.replace("_", "-")
    raise ConfigError(
        f"MEDLOOM_CATALOG names a DuckLake, which needs the package {name}=={version}, made for DuckDB {version}: "
        "pip install 'medloom[lake]'"
    )
