"""The build as a Prefect flow: what schedules start and the UI shows.

Prefect sees partition groups, never samples: each group is one task run, and the work inside is the runner's. The
invariant: nothing passes through Prefect but names, counts and what people look at; the catalog is the cache, so
Prefect's own caching and results stay off, and stopping a run at any point costs no more than the units under way.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from prefect import State, flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.states import Cancelled

from catalog import report, review_sheet, sheet
from catalog.builds import Build
from catalog.catalog import query, reader
from catalog.gc import building
from flows import build as work
from flows.plan import Chain
from flows.recipe import Recipe, find_recipe, load_recipe
from flows.server import served
from infra.errors import MedloomError
from infra.runner import Runner, open_runner

T = TypeVar("T")

TELL_S = 1.0
"""Seconds between two requests that move the progress bar, at the least."""
REJECTS = """SELECT source, stage, outcome, code, count(*) AS rows, min(message) AS example FROM rejects
GROUP BY ALL ORDER BY rows DESC, source, stage, code"""

watch: Callable[[work.Progress], object] = lambda _: None  # noqa: E731
"""Told of every unit beside the progress artifact: the command line's progress bar."""


def _run_name() -> str:
    return Path(runtime.flow_run.parameters["recipe"]).stem


@flow(name="build", flow_run_name=_run_name, persist_result=False)
def build(
    recipe: str = "demo", home: str = "medloom-home", runner: str = "ray", changes: list[str] = [],  # noqa: B006
    retry_failed: bool = False,
) -> str | State[Any]:
    """Build what the recipe describes and the dataset lacks, and record a snapshot.

    Returns a line that says what was done, or the state Cancelled when somebody asked for that in the UI. Raises
    BuildError when there is no snapshot; what was committed stays, and the next run goes on from there.

    Args:
        recipe: A bundled recipe's name, or a recipe file.
        home: Folder of the dataset.
        runner: inline, ray, auto or ray://HOST:PORT.
        changes: Changes to the recipe, such as stages.caption.captioner=llm.
        retry_failed: Try items again whose failure may pass.
    """
    log, root = get_run_logger(), Path(home)
    steps = load_recipe(find_recipe(recipe), changes)
    for why in steps.left_out:
        log.warning("source left out: %s", why)
    with building(root):
        return _built(steps, root, runner, retry_failed)


def _built(steps: Recipe, root: Path, runner: str, retry_failed: bool) -> str | State[Any]:
    log = get_run_logger()
    plan = _task("plan", "plan", partial(work.prepare, steps, root, retry_failed))
    if same := work.up_to_date(plan, root):
        log.info("nothing to do: snapshot %d is what the recipe describes", same.number)
        return f"nothing to do: snapshot {same.number} is up to date"
    progress = work.Progress(plan.todo)
    with get_client(sync_client=True) as client:
        try:
            tell = _Teller(client, progress)
            with _opened(runner) as running:
                groups = work.groups(plan)
                run = work.Run(groups, steps, root, running, progress, tell)
                for index, group in enumerate(groups):
                    try:
                        _task("partitions", _group_name(group), partial(_finish, run, index))
                    except work.BuildError as error:
                        log.error("%s", error)  # the other groups still run; the commit will refuse
            made = _task("commit", "check and commit", partial(work.commit, plan, progress, steps, root))
        except CancelledRun:
            return Cancelled(message=f"cancelled after {progress.done} of {progress.todo} units")
        except MedloomError as error:
            log.error("%s", error)
            raise
        _publish(client, root, made)
    result = f"snapshot {made.number}: {progress.done} units run, {len(plan.done)} stood already"
    log.info("%s", result)
    return result


def _task(name: str, run_name: str, call: Callable[[], T]) -> T:
    """Make a call as a task run. It goes in and comes out by closure: Prefect walks through arguments and results."""
    result: list[T] = []

    @task(name=name, task_run_name=run_name, persist_result=False, cache_policy=NO_CACHE)
    def body() -> State[Any] | None:
        try:
            result.append(call())
        except CancelledRun as error:
            return Cancelled(message=str(error))
        return None

    body()
    if not result:  # a cancelled task run raises nothing by itself
        raise CancelledRun(f"{run_name} was cancelled")
    return result[0]


def _finish(run: work.Run, index: int) -> None:
    try:
        bugs = run.finish(index)
    except SystemError as error:
        if isinstance(error.__cause__, TerminationSignal):  # Ray wraps what a signal raises while it waits
            raise error.__cause__ from None
        raise
    if bugs:
        raise work.BuildError(f"{len(bugs)} units stopped on a bug; first:\n{bugs[0]}")


def _group_name(group: Sequence[Chain]) -> str:
    first = group[0].partition.place
    return first if len(group) == 1 else f"{first} and {len(group) - 1} more"


@contextmanager
def _opened(address: str) -> Iterator[Runner]:
    """The runner, with SIGTERM as Prefect set it: Ray takes it for itself, and a cancelled run would look crashed."""
    before = signal.getsignal(signal.SIGTERM)
    with open_runner(address) as running:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
        yield running


class _Teller:
    """Moves the progress artifact, and stops a run that was cancelled in the UI and that no `medloom serve` stops."""

    def __init__(self, client: SyncPrefectClient, progress: work.Progress) -> None:
        self._client, self._next = client, 0.0
        share = 0.0 if progress.todo else 100.0
        self._bar = _show(client, "progress", "progress", share, f"0 of {progress.todo} units")

    def __call__(self, progress: work.Progress) -> None:
        watch(progress)
        if time.monotonic() < self._next and progress.done < progress.todo:
            return
        share, words = 100 * progress.done / progress.todo, f"{progress.done} of {progress.todo} units"
        self._client.update_artifact(self._bar, ArtifactUpdate(data=round(share, 1), description=words))
        state = self._client.read_flow_run(UUID(runtime.flow_run.id)).state
        if state and state.is_cancelling():
            raise CancelledRun(f"cancelled after {words}")
        self._next = time.monotonic() + TELL_S


def _publish(client: SyncPrefectClient, home: Path, made: Build) -> None:
    """What people look at in the UI: the funnel, the rejects, the contact sheet, the report."""
    snapshot = f"snapshot {made.number}"
    for key, sql, about in (("funnel", "SELECT * FROM funnel", "what became of every row"),
                            ("rejects", REJECTS, "what did not make it, and why")):
        rows = query(home, sql, made.number).to_pylist()
        _show(client, key, "table", json.dumps(rows, default=str), f"{snapshot}: {about}")
    with reader(home, made.number) as con:
        cards = sheet.markdown(sheet.cards(con, home))
        looks = review_sheet.markdown(review_sheet.reviews(con, home))
    # the UI shows character references in lists as they stand, and obeys backslashes everywhere
    _show(client, "contact-sheet", "markdown", cards, f"{snapshot}: samples with their regions and captions")
    _show(client, "review-sheet", "markdown", looks, f"{snapshot}: each expert's worst, oddest and random pictures")
    page = report.path(made)
    link = f"{address}/{page.removeprefix('reports/')}" if (address := served(home).get("reports")) else ""
    file = (home / page).resolve()
    _show(client, "report", "markdown", f"[the report of build {made.number}]({link or file.as_uri()})\n\n`{file}`",
          f"{snapshot}: the report, to be read before the dataset is trusted")


def _show(client: SyncPrefectClient, key: str, kind: str, data: Any, description: str) -> UUID:
    """Make an artifact of this flow run."""
    run = UUID(runtime.flow_run.id)
    made = client.create_artifact(
        ArtifactCreate(key=key, type=kind, data=data, description=description, flow_run_id=run)
    )
    return made.id
