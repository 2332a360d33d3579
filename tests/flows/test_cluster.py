"""A build on a cluster of three raylets of this machine, one of which is killed under it: the bytes of a calm build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sources import make_images

from flows import build as work
from flows.recipe import load_recipe
from infra.runner import InlineRunner, RayRunner, Runner, Step

ROOT = Path(__file__).parents[2]
RECIPE = """
name: cluster
sources:
  - {{name: pictures, use: images, layout: imagefolder, root: {root}/images, modality: XC, identifiers: public,
     capacity: 8}}
stages:
  - {{use: image_type}}
  - {{use: measure}}
  - {{use: caption}}
  - {{use: verify}}
"""

CLUSTER = """
import os, sys
import ray
from ray.cluster_utils import Cluster
def patient(start):
    for tries in range(5):  # Ray gives a node 30 s to start, which a busy machine may not
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    sys.exit("no raylet starts on this machine within 30 s")
head = dict(num_cpus=0, include_dashboard=False, include_log_monitor=False, no_monitor=True)
cluster = patient(lambda: Cluster(initialize_head=True, head_node_args=head))
for _ in range(2):
    patient(lambda: cluster.add_node(num_cpus=1, object_store_memory=80 << 20))
def pid(node): return node.all_processes["raylet"][0].process.pid
print(cluster.address, *(pid(node) for node in cluster.worker_nodes), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[int]]]:
    """(address, process ids of the raylets of the two nodes that take steps); all on loopback, with a token."""
    environment = {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of this test alone, and long enough to be one",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_agent_register_timeout_ms": "120000",  # on a busy machine
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-W", "ignore", "-c", CLUSTER]
    with (
        open(tmp_path / "cluster.log", "w") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout and process.stdin
        said = process.stdout.readline().split()
        if not said:
            process.kill()
            pytest.fail((tmp_path / "cluster.log").read_text()[-3000:])
        yield said[0], [int(pid) for pid in said[1:]]
        process.stdin.close()
        process.wait(60)


def shards(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in (home / "shards").rglob("*.parquet")}


def build(recipe: Path, home: Path, runner: Runner, tell: Any = lambda _: None) -> None:
    steps = load_recipe(recipe)
    plan = work.prepare(steps, home)
    progress = work.Progress(plan.todo)
    with runner:
        work.run_chains(plan.chains, steps, home, runner, progress, tell)
    assert progress.errors == []
    work.commit(plan, progress, steps, home)


def where(payload: Any, state: Any) -> tuple[str, list[str]]:
    import time

    import ray

    time.sleep(0.5)
    shipped = [path for path in sys.path if "py_modules" in path and os.path.isdir(f"{path}/infra")]
    return ray.get_runtime_context().get_node_id(), shipped


def main(address: str, raylet: int, folder: Path) -> None:
    """Two builds, of which the second loses a node; exits with an error unless their bytes are equal."""
    make_images(folder / "images", 60, size=96)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=folder))
    build(recipe, folder / "calm", InlineRunner())
    killed = []

    def tell(progress: work.Progress) -> None:
        if progress.done >= progress.todo // 3 and not killed:
            killed.append(os.kill(raylet, signal.SIGKILL))

    runner = RayRunner(address)
    with runner:
        steps = [[Step(f"{n}", where, None, *pool)] for n in range(2) for pool in ((), ("p", list))]
        done = [step.value for step in runner.run(steps)]
        assert len({node for node, _ in done}) == 2, "actors and tasks are spread over the nodes"
        assert all(shipped for _, shipped in done), "our packages travelled"
    build(recipe, folder / "home", runner, tell)
    assert killed and shards(folder / "home") == shards(folder / "calm")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_raylet_is_killed_under_a_build_and_nothing_tells(cluster: tuple[str, list[int]], tmp_path: Path) -> None:
    address, raylets = cluster
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    # in a process of its own: Ray reads its token and its switches once
    command = [sys.executable, __file__, address, str(raylets[0]), str(tmp_path)]
    made = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-3000:]
    assert len(shards(tmp_path / "home")) == len(shards(tmp_path / "calm")) > 30


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
