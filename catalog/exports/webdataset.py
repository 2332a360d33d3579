"""WebDataset: tar shards of image, caption and JSON, as open_clip and the webdataset library read them.

The members of a sample are adjacent: KEY.png (or jpg, webp), KEY.txt, KEY.json. A key holds no dot, since everything
after the first dot is an extension to readers. `sizes.json` says how many samples each shard holds; open_clip reads it
for the number of training samples. Equal selections give equal bytes.

Pixels are written as they are stored, but for GIF: neither library knows it as an image, and open_clip drops such
samples without a word. A GIF is written as a PNG of the same pixels, and `sha256` in the JSON is that of the PNG.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from catalog.exports import CAPTION_KINDS, NO_CAPTION, Counts, facts, picture
from catalog.exports.progress import begun, counted
from catalog.selection import Row
from infra.keys import sha256

NAME = "webdataset"
REQUIRES: dict[str, str] = {}
RESUMES = True
BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE


class Params(BaseModel):
    """How the shards are cut."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard_mb: int = Field(1000, ge=1, description="a new shard begins when this many megabytes are reached")
    caption: tuple[str, ...] = Field(CAPTION_KINDS, description="kinds of text for the .txt, the first there is wins")


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write 00000.tar … and sizes.json. Samples without a caption are left out and counted."""
    sizes, counts = begun(out)
    stream = _captioned(rows, params, counts)
    first = next(stream, None)
    while first is not None:
        with (
            counted(out, f"{len(sizes):05d}.tar", sizes, counts) as draft,
            open(draft, "wb", buffering=1 << 20) as tar,
        ):
            offset = 0
            while first is not None and offset < params.shard_mb * 1_000_000:
                row, caption = first
                name = row.name
                for suffix, data in _members(row, caption):
                    offset += sum(map(tar.write, _blocks(f"{name}.{suffix}", data)))
                counts.add(row)
                first = next(stream, None)
            tar.write(bytes(-(offset + 2 * BLOCK) % RECORD + 2 * BLOCK))
    (out / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")
    return counts


def _blocks(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """A member of a tar: header, contents, zeros up to a whole block; what tarfile writes, in a third of its time.

    Of a header only name (at 0), size (at 124) and the sum of its bytes (at 148, itself taken as spaces) differ.
    """
    title, size = name.encode("ascii"), b"%011o" % len(data)
    total = _HEADER_SUM + sum(title) + sum(size)
    start = title.ljust(100, b"\0") + _HEADER[100:124] + size + _HEADER[135:148]
    return start + b"%06o\0 " % total + _HEADER[156:], data, bytes(-len(data) % BLOCK)


def _empty_header() -> bytes:
    member = tarfile.TarInfo("")
    member.mode = 0o644
    return member.tobuf(tarfile.USTAR_FORMAT)


_HEADER = _empty_header()
_HEADER_SUM = sum(_HEADER) - sum(_HEADER[148:156]) + 8 * ord(" ") - sum(_HEADER[124:135])


def _captioned(rows: Iterable[Row], params: Params, counts: Counts) -> Iterator[tuple[Row, str]]:
    for row in rows:
        if caption := row.caption(params.caption):
            yield row, str(caption["text"])
        else:
            counts.left_out[NO_CAPTION] += 1


def _members(row: Row, caption: str) -> Iterator[tuple[str, bytes]]:
    """(extension, bytes) of the files of a sample."""
    suffix, image = picture(row)
    record = {**facts(row), "labels": row.labels, "rois": row.rois, "texts": row.texts}
    if suffix != row.suffix:
        record["sha256"] = sha256(image)
    yield suffix, image
    yield "txt", caption.encode()
    yield "json", json.dumps(record, ensure_ascii=False, sort_keys=True).encode()
