"""MedQuAD: questions and answers from websites of the US National Institutes of Health, as passages.

One question with its answer is one passage, or several when the answer is long; each starts with the question. Three
of its folders come without answers (their publisher withdrew them): those pairs are reported, not skipped.
CC BY 4.0; Ben Abacha and Demner-Fushman, BMC Bioinformatics 20:511, 2019.

    corpora: [{use: medquad, path: MedQuAD-master}]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from infra.errors import ConfigError, Dropped, Terminal
from infra.storage import resolve, walk
from transforms.decoded import Refused
from transforms.knowledge.passages import ChunkParams, Passage, chunked

NAME = "medquad"
REQUIRES: Mapping[str, str] = {}
LICENCE = "CC-BY-4.0"


class Params(ChunkParams):
    """Where the collection lies."""

    path: str = Field(description="address of the folder that holds 1_CancerGov_QA, 3_GHR_QA …, or of one of them")


def read(params: Params, base: Path | None = None) -> Iterator[Passage | Refused]:
    """Passages in the order of the files, e.g. medquad:NINDS_0000559-1: source, file and number of the pair.

    The question ids in the files are not used: over 1,300 of them stand for several questions.
    """
    root = resolve(params.path, base)
    files = [path for path in walk(root) if path.suffix.lower() == ".xml"]
    if not files:
        raise ConfigError(f"{params.path}: no XML file below it; point `path` at the unpacked MedQuAD folder")
    for path in files:
        yield from _document(path, path.relative_to(root).as_posix() if path != root else path.name, params)


def _document(path: Path, item: str, params: Params) -> Iterator[Passage | Refused]:
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        root = etree.fromstring(path.read_bytes(), parser)
    except etree.XMLSyntaxError as error:
        yield Refused(item, Terminal("XML_BROKEN", f"{error}; fetch the file again"))
        return
    elements = list(root.iter(etree.Element))
    source = root.get("source") or root.get("corpus") or "unknown"  # a few documents follow an older form
    focus = next((_words(e) for e in elements if e.tag.lower() in ("focus", "doctitle-focus")), None)
    pairs = [e for e in elements if e.tag.lower() in ("qapair", "pair")]
    if not pairs:
        yield Refused(item, Dropped("NO_QA_PAIR", "the document holds no question"))
    for pair in pairs:
        number = pair.get("pid")
        parts = {child.tag.lower(): _words(child) for child in pair.iterchildren(etree.Element)}
        question, answer = parts.get("question"), parts.get("answer")
        if not number or not question:
            yield Refused(f"{item}#{number}", Terminal("QA_PAIR_BROKEN", "a pair without pid or question"))
        elif not answer:
            message = f"the collection leaves this answer out; it may be at {root.get('url')}"
            yield Refused(f"{item}#{number}", Dropped("EMPTY_ANSWER", message))
        else:
            whole = Passage(f"{NAME}:{source}_{path.stem}-{number}", answer, focus, NAME, LICENCE)
            yield from chunked(whole, params.words, params.overlap, lead=question)


def _words(element: Any) -> str:
    return " ".join("".join(element.itertext()).split())
