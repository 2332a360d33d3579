"""The data card of a snapshot: what is in it, how it was built, what is known to be wrong, and what it is not for.

One gathering of facts (`facts_of`), shown as a page that stands alone (`write`) and as markdown for the README of an
export (`card_markdown`). The invariant: every number is counted in the snapshot, the same snapshot gives the same card,
and what a source or a model wrote is text on it, never markup. Shape after "Datasheets for
Datasets" (Gebru et al. 2021), as far as the rows can answer.

>>> write(home, build)
>>> print(card_markdown(home))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog import report, sheet
from catalog.builds import Build, builds
from catalog.catalog import reader
from infra.errors import ConfigError
from infra.storage import write_bytes

TEMPLATE = Path(__file__).with_name("datacard.html")
BARS = 15
"""Bars of a plot; the others are counted in one."""
PER_SOURCE = 2
"""Samples of each source shown."""
LIMITS = (
    "For research on models, not for care: nobody has checked every row, and no row is a diagnosis.",
    "Regions of origin `predicted` were drawn by models or rules, and are no ground truth; `given` ones are the "
    "source's own.",
    "Generated texts may be wrong. Where the stage `verify` ran, each was held against the rows it rests on: filter by "
    "the check `support`.",
    "The samples are those that the sources hold. They stand for no population, and inherit each source's choice of "
    "patients, machines and places.",
    "Licences are those that the sources state. Unknown is not open.",
)

Row = Mapping[str, Any]

_REPORTED = ("totals", "contents", "texts", "regions", "funnel", "rejects", "verdicts", "licences", "costs", "stages")
_COUNTS: Mapping[str, tuple[str, str]] = {
    "modality": ("Samples by modality", "SELECT modality AS name, count(*) AS n FROM images GROUP BY 1"),
    "source": ("Samples by source", "SELECT source AS name, count(*) AS n FROM images GROUP BY 1"),
    "licence": ("Samples by licence of the image", "SELECT licence_image AS name, count(*) AS n FROM images "
                "GROUP BY 1"),
    "label": ("Samples by label that is present", "SELECT name, count(DISTINCT sample_id) AS n FROM labels "
              "WHERE value = 'present' GROUP BY 1"),
    "region": ("Samples by region", "SELECT label AS name, count(DISTINCT sample_id) AS n FROM rois GROUP BY 1"),
    "kind": ("Texts by kind", "SELECT kind AS name, count(*) AS n FROM texts GROUP BY 1"),
}
_ISSUES = """
SELECT * FROM (
  SELECT 1 AS place, count(*) AS n, 'samples whose image licence is unknown' AS what FROM images
    WHERE licence_image IS NULL
  UNION ALL SELECT 2, count(*), 'samples without any text' FROM images
    WHERE sample_id NOT IN (SELECT sample_id FROM texts)
  UNION ALL SELECT 3, count(*), 'samples without any region' FROM images
    WHERE sample_id NOT IN (SELECT sample_id FROM rois)
  UNION ALL SELECT 4, count(*), 'samples of unknown modality' FROM images WHERE modality IS NULL
  UNION ALL SELECT 5, count(*), 'texts of which not every claim is borne out by rows' FROM checks
    WHERE "check" = 'support' AND value < 1
  UNION ALL SELECT 6, count(*), 'texts with a problem as a whole (prompt leak, order obeyed, copy, language)' FROM
    (SELECT DISTINCT sample_id, text_id FROM checks WHERE "check" LIKE 'problem/%')
  UNION ALL SELECT 7, count(*), 'samples on which regions break rules of anatomy' FROM (SELECT DISTINCT sample_id
    FROM checks WHERE "check" LIKE '%\\_plausible/%' ESCAPE '\\' AND value > 0)
  UNION ALL SELECT 8, count(*), 'samples cut from a lossy picture' FROM images WHERE lossy
  UNION ALL SELECT 9, count(*), 'scans with odd geometry' FROM volumes WHERE len(geometry_flags) > 0
  UNION ALL SELECT 10, count(*), 'articles that were retracted' FROM articles WHERE retracted
  UNION ALL SELECT 11, count(*), 'texts and regions that a reviewer did not accept' FROM checks
    WHERE "check" LIKE 'review/%' AND verdict = 'fail'
  UNION ALL SELECT 12, count(*), 'units of work left out because too much of them failed' FROM current_units
    WHERE quarantined
) WHERE n > 0 ORDER BY place
"""
_EXPERTS = """
SELECT expert, any_value(expert_weights_sha256) AS weights, count(*) AS regions FROM rois WHERE origin <> 'given'
GROUP BY 1 ORDER BY 1
"""
_MODELS = """
SELECT generator, model, count(*) AS texts FROM texts WHERE generator <> 'source' GROUP BY 1, 2 ORDER BY 1, 2 NULLS LAST
"""


@dataclass(frozen=True)
class Plot:
    """Counts to be drawn as bars, the largest first; `rest` says what else there is."""

    title: str
    bars: tuple[tuple[str, int], ...]
    rest: str


@dataclass(frozen=True)
class Facts:
    """What a card says, counted in one snapshot."""

    build: Build
    tables: Mapping[str, Sequence[Row]]
    """as the report's sections of the same names"""
    plots: tuple[Plot, ...]
    issues: tuple[str, ...]
    experts: Sequence[Row]
    models: Sequence[Row]
    words: tuple[str, ...] = LIMITS

    @property
    def totals(self) -> Row:
        return self.tables["totals"][0]


