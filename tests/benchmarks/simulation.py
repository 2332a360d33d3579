"""How well `medloom simulate` foretells: a real run of the runner on this machine against the simulation of its chains.

Two sets of chains on Ray with two CPUs: steps that sleep for drawn times, some on workers that take a second to open
(the rules of placing alone), and a real build of generated images, simulated from the seconds in its own manifests.
Prints the measured and the simulated makespan and their ratio; Ray's start is not counted on either side.

    PYTHONPATH=.:tests python tests/benchmarks/simulation.py [IMAGES]
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sources import make_images

from flows import build as work
from flows.recipe import load_recipe
from infra.runner import RayRunner, Step
from infra.schedule import Capacity
from infra.simulation import Cost, simulate

OVERHEAD = 0.02
LOAD = 1.0
RECIPE = """
name: simulated
sources:
  - {{name: pictures, use: images, layout: imagefolder, root: {root}/images, modality: XC, identifiers: public,
     capacity: 50}}
stages: [{{use: image_type}}, {{use: harmonise}}, {{use: measure}}, {{use: caption}}, {{use: verify}}]
"""


def sleep(payload: Cost, state: Any) -> None:
    time.sleep(payload.seconds)


def opened() -> str:
    time.sleep(LOAD)
    return "open"


def sleeping(count: int) -> list[list[Step]]:
    """Chains of three steps of 0.1 to 1 s; the second on workers of a pool."""
    draw = random.Random(5)
    return [
        [
            Step(f"{n}/{s}", sleep, Cost(s, draw.uniform(0.1, 1)), *(("p", opened) if s == "b" else ()))
            for s in "abc"
        ]
        for n in range(count)
    ]


def foretold(chains: Sequence[Sequence[Step]], overhead: float, load: float = LOAD) -> float:
    """The simulated makespan on one node of two CPUs."""
    def longer(step: Step) -> Step:
        return replace(step, payload=replace(step.payload, seconds=step.payload.seconds + overhead))

    return simulate([[longer(step) for step in chain] for chain in chains], 1, Capacity(2), load_seconds=load).seconds


def main(images: int = 400) -> dict[str, tuple[float, float, float]]:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    found = {}
    with tempfile.TemporaryDirectory() as folder, RayRunner(cpus=2) as runner:
        root = Path(folder)
        list(runner.run([[Step(f"warm {n}", sleep, Cost("w", 1.0))] for n in range(2)]))
        began = time.monotonic()
        list(runner.run([[Step("fresh", sleep, Cost("w", 0.0), "fresh", opened)]]))
        load = time.monotonic() - began  # a worker's start, and what it opens
        chains = sleeping(20)
        began = time.monotonic()
        list(runner.run(chains))
        measured = time.monotonic() - began
        found["sleeping"] = (measured, foretold(chains, OVERHEAD, load), foretold(chains, OVERHEAD, load) / measured)
        for count, name in ((20, "warm"), (images, "home")):  # the first imports what the workers need
            make_images(root / name / "images", count, size=256)
            (root / "recipe.yaml").write_text(RECIPE.format(root=root / name))
            steps = load_recipe(root / "recipe.yaml")
            plan = work.prepare(steps, root / name)
            progress = work.Progress(plan.todo)
            began = time.monotonic()
            work.run_chains(plan.chains, steps, root / name, runner, progress)
            measured = time.monotonic() - began
        assert progress.errors == [], progress.errors[0]
        took = {e.key: e.read(root / "home").seconds for c in work.prepare(steps, root / "home").chains for e in c.done}
        real = [
            [
                Step(u.stage, sleep, Cost(u.stage, took[u.key]), *(
                    (u.stage, opened) if getattr(u.work, "open", None) else ()
                ))
                for u in chain.todo
            ]
            for chain in plan.chains
        ]
        found["build"] = (measured, foretold(real, OVERHEAD, load), foretold(real, OVERHEAD, load) / measured)
        print(f"a fresh worker: {load:.1f} s; {len(took)} units, {sum(took.values()):.1f} s by their manifests")
    for name, (measured, said, ratio) in found.items():
        print(f"{name:<10} measured {measured:7.1f} s, simulated {said:7.1f} s, ratio {ratio:.2f}")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
