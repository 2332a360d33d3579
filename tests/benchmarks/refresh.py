"""What a build costs that has nothing to do, or next to nothing: seconds, memory, and where the time goes.

    python tests/benchmarks/refresh.py --folder FOLDER [--partitions 5000] [--items 4] [--rounds 5] [--profile]

A source of folders, one patient and one partition each, `items` pictures in every one (links to few files, so that
5,000 x 1,000 need no disk), and the recipe ingest, harmonise, caption. The build itself is not the point: each unit's
manifest is written with what a build would write of it, and an empty file stands for each of its shards. Then
`medloom build` runs in a new process with nothing to do, `rounds` times, on a warm page cache; and once after one
picture of one partition has changed, as far as the plan, which must name that partition alone.

The invariant: no time is printed unless the build said that there was nothing to do.
"""

from __future__ import annotations

import argparse
import io
import os
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from catalog import catalog
from catalog.builds import Build
from catalog.manifest import Manifest, Shard
from catalog.schema import VERSION
from flows.plan import Plan, make_plan
from flows.recipe import load_recipe
from transforms.unit import SOFTWARE, Unit

GOAL_S = 10.0
MEDLOOM = "from flows.cli import main; main()"
PLAN = """
import sys
from pathlib import Path
from flows.build import prepare
from flows.recipe import load_recipe
plan = prepare(load_recipe(Path(sys.argv[1]), ()), Path(sys.argv[2]))
places = sorted({chain.partition.place for chain in plan.chains if chain.todo})
print(plan.todo, *places)
"""
RECIPE = """name: many
sources:
  - {{name: s, use: images, root: {root}, layout: imagefolder, patient_pattern: '^(p\\d+)/', capacity: {items},
     identifiers: public, modality: photograph}}
stages: [{{use: harmonise}}, {{use: caption, captioner: template}}]
"""


def make_source(folder: Path, partitions: int, items: int) -> Path:
    """The recipe of a source of so many folders of so many pictures; all are an hour old."""
    pictures, root = folder / "pictures", folder / "source"
    pictures.mkdir(parents=True, exist_ok=True)
    for item in range(items):
        pixels = np.random.default_rng(item).integers(0, 256, (8, 8), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        (pictures / f"{item}.png").write_bytes(data.getvalue())
        os.utime(pictures / f"{item}.png", (time.time() - 3600,) * 2)
    for number in range(partitions):
        own = root / f"p{number:06d}"
        own.mkdir(parents=True, exist_ok=True)
        for item in range(items):
            target = own / f"{item}.png"
            if not target.exists():
                os.link(pictures / f"{item}.png", target)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=root, items=items))
    return recipe


def stand(plan: Plan, home: Path, recipe: Path) -> None:
    """Write what a build of this plan would have left: manifests, files in the shards' places, a build record."""
    units = [_stand(unit, home) for chain in plan.chains for unit in chain.todo]
    loaded = load_recipe(recipe, ())
    Build(
        number=1, status="snapshot", name=loaded.name, recipe=loaded.resolved(), units=tuple(sorted(units)),
        validations=(), created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    ).write(home)
    catalog.refresh(home)


def _stand(unit: Unit, home: Path) -> str:
    partition, shards = unit.partition, []
    for layer in unit.writes[:2]:  # what a stage mostly writes
        shard = Shard(
            layer=layer, path=f"shards/{layer}/{partition.source}/{partition.name}-{unit.key}.parquet", rows=4,
            bytes=0, sha256="0" * 64,
        )
        (home / shard.path).parent.mkdir(parents=True, exist_ok=True)
        (home / shard.path).touch()
        shards.append(shard)
    rows = len(partition.contents)
    manifest = Manifest(
        key=unit.key, source=partition.source, partition=partition.name, stage=unit.stage, schema_version=VERSION,
        attempt=unit.attempt, rows_in=rows, kept=rows, dropped=0, failed=0, retryable=0, quarantined=False,
        # the catalog would read the shards; to have it as large as it would be is not worth the hours
        shards=(), software={name: version(name) for name in SOFTWARE}, seconds=1.0, **unit.record(home),
    )
    (home / manifest.path).parent.mkdir(parents=True, exist_ok=True)
    (home / manifest.path).write_text(manifest.model_dump_json(indent=1) + "\n")
    return manifest.path


