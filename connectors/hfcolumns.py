"""The columns of a Parquet file of Hugging Face `datasets`: which is the image, and what the numbers of classes mean.

The invariant: all is read from the file's own schema and its metadata, which is data; nothing of a dataset is run.

>>> columns_of(Path("data/train.parquet"), "data/train.parquet", None, ()).classes
{'label': ('normal', 'pneumonia')}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import ConfigError, Terminal
from infra.plugins import nearest


@dataclass(frozen=True)
class Columns:
    """What a file says of its columns."""

    image: str
    classes: Mapping[str, tuple[str, ...]]
    """path of a column -> names of its classes"""


def columns_of(path: Path, name: str, image: str | None, named: Iterable[str]) -> Columns:
    """Raises Terminal PARQUET_UNREADABLE, ConfigError where a named column is not there, or no column is the image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise Terminal("PARQUET_UNREADABLE", f"{name} is no whole Parquet file; fetch it again") from error
    features = _features(schema.metadata or {})
    typed = [column for column, feature in features.items() if _is(feature, "Image")]
    typed = typed or [c for c in schema.names if pa.types.is_struct(schema.field(c).type) and {
        field.name for field in schema.field(c).type} == {"bytes", "path"}]
    image = image or (typed[0] if len(typed) == 1 else None)
    if image is None:
        found = f"several columns are images ({', '.join(typed)})" if typed else "no column is an image"
        raise ConfigError(f"{name}: {found}; set image_column to one of {', '.join(schema.names)}")
    for wanted in (image, *named):
        if wanted.split(".")[0] not in schema.names:
            near = nearest(wanted, schema.names)
            raise ConfigError(f"{name}: no column {wanted!r}{near}; its columns: {', '.join(schema.names)}")
    return Columns(image, dict(_classes(features)))


def _features(metadata: Mapping[bytes, bytes]) -> Mapping[str, Any]:
    """What `datasets` wrote of the columns, or nothing."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _is(feature: Any, kind: str) -> bool:
    """Whether a column is of a type, or a list of it ("List" and "Sequence" of `datasets`, or a bare list)."""
    if isinstance(feature, list):
        return len(feature) == 1 and _is(feature[0], kind)
    return isinstance(feature, dict) and (feature.get("_type") == kind or _is(feature.get("feature"), kind))


def _classes(feature: Any, place: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Path of every column of type ClassLabel, and the names of its classes."""
    if isinstance(feature, list):
        for inner in feature:
            yield from _classes(inner, place)
    elif isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        yield place, tuple(map(str, feature.get("names", ())))
    elif isinstance(feature, dict):
        for name, inner in feature.items():
            inside = name == "feature" and "_type" in feature
            yield from _classes(inner, place if inside else f"{place}.{name}".lstrip("."))
