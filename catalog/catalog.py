"""The catalog: a DuckDB index over builds, manifests and the metadata columns of shards.

Everything in it can be made again from the files (`rebuild`). One short-lived writer brings it up to date; readers get
a published copy, so an open notebook never blocks a build. Every layer is a view by its name, over the newest snapshot
or the one that `at` names; `images` has all columns but the bytes, and `shard`, the file they lie in.

>>> query(home, "SELECT modality, count(*) AS n FROM images GROUP BY 1 ORDER BY 2 DESC").to_pylist()
[{'modality': 'CT', 'n': 41}]
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog.builds import Build, builds
from catalog.manifest import Manifest, read_manifest
from catalog.schema import LAYERS, Layer
from infra.errors import ConfigError, MedloomError
from infra.storage import write_atomic

FILE, PUBLISHED = "catalog.duckdb", "catalog.ro.duckdb"
LOCK_WAIT_S = 30.0
_FENCE: Mapping[str, str] = {
    "enable_external_access": "false", "python_enable_replacements": "false", "lock_configuration": "true",
}
"""No file but the catalog, no variable of the calling program, and no way to change that."""


class CatalogError(MedloomError):
    """The catalog cannot answer; the message says what to do."""


_TABLES = """
CREATE TABLE IF NOT EXISTS builds (number INTEGER PRIMARY KEY, status VARCHAR, name VARCHAR, created_at VARCHAR);
CREATE TABLE IF NOT EXISTS validations (build INTEGER, layer VARCHAR, expectation VARCHAR, critical BOOLEAN,
  success BOOLEAN, unexpected BIGINT, detail VARCHAR);
CREATE TABLE IF NOT EXISTS units (path VARCHAR PRIMARY KEY, key VARCHAR, source VARCHAR, partition VARCHAR,
  stage VARCHAR, stage_version VARCHAR, attempt INTEGER, rows_in BIGINT, kept BIGINT, dropped BIGINT, failed BIGINT,
  retryable BIGINT, quarantined BOOLEAN, seconds DOUBLE);
CREATE TABLE IF NOT EXISTS build_units (build INTEGER, unit VARCHAR);
CREATE TABLE IF NOT EXISTS shards (path VARCHAR PRIMARY KEY, layer VARCHAR, unit VARCHAR, rows BIGINT, bytes BIGINT,
  sha256 VARCHAR);
CREATE OR REPLACE VIEW snapshot AS SELECT coalesce(getvariable('snapshot')::INTEGER,
  (SELECT max(number) FROM builds WHERE status = 'snapshot')) AS number;
CREATE OR REPLACE VIEW current_units AS SELECT u.* FROM units u
  WHERE u.path IN (SELECT unit FROM build_units WHERE build = (SELECT number FROM snapshot));
CREATE OR REPLACE VIEW funnel AS SELECT * FROM (SELECT source, stage, count(*) AS partitions,
  sum(rows_in)::BIGINT AS rows_in, sum(kept)::BIGINT AS kept,
  sum(dropped)::BIGINT AS dropped, sum(failed)::BIGINT AS failed,
  sum(quarantined::INTEGER)::BIGINT AS quarantined, sum(rows_in) = sum(kept) + sum(dropped) + sum(failed) AS balanced
  FROM current_units GROUP BY ALL) ORDER BY source, stage <> 'ingest', stage;
