"""Segments: files that hold the rows of many shards, so that the index of a large dataset stays small enough to copy.

    HOME/segments/rows_000007.duckdb      tables <layer>_rows, as in the index

The invariant: a segment never changes once the index names it, so any number of readers may have it open while a
writer works. New rows stand in the index itself; once they are more than SPILL they move to a new segment, together
with the segments before it that are smaller than twice what has come together: so there are few, and each row is moved
a few times only. Rows of shards that no build names any more are left behind then. Segments are sorted by shard:
neighbours are alike, so what people count by is small to read (sorted by sample, counting takes four times as long).

A file that neither the index nor its published copy names is left over from a writer that died, or of a merge. In a
bucket, where several machines keep an index each, a segment's name ends with a number drawn by chance.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catalog.fence import CatalogError
from catalog.schema import LAYERS
from catalog.views import make_tables, make_views
from infra import mirror

FOLDER = "segments"
_NAME = re.compile(r"rows_[0-9]{6,9}(_[0-9a-f]{8})?")
SPILL = 50_000
"""Rows in the index, over all layers, from which on they move to a segment."""


def attach(con: Any, home: Path) -> list[str]:
    """Attach the segments that the index of the connection names; returns their names. Raises duckdb.Error."""
    for name in names(con):
        con.execute(f"ATTACH IF NOT EXISTS '{quoted(mirror.local(file_of(home, name)))}' AS {name} (READ_ONLY)")
    return names(con)


def names(con: Any) -> list[str]:
    """The segments that the index of the connection names. Raises CatalogError for a name that we never gave: names
    stand in SQL as they are."""
    found = [name for (name,) in con.execute("SELECT name FROM segments ORDER BY name").fetchall()]
    for name in found:
        if not _NAME.fullmatch(name):
            raise CatalogError(f"{name!r} is no segment of ours; `medloom catalog rebuild` makes the catalog again")
    return found


def file_of(home: Path, name: str) -> Path:
    return home.resolve() / FOLDER / f"{name}.duckdb"


def spill(con: Any, home: Path) -> bool:
    """Move the index's rows to a segment where they are more than so many; whether it did.

    Killed at any point, the index is as it was: the segment counts once the index names it.
    """
    counts = " UNION ALL ".join(f"SELECT count(*) AS n FROM {layer}_rows" for layer in LAYERS)
    (held,) = con.execute(f"SELECT sum(n) FROM ({counts})").fetchone()
    if held <= SPILL:
        return False
    kept = dict(con.execute("SELECT name, rows FROM segments ORDER BY name").fetchall())
    taken, together = [], held
    for name in sorted(kept, reverse=True):
        if kept[name] >= 2 * together:
            break
        taken.append(name)
        together += kept[name]
    number = 1 + max((int(p.stem.split("_")[1]) for p in (home / FOLDER).glob("rows_*.duckdb")), default=0)
    new = f"rows_{number:06d}" + (f"_{secrets.token_hex(4)}" if mirror.remote(home) else "")
    rows = _write(con, home, new, taken)
    con.execute("BEGIN")
    con.execute("DELETE FROM segments WHERE list_contains(?, name)", [taken])
    con.execute("INSERT INTO segments VALUES (?, ?)", [new, rows])
    for layer in LAYERS:
        con.execute(f"DELETE FROM {layer}_rows")
    make_views(con, sorted([*(set(kept) - set(taken)), new]))
    con.execute("COMMIT")
    return True


def _write(con: Any, home: Path, name: str, taken: Sequence[str]) -> int:
    path = file_of(home, name)
    path.parent.mkdir(exist_ok=True)
    con.execute(f"ATTACH '{quoted(path)}' AS {name}; BEGIN")
    make_tables(con, name)
    rows = 0
    for layer in LAYERS:
        parts = [f"SELECT * FROM {layer}_rows", *(f"SELECT * FROM {old}.{layer}_rows" for old in sorted(taken))]
        (count,) = con.execute(
            f"INSERT INTO {name}.{layer}_rows BY NAME SELECT * FROM ({' UNION ALL BY NAME '.join(parts)}) "
            "WHERE shard_id IN (SELECT id FROM shards) ORDER BY shard_id"
        ).fetchone()
        rows += count
    con.execute(f"COMMIT; CHECKPOINT {name}; DETACH {name}")
    con.execute(f"ATTACH '{quoted(path)}' AS {name} (READ_ONLY)")
    return rows


def sweep(home: Path, named: set[str]) -> None:
    """Remove the files of segments that are not named; who has one open keeps it."""
    mirror.discard(home, [
        file.path for file in mirror.listed(home, FOLDER) if Path(file.path).name.partition(".")[0] not in named
    ])


def quoted(path: Path) -> str:
    """A path between the quotes of SQL."""
    return str(path).replace("'", "''")
