"""A selection: which samples, in which order, with what; and what a condition cannot do."""

from __future__ import annotations

import hashlib
import io
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from makehome import Rows, make_home
from PIL import Image

from catalog.builds import builds
from catalog.catalog import CatalogError, query, rebuild
from catalog.manifest import read_manifest
from catalog.schema import LAYERS
from catalog.selection import Selection
from infra.errors import ConfigError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("selection"))


def ids(home: Path, where: str) -> set[str]:
    return {r["sample_id"] for r in query(home, f"SELECT sample_id FROM images WHERE {where}").to_pylist()}


@pytest.mark.parametrize(
    "where",
    [
        "true", "modality = 'CT'", "width > 70 AND source = 'scans' -- a comment", "modality IN ('CT', 'XC')",
        "sample_id IN (SELECT sample_id FROM rois WHERE label = 'lesion' AND mask IS NOT NULL)",
        "exists (SELECT 1 FROM texts t WHERE t.sample_id = images.sample_id AND t.kind = 'region')",
    ],
)
def test_a_condition_picks_what_sql_picks(home: Path, where: str) -> None:
    selection = Selection(home, where)
    found = [row.id for row in selection.rows()]
    assert set(found) == ids(home, f"({where}\n)") and len(found) == len(set(found)) == len(selection) > 0


def test_rows_hold_what_the_layers_hold(home: Path) -> None:
    for row in Selection(home).rows():
        for layer in ("labels", "rois", "texts"):
            names = ", ".join(LAYERS[layer].schema.names)
            sql = f"SELECT {names} FROM {layer} WHERE sample_id = '{row.id}' ORDER BY ALL"
            assert getattr(row, layer) == query(home, sql).to_pylist()
        assert row.image["image"]["bytes"].startswith(b"\x89PNG") and row.suffix == "png" and row.name == row.id
        caption = row.caption(("report", "original_caption", "global"))
        assert caption is not None and caption["generator"] == "source"


def test_order_is_source_shard_place_and_the_hash_is_of_the_set(home: Path) -> None:
    rows = list(Selection(home).rows())
    stored = []
    for shard in sorted((home / "shards" / "images").rglob("*.parquet")):
        stored += pq.read_table(shard, columns=["sample_id"])["sample_id"].to_pylist()
    assert [row.id for row in rows] == stored
    assert [row.id for row in Selection(home, at=1).rows()] == stored
    same = Selection(home, "modality <> 'nothing'")
    assert same.sha256 == Selection(home).sha256
    assert same.sha256 == hashlib.sha256("".join(f"{i}\n" for i in sorted(stored)).encode()).hexdigest()
    assert Selection(home, "false").sha256 == hashlib.sha256(b"").hexdigest() and len(Selection(home, "false")) == 0
    assert list(Selection(home, "false").rows()) == []


@pytest.mark.parametrize(
    "where",
    [
        "1=1) ; DROP TABLE images; --", "1=1; DROP TABLE images_rows", "1=1, 2=2",
        "true) UNION SELECT '/etc/x', 'y' --",
        "read_csv('/etc/passwd')", "sample_id IN (SELECT content FROM read_text('/etc/passwd'))",
        "sample_id IN (SELECT * FROM read_csv('/etc/passwd'))", "sample_id IN (SELECT file FROM glob('/*'))",
        "sample_id IN (SELECT * FROM '/etc/passwd')", "modality", "nope = 3", "count(*) > 1", "", "modality = 'CT' AND",
        "true ORDER BY 1", "modality = $1", "modality = 'CT') OR (modality = 'XC'", "sample_id IN (SELECT a FROM home)",
        "getenv('HOME') <> ''", "current_setting('allowed_directories') IS NULL", "write_log('x') IS NULL",
        "sample_id IN (SELECT * FROM query('SELECT 1'))", "sample_id IN (SELECT name FROM duckdb_settings())",
        "exists (FROM glob('{home}/../*'))", "exists (FROM read_parquet('{home}/**/*.parquet'))",
        "exists (FROM read_duckdb('{home}/catalog.duckdb'))", "exists (FROM postgres_query('meta', 'SELECT 1'))",
        "exists (FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1')))", "true\0",
    ],
)
def test_what_is_no_condition_is_refused_and_harmless(home: Path, where: str) -> None:
    before = {p: p.read_bytes() for p in home.iterdir() if p.is_file()}
    with pytest.raises(ConfigError, match="is not a condition over images"):
        len(Selection(home, where.replace("{home}", str(home))))
    assert {p: p.read_bytes() for p in home.iterdir() if p.is_file()} == before


