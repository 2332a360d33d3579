"""What the pages ask the catalog: every question fenced, with a time limit, and with errors as words.

The invariant: a condition passes the fence (catalog/fence.py) and is tried as one expression over `images`, as an
export's is, before it becomes part of a question, which has a time limit; an id is never written into SQL but as a
quoted literal.

>>> page_of(home, "modality = 'CT'", page=1)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.catalog import CatalogError, query, reader
from catalog.fence import require_condition

SECONDS = 10.0
PER_PAGE = 24
ROWS = 500
"""Rows of a free question that are shown."""
EVERYTHING = "true"
NEAR = 9
"""Slices or figures shown of the same scan or article."""

Row = Mapping[str, Any]
Rows = Sequence[Row]

_ORDER = "source, group_id, volume_id NULLS LAST, view, slice_index, sample_id"
_TEXTS_FIRST = """list_position(['original_caption', 'report', 'findings', 'impression', 'global', 'region',
  'relation'], kind) NULLS LAST, kind, generator, text_id"""


@dataclass(frozen=True)
class Page:
    """One page of the grid."""

    rows: Rows
    total: int
    number: int
    """from 1"""

    @property
    def last(self) -> int:
        return max(1, -(-self.total // PER_PAGE))

    @property
    def first(self) -> int:
        """Place of its first sample among all, from 0."""
        return (self.number - 1) * PER_PAGE


def literal(text: str) -> str:
    """An SQL string that stands for exactly this text. Raises CatalogError for what SQL cannot hold."""
    if "\0" in text:
        raise CatalogError("a null character is in no id and no condition")
    return "'" + text.replace("'", "''") + "'"


def condition(home: Path, where: str, at: int | None) -> str:
    """The condition, in brackets, once it was read as one expression that asks no more than a question may.

    Raises CatalogError with what it may not ask, or with DuckDB's words.
    """
    import duckdb

    where = where.strip() or EVERYTHING
    with reader(home, at) as con:
        try:
            require_condition(con, where)
            con.view("images").filter(where)
        except duckdb.Error as error:
            raise CatalogError(f"this is no condition over images: {error}") from None
    return f"(\n{where}\n)"


def ask(home: Path, sql: str, at: int | None = None) -> list[dict[str, Any]]:
    """The rows of one SELECT within the time limit."""
    rows: list[dict[str, Any]] = query(home, sql, at, SECONDS).to_pylist()
    return rows


def page_of(home: Path, where: str, page: int, at: int | None = None) -> Page:
    """The samples of one page under a condition; a page beyond the last is the last."""
    picked = condition(home, where, at)
    total = ask(home, f"SELECT count(*) AS n FROM images WHERE {picked}", at)[0]["n"]
    number = min(max(1, page), max(1, -(-total // PER_PAGE)))
    rows = ask(home, f"""
        WITH chosen AS (SELECT * FROM images WHERE {picked} ORDER BY {_ORDER}
          LIMIT {PER_PAGE} OFFSET {(number - 1) * PER_PAGE})
        SELECT sample_id, source, source_item, modality, view, slice_index, width, height,
          (SELECT count(*) FROM rois r WHERE r.sample_id = c.sample_id) AS regions,
          (SELECT count(*) FROM texts t WHERE t.sample_id = c.sample_id) AS texts,
          (SELECT min(value) FROM checks k WHERE k.sample_id = c.sample_id AND "check" = 'support') AS support,
          (SELECT min_by(text, (CASE kind WHEN 'global' THEN 0 WHEN 'original_caption' THEN 1 ELSE 2 END, kind,
            text_id)) FROM texts t WHERE t.sample_id = c.sample_id) AS caption
        FROM chosen c ORDER BY {_ORDER}""", at)
    return Page(rows, total, number)


def nth(home: Path, where: str, place: int, at: int | None = None) -> str | None:
    """sample_id of the sample at a place (from 0) under a condition, in the order of the grid; None beyond the end."""
    rows = ask(home, f"SELECT sample_id FROM images WHERE {condition(home, where, at)} ORDER BY {_ORDER} "
                     f"LIMIT 1 OFFSET {max(0, place)}", at)
    return rows[0]["sample_id"] if rows else None


def table(home: Path, sql: str, at: int | None = None) -> tuple[list[str], list[list[Any]], bool]:
    """Columns, rows and whether there are more rows, of one free SELECT."""
    literal(sql)
    select = sql.strip().rstrip(";").strip()
    found = query(home, f"SELECT * FROM (\n{select}\n) LIMIT {ROWS + 1}", at, SECONDS)
    rows = [list(row.values()) for row in found.to_pylist()]
    return list(found.column_names), rows[:ROWS], len(rows) > ROWS


@dataclass(frozen=True)
class Whole:
    """Everything said about one sample."""

    image: Row
    labels: Rows
    rois: Rows
    texts: Rows
    checks: Mapping[str, Rows]
    """text_id, or "" for the sample -> its checks"""
    passages: Rows
    measures: Mapping[str, Rows]
    """roi_id -> what was measured on it"""
    volume: Row | None
    article: Row | None
    near: Rows
    """samples of the same scan, figure, article or group"""
    near_by: str
    """what they have in common"""


def whole(home: Path, sample_id: str, at: int | None = None) -> Whole:
    """Everything about a sample. Raises CatalogError for an id that the snapshot does not hold."""
    with reader(home, at) as con:
        return _whole(con, literal(sample_id))


def _whole(con: Any, name: str) -> Whole:
    """Everything about the sample that the literal `name` stands for; one connection, which costs more than a row."""
    def of(layer: str, order: str) -> list[dict[str, Any]]:
        return _rows(con, f"SELECT * FROM {layer} WHERE sample_id = {name} ORDER BY {order}")

    images = of("images", "sample_id")
    if not images:
        raise CatalogError("no sample of that id is in this snapshot")
    image = images[0]
    checks: dict[str, list[Row]] = {}
    for row in of("checks", '"check"'):
        checks.setdefault(row["text_id"], []).append(row)
    measures: dict[str, list[Row]] = {}
    for row in of("measures", "other_roi_id NULLS FIRST, name"):
        measures.setdefault(row["roi_id"], []).append(row)
    near_by, near = _near(con, image)
    return Whole(
        image, of("labels", "origin, name, label_id"), of("rois", "area_fraction DESC, roi_id"),
        of("texts", _TEXTS_FIRST), checks, of("passages", "rank"), measures,
        _one(con, "volumes", "volume_id", image["volume_id"]),
        _one(con, "articles", "article_id", image["article_id"]), near, near_by,
    )


def _rows(con: Any, sql: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = con.execute(sql).to_arrow_table().to_pylist()
    return found


def _one(con: Any, layer: str, column: str, id: str | None) -> Row | None:
    if id is None:
        return None
    rows = _rows(con, f"SELECT * FROM {layer} WHERE {column} = {literal(id)} LIMIT 1")
    return rows[0] if rows else None


def _near(con: Any, image: Row) -> tuple[str, Rows]:
    """What the sample's nearest kin have in common, and they: the closest slices, or the first others."""
    for column, words in (
        ("volume_id", "of the same scan"), ("parent_id", "of the same figure"), ("article_id", "of the same article"),
        ("group_id", "of the same group (patient, article or video)"),
    ):
        if image[column] is None:
            continue
        here = image["slice_index"] or 0
        rows = _rows(con, f"""
            SELECT * FROM (SELECT sample_id, view, slice_index, source_item FROM images
              WHERE {column} = {literal(image[column])} AND source = {literal(image["source"])}
                AND sample_id <> {literal(image["sample_id"])}
              ORDER BY view IS DISTINCT FROM {literal(image["view"] or "")},
                abs(coalesce(slice_index, 0) - {int(here)}), sample_id LIMIT {NEAR})
            ORDER BY view, slice_index, sample_id""")
        if rows:
            return words, rows
    return "", ()


