"""Two builds, a reader and a garbage collection at once in one home, killed at random: nothing is lost, nobody waits
for ever."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sources import make_images

from catalog import catalog
from catalog.builds import last_snapshot
from catalog.catalog import query
from catalog.verify import manifests, problems

ROOT = Path(__file__).parents[2]
RECIPE = """
name: shared
sources:
  - {{name: pictures, use: images, layout: imagefolder, root: {root}/images, modality: XC, identifiers: public,
     capacity: 8}}
stages:
  - {{use: ground, experts: [foreground]}}
  - {{use: caption}}
"""
KILLS, SNAPSHOTS = 8, 3
"""It goes on until so many processes were killed and so many snapshots were made."""


def numbers(home: Path) -> int:
    """Of the newest snapshot, 0 before the first."""
    made = last_snapshot(home)
    return made.number if made else 0


def start(home: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "tests/faults/together.py"), words[0], str(home), *words[1:]],
            cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
        )


@pytest.mark.timeout(300)
def test_builds_readers_and_collections_share_a_home(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 30)
    recipe, home = tmp_path / "recipe.yaml", tmp_path / "home"
    recipe.write_text(RECIPE.format(root=tmp_path))
    changes = ("stages.caption.group_above=5", "stages.caption.group_above=6")
    jobs = {f"build{n}": ("build", str(recipe), change) for n, change in enumerate(changes)}
    jobs |= {"read": ("read",), "collect": ("collect",)}
    logs = {name: tmp_path / f"{name}.log" for name in jobs}
    running = {name: start(home, logs[name], *words) for name, words in jobs.items()}
    chance, kills = random.Random(8), 0
    try:
        while kills < KILLS or numbers(home) < SNAPSHOTS or b"read" not in logs["read"].read_bytes():
            time.sleep(chance.uniform(0.5, 6.0))
            for name, process in running.items():
                assert process.poll() is None, f"{name} ended by itself: {logs[name].read_text()[-1500:]}"
            name = chance.choice(sorted(running))
            os.kill(running[name].pid, signal.SIGKILL)
            running[name].wait()
            kills += 1
            running[name] = start(home, logs[name], *jobs[name])
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    catalog.refresh(home)
    assert [line for unit in manifests(home) for line in problems(home, unit)] == []
    assert query(home, "SELECT count(*) AS n FROM images").to_pylist() == [{"n": 30}]
