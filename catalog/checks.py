"""Checks of a whole build, by Great Expectations: what decides whether it becomes a snapshot.

What is expected stands in `expectations.yaml`. For each expectation DuckDB counts the rows that do not meet it, over
metadata only, and Great Expectations judges one frame a layer with one row and one column an expectation: the count,
expected to be 0. So pandas holds some dozens of numbers, whether the dataset has 25 rows or 25,000,000, and no image
byte is read. The invariant: every expectation gives exactly one Validation for each of its layers, met or not.

The Data Docs, pages that show the judgement, are written to `reports/NUMBER/data-docs/`, without the references to
outside hosts that Great Expectations puts into them.

>>> [v.expectation for v in validate(con, home, build, ()) if not v.success]
['the licence of the image is known']
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from catalog.builds import Build, Validation
from infra.errors import ConfigError
from infra.plugins import nearest

FILE = Path(__file__).with_name("expectations.yaml")
EXAMPLES = 3
"""How many rows that do not meet an expectation are named: the first in the order of their names."""


@dataclass(frozen=True)
class Expectation:
    """One entry of expectations.yaml for one layer; `over`, `must` and `name` are SQL."""

    layer: str
    words: str
    critical: bool
    over: str
    must: str
    name: str


@dataclass(frozen=True)
class Count:
    """How many rows an expectation looked at, how many do not meet it, and the names of the first of those."""

    rows: int
    unexpected: int
    examples: Sequence[str]

    @property
    def detail(self) -> str:
        """The count in words."""
        share = f"{self.unexpected:,} of {self.rows:,} rows"
        if not self.unexpected:
            return share
        return f"{share} ({self.unexpected / self.rows:.1%}), such as {', '.join(self.examples)}"


@cache
def expectations() -> tuple[Expectation, ...]:
    """All that a build is held to, in the order of the file."""
    return tuple(
        Expectation(
            layer, entry["expect"], entry["critical"], entry["over"].replace("{layer}", layer), entry["must"],
            entry.get("name", "sample_id"),
        )
        for entry in _file()["expectations"] for layer in entry["layers"]
    )


def validate(con: Any, home: Path, build: Build, warn_only: Sequence[str]) -> tuple[Validation, ...]:
    """Judge the build that the views of `con` show, and write its Data Docs under `home`.

    The expectations named in `warn_only` lose their power to stop the snapshot. Raises ConfigError for a name that is
    none. Nothing is raised for an expectation that is not met: the caller decides.
    """
    require_known(warn_only)
    lists = _lists(build)
    counts = {e: _count(con, e, lists) for e in expectations()}
    met = _judge({e: c.unexpected for e, c in counts.items()}, build, home / docs(build))
    return tuple(
        Validation(
            layer=e.layer, expectation=e.words, critical=e.critical and e.words not in warn_only, success=met[e],
            unexpected=c.unexpected, detail=c.detail,
        )
        for e, c in counts.items()
    )


def require_known(warn_only: Sequence[str]) -> None:
    """Raise ConfigError when a name is not that of an expectation; worth calling before a build starts."""
    known = list(dict.fromkeys(e.words for e in expectations()))
    for name in warn_only:
        if name not in known:
            raise ConfigError(
                f"checks.warn_only: there is no expectation {name!r}{nearest(name, known)}; they are:\n  "
                + "\n  ".join(known)
            )


def docs(build: Build) -> str:
    """Folder of the build's Data Docs, relative to the home."""
    return f"reports/{build.number:06d}/data-docs"


