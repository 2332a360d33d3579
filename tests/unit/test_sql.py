"""SQL over the catalog: it answers, it goes back in time, and it reaches nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from makehome import make_home

from catalog import catalog, segments
from catalog.builds import builds
from catalog.catalog import CatalogError, query, reader
from catalog.schema import LAYERS
from infra.errors import ConfigError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("sql"))


def contents(home: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in home.rglob("*") if p.is_file()}


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_has_the_columns_of_the_schema(home: Path, layer: str) -> None:
    columns = [field.name for field in LAYERS[layer].fields if field.indexed]
    assert query(home, f"SELECT * FROM {layer}").column_names == [*columns, "shard"]
    assert query(home, f"SELECT count(*) AS n FROM {layer}").to_pylist()[0]["n"] > 0


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 AS one", "  \n-- what\nSELECT 1;", "FROM images LIMIT 2", "WITH a AS (SELECT 1 AS x) SELECT x FROM a",
        "VALUES (1)", "DESCRIBE images", "SHOW TABLES", "SUMMARIZE texts",
        "SELECT label, count(*) FROM rois JOIN images USING (sample_id) GROUP BY ALL ORDER BY ALL",
    ],
)
def test_reads_are_answered(home: Path, sql: str) -> None:
    assert query(home, sql).num_rows > 0


def test_columns_of_one_name_are_told_apart(home: Path) -> None:
    sql = "SELECT i.sample_id, r.sample_id, 1 AS sample_id_1, 2 AS x, 3 AS x FROM images i, rois r LIMIT 1"
    table = query(home, sql)
    assert len(set(table.column_names)) == 5 and {"sample_id", "sample_id_1", "x", "x_1"} < set(table.column_names)
    assert len(table.to_pylist()[0]) == 5


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/etc/*')", "SELECT * FROM glob('/etc/*')", "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM read_json('http://localhost:9/x')", "SELECT * FROM parquet_metadata('{shard}')",
        "SELECT * FROM read_parquet('{shard}')", "SELECT * FROM duckdb_secrets()", "SELECT getenv('HOME')",
        "SELECT * FROM query('COPY images TO ''{out}''')",
    ],
)
def test_no_file_network_or_environment_is_reached(home: Path, tmp_path: Path, sql: str) -> None:
    shard = next((home / "shards").rglob("*.parquet"))
    before = contents(home)
    with pytest.raises(CatalogError, match="the catalog cannot answer"):
        query(home, sql.format(shard=shard, out=tmp_path / "x"))
    assert contents(home) == before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sql",
    [
        "COPY images TO '{out}'", "EXPORT DATABASE '{out}'", "ATTACH '{out}' AS x", "INSTALL httpfs", "LOAD httpfs",
        "SET enable_external_access = true", "RESET lock_configuration", "SET threads = 1", "SET VARIABLE snapshot = 9",
        "PRAGMA enable_profiling", "CREATE TABLE x AS SELECT 1", "CREATE TEMP TABLE x AS SELECT 1",
        "CREATE SECRET (TYPE S3)", "DROP VIEW images", "DELETE FROM images_rows", "INSERT INTO builds VALUES (9)",
        "UPDATE images_rows SET width = 1", "CHECKPOINT", "CALL pragma_version()", "EXPLAIN ANALYZE SELECT 1",
        "SELECT 1; SELECT 2", "SELECT 1; DROP VIEW images", "", ";", "-- nothing", "BEGIN", "USE x",
        "PREPARE a AS SELECT 1",
    ],
)
def test_only_one_select_is_let_in(home: Path, tmp_path: Path, sql: str) -> None:
    before = contents(home)
    with pytest.raises(CatalogError, match="one SELECT at a time"):
        query(home, sql.format(out=tmp_path / "x"))
    assert contents(home) == before and list(tmp_path.iterdir()) == []


def test_the_connection_itself_is_fenced(home: Path, tmp_path: Path) -> None:
    secret = pa.table({"a": [1]})  # noqa: F841 - a variable that SQL must not see
    with reader(home) as con:
        for sql in (
            "COPY images TO '/tmp/x.csv'", f"ATTACH '{tmp_path}/x'", "INSTALL httpfs", "LOAD httpfs",
            "DROP VIEW images", "SET memory_limit = '100GB'",
            "SET enable_external_access = true", "SET lock_configuration = false", "SELECT * FROM secret",
            "DELETE FROM images_rows",
        ):
            with pytest.raises(duckdb.Error):
                con.execute(sql)
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


def test_an_old_snapshot_answers_as_it_did(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    (first,) = builds(home)
    kept = tuple(unit for unit in first.units if "/photos/" in unit)
    first.model_copy(update={"number": 2, "units": kept}).write(home)
    first.model_copy(update={"number": 3, "status": "refused", "units": ()}).write(home)
    catalog.refresh(home)
    count = "SELECT count(*) AS n FROM images"
    assert [query(home, count, at).to_pylist()[0]["n"] for at in (None, 1, 2)] == [4, 12, 4]
    assert query(home, "SELECT number FROM snapshot").to_pylist() == [{"number": 2}]
    with pytest.raises(ConfigError, match="no snapshot 3; known: 1, 2"):
        query(home, count, at=3)
    with reader(home, 1) as old, reader(home) as new:  # two at once in one process, each at its own time
        assert (old.execute(count).fetchone(), new.execute(count).fetchone()) == ((12,), (4,))


def test_a_home_without_a_readable_catalog_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="medloom build"):
        query(tmp_path, "SELECT 1")
    home = make_home(tmp_path)
    (home / catalog.PUBLISHED).write_bytes(b"no database" * 1000)
    with pytest.raises(CatalogError, match="medloom catalog rebuild"):
        query(home, "SELECT 1")
    catalog.rebuild(home)
    assert query(home, "SELECT 1 AS one").to_pylist() == [{"one": 1}]


READER = """
import sys
from pathlib import Path
from catalog.catalog import reader
with reader(Path(sys.argv[1])) as con:
    print(con.execute("SELECT count(*) FROM builds").fetchone()[0], flush=True)
    sys.stdin.readline()
    print(con.execute("SELECT count(*) FROM builds").fetchone()[0], flush=True)
