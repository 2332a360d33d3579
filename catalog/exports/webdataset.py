"""WebDataset: tar shards of image, caption and JSON, as open_clip and the webdataset library read them.

A key holds no dot (everything after the first dot is an extension), members of a sample are adjacent, `sizes.json` says
how many samples each shard holds. Equal selections give equal bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from catalog.exports import CAPTION_KINDS, Counts, facts
from catalog.selection import Row

NAME = "webdataset"
REQUIRES: dict[str, str] = {}


class Params(BaseModel):
    """How the shards are cut."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard_mb: int = Field(1000, ge=1, description="a new shard begins when this many megabytes are reached")
    caption: tuple[str, ...] = Field(CAPTION_KINDS, description="kinds of text for the .txt, the first one there is wins")


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write 00000.tar … and sizes.json. Samples without a caption are left out and counted: a loader would drop them."""
    counts, sizes = Counts(), dict[str, int]()
    tar: tarfile.TarFile | None = None
    for row in rows:
        caption = row.caption(params.caption)
        if caption is None:
            counts.without_caption += 1
            continue
        if tar is None or tar.offset >= params.shard_mb * 1_000_000:
            if tar is not None:
                tar.close()
            name = f"{len(sizes):05d}.tar"
            tar = tarfile.open(out / name, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed below
        _add(tar, f"{row.id}.{row.suffix}", row.image["image"]["bytes"])
        _add(tar, f"{row.id}.txt", caption["text"].encode())
        _add(tar, f"{row.id}.json", json.dumps(_record(row), ensure_ascii=False, sort_keys=True).encode())
        sizes[name] = sizes.get(name, 0) + 1
        counts.add(row)
    if tar is not None:
        tar.close()
    (out / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")
    return counts


def _record(row: Row) -> dict[str, Any]:
    return {**facts(row), "labels": row.labels, "rois": row.rois, "texts": row.texts}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))
