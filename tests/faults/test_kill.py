"""kill -9 of the driver, of Ray's workers and of its raylet at random moments, then the same command: the same bytes.

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
from collections import Counter
from pathlib import Path

import pytest
from sources import make_all, make_images
from standing import victims

from catalog.catalog import query
from catalog.verify import manifests, problems

ROOT = Path(__file__).parents[2]
ROUNDS = ("driver", "worker", "raylet")
"""Who is killed, in turns."""


def start(recipe: Path, home: Path) -> subprocess.Popen[bytes]:
    """The build; what it says goes to a file: Ray's agents outlive a killed driver and would hold a pipe open."""
    command = [sys.executable, str(Path(__file__).with_name("driver.py")), str(recipe), str(home)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(recipe.with_suffix(".log"), "wb") as said:
        return subprocess.Popen(command, env=environment, stdout=said, stderr=said)


def finish(recipe: Path, home: Path) -> None:
    with start(recipe, home) as process:
        process.wait(240)
    assert process.returncode == 0, recipe.with_suffix(".log").read_text()


def shards(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in (home / "shards").rglob("*.parquet")}


def progress(log: Path) -> tuple[int, int]:
    """Units done, and units to do, as the driver said last."""
    said = dict(line.split(maxsplit=1) for line in log.read_text().splitlines() if line.startswith(("todo ", "done ")))
    return int(said.get("done", 0)), int(said.get("todo", 1))


@pytest.mark.long  # the soak of the default suite kills the same processes and compares the same bytes
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [15])
def test_kills_leave_no_trace(tmp_path: Path, kills: int) -> None:
    recipe = make_all(tmp_path / "sources")
    make_images(tmp_path / "sources" / "images", 100, size=160)
    home, calm = tmp_path / "home", tmp_path / "calm"
    began = time.monotonic()
    finish(recipe, calm)
    whole = time.monotonic() - began
    draw, hits = random.Random(20261124), Counter[str]()
    while hits.total() < kills:
        target = ROUNDS[hits.total() % len(ROUNDS)]
        with start(recipe, home) as process:
            # a driver may die at any time, planning and commit included; workers and raylets only while there are any
            moment, share = time.monotonic() + draw.uniform(0, 0.9) * whole, draw.uniform(0.05, 0.9)
            while process.poll() is None:
                done, todo = progress(recipe.with_suffix(".log"))
                due = time.monotonic() > moment if target == "driver" else done > 0 and done >= share * todo
                if due and (found := victims(process.pid, target)):
                    os.kill(draw.choice(found), signal.SIGKILL)
                    hits[target] += 1
                    break
                time.sleep(0.02)
            process.wait(120)
        if process.returncode == 0:
            assert shards(home) == shards(calm)
            shutil.rmtree(home)  # all done: the next kill needs something to hit
    finish(recipe, home)
    assert shards(home) == shards(calm)
    assert [p for m in manifests(home) for p in problems(home, m)] == []
    twice = "SELECT count(*) - count(DISTINCT sample_id) AS n FROM images"
    assert query(home, twice).to_pylist() == [{"n": 0}]
    assert not list(home.rglob(".tmp-*")), "drafts of the dead were swept"
    print(f"{dict(hits)} killed")
