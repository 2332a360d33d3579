"""The catalog: a DuckDB index over builds, manifests and the metadata columns of shards.

Everything in it can be made again from the files (`rebuild`). One short-lived writer brings it up to date; readers get
a published copy, so an open notebook never blocks a build. Every layer is a view by its name, over the newest snapshot
or the one that `at` names; `images` has all columns but the bytes, and `shard`, the file they lie in. Further views
are for people: `samples`, `funnel`, `costs`, `licences`, `missing` (catalog/views.py).

    HOME/catalog.duckdb      the index: the writer's
    HOME/catalog.ro.duckdb   its published copy: what everybody reads
    HOME/segments/           rows of large datasets (catalog/segments.py)

>>> query(home, "SELECT modality, count(*) AS n FROM images GROUP BY 1 ORDER BY 2 DESC").to_pylist()
[{'modality': 'CT', 'n': 41}]
"""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog import segments
from catalog.builds import Build, numbers, read_build
from catalog.manifest import Manifest, read_manifest
from catalog.schema import LAYERS, Layer
from catalog.views import FORMAT, TABLES, make_tables, make_views, metadata
from infra.errors import ConfigError, MedloomError
from infra.storage import locked, write_atomic

FILE, PUBLISHED, LOCK = "catalog.duckdb", "catalog.ro.duckdb", ".catalog.lock"
LOCK_WAIT_S = 600.0
"""A commit checks the whole snapshot: of a large one that takes minutes."""
SECONDS = 600.0
"""A question may take so long."""
REOPEN = 5
"""How often a reader tries to open what a writer may be replacing at that moment."""
_FENCE: Mapping[str, str] = {
    "enable_external_access": "false", "python_enable_replacements": "false", "lock_configuration": "true",
}
"""No file but the catalog, no variable of the calling program, and no way to change that."""


class CatalogError(MedloomError):
    """The catalog cannot answer; the message says what to do."""


def query(home: Path, sql: str, at: int | None = None, seconds: float = SECONDS) -> pa.Table:
    """The answer to one SELECT over the published catalog, which cannot reach files, the network or the settings.

    Columns of one name are told apart by a number: id, id_1. Raises CatalogError with DuckDB's words when it cannot be
    answered, or not within so many seconds and the memory that MEDLOOM_SQL_MEMORY grants (default 4GB).
    """
    import duckdb

    with reader(home, at) as con:
        try:
            statements = con.extract_statements(sql)
            if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
                raise CatalogError("the catalog answers one SELECT at a time and is never written by SQL")
            with _limited(con, seconds):
                answer = con.sql(sql).to_arrow_table()
        except duckdb.InterruptException:
            raise CatalogError(
                f"no answer within {seconds:g} s: ask for less (WHERE, LIMIT), or allow more time"
            ) from None
        except duckdb.Error as error:
            raise CatalogError(f"the catalog cannot answer: {error}") from None
    names: list[str] = []
    for name in answer.column_names:
        twins = (f"{name}_{n}" for n in itertools.count(1))
        names.append(name if name not in names else next(t for t in twins if t not in answer.column_names + names))
    return answer.rename_columns(names)


@contextmanager
def _limited(con: Any, seconds: float) -> Iterator[None]:
    """Interrupt the connection when the time is over."""
    clock = threading.Timer(seconds, con.interrupt)
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        clock.cancel()


@contextmanager
def reader(home: Path, at: int | None = None) -> Iterator[Any]:
    """A fenced read-only DuckDB connection to the published copy; raises ConfigError for a snapshot there is not."""
    path = home / PUBLISHED
    if not path.exists():
        raise CatalogError(f"{home} has no snapshot yet: run `medloom build RECIPE --home {home}`")
    with _opened(home, path) as con:
        if at is not None:
            snapshots = con.execute("SELECT number FROM builds WHERE status = 'snapshot' ORDER BY 1")
            known = [n for (n,) in snapshots.fetchall()]
            if at not in known:
                raise ConfigError(f"there is no snapshot {at}; known: {', '.join(map(str, known)) or 'none'}")
            con.execute(f"SET VARIABLE snapshot = {at:d}")
        yield con


