"""Lance: a dataset folder `data.lance` for random access, with pictures, regions and texts as columns.

The columns are those of the Hugging Face export, the picture as `image` {bytes, path}. One version, one fragment a file
of `shard_mb`. An interrupted export goes on after its last whole fragment; the version is committed when all are there,
so a half one is no dataset to any reader. Lance names its files at random and its manifest tells the time: equal
selections give equal rows in equal order, not equal bytes.

>>> lance.dataset(out / "data.lance").take([0, 5], columns=["sample_id", "caption"])
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from catalog.exports import CAPTION_KINDS, Counts, huggingface, progress
from catalog.exports.progress import counts_of
from catalog.selection import Row

NAME = "lance"
REQUIRES = {"lance": "medloom[lance]"}
RESUMES = True
FOLDER = "data.lance"
BATCH_ROWS, BATCH_BYTES = 100, 64_000_000


class Params(BaseModel):
    """How the fragments are cut."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard_mb: int = Field(500, ge=1, description="a new fragment begins when this many megabytes of images are reached")
    caption: tuple[str, ...] = Field(CAPTION_KINDS, description="kinds of text for `caption`, the first there is wins")


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write data.lance."""
    from lance import FragmentMetadata, LanceDataset, LanceOperation
    from lance.fragment import write_fragments

    folder = out / FOLDER
    told = list(progress.told(out))
    counts = counts_of(told[-1]["counts"]) if told else Counts()
    fragments = [FragmentMetadata.from_json(text) for said in told for text in said["fragments"]]
    _sweep(folder, fragments)
    stream = iter(rows)
    first = next(stream, None)
    while first is not None:
        rest = _Fragment(first, stream, params, counts)
        reader = pa.RecordBatchReader.from_batches(huggingface.FIELDS, rest.batches())
        try:
            made = write_fragments(reader, str(folder), schema=huggingface.FIELDS, mode="create",
                                   max_rows_per_file=1 << 40, max_bytes_per_file=1 << 40)
        except OSError:
            if rest.error is not None:
                raise rest.error from None
            raise
        fragments += made
        progress.tell(out, {"counts": vars(counts), "fragments": [json.dumps(one.to_json()) for one in made]})
        first = rest.next
    if fragments:
        LanceDataset.commit(str(folder), LanceOperation.Overwrite(huggingface.FIELDS, fragments))
    return counts


class _Fragment:
    """The rows of one file, in batches; `next` is the row that the file has no room for."""

    def __init__(self, first: Row, rows: Iterator[Row], params: Params, counts: Counts) -> None:
        self.next: Row | None = first
        self.error: BaseException | None = None
        """what ended the rows: lance turns it into an OSError, so it is kept for `write` to raise"""
        self._rows, self._params, self._counts = rows, params, counts

    def batches(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._taken()
        finally:
            self.error = sys.exception()

    def _taken(self) -> Iterator[pa.RecordBatch]:
        total = size = 0
        held: list[dict[str, Any]] = []
        while self.next is not None and total < self._params.shard_mb * 1_000_000:
            held.append(huggingface.record_of(self.next, self._params.caption))
            self._counts.add(self.next)
            grown = len(self.next.image["image"]["bytes"])
            total, size = total + grown, size + grown
            self.next = next(self._rows, None)
            if len(held) == BATCH_ROWS or size >= BATCH_BYTES:
                yield from _batches(held)
                held, size = [], 0
        yield from _batches(held)


def _batches(held: list[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    if held:
        yield from pa.Table.from_pylist(held, schema=huggingface.FIELDS).combine_chunks().to_batches()


def _sweep(folder: Path, fragments: Iterable[Any]) -> None:
    """Take away what an interruption left: files that are on no record, and a version that was not the last step."""
    known = {file.path for fragment in fragments for file in fragment.files}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and not (path.parent.name == "data" and path.name in known):
            path.unlink()
