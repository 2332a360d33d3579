"""The chain against a bare process pool: decode, window, resize, hash, encode and write DICOM files.

Chain: what `medloom build` does, a recipe of one DICOM source and no stage, planned and run on Ray. Pool: the shortest
script that calls the same codecs, `concurrent.futures.ProcessPoolExecutor` over the same partitions, one Parquet file
each. The invariant: both must show the same pixels, or no time is printed.

    python tests/benchmarks/chain.py                # 2,000 images of 512 x 512, 3 rounds, then memory over 10,000
    python tests/benchmarks/chain.py --images 400 --syntaxes plain --memory-images 0

Chain and pool take turns, on workers that are warm: neither Ray's start nor the pool's is in a time. A chain's time
runs from the first unit's submission to the last manifest; planning, which hashes every file, is told apart. The
cheaper the codec, the more the chain's own work (hash of the file, header facts, geometry, fsync) weighs: `--syntaxes
plain` is the hardest case there is.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ctfiles import SYNTAXES, write_files
from memory import Watch

from catalog.items import Partition
from catalog.manifest import read_manifest
from connectors import dicom
from flows.build import Progress, prepare, run_chains
from flows.recipe import Recipe, Source
from infra.keys import sha256
from infra.runner import RayRunner
from transforms.decoded import IngestParams
from transforms.pictures.imagefile import encode_png, phash, pixel_sha256, shrink
from transforms.scans.frames import PLUGINS
from transforms.scans.windows import to_grey

WORKERS = 2
MAX_SIDE = 256
NICENESS = 15
"""Ray's default for its workers; the pool gets the same, or whatever else runs would slow down the chain alone."""
GOAL = 0.8
"""Share of the pool's images per second that the chain has to reach."""


@dataclass(frozen=True)
class Built:
    """One build by the chain."""

    planning: float
    """seconds"""
    running: float
    """seconds from the first unit's submission to the last manifest"""
    partitions: tuple[Partition, ...]
    pixels: tuple[str, ...]
    """pixel_sha256 of every sample, sorted"""


def chain(folder: Path, home: Path, runner: RayRunner, watch: Watch | None = None) -> Built:
    """Build a dataset of the DICOM files below `folder`; raises RuntimeError when an item did not make it."""
    recipe = Recipe(name="benchmark", sources=(
        Source(name="ct", use="dicom", params=dicom.Params(root=str(folder)), ingest=IngestParams(max_side=MAX_SIDE)),
    ))
    started = time.perf_counter()
    plan = prepare(recipe, home)
    planned = time.perf_counter()
    progress = Progress(plan.todo)
    run_chains(plan.chains, recipe, home, runner, progress, watch.tell(home) if watch else lambda _: None)
    ended = time.perf_counter()
    if progress.errors:
        raise RuntimeError(progress.errors[0])
    manifests = [read_manifest(home, path) for path in progress.manifests]
    if lost := sum(m.dropped + m.failed for m in manifests):
        raise RuntimeError(f"{lost} images were rejected; see the layer rejects in {home}")
    shards = [home / s.path for m in manifests for s in m.shards if s.layer == "images"]
    partitions = tuple(c.partition for c in plan.chains)
    return Built(planned - started, ended - planned, partitions, _pixels(shards))


def pool(partitions: Sequence[Partition], folder: Path, workers: ProcessPoolExecutor) -> tuple[float, tuple[str, ...]]:
    """The same work by hand: seconds, and pixel_sha256 of every sample, sorted."""
    folder.mkdir(parents=True)
    files = [[ref["path"] for ref in partition.refs] for partition in partitions]
    targets = [folder / f"{partition.name}.parquet" for partition in partitions]
    started = time.perf_counter()
    list(workers.map(write_chunk, files, targets))
    return time.perf_counter() - started, _pixels(targets)


def write_chunk(files: Sequence[str], target: Path) -> None:
    """One Parquet file of some DICOM files."""
    table = pa.Table.from_pylist([row_of(Path(path)) for path in files])
    plain = {name: "NONE" if name == "image" else "ZSTD" for name in table.column_names}
    pq.write_table(table, target, compression=plain, row_group_size=100)


