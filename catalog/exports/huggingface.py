"""Hugging Face Parquet: a folder that `datasets.load_dataset` opens, with pictures, regions and texts as features.

Row groups hold at most 100 rows (the hub's viewer fails on larger ones), image bytes are stored plain, and the schema
metadata names the features, so an image column is an Image without a loading script.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from catalog.exports import CAPTION_KINDS, Counts
from catalog.schema import LAYERS
from catalog.selection import Row

NAME = "huggingface"
REQUIRES: dict[str, str] = {}
GROUP_ROWS = 100


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
FIELDS = pa.schema([*_IMAGES, ("caption", pa.string()), *((layer, _rows_of(layer)) for layer in ("labels", "rois", "texts"))])


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
    counts = Counts()
    (out / "data").mkdir()
    files: list[Path] = []
    stream = iter(rows)
    while (first := next(stream, None)) is not None:
        file = out / "data" / f"{params.split}-{len(files):05d}"
        files.append(file)
        with pq.ParquetWriter(
            file, schema, compression={n: "ZSTD" for n in FIELDS.names if n != "image"} | {"image.bytes": "NONE"},
            use_dictionary=[n for n in FIELDS.names if n not in ("image", "caption")], write_page_index=True,
        ) as writer:
            size = 0
            for group in _groups(first, stream):
                size += sum(len(row.image["image"]["bytes"]) for row in group)
                writer.write_table(pa.Table.from_pylist([_record(row, params, counts) for row in group], schema=schema))
                if size >= params.shard_mb * 1_000_000:
                    break
    for number, file in enumerate(files):
        file.rename(file.with_name(f"{params.split}-{number:05d}-of-{len(files):05d}.parquet"))
    (out / "README.md").write_text(_card(params, counts))
    return counts


def _groups(first: Row, stream: Iterator[Row]) -> Iterator[list[Row]]:
    group = [first, *islice(stream, GROUP_ROWS - 1)]
    while group:
        yield group
        group = list(islice(stream, GROUP_ROWS))


def _record(row: Row, params: Params, counts: Counts) -> dict[str, Any]:
    counts.add(row)
    caption = row.caption(params.caption)
    about = {"labels": row.labels, "rois": row.rois, "texts": row.texts}
    return {**row.image, **about, "caption": caption["text"] if caption else None}


def _card(params: Params, counts: Counts) -> str:
    known = sorted(n for n in counts.licences if n != "unknown")
    licence = known[0].lower() if len(counts.licences) == 1 and known else "other"
    lines = "\n".join(f"- {name}: {n} images" for name, n in sorted(counts.licences.items()))
    return (
        "---\n"
        f"license: {licence}\n"
        "tags: [medical, image-text]\n"
        "configs:\n- config_name: default\n  data_files:\n"
        f"  - split: {params.split}\n    path: data/{params.split}-*.parquet\n"
        "---\n\n"
        f"# Exported by medloom\n\n{counts.written} samples. Licences of the images, one column a row "
        f"(`licence_image`):\n\n{lines}\n\nBoxes are x0, y0, x1, y1 in pixels of the stored image, half-open; masks are "
        "COCO run-length codes. `texts.evidence` names what each text rests on. Made texts may be wrong: they are for "
        "research, not for care.\n"
    )
