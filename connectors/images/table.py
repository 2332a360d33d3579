"""Tables of images: CSV, TSV, JSON lines, a JSON list, Parquet; one row an image, or several that agree.

The invariant: every row comes out, as what it states or with the error that makes it unusable. A column within a
nested value is called by its path ("oa_info.oa.license"), and a cell that holds a list holds several values. A name
with braces is made of several columns: image_column "{pdf_hash}_{fig_uri}".

>>> columns = TableColumns(table="metadata.csv", label_columns=("finding",), split_on="|")
>>> [entry.labels for entry in read_table(Path("set/metadata.csv"), "metadata.csv", columns)]
[(Label(name='Mass', …), Label(name='Nodule', …)), …]
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from catalog.items import Box, Label, Text
from connectors.images.stated import Stated, annotated, beside, finite, unreadable
from infra.errors import ConfigError, ItemError, Terminal
from infra.plugins import nearest

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
DELIMITERS = ",;\t|"
VALUES: Mapping[str, str] = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "present", "positive"), "present"),
    **dict.fromkeys(("0", "0.0", "false", "no", "absent", "negative"), "absent"),
    **dict.fromkeys(("-1", "-1.0", "uncertain"), "uncertain"),
}
"""What the cell of a binary column may hold, in any case; an empty one says nothing."""
FACTS = ("modality", "anatomy", "view", "source_uri", "source_version")
"""Columns of `images` that a column of a table may fill."""
IMAGE_COLUMNS = ("filename", "file_name", "image", "image_name", "img_name", "image_path", "path")
"""Where the name of the image is looked for if nothing is said."""
Row = Mapping[str, Any]


class TableColumns(BaseModel):
    """Which columns of a table mean what. Blanks around names and cells do not count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str | None = Field(
        None, description="csv, tsv, jsonl, json or parquet: path, or glob below root (* crosses folders); the "
        "delimiter of a csv is found out",
    )
    encoding: str = Field("utf-8-sig", description="of the table, where it is text")
    image_column: str | None = Field(
        None, description="path, file name, or name without suffix of the image; or made of columns: "
        f"{{folder}}/{{name}}; default: the first there is of {', '.join(IMAGE_COLUMNS)}",
    )
    label_columns: tuple[str, ...] = Field((), description="columns whose cells are findings that are present")
    split_on: str | None = Field(None, description="what parts several findings in one cell, such as |")
    binary_columns: tuple[str, ...] = Field((), description="one finding each: 1 present, 0 absent, -1 uncertain")
    attribute_columns: tuple[str, ...] = Field((), description="columns kept as label name and value: sex, age …")
    text_columns: Mapping[str, str] = Field({}, description="column -> kind of text: original_caption, report …")
    fact_columns: Mapping[str, str] = Field({}, description=f"column -> column of images: {', '.join(FACTS)}")
    patient_column: str | None = Field(
        None, description="column of the patient, study, video or article: what must not be parted by a split"
    )
    licence_column: str | None = Field(None, description="column of the image's licence")
    split_column: str | None = Field(None, description="column of the split: train, val, test")
    rater_column: str | None = Field(None, description="column of who stated the row's labels and boxes")
    box_columns: tuple[str, ...] = Field((), description="four columns of a box, or one with all four numbers")
    box_format: Literal["xyxy", "xywh", "cxcywh"] = Field(
        "xyxy", description="two corners, a corner and the size, or the centre and the size"
    )
    box_first: Literal[0, 1] = Field(0, description="whether pixels are counted from 0 or from 1")
    box_last_inside: bool = Field(False, description="xyxy: the second corner is a pixel of the box (1-based: it is)")
    box_fractions: bool = Field(False, description="boxes are in fractions of the image, not in pixels")
    box_label: str | None = Field(None, description="column of what the box shows; without it, box_name")
    box_name: str | None = Field(None, description="what all boxes show")
    objects_column: str | None = Field(
        None, description="column with {bbox: [[x, y, width, height], …], categories: […]}, as Hugging Face has it"
    )
    size_columns: tuple[str, ...] = Field((), description="columns of height and width of the annotated image")

    @field_validator("fact_columns")
    @classmethod
    def _known(cls, columns: Mapping[str, str]) -> Mapping[str, str]:
        for name in columns.values():
            if name not in FACTS:
                raise ValueError(f"{name!r} is none of {', '.join(FACTS)}{nearest(name, list(FACTS))}")
        return columns

    @model_validator(mode="after")
    def _whole(self) -> TableColumns:
        if len(self.box_columns) not in (0, 1, 4):
            raise ValueError("box_columns are four columns, or one with all four numbers")
        if self.box_columns and not (self.box_label or self.box_name):
            raise ValueError("box_columns need box_label, a column of what boxes show, or box_name, the same for all")
        if len(self.size_columns) not in (0, 2):
            raise ValueError("size_columns are two: of the height and of the width")
        return self

    def used(self) -> Iterator[str]:
        """All columns that have a meaning."""
        yield from re.findall(r"{([^{}]+)}", self.image_column or "") or filter(None, [self.image_column])
        yield from (*self.label_columns, *self.binary_columns, *self.attribute_columns, *self.box_columns)
        yield from (*self.text_columns, *self.fact_columns, *self.size_columns)
        single = (
            self.patient_column, self.licence_column, self.split_column, self.rater_column, self.box_label,
            f"{self.objects_column}.bbox" if self.objects_column else None,
        )
        yield from filter(None, single)


