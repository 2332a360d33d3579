"""A dataset of PMC's bucket over two days: what was withdrawn leaves the next snapshot and stays in the old one, until
that is given up: then nothing of it is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pmcbucket import Place, Version
from s3server import Proxy, s3_server
from test_build import run, shards
from typer.testing import CliRunner

from catalog import decisions
from catalog.catalog import query, reader, rebuild
from flows.cli import app

RECIPE = """
name: figures
sources:
  - {{name: pmc, use: pmc, root: "s3://{name}", endpoint: "{endpoint}", identifiers: public, capacity: 3,
     requests_per_second: 5000}}
stages:
  - {{use: panels}}
  - {{use: caption}}
"""
BEFORE = [Version(n) for n in range(1, 9)]
AFTER = [
    replace(BEFORE[0], retracted=True), BEFORE[1], Version(2, 2, seed=1), replace(BEFORE[2], licence="TDM"),
    *BEFORE[4:], Version(9),
]
"""Article 1 is retracted, 2 has a new version, 3 another licence, 4 is gone, 9 is new; 5 to 8 stay as they are."""


def articles(home: Path, at: int) -> set[tuple[str, str]]:
    found = query(home, "SELECT DISTINCT article_id, source_version AS v FROM images", at).to_pylist()
    return {(row["article_id"], row["v"]) for row in found}


def decide(home: Path, article: str) -> int:
    """A reviewer writes a caption of the article's first picture anew; returns the number of the decision."""
    sql = "SELECT t.* FROM texts t JOIN images USING (sample_id) WHERE article_id = '{}' ORDER BY text_id LIMIT 1"
    (text,) = query(home, sql.format(article)).to_pylist()
    return decisions.decide(home, decisions.Decision(
        reviewer=decisions.reviewer(home, "Ada"), sample_id=text["sample_id"], about=f"text:{text['text_id']}",
        seen=decisions.seen_text(text["text"]), verdict="correct", text=f"Rather: {text['text']}",
    ))


def samples(home: Path) -> set[str]:
    """Of all rows of texts that the catalog can be asked for, of whatever snapshot."""
    with reader(home) as con:
        tables = con.execute("SELECT database_name, schema_name, table_name FROM duckdb_tables() "
                             "WHERE table_name LIKE 'texts%'").fetchall()
        views = [("temp", "main", name) for (name,) in con.execute(
            "SELECT view_name FROM duckdb_views() WHERE database_name = 'temp' AND view_name LIKE 'texts%'").fetchall()]
        found = [con.execute(f"SELECT DISTINCT sample_id FROM {'.'.join(name)}").fetchall() for name in tables + views]
    return {sample for rows in found for (sample,) in rows}


def naming(home: Path, samples: set[str]) -> list[Path]:
    """Decisions and reports that name any of these samples."""
    files = [path for folder in ("decisions", "reports") for path in (home / folder).rglob("*") if path.is_file()]
    return [path for path in files if any(sample.encode() in path.read_bytes() for sample in samples)]


def test_what_is_withdrawn_leaves_the_next_snapshot_with_a_reason(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with s3_server(tmp_path / "s3") as server, Proxy(server.endpoint) as proxy:
        place = Place(server, proxy, tmp_path, "figures")
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(name=place.name, endpoint=proxy.endpoint))
        place.publish(BEFORE, "2026-01-18T01-00Z")
        first, _ = run(recipe, home)
        fetched = proxy.taken()
        again, ran = run(recipe, home)
        assert again.number == first.number and ran == []
        old_shards, old = shards(home), articles(home, 1)
        for article in ("PMC1", "PMC5", "PMC4"):
            decide(home, article)
        withdrawn = {row["sample_id"] for row in query(
            home, "SELECT sample_id FROM images WHERE article_id IN ('PMC1', 'PMC3', 'PMC4')").to_pylist()}
        assert len(fetched) == len(set(fetched)) and old == {(f"PMC{n}", "1") for n in range(1, 9)}

        place.publish(AFTER, "2026-01-19T01-00Z")
        proxy.taken()
        second, ran = run(recipe, home)
        pictures = [path for path in proxy.taken() if path.endswith((".jpg", ".xml"))]

    new = {("PMC2", "2"), ("PMC9", "1"), *((f"PMC{n}", "1") for n in range(5, 9))}
    assert second.number == 2 and articles(home, 2) == new
    assert {path.split("/")[2] for path in pictures} == {"PMC2.2", "PMC9.1"}, "only what is new is fetched"
    rejects = query(home, "SELECT item, code, message FROM rejects WHERE stage = 'ingest'", 2).to_pylist()
    codes: dict[str, Any] = {row["item"]: row["code"] for row in rejects}
    assert codes == {"PMC1.1": "RETRACTED", "PMC2.1": "SUPERSEDED", "PMC3.1": "DESELECTED", "PMC4.1": "REMOVED"}
    (relicensed,) = [row["message"] for row in rejects if row["code"] == "DESELECTED"]
    assert "CC BY" in relicensed and "TDM" in relicensed
    assert all(row["balanced"] for row in query(home, "SELECT balanced FROM funnel", 2).to_pylist())
    for _ in range(2):
        assert articles(home, 1) == old
        rebuild(home)
    assert old_shards.items() <= shards(home).items()

    gc = ["catalog", "gc", "--home", str(home), "--keep", "1", "--grace", "0"]
    said = "2 decisions about samples that no snapshot holds any more (1, 3)"
    assert withdrawn <= samples(home) and {path.parent.name for path in naming(home, withdrawn)} == {
        "decisions", "000001"
    }
    assert f"would remove {said}" in CliRunner().invoke(app, gc).stdout
    assert f"removed {said}" in CliRunner().invoke(app, [*gc, "--yes"]).stdout
    (left,) = decisions.read(home)
    assert left.sample_id not in withdrawn and articles(home, 2) == new
    assert samples(home) and not samples(home) & withdrawn and naming(home, withdrawn) == []
