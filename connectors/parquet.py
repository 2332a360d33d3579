"""Parquet files with images in them, as Hugging Face datasets has them: streamed, one item an image.

The invariant: a row becomes one item (one an image, where a row has several), id FILE#ROW, or says why not; a row group
that cannot be read is one item that fails. A file is read in batches of some rows, never as a whole, and nothing of a
dataset is run: the names of classes are read from the file's own metadata.

An image is a struct of bytes and path (`datasets.Image`), bytes, or a path below root. Columns are used as
connectors/images/table.py says; those of type ClassLabel are labels unless `label_columns` says otherwise.

>>> params = Params(root="slake-parquet", question_column="question", answer_column="answer")
>>> [item.id for part in list_partitions("slake", params, index) for item in read(part, params)]
['data/train-00000-of-00001.parquet#0', 'data/train-00000-of-00001.parquet#1', …]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field

from catalog.items import Item, Label, Partition, Text
from connectors.hfcolumns import Columns, columns_of
from connectors.images.refs import item_of, said_ref
from connectors.images.rules import Rules
from connectors.images.table import TableColumns, flat, row_entry, words
from infra.errors import ConfigError, ItemError, Terminal, Transient
from infra.fileindex import FileIndex
from infra.keys import key, sha256
from infra.storage import resolve, walk

NAME = "parquet"
VERSION = "1"
REQUIRES = {"pyarrow": "pyarrow"}

BATCH = 32
"""Rows in memory at a time: an image of a slide or a mammogram has tens of megabytes."""
SPLITS = re.compile(r"(?:^|[/_=.-])(train|validation|valid|val|dev|test)(?=$|[/_.-])")
ASKING = ("human", "user")
ANSWERING = ("gpt", "assistant", "model")


class Params(TableColumns, Rules):
    """Where the files are, and which columns hold what."""

    include: tuple[str, ...] = Field(("*.parquet",), description="globs of paths below root (* crosses folders)")
    image_column: str | None = Field(None, description="column of the images; default: the one of type Image")
    question_column: str | None = Field(None, description="column of a question about the image")
    answer_column: str | None = Field(None, description="column of its answer")
    conversation_column: str | None = Field(
        None, description="column with a list of turns: {from, value} or {role, content}; kept as questions and answers"
    )
    language: str = Field("en", description="of all texts, ISO 639-1")


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of whole row groups, together at most `capacity` images (a larger group is cut).

    Files that `since` knows are not read again. Raises ConfigError where there is no file, or it lacks a column.
    """
    root = resolve(params.root)
    names = [path.relative_to(root).as_posix() for path in walk(root)] if root.is_dir() else []
    names = [name for name in names if _wanted(name, params)]
    if not names:
        raise ConfigError(f"{params.root}: no file fits {', '.join(params.include)}; check root and include")
    settings = params.model_dump(mode="json", exclude={"root", "include", "exclude", "capacity"})
    for name in names:
        # one partition never spans two files, so that a new file changes no other partition
        for refs in _together(list(_refs(root, name, params, since)), params.capacity):
            contents = tuple((ref["id"], key(ref, settings)) for ref in refs)
            yield Partition(source, _partition_name(name, refs[0]), tuple(refs), contents)


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition. Errors: Terminal NO_IMAGE, FILE_MISSING, PARQUET_UNREADABLE, and those of rows;
    Transient SOURCE_CHANGED."""
    root = resolve(params.root)
    for (name, group), run in groupby(partition.refs, key=lambda ref: (ref["file"], ref["group"])):
        refs = list(run)
        whole = [ref for ref in refs if not ref["error"]]
        made = _items(root, name, group, whole, params) if whole else iter(())
        for ref in refs:  # in the order of the partition, with never more than one image in memory
            yield Item(ref["id"], "image", ref["id"], {}, error=Terminal(*ref["error"])) if ref["error"] else next(made)


def _items(root: Path, name: str, group: int, refs: list[Mapping[str, Any]], params: Params) -> Iterator[Item]:
    """One item for each ref, in their order, which is that of the rows."""
    left = iter(refs)
    ref = next(left, None)
    try:
        columns, rows = _rows(root / name, name, group, params)
        for n, row in rows:
            while ref is not None and ref["row"] == n:
                try:
                    if _row_key(row) != ref["sha"]:
                        raise Transient("SOURCE_CHANGED", f"{name} changed after it was listed; run again")
                    yield _item(root, row, ref, columns, params)
                except ItemError as error:
                    yield Item(ref["id"], "image", ref["id"], {}, error=error)
                ref = next(left, None)
            if ref is None:
                return
        missing: ItemError = Transient("SOURCE_CHANGED", f"{name} has lost rows after it was listed; run again")
    except Terminal as error:
        missing = error
    for lost in [ref, *left] if ref is not None else []:
        yield Item(lost["id"], "image", lost["id"], {}, error=missing)


def _wanted(name: str, params: Params) -> bool:
    fits = any(fnmatchcase(name, pattern) for pattern in params.include)
    return fits and not any(fnmatchcase(name, pattern) for pattern in params.exclude)


def _partition_name(file: str, first: Mapping[str, Any]) -> str:
    """Readable, safe as a part of a path, and never that of another file."""
    safe = re.sub(r"[^A-Za-z0-9-]+", "_", file.removesuffix(".parquet"))[-60:]
    return f"{safe}-{sha256(file.encode())[:6]}-{first['group']}-{first['row']}"


def _together(refs: list[dict[str, Any]], capacity: int) -> Iterator[list[dict[str, Any]]]:
    """Row groups joined while they fit, and cut where one alone does not."""
    gathered: list[dict[str, Any]] = []
    for _, run in groupby(refs, key=lambda ref: ref["group"]):
        group = list(run)
        if gathered and len(gathered) + len(group) > capacity:
            yield gathered
            gathered = []
        gathered += group
        while len(gathered) > capacity:
            yield gathered[:capacity]
            gathered = gathered[capacity:]
    if gathered:
        yield gathered


def _refs(root: Path, name: str, params: Params, since: FileIndex) -> Iterator[dict[str, Any]]:
    """One JSON object an item."""
    try:
        image = _columns(root / name, name, params).image
        groups = since.ask(root / name, f"parquet-1:{image}", lambda path: _listing(path, image))
    except (Terminal, OSError) as error:
        why = error.message if isinstance(error, Terminal) else f"{name}: {error.strerror}; make it readable"
        yield {"id": name, "file": name, "group": 0, "row": 0, "error": ["PARQUET_UNREADABLE", why]}
        return
    first = 0
    for group, (rows, damage, lost) in enumerate(groups):
        for n, (digest, images, paths) in enumerate(rows):
            ref = {"file": name, "group": group, "row": n, "sha": digest, "error": None}
            id = f"{name}#{first + n}"
            if images == 0:
                ref["error"] = ["NO_IMAGE", f"{id}: no image in the column {image!r}; a sample is an image"]
            for at in range(max(images, 1)):
                outside = [paths[at], _outside(root, paths[at], since)] if images and paths[at] else None
                yield {**ref, "id": id if images < 2 else f"{id}.{at}", "at": at, "outside": outside}
        if damage:
            why = f"{name}: {lost} rows of row group {group} cannot be read: {damage}; fetch the file again"
            yield {
                "id": f"{name}#group{group}", "file": name, "group": group, "row": len(rows),
                "error": ["PARQUET_UNREADABLE", why],
            }
        first += len(rows) + lost


def _outside(root: Path, path: str, since: FileIndex) -> str | None:
    """SHA-256 of an image beside the file; None where it is not there, or not below root."""
    place = root / path
    if not place.resolve().is_relative_to(root.resolve()) or not place.is_file():
        return None
    return since.sha256(place)


def _listing(path: Path, image: str) -> list[Any]:
    """Of every row group its rows, (hash, number of images, path of each that has no bytes), the damage, and how many
    rows were lost to it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: list[Any] = []
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            rows: list[Any] = []
            try:
                for batch in file.iter_batches(BATCH, row_groups=[group]):
                    for row in batch.to_pylist():
                        images = _images(row[image])
                        paths = [None if data is not None else path for data, path in images]
                        rows.append([_row_key(row), len(images), paths])
                found.append([rows, "", 0])
            except (pa.ArrowException, OSError) as error:
                found.append([rows, str(error)[:200], file.metadata.row_group(group).num_rows - len(rows)])
    return found


