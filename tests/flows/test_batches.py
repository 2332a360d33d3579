"""A build whose captions come from the Batch API: build, submit, collect, build again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llmservice
import pytest
from llmservice import Service
from sources import make_images
from typer.testing import CliRunner

from catalog.catalog import query
from flows.build import Progress, commit, prepare, run_chains
from flows.cli import app
from flows.recipe import load_recipe
from infra.runner import open_runner

RECIPE = """
name: batched
sources:
  - {{name: pictures, use: images, layout: imagefolder, root: {root}/images, modality: XC, identifiers: public}}
stages:
  - use: caption
    captioner: llm
    options: {{base_url: "{url}", model: m, batch: true, parts: false, repair: 0, api_key_env: null}}
"""


def answered(body: dict[str, Any], fault: str = "ok") -> dict[str, Any]:
    """A caption that cites the first thing it may."""
    fields = body["response_format"]["json_schema"]["schema"]["properties"]
    cited = fields["global_evidence"]["items"]
    said = {"global_text": "A small picture of a thing.", "global_evidence": [cited.get("const") or cited["enum"][0]]}
    message = {"role": "assistant", "content": json.dumps(said), "refusal": None}
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m-2026",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def build(recipe: Path, home: Path, retry: bool = False) -> None:
    loaded = load_recipe(recipe)
    plan = prepare(loaded, home, retry)
    progress = Progress(plan.todo)
    with open_runner("inline") as runner:
        run_chains(plan.chains, loaded, home, runner, progress)
    commit(plan, progress, loaded, home)


def test_captions_by_batches_are_paid_once_and_reach_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llmservice, "answered", answered)
    make_images(tmp_path / "images", 6)
    home, recipe = tmp_path / "home", tmp_path / "recipe.yaml"

    def medloom(command: str) -> str:
        shown = CliRunner().invoke(app, ["batch", command, str(recipe), "--home", str(home)])
        assert shown.exit_code == 0, shown.output
        return shown.output

    with Service() as service:
        recipe.write_text(RECIPE.format(root=tmp_path, url=service.base_url))
        build(recipe, home)
        waiting = "SELECT count(*) AS n FROM rejects WHERE code = 'LLM_PENDING' AND retryable"
        assert query(home, waiting).to_pylist() == [{"n": 6}]
        assert "1 batches sent" in medloom("submit") and "0 batches sent" in medloom("submit")
        (batch,) = service.batches
        service.work(batch)
        assert "2 answered, 0 waiting" in medloom("collect"), "equal requests, one a class, are asked once"
        build(recipe, home, retry=True)
        told = query(home, "SELECT text, model FROM texts WHERE generator <> 'source'").to_pylist()
        assert len(told) == 6 and {row["model"] for row in told} == {"m-2026"}
        assert query(home, waiting).to_pylist() == [{"n": 0}]
        assert set(service.paid.values()) == {1}


def test_a_recipe_without_batches_says_what_to_set(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=tmp_path, url="http://127.0.0.1:9/v1").replace("batch: true, ", ""))
    make_images(tmp_path / "images", 1)
    shown = CliRunner().invoke(app, ["batch", "submit", str(recipe), "--home", str(tmp_path / "home")])
    assert shown.exit_code == 1 and "batch: true" in str(shown.exception)
