"""A dataset of PMC's bucket over two days: what was withdrawn leaves the next snapshot, the old one stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pmcbucket import Place, Version
from s3server import Proxy, s3_server
from test_build import run, shards

from catalog.catalog import query, rebuild

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