@cache
def _file() -> Mapping[str, Any]:
    loaded: Mapping[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return loaded


def _lists(build: Build) -> Mapping[str, Sequence[str]]:
    """Placeholder of the file -> what it stands for."""
    return {"{modalities}": _file()["modalities"], "{sources}": [s["name"] for s in build.recipe.get("sources", ())]}


def _count(con: Any, expectation: Expectation, lists: Mapping[str, Sequence[str]]) -> Count:
    judged = f"SELECT ({expectation.must}) IS TRUE AS met, {expectation.name} AS name FROM {expectation.over}"
    sql = f"SELECT count(*), count(*) FILTER (NOT met), min(name, {EXAMPLES}) FILTER (NOT met) FROM ({judged})"
    for placeholder, words in lists.items():
        sql = sql.replace(placeholder, _sql_list(words))
    rows, unexpected, examples = con.execute(sql).fetchone()
    return Count(rows, unexpected, examples or ())


def _sql_list(words: Sequence[str]) -> str:
    quoted = ", ".join("'" + word.replace("'", "''") + "'" for word in words)
    return f"[{quoted}]::VARCHAR[]"


def _judge(counts: Mapping[Expectation, int], build: Build, folder: Path) -> dict[Expectation, bool]:
    """Whether each expectation is met, as Great Expectations sees it; writes the Data Docs to `folder`."""
    gx = _great_expectations()
    import pandas as pd

    shutil.rmtree(folder, ignore_errors=True)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    context.add_data_docs_site("build", {
        "class_name": "SiteBuilder",
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.resolve())},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    })
    source = context.data_sources.add_pandas("catalog")
    met = {}
    for layer in dict.fromkeys(e.layer for e in counts):
        mine = {e.words: e for e in counts if e.layer == layer}
        batch = source.add_dataframe_asset(layer).add_batch_definition_whole_dataframe("counts")
        rules = [
            gx.expectations.ExpectColumnMaxToBeBetween(
                column=e.words, max_value=0, severity="critical" if e.critical else "warning"
            )
            for e in mine.values()
        ]
        suite = context.suites.add(gx.ExpectationSuite(name=layer, expectations=rules))
        judgement = context.validation_definitions.add(gx.ValidationDefinition(name=layer, data=batch, suite=suite))
        frame = pd.DataFrame({words: [counts[e]] for words, e in mine.items()})
        run = gx.RunIdentifier(run_name=f"build {build.number}")
        for result in judgement.run(batch_parameters={"dataframe": frame}, run_id=run).results:
            met[mine[result.expectation_config.kwargs["column"]]] = bool(result.success)
    context.build_data_docs()
    _seal(folder, build.number)
    return met


def _great_expectations() -> Any:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():  # great_expectations 1.24 imports two modules that Python 3.11 deprecates
        warnings.filterwarnings("ignore", "module 'sre_(constants|parse)' is deprecated", DeprecationWarning)
        import great_expectations as gx
        import great_expectations.expectations
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    return gx


_OUTSIDE = re.compile(
    r"<script\b.*?</script>|<footer\b.*?</footer>|<(?:link|img)\b[^>]*https?://[^>]*>|<link\b[^>]*favicon[^>]*>",
    re.DOTALL,
)
_HEAD = """<head>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<style>body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; } table { border-collapse: collapse; }
td, th { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; }
label.btn { display: none; } .fa-check-circle::before { content: "✓ met"; color: #17703c; }
.fa-times::before { content: "✗ not met"; color: #b3261e; }</style>"""
_INDEX = """<!doctype html><html lang="en">{head}<meta charset="utf-8"><title>Data Docs</title></head>
<body><h1>Data Docs of build {number}</h1>
<p>What Great Expectations judged: for each layer, how many rows do not meet an expectation.</p>
<ul>{links}</ul></body></html>
"""


def _seal(folder: Path, number: int) -> None:
    """Make the pages readable without a network: no script, nothing from another host, and an index without scripts."""
    shutil.rmtree(folder / "static")
    for page in folder.rglob("*.html"):
        text = _OUTSIDE.sub("", page.read_text(encoding="utf-8"))
        page.write_text(text.replace("<head>", _HEAD, 1), encoding="utf-8")
    pages = sorted((p.relative_to(folder) for p in folder.glob("validations/**/*.html")), key=lambda p: p.parts[1])
    links = "".join(f'<li><a href="{quote(p.as_posix())}">{escape(p.parts[1])}</a></li>' for p in pages)
    (folder / "index.html").write_text(_INDEX.format(head=_HEAD, number=number, links=links), encoding="utf-8")
