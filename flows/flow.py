"""The build as a Prefect flow: what schedules start and the UI shows.

Prefect sees partition groups, never samples: each group is one task run, and the work inside is the runner's. The
invariant: nothing passes through Prefect but names, counts and what people look at; the catalog is the cache, so
Prefect's own caching and results stay off, and stopping a run at any point costs no more than the units under way.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from uuid import UUID

from prefect import State, flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.states import Cancelled
from pydantic import Field

from catalog.gc import building
from flows import build as work
from flows.artifacts import artifacts
from flows.deploy import refuse_secrets
from flows.plan import Chain
from flows.recipe import Recipe, find_recipe, load_recipe
from flows.server import served
from infra import redact, telemetry
from infra.errors import MedloomError
from infra.lease import Lease, held, store_of
from infra.mirror import home_of
from infra.runner import Runner, open_runner

T = TypeVar("T")

TELL_S = 1.0
"""Seconds between two requests that move the progress bar, at the least."""
RUNNERS = {"anyOf": [
    {"title": "by name", "enum": ["ray", "inline", "auto"]}, {"title": "by address", "pattern": "^ray://.+"},
]}
"""The choices that the form of the UI offers."""
MOST_LIMITS = 200
"""Limits that Prefect tells of at once."""

watch: Callable[[work.Progress], object] = lambda _: None  # noqa: E731
"""Told of every unit beside the progress artifact: the command line's progress bar."""


def _run_name() -> str:
    return Path(runtime.flow_run.parameters["recipe"]).stem


@flow(name="build", flow_run_name=_run_name, persist_result=False)
def build(
    recipe: str = "demo", home: str = "medloom-home",
    runner: Annotated[str, Field(json_schema_extra=RUNNERS)] = "ray", changes: list[str] = [],  # noqa: B006
    retry_failed: bool = False,
) -> str | State[Any]:
    """Build what the recipe describes and the dataset lacks, and record a snapshot.

    Returns a line that says what was done, or the state Cancelled when somebody asked for that in the UI. Raises
    BuildError when there is no snapshot; what was committed stays, and the next run goes on from there.

    Args:
        recipe: A bundled recipe's name, or a recipe file.
        home: Folder of the dataset, or s3://BUCKET/PREFIX.
        runner: inline, ray, auto or ray://HOST:PORT.
        changes: Changes to the recipe, such as stages.caption.captioner=llm.
        retry_failed: Try items again whose failure may pass.
    """
    with redact.leaving():  # before Prefect writes it down
        return _run(recipe, home_of(home), runner, changes, retry_failed)


def _run(recipe: str, root: Path, runner: str, changes: Sequence[str], retry_failed: bool) -> str | State[Any]:
    log = get_run_logger()
    refuse_secrets(changes)
    steps = load_recipe(find_recipe(recipe), changes)
    for why in steps.left_out:
        log.warning("source left out: %s", why)
    private = [source.name for source in steps.sources if source.identifiers == "private"]
    run = f"flow run {runtime.flow_run.name}"
    with (
        held(store_of(root), steps.name, run) as lease, building(root),
        telemetry.build(root, steps.name, private, steps),
    ):
        return _built(steps, root, runner, retry_failed, lease)


def _built(steps: Recipe, root: Path, runner: str, retry_failed: bool, lease: Lease) -> str | State[Any]:
    log = get_run_logger()
    plan = _task("plan", "plan", partial(work.prepare, steps, root, retry_failed))
    if same := work.up_to_date(plan, root):
        log.info("nothing to do: snapshot %d is what the recipe describes", same.number)
        return f"nothing to do: snapshot {same.number} is up to date"
    progress = work.Progress(plan.todo)
    with get_client(sync_client=True) as client:
        try:
            tell = _Teller(client, progress, lease)
            with _limited(client, steps), _opened(runner) as running:
                groups = work.groups(plan)
                run = work.Run(groups, steps, root, running, progress, tell)
                for index, group in enumerate(groups):
                    try:
                        _task("partitions", _group_name(group), partial(_finish, run, index))
                    except work.BuildError as error:
                        log.error("%s", error)  # the other groups still run; the commit will refuse
            made = _task("commit", "check and commit", partial(work.commit, plan, progress, steps, root, lease.fence))
        except CancelledRun:
            return Cancelled(message=f"cancelled after {progress.done} of {progress.todo} units")
        except MedloomError as error:
            log.error("%s", error)
            raise
        address = os.environ.get("MEDLOOM_REPORTS_URL") or served(root).get("reports", "")
        for artifact in artifacts(root, made, address):
            about = f"snapshot {made.number}: {artifact.about}"
            _show(client, artifact.key, artifact.kind, artifact.data, about)
    result = f"snapshot {made.number}: {progress.done} units run, {len(plan.done)} stood already"
    log.info("%s", result)
    return result