"""


def test_an_open_reader_stops_no_writer(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    ) as notebook:
        assert notebook.stdin and notebook.stdout and notebook.stdout.readline() == "1\n"
        builds(home)[0].model_copy(update={"number": 2}).write(home)
        catalog.refresh(home)
        assert query(home, "SELECT count(*) AS n FROM builds").to_pylist() == [{"n": 2}]
        assert notebook.communicate("\n", timeout=30)[0] == "1\n", "who has the old copy open keeps it"
    assert notebook.returncode == 0


def test_a_question_ends_with_its_time_and_memory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE a.range + b.range = 7"
    with pytest.raises(CatalogError, match=r"no answer within 0\.3 s"):
        query(home, endless, seconds=0.3)
    monkeypatch.setenv("MEDLOOM_SQL_MEMORY", "100MB")
    with pytest.raises(CatalogError, match="memory"):
        query(home, "SELECT count(DISTINCT md5(range::VARCHAR)) FROM range(20000000)")


def rows_of(home: Path) -> dict[str, list[dict[str, object]]]:
    asked = {layer: query(home, f"SELECT * FROM {layer} ORDER BY ALL").to_pylist() for layer in LAYERS}
    return asked | {"samples": query(home, "SELECT * FROM samples ORDER BY ALL").to_pylist()}


def test_rows_in_segments_answer_as_rows_in_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(tmp_path)
    before = rows_of(home)
    (first,) = builds(home)
    monkeypatch.setattr(segments, "SPILL", 0)
    for number in range(2, 6):  # a part of the units leaves, comes back, leaves …
        units = first.units if number % 2 else first.units[:1]
        first.model_copy(update={"number": number, "units": units}).write(home)
        catalog.refresh(home)
    files = sorted(p.name for p in (home / "segments").iterdir())
    assert files == ["rows_000001.duckdb"] and rows_of(home) == before
    with duckdb.connect(str(home / catalog.FILE), read_only=True) as con:
        assert con.execute("SELECT count(*) FROM images_rows").fetchone() == (0,)
    assert query(home, "SELECT count(*) AS n FROM images", at=4).to_pylist() != [{"n": len(before["images"])}]
    catalog.rebuild(home)
    assert rows_of(home) == before


def test_segments_are_few_and_what_readers_have_open_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(tmp_path)
    monkeypatch.setattr(segments, "SPILL", 0)
    catalog.rebuild(home)
    assert sorted(p.name for p in (home / "segments").iterdir()) == ["rows_000001.duckdb"]
    with reader(home) as old:
        with catalog.writer(home) as con:  # as many rows again: the small segment is taken in, its file goes
            for layer in LAYERS:
                con.execute(f"INSERT INTO {layer}_rows SELECT * FROM rows_000001.{layer}_rows")
        assert sorted(p.name for p in (home / "segments").iterdir()) == ["rows_000002.duckdb"]
        assert old.execute("SELECT count(*) FROM images").fetchone() == (12,)


def test_a_catalog_of_a_newer_medloom_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    with duckdb.connect(str(home / catalog.FILE)) as con:
        con.execute("UPDATE format SET number = 99")
    with pytest.raises(CatalogError, match="newer medloom"):
        catalog.refresh(home)


def test_the_views_for_people_answer(home: Path) -> None:
    (one,) = query(home, "SELECT * FROM samples WHERE modality = 'CT' ORDER BY sample_id LIMIT 1").to_pylist()
    assert one["caption"] and one["regions"] == ["device", "lesion"] and one["n_regions"] == 2
    assert one["labels"] == ["nodule"]
    assert query(home, "SELECT sum(samples) AS n FROM licences").to_pylist() == [{"n": 12}]
    assert query(home, "SELECT sum(texts) AS n FROM costs").to_pylist()[0]["n"] > 0
    assert all(row["why"] for row in query(home, "SELECT * FROM missing").to_pylist())


def test_shards_and_a_catalog_of_an_older_schema_are_read_with_nulls(tmp_path: Path) -> None:
    """Columns came since: what old shards do not hold is null, and an index made then gets the columns."""
    import pyarrow.parquet as pq

    home = make_home(tmp_path)
    for shard in (home / "shards" / "images").rglob("*.parquet"):
        pq.write_table(pq.read_table(shard).drop_columns(["parent_id", "parent_box"]), shard)
    with duckdb.connect(str(home / catalog.FILE)) as con:
        for (view,) in con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall():
            con.execute(f"DROP VIEW {view}")
        con.execute("ALTER TABLE images_rows DROP COLUMN parent_id")
        con.execute("UPDATE format SET views = NULL")
    catalog.refresh(home)
    counted = "SELECT count(*) AS n, count(parent_id) AS panels FROM images"
    (before,) = query(home, counted).to_pylist()
    catalog.rebuild(home)
    assert before["n"] > 0 and before["panels"] == 0 and query(home, counted).to_pylist() == [before]
