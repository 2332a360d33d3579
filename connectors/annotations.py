"""What sources say about images: rows of a CSV file, Pascal VOC XML, COCO JSON.

The invariant: every entry comes out, as what it states or with the error that makes it unusable, and boxes come out in
one convention whatever the format: x0, y0, x1, y1 in pixels of the raw image, from 0, half-open.

    Pascal VOC  corners counted from 1, both inside the box   (xmin - 1, ymin - 1, xmax, ymax)
    COCO        x, y, width, height from 0                    (x, y, x + width, y + height)

>>> next(read_voc(Path("Annotations/a.xml"), "Annotations/a.xml")).boxes
(Box(label='WBC', xyxy=(41.0, 182.0, 277.0, 381.0), role='region'),)
"""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from catalog.items import Box, Label, Text
from infra.errors import ConfigError, ItemError, Terminal
from infra.plugins import nearest

DELIMITERS = ",;\t|"
VALUES: Mapping[str, str] = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "present", "positive"), "present"),
    **dict.fromkeys(("0", "0.0", "false", "no", "absent", "negative"), "absent"),
    **dict.fromkeys(("-1", "-1.0", "uncertain"), "uncertain"),
}
"""What the cell of a binary column may hold, in any case; an empty one says nothing."""
FACTS = ("modality", "anatomy", "view", "source_uri", "source_version")
"""Columns of `images` that a column of a CSV file may fill."""


