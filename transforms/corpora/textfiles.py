"""Your own texts as passages: *.txt by paragraph, *.jsonl by line.

A paragraph ends at an empty line. A line of JSONL is {"text": …} with "id", "title" and "licence" where you have them;
further fields are ignored. A text without an id is named by its hash, so editing one paragraph renames no other.

    corpora: [{use: textfiles, path: guidelines, corpus: guidelines, licence: CC-BY-4.0}]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from infra.errors import ConfigError, Dropped, Terminal
from infra.keys import key
from infra.storage import resolve, walk
from transforms.decoded import Refused
from transforms.knowledge.passages import ChunkParams, Passage, chunked

NAME = "textfiles"
REQUIRES: Mapping[str, str] = {}


class Params(ChunkParams):
    """Where the texts lie and what they are."""

    path: str = Field(description="address of a folder, or of one .txt or .jsonl file")
    corpus: str = Field(NAME, pattern=r"^[\w.-]+$", description="name of the corpus, first part of each passage id")
    licence: str | None = Field(None, description="licence where a text states none of its own; null: unknown")


class Line(BaseModel):
    """One line of JSONL."""

    text: str
    id: str | int | None = None
    title: str | None = None
    licence: str | None = None


def read(params: Params, base: Path | None = None) -> Iterator[Passage | Refused]:
    """Passages in the order of the files and of the texts in them."""
    root = resolve(params.path, base)
    files = [path for path in walk(root) if path.suffix.lower() in (".txt", ".jsonl")]
    if not files:
        raise ConfigError(f"{params.path}: no .txt or .jsonl file there; check the path in the recipe")
    for path in files:
        item = path.relative_to(root).as_posix() if path != root else path.name
        lines = _jsonl(path, item) if path.suffix.lower() == ".jsonl" else _paragraphs(path, item)
        for line in lines:
            yield from [line] if isinstance(line, Refused) else _passages(line, params)


def _passages(line: Line, params: Params) -> Iterator[Passage]:
    text = " ".join(line.text.split())
    id = key("text", text) if line.id is None else line.id
    whole = Passage(f"{params.corpus}:{id}", text, line.title, params.corpus, line.licence or params.licence)
    return chunked(whole, params.words, params.overlap, lead=line.title or "")


def _paragraphs(path: Path, item: str) -> Iterator[Line | Refused]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Refused(item, Terminal("NOT_UTF8", f"{error}; save the file as UTF-8"))
        return
    paragraphs = [p for p in re.split(r"\r?\n[^\S\n]*\r?\n", text) if p.strip()]
    if not paragraphs:
        yield Refused(item, Dropped("EMPTY_TEXT", "the file holds no text"))
    yield from (Line(text=paragraph) for paragraph in paragraphs)


def _jsonl(path: Path, item: str) -> Iterator[Line | Refused]:
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            where = f"{item}:{number}"
            try:
                line = Line.model_validate_json(raw.removeprefix(b"\xef\xbb\xbf"))
            except ValidationError as error:
                fault = error.errors(include_url=False)[0]
                field = ".".join(map(str, fault["loc"])) or "the line"
                yield Refused(where, Terminal("JSONL_LINE", f"{field}: {fault['msg']}"))
                continue
            yield line if line.text.strip() else Refused(where, Dropped("EMPTY_TEXT", "the line's text is empty"))
