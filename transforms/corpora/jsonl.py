"""JSONL files of any form as passages: the fields that hold the text, its id, title and licence are named.

MedRAG's textbooks and StatPearls, exports of PubMed, and whatever else comes one JSON object a line. A field inside
another is written with a dot (meta.licence). The invariant: a line that holds no text is a reject that says why.

    corpora: [{use: jsonl, path: statpearls, text: [content], id: id, title: title, corpus: statpearls}]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from infra.errors import ConfigError, Dropped, ItemError, Terminal
from infra.keys import key
from infra.storage import resolve, walk
from transforms.decoded import Refused
from transforms.knowledge.passages import ChunkParams, Passage, chunked

NAME = "jsonl"
REQUIRES: Mapping[str, str] = {}
SUFFIXES = (".jsonl", ".ndjson")


class Params(ChunkParams):
    """Where the files lie and what their fields are."""

    path: str = Field(description="address of a folder, or of one .jsonl or .ndjson file")
    corpus: str = Field(NAME, pattern=r"^[\w.-]+$", description="name of the corpus, first part of each passage id")
    text: tuple[str, ...] = Field(
        ("text",), min_length=1, description="fields that hold the text, joined in this order; one must be there"
    )
    id: str | None = Field(None, description="field that holds the id; null: a text is named by its hash")
    title: str | None = Field(None, description="field that holds the title; it leads every chunk; null: no title")
    licence_field: str | None = Field(None, description="field that holds a text's own licence")
    licence: str | None = Field(None, description="licence where a text states none of its own; null: unknown")


def read(params: Params, base: Path | None = None) -> Iterator[Passage | Refused]:
    """Passages in the order of the files and of their lines."""
    root = resolve(params.path, base)
    files = [path for path in walk(root) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise ConfigError(f"{params.path}: no {' or '.join(SUFFIXES)} file there; check the path in the recipe")
    for path in files:
        item = path.relative_to(root).as_posix() if path != root else path.name
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    try:
                        yield from chunked(*_passage(raw, params))
                    except ItemError as error:
                        yield Refused(f"{item}:{number}", error)


def _passage(raw: bytes, params: Params) -> tuple[Passage, int, int, str]:
    try:
        line = json.loads(raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise Terminal("JSONL_LINE", f"{error}; the line is no JSON in UTF-8, fetch the file again") from error
    if not isinstance(line, dict):
        raise Terminal("JSONL_LINE", "the line is no JSON object")
    texts = [text for field in params.text if (text := _field(line, field))]
    if not texts:
        raise Dropped("EMPTY_TEXT", f"none of the fields {', '.join(params.text)} holds a text")
    text = " ".join(texts)
    id = _field(line, params.id)
    if params.id and id is None:
        raise Terminal("NO_ID", f"the field {params.id} holds no id; leave `id` out to name texts by their hash")
    title = _field(line, params.title)
    licence = _field(line, params.licence_field) or params.licence
    passage = Passage(f"{params.corpus}:{id or key('text', text)}", text, title, params.corpus, licence)
    return passage, params.words, params.overlap, title or ""


def _field(line: Mapping[str, Any], name: str | None) -> str | None:
    """A string or a number as tidy text; None where there is neither, or nothing in it."""
    value: Any = line if name else None
    for part in name.split(".") if name else ():
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return " ".join(str(value).split()) or None