@dataclass(frozen=True)
class Ran:
    """A command that ended well."""

    seconds: float
    cpu: float
    """seconds of CPU: tells more than the clock where the machine does other things too"""
    mb: float
    """resident at most"""
    said: str
    """its last line"""


def build(recipe: Path, home: Path) -> Ran:
    """`medloom build` in a new process."""
    return run([sys.executable, "-c", MEDLOOM, "build", str(recipe), "--home", str(home), "--runner", "inline"])


def run(command: list[str]) -> Ran:
    """Run a command from the repository's root; raises CalledProcessError when it fails."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out, cwd=Path(__file__).parents[2])
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        out.seek(0)
        said = out.read().decode().strip()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, said)
    return Ran(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, said.splitlines()[-1])


def profiled(recipe: Path, home: Path, folder: Path) -> None:
    """Print the calls that a build with nothing to do spends its time in."""
    script, found = folder / "medloom.py", folder / "profile"
    script.write_text(MEDLOOM)
    run([sys.executable, "-m", "cProfile", "-o", str(found), str(script), "build", str(recipe), "--home", str(home),
         "--runner", "inline"])
    pstats.Stats(str(found)).strip_dirs().sort_stats("cumulative").print_stats(45)
    pstats.Stats(str(found)).strip_dirs().sort_stats("tottime").print_stats(20)


@contextmanager
def one_changed(folder: Path) -> Iterator[None]:
    """Another picture in the place of one, while the block runs."""
    target = folder / "source" / "p000007" / "0.png"
    target.unlink()
    target.write_bytes((folder / "pictures" / "0.png").read_bytes() + b"changed")
    os.utime(target, (time.time() - 1800,) * 2)
    try:
        yield
    finally:
        target.unlink()
        os.link(folder / "pictures" / "0.png", target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--partitions", type=int, default=5_000)
    parser.add_argument("--items", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    home, recipe = args.folder / "home", args.folder / "recipe.yaml"
    if not recipe.exists():
        began = time.perf_counter()
        recipe = make_source(args.folder, args.partitions, args.items)
        print(f"source made in {time.perf_counter() - began:.1f} s", flush=True)
    if not home.exists():
        began = time.perf_counter()
        plan = make_plan(load_recipe(recipe, ()), home)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"first plan, which hashes every file: {time.perf_counter() - began:.1f} s, {used:.0f} MB", flush=True)
        if len(plan.chains) != args.partitions:
            raise SystemExit(f"{len(plan.chains)} partitions, not {args.partitions}")
        began = time.perf_counter()
        stand(plan, home, recipe)
        print(f"{plan.todo} units stand, in {time.perf_counter() - began:.1f} s", flush=True)
    build(recipe, home)  # not counted: it lists again, since `one_changed` of an earlier run touched every link
    rounds = [build(recipe, home) for _ in range(args.rounds)]
    if wrong := [ran.said for ran in rounds if "nothing to do" not in ran.said]:
        raise SystemExit(f"it built: {wrong[0]}")
    median, cpu = (statistics.median(times) for times in ([r.seconds for r in rounds], [r.cpu for r in rounds]))
    print(f"nothing to do: median {median:.2f} s ({min(r.seconds for r in rounds):.2f} to "
          f"{max(r.seconds for r in rounds):.2f}), of it {cpu:.2f} s of CPU, at most {max(r.mb for r in rounds):.0f} MB"
          f"   goal {GOAL_S:g} s{'' if median < GOAL_S else '   MISSED'}", flush=True)
    if args.profile:
        profiled(recipe, home, args.folder)
    with one_changed(args.folder):
        ran = run([sys.executable, "-c", PLAN, str(recipe), str(home)])
    print(f"one picture changed: plan in {ran.seconds:.2f} s, {ran.cpu:.2f} s of CPU, {ran.mb:.0f} MB; to do: "
          f"{ran.said}")


if __name__ == "__main__":
    main()
