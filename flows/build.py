"""A build: run what the plan lacks, check the whole, and record it as a snapshot.

Plain functions, no Prefect: `flows/flow.py` wraps them. The invariant: nothing becomes a snapshot unless every planned
unit has a manifest and no critical expectation fails; whatever stops a build, what was committed stays and counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from catalog import catalog, checks, datacard, report, review_sheet
from catalog.builds import Build, last_snapshot, numbers
from catalog.manifest import read_manifest
from flows.knowledge import ensure_knowledge
from flows.plan import Chain, Plan, make_plan
from flows.recipe import Recipe
from infra import mirror, telemetry
from infra.disk import room, watched
from infra.errors import ConfigError, MedloomError
from infra.runner import Done, Last, Runner, Step
from infra.storage import settle, sweep
from transforms.stage import fingerprint
from transforms.unit import IngestUnit, Unit, run_unit

GROUPS = 150
"""Partition groups of one flow run at the most: Prefect's database is not made for a task run a partition."""


class BuildError(MedloomError):
    """The build did not become a snapshot; what was committed stays, and the same command goes on from there."""


@dataclass
class Progress:
    """How far a build is; the flow shows it while it runs."""

    todo: int
    done: int = 0
    skipped: int = 0
    """units not run since one before them in their partition failed or was quarantined"""
    manifests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, done: Done) -> None:
        self.done += 1 + done.skipped
        self.skipped += done.skipped
        if done.error:
            self.errors.append(f"{done.step.id}: {done.error}")
        else:
            self.manifests.append(done.value)

    def skip(self, units: int) -> None:
        """Count units that are not run since something they read is missing."""
        self.done += units
        self.skipped += units


def prepare(recipe: Recipe, home: Path, retry_failed: bool = False) -> Plan:
    """Everything before the first unit: the home is ours, the knowledge bases stand, the plan is made."""
    last = last_snapshot(home)
    if last and last.name != recipe.name:
        raise ConfigError(
            f"{home} holds the dataset {last.name!r}, this recipe is {recipe.name!r}: name another --home, or name the "
            f"recipe {last.name!r} if it is the same dataset"
        )
    checks.require_known(recipe.checks.warn_only)
    sweep(home)
    with watched(home, "the plan"):
        mirror.refresh_sources(
            str(getattr(source.params, "root", "")) for source in recipe.sources
            if not getattr(source.params, "in_bucket", False)  # a connector that reads what it needs of it itself
        )
        if last and last.number not in catalog.published(home):
            catalog.refresh(home)  # a build was killed between its record and its publication
        ensure_knowledge(recipe, home)
        plan = make_plan(recipe, home, retry_failed)
    room(home, _expected_bytes(plan, home), "this build")
    return plan


def _expected_bytes(plan: Plan, home: Path) -> int:
    """What the units to do will write, as those of their stages on record did; of new stages nothing is known."""
    todo = Counter(unit.stage for chain in plan.chains for unit in chain.todo)
    if not todo or not catalog.published(home):
        return 0
    sql = """SELECT u.stage, sum(s.bytes) / count(DISTINCT u.id) AS mean
    FROM units u JOIN shards s ON s.unit = u.id GROUP BY 1"""
    means = {row["stage"]: row["mean"] for row in catalog.query(home, sql).to_pylist()}
    return int(sum(count * means.get(stage, 0) for stage, count in todo.items()))


def up_to_date(plan: Plan, home: Path) -> Build | None:
    """The snapshot that already is what the plan would build, or None."""
    last = last_snapshot(home)
    return last if last and plan.todo == 0 and last.units == tuple(sorted(plan.done)) else None


