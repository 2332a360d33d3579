"""The whole dataset, as a stage sees it that cannot work on a partition alone: duplicates, contamination, splits.

The invariant: pictures stream by, and of other layers only the columns asked for are held; what comes out depends on
the rows, never on how they lie in partitions. A stage of this kind runs after all partitions, is keyed by every unit it
reads, and keeps the same books: each sample of the dataset comes out once, kept or rejected.

>>> def counted(dataset):
...     seen = {"text_id": "", "check": "seen", "version": "1", "verdict": "pass"}
...     rows = [{"sample_id": sample, **seen} for sample in dataset.ids]
...     return Outcome({"checks": LAYERS["checks"].table(rows)}, dataset.ids)
>>> stage = WholeStage("counted", "1", reads=("images",), writes=("checks",), over=counted)

Per sample it holds an id and the columns asked for, about 1 KB: ten million samples are at home in 16 GB, not more.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import BaseModel

from catalog import shards
from catalog.manifest import Shard
from transforms.decoded import Pixels
from transforms.stage import NoParams, Outcome, Resources


@dataclass(frozen=True)
class Dataset:
    """The layers that a stage over the whole dataset reads."""

    home: Path
    shards: Sequence[Shard]

    @cached_property
    def ids(self) -> list[str]:
        """Every sample, in ascending order of its id."""
        return sorted(self.columns("images", ("sample_id",))["sample_id"].to_pylist())

    def columns(self, layer: str, names: Sequence[str]) -> pa.Table:
        """These columns of all rows of a layer; an empty table where nothing wrote it."""
        return shards.read(self.home, self.shards, layer, names)

    def tables(self, layer: str, names: Sequence[str]) -> Iterator[pa.Table]:
        """The same, shard by shard: for what is too much to hold."""
        for shard in self.shards:
            if shard.layer == layer:
                yield shards.read(self.home, [shard], layer, names)

    def pictures(self, wanted: Collection[str] | None = None) -> Iterator[tuple[str, Pixels]]:
        """(sample_id, 8-bit pixels, grey or RGB) of these samples, or of all, in the order of the shards."""
        for shard in self.shards:
            if shard.layer != "images":
                continue
            with pq.ParquetFile(shards.file_of(self.home, shard)) as file:
                for group in range(file.num_row_groups):
                    ids = file.read_row_group(group, columns=["sample_id"])["sample_id"].to_pylist()
                    rows = [row for row, name in enumerate(ids) if wanted is None or name in wanted]
                    if rows:
                        images = file.read_row_group(group, columns=["image"])["image"]
                        yield from ((ids[row], pixels_of(images[row].as_py()["bytes"])) for row in rows)


def pixels_of(data: bytes) -> Pixels:
    """Pixels of an encoded picture as the samples of a row stage have them."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))


@dataclass(frozen=True)
class WholeStage:
    """A stage over the whole dataset. It is called with no tables and a Dataset as its state."""

    name: str
    version: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    over: Callable[[Dataset], Outcome]
    params: BaseModel = field(default_factory=NoParams)
    ingredients: Mapping[str, str] = field(default_factory=dict)
    checks_of: tuple[str, ...] = ()
    """the stages whose checks it reads: those of others may move without moving its key"""
    resources: Resources = field(default_factory=Resources)
    pixels: bool = False
    open: Callable[[], Any] | None = None
    volumes: bool = False
    concurrency: int = 1

    def __call__(self, tables: Mapping[str, pa.Table], state: Any) -> Outcome:
        return self.over(state)

    def wants(self, stage: str, writes: Sequence[str]) -> bool:
        """Whether it reads what this stage, which writes these layers, wrote."""
        layers = {"images", *self.reads} - {"checks"}
        return bool(layers & set(writes)) or ("checks" in writes and stage in self.checks_of)
