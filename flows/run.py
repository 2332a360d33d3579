"""A build from the command line: the same flow that schedules start, with a progress bar.

With a Prefect server at hand (PREFECT_API_URL, or the one that `medloom serve` runs for this home) the run is seen
there; without one, a server of its own is started on loopback, keeps its records in HOME/prefect, and ends with it.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from flows.build import prepare, up_to_date
from flows.recipe import find_recipe, load_recipe
from flows.server import answers, portable, served, server
from infra.errors import ConfigError, MedloomError
from infra.lease import refuse, store_of
from infra.mirror import address_of


def run_build(recipe: str, home: Path, runner: str, changes: Sequence[str], retry_failed: bool = False) -> str:
    """Build; returns a line about what was done. A build with nothing to do starts neither Prefect nor Ray."""
    loaded = load_recipe(find_recipe(recipe), changes)
    for why in loaded.left_out:
        print(f"source left out: {why}", file=sys.stderr)
    refuse(store_of(home))  # before anything is started
    if same := up_to_date(prepare(loaded, home, retry_failed), home):
        return f"nothing to do: snapshot {same.number} is what the recipe describes"
    use_prefect(home)
    import httpx
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from flows import flow

    for name in ("prefect.flow_runs", "prefect.task_runs"):  # the UI keeps these; here an error is one message
        logging.getLogger(name).propagate = False
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, disable=not sys.stderr.isatty()) as bars:
        bar = bars.add_task("units", total=None)
        flow.watch = lambda p: bars.update(bar, completed=p.done, total=p.todo)
        try:
            given = (portable(recipe), address_of(home), runner, list(changes), retry_failed)
            state = flow.build(*given, return_state=True)
            if state.is_cancelled():
                raise MedloomError(f"{state.message}; what was committed stays, the same command goes on from there")
            return str(state.result())
        except (httpx.HTTPError, RuntimeError) as error:
            cause = error if isinstance(error, httpx.HTTPError) else error.__cause__ or error.__context__
            broken = isinstance(cause, httpx.HTTPStatusError) and cause.response.is_server_error  # as of its database
            if not broken and not isinstance(cause, httpx.TransportError):
                raise
            raise MedloomError(
                f"the Prefect server at {os.environ['PREFECT_API_URL']} {'failed' if broken else 'went away'} "
                f"({str(error).splitlines()[0]}); what was committed stays, and the same command goes on from there"
            ) from error


def use_prefect(home: Path) -> None:
    """Point Prefect at the server to use, before it is imported; start one when there is none.

    Raises ConfigError when PREFECT_API_URL leads nowhere.
    """
    (home / "prefect").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_HOME", str((home / "prefect").resolve()))
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    if given := os.environ.get("PREFECT_API_URL"):
        if not answers(given):
            raise ConfigError(f"no Prefect server answers at PREFECT_API_URL={given}; start it, or unset the variable")
    elif address := served(home).get("api"):
        os.environ["PREFECT_API_URL"] = address
    else:
        print(f"starting Prefect, its records go to {home / 'prefect'}", file=sys.stderr)
        stack = ExitStack()
        atexit.register(stack.close)  # after Prefect has sent its last events, which it does when the interpreter ends
        os.environ["PREFECT_API_URL"] = stack.enter_context(server(home, ui=False))
