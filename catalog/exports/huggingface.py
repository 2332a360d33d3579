"""Hugging Face Parquet: a folder that `datasets.load_dataset` opens, with pictures, regions and texts as features.

Row groups hold at most 100 rows and end at 100 MB (the hub's viewer fails on larger ones), image bytes are stored
plain, and the schema metadata names the features, so an image column is an Image without a loading script. There is one
configuration for each class of licences that the images have (`open`, `research`, `other`, `unknown`), the freest is
the default: nobody gets rows under harder terms without naming them.

An interrupted export goes on at the first row that lies in no whole file; of several classes, those that were further
pass over the rows they have.

>>> datasets.load_dataset(str(out), "open", split="train")[0]["rois"][0]["label"]
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel, ConfigDict, Field

from catalog.exports import CAPTION_KINDS, Counts, progress
from catalog.exports.progress import counts_of
from catalog.licences import CLASSES, class_of
from catalog.schema import LAYERS
from catalog.selection import ABOUT, Row

NAME = "huggingface"
REQUIRES: dict[str, str] = {}
RESUMES = True
GROUP_ROWS, GROUP_BYTES = 100, 100_000_000
"""The defaults of `datasets` for media."""


class Params(BaseModel):
    """How the files are cut and what they are called."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str = Field("train", pattern=r"^\w+$", description="name of the split that the files make up")
    shard_mb: int = Field(500, ge=1, description="a new file begins when this many megabytes of images are reached")
    caption: tuple[str, ...] = Field(CAPTION_KINDS, description="kinds of text for `caption`, the first there is wins")


def _plain(kind: pa.DataType) -> pa.DataType:
    """Fixed-size lists as lists: the form that features of type List have."""
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return pa.struct([(f.name, _plain(f.type)) for f in kind]) if pa.types.is_struct(kind) else kind


def _rows_of(layer: str) -> pa.DataType:
    return pa.list_(pa.struct([(f.name, _plain(f.type)) for f in LAYERS[layer].schema if f.name != "sample_id"]))


_IMAGES = [(f.name, _plain(f.type)) for f in LAYERS["images"].schema]
FIELDS = pa.schema([*_IMAGES, ("caption", pa.string()), *((layer, _rows_of(layer)) for layer in ABOUT)])


def feature(name: str, kind: pa.DataType) -> Any:
    """A column as `datasets` describes features."""
    if name == "image":
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": feature("", kind.value_type)}
    if pa.types.is_struct(kind):
        return {f.name: feature("", f.type) for f in kind}
    return {"_type": "Value", "dtype": {"double": "float64", "float": "float32"}.get(str(kind), str(kind))}


def _columns(schema: pa.Schema) -> list[str]:
    """Paths of the leaf columns as Parquet names them; settings given under another name are ignored without a word."""
    with io.BytesIO() as file:
        pq.write_table(schema.empty_table(), file)
        columns = pq.read_metadata(file).schema
    return [columns.column(n).path for n in range(len(columns))]


SCHEMA = FIELDS.with_metadata({
    "huggingface": json.dumps({"info": {"features": {f.name: feature(f.name, f.type) for f in FIELDS}}})
})
PLAIN = ("image.bytes", "image.path")


