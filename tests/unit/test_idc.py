"""Imaging Data Commons: SQL over a generated index, objects of a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from dicomfiles import data_of, decoded, image, samples, segmentation, volumes
from s3server import Server, s3_server

from catalog.items import Item
from connectors import idc
from infra.errors import ConfigError, Terminal
from infra.fileindex import FileIndex

ROWS = [
    ("c1", "1.2.2", "CT", "s3://idc-open-data/aaaa/*", "CC BY 4.0", "10.1/x"),
    ("c1", "1.2.2.77", "SEG", "s3://idc-open-data/bbbb/*", "CC BY-NC 3.0", "10.1/y"),
    ("c2", "1.2.9", "MR", "s3://idc-open-data-two/cccc/*", "TCIA restricted", None),
    ("c2", "1.2.10", "MR", "s3://idc-open-data/gone/*", "CC BY 3.0", None),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    slices = [image(n) for n in range(4)]
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        running.put("idc-open-data", {
            **{f"aaaa/{n}.dcm": data_of(one) for n, one in enumerate(slices)},
            "bbbb/0.dcm": data_of(segmentation(slices)), "aaaabbbb/0.dcm": b"another series",
        })
        running.put("idc-open-data-two", {"cccc/0.dcm": data_of(image(9, SeriesInstanceUID="1.2.9", Modality="MR"))})
        yield running


@pytest.fixture(params=["idc.parquet", "idc.duckdb"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / str(request.param)
    with duckdb.connect(str(path) if path.suffix == ".duckdb" else ":memory:") as database:
        database.execute(f'CREATE TABLE "index" ({", ".join(f"{name} VARCHAR" for name in idc.COLUMNS)})')
        database.executemany('INSERT INTO "index" VALUES (?, ?, ?, ?, ?, ?)', ROWS)
        if path.suffix == ".parquet":
            database.execute(f"COPY \"index\" TO '{path}' (FORMAT parquet)")
    return path


def fetched(server: Server, index: Path, select: str, **params: object) -> list[Item]:
    given = idc.Params(select=select, index=str(index), endpoint=server.endpoint, **params)  # type: ignore[arg-type]
    found = idc.list_partitions("s", given, FileIndex(None))
    return [item for partition in found for item in idc.read(partition, given)]


def test_sql_chooses_series_and_segmentations_go_with_them(server: Server, index: Path) -> None:
    items = fetched(server, index, "SELECT SeriesInstanceUID FROM index WHERE collection_id = 'c1'")
    assert [item.id for item in items] == [*(f"c1/aaaa/{n}.dcm" for n in range(4)), "c1/bbbb/0.dcm"]
    assert len({item.group for item in items}) == 1 and not any(item.error for item in items)
    made = decoded(*[item.files["main"] for item in items])
    assert len(volumes(made)) == 1 and samples(made)[0].regions
    licences = {item.id.split("/")[1]: item.licences for item in items}
    assert licences["aaaa"] and licences["aaaa"].image == "CC-BY-4.0" and "10.1/x" in str(licences["aaaa"].evidence)
    assert licences["bbbb"] and licences["bbbb"].annotation == "CC-BY-NC-3.0"
    assert items[0].facts["source_uri"] == "s3://idc-open-data/aaaa/0.dcm"


def test_other_buckets_unknown_licences_and_series_that_are_gone(server: Server, index: Path) -> None:
    items = {item.id: item for item in fetched(server, index, "FROM index WHERE collection_id = 'c2'")}
    assert set(items) == {"c2/cccc/0.dcm", "c2/gone"}
    assert items["c2/cccc/0.dcm"].licences and items["c2/cccc/0.dcm"].licences.image is None
    error = items["c2/gone"].error
    assert isinstance(error, Terminal) and error.code == "FILE_MISSING"


def test_limits(server: Server, index: Path) -> None:
    errors = {item.error.code for item in fetched(server, index, "FROM index", max_bytes=10) if item.error}  # type: ignore[attr-defined]
    assert errors == {"OBJECT_TOO_LARGE", "FILE_MISSING"}


@pytest.mark.parametrize("select, word", [
    ("SELECT nothing FROM index", "cannot be asked"), ("SELECT * FROM index WHERE false", "no series"),
    ("SELECT * FROM read_csv('/etc/passwd')", "cannot be asked"),
])
def test_bad_questions_are_said_before_anything_runs(server: Server, index: Path, select: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        fetched(server, index, select)


def test_without_an_index_the_package_is_named() -> None:
    if idc.importlib.util.find_spec(idc.PACKAGE) is None:
        with pytest.raises(ConfigError, match="pip install idc-index-data"):
            list(idc.list_partitions("s", idc.Params(select="FROM index"), FileIndex(None)))
