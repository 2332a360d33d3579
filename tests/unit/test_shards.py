"""Shards: whole or absent, the same bytes each time, laid out so that one image costs one small read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from makehome import make_rows

from catalog.manifest import Shard, scan
from catalog.schema import LAYERS, VERSION
from catalog.shards import GROUP_ROWS, ShardWriter, batches, read, rehash

ROWS = make_rows(90)


def write(home: Path, layer: str, parts: int = 1) -> Shard:
    rows = ROWS[layer]
    size = -(-len(rows) // parts)
    with ShardWriter(home, layer, "s", "all-0") as writer:
        for start in range(0, len(rows), size):
            writer.write(LAYERS[layer].table(rows[start : start + size]))
        shard = writer.finish()
    assert shard is not None
    return shard


def files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


@pytest.mark.parametrize("layer", LAYERS)
def test_rows_come_back_as_they_went_in(tmp_path: Path, layer: str) -> None:
    shard = write(tmp_path, layer, parts=2)
    assert shard.rows == len(ROWS[layer]) and shard.bytes == (tmp_path / shard.path).stat().st_size
    assert read(tmp_path, [shard], layer) == LAYERS[layer].table(ROWS[layer])
    assert rehash(tmp_path, shard) is None
    other = "texts" if layer != "texts" else "labels"
    assert read(tmp_path, [shard], other).num_rows == 0, "shards of other layers are passed over"


@pytest.mark.parametrize("layer", LAYERS)
def test_the_same_rows_give_the_same_bytes(tmp_path: Path, layer: str) -> None:
    first, second = write(tmp_path / "a", layer, 3), write(tmp_path / "b" / "elsewhere", layer, 3)
    assert first == second
    data = (tmp_path / "a" / first.path).read_bytes()
    assert data == (tmp_path / "b" / "elsewhere" / second.path).read_bytes()
    assert str(tmp_path).encode() not in data


def test_a_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ShardWriter(tmp_path, "labels", "s", "all-0") as writer:
        writer.write(LAYERS["labels"].table(ROWS["labels"]))
        assert len(files(tmp_path)) == 1
        1 / 0  # noqa: B018
    assert files(tmp_path) == []
    with ShardWriter(tmp_path, "labels", "s", "all-0") as writer:
        writer.write(LAYERS["labels"].table(ROWS["labels"]))
    assert files(tmp_path) == [], "a block that never called finish leaves nothing"


def test_a_failed_write_leaves_the_old_shard_alone(tmp_path: Path) -> None:
    shard = write(tmp_path, "labels")
    with pytest.raises(OSError, match="came back"), ShardWriter(tmp_path, "labels", "s", "all-0") as writer:
        writer.write(LAYERS["labels"].table(ROWS["labels"][:1]))
        writer._rows = 7  # a disk that lost rows
        writer.finish()
    assert files(tmp_path) == [tmp_path / shard.path] and rehash(tmp_path, shard) is None


def test_an_empty_layer_has_no_shard(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "labels", "s", "all-0") as writer:
        writer.write(LAYERS["labels"].table([]))
        assert writer.finish() is None
    assert files(tmp_path) == []
    assert read(tmp_path, [], "labels") == LAYERS["labels"].schema.empty_table()


def test_a_table_of_another_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names"), ShardWriter(tmp_path, "labels", "s", "all-0") as writer:
        writer.write(LAYERS["rois"].table(ROWS["rois"]))
    assert files(tmp_path) == []


def test_images_lie_plain_in_small_row_groups(tmp_path: Path) -> None:
    shard = write(tmp_path, "images")
    with pq.ParquetFile(tmp_path / shard.path) as file:
        meta = file.metadata
        groups = [meta.row_group(g) for g in range(meta.num_row_groups)]
        assert [g.num_rows for g in groups] == [100, 100, 70] and GROUP_ROWS == 100
        for group in groups:
            columns = {c.path_in_schema: c for c in (group.column(i) for i in range(group.num_columns))}
            image = columns.pop("image.bytes")
            assert image.compression == "UNCOMPRESSED" and not image.has_dictionary_page
            assert {c.compression for c in columns.values()} == {"ZSTD"}
            assert all(columns[name].has_offset_index for name in ("sample_id", "source", "width"))
        assert file.schema_arrow.metadata[b"medloom.schema"] == f"images/{VERSION}".encode()
    tables = list(batches(tmp_path, [shard], pixels=True))
    assert pa.concat_tables(tables) == read(tmp_path, [shard], "images")
    assert "image" not in next(batches(tmp_path, [shard], pixels=False)).column_names
    data = (tmp_path / shard.path).read_bytes()
    assert all(row["image"]["bytes"] in data for row in ROWS["images"][::50]), "bytes stand in the file as they are"


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_every_column_but_the_pixels_is_packed(tmp_path: Path, layer: str) -> None:
    meta = pq.read_metadata(tmp_path / write(tmp_path, layer).path)
    columns = [meta.row_group(0).column(i) for i in range(meta.num_columns)]
    assert {c.path_in_schema for c in columns if c.compression != "ZSTD"} <= {"image.bytes"}


def test_one_flipped_byte_anywhere_is_found(tmp_path: Path) -> None:
    shard = write(tmp_path, "images")
    path = tmp_path / shard.path
    whole = path.read_bytes()
    for place in (0, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "its bytes have changed" in (rehash(tmp_path, shard) or "")
    path.write_bytes(whole[:-1])
    assert "its bytes have changed" in (rehash(tmp_path, shard) or "")
    path.unlink()
    assert rehash(tmp_path, shard) == "missing"


KILLED = """
import os, signal, sys
from pathlib import Path
from catalog.schema import LAYERS, VERSION
from catalog.shards import ShardWriter
home, when = Path(sys.argv[1]), sys.argv[2]
row = {"sample_id": "a", "label_id": "b", "name": "c", "value": "d", "origin": "e"}
with ShardWriter(home, "labels", "s", "all-0") as writer:
    writer.write(LAYERS["labels"].table([row] * 9))
    if when == "after":
        writer.finish()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("when", "left"), [("before", 0), ("after", 1)])
def test_killed_before_its_manifest_nothing_is_visible(tmp_path: Path, when: str, left: int) -> None:
    from infra.storage import sweep

    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), when], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert list(scan(tmp_path)) == [], "no manifest: the unit was never done"
    assert sweep(tmp_path) == 1 - left
    assert len(files(tmp_path)) == left
    row = {"sample_id": "a", "label_id": "b", "name": "c", "value": "d", "origin": "e"}
    with ShardWriter(tmp_path, "labels", "s", "all-0") as writer:
        writer.write(LAYERS["labels"].table([row] * 9))
        shard = writer.finish()
    assert shard is not None and rehash(tmp_path, shard) is None and len(files(tmp_path)) == 1
    assert os.listdir((tmp_path / shard.path).parent) == ["all-0.parquet"]
