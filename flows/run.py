"""A build from the command line: the same flow that schedules start, with a progress bar.

With a Prefect server at hand (PREFECT_API_URL, or the one that `medloom serve` runs for this home) the run is seen
there; without one, Prefect starts a temporary server on loopback that keeps its records in HOME/prefect.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.build import prepare, up_to_date
from flows.recipe import find_recipe, load_recipe
from flows.serve import address_of


def run_build(recipe: str, home: Path, runner: str, changes: Sequence[str], retry_failed: bool = False) -> str:
    """Build; returns a line about what was done. A build with nothing to do starts neither Prefect nor Ray."""
    path = find_recipe(recipe)
    loaded = load_recipe(path, changes)
    for why in loaded.left_out:
        print(f"source left out: {why}", file=sys.stderr)
    if same := up_to_date(prepare(loaded, home, retry_failed), home):
        return f"nothing to do: snapshot {same.number} is what the recipe describes"
    use_prefect(home)
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from flows import flow

    logging.getLogger("prefect").setLevel(logging.WARNING)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, disable=not sys.stderr.isatty()) as bars:
        bar = bars.add_task("units", total=None)
        flow.watch = lambda p: bars.update(bar, completed=p.done, total=p.todo)
        name = recipe if path.parent.name == "recipes" and not Path(recipe).exists() else str(path.resolve())
        return flow.build(name, str(home), runner, list(changes), retry_failed)


def use_prefect(home: Path) -> None:
    """Point Prefect at the server to use, before it is imported."""
    os.environ.setdefault("PREFECT_HOME", str((home / "prefect").resolve()))
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    if "PREFECT_API_URL" not in os.environ and (address := address_of(home)):
        os.environ["PREFECT_API_URL"] = address