def read_table(path: Path, name: str, columns: TableColumns) -> Iterator[Stated]:
    """One entry a row. Raises Terminal ANNOTATION_UNREADABLE, ConfigError for a column that is not there or twice."""
    header, rows = read_rows(path, name, columns.encoding)
    image = columns.image_column or next((column for column in IMAGE_COLUMNS if column in header), None)
    if image is None:
        close = nearest(IMAGE_COLUMNS[0], header)
        known = ", ".join(header)
        raise ConfigError(f"{name}: set image_column, the one that names the image{close}, to one of {known}")
    columns = columns.model_copy(update={"image_column": image})
    for wanted in columns.used():
        if header.count(wanted) != 1:
            found = "twice" if wanted in header else f"not{nearest(wanted, header)}"
            raise ConfigError(f"{name}: the column {wanted!r} is there {found}; its columns: {', '.join(header)}")
    for place, row in rows:
        yield row_entry(row, f"{name} {place}", name, columns)


def read_rows(path: Path, name: str, encoding: str = "utf-8-sig") -> tuple[list[str], Iterator[tuple[str, Row]]]:
    """Header and (place, row) of a table; a row that cannot be read holds its error under "". Raises Terminal
    ANNOTATION_UNREADABLE."""
    suffix = PurePosixPath(name).suffix.lower()
    try:
        if suffix == ".parquet":
            return _listed(_parquet_rows(path))
        text = path.read_text(encoding=encoding)
        if suffix in (".jsonl", ".ndjson"):
            return _listed(_json_lines(text, name))
        if suffix == ".json":
            return _listed(_json_rows(text))
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise unreadable(name, error) from error
    return _csv_rows(text, name)


def _listed(rows: Iterator[tuple[str, Row]]) -> tuple[list[str], Iterator[tuple[str, Row]]]:
    known = list(rows)
    return list(dict.fromkeys(column for _, row in known for column in row)), iter(known)


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
        yield from ((f"row {n}", flat(row)) for n, row in enumerate(rows))


def _json_lines(text: str, name: str) -> Iterator[tuple[str, Row]]:
    for n, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"line {n}", flat(json.loads(line))
            except (ValueError, TypeError, RecursionError) as error:
                yield f"line {n}", {"": Terminal("ROW_MALFORMED", f"{name} line {n}: {error}; correct the line")}


def _json_rows(text: str) -> Iterator[tuple[str, Row]]:
    whole = json.loads(text)
    if isinstance(whole, dict):  # {"a.png": {…}, …}
        whole = [{"key": key, **row} for key, row in whole.items()]
    yield from ((f"row {n}", flat(row)) for n, row in enumerate(whole))


def _csv_rows(text: str, name: str) -> tuple[list[str], Iterator[tuple[str, Row]]]:
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=lambda d: len(next(csv.reader([first], delimiter=d), [])))
    lines = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)

    def rows() -> Iterator[tuple[str, Row]]:
        try:
            for line in lines:
                cells = [cell.strip() for cell in line]
                row: dict[str, Any] = dict(zip(header, cells, strict=False))
                if len(cells) < len(header) or any(cells[len(header) :]):
                    why = f"{name}: a row has {len(cells)} cells, the header {len(header)}; correct the row"
                    row[""] = Terminal("ROW_MALFORMED", why)
                if cells:
                    yield f"line {lines.line_num}", row
        except csv.Error as error:
            raise unreadable(name, f"line {lines.line_num}: {error}") from error

    try:
        header = [cell.strip() for cell in next(lines, [])]
    except csv.Error as error:
        raise unreadable(name, f"line {lines.line_num}: {error}") from error
    return header, rows()


def flat(row: Any, before: str = "") -> dict[str, Any]:
    """Nested values under the path of their names. Raises TypeError for a row that is no table of names."""
    if not isinstance(row, Mapping):
        raise TypeError(f"a row is {type(row).__name__}, not a table of names and values")
    found: dict[str, Any] = {}
    for name, value in row.items():
        found.update(flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value})
    return found


def words(value: Any) -> list[str]:
    """What a cell says: nothing, one thing, or several."""
    if isinstance(value, list | tuple):
        return [word for one in value for word in words(one)]
    return [] if value is None or not str(value).strip() else [str(value).strip()]


