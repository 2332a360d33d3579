"""Sets of questions about images: SLAKE, VQA-RAD, PathVQA, or any table with an image, a question and an answer.

The invariant: an item is an image with all its questions, each tied to its answer; an image that is named and not
there is one item that fails, with the number of its questions. Rows count as part of their image: in = kept + dropped +
failed holds for images, the texts of a kept image are all there, in the order of the files.

    layout: slake     imgs/xmlabN/source.jpg, train.json, validate.json, test.json; beside each picture perhaps
                      detection.json (boxes, x y width height) and mask.png, whose values `classes` names
    layout: vqa-rad   "VQA_RAD Dataset Public.json" and a folder of pictures; phrase_type says which rows are test
    layout: table     csv, tsv, jsonl, json or parquet; the columns are parameters

A split is a label of the image, one for each split in which it has a question; what a row says of its question
(answer_type, content_type …) is a label too if `question_labels` names it, with the row's number in its origin.
Pickled releases are not read: unpickling runs code. Images inside Parquet are what the connector `parquet` is for.

>>> params = Params(root="Slake1.0", layout="slake", fact_map={"MRI": "MR", "X-Ray": "DX"})
>>> item = next(read(next(list_partitions("slake", params, index)), params))
>>> item.texts[1].text, item.texts[1].about.text
('MRI', 'What modality is used to take this image?')
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field, model_validator

from catalog.items import Box, Item, Label, Partition, Text
from connectors.images import attempt
from connectors.images.refs import Own, Ref, divided, folder_splits, image_refs, read_refs
from connectors.images.rules import Rules
from connectors.images.stated import Stated, beside, finite, unreadable
from connectors.images.table import FACTS, IMAGE_COLUMNS, Row, read_rows, words
from connectors.images.tree import Tree
from infra.errors import ConfigError, Terminal
from infra.fileindex import FileIndex
from infra.storage import resolve

NAME = "vqa"
VERSION = "1"
REQUIRES: dict[str, str] = {}


@dataclass(frozen=True)
class _Layout:
    """Where things stand in a release."""

    tables: str
    image: str | None
    language: str | None = None
    facts: Mapping[str, str] | None = None
    split: str | None = None
    rows: str | None = None
    """column that numbers the rows"""


LAYOUTS: Mapping[str, _Layout] = {
    "slake": _Layout(
        "*.json", "img_name", "q_lang", {"modality": "modality", "location": "anatomy"}, rows="qid"
    ),
    "vqa-rad": _Layout(
        "*.json", "image_name", facts={"image_organ": "anatomy"}, split="phrase_type", rows="qid"
    ),
    "table": _Layout("*", None),
}
SPLITS = ("train", "validate", "validation", "valid", "val", "dev", "test")
"""Names of tables that say the split of their rows."""


class Params(Rules):
    """Where images and questions are, and which columns hold what."""

    layout: Literal["slake", "vqa-rad", "table"] = Field(description="whose release; see above")
    tables: str | None = Field(None, description="glob of the tables below root (* crosses folders)")
    image_column: str | None = Field(None, description="path or name of the image")
    question_column: str = Field("question", description="the question")
    answer_column: str = Field("answer", description="its answer")
    language_column: str | None = Field(None, description="language of question and answer, ISO 639-1")
    language: str = Field("en", description="of all rows of which no column says otherwise")
    fact_columns: Mapping[str, str] = Field({}, description=f"column -> column of images: {', '.join(FACTS)}")
    split_column: str | None = Field(None, description="column of the split; else the table's name says it")
    row_column: str | None = Field(None, description="column that numbers the questions")
    question_labels: tuple[str, ...] = Field((), description="columns kept as labels that name their question's row")
    patient_column: str | None = Field(None, description="column of the patient, study or article")

    @model_validator(mode="after")
    def _complete(self) -> Params:
        if self.layout == "table" and not self.tables:
            raise ValueError("the layout table needs tables: a path or glob below root")
        return self


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of at most `capacity` images. Raises ConfigError where there is no table, or it lacks a column."""
    params = _usual(params)
    tree = Tree(resolve(params.root), params, since)
    entries = list(_grouped(_rows(tree, params)))
    if not entries:
        raise ConfigError(f"{params.root}: no questions in {params.tables}; check root, layout and tables")
    if params.layout == "slake":
        tree.claim(*(name for name in tree.files if PurePosixPath(name).name == "question.json"))  # the same rows again
        entries += [found for name in tree.files if PurePosixPath(name).name == "detection.json"
                    for found in attempt(tree, tree.root / name, name, _detections, of_one_image=False)]
    asked = {entry.id: sum(text.kind == "question" for text in entry.texts) for entry in entries}
    own = Own(labels=lambda image: folder_splits(image, params))
    refs = (_counted(ref, asked) for ref in image_refs(tree, entries, params, own))
    yield from divided(source, refs, params.capacity)


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition with the bytes of their images and masks, or the error met: now or while listing."""
    yield from read_refs(partition, resolve(params.root))


def _counted(ref: Ref, asked: Mapping[str, int]) -> Ref:
    """The ref of an image that is not there says how many questions are lost with it."""
    if ref["error"] and (count := asked.get(ref["id"])):
        kind, code, message = ref["error"]
        return {**ref, "error": [kind, code, f"{message}; {count} questions are lost with it"]}
    return ref


def _usual(params: Params) -> Params:
    """The parameters with what the layout says where they are silent."""
    layout = LAYOUTS[params.layout]
    said: dict[str, Any] = {
        "tables": params.tables or layout.tables, "image_column": params.image_column or layout.image,
        "language_column": params.language_column or layout.language,
        "fact_columns": params.fact_columns or layout.facts or {},
        "split_column": params.split_column or layout.split, "row_column": params.row_column or layout.rows,
    }
    if params.layout == "slake":
        said["class_mask"] = params.class_mask or ("{folder}/mask.png" if params.classes else None)
        said["exclude"] = (*params.exclude, *(() if params.classes else ("*/mask.png",)))
    return params.model_copy(update=said)


def _rows(tree: Tree, params: Params) -> Iterator[Stated]:
    """One entry a question."""
    for name in list(tree.files):
        path = PurePosixPath(name)
        asked = fnmatchcase(name, str(params.tables)) and name not in tree.images
        if asked and path.name not in ("question.json", "detection.json"):
            yield from attempt(tree, tree.root / name, name, lambda path, name: _table(path, name, params))


def _table(path: Any, name: str, params: Params) -> Iterator[Stated]:
    header, rows = read_rows(path, name)
    image = params.image_column or next((column for column in IMAGE_COLUMNS if column in header), None)
    for wanted in (image or "image_column", params.question_column, params.answer_column):
        if wanted not in header:
            raise ConfigError(f"{name}: the column {wanted!r} is not there; its columns: {', '.join(header)}")
    stem = PurePosixPath(name).stem.lower()
    split = next((word for word in SPLITS if stem.startswith(word)), None)
    for place, row in rows:
        yield _question(row, f"{name} {place}", name, params.model_copy(update={"image_column": image}), split)


def _question(row: Row, place: str, name: str, params: Params, split: str | None) -> Stated:
    def cell(column: str | None) -> str | None:
        return next(iter(words(row.get(column))), None) if column else None

    image = cell(params.image_column)
    stated = Stated(beside(name, image), name, (image,)) if image else Stated(place, name)
    if isinstance(row.get(""), Terminal):
        return replace(stated, error=row[""])
    asked, answers = cell(params.question_column), words(row.get(params.answer_column))
    if not asked:
        return replace(stated, error=Terminal("QUESTION_MISSING", f"{place}: a row without a question; correct it"))
    language = cell(params.language_column) or params.language
    question = Text("question", asked, language)
    number = cell(params.row_column) or place.removeprefix(f"{name} ")
    labels = [Label(column, word, f"question:{number}")
              for column in params.question_labels for word in words(row.get(column))]
    if params.layout == "vqa-rad" and (kind := cell(params.split_column)):
        labels.append(Label("split", "test" if kind.startswith("test") else "train", f"vqa:{params.split_column}"))
    elif where := cell(params.split_column) if params.split_column else split:
        labels.append(Label("split", where, f"vqa:{params.split_column or 'table'}"))
    return replace(
        stated, labels=tuple(labels), patient=cell(params.patient_column),
        texts=(question, *(Text("answer", answer, language, question) for answer in answers)),
        facts={fact: said for column, fact in params.fact_columns.items() if (said := cell(column))},
    )


def _grouped(rows: Iterator[Stated]) -> Iterator[Stated]:
    """One entry an image, with the texts of all its rows in order; a row that is wrong makes its image fail."""
    images: dict[str, list[Stated]] = {}
    for row in rows:
        images.setdefault(row.names[0] if row.names else row.id, []).append(row)
    for name, about in images.items():
        first = about[0]
        error = next((row.error for row in about if row.error), None)
        facts: dict[str, str] = {}
        for row in about:
            for fact, value in row.facts.items():
                if facts.setdefault(fact, value) != value:
                    error = Terminal("ROWS_DISAGREE", f"the questions of {name} differ in {fact}; make them agree")
        patients = {row.patient for row in about if row.patient}
        if len(patients) > 1:
            error = Terminal("ROWS_DISAGREE", f"the questions of {name} differ in the patient; make them agree")
        yield replace(
            first, facts=facts, patient=next(iter(patients), None), error=error,
            names=(f"{name}", ) if first.names else (),
            labels=tuple(dict.fromkeys(label for row in about for label in row.labels)),
            texts=tuple(dict.fromkeys(text for row in about for text in row.texts)),
        )


def _detections(path: Any, name: str) -> Iterator[Stated]:
    """SLAKE's boxes of one picture: [{"Liver": [x, y, width, height]}, …]."""
    try:
        found = [(label, finite(box)) for one in json.loads(path.read_bytes()) for label, box in one.items()]
        boxes = tuple(Box(label, (x, y, x + width, y + height)) for label, (x, y, width, height) in found)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(name, error) from error
    yield Stated(name, name, (beside(name, "source.jpg"),), boxes=boxes)
