"""kill -9 of the driver and of Ray's workers at random moments, then the same command: the same bytes, nothing twice.

The moments are drawn with a fixed seed over the whole run: planning, Ray's start, the units, the commit.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sources import make_all, make_images

from catalog.catalog import query
from catalog.verify import manifests, problems

ROOT = Path(__file__).parents[2]
KILLS = 10


def start(recipe: Path, home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("driver.py")), str(recipe), str(home)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(recipe: Path, home: Path) -> str:
    with start(recipe, home) as process:
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def workers_of(driver: int) -> list[int]:
    """Ray's worker processes under a driver: running a unit, or holding an opened stage."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, line = (folder / "stat").read_text(), (folder / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(folder.name))
        names[int(folder.name)] = line
    found, queue = [], [driver]
    while queue:
        for child in children.get(queue.pop(), []):
            queue.append(child)
            if names[child].startswith("ray::") and "IDLE" not in names[child]:
                found.append(child)
    return found


def shards(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in (home / "shards").rglob("*.parquet")}


@pytest.mark.timeout(1200)
def test_ten_kills_leave_no_trace(tmp_path: Path) -> None:
    recipe = make_all(tmp_path / "sources")
    make_images(tmp_path / "sources" / "images", 160, size=200)
    home, calm = tmp_path / "home", tmp_path / "calm"
    began = time.monotonic()
    finish(recipe, calm)
    whole = time.monotonic() - began
    draw, driver_kills, worker_kills, rounds = random.Random(20261124), 0, 0, 0
    while driver_kills + worker_kills < KILLS:
        rounds += 1
        assert rounds < 4 * KILLS, f"only {driver_kills} driver and {worker_kills} worker kills hit anything"
        process = start(recipe, home)
        try:
            process.wait(draw.uniform(0.1, 0.95) * whole)
        except subprocess.TimeoutExpired:
            aims_at_worker = worker_kills < driver_kills
            victims = workers_of(process.pid) if aims_at_worker else [process.pid]
            if victims:
                os.kill(draw.choice(victims), signal.SIGKILL)
                worker_kills += aims_at_worker
                driver_kills += not aims_at_worker
            if aims_at_worker:
                process.wait(240)
        said = process.communicate(timeout=60)[0]
        if process.returncode == 0:
            assert shards(home) == shards(calm), said
            shutil.rmtree(home)  # all done: the next kill needs something to hit
    finish(recipe, home)
    assert shards(home) == shards(calm)
    assert [p for m in manifests(home) for p in problems(home, m)] == []
    twice = "SELECT count(*) - count(DISTINCT sample_id) AS n FROM images"
    assert query(home, twice).to_pylist() == [{"n": 0}]
    assert not list(home.rglob(".tmp-*")), "drafts of the dead were swept"
    print(f"{driver_kills} driver kills, {worker_kills} worker kills, {rounds} rounds")
