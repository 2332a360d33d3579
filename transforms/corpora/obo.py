"""Any ontology in an OBO file (Uberon, Cell Ontology, DOID, MONDO …): its definitions, as passages.

One term is one passage: its name, its definition word for word, and its exact synonyms. A term with neither is reported
and left out, since its name alone explains nothing; obsolete terms are not part of the vocabulary. The licence is the
recipe's word for it, since few files state one in a form that could be read.

    corpora: [{use: obo, path: cl.obo, corpus: cl, licence: CC-BY-4.0, under: ["CL:0000738"]}]      # leukocytes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import ConfigError, Dropped, Terminal
from infra.storage import resolve
from transforms.decoded import Refused
from transforms.knowledge.passages import Passage
from transforms.terms import obo
from transforms.terms.obo import Stanza, obsolete, quoted, stanzas, synonyms

NAME = "obo"
REQUIRES: Mapping[str, str] = {}


class Params(BaseModel):
    """Which file, and which of its terms."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="address of the OBO file")
    corpus: str = Field(pattern=r"^[\w.-]+$", description="name of the corpus, first part of each passage id")
    licence: str | None = Field(None, description="licence of the ontology, an SPDX-like code; null: unknown")
    under: tuple[str, ...] | None = Field(
        None, min_length=1, description="terms whose branches (is_a) are read, themselves included; null: all terms"
    )


def read(params: Params, base: Path | None = None) -> Iterator[Passage | Refused]:
    """Passages in the order of the file, e.g. cl:CL:0000540."""
    yield from definitions(resolve(params.path, base), params.under, params.corpus, params.licence)


def release(params: Params, base: Path | None = None) -> str:
    """The release that the file states, such as releases/2025-01-08, or "unknown"."""
    return obo.release(resolve(params.path, base))


def definitions(
    path: Path, under: Sequence[str] | None, corpus: str, licence: str | None
) -> Iterator[Passage | Refused]:
    """The terms of an OBO file as passages. Raises ConfigError for a file that is none, or a term that is not there."""
    terms: dict[str, Stanza] = {}
    try:
        for number, stanza in enumerate(stanzas(path)):
            if "id" in stanza and "name" in stanza:
                terms[stanza["id"][0]] = stanza
            else:
                message = "a [Term] without id or name; fetch the file again"
                yield Refused(f"term {number}", Terminal("OBO_TERM", message))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}: {error}; an OBO file is UTF-8, fetch it again") from error
    wanted = terms.keys() if under is None else _branches(under, terms)
    for id, stanza in terms.items():
        if id in wanted and not obsolete(stanza):
            name, more = stanza["name"][0], _sentences(stanza)
            if more:
                yield Passage(f"{corpus}:{id}", " ".join([f"{name}.", *more]), name, corpus, licence)
            else:
                yield Refused(id, Dropped("NAME_ONLY", f"{name}: the ontology neither defines it nor has synonyms"))


def _branches(roots: Sequence[str], terms: Mapping[str, Stanza]) -> set[str]:
    """The roots and all their descendants."""
    if unknown := [root for root in roots if root not in terms]:
        ids = ", ".join(list(terms)[:2])
        raise ConfigError(f"under: the ontology has no term {', '.join(unknown)}; its ids look like {ids}")
    children: dict[str, list[str]] = {}
    for id, stanza in terms.items():
        for parent in stanza.get("is_a", []):
            children.setdefault(parent.split()[0], []).append(id)
    found: set[str] = set()
    ahead = list(roots)
    while ahead:
        if (id := ahead.pop()) not in found:
            found.add(id)
            ahead.extend(children.get(id, []))
    return found


def _sentences(stanza: Stanza) -> list[str]:
    """Its definition, and its exact synonyms other than the name."""
    sentences = [quoted(value)[0] for value in stanza.get("def", [])[:1]]
    if others := synonyms(stanza):
        sentences.append(f"Also called: {'; '.join(others)}.")
    return sentences
