"""The command that the kill tests kill: a build without Prefect. Usage: driver.py RECIPE HOME [RUNNER]"""

from __future__ import annotations

import sys
from pathlib import Path

from flows import build as work
from flows.recipe import load_recipe
from infra.mirror import home_of
from infra.runner import RayRunner, open_runner


def main(recipe: Path, home: Path, runner: str = "ray") -> None:
    steps = load_recipe(recipe)
    plan = work.prepare(steps, home)
    if work.up_to_date(plan, home):
        return
    progress = work.Progress(plan.todo)
    print(f"todo {plan.todo}", flush=True)
    with RayRunner(cpus=2) if runner == "ray" else open_runner(runner) as running:
        work.run_chains(plan.chains, steps, home, running, progress, lambda p: print(f"done {p.done}", flush=True))
    print(f"snapshot {work.commit(plan, progress, steps, home).number}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), home_of(sys.argv[2]), *sys.argv[3:])
