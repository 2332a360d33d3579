"""`medloom simulate`: how long a recipe would take on a cluster that is not there, where it would wait, and the bill.

Costs are measured, not assumed: what each stage took per image in the builds of a home (the seconds and rows of its
manifests), drawn anew for every partition. They are put on the nodes by the rules that the runner itself follows
(infra/simulation.py). The invariant: the same home, recipe and options give the same answer.

    medloom simulate RECIPE --home HOME --images 25000000 --nodes 100 --node-cpus 32 --node-gpus 4

What it cannot know: a stage over the whole dataset is taken to cost the same per image as it did, on one CPU; a server
behind a stage (a language model) is taken to answer as fast as it did, however many ask.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from catalog.catalog import query
from flows.options import Changes, Home, RecipeName
from flows.plan import context_of
from flows.recipe import Recipe, find_recipe, load_recipe
from infra.errors import ConfigError
from infra.plugins import load
from infra.schedule import Capacity
from infra.simulation import Cost, Faults, Run, simulate
from infra.steps import Step
from transforms.curation.dataset import WholeStage
from transforms.stage import Resources

SAMPLE_IMAGES = 2_500_000
"""What doubling a resource brings is asked of about so many images, on their share of the nodes."""


@dataclass(frozen=True)
class Measured:
    """What one stage took of one source: seconds and megabytes per image, one entry a measured partition."""

    seconds: Sequence[float]
    megabytes: float


@dataclass(frozen=True)
class Work:
    """A stage as the simulation sees it."""

    name: str
    needs: Resources
    opens: bool
    whole: bool = False


@dataclass(frozen=True)
class Measurements:
    """What a home tells of its builds."""

    share: Mapping[str, float]
    """source -> its share of the images"""
    stages: Mapping[tuple[str, str], Measured]
    """(source, stage) -> cost"""
    tokens_in: float
    tokens_out: float
    """of language models, per image"""


def measure(home: Path) -> Measurements:
    """Read the costs off the newest snapshot of a home. Raises ConfigError when it has none."""
    units = query(home, "SELECT source, stage, rows_in, kept, seconds FROM current_units ORDER BY ALL").to_pylist()
    counts = query(home, "SELECT source, count(*) AS n FROM images GROUP BY 1").to_pylist()
    images = {row["source"]: row["n"] for row in counts}
    if not images:
        raise ConfigError(f"{home} has no images to measure by; build a few partitions of each source first")
    sizes = query(home, """SELECT u.source, u.stage, sum(s.bytes) / 1e6 AS mb FROM shards s
        JOIN current_units u ON s.unit = u.id GROUP BY ALL""").to_pylist()
    written = {(r["source"], r["stage"]): r["mb"] for r in sizes}
    stages: dict[tuple[str, str], Measured] = {}
    for key in sorted({(u["source"], u["stage"]) for u in units}):
        own = [u for u in units if (u["source"], u["stage"]) == key]
        total = sum(images.values()) if key[0] not in images else images[key[0]]
        rows = sum(u["rows_in"] for u in own)
        per_row = [u["seconds"] / u["rows_in"] for u in own for _ in range(u["rows_in"])] or [0.0]
        mean = sum(u["seconds"] for u in own) / rows if rows else 0.0
        scale = rows / total if mean else 0.0  # rows of this stage per image: items, or samples
        spread = [rate * scale for rate in sorted(per_row)[:: max(1, len(per_row) // 1000)]]
        level = mean * scale / (sum(spread) / len(spread)) if sum(spread) else 1.0
        megabytes = (written.get(key, 0.0) + written.get((key[0], "ingest"), 0.0)) / total
        stages[key] = Measured([rate * level for rate in spread], megabytes)
    spent = query(home, "SELECT sum(tokens_in) AS i, sum(tokens_out) AS o FROM costs").to_pylist()[0]
    everything = sum(images.values())
    return Measurements(
        {source: n / everything for source, n in sorted(images.items())}, stages,
        float(spent["i"] or 0) / everything, float(spent["o"] or 0) / everything,
    )


def works(recipe: Recipe, home: Path) -> list[Work]:
    """The stages of a recipe in order, with what each asks of a node."""
    context, found = context_of(recipe, home), [Work("ingest", Resources(), False)]
    for stage in recipe.stages:
        made = load("stage", stage.use).make_stage(stage.params, context)
        found.append(Work(stage.name, made.resources, made.open is not None, isinstance(made, WholeStage)))
    return found


def chains(
    measured: Measurements, stages: Sequence[Work], images: int, capacity: int, overhead: float = 0.0, seed: int = 0
) -> Iterator[list[Step]]:
    """One chain a partition of `capacity` images, the sources in turns."""
    draw, left = random.Random(seed), {source: round(images * share) for source, share in measured.share.items()}
    while any(left.values()):
        for source in left:
            size = min(capacity, left[source])
            left[source] -= size
            steps = [
                _step(work, source, known, size, overhead, draw) for work in stages
                if size and not work.whole and (known := measured.stages.get((source, work.name)))
            ]
            if steps:
                yield steps


def _step(work: Work, source: str, known: Measured, images: int, overhead: float, draw: random.Random) -> Step:
    cost = Cost(work.name, overhead + draw.choice(known.seconds) * images, known.megabytes * images)
    needs = work.needs
    return Step(
        f"{source}/{work.name}", print, cost, work.name if work.opens else None, list if work.opens else None,
        needs.cpus, needs.gpus, needs.memory_gb,
    )


@dataclass(frozen=True)
class Cluster:
    """What is asked about."""

    nodes: int
    cpus: float
    gpus: int
    memory_gb: float
    megabytes_per_second: float | None = None
    load_seconds: float = 30.0
    faults: Faults | None = None

    def run(self, todo: Iterator[list[Step]], seed: int = 0) -> Run:
        return simulate(
            todo, self.nodes, Capacity(self.cpus, self.gpus, self.memory_gb), load_seconds=self.load_seconds,
            megabytes_per_second=self.megabytes_per_second, faults=self.faults, seed=seed,
        )


def answer(
    measured: Measurements, stages: Sequence[Work], cluster: Cluster, images: int, capacity: int, overhead: float,
    prices: Mapping[str, float],
) -> dict[str, Any]:
    """Everything that the command says, as JSON."""
    run = cluster.run(chains(measured, stages, images, capacity, overhead))
    whole = {
        w.name: sum(known.seconds) / len(known.seconds) * images
        for w in stages if w.whole and (known := measured.stages.get(("dataset", w.name)))
    }
    seconds = run.seconds + sum(whole.values())
    held = {
        "cpus": (run.cpu_seconds, cluster.nodes * cluster.cpus),
        "gpus": (run.gpu_seconds, cluster.nodes * cluster.gpus),
    }
    use = {
        name: sum(by.values()) / (there * run.seconds) if there and run.seconds else 0.0
        for name, (by, there) in held.items()
    }
    scarce = max(use, key=lambda name: use[name])
    spent = held[scarce][0]
    slowest = max(spent, key=lambda stage: spent[stage], default="none")
    fewer = max(1, min(cluster.nodes, round(cluster.nodes * SAMPLE_IMAGES / images)))  # as many images for each node
    sample = -(-images * fewer // cluster.nodes)
    part = replace(cluster, nodes=fewer)

    def of_sample(changed: Cluster) -> float:
        return changed.run(chains(measured, stages, sample, capacity, overhead)).seconds

    base = of_sample(part)
    doubled = {
        "nodes": replace(part, nodes=2 * part.nodes), "cpus of a node": replace(part, cpus=2 * part.cpus),
        "gpus of a node": replace(part, gpus=2 * part.gpus),
        "memory of a node": replace(part, memory_gb=2 * part.memory_gb),
        **({"storage of a node": replace(part, megabytes_per_second=2 * part.megabytes_per_second)}
           if part.megabytes_per_second else {}),
    }
    node_hours = cluster.nodes * seconds / 3600
    tokens = {"in": measured.tokens_in * images, "out": measured.tokens_out * images}
    bill = {"nodes": node_hours * prices["node_hour"],
            "language models": (tokens["in"] * prices["in"] + tokens["out"] * prices["out"]) / 1e6}
    return {
        "images": images, "cluster": asdict(cluster), "hours": seconds / 3600,
        "hours_over_all": sum(whole.values()) / 3600,
        "node_hours": node_hours, "steps": run.steps, "node_failures": run.failures, "steps_lost": run.lost,
        "models_loaded": dict(sorted(run.opened.items())),
        "utilisation": use, "bottleneck": {"resource": scarce, "stage": slowest,
                                           "share": spent[slowest] / (sum(spent.values()) or 1.0)},
        "stages": [
            {"stage": w.name, "cpu_hours": run.cpu_seconds[w.name] / 3600, "gpu_hours": run.gpu_seconds[w.name] / 3600,
             "storage_wait_hours": run.wait_seconds[w.name] / 3600} for w in stages if not w.whole
        ] + [
            {"stage": name, "cpu_hours": taken / 3600, "gpu_hours": 0.0, "storage_wait_hours": 0.0}
            for name, taken in whole.items()
        ],
        "doubling": {name: base / max(1e-9, of_sample(changed)) for name, changed in doubled.items()},
        "tokens": tokens, "usd": {**bill, "all": sum(bill.values())},
    }


def simulate_command(
    recipe: RecipeName,
    home: Home,
    images: Annotated[int, typer.Option(help="How many images to build.", min=1)] = 1_000_000,
    nodes: Annotated[int, typer.Option(help="Nodes of the cluster.", min=1)] = 1,
    node_cpus: Annotated[float, typer.Option(help="CPUs of a node.")] = 32,
    node_gpus: Annotated[int, typer.Option(help="GPUs of a node.")] = 0,
    node_memory: Annotated[float, typer.Option(help="Memory of a node, in GB.")] = 128,
    node_storage: Annotated[float | None, typer.Option(help="MB/s between a node and the storage; no limit.")] = None,
    partition: Annotated[int, typer.Option(help="Images of a partition.", min=1)] = 1000,
    load_seconds: Annotated[float, typer.Option(help="What loading a stage's model takes.")] = 30,
    overhead_ms: Annotated[float, typer.Option(help="What a step takes beside its work.")] = 20,
    hours_between_failures: Annotated[float | None, typer.Option(help="Of one node; none fails.")] = None,
    usd_per_node_hour: Annotated[float, typer.Option(help="Price of a node.")] = 0,
    usd_per_mtok_in: Annotated[float, typer.Option(help="Price of a million tokens read.")] = 0,
    usd_per_mtok_out: Annotated[float, typer.Option(help="Price of a million tokens written.")] = 0,
    set: Changes = [],  # noqa: B006
    format: Annotated[str, typer.Option(help="table or json.")] = "table",
) -> None:
    """Say how long RECIPE would take on a cluster, where it would wait and what it would cost, from measured builds."""
    loaded = load_recipe(find_recipe(recipe), set)
    faults = Faults(hours_between_failures) if hours_between_failures else None
    cluster = Cluster(nodes, node_cpus, node_gpus, node_memory, node_storage, load_seconds, faults)
    prices = {"node_hour": usd_per_node_hour, "in": usd_per_mtok_in, "out": usd_per_mtok_out}
    said = answer(measure(home), works(loaded, home), cluster, images, partition, overhead_ms / 1000, prices)
    typer.echo(json.dumps(said, indent=1) if format == "json" else table(said))


def table(said: Mapping[str, Any]) -> str:
    """The same for people."""
    cluster, neck, usd = said["cluster"], said["bottleneck"], said["usd"]
    lines = [
        f"{said['images']:,} images on {cluster['nodes']} nodes of {cluster['cpus']:g} CPUs, {cluster['gpus']} GPUs: "
        f"{said['hours']:.2f} h ({said['hours_over_all']:.2f} h of it over the whole dataset, on one CPU)",
        f"{said['node_hours']:,.1f} node-hours; CPUs {said['utilisation']['cpus']:.0%} and GPUs "
        f"{said['utilisation']['gpus']:.0%} in use; {said['node_failures']} nodes failed, "
        f"{said['steps_lost']} steps lost",
        f"bottleneck: {neck['resource']}, of whose time {neck['stage']} takes {neck['share']:.0%}",
        "", f"{'stage':<24}{'CPU hours':>12}{'GPU hours':>12}{'storage h':>12}",
        *(f"{s['stage']:<24}{s['cpu_hours']:>12,.2f}{s['gpu_hours']:>12,.2f}{s['storage_wait_hours']:>12,.2f}"
          for s in said["stages"]),
        "", *(f"twice the {name}: {times:.2f} times as fast" for name, times in said["doubling"].items()),
        "", f"bill: {usd['all']:,.2f} USD (nodes {usd['nodes']:,.2f}, language models {usd['language models']:,.2f} "
        f"for {said['tokens']['in']:,.0f} tokens in, {said['tokens']['out']:,.0f} out)",
    ]
    return "\n".join(lines)
