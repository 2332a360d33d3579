"""What a flow run shows in the UI of Prefect when its snapshot is made: the dashboard, tables, sheets and the report.

Plain functions from a snapshot to artifacts, without Prefect: `flows/flow.py` hands them over. The invariant: every
figure is SQL over the catalog's views, and nothing that a source or a model wrote can act as markup.

>>> [artifact.key for artifact in artifacts(home, build, "http://127.0.0.1:4201")]
['dashboard', 'funnel', 'rejects', 'contact-sheet', 'review-sheet', 'report']
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from catalog import report, review_sheet, sheet
from catalog.builds import Build
from catalog.catalog import reader

MOST_ROWS = 40
"""Rows of a table of the dashboard."""

_TOTALS = """
SELECT (SELECT count(*) FROM images) AS samples, (SELECT count(*) FROM rois) AS regions,
  (SELECT count(*) FROM texts) AS texts, (SELECT count(*) FROM rejects) AS rejects,
  (SELECT sum(cost_usd) FROM texts) AS usd, (SELECT sum(seconds) FROM current_units) AS seconds,
  (SELECT count(*) FROM current_units WHERE quarantined) AS quarantined"""
_FUNNEL = """
SELECT stage, sum(partitions)::BIGINT AS partitions, sum(rows_in)::BIGINT AS "rows in", sum(kept)::BIGINT AS kept,
  sum(dropped)::BIGINT AS dropped, sum(failed)::BIGINT AS failed, sum(quarantined)::BIGINT AS "quarantined partitions"
FROM funnel GROUP BY 1 ORDER BY stage <> 'ingest', 1"""
_COST = """
SELECT u.stage, coalesce(t.model, 'no model') AS model, count(*) AS texts, sum(t.tokens_in)::BIGINT AS "tokens in",
  sum(t.tokens_out)::BIGINT AS "tokens out", round(sum(t.cost_usd), 4) AS USD,
  round(1000 * sum(t.cost_usd) / count(*), 4) AS "USD per 1000 texts"
FROM texts t JOIN shards s ON s.path = t.shard JOIN current_units u ON u.id = s.unit
WHERE t.generator <> 'source' GROUP BY 1, 2 ORDER BY USD DESC NULLS LAST, 1, 2"""
_THROUGHPUT = """
SELECT stage, count(*) AS units, sum(rows_in)::BIGINT AS rows, round(sum(seconds), 1) AS seconds,
  round(sum(rows_in) / nullif(sum(seconds), 0), 1) AS "rows per second", round(max(seconds), 1) AS "slowest unit, s"
FROM current_units GROUP BY 1 ORDER BY sum(seconds) DESC, 1"""
_DISAGREEMENT = r"""
SELECT replace(split_part("check", '/', 1), '_', ' ') || ' on ' || split_part("check", '/', 2) AS "experts' agreement",
  count(*) AS pictures, round(avg(value), 3) AS mean, round(quantile_cont(value, 0.1), 3) AS "lowest tenth",
  count(*) FILTER (value < 0.5) AS "below 0.5", arg_min(sample_id, (value, sample_id)) AS "worst sample",
  arg_min(detail, (value, sample_id)) AS "of the worst"
FROM checks WHERE "check" LIKE 'agreement/%' OR "check" LIKE 'volume\_agreement/%' ESCAPE '\'
GROUP BY 1 ORDER BY mean, 1"""
_REJECTS = """
SELECT source, stage, outcome, code, count(*) AS rows, count(*) FILTER (retryable) AS "worth a retry",
  arg_min(message, (item, message)) AS example, arg_min(item, (item, message)) AS item
FROM rejects GROUP BY 1, 2, 3, 4 ORDER BY rows DESC, 1, 2, 3, 4"""


@dataclass(frozen=True)
class Artifact:
    """One artifact of a flow run; `data` is markdown, or a table's rows as JSON."""

    key: str
    kind: Literal["markdown", "table"]
    data: str
    about: str


