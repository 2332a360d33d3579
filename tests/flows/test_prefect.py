"""Builds under Prefect: by command and by schedule, seen, cancelled, served on loopback only, no secret on record."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prefectserver import (
    DONE,
    MEDLOOM,
    SECRET,
    Server,
    clean_environment,
    command,
    environment_of,
    listening,
    medloom,
    processes,
    tree,
    wait_for,
)
from sources import encoded, make_images, picture

from catalog.catalog import query
from flows import build as work
from flows.recipe import load_recipe
from infra.runner import InlineRunner

PICTURES = "SELECT count(*) AS n FROM images WHERE source = 'pictures'"
IMAGES = """
name: pictures
sources:
  - name: pictures
    use: images
    layout: imagefolder
    root: {root}
    modality: XC
    identifiers: public
    capacity: {capacity}
stages:
  - {{use: ground}}
  - {{use: caption}}
"""
AGAIN = """
import sys
from flows.cli import main
sys.argv[1:] = {words!r}
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(sorted({{"prefect", "ray"}} & set(sys.modules)))
"""


def make_recipe(root: Path, count: int, capacity: int = 8, size: int = 64) -> Path:
    """A recipe over one folder of images."""
    make_images(root / "images", count, size)
    (root / "pictures.yaml").write_text(IMAGES.format(root=root / "images", capacity=capacity))
    return root / "pictures.yaml"


def shards(home: Path) -> dict[str, str]:
    """Path of every shard -> its hash."""
    paths = (home / "shards").rglob("*.*")
    return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def build_here(recipe: Path, home: Path) -> None:
    """The same build in this process, without Prefect."""
    steps = load_recipe(recipe)
    plan = work.prepare(steps, home)
    progress = work.Progress(plan.todo)
    with InlineRunner() as runner:
        work.run_chains(plan.chains, steps, home, runner, progress)
    work.commit(plan, progress, steps, home)


def test_a_build_needs_no_server_and_a_second_one_starts_nothing(tmp_path: Path) -> None:
    recipe, home = make_recipe(tmp_path, 9), tmp_path / "home"
    first = medloom("build", recipe, "--home", home, "--runner", "inline")
    assert first.returncode == 0, first.stderr
    assert first.stdout == "snapshot 1: 6 units run, 0 stood already\n"
    assert "Traceback" not in first.stderr and (home / "prefect" / "prefect.db").exists()
    words = ["build", str(recipe), "--home", str(home), "--runner", "inline"]
    begun = time.monotonic()
    code = AGAIN.format(words=words)
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert again.stdout.splitlines() == ["nothing to do: snapshot 1 is what the recipe describes", "[]"], again.stderr
    assert time.monotonic() - begun < 20
    assert not [command(pid) for pid in processes() if str(home) in environment_of(pid)]


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        (("build", "nowhere.yaml"), {}, "no recipe"),
        (("build", "RECIPE"), {"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "no Prefect server answers"),
        (("build", "RECIPE", "--runner", "abacus"), {}, "runner 'abacus' is not known"),
        (("serve", "RECIPE", "--cron", "every day"), {}, "--cron 'every day' is no cron line"),
        (("serve", "RECIPE", "--port", "PORT"), {}, "choose another --port"),
    ],
)
def test_errors_are_one_message(
    tmp_path: Path, medloom_server: Server, words: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    recipe = make_recipe(tmp_path, 2)
    known = {"RECIPE": str(recipe), "PORT": medloom_server.ui.rpartition(":")[2]}
    if "abacus" in words:
        environment = {"PREFECT_API_URL": medloom_server.api}
    wrong = medloom(*(known.get(word, word) for word in words), "--home", tmp_path / "home", **environment)
    assert wrong.returncode == 2, wrong.stderr
    assert says in wrong.stderr and "Traceback" not in wrong.stderr and wrong.stderr.count("medloom: ") == 1


def test_the_schedule_fires_by_itself(medloom_server: Server, first_run: dict[str, Any]) -> None:
    assert first_run["created_by"] is None or first_run["created_by"]["type"] == "SCHEDULE", first_run["created_by"]
    line = said(medloom_server, "snapshot 1: ", 30)
    ran = int(line.split()[2])
    assert ran > 40 and line == f"snapshot 1: {ran} units run, 0 stood already"
    assert query(medloom_server.home, PICTURES).to_pylist() == [{"n": 30}]


def test_the_run_shows_its_groups_and_what_to_look_at(medloom_server: Server, first_run: dict[str, Any]) -> None:
    run = first_run["id"]

    def recorded() -> list[dict[str, Any]]:
        """Task runs reach the server as events, a little later than they end."""
        wanted = {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found = medloom_server.call("task_runs/filter", wanted)
        return found if len(found) == 16 and all(t["state_type"] == "COMPLETED" for t in found) else []

    names = [t["name"] for t in wait_for("16 task runs are recorded", 30, recorded)]
    assert names[0] == "plan" and names[-1] == "check and commit" and {"series/all", "articles/b0"} <= set(names[1:-1])
    shown = medloom_server.artifacts(run)
    assert shown["progress"]["data"] == 100 and re.fullmatch(r"(\d+) of \1 units", shown["progress"]["description"])
    funnel = json.loads(shown["funnel"]["data"])
    assert {row["source"] for row in funnel} == {"pictures", "series", "volumes", "articles"}
    sheet = shown["contact-sheet"]["data"]
    assert sheet.count("](data:image/jpeg;base64,") >= 4 and "region 1" in sheet and "global" in sheet


def test_the_report_opens_from_the_run(medloom_server: Server, first_run: dict[str, Any]) -> None:
    link = re.search(r"\]\((.*?)\)", medloom_server.artifacts(first_run["id"])["report"]["data"])
    assert link and link[1].startswith(medloom_server.reports)
    with urllib.request.urlopen(link[1]) as page:
        assert b"generated" in page.read()


def test_parameters_are_a_form(medloom_server: Server) -> None:
    fields = medloom_server.deployment()["parameter_openapi_schema"]["properties"]
    assert list(fields) == ["recipe", "home", "runner", "changes", "retry_failed"]
    for field in fields.values():
        assert field["title"] and field["description"] and field["type"] and "default" in field
    assert medloom_server.deployment()["parameters"]["recipe"] == str(medloom_server.recipe)


def test_the_next_scheduled_run_builds_only_what_is_new(medloom_server: Server, first_run: dict[str, Any]) -> None:
    (medloom_server.recipe.parent / "images" / "sick" / "new.png").write_bytes(encoded(picture(4711)))

    line = said(medloom_server, "snapshot 2: ", 150)
    ran, stood = map(int, re.findall(r"(\d+) (?:units run|stood)", line))
    # one partition of the ten stages, or the two that it was split into
    assert 10 <= ran <= 20 and stood > 40, line
    assert query(medloom_server.home, PICTURES, at=2).to_pylist() == [{"n": 31}]


def said(server: Server, start: str, seconds: float) -> str:
    """The log line of a scheduled run that starts so; log lines reach the server in batches."""

    def lines() -> list[str]:
        runs = server.runs(auto_scheduled=True, state_type="COMPLETED")
        return [line for run in runs for line in server.log(run["id"]) if line.startswith(start)]

    return str(wait_for(f"a scheduled run says {start!r}", seconds, lines)[0])


@pytest.fixture(scope="module")
def paused(medloom_server: Server, first_run: dict[str, Any]) -> Server:
    """The same server when its schedule is paused and no run is under way."""
    medloom_server.call(f"deployments/{medloom_server.deployment()['id']}/pause_deployment", {})
    rest = DONE | {"SCHEDULED"}
    wait_for("no run is under way", 60, lambda: all(run["state_type"] in rest for run in medloom_server.runs()))
    return medloom_server


def test_a_command_is_seen_by_the_server_of_its_home(paused: Server) -> None:
    (paused.recipe.parent / "images" / "sick" / "newer.png").write_bytes(encoded(picture(4712)))
    made = medloom("build", paused.recipe, "--home", paused.home, "--runner", "inline")
    assert made.returncode == 0 and re.match(r"snapshot \d+: \d+ units run, ", made.stdout), made.stdout + made.stderr
    assert "starting Prefect" not in made.stderr
    assert [run["state_type"] for run in paused.runs(deployment_id=None)][-1] == "COMPLETED"


def test_cancelled_runs_stop_and_the_next_build_has_the_same_bytes(paused: Server, tmp_path: Path) -> None:
    recipe, home = make_recipe(tmp_path, 240, capacity=4, size=160), tmp_path / "home"
    words = [*MEDLOOM, "build", recipe, "--home", home, "--runner", "inline"]
    env = clean_environment() | {"PREFECT_API_URL": paused.api}
    here = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
    with here:
        run = wait_for("the command's run has begun", 60, lambda: paused.runs(name="pictures", state_type="RUNNING"))[0]
        seen = moved(paused, run["id"])
        paused.cancel(run["id"])
        _, message = here.communicate(timeout=60)
    assert here.returncode == 2 and "cancelled after" in message and "Traceback" not in message, message
    assert paused.call(f"flow_runs/{run['id']}")["state_type"] == "CANCELLED" and 0 < seen < 100

    parameters = {"recipe": str(recipe), "home": str(home), "runner": "ray"}
    run = paused.call(f"deployments/{paused.deployment()['id']}/create_flow_run", {"parameters": parameters})
    wait_for("the flow run is running", 60, lambda: paused.call(f"flow_runs/{run['id']}")["state_type"] == "RUNNING")
    assert 0 < moved(paused, run["id"]) < 100
    workers = {pid for pid in tree(paused.process.pid) if "ray" in command(pid)}
    assert any("raylet" in command(pid) for pid in workers)
    paused.cancel(run["id"])
    wait_for("no Ray process of the run is left", 30, lambda: not any(command(pid) for pid in workers))
    wait_for("the run is cancelled", 30, lambda: paused.call(f"flow_runs/{run['id']}")["state_type"] == "CANCELLED")

    kind, message = paused.ended(paused.run(), 150)  # the next run goes ahead, and fixtures see that Ctrl-C stops all
    assert kind == "COMPLETED", message

    assert not (home / "builds").exists() and len(shards(home)) > 0
    build_here(recipe, home)
    build_here(recipe, tmp_path / "fresh")
    assert shards(home) == shards(tmp_path / "fresh")


def moved(server: Server, run: str) -> float:
    """Wait until the run's progress has moved; returns how far."""

    def share() -> float:
        progress = server.artifacts(run).get("progress")
        return float(progress["data"]) if progress else 0.0

    return float(wait_for("the progress has moved", 90, share))


def test_the_server_and_the_reports_listen_on_loopback_only(medloom_server: Server) -> None:
    addresses = listening(tree(medloom_server.process.pid))
    assert {int(address.rpartition(":")[2]) for address in addresses} >= {
        int(url.rpartition(":")[2]) for url in (medloom_server.ui, medloom_server.reports)
    }
    assert all(address.startswith("127.0.0.1:") for address in addresses), addresses
    assert medloom_server.call("admin/settings")["server"]["analytics_enabled"] is False


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom flows.server import server\n"
        f"with server(Path({str(tmp_path)!r}), ui=False) as api:\n"
        "    print(api, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = clean_environment()
    killed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=200)
    port = killed.stdout.strip().rpartition(":")[2].removesuffix("/api")
    wait_for("the server is gone", 25, lambda: not any(f"--port {port}" in command(pid) for pid in processes()))


def test_no_record_holds_the_secret(medloom_server: Server, first_run: dict[str, Any]) -> None:
    assert SECRET in environment_of(medloom_server.process.pid)
    for path in medloom_server.home.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
