"""MDS: shards that mosaicml-streaming reads, of image, caption and metadata.

A sample has the columns `image` (bytes as stored), `caption`, `sample_id`, `format` (png, jpg, gif, webp) and `record`
(JSON: the metadata columns, labels, rois, texts). Samples without a caption have an empty one. Equal selections give
equal bytes. The library is not used to write, since it pins other releases of numpy: a shard is

    number of samples n      uint32, little-endian, as all numbers are
    n + 1 offsets            uint32: where each sample begins, from the start of the file; the last one is the end
    configuration            JSON, as in index.json
    samples                  the length of each column (uint32), then the columns, in the order of their names

>>> streaming.StreamingDataset(local=out, batch_size=1)[0]["caption"]

Source: streaming 0.13, `base/format/mds` (reader and writer), index version 2.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from catalog.exports import CAPTION_KINDS, Counts, facts
from catalog.exports.progress import begun, counted
from catalog.selection import Row

NAME = "mds"
REQUIRES: dict[str, str] = {}
RESUMES = True
COLUMNS = {"caption": "str", "format": "str", "image": "bytes", "record": "json", "sample_id": "str"}
"""Name -> encoding, sorted by name, as samples are laid out."""


class Params(BaseModel):
    """How the shards are cut."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard_mb: int = Field(
        64, ge=1, le=2000, description="a new shard begins when this many megabytes are reached; memory holds one"
    )
    caption: tuple[str, ...] = Field(CAPTION_KINDS, description="kinds of text for `caption`, the first there is wins")


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write shard.00000.mds … and index.json."""
    sizes, counts = begun(out)
    limit = params.shard_mb * 1_000_000
    stream = iter(rows)
    row = next(stream, None)
    while row is not None:
        samples, total = [], 0
        with counted(out, f"shard.{len(sizes):05d}.mds", sizes, counts) as draft:
            while row is not None and total < limit:
                samples.append(_sample(row, params))
                total += len(samples[-1])
                counts.add(row)
                row = next(stream, None)
            with open(draft, "wb") as file:
                file.writelines(_shard(samples, limit))
    shards = [_entry(out / name, n, limit) for name, n in sizes.items()]
    (out / "index.json").write_text(json.dumps({"shards": shards, "version": 2}, sort_keys=True), encoding="utf-8")
    return counts


def _sample(row: Row, params: Params) -> bytes:
    caption = row.caption(params.caption)
    record = {**facts(row), "labels": row.labels, "rois": row.rois, "texts": row.texts}
    columns: dict[str, bytes] = {
        "caption": (caption["text"] if caption else "").encode(), "format": row.suffix.encode(),
        "image": bytes(row.image["image"]["bytes"]), "sample_id": row.id.encode(),
        "record": json.dumps(record, ensure_ascii=False, sort_keys=True).encode(),
    }
    data = [columns[name] for name in COLUMNS]
    return b"".join([np.array([len(one) for one in data], "<u4").tobytes(), *data])


def _settings(limit: int) -> dict[str, Any]:
    return {
        "column_encodings": list(COLUMNS.values()), "column_names": list(COLUMNS),
        "column_sizes": [None] * len(COLUMNS),
        "compression": None, "format": "mds", "hashes": [], "size_limit": limit, "version": 2,
    }


def _shard(samples: list[bytes], limit: int) -> Iterator[bytes]:
    settings = json.dumps(_settings(limit), sort_keys=True).encode()
    offsets = np.cumsum([0, *map(len, samples)]) + 4 + 4 * (len(samples) + 1) + len(settings)
    yield np.array([len(samples)], "<u4").tobytes()
    yield offsets.astype("<u4").tobytes()
    yield settings
    yield from samples


def _entry(path: Path, samples: int, limit: int) -> Mapping[str, Any]:
    raw = {"basename": path.name, "bytes": path.stat().st_size, "hashes": {}}
    return {**_settings(limit), "raw_data": raw, "samples": samples, "zip_data": None}