def row_entry(row: Row, place: str, name: str, columns: TableColumns) -> Stated:
    """What a row at a place of the table `name` says, or the error that makes it unusable."""
    image = _image(row, str(columns.image_column))
    stated = Stated(beside(name, image), name, (image,)) if image else Stated(place, name)
    if isinstance(row.get(""), ItemError):
        return replace(stated, error=row[""])

    def cell(column: str | None) -> str | None:
        return next(iter(words(row.get(column))), None) if column else None

    rater = cell(columns.rater_column)
    try:
        labels = tuple(_labels(row, name, columns, rater))
        boxes = list(_boxes(row, columns))
        facts = {"annotated_size": [1, 1]} if columns.box_fractions else annotated(
            finite(cell(side) or 0 for side in columns.size_columns)
        )
    except ItemError as error:
        return replace(stated, error=error)
    except (ValueError, TypeError) as error:
        return replace(stated, error=Terminal("BOX_INVALID", f"{place}: {error}; correct the row"))
    licence = cell(columns.licence_column)
    return replace(
        stated,
        labels=labels,
        boxes=() if rater else tuple(boxes),
        outlines=tuple({"label": box.label, "box": list(box.xyxy), "rater": rater} for box in boxes) if rater else (),
        texts=tuple(Text(kind, word) for name, kind in columns.text_columns.items() for word in words(row.get(name))),
        facts={**facts, **{fact: said for column, fact in columns.fact_columns.items() if (said := cell(column))}},
        patient=cell(columns.patient_column),
        licence=(_code(licence), f"{_kind(name)}:{columns.licence_column}") if licence else None,
    )


def _code(licence: str) -> str:
    """"cc by-nc" as "CC-BY-NC"; other words as they are."""
    code = "-".join(licence.split())
    return code.upper() if code.lower().startswith(("cc-", "cc0")) else code


def _image(row: Row, column: str) -> str:
    if "{" not in column:
        return next(iter(words(row.get(column))), "")
    parts = {name: next(iter(words(row.get(name))), "") for name in re.findall(r"{([^{}]+)}", column)}
    return re.sub(r"{([^{}]+)}", lambda found: parts[found[1]], column) if all(parts.values()) else ""


def _kind(name: str) -> str:
    return PurePosixPath(name).suffix.lstrip(".").lower().replace("txt", "csv")


def _labels(row: Row, name: str, columns: TableColumns, rater: str | None) -> Iterator[Label]:
    def origin(column: str) -> str:
        return f"{_kind(name)}:{column}" + (f" by {rater}" if rater else "")

    for column in columns.label_columns:
        for word in words(row.get(column)):
            for part in word.split(columns.split_on) if columns.split_on else (word,):
                if part.strip():
                    yield Label(part.strip(), origin=origin(column))
    for column in columns.binary_columns:
        for word in words(row.get(column)):
            value = VALUES.get(word.lower())
            if value is None:
                raise Terminal(
                    "LABEL_VALUE_UNKNOWN",
                    f"{name}: {word!r} in the column {column!r}; known are {', '.join(VALUES)} and nothing",
                )
            yield Label(column, value, origin(column))
    for column in columns.attribute_columns:
        yield from (Label(column, word, origin(column)) for word in words(row.get(column)))
    if columns.split_column:
        yield from (Label("split", word, origin(columns.split_column)) for word in words(row.get(columns.split_column)))


def _boxes(row: Row, columns: TableColumns) -> Iterator[Box]:
    """The boxes of a row; a row whose cells are all empty has none."""
    cells = [word for column in columns.box_columns for word in words(row.get(column))]
    if cells:
        label = next(iter(words(row.get(columns.box_label))), None) if columns.box_label else columns.box_name
        if label is None:
            raise ValueError(f"a box without a word in {columns.box_label!r}")
        yield Box(label, corners(_numbers(cells), columns))
    if columns.objects_column:
        stated = "box_format" in columns.model_fields_set
        asked = columns if stated else columns.model_copy(update={"box_format": "xywh"})
        boxes: list[Any] = row.get(f"{columns.objects_column}.bbox") or []
        places = [f"{columns.objects_column}.{name}" for name in ("categories", "category", "label")]
        names: list[Any] = next((row[place] for place in places if row.get(place)), [columns.box_name] * len(boxes))
        for box, label in zip(boxes, names, strict=True):
            yield Box(str(label), corners(finite(box), asked))


def _numbers(cells: list[str]) -> list[float]:
    parts = re.split(r"[\s,;]+", cells[0].strip("[]() ")) if len(cells) == 1 else cells
    return finite(parts)


def corners(numbers: list[float], columns: TableColumns) -> tuple[float, float, float, float]:
    """Four numbers in the table's convention as x0, y0, x1, y1 from 0, half-open. Raises ValueError."""
    if len(numbers) != 4:
        raise ValueError(f"a box has {len(numbers)} numbers instead of 4")
    a, b, c, d = numbers
    if columns.box_format == "cxcywh":
        a, b = a - c / 2, b - d / 2
    x0, y0 = a - columns.box_first, b - columns.box_first
    if columns.box_format != "xyxy":
        return x0, y0, x0 + c, y0 + d
    last = 1 if columns.box_last_inside else 0
    return x0, y0, c - columns.box_first + last, d - columns.box_first + last
