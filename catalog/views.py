"""The tables of the catalog's index and the views that people ask.

The invariant: a view shows one snapshot, the newest or the one that the variable `snapshot` names, and nothing of units
that were quarantined but their rejects.

Rows lie in segments (catalog/segments.py), those of large ones in tables `<layer>_rows`, which the index itself has too
for what was just inserted. A layer's view is all of them together, cut to the shards of the snapshot. Rows name their
shard by a small number, which costs less than a path to store and to compare.

>>> query(home, "SELECT sample_id, caption, regions FROM samples WHERE modality = 'CT'")
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from catalog.schema import LAYERS, Layer
from infra.keys import sha256

FORMAT = 3
"""Of the index's tables; an index of another format is made again from the files."""

NEW = "new"
"""What the names of small segments begin with, and what stands for all of them."""

TABLES = """
CREATE TABLE IF NOT EXISTS format (number INTEGER, views VARCHAR);
CREATE TABLE IF NOT EXISTS builds (number INTEGER, status VARCHAR, name VARCHAR, created_at VARCHAR);
CREATE TABLE IF NOT EXISTS validations (build INTEGER, layer VARCHAR, expectation VARCHAR, critical BOOLEAN,
  success BOOLEAN, unexpected BIGINT, detail VARCHAR);
CREATE TABLE IF NOT EXISTS units (id INTEGER, path VARCHAR, key VARCHAR, source VARCHAR, partition VARCHAR,
  stage VARCHAR, stage_version VARCHAR, attempt INTEGER, rows_in BIGINT, kept BIGINT, dropped BIGINT, failed BIGINT,
  retryable BIGINT, quarantined BOOLEAN, seconds DOUBLE);
CREATE TABLE IF NOT EXISTS build_units (build INTEGER, unit INTEGER);
CREATE TABLE IF NOT EXISTS shards (id INTEGER, path VARCHAR, layer VARCHAR, unit INTEGER, rows BIGINT, bytes BIGINT,
  sha256 VARCHAR);
CREATE TABLE IF NOT EXISTS segments (name VARCHAR, rows BIGINT);
"""

_SNAPSHOT = """
CREATE OR REPLACE VIEW snapshot AS SELECT coalesce(getvariable('snapshot')::INTEGER,
  (SELECT max(number) FROM builds WHERE status = 'snapshot')) AS number;
CREATE OR REPLACE VIEW current_units AS SELECT u.* FROM units u
  WHERE u.id IN (SELECT unit FROM build_units WHERE build = (SELECT number FROM snapshot));
CREATE OR REPLACE VIEW funnel AS SELECT * FROM (SELECT source, stage, count(*) AS partitions,
  sum(rows_in)::BIGINT AS rows_in, sum(kept)::BIGINT AS kept,
  sum(dropped)::BIGINT AS dropped, sum(failed)::BIGINT AS failed,
  sum(quarantined::INTEGER)::BIGINT AS quarantined, sum(rows_in) = sum(kept) + sum(dropped) + sum(failed) AS balanced
  FROM current_units GROUP BY ALL) ORDER BY source, stage <> 'ingest', stage;
"""

_FOR_PEOPLE = """
CREATE OR REPLACE VIEW samples AS SELECT i.*, t.caption, t.n_texts, r.regions, r.n_regions, l.labels, c.support
  FROM images i
  LEFT JOIN (SELECT sample_id, count(*) AS n_texts, min_by(text, (CASE kind WHEN 'global' THEN 0
      WHEN 'original_caption' THEN 1 WHEN 'variant' THEN 2 ELSE 3 END, kind, text_id)) AS caption
    FROM texts GROUP BY sample_id) t USING (sample_id)
  LEFT JOIN (SELECT sample_id, list(DISTINCT label ORDER BY label) AS regions, count(*) AS n_regions
    FROM rois GROUP BY sample_id) r USING (sample_id)
  LEFT JOIN (SELECT sample_id, list(DISTINCT name ORDER BY name) AS labels
    FROM labels WHERE value = 'present' GROUP BY sample_id) l USING (sample_id)
  LEFT JOIN (SELECT sample_id, min(value) AS support FROM checks WHERE "check" = 'support' GROUP BY sample_id) c
    USING (sample_id);
CREATE OR REPLACE VIEW costs AS SELECT generator, model, kind, count(*) AS texts, sum(tokens_in)::BIGINT AS tokens_in,
  sum(tokens_out)::BIGINT AS tokens_out, sum(cost_usd) AS cost_usd FROM texts WHERE generator <> 'source'
  GROUP BY ALL ORDER BY cost_usd DESC NULLS LAST, generator, kind;
CREATE OR REPLACE VIEW licences AS SELECT source, licence_image, licence_text, licence_annotation,
  count(*) AS samples, min(licence_evidence) AS evidence FROM images GROUP BY ALL ORDER BY ALL;
CREATE OR REPLACE VIEW missing AS
  SELECT source, stage, code AS what, min(message) AS why, count(*) AS n, any_value(item) AS example FROM rejects
    GROUP BY source, stage, code
  UNION ALL SELECT i.source, 'ground', 'no region', coalesce(c.detail, 'no stage looked for any'), count(*),
    min(i.sample_id) FROM images i LEFT JOIN (SELECT sample_id, string_agg(detail, '; ' ORDER BY "check") AS detail
      FROM checks WHERE "check" IN ('roi_status', 'volume_status') GROUP BY sample_id) c USING (sample_id)
    WHERE i.sample_id NOT IN (SELECT sample_id FROM rois) GROUP BY ALL
  UNION ALL SELECT source, 'caption', 'no text', 'no stage wrote one and the source gives none', count(*),
    min(sample_id) FROM images WHERE sample_id NOT IN (SELECT sample_id FROM texts) GROUP BY source
  ORDER BY 1, 2, n DESC, 3, 4;
"""