def _columns(path: Path, name: str, params: Params) -> Columns:
    asked = (params.question_column, params.answer_column, params.conversation_column)
    named = (*filter(None, asked), *params.label_columns, *params.text_columns)
    return columns_of(path, name, params.image_column, named)


def _rows(path: Path, name: str, group: int, params: Params) -> tuple[Columns, Iterator[tuple[int, dict[str, Any]]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _columns(path, name, params)

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        n = 0
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH, row_groups=[group]):
                    for row in batch.to_pylist():
                        yield n, row
                        n += 1
        except (pa.ArrowException, OSError) as error:
            raise Terminal("PARQUET_UNREADABLE", f"{name}: row group {group} is damaged; fetch it again") from error

    return columns, rows()


def _row_key(row: Mapping[str, Any]) -> str:
    """Hash of all that a row holds."""
    return sha256(json.dumps(row, sort_keys=True, default=_plain).encode())


def _plain(value: Any) -> str:
    return sha256(value) if isinstance(value, bytes) else repr(value)


def _images(cell: Any) -> list[tuple[bytes | None, str | None]]:
    """(bytes, path) of the images in a cell."""
    if isinstance(cell, list):
        return [image for one in cell for image in _images(one)]
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return [(cell, None)]
    return [(None, str(cell))] if cell else []


def _item(root: Path, row: Mapping[str, Any], ref: Mapping[str, Any], columns: Columns, params: Params) -> Item:
    data, digest = _image(root, row, ref, columns)
    said = {column: value for column, value in row.items() if column != columns.image}
    # the row itself has no name for its image: it stands in the row
    named = flat(said) | {"": None, "#": ref["id"]}
    for column, names in columns.classes.items():
        if column in named:
            named[column] = _named(named[column], names, f"{ref['id']}: {column}")
    classes = tuple(column for column in columns.classes if "." not in column)
    asked = params.model_copy(update={"image_column": "#", "label_columns": params.label_columns or classes})
    stated = row_entry(named, ref["id"], ref["file"], asked)
    if stated.error:
        raise stated.error
    given = (replace(text, language=params.language) for text in stated.texts)
    turns = row.get(params.conversation_column or "")
    stated = replace(stated, texts=(*given, *_asked(named, params), *_turns(turns, params.language)))
    several = ref["id"].rpartition(".")[0] if ref["at"] or "." in ref["id"].rpartition("#")[2] else None
    about = said_ref([stated], params, ref["file"], labels=_split(ref["file"]))
    return item_of({**about, "id": ref["id"], "patient": about["patient"] or several}, {"main": data}, {"main": digest})


def _image(root: Path, row: Mapping[str, Any], ref: Mapping[str, Any], columns: Columns) -> tuple[bytes, str]:
    data, path = _images(row[columns.image])[ref["at"]]
    if data is not None:
        return data, sha256(data)
    _, expected = ref["outside"]
    if expected is None:
        raise Terminal("FILE_MISSING", f"{ref['id']}: {path} is not below root; add the file")
    try:
        data = (root / str(path)).read_bytes()
    except OSError as error:
        raise Transient("FILE_UNREADABLE", f"{path}: {error.strerror}; make it readable and run again") from error
    if sha256(data) != expected:
        raise Transient("SOURCE_CHANGED", f"{path} changed after it was listed; run again")
    return data, expected


def _named(value: Any, names: tuple[str, ...], place: str) -> Any:
    """Class numbers as names; -1 is how `datasets` says that there is no label. Raises Terminal LABEL_VALUE_UNKNOWN."""
    if isinstance(value, list):
        return [_named(one, names, place) for one in value]
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise Terminal("LABEL_VALUE_UNKNOWN", f"{place} is {value!r}, of {len(names)} classes; correct the file")
    return names[value]


def _split(file: str) -> Iterable[Label]:
    found = SPLITS.search(str(PurePosixPath(file).with_suffix("")))
    return (Label("split", found[1], "parquet:file"),) if found else ()


def _asked(row: Mapping[str, Any], params: Params) -> Iterator[Text]:
    """The questions of a row, each with its answer: lists go together, else all answers belong to the one question."""
    questions, answers = words(row.get(params.question_column or "")), words(row.get(params.answer_column or ""))
    if len(questions) > 1 and len(questions) != len(answers):
        raise Terminal("ROW_MALFORMED", f"{len(questions)} questions and {len(answers)} answers; correct the row")
    for n, asked in enumerate(questions):
        question = Text("question", asked, params.language)
        yield question
        mine = answers if len(questions) == 1 else answers[n : n + 1]
        yield from (Text("answer", answer, params.language, question) for answer in mine)


def _turns(turns: Any, language: str) -> Iterator[Text]:
    question = None
    for turn in turns or ():
        who, said = turn.get("from") or turn.get("role"), str(turn.get("value") or turn.get("content") or "")
        said = said.replace("<image>", "").strip()  # where the picture stands, which is no word
        if who in ASKING:
            question = Text("question", said, language)
            yield question
        elif who in ANSWERING and question is not None:
            yield Text("answer", said, language, question)
