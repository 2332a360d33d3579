"""Hugging Face Parquet: a folder that `datasets.load_dataset` opens, with pictures, regions and texts as features.

Row groups hold at most 100 rows and end at 100 MB (the hub's viewer fails on larger ones), image bytes are stored
plain, and the schema metadata names the features, so an image column is an Image without a loading script.

>>> datasets.load_dataset(str(out), split="train")[0]["rois"][0]["label"]
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel, ConfigDict, Field

from catalog.exports import CAPTION_KINDS, Counts
from catalog.schema import LAYERS
from catalog.selection import ABOUT, Row

NAME = "huggingface"
REQUIRES: dict[str, str] = {}
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


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write data/SPLIT-00000-of-000NN.parquet and README.md, the dataset card."""
    info = {"info": {"features": {f.name: feature(f.name, f.type) for f in FIELDS}}}
    schema = FIELDS.with_metadata({"huggingface": json.dumps(info)})
    plain = {"image.bytes", "image.path"}
    packed = [path for path in _columns(schema) if path not in plain]
    counts = Counts()
    (out / "data").mkdir()
    files: list[Path] = []
    groups = _groups(rows)
    group = next(groups, None)
    while group is not None:
        file = out / "data" / f"{params.split}-{len(files):05d}"
        files.append(file)
        with pq.ParquetWriter(
            file, schema, compression=dict.fromkeys(plain, "NONE") | dict.fromkeys(packed, "ZSTD"),
            use_dictionary=packed, write_page_index=True,
        ) as writer:
            size = 0
            while group is not None and size < params.shard_mb * 1_000_000:
                writer.write_table(pa.Table.from_pylist([_record(row, params, counts) for row in group], schema=schema))
                size += sum(map(_size, group))
                group = next(groups, None)
    for number, file in enumerate(files):
        file.rename(file.with_name(f"{params.split}-{number:05d}-of-{len(files):05d}.parquet"))
    (out / "README.md").write_text(_card(params, counts))
    return counts


def _columns(schema: pa.Schema) -> list[str]:
    """Paths of the leaf columns as Parquet names them; settings given under another name are ignored without a word."""
    with io.BytesIO() as file:
        pq.write_table(schema.empty_table(), file)
        columns = pq.read_metadata(file).schema
    return [columns.column(n).path for n in range(len(columns))]


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in groups of at most GROUP_ROWS, each ended by the picture that makes it GROUP_BYTES."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += _size(row)
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _size(row: Row) -> int:
    return len(row.image["image"]["bytes"])


def _record(row: Row, params: Params, counts: Counts) -> dict[str, Any]:
    counts.add(row)
    caption = row.caption(params.caption)
    about = {"labels": row.labels, "rois": row.rois, "texts": row.texts}
    return {**row.image, **about, "caption": caption["text"] if caption else None}


def _card(params: Params, counts: Counts) -> str:
    known = [name for name in counts.licences if name != "unknown"]
    head = {
        "license": known[0].lower() if len(counts.licences) == len(known) == 1 else "other",
        "tags": ["medical", "image-text"],
        "configs": [{
            "config_name": "default",
            "data_files": [{"split": params.split, "path": f"data/{params.split}-*.parquet"}],
        }],
    }
    lines = "\n".join(f"- {' '.join(name.split())}: {n} images" for name, n in sorted(counts.licences.items()))
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
        f"# Exported by medloom\n\n{counts.written} samples. Licences of the images, one column a row "
        f"(`licence_image`):\n\n{lines}\n\nBoxes are x0, y0, x1, y1 in pixels of the stored image, half-open; "
        "masks are COCO run-length codes. `texts.evidence` names what each text rests on. Made texts may be wrong: "
        "they are for research, not for care.\n"
    )