def groups(plan: Plan) -> list[Sequence[Chain]]:
    """The partitions that have something to do, in at most GROUPS groups, and what is over all of them as the last."""
    busy = [chain for chain in plan.chains if chain.todo and not chain.whole]
    size = -(-len(busy) // GROUPS) or 1
    last = [[chain] for chain in plan.chains if chain.todo and chain.whole]
    return [*(busy[i : i + size] for i in range(0, len(busy), size)), *last]


class Run:
    """The units of a build under way: one stream over all groups, so that no worker waits where one group ends.

    `finish(i)` runs until the units of group i have ended; units of later groups run meanwhile, those over the whole
    dataset when all others have ended, and not at all after a bug: they are never run over a part of it. Raises
    ConfigError at once; bugs are gathered in `progress`.
    """

    def __init__(
        self, groups: Sequence[Sequence[Chain]], recipe: Recipe, home: Path, runner: Runner, progress: Progress,
        tell: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._progress, self._tell, self._home = progress, tell, home
        self._left = [sum(len(chain.todo) for chain in group) for group in groups]
        self._group = {chain.partition.place: index for index, group in enumerate(groups) for chain in group}
        self._bugs: list[list[str]] = [[] for _ in groups]
        self._ended = self._run([chain for group in groups for chain in group], recipe, home, runner)

    def _run(self, chains: Sequence[Chain], recipe: Recipe, home: Path, runner: Runner) -> Iterator[Done]:
        yield from runner.run(_steps([chain for chain in chains if not chain.whole], recipe, home))
        last = [chain for chain in chains if chain.whole]
        if last and not self._progress.errors:
            yield from runner.run(_steps(last, recipe, home))

    def finish(self, index: int) -> Sequence[str]:
        """Run until the units of this group have ended; returns its bugs."""
        while self._left[index] > 0:
            done = next(self._ended, None)
            if done is None:
                self._progress.skip(self._left[index])
                self._left[index] = 0
                self._tell(self._progress)
                break
            if done.fatal:
                raise done.fatal
            self._progress.add(done)
            if not done.error:
                telemetry.committed(read_manifest(self._home, done.value))
            group = self._group[done.step.id.rpartition("/")[0]]
            self._left[group] -= 1 + done.skipped
            if done.error:
                self._bugs[group].append(self._progress.errors[-1])
            self._tell(self._progress)
        return self._bugs[index]


def run_chains(
    chains: Sequence[Chain], recipe: Recipe, home: Path, runner: Runner, progress: Progress,
    tell: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Run the units of these chains to their end."""
    Run([chains], recipe, home, runner, progress, tell).finish(0)


def _steps(chains: Sequence[Chain], recipe: Recipe, home: Path) -> Iterator[list[Step]]:
    for chain in chains:
        yield [_step(unit, home, recipe.checks.max_failed) for unit in chain.todo]


def _step(unit: Unit, home: Path, max_failed: float) -> Step:
    name = f"{unit.partition.place}/{unit.stage}"
    address = mirror.address_of(home)
    payload = (unit, address, max_failed, telemetry.carried())
    if isinstance(unit, IngestUnit):
        return Step(name, _do, payload)
    needs, work = unit.work.resources, unit.work
    pool = f"{unit.stage}-{fingerprint(work)}" if work.open else None
    opener = partial(_open, address, work.open) if work.open else None
    return Step(name, _do, payload, pool, opener, needs.cpus, needs.gpus, needs.memory_gb)


def _open(address: str, load: Callable[[], Any]) -> Any:
    """Load what a stage loads once per worker, on a machine that may not have met this home yet."""
    mirror.home_of(address)
    return load()


def _do(payload: tuple[Unit, str, float, telemetry.Carried | None], state: Any) -> str | Last:
    """The path of the unit's manifest; a quarantined one ends its partition's chain."""
    unit, address, max_failed, carried = payload
    telemetry.resume(carried)
    root = mirror.home_of(address)
    with watched(root, f"{unit.stage} of {unit.partition.place}"):
        manifest = run_unit(unit, root, max_failed, state)
    return Last(manifest.path) if manifest.quarantined else manifest.path


def commit(
    plan: Plan, progress: Progress, recipe: Recipe, home: Path, fence: Callable[[], object] = lambda: None
) -> Build:
    """Check the whole and record it; `fence` is called last before the record is written, and raises to prevent it.

    Raises BuildError when a unit failed or a critical expectation does.
    """
    if progress.errors:
        raise BuildError(
            f"{len(progress.errors)} of {progress.todo} units stopped on a bug, so there is no snapshot; what the "
            "others wrote stays, and the same command goes on from there. First:\n" + progress.errors[0]
        )
    if same := up_to_date(plan, home):
        return same
    sweep(home)  # drafts of workers that died under this build
    with watched(home, "the commit"), catalog.writer(home) as con:
        number = max(numbers(home), default=0) + 1  # in here: another build may have just ended
        draft = Build(
            number=number, status="snapshot", name=recipe.name, recipe=recipe.resolved(),
            units=tuple(sorted([*plan.done, *progress.manifests])), validations=(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        catalog.add_build(con, home, draft)
        con.execute(f"SET VARIABLE snapshot = {draft.number:d}")
        results = checks.validate(con, home, draft, recipe.checks.warn_only)
        broken = [v for v in results if v.critical and not v.success]
        build = draft.model_copy(update={"validations": results, "status": "refused" if broken else "snapshot"})
        catalog.add_build(con, home, build)
        for page in (report, review_sheet, datacard):
            page.write(home, build, con)
        settle(*(path for path in (home / "manifests").glob("*/*") if path.is_dir()))  # their units moved them there
        fence()
        build.write(home)
    if broken:
        why = "; ".join(f"{v.layer}: {v.expectation} ({v.detail})" for v in broken)
        raise BuildError(f"build {build.number} is no snapshot: {why}. The report: {home / report.path(build)}")
    return build
