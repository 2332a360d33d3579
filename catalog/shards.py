"""Shards: one Parquet file for one layer of one partition, written whole or not at all, the same bytes each time.

Image bytes are stored plain (they are compressed already) in row groups of at most `GROUP_ROWS` rows, so that one
image costs one small read and viewers can open the file; all else is zstd. Nothing in a shard tells a time, a path or
a machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.manifest import Shard
from catalog.schema import LAYERS, VERSION
from infra import mirror
from infra.storage import draft_of, file_sha256, publish

GROUP_ROWS = 100
"""Rows of `images` in one row group at the most (Hugging Face's viewer fails on groups beyond 286 MB)."""


class ShardWriter:
    """Writes one shard batch by batch; `finish` moves it into place, leaving the block without it leaves nothing."""

    def __init__(self, home: Path, layer: str, source: str, name: str) -> None:
        self._layer = LAYERS[layer]
        self._home = home
        self._path = f"shards/{layer}/{source}/{name}.parquet"
        self._draft = draft_of(home / self._path)
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._writer is not None:
                self._writer.close()  # writes the footer, which a full disk has no room for either
        finally:
            self._draft.unlink(missing_ok=True)

    def write(self, table: pa.Table) -> None:
        """Add rows; each call makes one row group (several for `images`)."""
        if table.num_rows == 0:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._draft, **_form(self._layer.name), write_page_index=True, write_page_checksum=True,
                store_schema=True,
            )
        rows = GROUP_ROWS if self._layer.name == "images" else None
        self._writer.write_table(table.cast(self._writer.schema), row_group_size=rows)
        self._rows += table.num_rows

    def finish(self) -> Shard | None:
        """Close, read back, move into place. None when no row was written: an empty layer has no shard."""
        shard = self.close()
        if shard is not None:
            publish(*self.move)
        return shard

    @property
    def move(self) -> tuple[Path, Path]:
        """Where the closed shard lies, and where it belongs."""
        return self._draft, self._home / self._path

    def close(self) -> Shard | None:
        """Close and read back; who calls moves it into place. None when no row was written."""
        if self._writer is None:
            return None
        self._writer.close()
        self._writer = None
        counted = pq.read_metadata(self._draft).num_rows
        if counted != self._rows:
            raise OSError(f"{self._path}: wrote {self._rows} rows, {counted} came back; check the disk and run again")
        digest, size = file_sha256(self._draft), self._draft.stat().st_size
        return Shard(layer=self._layer.name, path=self._path, rows=self._rows, bytes=size, sha256=digest)


@cache
def _form(layer: str) -> dict[str, Any]:
    """How the columns of a layer are written: found once, since a partition writes a dozen small shards."""
    schema = LAYERS[layer].schema.with_metadata({"medloom.schema": f"{layer}/{VERSION}"})
    text = [f.name for f in schema if f.name not in ("image", "text", "message", "header", "abstract", "body")]
    plain = {"image.bytes": "NONE"} if "image" in schema.names else {}
    return {
        "schema": schema, "use_dictionary": text, "compression": {name: "ZSTD" for name in _leaves(schema)} | plain,
    }


def _leaves(schema: pa.Schema) -> Iterator[str]:
    """Column paths as Parquet names them."""
    for field in schema:
        yield from _paths(field.name, field.type)


def _paths(name: str, kind: pa.DataType) -> Iterator[str]:
    if pa.types.is_struct(kind):
        for inner in kind:
            yield from _paths(f"{name}.{inner.name}", inner.type)
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _paths(f"{name}.list.element", kind.value_type)
    else:
        yield name


def file_of(home: Path, shard: Shard) -> Path:
    """The file of a shard on this machine, fetched where it is not at hand. Raises Transient."""
    return mirror.local(home / shard.path, shard.sha256)


def read(home: Path, shards: Sequence[Shard], layer: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one layer in these shards, in order; an empty table when none of them holds it."""
    schema = LAYERS[layer].schema
    wanted = schema if columns is None else pa.schema([schema.field(c) for c in columns])
    parts = [
        pq.read_table(file_of(home, s), columns=wanted.names, schema=schema) for s in shards if s.layer == layer
    ]
    return pa.concat_tables(parts).cast(wanted) if parts else wanted.empty_table()


def batches(home: Path, shards: Sequence[Shard], pixels: bool) -> Iterator[pa.Table]:
    """The rows of `images` row group by row group, with or without the `image` column."""
    schema = LAYERS["images"].schema
    columns = [n for n in schema.names if pixels or n != "image"]
    for shard in shards:
        if shard.layer != "images":
            continue
        with pq.ParquetFile(file_of(home, shard)) as file:
            for group in range(file.num_row_groups):
                # the threads are the runner's: a worker has its own processor
                table = file.read_row_group(group, columns=columns, use_threads=False)
                yield table.replace_schema_metadata(None)


def rehash(home: Path, shard: Shard) -> str | None:
    """What is wrong with a shard on disk, or None when it is what its manifest says."""
    path = mirror.local(home / shard.path)
    if not path.is_file():
        return "missing"
    digest = file_sha256(path)
    same = digest == shard.sha256
    return None if same else f"its bytes have changed (sha256 {digest[:12]}…, not {shard.sha256[:12]}…)"
