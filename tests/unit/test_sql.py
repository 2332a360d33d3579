"""What only the catalog in a file has: segments, damage, its form; the rest of its tests is in test_catalog.py."""

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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("sql"))


def contents(home: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in home.rglob("*") if p.is_file()}


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
