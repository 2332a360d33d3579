"""Runs that die, overlap and are started twice, under a real server: cases 49 and 52 of the list of faults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from imagefolders import put
from prefectserver import Server, environment_of, kill_all, medloom, processes, shared, tree, wait_for, working

from catalog.catalog import query

RECIPE = """
name: tiny
sources:
  - {{name: photos, use: images, layout: imagefolder, root: {root}, modality: XC, identifiers: public, capacity: 2}}
stages:
  - {{use: harmonise}}
  - {{use: ground}}
  - {{use: caption}}
"""
PICTURES = 160
DEAD_AFTER_S = 40
"""Prefect's heartbeats are 30 s apart at the least."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("faults")
    for number in range(PICTURES):
        put(root / "pictures" / "kind" / f"{number:03}.png", number)
    (root / "recipe.yaml").write_text(RECIPE.format(root=root / "pictures"))
    with shared(root) as running:
        yield running


def deploy(server: Server, overlap: str, cron: str) -> None:
    made = medloom("deploy", server.recipe, "--home", server.home, "--runner", "inline", "--overlap", overlap, "--cron",
                   cron, "--dead-after", DEAD_AFTER_S, **server.environment)
    assert made.returncode == 0, made.stderr


def engine(run: str) -> int:
    """The process of a run; 0 when there is none."""
    found = [pid for pid in processes() if f"PREFECT__FLOW_RUN_ID={run}\0" in environment_of(pid)]
    return min(found, default=0)


@pytest.mark.long
def test_a_dead_run_is_marked_and_the_next_one_goes_ahead(server: Server, tmp_path: Path) -> None:
    log = server.recipe.parent / "worker.log"
    with working(server, log) as worker:
        deploy(server, "cancel-new", "0 3 1 1 *")
        first = server.run()
        wait_for("the run has written units", 120, lambda: moved(server, first))
        second = server.run()
        assert server.ended(second) == ("CANCELLED", "Deployment concurrency limit reached.")
        assert server.state(first)[0] == "RUNNING"
        assert engine(first) in tree(worker.pid)
        kill_all(worker.pid)
    assert not engine(first) and not (server.home / "builds").exists()

    with working(server, log):
        deploy(server, "enqueue", "* * * * *")
        kind, message = server.ended(first, DEAD_AFTER_S + 60)
        assert kind == "CRASHED" and f"nothing was heard of this run for {DEAD_AFTER_S} s" in message

        def done() -> list[dict[str, Any]]:
            return server.runs(state_type="COMPLETED", auto_scheduled=True)

        next_run = wait_for("a scheduled run is complete", 180, done)[0]
        server.call(f"deployments/{server.deployment()['id']}/pause_deployment", {})
    (line,) = [line for line in server.log(next_run["id"]) if line.startswith("snapshot 1: ")]
    assert int(re.findall(r"(\d+) stood already", line)[0]) > 0
    assert query(server.home, "SELECT count(*) AS n FROM images").to_pylist() == [{"n": PICTURES}]


def moved(server: Server, run: str) -> bool:
    progress = server.artifacts(run).get("progress")
    assert server.state(run)[0] in ("SCHEDULED", "PENDING", "RUNNING"), server.state(run)
    return bool(progress and progress["data"] > 0)
