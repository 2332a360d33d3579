"""The command that the kill test kills: a build on Ray without Prefect. Usage: driver.py RECIPE HOME"""

from __future__ import annotations

import sys
from pathlib import Path

from flows import build as work
from flows.recipe import load_recipe
from infra.runner import RayRunner


def main(recipe: Path, home: Path) -> None:
    steps = load_recipe(recipe)
    plan = work.prepare(steps, home)
    progress = work.Progress(plan.todo)
    print(f"todo {plan.todo}", flush=True)
    with RayRunner(cpus=2) as runner:
        work.run_chains(plan.chains, steps, home, runner, progress, lambda p: print(f"done {p.done}", flush=True))
    print(f"snapshot {work.commit(plan, progress, steps, home).number}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