"""


def query(home: Path, sql: str, at: int | None = None) -> pa.Table:
    """The answer to one SELECT over the published catalog, which cannot reach files, the network or the settings.

    Columns of one name are told apart by a number: id, id_1. Raises CatalogError with DuckDB's words when it cannot be
    answered.
    """
    import duckdb

    with reader(home, at) as con:
        try:
            statements = con.extract_statements(sql)
            if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
                raise CatalogError("the catalog answers one SELECT at a time and is never written by SQL")
            answer = con.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise CatalogError(f"the catalog cannot answer: {error}") from None
    names: list[str] = []
    for name in answer.column_names:
        twins = (f"{name}_{n}" for n in itertools.count(1))
        names.append(name if name not in names else next(t for t in twins if t not in answer.column_names + names))
    return answer.rename_columns(names)


@contextmanager
def reader(home: Path, at: int | None = None) -> Iterator[Any]:
    """A fenced read-only DuckDB connection to the published copy; raises ConfigError for a snapshot there is not."""
    import duckdb

    path = home / PUBLISHED
    if not path.exists():
        raise CatalogError(f"{home} has no snapshot yet: run `medloom build RECIPE --home {home}`")
    try:
        con = duckdb.connect(str(path), read_only=True, config=dict(_FENCE))
    except duckdb.Error as error:
        raise CatalogError(f"{path} cannot be opened; `medloom catalog rebuild` makes it again: {error}") from None
    with con:
        if at is not None:
            snapshots = con.execute("SELECT number FROM builds WHERE status = 'snapshot' ORDER BY 1")
            known = [n for (n,) in snapshots.fetchall()]
            if at not in known:
                raise ConfigError(f"there is no snapshot {at}; known: {', '.join(map(str, known)) or 'none'}")
            con.execute(f"SET VARIABLE snapshot = {at:d}")
        yield con


@contextmanager
def writer(home: Path) -> Iterator[Any]:
    """The one short-lived writer, brought up to date with the files. Waits for another one, then says so."""
    import duckdb

    home.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            con = duckdb.connect(str(home / FILE))
            break
        except duckdb.IOException as error:
            if time.monotonic() > until:
                raise CatalogError(f"{home / FILE} is held by another process: {error}") from None
            time.sleep(0.2)
    try:
        con.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
        _prepare(con)
        _sync(con, home)
        yield con
        con.execute("CHECKPOINT")
    finally:
        con.close()


def refresh(home: Path) -> None:
    """Bring the catalog up to date with the files and publish a copy for readers."""
    with writer(home):
        pass
    publish(home)


def rebuild(home: Path) -> None:
    """Make the catalog again from builds, manifests and shards alone."""
    (home / FILE).unlink(missing_ok=True)
    (home / f"{FILE}.wal").unlink(missing_ok=True)
    refresh(home)


def published(home: Path) -> set[int]:
    """Numbers of the builds that readers see."""
    if not (home / PUBLISHED).exists():
        return set()
    with reader(home) as con:
        return {number for (number,) in con.execute("SELECT number FROM builds").fetchall()}


def publish(home: Path) -> None:
    """Give readers a new copy; who has the old one open keeps it."""
    write_atomic(home / PUBLISHED, lambda draft: shutil.copyfile(home / FILE, draft))


def add_build(con: Any, home: Path, build: Build) -> None:
    """Index a build inside a writer: its units, their shards' rows, its validations. Adding it twice is adding it."""
    con.execute("BEGIN")
    known = {p for (p,) in con.execute("SELECT path FROM units").fetchall()}
    fresh = [(path, read_manifest(home, path)) for path in build.units if path not in known]
    _insert(con, "units", [_unit_row(path, m) for path, m in fresh])
    shards = [(s.path, s.layer, path, s.rows, s.bytes, s.sha256) for path, m in fresh for s in m.shards]
    _insert(con, "shards", shards)
    for layer in LAYERS.values():
        _load(con, home, layer, [path for path, name, *_ in shards if name == layer.name])
    _forget(con, build.number)
    _insert(con, "builds", [(build.number, build.status, build.name, build.created_at)])
    _insert(con, "build_units", [(build.number, path) for path in build.units])
    _insert(con, "validations", [(build.number, *v.model_dump().values()) for v in build.validations])
    con.execute("COMMIT")


def _prepare(con: Any) -> None:
    con.execute(_TABLES)
    for layer in LAYERS.values():
        con.register("empty", _metadata(layer).empty_table())
        con.execute(f"CREATE TABLE IF NOT EXISTS {layer.name}_rows AS SELECT *, NULL::VARCHAR AS shard FROM empty")
        for name, kind, *_ in con.execute("DESCRIBE SELECT * FROM empty").fetchall():  # a catalog of an older schema
            con.execute(f'ALTER TABLE {layer.name}_rows ADD COLUMN IF NOT EXISTS "{name}" {kind}')
        con.unregister("empty")
        # the rejects of a quarantined unit must be seen, its rows must not
        hidden = "" if layer.name == "rejects" else "WHERE NOT u.quarantined"
        con.execute(
            f"CREATE OR REPLACE VIEW {layer.name} AS SELECT * FROM {layer.name}_rows WHERE shard IN "
            f"(SELECT s.path FROM shards s JOIN current_units u ON s.unit = u.path {hidden})"
        )


def _sync(con: Any, home: Path) -> None:
    """Index what the files hold and the index does not; forget what the files do not hold."""
    on_disk = {build.number: build for build in builds(home)}
    indexed = {n for (n,) in con.execute("SELECT number FROM builds").fetchall()}
    for number in indexed - set(on_disk):
        _forget(con, number)
    for number in sorted(set(on_disk) - indexed):
        add_build(con, home, on_disk[number])


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
            f"INSERT INTO {layer.name}_rows BY NAME SELECT COLUMNS(c -> list_contains(?, c)), "
            f"substr(filename, {prefix}) AS shard FROM read_parquet(?, filename=true, union_by_name=true)",
            [_metadata(layer).names, [str(home.resolve() / p) for p in paths]],
        )


def _metadata(layer: Layer) -> pa.Schema:
    """The layer's columns without image bytes; lists lose their fixed size, as they do in Parquet."""
    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(plain(kind.value_type))
        if pa.types.is_struct(kind):
            return pa.struct([pa.field(f.name, plain(f.type)) for f in kind])
        return kind

    return pa.schema([pa.field(f.name, plain(f.type)) for f in layer.fields if f.indexed])


def _unit_row(path: str, m: Manifest) -> tuple[Any, ...]:
    return (
        path, m.key, m.source, m.partition, m.stage, m.stage_version, m.attempt, m.rows_in, m.kept, m.dropped,
        m.failed, m.retryable, m.quarantined, m.seconds,
    )