def metadata(layer: Layer) -> pa.Schema:
    """The layer's columns that are indexed; lists lose their fixed size, as they do in Parquet."""
    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(plain(kind.value_type))
        if pa.types.is_struct(kind):
            return pa.struct([pa.field(f.name, plain(f.type)) for f in kind])
        return kind

    return pa.schema([pa.field(f.name, plain(f.type)) for f in layer.fields if f.indexed])


def make_tables(con: Any, database: str = "") -> None:
    """The tables of rows, empty where they are new, with the columns of the schema as it is now."""
    prefix = f"{database}." if database else ""
    for layer in LAYERS.values():
        con.register("empty", metadata(layer).empty_table())
        table = f"{prefix}{layer.name}_rows"
        con.execute(f"CREATE TABLE IF NOT EXISTS {table} AS SELECT *, 0::INTEGER AS shard_id FROM empty")
        has = {name for name, *_ in con.execute(f"DESCRIBE {table}").fetchall()}
        for name, kind, *_ in con.execute("DESCRIBE empty").fetchall():
            if name not in has:  # a catalog of an older schema
                con.execute(f'ALTER TABLE {table} ADD COLUMN "{name}" {kind}')
        con.unregister("empty")


def drop_all(con: Any) -> None:
    """Drop all tables and views of the connection's own database."""
    mine = "database_name = current_database() AND schema_name = current_schema()"
    for kind in ("view", "table"):
        found = con.execute(f"SELECT {kind}_name FROM duckdb_{kind}s() WHERE NOT internal AND {mine}").fetchall()
        for (name,) in found:
            con.execute(f'DROP {kind} "{name}"')


def make_views(con: Any, segments: Sequence[str]) -> None:
    """All views, over the index's own rows and those of these attached segments."""
    con.execute(_views(segments))
    con.execute("UPDATE format SET views = ?", [sha256(_views(segments).encode())])


def views_stand(con: Any, segments: Sequence[str]) -> bool:
    """Whether all is as `make_tables` and `make_views` would make it: the views name every column of the schema."""
    stand: tuple[str | None] = con.execute("SELECT views FROM format").fetchone()
    return stand == (sha256(_views(segments).encode()),)


def _views(segments: Sequence[str]) -> str:
    return "".join((_SNAPSHOT, *(f"{''.join(_layer(layer, segments))};" for layer in LAYERS.values()), _FOR_PEOPLE))


def all_rows(layer: str, segments: Sequence[str]) -> str:
    """The SELECT of all rows of a layer that the index and its segments hold, of whatever snapshot, with shard_id."""
    tables = dict.fromkeys((f"{layer}_rows", *(rows_in(name, layer) for name in segments)))
    return " UNION ALL BY NAME ".join(f"SELECT * FROM {table}" for table in tables)


def rows_in(segment: str, layer: str) -> str:
    """The table of a segment's rows; all small segments have one, it is of the connection."""
    return f"temp.main.{layer}_new" if segment.startswith(NEW) else f"{segment}.{layer}_rows"


def _layer(layer: Layer, segments: Sequence[str]) -> Iterator[str]:
    columns = ", ".join(f'r."{name}"' for name in metadata(layer).names)
    # the rejects of a quarantined unit must be seen, its rows must not
    hidden = "" if layer.name == "rejects" else "AND NOT u.quarantined"
    yield f"CREATE OR REPLACE VIEW {layer.name} AS SELECT {columns}, s.path AS shard FROM "
    yield f"({all_rows(layer.name, segments)}) r JOIN "
    yield (
        f"(SELECT s.id, s.path FROM shards s JOIN current_units u ON s.unit = u.id "
        f"WHERE s.layer = '{layer.name}' {hidden}) s ON r.shard_id = s.id"
    )
