"""A selection: the samples of a snapshot that an SQL condition picks, with everything said about them.

The list of sample ids is the reproducible thing: a snapshot's number and a condition (that is not itself random) pick
the same samples each time, and rows come in one order: by source, by shard, by place in the shard. `sha256` names the
set of samples alone, so it also stays when they are stored in other shards. Rows are streamed: memory holds the ids,
one row group of pictures, and what is said about the samples of one partition.

>>> selection = Selection(home, where="modality = 'CT' AND width >= 512")
>>> len(selection), next(selection.rows()).caption(["global"])["text"]
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.catalog import CatalogError, reader
from catalog.schema import LAYERS
from infra.errors import ConfigError
from infra.keys import key

ABOUT = ("labels", "rois", "texts")
"""Layers that travel with a sample."""
_MAGIC = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"), (b"RIFF", "webp"))
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHARDS_ABOUT = """
SELECT other.layer, other.path FROM shards mine
JOIN current_units ingest ON mine.unit = ingest.id
JOIN current_units unit ON unit.source = ingest.source AND unit.partition = ingest.partition
JOIN shards other ON other.unit = unit.id
WHERE mine.path = ? AND NOT unit.quarantined ORDER BY other.path
"""
"""What is said about a sample lies in shards of its own partition: no scan of whole layers for each shard."""


@dataclass(frozen=True)
class Row:
    """One sample as an exporter sees it. Rows of each layer are in the order of the layer's key."""

    image: Mapping[str, Any]
    """its row of `images`, bytes included"""
    labels: Sequence[Mapping[str, Any]]
    rois: Sequence[Mapping[str, Any]]
    texts: Sequence[Mapping[str, Any]]

    @property
    def id(self) -> str:
        return str(self.image["sample_id"])

    @property
    def name(self) -> str:
        """What files of the sample are called: its id, or a hash of it where an id from elsewhere could be a path."""
        return self.id if _PLAIN.fullmatch(self.id) else key("name", self.id)

    @property
    def suffix(self) -> str:
        """png, jpg, gif or webp, judged by the bytes."""
        head = bytes(self.image["image"]["bytes"][:4])
        for magic, suffix in _MAGIC:
            if head.startswith(magic):
                return suffix
        raise CatalogError(f"sample {self.id}: the stored image is no web format; `medloom verify` finds damage")

    def caption(self, kinds: Sequence[str]) -> Mapping[str, Any] | None:
        """The first text of the first kind that the sample has one of."""
        return next((t for kind in kinds for t in self.texts if t["kind"] == kind and t["text"].strip()), None)


@dataclass(frozen=True)
class Selection:
    """Which samples, of which snapshot, by which condition. Raises ConfigError when the condition is none."""

    home: Path
    where: str = "true"
    at: int | None = None

    @cached_property
    def snapshot(self) -> int:
        """Number of the snapshot."""
        with reader(self.home, self.at) as con:
            (number,) = con.execute("SELECT number FROM snapshot").fetchone()
        if number is None:
            raise CatalogError(f"{self.home} has no snapshot, only refused builds; {self.home / 'builds'} says why")
        return int(number)

    @cached_property
    def _picked(self) -> pa.Table:
        """(shard, samples), one row a shard; ids stay in Arrow, which takes a third of what Python strings do."""
        import duckdb

        with reader(self.home, self.snapshot) as con:
            try:
                # a relation's filter is parsed as one expression, so a condition cannot grow into another statement
                picked = con.view("images").filter(self.where)
                by_shard = picked.aggregate("source, shard, list(sample_id) AS samples", "source, shard")
                return by_shard.order("source, shard").project("shard, samples").to_arrow_table()
            except duckdb.Error as error:
                raise ConfigError(f"--where {self.where!r} is not a condition over images: {error}") from None

    def __len__(self) -> int:
        return sum(len(samples) for samples in self._picked["samples"])

    @property
    def sha256(self) -> str:
        """SHA-256 of the sample ids, sorted, a line feed after each."""
        digest = hashlib.sha256()
        ids = pc.list_flatten(self._picked["samples"])
        for sample in ids.take(pc.sort_indices(ids)):
            digest.update(f"{sample}\n".encode())
        return digest.hexdigest()

    def rows(self) -> Iterator[Row]:
        """The samples in the order of their source, shard and place in the shard.

        Raises CatalogError when a shard is gone or does not hold a sample that the catalog says it holds.
        """
        with reader(self.home, self.snapshot) as con:
            for shard, samples in zip(*self._picked.columns, strict=True):
                about = {layer: self._about(con, str(shard), layer) for layer in ABOUT}
                missing = len(samples)
                for image in self._images(str(shard), pa.array(samples.values)):
                    yield Row(image, **{layer: rows.get(image["sample_id"], []) for layer, rows in about.items()})
                    missing -= 1
                if missing:
                    raise CatalogError(f"{shard} lacks {missing} of the samples picked; `medloom verify` says more")

    def _images(self, shard: str, wanted: pa.Array) -> Iterator[dict[str, Any]]:
        """Rows of `images` by row group; groups without a wanted sample are not read."""
        with pq.ParquetFile(self._file(shard)) as file:
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["sample_id"])["sample_id"]
                picked = pc.indices_nonzero(pc.is_in(ids, wanted))
                if len(picked):
                    table = file.read_row_group(group)
                    for place in picked.to_pylist():  # one at a time, since turning a row to Python copies its picture
                        yield table.slice(place, 1).to_pylist()[0]

    def _about(self, con: Any, shard: str, layer: str) -> dict[str, list[dict[str, Any]]]:
        """sample_id -> its rows of a layer, for the partition of a shard of images."""
        schema = LAYERS[layer].schema
        paths = [path for name, path in con.execute(_SHARDS_ABOUT, [shard]).fetchall() if name == layer]
        tables = [pq.read_table(self._file(path), schema=schema) for path in paths]
        found: dict[str, list[dict[str, Any]]] = {}
        if tables:
            order = [(name, "ascending") for name in LAYERS[layer].key]
            for row in pa.concat_tables(tables).sort_by(order).to_pylist():
                found.setdefault(row["sample_id"], []).append(row)
        return found

    def _file(self, shard: str) -> Path:
        path = self.home / shard
        if not path.is_file():
            raise CatalogError(f"{shard} is gone; build again to make it anew, or `medloom verify` to see what else is")
        return path
