"""What changed between two snapshots, and why: a change report that can be read, and asked by SQL's answer.

The invariant: only shards that one snapshot has and the other has not are compared, since shards never change; and a
reason is read from the books, never guessed: a reject's code, or what of a unit's manifest moved.

>>> changes(home, 1, 2)[0]
Change(what='removed', layer='images', source='articles', why='RETRACTED', n=3, example='PMC1001/fig1')
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from catalog.catalog import reader
from catalog.manifest import Manifest, read_manifest
from catalog.schema import LAYERS
from catalog.segments import names
from catalog.views import all_rows
from infra.errors import ConfigError

GONE = "no longer in the source"
UNIT = {
    "stage_version": "a new version of the stage", "params": "other parameters", "ingredients": "other {names}",
    "inputs": "what it reads changed", "attempt": "tried again",
}
"""Field of a manifest that moved -> why its rows did; the first that differs is told."""

_SHARDS = """SELECT s.id FROM shards s JOIN build_units b ON s.unit = b.unit JOIN units u ON u.id = s.unit
WHERE b.build = {build} AND s.layer = '{layer}' AND NOT u.quarantined"""


@dataclass(frozen=True)
class Change:
    """Rows of a layer that were added, removed or changed, of one source and for one reason."""

    what: Literal["added", "removed", "changed"]
    layer: str
    source: str
    why: str
    n: int
    example: str


def changes(home: Path, before: int, after: int) -> list[Change]:
    """The changes, most rows first within a layer. Raises ConfigError for a snapshot there is not."""
    with reader(home, before), reader(home, after) as con:
        segments = names(con)
        said = _reasons(con, home, before, after)
        rejected = _rejected(con, segments, after)
        found = []
        for layer in LAYERS:
            if layer != "rejects":
                found += list(_changed(con, segments, layer, (before, after), said, rejected))
    return sorted(found, key=lambda c: (list(LAYERS).index(c.layer), -c.n, c.what, c.source, c.why))


def _changed(
    con: Any, segments: list[str], layer: str, pair: tuple[int, int], said: dict[tuple[str, str], str],
    rejected: dict[tuple[str, str], str],
) -> Iterator[Change]:
    before, after = pair
    parts = all_rows(layer, segments)
    shards = {build: _SHARDS.format(build=build, layer=layer) for build in pair}
    old, new = (
        f"(SELECT * FROM ({parts}) WHERE shard_id IN ({shards[a]}) AND shard_id NOT IN ({shards[b]}))"
        for a, b in ((before, after), (after, before))
    )
    key = LAYERS[layer].key
    same = " AND ".join(f'o."{name}" = n."{name}"' for name in key)
    columns = [f.name for f in LAYERS[layer].fields if f.indexed and f.name not in key]
    moved = " OR ".join(f'o."{name}" IS DISTINCT FROM n."{name}"' for name in columns)
    item = "source_item" if layer == "images" else f'"{key[-1]}"'
    sql = f"""SELECT CASE WHEN o.shard_id IS NULL THEN 'added' WHEN n.shard_id IS NULL THEN 'removed'
      ELSE 'changed' END,
      coalesce(nu.source, ou.source), coalesce(nu.stage, ou.stage), coalesce(o.{item}, n.{item})::VARCHAR
      FROM {old} o FULL JOIN {new} n ON {same}
      LEFT JOIN shards os ON os.id = o.shard_id LEFT JOIN units ou ON ou.id = os.unit
      LEFT JOIN shards ns ON ns.id = n.shard_id LEFT JOIN units nu ON nu.id = ns.unit
      WHERE o.shard_id IS NULL OR n.shard_id IS NULL OR {moved or 'false'}"""
    counts: Counter[tuple[str, str, str]] = Counter()
    example: dict[tuple[str, str, str], str] = {}
    for what, source, stage, name in con.execute(sql).fetchall():
        why = said.get((source, stage), "new" if what == "added" else GONE)
        if stage == "ingest":
            why = {"added": "new in the source", "removed": rejected.get((source, name), GONE)}.get(what, why)
        group = (what, source, why)
        counts[group] += 1
        example[group] = min(example.get(group, name), name)
    for (what, source, why), n in counts.items():
        yield Change(what, layer, source, why, n, example[what, source, why])  # type: ignore[arg-type]


def _rejected(con: Any, segments: list[str], build: int) -> dict[tuple[str, str], str]:
    """(source, item) -> why the later snapshot rejects it."""
    parts = all_rows("rejects", segments)
    shards = _SHARDS.format(build=build, layer="rejects").replace(" AND NOT u.quarantined", "")
    rows = con.execute(f"SELECT source, item, code FROM ({parts}) WHERE shard_id IN ({shards})").fetchall()
    return {(source, item): code for source, item, code in rows}


def _reasons(con: Any, home: Path, before: int, after: int) -> dict[tuple[str, str], str]:
    """(source, stage) -> what moved, for the first unit of a partition that both snapshots have and that differs."""
    sql = """SELECT o.source, o.stage, min(o.path), min_by(n.path, o.path) FROM units o JOIN units n
      ON o.source = n.source AND o.stage = n.stage AND o.partition = n.partition AND o.path <> n.path
      WHERE o.id IN (SELECT unit FROM build_units WHERE build = ?) AND n.id IN
      (SELECT unit FROM build_units WHERE build = ?) GROUP BY 1, 2"""
    found = {}
    for source, stage, old, new in con.execute(sql, [before, after]).fetchall():
        found[source, stage] = _moved(read_manifest(home, old), read_manifest(home, new))
    return found


def _moved(old: Manifest, new: Manifest) -> str:
    for field, words in UNIT.items():
        was, now = getattr(old, field), getattr(new, field)
        if was != now:
            names = [n for n in sorted({*was, *now}) if was.get(n) != now.get(n)] if field == "ingredients" else []
            return words.format(names=", ".join(names))
    return "built again"


def both(home: Path, before: int | None, after: int | None) -> tuple[int, int]:
    """The two snapshots meant: by default the newest and the one before it. Raises ConfigError where there is none."""
    with reader(home) as con:
        known = [n for (n,) in con.execute("SELECT number FROM builds WHERE status = 'snapshot' ORDER BY 1").fetchall()]
    if after is None:
        after = known[-1]
    earlier = [n for n in known if n < after]
    if before is None:
        if not earlier:
            raise ConfigError(f"snapshot {after} is the first; there is nothing to compare it with")
        before = earlier[-1]
    return before, after