@cache
def packed() -> list[str]:
    """Columns that are compressed: all but the pictures, which are already."""
    return [path for path in _columns(SCHEMA) if path not in PLAIN]


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write data/CLASS/SPLIT-00000-of-000NN.parquet and README.md, the dataset card."""
    counts, files = _begun(out, params)
    try:
        for row in rows:
            kind = class_of(row.image["licence_image"])
            if kind not in files:
                files[kind] = _Files(out / "data" / kind, params)
            before = vars(counts_of(vars(counts)))
            counts.add(row)
            if files[kind].add(row, before, counts.seen):
                _tell(out, files, counts)
        for each in files.values():
            each.close(counts.seen)
        _tell(out, files, counts)
        for each in files.values():
            each.name_all()
    finally:
        for each in files.values():
            each.abandon()
    (out / "README.md").write_text(_card(params, counts, [kind for kind in CLASSES if kind in files]), encoding="utf-8")
    return counts


def _begun(out: Path, params: Params) -> tuple[Counts, dict[str, _Files]]:
    """Where an interrupted export goes on: the counts of the rows before, and what each class has whole."""
    told = list(progress.told(out))
    if not told:
        return Counts(), {}
    said = told[-1]
    return counts_of(said["counts"]), {
        kind: _Files(out / "data" / kind, params, whole, end) for kind, (whole, end) in said["classes"].items()
    }


def _tell(out: Path, files: Mapping[str, _Files], counts: Counts) -> None:
    """That a file is whole. The next run begins with the first row of a file that is not."""
    begun = [each.began for each in files.values() if each.began is not None]
    first = min(begun, key=lambda one: counts_of(one).seen, default=vars(counts))
    progress.tell(out, {"counts": first, "classes": {kind: [each.whole, each.end] for kind, each in files.items()}})


class _Files:
    """The files of one licence class. A group of rows is held back until it is full."""

    def __init__(self, folder: Path, params: Params, whole: int = 0, end: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.params = folder, params
        self.whole, self.end = whole, end
        """files that are done, and the rows of all classes up to the last one in them"""
        self.began: dict[str, Any] | None = None
        """the counts before the first row of the file that is not done"""
        self.group: list[Row] = []
        self.bytes = self.in_file = 0
        self.writer: Any = None

    def add(self, row: Row, before: dict[str, Any], seen: int) -> bool:
        """Take a row, the one with which `seen` are; whether a file was done with it."""
        if seen <= self.end:
            return False
        self.began = self.began or before
        self.group.append(row)
        self.bytes += len(row.image["image"]["bytes"])
        if len(self.group) == GROUP_ROWS or self.bytes >= GROUP_BYTES:
            self._write()
            if self.in_file >= self.params.shard_mb * 1_000_000:
                self.close(seen)
                return True
        return False

    def _write(self) -> None:
        if self.writer is None:
            self.writer = pq.ParquetWriter(
                self._draft(self.whole), SCHEMA, use_dictionary=packed(), write_page_index=True,
                compression=dict.fromkeys(PLAIN, "NONE") | dict.fromkeys(packed(), "ZSTD"),
            )
        records = [record_of(row, self.params.caption) for row in self.group]
        self.writer.write_table(pa.Table.from_pylist(records, schema=SCHEMA))
        self.in_file += self.bytes
        self.group, self.bytes = [], 0

    def close(self, seen: int) -> None:
        """Make a whole file of what there is."""
        if self.group:
            self._write()
        if self.writer is not None:
            self.writer.close()
            self.writer, self.began, self.in_file = None, None, 0
            self.whole, self.end = self.whole + 1, seen

    def name_all(self) -> None:
        """Give the files the names that tell how many there are."""
        for number in range(self.whole):
            if (draft := self._draft(number)).exists():  # else it was named before an interruption
                draft.rename(draft.with_name(f"{draft.name}-of-{self.whole:05d}.parquet"))

    def abandon(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _draft(self, number: int) -> Path:
        return self.folder / f"{self.params.split}-{number:05d}"


def record_of(row: Row, kinds: Sequence[str]) -> dict[str, Any]:
    """A row of FIELDS; `kinds` of text serve as its caption."""
    caption = row.caption(kinds)
    about = {"labels": row.labels, "rois": row.rois, "texts": row.texts}
    return {**row.image, **about, "caption": caption["text"] if caption else None}


def _card(params: Params, counts: Counts, classes: Sequence[str]) -> str:
    """The card of the folder; its fields are those that huggingface_hub's DatasetCardData checks."""
    codes = list(counts.licences)
    one = codes[0] if len(codes) == 1 else None
    licence = one.lower() if one and one != "unknown" and class_of(one) != "other" else "other"
    size = next((name for most, name in _SIZES if counts.written < most), "n>1T")
    head = {
        "license": licence, **({} if licence != "other" else {"license_name": "see-each-row"}),
        "tags": ["medical", "image-text"], "size_categories": [size], "pretty_name": "Exported by medloom",
        "configs": [
            {"config_name": kind, **({"default": True} if kind == classes[0] else {}),
             "data_files": [{"split": params.split, "path": f"data/{kind}/{params.split}-*.parquet"}]}
            for kind in classes
        ],
    }
    lines = "\n".join(
        f"- `{_said(name)}`, {class_of(None if name == 'unknown' else name)}: {n} images"
        for name, n in sorted(counts.licences.items())
    )
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
        f"# Exported by medloom\n\n{counts.written} samples. Each configuration holds one class of licences: `open`, "
        "`research` (not commercially, or not changed), `other` (terms of its own), `unknown`. Licences of the "
        f"images, one column a row (`licence_image`):\n\n{lines}\n\n"
        "ATTRIBUTIONS names the works they come from, KNOWN_ISSUES.json what is known to be wrong. "
        "Boxes are x0, y0, x1, y1 in pixels of the stored image, half-open; "
        "masks are COCO run-length codes. `texts.evidence` names what each text rests on. Made texts may be wrong: "
        "they are for research, not for care.\n"
    )


_SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))


def _said(code: str) -> str:
    """A licence code as a card may show it: what a source wrote is no Markdown of ours."""
    return re.sub(r"[^\w .:+-]", "?", " ".join(code.split()))[:80]
