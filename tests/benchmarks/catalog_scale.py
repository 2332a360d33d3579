"""A catalog of 25,000,000 samples in 5,000 shards: what a curator asks, how fast it opens, how fast it takes a shard.

    python tests/benchmarks/catalog_scale.py --home FOLDER [--samples 25000000] [--shards 5000]

Two threads and 4 GB, as `medloom sql` has them. The rows are made by DuckDB straight into segments, by the rules of
catalog/segments.py; a last shard is written as Parquet and committed the way a build does it. Peers are asked the
questions they can answer, over the columns of `images` alone and a part of the samples (`--part`), in the same run:
`pyarrow.dataset` on Parquet, pandas on JSON lines, `datasets.filter`. Answers are compared before times are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from catalog import catalog, segments
from catalog.builds import Build, numbers, read_build
from catalog.manifest import Manifest
from catalog.schema import LAYERS
from catalog.shards import ShardWriter
from catalog.views import FORMAT, NEW, TABLES, make_tables, make_views

CHUNK = 500_000
THREADS = 2
ROUNDS = 3

IMAGES = """
SELECT substr(md5(i::VARCHAR), 1, 24) AS sample_id, (256 + i % 5 * 64)::INTEGER AS width, 512 AS height,
  'source_' || (i // (1 + {samples} // 12)) AS source, 'item/' || (i // 10) || '.dcm' AS source_item,
  'patient-' || (i // 40) AS group_id,
  ['CT','MR','DX','CR','US','SM','XC','OCT','OP','MG'][1 + (hash(i // 5000) % 10)::INTEGER] AS modality,
  CASE WHEN i % 3 = 0 THEN ['chest','abdomen','head','knee'][1 + (i % 4)::INTEGER] END AS anatomy,
  ['axial','coronal','sagittal'][1 + (i % 3)::INTEGER] AS view,
  CASE WHEN i % 2 = 0 THEN substr(md5((i // 40)::VARCHAR), 1, 24) END AS volume_id, (i % 40)::INTEGER AS slice_index,
  [0.0, 255.0]::DOUBLE[] AS "window", [0.7, 0.7]::DOUBLE[] AS pixel_spacing, 'LP' AS orientation, false AS lossy,
  sha256(i::VARCHAR) AS sha256, sha256((i - (i % 97 = 0)::INTEGER)::VARCHAR) AS pixel_sha256,
  substr(md5('h' || i), 1, 16) AS phash,
  ['CC-BY-4.0','CC0-1.0','CC-BY-NC-4.0',NULL][1 + (hash(i // 100000) % 4)::INTEGER] AS licence_image,
  'recipe' AS licence_evidence, (1 + i // {per_shard})::INTEGER AS shard_id FROM range({start}, {stop}) t(i)"""
OTHERS = {
    "labels": """SELECT substr(md5(i::VARCHAR), 1, 24) AS sample_id, substr(md5('l' || i), 1, 24) AS label_id,
      ['nodule','effusion','fracture','mass','normal','oedema'][1 + (hash(i) % 6)::INTEGER] AS name,
      'present' AS value, 'folder' AS origin""",
    "rois": """SELECT substr(md5(i::VARCHAR), 1, 24) AS sample_id, substr(md5('r' || i), 1, 24) AS roi_id,
      ['liver','lung','nodule','kidney'][1 + (hash(i) % 4)::INTEGER] AS label,
      ['organ','organ','lesion','organ'][1 + (hash(i) % 4)::INTEGER] AS role, [10, 10, 90, 90] AS box,
      0.1::DOUBLE AS area_fraction, 'center' AS position, 'ct@1' AS expert, 'predicted' AS origin,
      'boundary' AS trust""",
    "texts": """SELECT substr(md5(i::VARCHAR), 1, 24) AS sample_id, substr(md5('t' || i), 1, 24) AS text_id,
      ['global','original_caption'][1 + (i % 2)::INTEGER] AS kind, 'en' AS language,
      'An image of the ' || ['liver','lung','nodule','kidney'][1 + (hash(i) % 4)::INTEGER] || ' of patient number '
        || (i // 40) AS text, ['template@1','source'][1 + (i % 2)::INTEGER] AS generator""",
    "checks": """SELECT substr(md5(i::VARCHAR), 1, 24) AS sample_id, substr(md5('t' || i), 1, 24) AS text_id,
      'support' AS "check", '1' AS version, (i % 10 > 0)::INTEGER::DOUBLE AS value,
      CASE WHEN i % 10 > 0 THEN 'pass' ELSE 'fail' END AS verdict""",
}
LAYER_OF = ("images", *OTHERS)

QUESTIONS = {
    "how many of each modality": "SELECT modality, count(*) AS n FROM images GROUP BY 1 ORDER BY 1",
    "licences by source": "SELECT source, licence_image, count(*) AS n FROM images GROUP BY ALL ORDER BY ALL",
    "how many meet a condition": "SELECT count(*) AS n FROM images WHERE modality = 'CT' AND anatomy = 'chest' "
    "AND width >= 384 AND licence_image IN ('CC-BY-4.0', 'CC0-1.0')",
    "patients of each modality": "SELECT modality, count(DISTINCT group_id) AS n FROM images GROUP BY 1 ORDER BY 1",
    "most frequent labels": "SELECT name, count(*) AS n FROM labels WHERE value = 'present' GROUP BY 1 "
    "ORDER BY n DESC, 1 LIMIT 20",
    "one sample, all that is said of it": "SELECT i.sample_id, r.label, t.text FROM images i "
    "LEFT JOIN (FROM rois WHERE sample_id = '{one}') r USING (sample_id) "
    "LEFT JOIN (FROM texts WHERE sample_id = '{one}') t USING (sample_id) WHERE i.sample_id = '{one}'",
    "lesions by modality": "SELECT modality, count(*) AS n FROM images WHERE sample_id IN "
    "(SELECT sample_id FROM rois WHERE role = 'lesion') AND source = 'source_3' GROUP BY 1 ORDER BY 1",
    "texts whose every claim holds": "SELECT verdict, count(*) AS n FROM checks WHERE \"check\" = 'support' AND "
    "sample_id IN (SELECT sample_id FROM images WHERE source = 'source_3') GROUP BY 1",
    "a hundred at random to look at": "SELECT sample_id, modality FROM images ORDER BY hash(sample_id) LIMIT 100",
    "what became of every row": "SELECT * FROM funnel",
}
PEERS = ("how many of each modality", "licences by source", "how many meet a condition")


def make(home: Path, samples: int, shards: int) -> None:
    """Segments and an index of so many samples, as if committed by one build."""
    home.mkdir(parents=True)
    per_shard = -(-samples // shards)
    with duckdb.connect(str(home / catalog.FILE), config={"threads": THREADS}) as con:
        con.execute(TABLES)
        con.execute(f"INSERT INTO format VALUES ({FORMAT}, NULL)")
        make_tables(con)
        path = segments.file_of(home, "rows_000001")
        path.parent.mkdir()
        con.execute(f"ATTACH '{path}' AS rows_000001")
        make_tables(con, "rows_000001")
        for n, (layer, select) in enumerate({"images": IMAGES, **OTHERS}.items()):
            at = f", ({n * shards} + 1 + i // {per_shard})::INTEGER AS shard_id FROM range({{start}}, {{stop}}) t(i)"
            select = select if n == 0 else f"{select}{at}"
            con.execute(f"ATTACH '{path}.unsorted' AS unsorted")
            make_tables(con, "unsorted")
            for start in range(0, samples, CHUNK):
                values = select.format(
                    samples=samples, per_shard=per_shard, start=start, stop=min(start + CHUNK, samples)
                )
                con.execute(f"INSERT INTO unsorted.{layer}_rows BY NAME {values}")
            con.execute(
                f"INSERT INTO rows_000001.{layer}_rows SELECT * FROM unsorted.{layer}_rows "
                f"ORDER BY {segments.order(layer)}"
            )
            con.execute("DETACH unsorted")
            path.with_name(f"{path.name}.unsorted").unlink()
        con.execute("CHECKPOINT rows_000001; DETACH rows_000001")
        con.execute(f"ATTACH '{path}' AS rows_000001 (READ_ONLY)")
        con.execute("INSERT INTO segments VALUES ('rows_000001', ?)", [samples * len(LAYER_OF)])
        stages = {"images": "ingest", "labels": "ingest", "rois": "ground", "texts": "caption", "checks": "verify"}
        names = ("ingest", "ground", "caption", "verify")
        for n, stage in enumerate(names):
            con.execute(
                f"INSERT INTO units SELECT {n * shards} + i, 'manifests/s/{stage}/p' || i || '-{'0' * 24}.0.json', "
                f"'{'0' * 24}', 's', 'p' || i, '{stage}', '1', 0, {per_shard}, {per_shard}, 0, 0, 0, false, 1.0 "
                f"FROM range(1, {shards} + 1) t(i)"
            )
        for n, layer in enumerate(LAYER_OF):
            unit = names.index(stages[layer]) * shards
            con.execute(
                f"INSERT INTO shards SELECT {n * shards} + i, 'shards/{layer}/s/p' || i || '.parquet', '{layer}', "
                f"{unit} + i, {per_shard}, 1, '' FROM range(1, {shards} + 1) t(i)"
            )
        units = tuple(p for (p,) in con.execute("SELECT path FROM units ORDER BY path").fetchall())
        con.execute("INSERT INTO builds VALUES (1, 'snapshot', 'big', '2026-01-01T00:00:00+00:00')")
        con.execute("INSERT INTO build_units SELECT 1, id FROM units")
        segments.attach(con, home)
        make_views(con, [NEW, "rows_000001"])
    (home / "builds").mkdir()
    Build(
        number=1, status="snapshot", name="big", recipe={}, units=units, validations=(),
        created_at="2026-01-01T00:00:00+00:00",
    ).write(home)
    catalog.refresh(home)


def one_more(home: Path, rows: int) -> Build:
    """A shard of so many new samples, its manifest, and a build that names it beside all the others."""
    number = numbers(home)[-1] + 1
    with duckdb.connect() as con:
        start = 10**9 + number * rows
        select = IMAGES.format(samples=10**9, per_shard=1, start=start, stop=start + rows)
        made = con.execute(f"SELECT * EXCLUDE (shard_id) FROM ({select})").to_arrow_table().to_pylist()
    table = LAYERS["images"].table([{**row, "image": {"bytes": b"x", "path": "x"}} for row in made])
    with ShardWriter(home, "images", "s", f"more{number}-{'1' * 24}") as writer:
        writer.write(table)
        shard = writer.finish()
        assert shard
    manifest = Manifest(
        key="1" * 24, source="s", partition=f"more{number}", stage="ingest", stage_version="1", params={},
        ingredients={}, inputs=(), schema_version=2, rows_in=rows, kept=rows, dropped=0, failed=0, retryable=0,
        quarantined=False, shards=(shard,), software={}, seconds=1.0,
    )
    manifest.write(home)
    last = read_build(home, number - 1)
    return last.model_copy(update={"number": number, "units": tuple(sorted([*last.units, manifest.path]))})


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Median seconds of some rounds, and the answer of the last."""
    seconds, answer = [], None
    for _ in range(ROUNDS):
        start = time.perf_counter()
        answer = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), answer


def ask(home: Path, one: str) -> None:
    opened, _ = timed(lambda: catalog.query(home, "SELECT 1"))
    print(f"{'open and answer SELECT 1':40s} {opened:8.3f} s   goal 1 s")
    for what, sql in QUESTIONS.items():
        with catalog.reader(home) as con:
            con.execute("SELECT 1").fetchall()
            seconds, answer = timed(lambda s=sql: con.execute(s.format(one=one)).fetchall())  # type: ignore[misc]
        note = "" if seconds < 2 else "   MISSED"
        print(f"{what:40s} {seconds:8.3f} s   {len(answer)} rows{note}")


def commits(home: Path, rows: int) -> None:
    seconds = []
    for _ in range(ROUNDS):
        build = one_more(home, rows)
        start = time.perf_counter()
        with catalog.writer(home) as con:
            catalog.add_build(con, home, build)
            build.write(home)
        seconds.append(time.perf_counter() - start)
    print(f"{'commit of a shard of ' + str(rows) + ' samples':40s} {statistics.median(seconds):8.3f} s   goal 0.1 s")


def peers(home: Path, part: int) -> None:
    """The questions over `images` alone, on a part of the samples, beside those who can answer them."""
    small = home.with_name(home.name + "-part")
    if not small.exists():
        make(small, part, max(1, part // 5000))
        with catalog.reader(small) as con:
            table = con.execute("SELECT * EXCLUDE (shard) FROM images").to_arrow_table()
        (small / "parquet").mkdir()
        ds.write_dataset(table, small / "parquet", format="parquet", max_rows_per_file=5000, max_rows_per_group=5000)
        with open(small / "rows.jsonl", "w") as file:
            for batch in table.to_batches():
                file.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())
    asked = {what: QUESTIONS[what] for what in PEERS}
    truth = {}
    print(f"\nOn {part} samples, seconds, and how often the time of the catalog:")
    for what, sql in asked.items():
        ours, answer = timed(lambda s=sql: catalog.query(small, s).to_pylist())  # type: ignore[misc]
        truth[what] = answer
        times = {name: timed(lambda p=peer, w=what: p(small, w)) for name, peer in PEER.items()}  # type: ignore[misc]
        for name, (_, theirs) in times.items():
            assert theirs == len(answer) or theirs == answer[0].get("n"), (what, name, theirs)
        beside = "  ".join(f"{name} {seconds:.3f} ({seconds / ours:.0f}x)" for name, (seconds, _) in times.items())
        print(f"{what:40s} catalog {ours:.3f}  {beside}")


def _condition() -> Any:
    field = ds.field
    return (
        (field("modality") == "CT") & (field("anatomy") == "chest") & (field("width") >= 384)
        & field("licence_image").isin(["CC-BY-4.0", "CC0-1.0"])
    )


def arrow(home: Path, what: str) -> int:
    data = ds.dataset(home / "parquet")
    if what == PEERS[0]:
        return len(data.to_table(columns=["modality"]).group_by("modality").aggregate([([], "count_all")]))
    if what == PEERS[1]:
        keys = ["source", "licence_image"]
        return len(data.to_table(columns=keys).group_by(keys).aggregate([([], "count_all")]))
    return int(data.count_rows(filter=_condition()))


def pandas_lines(home: Path, what: str) -> int:
    import pandas as pd

    frame = pd.read_json(home / "rows.jsonl", lines=True)
    if what == PEERS[0]:
        return len(frame.groupby("modality").size())
    if what == PEERS[1]:
        return len(frame.groupby(["source", "licence_image"], dropna=False).size())
    fits = (frame.modality == "CT") & (frame.anatomy == "chest") & (frame.width >= 384)
    return int((fits & frame.licence_image.isin(["CC-BY-4.0", "CC0-1.0"])).sum())


def hf_filter(home: Path, what: str) -> int:
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    rows = datasets.Dataset(pa.concat_tables([ds.dataset(home / "parquet").to_table()]))
    if what == PEERS[0]:
        return len(set(rows["modality"]))
    if what == PEERS[1]:
        return len(set(zip(rows["source"], rows["licence_image"], strict=True)))
    kept = rows.filter(
        lambda r: r["modality"] == "CT" and r["anatomy"] == "chest" and r["width"] >= 384
        and r["licence_image"] in ("CC-BY-4.0", "CC0-1.0")
    )
    return len(kept)


PEER = {"pyarrow.dataset": arrow, "pandas on JSON lines": pandas_lines, "datasets": hf_filter}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=25_000_000)
    parser.add_argument("--shards", type=int, default=5_000)
    parser.add_argument("--part", type=int, default=200_000)
    parser.add_argument("--only-make", action="store_true")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    pa.set_cpu_count(THREADS)
    if not args.home.exists():
        make(args.home, args.samples, args.shards)
    if args.only_make:
        return
    with catalog.reader(args.home) as con:
        (one,) = con.execute("SELECT sample_id FROM images LIMIT 1 OFFSET 100000").fetchone()
    size = sum(p.stat().st_size for p in args.home.rglob("*.duckdb"))
    print(f"{args.samples} samples, {args.shards} shards, {len(LAYER_OF)} layers of as many rows: {size / 1e9:.1f} GB")
    ask(args.home, one)
    commits(args.home, 5000)
    peers(args.home, args.part)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
