"""Lists of sample ids by shard, in a file that has no name: there may be many millions, so memory holds their counts.

The invariant: the ids of a shard come back as they were added, in their order; the file is gone when nobody holds
them, however a process ends.

>>> lists = IdLists()
>>> lists.add("shards/images/scans/p0-1f.parquet", pa.array(["b", "a"]))
>>> lists.counts, lists[0].to_pylist()
([('shards/images/scans/p0-1f.parquet', 2)], ['b', 'a'])
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence

import pyarrow as pa

from catalog.fence import QUIET

SCHEMA = pa.schema([("sample_id", pa.string())])
BATCH = 20_000
"""Ids that are looked at together."""


class IdLists:
    """One list of ids for each shard, in the order in which shards were added."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="medloom-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._places: list[list[tuple[int, int]]] = []
        """of each shard the pieces of its list: offset and size in the file"""
        self.counts: list[tuple[str, int]] = []
        """shard and how many ids it has"""

    def add(self, shard: str, ids: pa.Array) -> None:
        """Append a list, or more of the last one."""
        if not self.counts or self.counts[-1][0] != shard:
            self.counts.append((shard, 0))
            self._places.append([])
        self.counts[-1] = (shard, self.counts[-1][1] + len(ids))
        at = self._file.tell()
        self._file.write(pa.record_batch([ids], schema=SCHEMA).serialize())
        self._file.flush()
        self._places[-1].append((at, self._file.tell() - at))

    def __len__(self) -> int:
        """How many ids there are, over all shards."""
        return sum(n for _, n in self.counts)

    def __getitem__(self, number: int) -> pa.Array:
        """The ids of the shard of this number; several threads may ask."""
        return pa.concat_arrays([batch["sample_id"] for batch in self._pieces(number)])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All ids."""
        for number in range(len(self._places)):
            yield from self._pieces(number)

    def _pieces(self, number: int) -> Iterator[pa.RecordBatch]:
        for at, size in self._places[number]:
            yield pa.ipc.read_record_batch(pa.py_buffer(os.pread(self._file.fileno(), size, at)), SCHEMA)


def sorted_by(column: str, rows: pa.RecordBatchReader, count: int) -> Iterator[pa.RecordBatch]:
    """So many rows in the order of a column (text by its UTF-8): sorted on the disk, but for some tens of megabytes."""
    import duckdb

    # with less DuckDB gives up: it sorted 10 million ids in 64 MB, and not in 32
    memory = f"{32 + count // 200_000}MB"
    with tempfile.TemporaryDirectory(prefix="medloom-") as spill:
        settings = {**QUIET, "memory_limit": memory, "temp_directory": spill, "threads": 1}
        with duckdb.connect(config=settings) as con:
            yield from con.from_arrow(rows).order(column).to_arrow_reader(BATCH)


def sha256_sorted(lists: Sequence[IdLists]) -> str:
    """SHA-256 of the ids of all lists, sorted, each as often as it comes, a line feed after each."""
    digest = hashlib.sha256()
    ids = pa.RecordBatchReader.from_batches(SCHEMA, (batch for each in lists for batch in each.batches()))
    for batch in sorted_by("sample_id", ids, sum(map(len, lists))):
        digest.update("".join(f"{sample}\n" for sample in batch["sample_id"].to_pylist()).encode())
    return digest.hexdigest()