def path(build: Build) -> str:
    """Where the card of a build lies, relative to the home."""
    return f"reports/{build.number:06d}/card.html"


def facts_of(build: Build, con: Any) -> Facts:
    """The facts of the snapshot that the views of `con` show."""
    def rows(sql: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = con.execute(sql).to_arrow_table().to_pylist()
        return found

    tables = {name: rows(report.QUERIES[name]) for name in _REPORTED}
    for row in tables["licences"]:
        row["class"] = report.licence_class(row["licence"])
    issues = [f"{row['what']}: {row['n']:,}" for row in rows(_ISSUES)]
    issues += [f"expectation not met: {v.layer}: {v.expectation} ({v.unexpected:,})" for v in build.validations
               if not v.success]
    plots = (_plot(title, rows(f"{sql} ORDER BY n DESC, 1 NULLS LAST")) for title, sql in _COUNTS.values())
    return Facts(
        build, tables, tuple(plot for plot in plots if plot.bars), tuple(issues), rows(_EXPERTS), rows(_MODELS),
    )


def write(home: Path, build: Build, con: Any = None) -> None:
    """Write the page; `con` as for catalog.report.write."""
    with reader(home, build.number) if con is None else nullcontext(con) as open_con:
        write_bytes(home / path(build), page(home, build, open_con).encode())


def page(home: Path, build: Build, con: Any) -> str:
    """The card of a build as a page that stands alone; the views of `con` show that build."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = _shown
    environment.tests["in_many"] = lambda name: name.startswith(("claim/", "problem/")) or "/roi:" in name
    facts = facts_of(build, con)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        facts=facts, build=facts.build, cards=sheet.cards(con, home, PER_SOURCE), image=sheet.data_uri,
        about=facts.build.recipe.get("about"), steps=_steps(facts.build),
    )


def card_markdown(home: Path, at: int | None = None) -> str:
    """The card as markdown, for the README of an export; without pictures. `at`: the snapshot, default the newest.

    It begins with a heading of the second level: the export writes the first, and says which selection it is.
    """
    with reader(home, at) as con:
        (number,) = con.execute("SELECT number FROM snapshot").fetchone()
        if number is None:
            raise ConfigError(f"{home} has no snapshot")
        facts = facts_of(build_of(home, number), con)
    build, totals, plain = facts.build, facts.totals, sheet.plain
    about = str(build.recipe.get("about") or "")
    parts = [f"## Data card of {plain(build.name)}, snapshot {build.number}", ""]
    parts += [plain(about), ""] if about else []
    parts += [", ".join(f"{value:,} {name}" for name, value in totals.items()) + ".", ""]
    for plot in facts.plots:
        parts += [f"### {plot.title}", "", _markdown_table(("", "count"), [*plot.bars]), plot.rest, ""]
    parts += ["### Licences", "", _markdown_table(
        ("of", "licence", "class", "rows"),
        [(r["of"], r["licence"] or "unknown", r["class"], r["rows"]) for r in facts.tables["licences"]],
    ), ""]
    parts += ["### How it was built", "", f"Recipe {plain(build.name)}, built {plain(build.created_at)}.", ""]
    parts += [f"- {plain(line)}" for line in _steps(build)]
    parts += [f"- expert {plain(r['expert'])}: {r['regions']:,} regions"
              + (f", weights SHA-256 {r['weights']}" if r["weights"] else "") for r in facts.experts]
    parts += [f"- texts by {plain(r['generator'])}{', model ' + plain(r['model']) if r['model'] else ''}: "
              f"{r['texts']:,}" for r in facts.models]
    parts += ["", "### Known issues", "", *(f"- {plain(line)}" for line in facts.issues or ("none was counted",))]
    parts += ["", "### Limits", "", *(f"- {line}" for line in facts.words), ""]
    return "\n".join(parts)


def _steps(build: Build) -> list[str]:
    """Sources and stages of the recipe, a line each."""
    lines = []
    for kind in ("sources", "stages"):
        for step in build.recipe.get(kind) or ():
            name, use = step.get("name"), step.get("use")
            lines.append(f"{kind[:-1]} {name or use}" + (f" ({use})" if name and use and use != name else ""))
    return lines


def build_of(home: Path, number: int) -> Build:
    """The record of a build. Raises ConfigError where there is none."""
    found = next((build for build in builds(home) if build.number == number), None)
    if found is None:
        raise ConfigError(f"{home} has no record of build {number}")
    return found


def _plot(title: str, rows: Sequence[Row]) -> Plot:
    shown, others = rows[:BARS], rows[BARS:]
    bars = tuple(("unknown" if row["name"] is None else str(row["name"]), int(row["n"])) for row in shown)
    rest = f"and {len(others):,} more, with {sum(row['n'] for row in others):,} in all" if others else ""
    return Plot(title, bars, rest)


def _markdown_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[f"{c:,}" if isinstance(c, int) else sheet.plain(str(c)) for c in row] for row in rows]
    lines = [names, ["---"] * len(names), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    """A cell in words: counts with thousands apart, a dash for what is unknown."""
    if value is None:
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