def test_what_a_condition_may_not_ask_is_named(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"getenv\(\) is not for questions"):
        len(Selection(home, "getenv('HOME') = '/root'"))
    with pytest.raises(ConfigError, match=r"read_text\(\) is not for questions"):
        len(Selection(home, "sample_id IN (SELECT content FROM read_text('/etc/passwd'))"))


def test_a_random_condition_is_drawn_once_for_rows_and_hash(home: Path) -> None:
    selection = Selection(home, "random() < 0.5")
    found = [row.id for row in selection.rows()]
    assert len(found) == len(selection)
    assert selection.sha256 == hashlib.sha256("".join(f"{i}\n" for i in sorted(found)).encode()).hexdigest()


def test_a_question_that_needs_more_memory_goes_on_on_the_disk(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sorting = "(SELECT max(n) FROM (SELECT row_number() OVER (ORDER BY md5(i::VARCHAR)) AS n FROM range({}) r(i)))"
    monkeypatch.setenv("MEDLOOM_SQL_MEMORY", "64MB")
    assert len(Selection(home, f"{sorting.format(500_000)} = 500000")) == 12
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("MEDLOOM_SQL_MEMORY", "16MB")
    with pytest.raises(CatalogError, match=r"more than 16MB of memory.*MEDLOOM_SQL_MEMORY"):
        len(Selection(home, "(SELECT len(list(md5(i::VARCHAR))) FROM range(1_000_000) r(i)) > 0"))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_snapshot_is_named(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no snapshot 7; known: 1"):
        len(Selection(home, at=7))
    with pytest.raises(CatalogError, match="medloom build"):
        len(Selection(tmp_path))


def test_a_lost_shard_or_sample_is_not_passed_over(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    shard = next((home / "shards" / "images" / "scans").iterdir())
    table = pq.read_table(shard)
    pq.write_table(table.slice(1), shard)
    with pytest.raises(CatalogError, match="is not what its manifest says"):
        list(Selection(home).rows())
    shard.unlink()
    with pytest.raises(CatalogError, match=r"images/scans/.* is gone"):
        list(Selection(home).rows())


def test_quarantined_units_say_nothing(tmp_path: Path) -> None:
    home = make_home(tmp_path, quarantined=["scans"])
    assert {row.image["source"] for row in Selection(home).rows()} == {"photos"}
    (build,) = builds(home)
    (captions,) = [unit for unit in build.units if "/photos/caption/" in unit]
    refused = read_manifest(home, captions).model_copy(update={"quarantined": True})
    refused.write(home)
    units = tuple(sorted({*build.units, refused.path} - {captions}))
    build.model_copy(update={"units": units}).write(home)
    rebuild(home)
    rows = list(Selection(home).rows())
    assert len(rows) == 4 and {t["generator"] for row in rows for t in row.texts} == {"source"}


def test_memory_holds_one_row_group(tmp_path: Path) -> None:
    def grow(rows: Rows) -> None:
        rng = np.random.default_rng(0)
        for image in rows["images"]:
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (image["height"], image["width"], 3), np.uint8)).save(buffer, "PNG")
            image["image"] = {**image["image"], "bytes": buffer.getvalue() + bytes(100_000)}

    home = make_home(tmp_path, grow, per_modality=150)
    size = sum(p.stat().st_size for p in (home / "shards" / "images").rglob("*.parquet"))
    groups = [pq.read_metadata(p) for p in (home / "shards" / "images").rglob("*.parquet")]
    largest = max(m.row_group(g).total_byte_size for m in groups for g in range(m.num_row_groups))
    selection = Selection(home)
    assert len(selection) == 450 and size > 4 * largest
    held = pa.total_allocated_bytes()
    most = 0
    tracemalloc.start()
    for _ in selection.rows():
        most = max(most, pa.total_allocated_bytes() - held)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2.5 * largest and python < largest, (most, python, largest)
