"""A WebDataset export beside a bare loop that reads the same rows and writes the same tar.

    python tests/benchmarks/export.py [--samples 10000] [--rounds 3] [--memory 2000,10000] [--sides 64,144]

A home of small pictures (4 to 20 kB; labels, two regions, three texts each) is made in partitions of 1,000 samples.
The bare loop knows the files: it reads each partition's shards with pyarrow, joins them by sample_id, and writes tars
with tarfile; its bytes are compared with ours before a time is printed. Both run in turns, in processes of their own;
files are in the page cache. The export does more: it asks the catalog which rows, judges licences, hashes what it
wrote, names works and issues. The ratio is the bare loop's time over ours: 1 is the speed of the bytes. The same of
processor time, which a busy machine disturbs less, stands beside it. `--memory` prints the peak resident size of an
export of so many samples.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

PARTITION = 1000
LAYERS = ("images", "labels", "rois", "texts")
SHARD = 1_000_000_000


def make(folder: Path, samples: int, sides: tuple[int, int] = (64, 144)) -> Path:
    """A home of so many samples, rounded up to whole partitions, with pictures of sides in this range."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    from makehome import RECIPE, STAGES, make_rows
    from PIL import Image

    from catalog import catalog
    from catalog.builds import Build
    from catalog.manifest import Manifest
    from catalog.schema import LAYERS, VERSION
    from catalog.shards import ShardWriter
    from infra.keys import key, sha256

    home, units = folder / "home", []
    rng = np.random.default_rng(0)
    template = make_rows(-(-PARTITION // 3))
    kept = [image["sample_id"] for image in template["images"]][:PARTITION]
    for image in template["images"][:PARTITION]:
        png = io.BytesIO()
        side = int(rng.integers(*sides))
        Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)).save(png, "PNG")
        image["image"] = {"bytes": png.getvalue(), "path": "x.png"}
        image["sha256"], image["source"] = sha256(png.getvalue()), "photos"
        image["licence_annotation"] = "CC-BY-4.0"
    tables: dict[tuple[str, str], Any] = {}
    for stage, layers in STAGES.items():
        for layer in sorted(set(layers) & {"images", "labels", "rois", "texts"}):
            rows = [r for r in template[layer] if r["sample_id"] in set(kept)]
            if layer == "texts":
                rows = [r for r in rows if (r["generator"] == "source") == (stage == "ingest")]
            tables[stage, layer] = LAYERS[layer].table(rows)
    for partition in range(-(-samples // PARTITION)):
        for stage, layers in STAGES.items():
            unit = key("unit", partition, stage)
            shards = []
            for layer in sorted(set(layers) & {"images", "labels", "rois", "texts"}):
                table = tables[stage, layer]
                stems = pc.utf8_slice_codeunits(table["sample_id"], 0, 16)
                names = pc.binary_join_element_wise(pa.scalar(f"p{partition}x"), stems, "")
                with ShardWriter(home, layer, "photos", f"p{partition}-{unit}") as writer:
                    writer.write(table.set_column(0, table.schema.field(0), names))
                    if shard := writer.finish():
                        shards.append(shard)
            manifest = Manifest(
                key=unit, source="photos", partition=f"p{partition}", stage=stage, stage_version="1", params={},
                ingredients={}, inputs=(), schema_version=VERSION, quarantined=False, shards=tuple(shards), software={},
                seconds=0.0, rows_in=PARTITION, kept=PARTITION, dropped=0, failed=0, retryable=0,
            )
            manifest.write(home)
            units.append(manifest.path)
    Build(number=1, status="snapshot", name="small", recipe=RECIPE, units=tuple(sorted(units)), validations=(),
          created_at="2026-01-02T03:04:05+00:00").write(home)
    catalog.refresh(home)
    return home


def bare(home: Path, out: Path) -> None:
    """What somebody who knows the files would write."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir()
    shards = {layer: sorted((home / "shards" / layer / "photos").iterdir()) for layer in LAYERS}
    number, tar = 0, tarfile.open(out / "00000.tar", "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
    for shard in shards["images"]:
        partition = shard.name.split("-")[0]
        about: dict[str, dict[str, list[Any]]] = {}
        for layer in LAYERS[1:]:
            tables = [pq.read_table(p) for p in shards[layer] if p.name.split("-")[0] == partition]
            order = [("sample_id", "ascending"), (f"{layer[:-1]}_id", "ascending")]
            about[layer] = {}
            for row in pa.concat_tables(tables).sort_by(order).to_pylist():
                about[layer].setdefault(row["sample_id"], []).append(row)
        with pq.ParquetFile(shard) as file:
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group).to_pylist():
                    if tar.offset >= SHARD:
                        tar.close()
                        number += 1
                        tar = tarfile.open(out / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
                    name = row["sample_id"]
                    data = row.pop("image")["bytes"]
                    said = {layer: about[layer].get(name, []) for layer in LAYERS[1:]}
                    caption = next(t["text"] for t in said["texts"] if t["kind"] == "global")
                    record = json.dumps({**row, **said}, ensure_ascii=False, sort_keys=True).encode()
                    for suffix, content in (("png", data), ("txt", caption.encode()), ("json", record)):
                        member = tarfile.TarInfo(f"{name}.{suffix}")
                        member.size, member.mode = len(content), 0o644
                        tar.addfile(member, io.BytesIO(content))
    tar.close()


def ours(home: Path, out: Path) -> None:
    from flows.export import run_export

    run_export(home, "width > 0", "webdataset", out, None, [])


def child(which: str, home: Path, out: Path) -> tuple[float, float, int]:
    """(seconds, of them of the processor, peak resident kB) of the work alone, in a process of its own, imports before
    the clock starts."""
    code = [sys.executable, __file__, "--child", which, str(home), str(out)]
    said = subprocess.run(code, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    seconds, cpu, peak = said.stdout.split()
    return float(seconds), float(cpu), int(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="2000,10000")
    parser.add_argument("--sides", default="64,144", help="pixels, least and most; 8,24 for a million on a small disk")
    parser.add_argument("--child", nargs=3)
    asked = parser.parse_args()
    low, high = map(int, asked.sides.split(","))
    if asked.child:
        import duckdb  # noqa: F401
        import pyarrow.parquet  # noqa: F401

        import flows.export  # noqa: F401

        which, home, out = asked.child
        begun, worked = time.perf_counter(), time.process_time()
        {"bare": bare, "ours": ours}[which](Path(home), Path(out))
        seconds, cpu = time.perf_counter() - begun, time.process_time() - worked
        # not ru_maxrss, which a process takes over from the one that started it
        print(seconds, cpu, Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if asked.rounds:
            home = make(place, asked.samples, (low, high))
            times: dict[str, list[float]] = {"bare": [], "ours": []}
            works: dict[str, list[float]] = {"bare": [], "ours": []}
            for turn in range(asked.rounds):
                for which in ("bare", "ours") if turn % 2 else ("ours", "bare"):
                    seconds, cpu, _ = child(which, home, place / f"{which}{turn}")
                    times[which].append(seconds)
                    works[which].append(cpu)
                tars = [sorted((place / f"{which}{turn}").glob("*.tar")) for which in ("bare", "ours")]
                assert [p.read_bytes() for p in tars[0]] == [p.read_bytes() for p in tars[1]], "not the same tar"
            middle = {which: statistics.median(seconds) for which, seconds in times.items()}
            worked = statistics.median(works["bare"]) / statistics.median(works["ours"])
            size = sum(p.stat().st_size for p in tars[0])
            print(f"{asked.samples} samples, {size >> 20} MiB of tar: bare {middle['bare']:.2f} s, "
                  f"ours {middle['ours']:.2f} s, ratio {middle['bare'] / middle['ours']:.2f} "
                  f"({', '.join(f'{b / o:.2f}' for b, o in zip(times['bare'], times['ours'], strict=True))}); "
                  f"of processor time {worked:.2f}")
        for number in filter(None, asked.memory.split(",")):
            home = make(place / f"m{number}", int(number), (low, high))
            seconds, _, peak = child("ours", home, place / f"m{number}" / "out")
            print(f"{number} samples: {peak >> 10} MiB at most, {seconds:.1f} s", flush=True)
            shutil.rmtree(place / f"m{number}")


if __name__ == "__main__":
    main()
