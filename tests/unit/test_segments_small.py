"""Segments of few rows: what a commit writes, what readers keep, and when they become a large one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from makehome import make_home

from catalog import catalog, segments
from catalog.builds import builds
from catalog.catalog import CatalogError, query, reader, writer
from catalog.index import FILE
from catalog.schema import LAYERS

COUNT = "SELECT count(*) AS n FROM images"


def files(home: Path) -> list[str]:
    """Without the numbers that are drawn by chance."""
    return sorted(re.sub("_[0-9a-f]{8}", "", p.name) for p in (home / "segments").iterdir())


def only(home: Path) -> Path:
    (file,) = (home / "segments").iterdir()
    return file


def rows_of(home: Path) -> dict[str, Any]:
    return {layer: query(home, f"SELECT * FROM {layer} ORDER BY ALL").to_pylist() for layer in LAYERS}


def more(home: Path, number: int) -> None:
    """Commit a build of the same units, which are indexed again under new numbers."""
    first = builds(home)[0]
    with writer(home) as con:
        con.execute("UPDATE units SET path = path || id")
        catalog.add_build(con, home, first.model_copy(update={"number": number}))
    first.model_copy(update={"number": number}).write(home)


def test_a_commit_of_few_rows_writes_one_file_and_no_row_into_the_index(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    assert files(home) == ["new_000001.arrows"]
    with duckdb.connect(str(home / FILE), read_only=True) as con:
        assert all(con.execute(f"SELECT count(*) FROM {layer}_rows").fetchone() == (0,) for layer in LAYERS)
    before = rows_of(home)
    assert len(before["images"]) == 12 and all(row["box"] for row in before["rois"])
    size = (home / FILE).stat().st_size
    only(home).unlink()
    with pytest.raises(CatalogError, match="medloom catalog rebuild"):
        query(home, COUNT)
    with pytest.raises(CatalogError, match="medloom catalog rebuild"):
        catalog.refresh(home)
    catalog.rebuild(home)
    assert rows_of(home) == before and (home / FILE).stat().st_size <= 2 * size


def test_many_small_segments_become_a_large_one_and_open_readers_keep_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "MANY", 2)
    home = make_home(tmp_path)
    before = rows_of(home)
    with reader(home) as old:
        more(home, 2)
        assert files(home) == ["new_000001.arrows", "new_000002.arrows"] and rows_of(home) == before
        more(home, 3)
        assert files(home) == ["rows_000001.duckdb"] and rows_of(home) == before
        assert old.execute(COUNT).fetchone() == (12,), "it is mapped, though the file is gone"
    more(home, 4)
    assert files(home) == ["new_000001.arrows", "rows_000001.duckdb"] and rows_of(home) == before


def test_joins_over_small_and_large_segments_are_answered(tmp_path: Path) -> None:
    """DuckDB 1.5 gives scans of Arrow tables a filter that they refuse, once a join is large enough."""
    home = make_home(tmp_path)
    many = (
        "SELECT md5(i::VARCHAR) AS sample_id, '' AS text_id, (SELECT min(id) FROM shards WHERE layer = '{}') "
        "AS shard_id FROM range({}) t(i)"
    )
    with writer(home) as con:
        for layer, n in (("checks", 600_000), ("texts", 20_000)):
            con.execute(f"INSERT INTO {layer}_rows BY NAME {many.format(layer, n)}")
    assert files(home) == ["rows_000001.duckdb"]
    more(home, 2)
    assert files(home) == ["new_000001.arrows", "rows_000001.duckdb"]
    small, large = "FROM temp.main.checks_new", "FROM rows_000001.checks_rows"
    with reader(home) as con:
        held = con.execute(
            f"SELECT count(*) FROM (SELECT sample_id {small} UNION ALL SELECT sample_id {large}) "
            "WHERE sample_id IN (SELECT sample_id FROM rows_000001.texts_rows WHERE text_id = '')"
        ).fetchone()
    assert held == (20_000,)


def test_what_is_said_of_one_sample_lies_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SPILL", 0)
    home = make_home(tmp_path)
    path = home / "segments" / "rows_000001.duckdb"
    with duckdb.connect(str(path), read_only=True) as con:
        texts = con.execute("SELECT left(sample_id, 1), shard_id FROM texts_rows").fetchall()
        images = con.execute("SELECT shard_id FROM images_rows").fetchall()
    assert texts == sorted(texts) and images == sorted(images) and len(set(texts)) > 2


def test_rows_of_an_older_schema_have_nulls(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    path = only(home)
    with pa.memory_map(str(path)) as file:
        tables = []
        while file.tell() < file.size():
            tables.append(pa.ipc.open_stream(file).read_all())
    path.unlink()  # it is mapped
    with pa.OSFile(str(path), "wb") as sink:
        for table in tables:
            table = table.drop_columns([n for n in ("parent_id", "language") if n in table.column_names])
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
    assert query(home, "SELECT count(*) AS n, count(parent_id) AS p FROM images").to_pylist() == [{"n": 12, "p": 0}]
    assert query(home, "SELECT DISTINCT language FROM texts").to_pylist() == [{"language": None}]
