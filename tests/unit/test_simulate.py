"""The simulation: the same answer every time, the runner's own rules, and what a person can work out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sources import make_images
from typer.testing import CliRunner

from flows import build as work
from flows.recipe import load_recipe
from flows.simulate import Cluster, Measured, Measurements, Work, answer, chains, measure, simulate_command, table
from infra.errors import ConfigError
from infra.runner import InlineRunner
from infra.schedule import Capacity
from infra.simulation import Cost, Faults, simulate
from infra.steps import Step
from transforms.stage import Resources


def step(stage: str, seconds: float, pool: str | None = None, **needs: Any) -> Step:
    return Step(stage, print, Cost(stage, seconds, needs.pop("mb", 0.0)), pool, list if pool else None, **needs)


def test_what_can_be_worked_out_by_hand() -> None:
    two = [[step("a", 10), step("b", 20)] for _ in range(8)]
    assert simulate(two, 1, Capacity(1)).seconds == 240
    assert simulate(two, 2, Capacity(2)).seconds == 60
    models = [[step("m", 10, "model", gpus=1)] for _ in range(8)]
    run = simulate(models, 2, Capacity(8, 2), load_seconds=5)
    assert run.seconds == 25 and run.opened == {"model": 4}, "each of 4 GPUs loads once and serves twice"
    assert run.gpu_seconds["m"] == 100
    assert simulate([[step("r", 10, mb=100)]] * 2, 1, Capacity(2), megabytes_per_second=10).seconds == 30


def test_failing_nodes_cost_time_and_no_step() -> None:
    todo = [[step("a", 600), step("b", 600)] for _ in range(200)]
    calm, stormy = (simulate(todo, 10, Capacity(4), faults=f, seed=3) for f in (None, Faults(0.5, 300)))
    assert calm.steps == stormy.steps == 400
    assert stormy.failures > 3 and stormy.lost > 0 and stormy.seconds > calm.seconds
    assert stormy == simulate(todo, 10, Capacity(4), faults=Faults(0.5, 300), seed=3)


def test_a_step_that_fits_nowhere_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no node can take model \(1 CPUs, 8 GPUs\)"):
        simulate([[step("model", 1, "p", gpus=8)]], 3, Capacity(4, 4))


def test_the_bottleneck_is_what_is_worth_doubling() -> None:
    known = {("s", "ingest"): Measured([0.001], 0.1), ("s", "ground"): Measured([0.1], 0.1)}
    stages = [Work("ingest", Resources(), False), Work("ground", Resources(gpus=1), True)]
    prices = {"node_hour": 2.0, "in": 1.0, "out": 4.0}
    said = answer(Measurements({"s": 1.0}, known, 200, 50), stages, Cluster(4, 8, 1, 64), 400_000, 1000, 0.0, prices)
    assert said["bottleneck"]["resource"] == "gpus" and said["bottleneck"]["stage"] == "ground"
    assert said["doubling"]["nodes"] > 1.8 and said["doubling"]["gpus of a node"] > 1.8
    assert said["doubling"]["cpus of a node"] < 1.05
    assert said["hours"] == pytest.approx(400_000 * 0.1 / 4 / 3600, rel=0.05)
    assert said["usd"]["nodes"] == pytest.approx(2 * said["node_hours"])
    assert said["usd"]["language models"] == pytest.approx(400_000 * (200 + 4 * 50) / 1e6)
    assert "bottleneck: gpus, of whose time ground takes 100%" in table(said)


def test_costs_come_from_a_real_home_and_their_mean_is_kept(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 24)
    recipe, home = tmp_path / "recipe.yaml", tmp_path / "home"
    recipe.write_text(f"""
name: measured
sources:
  - {{name: pictures, use: images, layout: imagefolder, root: {tmp_path}/images, modality: XC, identifiers: public,
     capacity: 8}}
stages: [{{use: image_type}}, {{use: measure}}]
""")
    steps = load_recipe(recipe)
    plan = work.prepare(steps, home)
    progress = work.Progress(plan.todo)
    with InlineRunner() as runner:
        work.run_chains(plan.chains, steps, home, runner, progress)
    work.commit(plan, progress, steps, home)
    found = measure(home)
    assert found.share == {"pictures": 1.0} and set(found.stages) == {
        ("pictures", "ingest"), ("pictures", "image_type"), ("pictures", "measure")
    }
    spent = sum(entry.read(home).seconds for chain in work.prepare(steps, home).chains for entry in chain.done)
    assert sum(sum(m.seconds) / len(m.seconds) for m in found.stages.values()) * 24 == pytest.approx(spent, rel=0.01)
    app = __import__("typer").Typer()
    app.command()(simulate_command)
    options = [str(recipe), "--home", str(home), "--images", "50000", "--nodes", "3", "--format"]
    said = [CliRunner().invoke(app, [*options, form]) for form in ("json", "json", "table")]
    assert [s.exit_code for s in said] == [0, 0, 0], said[0].output
    assert said[0].output == said[1].output and "50,000 images on 3 nodes" in said[2].output


def test_partitions_add_up_to_the_images() -> None:
    known = {(s, "ingest"): Measured([0.01], 0.0) for s in "ab"}
    shares = Measurements({"a": 0.25, "b": 0.75}, known, 0, 0)
    todo = list(chains(shares, [Work("ingest", Resources(), False)], 10_000, 900))
    assert sum(s.payload.seconds for chain in todo for s in chain) == pytest.approx(100)
