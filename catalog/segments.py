"""Segments: files that hold the rows of shards, so that the index stays small enough to copy at each commit.

    HOME/segments/new_000012_5f3a09c1.arrows    few rows: an Arrow stream for each layer, one after the other
    HOME/segments/rows_000007.duckdb            many: tables <layer>_rows, as in the index

The invariant: a segment never changes once the index names it, and a reader maps or opens it at once, so any number of
readers may have it while a writer works and removes it. A commit of few rows writes a small segment. Once small ones
hold more than SPILL rows, or are more than MANY, they become a large one, together with the large ones before that are
smaller than twice what has come together: so there are few, and each row is moved a few times only. So do rows that
were inserted into the index itself. Rows of shards that the index has forgotten are left behind then.

Large segments are sorted by shard: neighbours are alike, so what people count by is small to read (sorted by sample,
counting takes four times as long). What is said about samples is sorted by the first digit of their id before: parts of
a table know the least and the greatest of their values, so one sample is looked for in a sixteenth of the rows.

A file that neither the index nor its published copy names is left over from a writer that died, or of a merge. The name
of a small segment ends with a number drawn by chance, and so does that of a large one in a bucket, where several
machines keep an index each.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog.fence import CatalogError
from catalog.schema import LAYERS, Layer
from catalog.views import NEW, all_rows, make_tables, make_views, metadata, rows_in
from infra import mirror
from infra.storage import write_atomic

FOLDER = "segments"
_NAME = re.compile(rf"(rows|{NEW})_[0-9]{{6,9}}(_[0-9a-f]{{8}})?")
SPILL = 100_000
"""Rows outside large segments, over all layers, from which on they move to one."""
MANY = 32
"""Small segments."""
MARKED = -1
"""In place of a segment's rows: it is written again at the next occasion."""


def attach(con: Any, home: Path) -> list[str]:
    """Open the segments that the index of the connection names; returns what to make views of.

    Raises duckdb.Error, OSError or pa.ArrowException for what cannot be opened.
    """
    large = [name for name in names(con) if not name.startswith(NEW)]
    for name in large:
        con.execute(f"ATTACH IF NOT EXISTS '{quoted(mirror.local(file_of(home, name)))}' AS {name} (READ_ONLY)")
    _show(con, home)
    return [NEW, *large]


def add(con: Any, home: Path, rows: Mapping[str, pa.Table]) -> None:
    """A small segment of these rows, layer -> its table, inside a writer."""
    name = _unused(home, NEW)

    def fill(draft: Path) -> None:
        with pa.OSFile(str(draft), "wb") as file:
            for layer, table in rows.items():
                schema = _schema(LAYERS[layer])
                columns = [
                    table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(len(table), f.type)
                    for f in schema
                ]
                with pa.ipc.new_stream(file, schema.with_metadata({"layer": layer})) as stream:
                    stream.write_table(pa.table(columns, schema).combine_chunks())

    write_atomic(file_of(home, name), fill)
    con.execute("INSERT INTO segments VALUES (?, ?)", [name, sum(len(table) for table in rows.values())])
    _show(con, home, rows)


def _show(con: Any, home: Path, layers: Iterable[str] = LAYERS) -> None:
    """Let the connection see rows of small segments, mapped into memory, as the tables of views.rows_in."""
    found = {layer: [_schema(LAYERS[layer]).empty_table()] for layer in layers}
    for name in names(con):
        if name.startswith(NEW):
            with pa.memory_map(str(mirror.local(file_of(home, name)))) as file:
                while file.tell() < file.size():
                    table = pa.ipc.open_stream(file).read_all()
                    table.validate(full=True)  # who reads it trusts its offsets
                    if (layer := (table.schema.metadata or {}).get(b"layer", b"").decode()) in found:
                        found[layer].append(table.replace_schema_metadata())
    for layer, tables in found.items():
        # a segment of an older schema lacks columns
        con.register(f"{layer}_mapped", pa.concat_tables(tables, promote_options="default"))
    # joins give scans of Arrow filters that those refuse (DuckDB 1.5: BLOOM_FILTER); none passes a window
    con.execute("".join(
        f"CREATE OR REPLACE TEMP VIEW {layer}_{NEW} AS SELECT * EXCLUDE (row) FROM "
        f"(SELECT *, row_number() OVER () AS row FROM temp.main.{layer}_mapped);" for layer in found
    ))


def _schema(layer: Layer) -> pa.Schema:
    return metadata(layer).append(pa.field("shard_id", pa.int32()))


def names(con: Any) -> list[str]:
    """The segments that the index of the connection names. Raises CatalogError for a name that we never gave: names
    stand in SQL as they are."""
    found = [name for (name,) in con.execute("SELECT name FROM segments ORDER BY name").fetchall()]
    for name in found:
        if not _NAME.fullmatch(name):
            raise CatalogError(f"{name!r} is no segment of ours; `medloom catalog rebuild` makes the catalog again")
    return found


