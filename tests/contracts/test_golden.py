"""Output may move only together with a version: golden hashes of what every stage makes of the generated sources.

Hashes are over rows, not over files, without the encoded pixels. The sources are written by the pinned Pillow and
nibabel: other releases may give other bytes, and with them other ids. To accept a change, move the stage's (or the
decoder's) VERSION and run with MEDLOOM_GOLDEN=write.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from sources import make_all

from catalog import shards
from catalog.manifest import Manifest, scan
from catalog.schema import LAYERS
from flows import build as work
from flows.recipe import load_recipe
from infra.keys import key
from infra.runner import InlineRunner

GOLDEN = Path(__file__).with_name("golden.json")
CODEC = ("image", "sha256", "phash")


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Manifest]]:
    root = tmp_path_factory.mktemp("golden")
    steps = load_recipe(make_all(root / "sources"))
    plan = work.prepare(steps, root / "home")
    progress = work.Progress(plan.todo)
    with InlineRunner() as runner:
        work.run_chains(plan.chains, steps, root / "home", runner, progress)
    assert not progress.errors
    return root / "home", [entry.read(root / "home") for entry in scan(root / "home")]


def test_no_output_moves_without_its_version(manifests: tuple[Path, list[Manifest]]) -> None:
    home, found = manifests
    made: dict[str, str] = {}
    total = 0
    for name in sorted({f"{m.source}/{m.stage}" for m in found}):
        units = sorted((m for m in found if f"{m.source}/{m.stage}" == name), key=lambda m: m.partition)
        rows = [
            {column: value for column, value in row.items() if column not in CODEC or layer != "images"}
            for unit in units for layer in LAYERS for row in shards.read(home, unit.shards, layer).to_pylist()
        ]
        versions = {unit.stage_version for unit in units} | {v for u in units for v in u.ingredients.items()}
        total += len(rows)
        made[name] = f"{key(sorted(map(str, versions)))} {key(json.loads(json.dumps(rows, default=str)))}"
    assert total > 400
    if os.environ.get("MEDLOOM_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(made, indent=1) + "\n")
    golden: dict[str, str] = json.loads(GOLDEN.read_text())
    assert made.keys() == golden.keys()
    moved = [n for n in made if made[n] != golden[n] and made[n].split()[0] == golden[n].split()[0]]
    assert not moved, f"{moved} gave other rows under the same version: move the VERSION, then MEDLOOM_GOLDEN=write"
    assert made == golden, "versions moved: look at what changed, then run with MEDLOOM_GOLDEN=write"
