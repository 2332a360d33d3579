"""A build whose stage `quality` kills its process over one sample. Usage: poisonedbuild.py RECIPE HOME inline|ray"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flows import build as work
from flows.recipe import load_recipe
from infra.runner import InlineRunner, RayRunner

POISON = "image0005"


def killing(row: Callable[..., Any], sample: Any, state: Any) -> Any:
    """What the row does, but for one sample."""
    if POISON in sample.image["source_item"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return row(sample, state)


def poisoned(unit: Any) -> Any:
    if unit.stage != "quality":
        return unit
    return replace(unit, work=replace(unit.work, row=partial(killing, unit.work.row)))


def main(recipe: Path, home: Path, runner: str) -> None:
    steps = load_recipe(recipe)
    plan = work.prepare(steps, home)
    chains = [replace(chain, todo=tuple(map(poisoned, chain.todo))) for chain in plan.chains]
    progress = work.Progress(plan.todo)
    with InlineRunner() if runner == "inline" else RayRunner(cpus=2) as running:
        work.run_chains(chains, steps, home, running, progress)
    work.commit(plan, progress, steps, home)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
