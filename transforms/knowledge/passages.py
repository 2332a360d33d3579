"""A passage: a short text of a corpus, the unit that is embedded, found and cited.

A corpus is a plug-in module of `transforms/corpora` with

    def read(params: Params, base: Path | None = None) -> Iterator[Passage | Refused]

(`base` is the folder that relative addresses start from) and, where the corpus has one, `release(params, base) -> str`.
The invariant: an id stays with its text for as long as the corpus and the chunk sizes do, and what could not become a
passage is yielded as a `Refused`, never skipped.

>>> [p.id for p in chunked(Passage("notes:1", "one two three four five", None, "notes", None), words=3, overlap=1)]
['notes:1#0', 'notes:1#1']
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infra.errors import ConfigError, Dropped, Terminal
from infra.plugins import load
from transforms.decoded import Refused


@dataclass(frozen=True)
class Passage:
    """One passage of a corpus."""

    id: str
    """corpus:ID, with #N for the N-th chunk of a long text"""
    text: str
    """complete in itself: what is embedded, and what a captioner reads"""
    title: str | None
    corpus: str
    licence: str | None
    """SPDX-like code; None: unknown"""


class ChunkParams(BaseModel):
    """How long texts are cut. The default fits the 256 tokens that the default embedding model reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: int = Field(120, ge=1, description="longest chunk, in words")
    overlap: int = Field(20, ge=0, description="words that a chunk repeats of the one before")

    @model_validator(mode="after")
    def _advances(self) -> ChunkParams:
        if self.overlap >= self.words:
            raise ValueError(f"overlap ({self.overlap}) must be smaller than words ({self.words})")
        return self


def chunked(passage: Passage, words: int, overlap: int, lead: str = "") -> Iterator[Passage]:
    """The passage with its white space tidied, or its chunks if it has more than `words` words.

    `lead` is put before the text of every chunk, on a line of its own, and does not count.
    """
    tokens = passage.text.split()
    starts = range(0, max(len(tokens) - overlap, 1), words - overlap)
    for number, start in enumerate(starts):
        text = " ".join(tokens[start : start + words])
        yield replace(
            passage,
            id=f"{passage.id}#{number}" if len(starts) > 1 else passage.id,
            text=f"{lead}\n{text}" if lead else text,
        )


@dataclass(frozen=True)
class Corpus:
    """What one corpus gave and lost."""

    use: str
    """name of the plug-in"""
    release: str | None
    passages: Sequence[Passage]
    rejects: Sequence[Refused]


def read_corpora(uses: Sequence[tuple[str, Mapping[str, Any] | BaseModel]], base: Path | None) -> list[Corpus]:
    """Read corpora, given as (plug-in, its parameters). Of two passages with one id the first stands.

    Raises ConfigError for parameters or an address that cannot work.
    """
    taken: dict[str, Passage] = {}
    return [_read_corpus(use, given, base, taken) for use, given in uses]


def _read_corpus(
    use: str, given: Mapping[str, Any] | BaseModel, base: Path | None, taken: dict[str, Passage]
) -> Corpus:
    module = load("corpus", use)
    try:
        params = module.Params.model_validate(given)
    except ValidationError as error:
        raise ConfigError(f"corpus {use}: {error}") from error
    passages, rejects = [], []
    for read in module.read(params, base):
        if isinstance(read, Refused):
            rejects.append(read)
        elif read.id in taken:
            rejects.append(_repeated(read, taken[read.id]))
        else:
            taken[read.id] = read
            passages.append(read)
    release = module.release(params, base) if hasattr(module, "release") else None
    return Corpus(use, release, passages, rejects)


def _repeated(passage: Passage, first: Passage) -> Refused:
    if passage == first:
        return Refused(passage.id, Dropped("DUPLICATE_PASSAGE", "the same passage came before; nothing to do"))
    return Refused(passage.id, Terminal("DUPLICATE_ID", "a passage with another text has this id; rename one"))


def counts(corpus: Corpus) -> dict[str, Any]:
    """A corpus in numbers, for reports: passages by name of corpus, rejects by code."""
    return {
        "use": corpus.use,
        "release": corpus.release,
        "passages": dict(sorted(Counter(p.corpus for p in corpus.passages).items())),
        "rejects": dict(sorted(Counter(r.error.code for r in corpus.rejects).items())),
    }
