"""The report of a build: one page that a person reads before trusting a dataset.

It shows what is in the build, what became of every row, which expectations are met, what was rejected and why, under
which licences it stands, what it cost, and samples with their regions and captions. The invariant: the page stands
alone. It loads nothing, runs nothing, and whatever a source or a model wrote is shown as text, never as markup.

>>> write(home, build)
>>> (home / path(build)).exists()
True
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from catalog import sheet
from catalog.builds import Build
from catalog.catalog import reader
from catalog.checks import docs
from catalog.licences import demands
from infra.storage import write_bytes

TEMPLATE = Path(__file__).with_name("report.html")
PER_SOURCE = 3
"""Samples of each source on the contact sheet."""
REGIONS_SHOWN = 12
"""Regions listed beside a picture; the page says how many more are drawn."""
TEXTS_SHOWN = 4
"""Texts in the open below a picture; the others unfold."""

QUERIES: Mapping[str, str] = {
    "totals": """
        SELECT (SELECT count(*) FROM images) AS samples,
          (SELECT count(DISTINCT (source, group_id)) FROM images) AS groups,
          (SELECT count(*) FROM volumes) AS volumes, (SELECT count(*) FROM articles) AS articles,
          (SELECT count(*) FROM labels) AS labels, (SELECT count(*) FROM rois) AS regions,
          (SELECT count(*) FROM texts) AS texts, (SELECT count(*) FROM rejects) AS rejects""",
    "contents": """
        SELECT source, coalesce(modality, 'unknown') AS modality, count(*) AS samples,
          count(DISTINCT group_id) AS groups, sum(coalesce(r.n, 0))::BIGINT AS regions,
          sum(coalesce(t.n, 0))::BIGINT AS texts, count(*) FILTER (t.n IS NULL) AS "samples without text"
        FROM images LEFT JOIN (SELECT sample_id, count(*) AS n FROM rois GROUP BY 1) r USING (sample_id)
        LEFT JOIN (SELECT sample_id, count(*) AS n FROM texts GROUP BY 1) t USING (sample_id)
        GROUP BY 1, 2 ORDER BY 1, 2""",
    "texts": """
        SELECT kind, generator, count(*) AS texts, count(DISTINCT sample_id) AS samples,
          median(len(regexp_extract_all(text, '\\S+')))::INTEGER AS "median words",
          max(len(regexp_extract_all(text, '\\S+'))) AS "most words"
        FROM texts GROUP BY 1, 2 ORDER BY 1, 2""",
    "regions": """
        SELECT expert, origin, role, trust, count(*) AS regions, count(DISTINCT sample_id) AS samples,
          count(DISTINCT label) AS labels, count(mask) AS "with mask"
        FROM rois GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4""",
    "funnel": "SELECT * FROM funnel ORDER BY source, stage <> 'ingest', stage",
    "rejects": """
        SELECT source, stage, outcome, code, count(*) AS rows, count(*) FILTER (retryable) AS "worth a retry",
          arg_min(message, (item, message)) AS example
        FROM rejects GROUP BY 1, 2, 3, 4 ORDER BY rows DESC, 1, 2, 3, 4""",
    "verdicts": """
        SELECT regexp_replace("check", '/(roi:.*|[0-9]+)$', '') AS "check", version,
          count(*) FILTER (verdict = 'pass') AS pass, count(*) FILTER (verdict = 'fail') AS fail,
          count(*) FILTER (verdict NOT IN ('pass', 'fail')) AS unknown, avg(value) AS "mean value"
        FROM checks GROUP BY 1, 2 ORDER BY 1, 2""",
    "licences": """
        SELECT * FROM (
          SELECT 'images' AS of, licence_image AS licence, count(*) AS rows FROM images GROUP BY ALL
          UNION ALL SELECT 'texts', licence, count(*) FROM texts GROUP BY ALL
          UNION ALL SELECT 'regions given', licence_annotation, count(*) FROM rois JOIN images USING (sample_id)
            WHERE origin = 'given' GROUP BY ALL
          UNION ALL SELECT 'passages', licence, count(*) FROM passages GROUP BY ALL
        ) ORDER BY of, rows DESC, licence""",
    "costs": """
        SELECT coalesce(model, 'no model') AS model, count(*) AS texts, sum(tokens_in)::BIGINT AS "tokens in",
          sum(tokens_out)::BIGINT AS "tokens out", sum(cost_usd) AS "cost in USD"
        FROM texts WHERE generator <> 'source' GROUP BY 1 ORDER BY 1""",
    "stages": """
        SELECT stage, stage_version AS version, count(*) AS units, sum(seconds) AS "seconds of work",
          sum(kept)::BIGINT AS kept FROM current_units GROUP BY 1, 2 ORDER BY stage <> 'ingest', 1, 2""",
}
"""section -> the rows it shows, over the views of the catalog"""

_CLASSES = {"ND": "no derivatives", "NC": "non-commercial", "SA": "share-alike", "BY": "attribution"}
"""what a licence asks for -> its class; the first that holds"""


def path(build: Build) -> str:
    """Where the build's report lies, relative to the home."""
    return f"reports/{build.number:06d}/index.html"


def write(home: Path, build: Build, con: Any = None) -> None:
    """Write the report. `con` is a connection whose views show the build; a refused build has no other.

    Without it the published catalog is read. Raises ConfigError when that does not know the build as a snapshot.
    """
    with reader(home, build.number) if con is None else nullcontext(con) as open_con:
        tables = {name: open_con.execute(sql).to_arrow_table().to_pylist() for name, sql in QUERIES.items()}
        cards = sheet.cards(open_con, home, PER_SOURCE)
    for row in tables["licences"]:
        row["class"] = licence_class(row["licence"])
    write_bytes(home / path(build), _render(home, build, tables, cards).encode())


def licence_class(code: str | None) -> str:
    """What a licence allows, in a word or two; a code that is not known here has to be read by a person."""
    if code is None:
        return "unknown, not open"
    asked = demands(code)
    if asked is None:
        return "other terms, read them"
    return next((words for mark, words in _CLASSES.items() if mark in asked), "free")


def _render(home: Path, build: Build, tables: Mapping[str, Any], cards: list[sheet.Card]) -> str:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = _shown
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        build=build, **tables, cards=cards, image=sheet.data_uri, regions_shown=REGIONS_SHOWN, texts_shown=TEXTS_SHOWN,
        validations=sorted(build.validations, key=lambda v: (v.success, v.success or not v.critical, v.layer)),
        docs="data-docs/index.html" if (home / docs(build) / "index.html").exists() else None,
    )


def _shown(value: Any) -> str:
    """A cell in words: counts with thousands apart, a dash for what is unknown."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