def queue(home: Path, at: int | None = None, limit: int = 300) -> list[dict[str, Any]]:
    """What a person should look at first: (about, sample_id, why, rank), the most doubtful first.

    Texts with a problem, then texts by rising support, then pictures whose regions break rules of anatomy or on which
    experts disagree, each reason in the order of its figure; ties by sample and id.
    """
    return ask(home, f"""
        WITH doubts AS (
          SELECT 'text:' || text_id AS about, sample_id, 0 AS rank, 0.0 AS value, min(coalesce(detail, "check")) AS why
            FROM checks WHERE "check" LIKE 'problem/%' GROUP BY 1, 2
          UNION ALL SELECT 'text:' || text_id, sample_id, 1, value, 'support ' || round(value, 2) ||
            coalesce(': ' || detail, '') FROM checks WHERE "check" = 'support' AND value < 1
          UNION ALL SELECT 'sample:' || sample_id, sample_id, 2, -value, replace("check", '_', ' ') || ' ' ||
            round(value, 2) || coalesce(': ' || detail, '') FROM checks
            WHERE ("check" LIKE 'roi\\_plausible/%' ESCAPE '\\' OR "check" LIKE 'volume\\_plausible/%' ESCAPE '\\')
              AND value > 0
          UNION ALL SELECT 'sample:' || sample_id, sample_id, 3, value, replace("check", '_', ' ') || ' ' ||
            round(value, 2) || coalesce(': ' || detail, '') FROM checks
            WHERE ("check" LIKE 'agreement/%' OR "check" LIKE 'volume\\_agreement/%' ESCAPE '\\') AND value < 1
          UNION ALL SELECT 'text:' || text_id, sample_id, 4, 0.0, "check" || ' failed' || coalesce(': ' || detail, '')
            FROM checks WHERE verdict = 'fail' AND text_id <> '' AND "check" <> 'support'
              AND "check" NOT LIKE 'problem/%' AND "check" NOT LIKE 'claim/%' AND "check" NOT LIKE 'review/%'
        ), first AS (SELECT * FROM doubts
          QUALIFY row_number() OVER (PARTITION BY sample_id, about ORDER BY rank, value, why) = 1)
        SELECT about, f.sample_id, why, rank, i.source, i.modality,
          (SELECT text FROM texts t WHERE t.sample_id = f.sample_id AND 'text:' || text_id = about LIMIT 1) AS text
        FROM first f JOIN images i ON i.sample_id = f.sample_id
        ORDER BY rank, value, f.sample_id, about LIMIT {int(limit)}""", at)


def said(check: Row) -> str:
    """The detail of a check in words: of a claim its text and the reason, else the detail as it stands."""
    detail = check["detail"]
    if not detail or not detail.startswith("{"):
        return detail or ""
    try:
        told = json.loads(detail)
    except ValueError:
        return str(detail)
    reason = f": {told['reason']}" if told.get("reason") else ""
    return f"“{told['text']}”{reason}" if isinstance(told, dict) and "text" in told else str(detail)
