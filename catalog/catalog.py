"""The catalog: an index over builds, manifests and the metadata columns of shards that answers SQL.

Everything in it can be made again from the files (`rebuild`). One short-lived writer brings it up to date; readers see
the last commit, so an open notebook never blocks a build. Where it stands is chosen by address (catalog/index.py): a
DuckDB file, or a DuckLake on Postgres. Every layer is a view by its name, over the newest snapshot or the one that
`at` names; `images` has all columns but the bytes, and `shard`, the file they lie in. Further views are for people:
`samples`, `funnel`, `costs`, `licences`, `missing` (catalog/views.py).

The invariant: an answer is that of one committed state, and no question changes it or reaches beyond it
(catalog/fence.py).

>>> query(home, "SELECT modality, count(*) AS n FROM images GROUP BY 1 ORDER BY 2 DESC").to_pylist()
[{'modality': 'CT', 'n': 41}]
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from catalog.builds import Build, numbers, read_build
from catalog.fence import CatalogError as CatalogError
from catalog.fence import close_off, limited, require_select
from catalog.index import FILE as FILE
from catalog.index import PUBLISHED as PUBLISHED
from catalog.index import index_of
from catalog.manifest import Manifest, read_manifest
from catalog.schema import LAYERS, Layer
from catalog.segments import quoted
from catalog.views import FORMAT, TABLES, drop_all, make_tables, make_views, metadata, views_stand
from infra import mirror
from infra.errors import ConfigError

SECONDS = 600.0
"""A question may take so long."""
BATCH = 200_000
"""Rows that are held in memory while they are read from shards; without pixels, some hundred bytes each."""


class NothingYet(CatalogError):
    """No build of this home was ever committed to its catalog."""

    def __init__(self, home: Path) -> None:
        said = f"has no snapshot yet: run `medloom build RECIPE --home {home}`"
        if numbers(home):  # a first build is recorded and not published yet
            said = ("has a build that its catalog does not show yet: ask again when it has ended; if it was killed, "
                    f"run `medloom catalog rebuild --home {home}`")
        super().__init__(f"{home} {said}")


def query(home: Path, sql: str, at: int | None = None, seconds: float = SECONDS) -> pa.Table:
    """The answer to one SELECT over the catalog, which cannot reach files, the network or the settings.

    Columns of one name are told apart by a number: id, id_1. Raises CatalogError with DuckDB's words when it cannot be
    answered, or not within so many seconds and the memory that MEDLOOM_SQL_MEMORY grants (default 4GB).
    """
    import duckdb

    with reader(home, at) as con:
        try:
            require_select(con, sql)
            with limited(con, seconds):
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
def reader(home: Path, at: int | None = None, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[Any]:
    """A fenced read-only DuckDB connection to the last commit, with these settings beside the usual ones.

    Raises ConfigError for a snapshot there is not.
    """
    index = index_of(home)
    opened = index.open()
    if opened is None:
        raise NothingYet(home)
    with opened as con:
        for name, value in settings.items():
            con.execute(f"SET {name} = '{quoted(value)}'")
        close_off(con, index.folders())
        if at is not None:
            snapshots = con.execute("SELECT number FROM builds WHERE status = 'snapshot' ORDER BY 1")
            known = [n for (n,) in snapshots.fetchall()]
            if at not in known:
                raise ConfigError(f"there is no snapshot {at}; known: {', '.join(map(str, known)) or 'none'}")
            con.execute(f"SET VARIABLE snapshot = {at:d}")
        yield con


@contextmanager
def writer(home: Path, afresh: bool = False) -> Iterator[Any]:
    """The one short-lived writer, brought up to date with the files; readers see what it wrote when it ends well.

    All of it is one transaction. `afresh` forgets what the index held. Waits for another one, then raises CatalogError.
    """
    with index_of(home).writing(afresh) as con:
        _prepare(con, home)
        _sync(con, home)
        yield con


def refresh(home: Path) -> None:
    """Bring the catalog up to date with the files, for readers to see."""
    with writer(home):
        pass


def rebuild(home: Path) -> None:
    """Make the catalog again from builds, manifests and shards alone."""
    with writer(home, afresh=True):
        pass


def published(home: Path) -> set[int]:
    """Numbers of the builds that readers see."""
    try:
        with reader(home) as con:
            return {number for (number,) in con.execute("SELECT number FROM builds").fetchall()}
    except NothingYet:
        return set()


def add_build(con: Any, home: Path, build: Build) -> None:
    """Index a build inside a writer: its units, their shards' rows, its validations. Adding it twice is adding it."""
    con.register("named", pa.table({"path": pa.array(build.units, pa.string())}))
    known = con.execute("SELECT path, id FROM named LEFT JOIN units USING (path)").to_arrow_table()
    con.register("named", known)
    unknown = known.filter(known["id"].is_null())["path"].to_pylist()
    fresh = [(path, read_manifest(home, path)) for path in sorted(unknown)]
    (unit,) = con.execute("SELECT coalesce(max(id), 0) FROM units").fetchone()
    numbered = list(enumerate(fresh, unit + 1))
    _insert(con, "units", [(number, *_unit_row(path, m)) for number, (path, m) in numbered])
    (shard,) = con.execute("SELECT coalesce(max(id), 0) FROM shards").fetchone()
    shards = [
        (number, s.path, s.layer, unit, s.rows, s.bytes, s.sha256)
        for number, (unit, s) in enumerate(((n, s) for n, (_, m) in numbered for s in m.shards), shard + 1)
    ]
    _insert(con, "shards", shards)
    _load(con, home, [(path, LAYERS[layer], number) for number, path, layer, *_ in shards])
    _forget(con, build.number)
    _insert(con, "builds", [(build.number, build.status, build.name, build.created_at)])
    con.execute(
        f"INSERT INTO build_units SELECT {build.number:d}, id FROM named WHERE id IS NOT NULL "
        f"UNION ALL SELECT {build.number:d}, id FROM units WHERE id > {unit:d}"
    )
    con.unregister("named")
    _insert(con, "validations", [(build.number, *v.model_dump().values()) for v in build.validations])