@dataclass(frozen=True)
class Stated:
    """What one entry says about one image."""

    id: str
    """what the entry is called where no image belongs to it; it does not change when other entries do"""
    file: str
    """of the entry, relative to the root"""
    names: tuple[str, ...] = ()
    """what the entry calls the image, best first: a path, a file name, or a name without suffix"""
    labels: tuple[Label, ...] = ()
    boxes: tuple[Box, ...] = ()
    texts: tuple[Text, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    patient: str | None = None
    licence: tuple[str, str] | None = None
    """code and evidence"""
    error: ItemError | None = None


class CsvColumns(BaseModel):
    """Which columns of a CSV file mean what. Blanks around names and cells do not count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    csv: str | None = Field(None, description="the table, relative to root or absolute; its delimiter is found out")
    encoding: str = Field("utf-8-sig", description="of the CSV file")
    image_column: str = Field("filename", description="path, file name, or name without suffix of the image")
    label_columns: tuple[str, ...] = Field((), description="columns whose cells are findings that are present")
    split_on: str | None = Field(None, description="what parts several findings in one cell, such as |")
    binary_columns: tuple[str, ...] = Field((), description="one finding each: 1 present, 0 absent, -1 uncertain")
    attribute_columns: tuple[str, ...] = Field((), description="columns kept as label name and value: sex, age …")
    text_columns: Mapping[str, str] = Field({}, description="column -> kind of text: original_caption, report …")
    fact_columns: Mapping[str, str] = Field({}, description=f"column -> column of images: {', '.join(FACTS)}")
    patient_column: str | None = Field(None, description="column of the patient")
    licence_column: str | None = Field(None, description="column of the image's licence")

    @field_validator("fact_columns")
    @classmethod
    def _known(cls, columns: Mapping[str, str]) -> Mapping[str, str]:
        for name in columns.values():
            if name not in FACTS:
                raise ValueError(f"{name!r} is none of {', '.join(FACTS)}{nearest(name, list(FACTS))}")
        return columns

    def used(self) -> Iterator[str]:
        """All columns that have a meaning."""
        yield self.image_column
        yield from (*self.label_columns, *self.binary_columns, *self.attribute_columns)
        yield from (*self.text_columns, *self.fact_columns)
        yield from (name for name in (self.patient_column, self.licence_column) if name)


def read_csv(path: Path, name: str, columns: CsvColumns) -> Iterator[Stated]:
    """One entry a row. Raises Terminal ANNOTATION_UNREADABLE, ConfigError for a column that is not there or twice."""
    try:
        text = path.read_text(encoding=columns.encoding)
    except (OSError, UnicodeError, LookupError) as error:
        raise _unreadable(name, error) from error
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=lambda d: len(next(csv.reader([first], delimiter=d), [])))
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        header = [cell.strip() for cell in next(rows, [])]
        for wanted in columns.used():
            if header.count(wanted) != 1:
                found = "twice" if wanted in header else f"not{nearest(wanted, header)}"
                raise ConfigError(f"{name}: the column {wanted!r} is there {found}; its columns: {', '.join(header)}")
        for row in rows:
            if row:
                yield _row(header, [cell.strip() for cell in row], rows.line_num, name, columns)
    except csv.Error as error:
        raise _unreadable(name, f"line {rows.line_num}: {error}") from error


def _row(header: list[str], cells: list[str], line: int, name: str, columns: CsvColumns) -> Stated:
    row = dict(zip(header, cells, strict=False))
    image = row.get(columns.image_column, "")
    stated = Stated(_beside(name, image), name, (image,)) if image else Stated(f"{name} line {line}", name)
    if len(cells) < len(header) or any(cells[len(header) :]):
        why = f"{name}: a row has {len(cells)} cells, the header {len(header)}; correct the row"
        return replace(stated, error=Terminal("ROW_MALFORMED", why))
    try:
        labels = tuple(_labels(row, name, columns))
    except Terminal as error:
        return replace(stated, error=error)
    licence = row[columns.licence_column] if columns.licence_column else ""
    return replace(
        stated,
        labels=labels,
        texts=tuple(Text(kind, row[column]) for column, kind in columns.text_columns.items() if row[column]),
        facts={fact: row[column] for column, fact in columns.fact_columns.items() if row[column]},
        patient=(row[columns.patient_column] if columns.patient_column else "") or None,
        licence=("-".join(licence.split()), f"csv:{columns.licence_column}") if licence else None,
    )


def _labels(row: Mapping[str, str], name: str, columns: CsvColumns) -> Iterator[Label]:
    for column in columns.label_columns:
        for part in row[column].split(columns.split_on) if columns.split_on else (row[column],):
            if part.strip():
                yield Label(part.strip(), origin=f"csv:{column}")
    for column in columns.binary_columns:
        if row[column]:
            value = VALUES.get(row[column].lower())
            if value is None:
                raise Terminal(
                    "LABEL_VALUE_UNKNOWN",
                    f"{name}: {row[column]!r} in the column {column!r}; known are {', '.join(VALUES)} and nothing",
                )
            yield Label(column, value, f"csv:{column}")
    for column in columns.attribute_columns:
        if row[column]:
            yield Label(column, row[column], f"csv:{column}")


def read_voc(path: Path, name: str) -> Iterator[Stated]:
    """The boxes of one Pascal VOC file, one entry. Its image is the one of the same name, else the one it names.

    Entities are not resolved, nothing else is loaded, and the size of the tree is limited. Raises Terminal
    ANNOTATION_UNREADABLE.
    """
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(path.read_bytes(), parser)
        boxes = tuple(_voc_box(node) for node in root.findall("object"))
        size = [float(root.findtext(f"size/{side}", "0")) for side in ("height", "width")]
    except (OSError, ValueError, etree.XMLSyntaxError) as error:
        raise _unreadable(name, error) from error
    named = (root.findtext("filename") or "").strip()
    names = tuple(dict.fromkeys(n for n in (PurePosixPath(name).stem, named) if n))
    yield Stated(name, name, names, boxes=boxes, facts=_annotated(size))


def _voc_box(node: Any) -> Box:
    label = (node.findtext("name") or "").strip()
    if not label:
        raise ValueError("an object has no name")
    corners = [node.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
    if None in corners:
        raise ValueError(f"the object {label!r} has no whole bndbox")
    x0, y0, x1, y1 = _finite(corners)
    return Box(label, (x0 - 1, y0 - 1, x1, y1))


def read_coco(path: Path, name: str) -> Iterator[Stated]:
    """One entry an image of a COCO file, with its boxes. Raises Terminal ANNOTATION_UNREADABLE.

    An entry whose boxes make no sense carries the error; annotations of images that are not listed come out as one
    entry an image.
    """
    try:
        whole = json.loads(path.read_bytes())
        images = {image["id"]: image for image in whole["images"]}
        categories = {category["id"]: str(category["name"]) for category in whole["categories"]}
        licences = {licence["id"]: str(licence["name"]) for licence in whole.get("licenses", ())}
        notes: dict[Any, list[Mapping[str, Any]]] = {}
        for note in whole["annotations"]:
            notes.setdefault(note["image_id"], []).append(note)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _unreadable(name, error) from error
    for id in dict.fromkeys([*images, *notes]):
        image = images.get(id)
        stated = Stated(f"{name} image {id}", name)
        if image is None:
            why = f"{name}: annotations of image {id}, which is not listed under images; correct the file"
            yield replace(stated, error=Terminal("FILE_MISSING", why))
            continue
        try:
            stated = replace(stated, id=_beside(name, image["file_name"]), names=(image["file_name"],))
            boxes = tuple(_coco_boxes(notes.get(id, ()), categories))
            facts = _annotated([float(image.get("height") or 0), float(image.get("width") or 0)])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            yield replace(stated, error=_unreadable(stated.id, error))
            continue
        licence = licences.get(image.get("license"))
        yield replace(stated, boxes=boxes, facts=facts, licence=(licence, "coco:licenses") if licence else None)


def _coco_boxes(notes: Iterable[Mapping[str, Any]], categories: Mapping[Any, str]) -> Iterator[Box]:
    for note in notes:
        x, y, width, height = _finite(note["bbox"])
        yield Box(categories[note["category_id"]], (x, y, x + width, y + height))


def _beside(file: str, image: str) -> str:
    """The path below the root of an image that a file of annotations names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(file), image.replace("\\", "/")))


def _finite(values: Iterable[Any]) -> list[float]:
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"the box {numbers} is not finite")
    return numbers


def _annotated(size: list[float]) -> dict[str, Any]:
    """Height and width of the image that the boxes were drawn on; files that do not know them state 0."""
    return {"annotated_size": [int(side) for side in size]} if all(side >= 1 for side in size) else {}


def _unreadable(where: str, error: object) -> Terminal:
    what = error
    if isinstance(error, KeyError):
        what = f"it has no {error}"
    elif isinstance(error, OSError):
        what = error.strerror  # its text names a place on this machine
    return Terminal("ANNOTATION_UNREADABLE", f"{where} cannot be read: {what}; correct or exclude it")