def _opened(home: Path, path: Path) -> Any:
    """The published copy with its segments, fenced; a segment that was merged away meanwhile is looked for again."""
    import duckdb

    for attempt in range(REOPEN):
        con = None
        try:
            # in memory: connections of one process to one file would share their settings, and the fence
            con = duckdb.connect(config=_settings())
            con.execute(f"ATTACH '{segments.quoted(path)}' AS catalog (READ_ONLY); USE catalog")
            if con.execute("SELECT number FROM format").fetchone() != (FORMAT,):
                raise CatalogError(f"{path} is of another version of medloom; `medloom catalog rebuild` makes it again")
            segments.attach(con, home)
            for name, value in _FENCE.items():
                con.execute(f"SET {name} = {value}")
            return con
        except duckdb.Error as error:
            if con:
                con.close()
            if attempt + 1 == REOPEN:
                raise CatalogError(
                    f"{path} cannot be opened; `medloom catalog rebuild` makes it again: {error}"
                ) from None
            time.sleep(0.05)
    raise AssertionError("unreachable: the last attempt raises")


def _settings() -> dict[str, str | bool | int | float | list[str]]:
    return {
        "memory_limit": os.environ.get("MEDLOOM_SQL_MEMORY", "4GB"), "temp_directory": "",
        "autoinstall_known_extensions": "false", "autoload_known_extensions": "false",
    }


@contextmanager
def writer(home: Path) -> Iterator[Any]:
    """The one short-lived writer, brought up to date with the files; what it wrote is published when it ends well.

    Waits for another one, then raises CatalogError.
    """
    import duckdb

    try:
        with locked(home / LOCK, wait_s=LOCK_WAIT_S), duckdb.connect(str(home / FILE)) as con:
            con.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
            _prepare(con, home)
            _sync(con, home)
            yield con
            segments.spill(con, home)
            con.execute("CHECKPOINT")
            named = set(segments.names(con))
            con.close()
            write_atomic(home / PUBLISHED, lambda draft: shutil.copyfile(home / FILE, draft))
            segments.sweep(home, named)  # who has an old copy open keeps it, and its segments
    except TimeoutError as error:
        raise CatalogError(f"another build is committing for longer than {LOCK_WAIT_S:g} s: {error}") from None
    except duckdb.IOException as error:
        raise CatalogError(f"{home / FILE} is held by another process: {error}") from None


def refresh(home: Path) -> None:
    """Bring the catalog up to date with the files and publish a copy for readers."""
    with writer(home):
        pass


def rebuild(home: Path) -> None:
    """Make the catalog again from builds, manifests and shards alone."""
    segments.sweep(home, set())
    (home / FILE).unlink(missing_ok=True)
    (home / f"{FILE}.wal").unlink(missing_ok=True)
    refresh(home)


def published(home: Path) -> set[int]:
    """Numbers of the builds that readers see."""
    if not (home / PUBLISHED).exists():
        return set()
    with reader(home) as con:
        return {number for (number,) in con.execute("SELECT number FROM builds").fetchall()}


