"""What a build adds to the work of its stages: milliseconds a partition and a unit, when the stages do nothing.

    python tests/benchmarks/overhead.py [--partitions 500] [--runner inline|ray] [--cpus 2] [--profile]

A source of one picture a partition, and two stages that say one word of each row and do nothing else. All the time
from the first unit's submission to the last manifest is then the build's own, but for what decoding the one picture
takes, which is told apart: so is what the units took themselves (`seconds` of their manifests), and what lies between
them: Ray, payloads, progress. Files are synced to the disk as in any build; a count of fsync goes with it.

The invariant: no time is printed unless every unit has a manifest.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from refresh import make_source

from catalog.manifest import read_manifest
from flows.build import Progress, prepare, run_chains
from flows.plan import Chain
from flows.recipe import Recipe, StageChoice, load_recipe
from infra.plugins import plugins
from infra.runner import InlineRunner, RayRunner, Runner
from transforms.stage import NoParams, SampleRows, Stage, each_sample

GOAL_MS = 20.0
WARM = 10
"""Partitions before the clock starts."""
NAMES = ("one", "two")


def say(sample: SampleRows, state: Any) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """One row of `checks`."""
    return {"checks": [{"text_id": "", "check": "seen", "version": "1", "value": 1.0, "verdict": "pass"}]}


def stage(name: str) -> ModuleType:
    """A plug-in that does nothing."""
    module = ModuleType(name)

    def make_stage(params: Any, context: Any) -> Stage:
        return each_sample(name, "1", reads=("images",), writes=("checks",), row=say, pixels=False)

    vars(module).update(NAME=name, VERSION="1", REQUIRES={}, Params=NoParams, make_stage=make_stage)
    return module


def recipe_of(folder: Path, partitions: int) -> Recipe:
    """One picture a partition, and the stages that do nothing."""
    known: Any = plugins("stage")
    known.update({name: stage(name) for name in NAMES})
    made = load_recipe(make_source(folder, partitions, 1), ())
    stages = tuple(StageChoice(use=name, name=name, params=NoParams()) for name in NAMES)
    return made.model_copy(update={"stages": stages})


def run(chains: Sequence[Chain], recipe: Recipe, home: Path, runner: Runner) -> tuple[float, float]:
    """(seconds from the first unit to the last manifest, seconds that the units say they took)."""
    progress = Progress(sum(len(chain.todo) for chain in chains))
    began = time.perf_counter()
    run_chains(chains, recipe, home, runner, progress)
    seconds = time.perf_counter() - began
    if progress.errors or len(progress.manifests) != progress.todo:
        raise SystemExit("\n".join(progress.errors[:1]) or "units are missing")
    return seconds, sum(read_manifest(home, path).seconds for path in progress.manifests)


def counted(counts: Counter[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def of(*args: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*args, **named)
        finally:
            counts[name] += 1
            counts[f"{name} µs"] += round(1e6 * (time.perf_counter() - began))

    return of


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--partitions", type=int, default=500)
    parser.add_argument("--runner", choices=("inline", "ray"), default="inline")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:1], os.environ.get("PYTHONPATH", "")])  # Ray's workers
    with tempfile.TemporaryDirectory(prefix="medloom-overhead-") as scratch:
        folder, home = Path(scratch), Path(scratch) / "home"
        recipe = recipe_of(folder, args.partitions + WARM)
        chains = prepare(recipe, home).chains
        units = sum(len(chain.todo) for chain in chains[WARM:])
        counts: Counter[str] = Counter()
        runner = InlineRunner() if args.runner == "inline" else RayRunner(cpus=args.cpus)
        profile = cProfile.Profile() if args.profile else None
        if args.runner == "inline":
            os.fsync = counted(counts, "fsync", os.fsync)
        with runner:
            run(chains[:WARM], recipe, home, runner)  # workers are up, and what they import is imported
            counts.clear()
            cpu = time.process_time()
            with profile or nullcontext():
                seconds, inside = run(chains[WARM:], recipe, home, runner)
            cpu = time.process_time() - cpu
        each, unit = 1000 / args.partitions, 1000 / units
        print(f"{args.runner}: {args.partitions} partitions, {units} units in {seconds:.1f} s: "
              f"{seconds * each:.1f} ms a partition, {seconds * unit:.1f} ms a unit   goal {GOAL_MS:g} ms a partition"
              f"{'' if seconds * each < GOAL_MS else '   MISSED'}")
        print(f"the units took {inside * unit:.1f} ms each; CPU of this process {cpu * each:.1f} ms a partition")
        if counts:
            print(f"fsync: {counts['fsync'] / units:.1f} a unit, {counts['fsync µs'] / args.partitions / 1000:.1f} "
                  "ms a partition")
        if profile:
            stats = pstats.Stats(profile).strip_dirs()
            stats.sort_stats("cumulative").print_stats(45)
            stats.sort_stats("tottime").print_stats(20)


if __name__ == "__main__":
    main()