def file_of(home: Path, name: str) -> Path:
    return home.resolve() / FOLDER / f"{name}.{'arrows' if name.startswith(NEW) else 'duckdb'}"


def _unused(home: Path, kind: str) -> str:
    """A name that no segment has or had: numbers of small ones begin again once they were merged."""
    number = 1 + max((int(p.stem.split("_")[1]) for p in (home / FOLDER).glob(f"{kind}_*")), default=0)
    return f"{kind}_{number:06d}" + (f"_{secrets.token_hex(4)}" if kind == NEW or mirror.remote(home) else "")


def forget(con: Any) -> None:
    """Forget the rows of units that no build names any more, inside a writer; those in segments go once it commits.

    People may ask for rows of whatever snapshot by the names of their tables, so what was withdrawn must not stay.
    """
    units = "SELECT id FROM units WHERE id NOT IN (SELECT unit FROM build_units)"
    gone = f"SELECT id FROM shards WHERE unit IN ({units})"
    for name in names(con):
        stale = " UNION ALL ".join(
            f"SELECT 1 FROM {rows_in(name, layer)} WHERE shard_id IN ({gone})" for layer in LAYERS
        )
        con.execute(f"UPDATE segments SET rows = {MARKED} WHERE name = ? AND EXISTS ({stale})", [name])
    for layer in LAYERS:
        con.execute(f"DELETE FROM {layer}_rows WHERE shard_id IN ({gone})")
    (last,) = con.execute("SELECT coalesce(max(id), 0) FROM shards").fetchone()
    con.execute(f"DELETE FROM shards WHERE path = '' OR unit IN ({units}); DELETE FROM units WHERE id IN ({units})")
    if con.execute(f"SELECT 1 FROM segments WHERE rows = {MARKED}").fetchone():
        # no new shard may have the number of one whose rows a segment still holds
        con.execute(f"INSERT INTO shards VALUES ({last + 1}, '', '', 0, 0, 0, '')")


def spill(con: Any, home: Path) -> bool:
    """Move rows to a new large segment where it is time, or a segment is marked; whether it did.

    Killed at any point, the index is as it was: the segment counts once the index names it.
    """
    counts = " UNION ALL ".join(f"SELECT count(*) AS n FROM {layer}_rows" for layer in LAYERS)
    (together,) = con.execute(f"SELECT sum(n) FROM ({counts})").fetchone()
    kept = dict(con.execute("SELECT name, rows FROM segments ORDER BY name").fetchall())
    small = {name for name in kept if name.startswith(NEW)}
    together += sum(max(kept[name], 0) for name in small)
    marked = {name for name in kept if kept[name] == MARKED}
    if together <= SPILL and len(small) <= MANY and not marked:
        return False
    taken = small | marked
    for name in sorted(kept.keys() - taken, reverse=True):
        if kept[name] >= 2 * together:
            break
        taken.add(name)
        together += kept[name]
    new = _unused(home, "rows")
    rows = _write(con, home, new, sorted(taken))
    con.execute("BEGIN")
    con.execute("DELETE FROM segments WHERE list_contains(?, name)", [sorted(taken)])
    con.execute("INSERT INTO segments VALUES (?, ?)", [new, rows])
    for layer in LAYERS:
        con.execute(f"DELETE FROM {layer}_rows")
    make_views(con, [NEW, *sorted(kept.keys() - taken), new])
    con.execute("COMMIT")
    return True


def _write(con: Any, home: Path, name: str, taken: Sequence[str]) -> int:
    path = file_of(home, name)
    path.parent.mkdir(exist_ok=True)
    con.execute(f"ATTACH '{quoted(path)}' AS {name}; BEGIN")
    make_tables(con, name)
    rows = 0
    for layer in LAYERS:
        (count,) = con.execute(
            f"INSERT INTO {name}.{layer}_rows BY NAME SELECT * FROM ({all_rows(layer, taken)}) "
            f"WHERE shard_id IN (SELECT id FROM shards) ORDER BY {order(layer)}"
        ).fetchone()
        rows += count
    con.execute(f"COMMIT; CHECKPOINT {name}; DETACH {name}")
    con.execute(f"ATTACH '{quoted(path)}' AS {name} (READ_ONLY)")
    return rows


def order(layer: str) -> str:
    """What the rows of a layer are sorted by in a large segment."""
    about_samples = layer != "images" and "sample_id" in LAYERS[layer].key
    return "left(sample_id, 1), shard_id" if about_samples else "shard_id"


def sweep(home: Path, named: set[str]) -> None:
    """Remove the files of segments that are not named; who has one open keeps it."""
    mirror.discard(home, [
        file.path for file in mirror.listed(home, FOLDER) if Path(file.path).name.partition(".")[0] not in named
    ])


def quoted(path: Path | str) -> str:
    """A path, or other text, between the quotes of SQL."""
    return str(path).replace("'", "''")