def add_build(con: Any, home: Path, build: Build) -> None:
    """Index a build inside a writer: its units, their shards' rows, its validations. Adding it twice is adding it."""
    con.execute("BEGIN")
    con.register("named", pa.table({"path": pa.array(build.units, pa.string())}))
    unknown = con.execute("SELECT path FROM named WHERE path NOT IN (SELECT path FROM units) ORDER BY path").fetchall()
    fresh = [(path, read_manifest(home, path)) for (path,) in unknown]
    (unit,) = con.execute("SELECT coalesce(max(id), 0) FROM units").fetchone()
    numbered = list(enumerate(fresh, unit + 1))
    _insert(con, "units", [(number, *_unit_row(path, m)) for number, (path, m) in numbered])
    (shard,) = con.execute("SELECT coalesce(max(id), 0) FROM shards").fetchone()
    shards = [
        (number, s.path, s.layer, unit, s.rows, s.bytes, s.sha256)
        for number, (unit, s) in enumerate(((n, s) for n, (_, m) in numbered for s in m.shards), shard + 1)
    ]
    _insert(con, "shards", shards)
    for layer in LAYERS.values():
        _load(con, home, layer, [path for _, path, name, *_ in shards if name == layer.name])
    _forget(con, build.number)
    _insert(con, "builds", [(build.number, build.status, build.name, build.created_at)])
    con.execute(f"INSERT INTO build_units SELECT {build.number:d}, id FROM units JOIN named USING (path)")
    con.unregister("named")
    _insert(con, "validations", [(build.number, *v.model_dump().values()) for v in build.validations])
    con.execute("COMMIT")


def _prepare(con: Any, home: Path) -> None:
    """Tables and views; an index of an older form is emptied, to be filled from the files. Refuses a newer one."""
    has = {name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    known = con.execute("SELECT number FROM format").fetchone() if "format" in has else None
    if known and known[0] > FORMAT:
        raise CatalogError(f"{home / FILE} was written by a newer medloom; update this one")
    if has and known != (FORMAT,):
        for (name,) in con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall():
            con.execute(f'DROP VIEW "{name}"')
        for name in has:
            con.execute(f'DROP TABLE "{name}"')
    con.execute(TABLES)
    if known != (FORMAT,):
        con.execute(f"INSERT INTO format VALUES ({FORMAT}, NULL)")
    make_tables(con)
    make_views(con, segments.attach(con, home))


def _sync(con: Any, home: Path) -> None:
    """Index what the files hold and the index does not; forget what the files do not hold."""
    on_disk = set(numbers(home))
    indexed = {n for (n,) in con.execute("SELECT number FROM builds").fetchall()}
    for number in indexed - on_disk:
        _forget(con, number)
    for number in sorted(on_disk - indexed):
        add_build(con, home, read_build(home, number))


def _forget(con: Any, number: int) -> None:
    con.execute("DELETE FROM builds WHERE number = ?", [number])
    con.execute("DELETE FROM build_units WHERE build = ?", [number])
    con.execute("DELETE FROM validations WHERE build = ?", [number])


def _insert(con: Any, table: str, rows: Sequence[Sequence[Any]]) -> None:
    if rows:
        columns = [pa.array(list(column)) for column in zip(*rows, strict=True)]
        con.register("fresh", pa.Table.from_arrays(columns, names=[f"c{i}" for i in range(len(columns))]))
        con.execute(f"INSERT INTO {table} SELECT * FROM fresh")
        con.unregister("fresh")


def _load(con: Any, home: Path, layer: Layer, paths: Sequence[str]) -> None:
    """Copy the metadata columns of these shards into the layer's table; those that older ones lack are null."""
    if paths:
        prefix = len(str(home.resolve())) + 2
        con.execute(
            f"INSERT INTO {layer.name}_rows BY NAME SELECT r.* EXCLUDE (place), s.id AS shard_id FROM ("
            f"SELECT COLUMNS(c -> list_contains(?, c)), substr(filename, {prefix}) AS place "
            "FROM read_parquet(?, filename=true, union_by_name=true)) r JOIN shards s ON s.path = r.place",
            [metadata(layer).names, [str(home.resolve() / p) for p in paths]],
        )


def _unit_row(path: str, m: Manifest) -> tuple[Any, ...]:
    return (
        path, m.key, m.source, m.partition, m.stage, m.stage_version, m.attempt, m.rows_in, m.kept, m.dropped,
        m.failed, m.retryable, m.quarantined, m.seconds,
    )
