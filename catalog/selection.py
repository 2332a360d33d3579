"""A selection: the samples of a snapshot that an SQL condition picks, with everything said about them.

The list of sample ids is the reproducible thing: a snapshot's number and a condition give the same list, in the same
order, each time. Rows are streamed shard by shard; memory holds one row group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from catalog.catalog import reader
from infra.errors import ConfigError
from infra.keys import key

ABOUT = ("labels", "rois", "texts")
"""Layers that travel with a sample."""


@dataclass(frozen=True)
class Row:
    """One sample as an exporter sees it."""

    image: Mapping[str, Any]
    """its row of `images`, bytes included"""
    labels: Sequence[Mapping[str, Any]]
    rois: Sequence[Mapping[str, Any]]
    texts: Sequence[Mapping[str, Any]]

    @property
    def id(self) -> str:
        return str(self.image["sample_id"])

    @property
    def suffix(self) -> str:
        """File name ending of the stored image, without the dot."""
        return str(self.image["image"]["path"]).rpartition(".")[2]

    def caption(self, kinds: Sequence[str]) -> Mapping[str, Any] | None:
        """The first text of the first kind that the sample has one of."""
        return next((t for kind in kinds for t in self.texts if t["kind"] == kind and t["text"].strip()), None)


@dataclass(frozen=True)
class Selection:
    """Which samples, of which snapshot, by which condition."""

    home: Path
    where: str = "true"
    at: int | None = None

    @cached_property
    def snapshot(self) -> int:
        """Number of the snapshot."""
        with reader(self.home, self.at) as con:
            return int(con.execute("SELECT number FROM snapshot").fetchone()[0])

    @cached_property
    def _picked(self) -> list[tuple[str, str]]:
        import duckdb

        with reader(self.home, self.at) as con:
            try:
                return con.execute(  # type: ignore[no-any-return]
                    f"SELECT shard, sample_id FROM images WHERE ({self.where}\n) ORDER BY source, shard, sample_id"
                ).fetchall()
            except duckdb.Error as error:
                raise ConfigError(f"--where {self.where!r} is not a condition over images: {error}") from None

    def __len__(self) -> int:
        return len(self._picked)

    @property
    def key(self) -> str:
        """Hash of the list of sample ids."""
        return key("selection", [sample for _, sample in self._picked])

    def rows(self) -> Iterator[Row]:
        """The samples in the order of their source, shard and place in the shard."""
        by_shard: dict[str, set[str]] = {}
        for shard, sample in self._picked:
            by_shard.setdefault(shard, set()).add(sample)
        with reader(self.home, self.at) as con:
            for shard, wanted in by_shard.items():
                about = {layer: _about(con, layer, wanted) for layer in ABOUT}
                with pq.ParquetFile(self.home / shard) as file:
                    for group in range(file.num_row_groups):
                        for image in file.read_row_group(group).to_pylist():
                            if image["sample_id"] in wanted:
                                found = {layer: rows.get(image["sample_id"], []) for layer, rows in about.items()}
                                yield Row(image, **found)


def _about(con: Any, layer: str, samples: set[str]) -> dict[str, list[dict[str, Any]]]:
    """sample_id -> its rows of a layer."""
    sql = f"SELECT * EXCLUDE shard FROM {layer} WHERE sample_id IN (SELECT unnest(?)) ORDER BY ALL"
    found: dict[str, list[dict[str, Any]]] = {}
    for row in con.execute(sql, [sorted(samples)]).to_arrow_table().to_pylist():
        found.setdefault(row["sample_id"], []).append(row)
    return found
