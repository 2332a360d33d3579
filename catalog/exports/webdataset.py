"""WebDataset: tar shards of image, caption and JSON, as open_clip and the webdataset library read them.

The members of a sample are adjacent: KEY.png (or jpg, webp), KEY.txt, KEY.json. A key holds no dot, since everything
after the first dot is an extension to readers. `sizes.json` says how many samples each shard holds; open_clip reads it
for the number of training samples. Equal selections give equal bytes.

Pixels are written as they are stored, but for GIF: neither library knows it as an image, and open_clip drops such
samples without a word. A GIF is written as a PNG of the same pixels, and `sha256` in the JSON is that of the PNG.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from catalog.exports import CAPTION_KINDS, Counts, facts
from catalog.selection import Row
from infra.keys import sha256

NAME = "webdataset"
REQUIRES: dict[str, str] = {}


class Params(BaseModel):
    """How the shards are cut."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard_mb: int = Field(1000, ge=1, description="a new shard begins when this many megabytes are reached")
    caption: tuple[str, ...] = Field(CAPTION_KINDS, description="kinds of text for the .txt, the first there is wins")


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write 00000.tar … and sizes.json. Samples without a caption are left out and counted."""
    counts, sizes = Counts(), dict[str, int]()
    stream = _captioned(rows, params, counts)
    first = next(stream, None)
    while first is not None:
        name = f"{len(sizes):05d}.tar"
        with tarfile.open(out / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            sizes[name] = 0
            while first is not None and tar.offset < params.shard_mb * 1_000_000:
                row, caption = first
                for suffix, data in _members(row, caption):
                    member = tarfile.TarInfo(f"{row.name}.{suffix}")
                    member.size, member.mode = len(data), 0o644
                    tar.addfile(member, io.BytesIO(data))
                sizes[name] += 1
                counts.add(row)
                first = next(stream, None)
    (out / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")
    return counts


def _captioned(rows: Iterable[Row], params: Params, counts: Counts) -> Iterator[tuple[Row, str]]:
    for row in rows:
        if caption := row.caption(params.caption):
            yield row, str(caption["text"])
        else:
            counts.without_caption += 1


def _members(row: Row, caption: str) -> Iterator[tuple[str, bytes]]:
    """(extension, bytes) of the files of a sample."""
    suffix, image = row.suffix, bytes(row.image["image"]["bytes"])
    record = {**facts(row), "labels": row.labels, "rois": row.rois, "texts": row.texts}
    if suffix == "gif":
        suffix, image = "png", _as_png(image)
        record["sha256"] = sha256(image)
    yield suffix, image
    yield "txt", caption.encode()
    yield "json", json.dumps(record, ensure_ascii=False, sort_keys=True).encode()


def _as_png(gif: bytes) -> bytes:
    png = io.BytesIO()
    with Image.open(io.BytesIO(gif), formats=["GIF"]) as image:
        image.save(png, "PNG")
    return png.getvalue()