def _prepare(con: Any, home: Path) -> None:
    """Tables and views; an index of an older form is emptied, to be filled from the files. Refuses a newer one."""
    known = _format(con)
    if known is not None and known > FORMAT:
        raise CatalogError(f"the catalog of {home} was written by a newer medloom; update this one")
    if known != FORMAT:
        drop_all(con)
        con.execute(TABLES)
        con.execute(f"INSERT INTO format VALUES ({FORMAT}, NULL)")
    attached = index_of(home).attach(con)
    if not views_stand(con, attached):
        make_tables(con)
        make_views(con, attached)


def _format(con: Any) -> int | None:
    """Of the index's tables; None where there are none."""
    import duckdb

    try:
        found: tuple[int] | None = con.execute("SELECT number FROM format").fetchone()
    except duckdb.CatalogException:
        return None
    return found[0] if found else None


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


def _load(con: Any, home: Path, shards: Sequence[tuple[str, Layer, int]]) -> None:
    """Copy the metadata columns of these shards (path, layer, id) into the index.

    Many rows at a time: a lake makes a file of each insert.
    """
    index, held = index_of(home), dict[str, list[pa.Table]]()

    def insert() -> None:
        index.insert(con, {name: pa.concat_tables(t, promote_options="default") for name, t in held.items()})
        held.clear()

    for path, layer, number in sorted(shards, key=lambda shard: list(LAYERS).index(shard[1].name)):
        table = _read(home, path, metadata(layer).names)
        ids = pa.repeat(pa.scalar(number, pa.int32()), table.num_rows)
        held.setdefault(layer.name, []).append(table.append_column("shard_id", ids))
        if sum(t.num_rows for tables in held.values() for t in tables) >= BATCH:
            insert()
    if held:
        insert()


def _read(home: Path, path: str, columns: Sequence[str]) -> pa.Table:
    """Those of the columns that the shard has; of small row groups, this reads twice as fast as DuckDB does.

    Of a shard that lies in a bucket only these columns are fetched.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(mirror.opened(home / path), memory_map=True, pre_buffer=True) as file:
        has = set(file.schema_arrow.names)
        return file.read([name for name in columns if name in has])


def _unit_row(path: str, m: Manifest) -> tuple[Any, ...]:
    return (
        path, m.key, m.source, m.partition, m.stage, m.stage_version, m.attempt, m.rows_in, m.kept, m.dropped,
        m.failed, m.retryable, m.quarantined, m.seconds,
    )
