"""The build as a Prefect flow: what schedules start and the UI shows.

Prefect sees partition groups, never samples: each group is one task run, and the work inside is the runner's. Nothing
is passed through Prefect but small records; the catalog is the cache, so Prefect's own caching and results stay off.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from catalog import report, sheet
from catalog.builds import Build
from catalog.catalog import query, reader
from flows import build as work
from flows.plan import Plan
from flows.recipe import find_recipe, load_recipe
from infra.errors import MedloomError
from infra.runner import open_runner

watch: Callable[[work.Progress], object] = lambda _: None  # noqa: E731
"""Told of progress beside the artifact: the command line's progress bar."""


class _Opaque:
    """Prefect walks through what tasks return, and a plan may be large."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan


@flow(name="build", flow_run_name="{recipe}", persist_result=False, retries=0)
def build(
    recipe: Annotated[str, Field(description="a bundled recipe's name, or the path of a recipe file")] = "demo",
    home: Annotated[str, Field(description="folder of the dataset")] = "medloom-home",
    runner: Annotated[str, Field(description="inline, ray, auto or ray://HOST:PORT")] = "ray",
    changes: Annotated[list[str], Field(description="key=value changes to the recipe, as of --set")] = [],  # noqa: B006
    retry_failed: Annotated[bool, Field(description="try items again whose failure may be passing")] = False,
) -> str:
    """Build what the recipe describes and the dataset lacks, and record a snapshot.

    Returns a line that says what was done. Raises BuildError when there is no snapshot; what was committed stays.
    """
    log = get_run_logger()
    root = Path(home)
    steps = load_recipe(find_recipe(recipe), changes)
    for why in steps.left_out:
        log.info("source left out: %s", why)

    @task(name="plan", persist_result=False, cache_policy=NO_CACHE)
    def plan() -> _Opaque:
        return _Opaque(work.prepare(steps, root, retry_failed))

    todo = plan().plan
    if same := work.up_to_date(todo, root):
        log.info("nothing to do: snapshot %d is what the recipe describes", same.number)
        return f"nothing to do: snapshot {same.number} is up to date"
    progress = work.Progress(todo.todo)
    groups = work.groups(todo)
    shown = create_progress_artifact(0.0, key="progress", description=f"{todo.todo} units in {len(groups)} groups")
    with open_runner(runner) as running:

        @task(name="partitions", task_run_name="partitions {first}", persist_result=False, cache_policy=NO_CACHE)
        def partitions(index: int, first: str) -> str:
            before = len(progress.errors)
            work.run_chains(groups[index], steps, root, running, progress, lambda p: _show(shown, p))
            if bugs := progress.errors[before:]:
                raise work.BuildError(f"{len(bugs)} units stopped on a bug; first:\n{bugs[0]}")
            return f"{progress.done} of {progress.todo} units"

        for index, group in enumerate(groups):
            name = f"{group[0].partition.source}/{group[0].partition.name} (+{len(group) - 1})"
            state = partitions(index, name, return_state=True)
            log.info("%s: %d of %d units done", name, progress.done, progress.todo)
            if state.is_failed() and not progress.errors:
                state.result()  # a recipe or environment that cannot work: stop here

    @task(name="check and commit", persist_result=False, cache_policy=NO_CACHE)
    def commit() -> Build:
        return work.commit(todo, progress, steps, root)

    try:
        made = commit()
    except MedloomError as error:
        log.error("%s", error)
        raise
    _publish(root, made)
    return f"snapshot {made.number}: {progress.done} units run, {len(todo.done)} stood already"


_SHOW_EVERY = 0.02


def _show(artifact: UUID, progress: work.Progress) -> None:
    """Move the progress bar in steps of two percent: each move is a request to the server."""
    share, step = progress.done / max(progress.todo, 1), max(1, int(progress.todo * _SHOW_EVERY))
    watch(progress)
    if progress.done % step == 0 or progress.done == progress.todo:
        update_progress_artifact(artifact, progress=round(100 * share, 1))


def _publish(home: Path, made: Build) -> None:
    """What people look at in the UI: the funnel, the contact sheet, the report."""
    funnel = query(home, "SELECT * FROM funnel", made.number)
    create_table_artifact(funnel.to_pylist(), key="funnel", description=f"snapshot {made.number}: what became of every row")
    rejects = query(home, "SELECT source, stage, code, count(*) AS n, any_value(message) AS example FROM rejects "
                          "GROUP BY ALL ORDER BY n DESC, code", made.number)
    create_table_artifact(rejects.to_pylist(), key="rejects", description=f"snapshot {made.number}: what did not make it, and why")
    with reader(home, made.number) as con:
        create_markdown_artifact(sheet.markdown(sheet.cards(con, home)), key="contact-sheet",
                                 description=f"snapshot {made.number}: samples with their regions and captions")
    create_link_artifact((home / report.path(made)).resolve().as_uri(), link_text="the report of this build", key="report")