def row_of(path: Path) -> dict[str, Any]:
    """What a script would keep of a DICOM file: the image and a few columns."""
    from pydicom import dcmread
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.processing import apply_rescale

    dataset = dcmread(io.BytesIO(path.read_bytes()))
    known = get_decoder(dataset.file_meta.TransferSyntaxUID).available_plugins
    dataset.pixel_array_options(decoding_plugin=next((name for name in PLUGINS if name in known), ""))
    values = apply_rescale(dataset.pixel_array, dataset).astype(np.float32)
    middle, half = dataset.WindowCenter - 0.5, (dataset.WindowWidth - 1) / 2
    pixels, _ = shrink(to_grey(values, (float(middle - half), float(middle + half))), MAX_SIDE)
    encoded = encode_png(pixels)
    return {
        "id": path.name, "image": encoded, "width": pixels.shape[1], "height": pixels.shape[0],
        "patient": sha256(str(dataset.PatientID).encode()), "modality": str(dataset.Modality),
        "sha256": sha256(encoded), "pixel_sha256": pixel_sha256(pixels), "phash": phash(pixels),
    }


def _pixels(files: Sequence[Path]) -> tuple[str, ...]:
    return tuple(sorted(h for f in files for h in pq.read_table(f, columns=["pixel_sha256"])[0].to_pylist()))


def speed(scratch: Path, images: int, side: int, syntaxes: Sequence[str], rounds: int) -> float:
    """Run chain and pool in turns and print a table; returns the ratio of their images per second."""
    files = write_files(scratch / "files", images, side, syntaxes)
    times: dict[str, list[float]] = {"planning": [], "chain": [], "pool": []}
    bare = ProcessPoolExecutor(WORKERS, get_context("spawn"), initializer=os.nice, initargs=(NICENESS,))
    with RayRunner(cpus=WORKERS) as runner, bare as workers:
        for turn in range(rounds + 1):
            built = chain(files, scratch / f"home-{turn}", runner)
            seconds, pixels = pool(built.partitions, scratch / f"pool-{turn}", workers)
            if built.pixels != pixels or len(pixels) != images:
                common = len(set(built.pixels) & set(pixels))
                raise RuntimeError(f"chain and pool do not show the same pixels: {common} of {images} images are equal")
            if turn:  # the first turn warms the workers and the page cache
                for name, took in (("planning", built.planning), ("chain", built.running), ("pool", seconds)):
                    times[name].append(took)
    sizes = sorted(len(p.refs) for p in built.partitions)
    print(f"{images} images of {side} x {side} ({', '.join(syntaxes)}), shrunk to {MAX_SIDE}; {WORKERS} workers")
    print(f"{len(sizes)} partitions of {sizes[0]} to {sizes[-1]} images; chain and pool show the same pixels\n")
    print(f"{'':10}{'images/s':>10}{'seconds':>10}   each round")
    for name, all_took in times.items():
        median = statistics.median(all_took)
        print(f"{name:10}{images / median:10.1f}{median:10.2f}   {' '.join(f'{took:.2f}' for took in all_took)}")
    ratio = statistics.median(times["pool"]) / statistics.median(times["chain"])
    print(f"\nchain / pool: {ratio:.2f} (goal: at least {GOAL})")
    return ratio


def memory(scratch: Path, images: int, side: int, syntaxes: Sequence[str]) -> float:
    """Run the chain and print the resident memory of its workers as it goes; returns last over first tenth."""
    files = write_files(scratch / "many", images, side, syntaxes)
    with RayRunner(cpus=WORKERS) as runner, Watch() as watch:
        chain(files, scratch / "home-many", runner, watch)
    tenths = [watch.peak(images * n / 10, images * (n + 1) / 10) for n in range(10)]
    print(f"\npeak resident memory, MB, over {images} images of {side} x {side}\n")
    print(f"{'images done':>16}{'largest worker':>16}{'all workers':>13}{'driver':>9}")
    for n, (worker, workers, driver) in enumerate(tenths):
        print(f"{f'{images * n // 10} to {images * (n + 1) // 10}':>16}{worker:16.0f}{workers:13.0f}{driver:9.0f}")
    growth = tenths[-1][0] / tenths[0][0]
    print(f"\nlast tenth / first tenth, largest worker: {growth:.2f} (goal: no growth)")
    return growth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--syntaxes", nargs="+", choices=SYNTAXES, default=["plain", "j2k"])
    parser.add_argument("--memory-images", type=int, default=10_000, help="0: leave out")
    parser.add_argument("--memory-side", type=int, default=256)
    parser.add_argument("--scratch", type=Path, help="folder for temporary files (about 6 GB); default: the system's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="medloom-benchmark-") as folder:
        if options.images:
            speed(Path(folder), options.images, options.side, options.syntaxes, options.rounds)
        if options.memory_images:
            memory(Path(folder), options.memory_images, options.memory_side, options.syntaxes)


if __name__ == "__main__":
    main()