def artifacts(home: Path, made: Build, address: str = "") -> Iterator[Artifact]:
    """The artifacts of a snapshot; `address` is where the reports of the home are served, "" when they are not."""
    with reader(home, made.number) as con:
        rejects = _rows(con, _REJECTS)
        board = _dashboard(con, rejects, home, made, address)
        yield Artifact("dashboard", "markdown", board, "the build at a glance")
        yield Artifact("funnel", "table", _table(_rows(con, "SELECT * FROM funnel")), "what became of every row")
        yield Artifact("rejects", "table", _table(rejects), "what did not make it, and why")
        # the UI shows character references in lists as they stand, and obeys backslashes everywhere
        cards = sheet.markdown(sheet.cards(con, home))
        yield Artifact("contact-sheet", "markdown", cards, "samples with their regions and captions")
        looks = review_sheet.markdown(review_sheet.reviews(con, home))
        yield Artifact("review-sheet", "markdown", looks, "each expert's worst, oddest and random pictures")
    page = report.path(made)
    words = f"[the report of build {made.number}]({_link(home, page, address)})\n\n`{(home / page).resolve()}`"
    yield Artifact("report", "markdown", words, "the report, to be read before the dataset is trusted")


def _dashboard(con: Any, rejects: Sequence[dict[str, Any]], home: Path, made: Build, address: str) -> str:
    (totals,) = _rows(con, _TOTALS)
    page, review = (_link(home, path, address) for path in (report.path(made), review_sheet.path(made)))
    cost = f", {totals['usd']:,.2f} USD" if totals["usd"] is not None else ""
    held = f" **{totals['quarantined']} units are quarantined.**" if totals["quarantined"] else ""
    return "\n\n".join([
        f"**{totals['samples']:,}** samples · **{totals['regions']:,}** regions · **{totals['texts']:,}** texts · "
        f"**{totals['rejects']:,}** rejects · {totals['seconds'] or 0:,.0f} s of work{cost}.{held} "
        f"[The report]({page}) · [pictures of each expert]({review})",
        "## Funnel, by stage", _markdown(_rows(con, _FUNNEL)), "By source as well: the artifact funnel.",
        "## Cost, by stage and model", _markdown(_rows(con, _COST), "No stage wrote a text."),
        "## Throughput, by stage", _markdown(_rows(con, _THROUGHPUT)),
        "Over all units of the snapshot, also those of earlier builds; units of several workers add up.",
        "## Disagreement of experts", _markdown(_rows(con, _DISAGREEMENT), "No picture was seen by two experts."),
        f"[The worst pictures of each expert]({review})",
        "## Rejects, by code", _markdown(rejects, "Nothing was rejected."),
        f"[All rejects and samples of what was kept]({page}#rejects); one item: `medloom locate RECIPE ITEM`",
    ])


def _rows(con: Any, sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = con.execute(sql).to_arrow_table().to_pylist()
    return rows


def _table(rows: Sequence[dict[str, Any]]) -> str:
    return json.dumps(rows, default=str)


def _markdown(rows: Sequence[dict[str, Any]], none: str = "There is nothing.") -> str:
    """Rows as a table in markdown; figures stand on the right."""
    if not rows:
        return none
    right = [all(row[name] is None or isinstance(row[name], int | float) for row in rows) for name in rows[0]]
    lines = [_line(rows[0]), _line(["---:" if is_right else "---" for is_right in right])]
    lines += [_line([_cell(value) for value in row.values()]) for row in rows[:MOST_ROWS]]
    more = f"\n\n{len(rows) - MOST_ROWS} more lines." if len(rows) > MOST_ROWS else ""
    return "\n".join(lines) + more


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int | float) else sheet.plain(str(value))


def _link(home: Path, page: str, address: str) -> str:
    return f"{address}/{page.removeprefix('reports/')}" if address else (home / page).resolve().as_uri()