def _task(name: str, run_name: str, call: Callable[[], T]) -> T:
    """Make a call as a task run. It goes in and comes out by closure: Prefect walks through arguments and results."""
    result: list[T] = []

    @task(name=name, task_run_name=run_name, persist_result=False, cache_policy=NO_CACHE)
    def body() -> State[Any] | None:
        try:
            with redact.leaving():
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


def _limited(client: SyncPrefectClient, steps: Recipe) -> AbstractContextManager[None]:
    """A slot of each of the server's concurrency limits that the recipe's services fall under.

    One slot for the whole of a build's work: its units are one stream over all groups. Without such a limit, or when
    the server goes away meanwhile, the build goes on.
    """
    known = {limit.name for limit in client.read_global_concurrency_limits(limit=MOST_LIMITS) if limit.active}
    names = sorted(known & services(steps))
    if names:
        get_run_logger().info("waiting for a slot of %s", ", ".join(names))
    return concurrency(names, strict=False) if names else nullcontext()


def services(steps: Recipe) -> set[str]:
    """What limits may be named by: the connectors and stages in use, `llm` for any model endpoint, `ncbi` for PMC."""
    connectors, stages = {source.use for source in steps.sources}, {stage.use for stage in steps.stages}
    asks = any(_asks(stage.params.model_dump(mode="json")) for stage in steps.stages)
    return connectors | stages | ({"llm"} if asks else set()) | ({"ncbi"} if "pmc" in connectors else set())


def _asks(params: Any) -> bool:
    """Whether an endpoint's address stands anywhere in a stage's parameters."""
    if isinstance(params, dict):
        return bool(params.get("base_url")) or any(map(_asks, params.values()))
    return isinstance(params, list) and any(map(_asks, params))


class _Teller:
    """Moves the progress artifact, and stops a run that was cancelled in the UI and that no `medloom serve` stops."""

    def __init__(self, client: SyncPrefectClient, progress: work.Progress, lease: Lease) -> None:
        self._client, self._next, self._share, self._lease = client, 0.0, -1.0, lease
        share = 0.0 if progress.todo else 100.0
        self._bar = _show(client, "progress", "progress", share, f"0 of {progress.todo} units")

    def __call__(self, progress: work.Progress) -> None:
        watch(progress)
        self._lease.check()
        if time.monotonic() < self._next and progress.done < progress.todo:
            return
        share, words = 100 * progress.done / progress.todo, f"{progress.done} of {progress.todo} units"
        if round(share, 1) != self._share:  # each move is an event, 3.5 KB in the database
            self._share = round(share, 1)
            self._client.update_artifact(self._bar, ArtifactUpdate(data=self._share, description=words))
        state = self._client.read_flow_run(UUID(runtime.flow_run.id)).state
        if state and state.is_cancelling():
            raise CancelledRun(f"cancelled after {words}")
        self._next = time.monotonic() + TELL_S


def _show(client: SyncPrefectClient, key: str, kind: str, data: Any, description: str) -> UUID:
    """Make an artifact of this flow run."""
    run = UUID(runtime.flow_run.id)
    made = client.create_artifact(
        ArtifactCreate(key=key, type=kind, data=data, description=description, flow_run_id=run)
    )
    return made.id
