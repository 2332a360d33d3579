"""The catalog, over a file and over a DuckLake on Postgres: it answers, goes back in time, reaches nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from lakes import KINDS, addresses
from makehome import make_home

from catalog import catalog, gc
from catalog.builds import Build, builds
from catalog.catalog import CatalogError, query, reader, writer
from catalog.diff import changes
from catalog.lineage import lineage
from catalog.schema import LAYERS
from infra.errors import ConfigError

ROOT = Path(__file__).parents[2]
COUNT = "SELECT count(*) AS n FROM images"


@pytest.fixture(scope="module", params=KINDS)
def new(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    with addresses(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def made(new: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    address = new()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDLOOM_CATALOG", address)
        return make_home(tmp_path_factory.mktemp("read")), address


@pytest.fixture
def home(made: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset to read."""
    monkeypatch.setenv("MEDLOOM_CATALOG", made[1])
    return made[0]


@pytest.fixture
def own(new: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset to write."""
    monkeypatch.setenv("MEDLOOM_CATALOG", new())
    return make_home(tmp_path)


def contents(home: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in home.rglob("*") if p.is_file()}


def number_of(home: Path, sql: str = COUNT, at: int | None = None) -> int:
    return int(query(home, sql, at).column(0)[0].as_py())


def add(home: Path, number: int, units: tuple[str, ...] | None = None, status: str = "snapshot") -> Build:
    """A record of a build on disk, with the units of the first unless told otherwise."""
    first = builds(home)[0]
    units = first.units if units is None else units
    build = first.model_copy(update={"number": number, "status": status, "units": units})
    build.write(home)
    return build


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_has_the_columns_of_the_schema(home: Path, layer: str) -> None:
    columns = [field.name for field in LAYERS[layer].fields if field.indexed]
    assert query(home, f"SELECT * FROM {layer}").column_names == [*columns, "shard"]
    assert number_of(home, f"SELECT count(*) FROM {layer}") > 0


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 AS one", "  \n-- what\nSELECT 1;", "FROM images LIMIT 2", "WITH a AS (SELECT 1 AS x) SELECT x FROM a",
        "VALUES (1)", "DESCRIBE images", "SHOW TABLES", "SUMMARIZE texts", "SELECT unnest([1, 2])",
        "SELECT * FROM range(3)", "FROM images PIVOT (count(*) FOR modality IN ('CT', 'DX') GROUP BY source)",
        "SELECT label, count(*) FROM rois JOIN images USING (sample_id) GROUP BY ALL ORDER BY ALL",
        "SELECT column_name FROM duckdb_columns() WHERE table_name = 'samples'",
        "SELECT * FROM shards", "SELECT u.path FROM units u JOIN shards s ON s.unit = u.id",
    ],
)
def test_reads_are_answered(home: Path, sql: str) -> None:
    assert query(home, sql).num_rows > 0


def test_columns_of_one_name_are_told_apart(home: Path) -> None:
    sql = "SELECT i.sample_id, r.sample_id, 1 AS sample_id_1, 2 AS x, 3 AS x FROM images i, rois r LIMIT 1"
    table = query(home, sql)
    assert len(set(table.column_names)) == 5 and {"sample_id", "sample_id_1", "x", "x_1"} < set(table.column_names)
    assert len(table.to_pylist()[0]) == 5


REACHING = [
    "SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM '/etc/passwd'", "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/*')", "SELECT * FROM glob('/etc/*')", "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM read_json('http://localhost:9/x')", "SELECT * FROM parquet_metadata('{shard}')",
    "SELECT * FROM read_parquet('{shard}')", "SELECT * FROM '{shard}'", "SELECT * FROM duckdb_secrets()",
    "SELECT getenv('HOME')", "SELECT * FROM query('COPY images TO ''{out}''')", "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM query_table('images')", "SELECT * FROM glob('{home}/lake/**')",
    "SELECT * FROM read_parquet('{home}/lake/**/*.parquet')", "SELECT * FROM read_text('{home}/lake/home.id')",
    "SELECT * FROM read_duckdb('{home}/catalog.duckdb')", "SELECT count(*) FROM glob('{home}/lake/../*')",
    "SELECT (SELECT max(file) FROM glob('/etc/*'))", "SELECT * FROM images, LATERAL (FROM read_text('/etc/passwd'))",
    "SELECT * FROM images WHERE sample_id IN (SELECT content FROM read_text('/etc/passwd'))",
    "WITH a AS (FROM READ_TEXT('/etc/passwd')) FROM a", "DESCRIBE SELECT * FROM read_csv('/etc/passwd')",
    "SUMMARIZE SELECT * FROM read_csv('/etc/passwd')", "SELECT 1 UNION ALL SELECT count(*) FROM glob('/etc/*')",
    "SELECT * FROM postgres_query('meta', 'SELECT 1')", "SELECT * FROM postgres_query('gate', 'SELECT 1')",
    "SELECT * FROM postgres_query('__ducklake_metadata_lake', 'SELECT pg_read_file(''/etc/passwd'')')",
    "SELECT * FROM postgres_scan('host=127.0.0.1', 'public', 'ducklake_snapshot')",
    "SELECT * FROM postgres_attach('host=127.0.0.1')", "SELECT * FROM __ducklake_metadata_lake.ducklake_snapshot",
    "SELECT * FROM ducklake_snapshots('lake')", "SELECT * FROM meta.public.ducklake_data_file",
    "SELECT * FROM pandas_scan(1, 2, 3)", "SELECT * FROM arrow_scan(1, 2, 3)", "SELECT * FROM enable_logging()",
    "SELECT * FROM duckdb_settings()", "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT current_setting('allowed_directories')", "SELECT * FROM checkpoint()", "SELECT * FROM duckdb_logs()",
    "SELECT write_log('x')", "SELECT sleep_ms(1)", "SELECT * FROM force_checkpoint('catalog')",
]


@pytest.mark.parametrize("sql", REACHING)
def test_no_file_network_database_or_setting_is_reached(home: Path, tmp_path: Path, sql: str) -> None:
    shard = next((home / "shards").rglob("*.parquet"))
    before = contents(home)
    with pytest.raises(CatalogError, match="the catalog cannot answer"):
        query(home, sql.format(shard=shard, out=tmp_path / "x", home=home))
    assert contents(home) == before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sql",
    [
        "COPY images TO '{out}'", "EXPORT DATABASE '{out}'", "ATTACH '{out}' AS x", "INSTALL httpfs", "LOAD httpfs",
        "ATTACH 'host=127.0.0.1' AS x (TYPE postgres)", "ATTACH 'ducklake:x' AS x", "DETACH catalog",
        "SET enable_external_access = true", "RESET lock_configuration", "SET threads = 1", "SET VARIABLE snapshot = 9",
        "PRAGMA enable_profiling", "CREATE TABLE x AS SELECT 1", "CREATE TEMP TABLE x AS SELECT 1",
        "CREATE SECRET (TYPE S3)", "DROP VIEW images", "DELETE FROM images_rows", "INSERT INTO builds VALUES (9)",
        "UPDATE images_rows SET width = 1", "CHECKPOINT", "CALL pragma_version()", "EXPLAIN ANALYZE SELECT 1",
        "SELECT 1; SELECT 2", "SELECT 1; DROP VIEW images", "", ";", "-- nothing", "BEGIN", "USE x",
        "PREPARE a AS SELECT 1", "PIVOT images ON modality",
    ],
)
def test_only_one_select_is_let_in(home: Path, tmp_path: Path, sql: str) -> None:
    before = contents(home)
    with pytest.raises(CatalogError, match="one SELECT at a time"):
        query(home, sql.format(out=tmp_path / "x"))
    assert contents(home) == before and list(tmp_path.iterdir()) == []


def test_the_connection_itself_is_fenced(home: Path, tmp_path: Path) -> None:
    """Conditions of exports and pages become part of our own questions; they meet this fence."""
    secret = pa.table({"a": [1]})  # noqa: F841 - a variable that SQL must not see
    with reader(home) as con:
        for sql in (
            "COPY images TO '/tmp/x.csv'", f"ATTACH '{tmp_path}/x'", "INSTALL httpfs", "LOAD httpfs", "LOAD ducklake",
            "SET memory_limit = '100GB'", "SET enable_external_access = true", "SET lock_configuration = false",
            "SELECT * FROM secret", "DELETE FROM images_rows", "SET allowed_directories = ['/']",
            f"ATTACH '{os.environ['MEDLOOM_CATALOG'].removeprefix('ducklake:postgres:')}' AS pg (TYPE postgres)",
            "SELECT * FROM postgres_query('meta', 'SELECT 1')", "SELECT * FROM read_text('/etc/passwd')",
            "SELECT * FROM glob('/etc/*')", f"SELECT * FROM read_blob('{home}/lake/../builds/000001.json')",
            f"SELECT * FROM read_blob('{home}/shards/**')", f"SELECT * FROM read_text('{home}/secrets/deid.key')",
        ):
            with pytest.raises(duckdb.Error):
                con.execute(sql)
        told = con.execute("SELECT * FROM duckdb_databases()").fetchall()
        assert "password" not in str(told) and "127.0.0.1" not in str(told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELEC 1", "syntax error"), ("SELECT nope FROM images", "nope"), ("SELECT * FROM image", "images"),
        ("SELECT CAST('x' AS INTEGER)", "Could not convert"), ("SELECT error('mine')", "mine"),
    ],
)
def test_wrong_sql_is_told_in_the_words_of_duckdb(home: Path, sql: str, words: str) -> None:
    with pytest.raises(CatalogError, match=words):
        query(home, sql)


def test_a_question_ends_with_its_time_and_memory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE a.range + b.range = 7"
    with pytest.raises(CatalogError, match=r"no answer within 0\.3 s"):
        query(home, endless, seconds=0.3)
    monkeypatch.setenv("MEDLOOM_SQL_MEMORY", "100MB")
    with pytest.raises(CatalogError, match="memory"):
        query(home, "SELECT count(DISTINCT md5(range::VARCHAR)) FROM range(20000000)")


def test_the_views_for_people_answer(home: Path) -> None:
    (one,) = query(home, "SELECT * FROM samples WHERE modality = 'CT' ORDER BY sample_id LIMIT 1").to_pylist()
    assert one["caption"] and one["regions"] == ["device", "lesion"] and one["n_regions"] == 2
    assert one["labels"] == ["nodule"]
    assert query(home, "SELECT sum(samples) AS n FROM licences").to_pylist() == [{"n": 12}]
    assert number_of(home, "SELECT sum(texts) FROM costs") > 0
    assert all(row["why"] for row in query(home, "SELECT * FROM missing").to_pylist())
    assert query(home, "SELECT DISTINCT balanced FROM funnel").to_pylist() == [{"balanced": True}]


def test_old_snapshots_answer_as_they_did_and_tell_what_changed(own: Path) -> None:
    first = builds(own)[0]
    add(own, 2, tuple(unit for unit in first.units if "/photos/" in unit))
    add(own, 3, (), "refused")
    catalog.refresh(own)
    assert [number_of(own, at=at) for at in (None, 1, 2)] == [4, 12, 4]
    assert query(own, "SELECT number FROM snapshot").to_pylist() == [{"number": 2}]
    assert catalog.published(own) == {1, 2, 3}
    with pytest.raises(ConfigError, match="no snapshot 3; known: 1, 2"):
        query(own, COUNT, at=3)
    with reader(own, 1) as old, reader(own) as now:  # two at once in one process, each at its own time
        assert (old.execute(COUNT).fetchone(), now.execute(COUNT).fetchone()) == ((12,), (4,))
    told = {(c.what, c.source, c.n) for c in changes(own, 1, 2) if c.layer == "images"}
    assert told == {("removed", "scans", 8)} and changes(own, 2, 2) == []
    (text,) = query(own, "SELECT text_id FROM texts WHERE kind = 'region' ORDER BY 1 LIMIT 1").to_pylist()
    assert {"text", "roi", "passage", "sample", "item"} <= {step.what for step in lineage(own, text["text_id"])}
    gc.collect(own, keep=1, grace_s=0)
    assert catalog.published(own) == {2, 3} and number_of(own) == 4
    with pytest.raises(ConfigError, match="no snapshot 1"):
        query(own, COUNT, at=1)


def rows_of(home: Path) -> dict[str, list[dict[str, object]]]:
    with reader(home) as con:
        names = (*LAYERS, "samples", "funnel", "licences", "missing")
        return {name: con.execute(f"SELECT * FROM {name} ORDER BY ALL").to_arrow_table().to_pylist() for name in names}


def test_rebuilt_from_the_files_it_answers_as_before(own: Path) -> None:
    before = rows_of(own)
    with writer(own) as con:
        con.execute("DELETE FROM shards WHERE layer = 'texts'; UPDATE units SET kept = 0")
    assert number_of(own, "SELECT count(*) FROM texts") == 0
    with reader(own) as old:
        catalog.rebuild(own)
        assert old.execute("SELECT count(*) FROM texts").fetchone() == (0,), "an open reader keeps what it sees"
    assert rows_of(own) == before


def test_an_index_of_another_format_is_made_again_and_a_newer_one_refused(own: Path) -> None:
    before = rows_of(own)
    with writer(own) as con:
        con.execute("UPDATE format SET number = 1; ALTER TABLE units DROP COLUMN seconds")
    with pytest.raises(CatalogError, match="medloom catalog rebuild"):
        query(own, COUNT)
    catalog.refresh(own)
    assert rows_of(own) == before
    with writer(own) as con:
        con.execute("UPDATE format SET number = 99")
    with pytest.raises(CatalogError, match="newer medloom"):
        catalog.refresh(own)


def test_shards_and_a_catalog_of_an_older_schema_are_read_with_nulls(own: Path) -> None:
    """Columns came since: what old shards do not hold is null, and an index made then gets the columns."""
    import pyarrow.parquet as pq

    for shard in (own / "shards" / "images").rglob("*.parquet"):
        pq.write_table(pq.read_table(shard).drop_columns(["parent_id", "parent_box"]), shard)
    with writer(own) as con:
        for (view,) in con.execute(
            "SELECT view_name FROM duckdb_views() WHERE NOT internal AND database_name = current_database() "
            "AND schema_name = current_schema()"
        ).fetchall():
            con.execute(f"DROP VIEW {view}")
        con.execute("ALTER TABLE images_rows DROP COLUMN parent_id; UPDATE format SET views = NULL")
    catalog.refresh(own)
    counted = "SELECT count(*) AS n, count(parent_id) AS panels FROM images"
    (before,) = query(own, counted).to_pylist()
    catalog.rebuild(own)
    assert before["n"] > 0 and before["panels"] == 0 and query(own, counted).to_pylist() == [before]


def test_a_home_without_a_catalog_says_what_to_do(
    new: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDLOOM_CATALOG", new())
    with pytest.raises(CatalogError, match="medloom build"):
        query(tmp_path, "SELECT 1")
    assert catalog.published(tmp_path) == set() and list(tmp_path.iterdir()) == []
    monkeypatch.setenv("MEDLOOM_CATALOG", "mysql:")
    with pytest.raises(ConfigError, match="MEDLOOM_CATALOG is no address"):
        query(tmp_path, "SELECT 1")


def in_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=ROOT,
    )


READER = """
import sys
from pathlib import Path
from catalog.catalog import reader
with reader(Path(sys.argv[1])) as con:
    for _ in range(2):
        print(con.execute("SELECT count(*) FROM builds").fetchone()[0], flush=True)
        sys.stdin.readline()
"""


def test_an_open_reader_stops_no_writer(own: Path) -> None:
    with in_python(READER, own) as notebook:
        assert notebook.stdin and notebook.stdout and notebook.stdout.readline() == "1\n"
        add(own, 2)
        catalog.refresh(own)
        assert number_of(own, "SELECT count(*) FROM builds") == 2
        assert notebook.communicate("\n\n", timeout=30)[0] == "1\n", "who has the old state open keeps it"
    assert notebook.returncode == 0


KILLED = """
import sys, time
from pathlib import Path
from catalog import catalog
from catalog.builds import read_build
home = Path(sys.argv[1])
with catalog.writer(home) as con:
    catalog.add_build(con, home, read_build(home, 1).model_copy(update={"number": 7}))
    print(con.execute("SELECT count(*) FROM builds").fetchone()[0], flush=True)
    time.sleep(600)
"""


def test_a_writer_killed_in_the_middle_leaves_the_last_commit(own: Path) -> None:
    before = rows_of(own)
    with in_python(KILLED, own) as dying:
        assert dying.stdout and dying.stdout.readline() == "2\n"
        assert catalog.published(own) == {1}, "nothing is seen before the commit"
        dying.send_signal(signal.SIGKILL)
    start = time.monotonic()
    assert catalog.published(own) == {1} and rows_of(own) == before
    add(own, 2)
    catalog.refresh(own)
    assert catalog.published(own) == {1, 2} and rows_of(own) == before
    assert time.monotonic() - start < 60, "its lock is free at once"


def test_two_writers_at_once_lose_and_double_nothing(own: Path) -> None:
    first = builds(own)[0]
    errors: list[BaseException] = []

    def commit(numbers: range) -> None:
        try:
            for number in numbers:
                with writer(own) as con:
                    build = first.model_copy(update={"number": number})
                    catalog.add_build(con, own, build)
                    build.write(own)
        except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
            errors.append(error)

    threads = [threading.Thread(target=commit, args=(range(start, start + 3),)) for start in (2, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert errors == [] and catalog.published(own) == set(range(1, 8))
    assert number_of(own, "SELECT count(*) FROM builds") == 7 and number_of(own) == 12
    assert number_of(own, "SELECT count(*) FROM units") == len(first.units)
