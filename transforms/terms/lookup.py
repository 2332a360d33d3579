"""A source's word for a thing -> the term it means, by maps that people wrote and by ontologies that they name.

The invariant: only whole names match, never parts of them, and a name that means two things means none; so a term is
never guessed. Case, blanks, punctuation, a plural s and the words left and right do not count.

>>> lookup = Lookup([bundled()])
>>> lookup("kidney_left"), lookup("Hydrothorax").name, lookup("mystery")
(Term(name='kidney', id='UBERON:0002113', kind='anatomy', side='left', by='bundled'), 'pleural effusion', None)

Order: a recipe's own map, the bundled one (map.yaml), then the ontologies as they are named. A map:

    anatomy:                     # or findings:
      liver: {id: "UBERON:0002107", also: [hepar]}
    labels:                      # a source's own wording -> terms of the map; an empty list: it is no such thing
      Pneumonia/Viral/COVID-19: [pneumonia, COVID-19]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import ConfigError
from transforms.terms.obo import obsolete, stanzas, synonyms
from transforms.vocabulary import phrase

BUNDLED = Path(__file__).with_name("map.yaml")

Kind = Literal["anatomy", "finding"]


@dataclass(frozen=True)
class Term:
    """A thing by its preferred name; `side` is left or right where the wording said so; `by`, the map that knew it."""

    name: str
    id: str | None
    kind: Kind | None
    side: str | None = None
    by: str = ""

    @property
    def words(self) -> str:
        """The name with its side: "left kidney"."""
        return f"{self.side} {self.name}" if self.side else self.name


class Entry(BaseModel):
    """One term of a map."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str | None = Field(None, pattern=r"^[A-Za-z0-9]+:[A-Za-z0-9.]+$")
    also: tuple[str, ...] = ()


class TermMap(BaseModel):
    """A map as a file holds it; see the module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    anatomy: Mapping[str, Entry] = {}
    findings: Mapping[str, Entry] = {}
    labels: Mapping[str, tuple[str, ...]] = {}


Names = Mapping[str, tuple[Term, ...]]
"""normal form of a name -> what it means; several terms only where a map says so"""


class Lookup:
    """Asks its maps one after the other."""

    def __init__(self, maps: Sequence[Names]) -> None:
        self._maps = maps

    def __call__(self, label: str) -> tuple[Term, ...] | None:
        """The terms that a label means: () where a map says that it is no such thing, None where nobody knows it."""
        whole = normal(label)
        bare, side = _sided(whole)
        for names in self._maps:
            for wording, on in ((whole, None), (bare, side)):
                for form in (wording, wording.removesuffix("s")):
                    if form in names:
                        return tuple(replace(term, side=on or term.side) for term in names[form])
        return None


def normal(label: str) -> str:
    """The form in which names are compared: "kidney_left" and "Left kidney" are both "left kidney"."""
    return " ".join(re.findall(r"[^\W_]+", phrase(label).casefold()))


def _sided(whole: str) -> tuple[str, str | None]:
    match = re.fullmatch(r"(left|right) (.+)|(.+) (left|right)", whole)
    return (match[2] or match[3], match[1] or match[4]) if match else (whole, None)


@cache
def bundled() -> Names:
    """The map that comes with medloom."""
    return read_map(BUNDLED, "bundled")


def read_map(path: Path, by: str) -> Names:
    """A map file. Raises ConfigError for unknown keys, and for a name that two terms claim."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        read = TermMap.model_validate(data or {})
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{path}: not a map of terms: {error}") from None
    terms: dict[str, Term] = {}
    names: dict[str, tuple[Term, ...]] = {}
    kinds: tuple[tuple[Kind, Mapping[str, Entry]], ...] = (("anatomy", read.anatomy), ("finding", read.findings))
    for kind, entries in kinds:
        for name, entry in entries.items():
            terms[name] = Term(name, entry.id, kind, by=by)
            for wording in dict.fromkeys(normal(w) for w in (name, *entry.also)):
                if wording in names:
                    raise ConfigError(f"{path}: {wording!r} names both {names[wording][0].name!r} and {name!r}")
                names[wording] = (terms[name],)
    for label, meant in read.labels.items():
        if unknown := [name for name in meant if name not in terms]:
            raise ConfigError(f"{path}: labels: {label!r} means {unknown[0]!r}, which the map does not hold; add it")
        names[normal(label)] = tuple(terms[name] for name in meant)
    return names


def read_obo(path: Path, by: str) -> Names:
    """Names and exact synonyms of an ontology; a synonym that several terms share is left out, a name wins over it."""
    named: dict[str, tuple[Term, ...]] = {}
    shared: dict[str, list[Term]] = {}
    for stanza in stanzas(path):
        if "id" in stanza and "name" in stanza and not obsolete(stanza):
            term = Term(stanza["name"][0], stanza["id"][0], None, by=by)
            named.setdefault(normal(term.name), (term,))
            for synonym in synonyms(stanza):
                shared.setdefault(normal(synonym), []).append(term)
    single = {name: (terms[0],) for name, terms in shared.items() if len({t.id for t in terms}) == 1}
    return {**single, **named}


def read_codes(codes: Iterable[tuple[str, str]], by: str) -> Names:
    """(code, description) pairs of a classification, such as ICD-10-CM; a description of two codes means neither."""
    found: dict[str, list[Term]] = {}
    for code, description in codes:
        found.setdefault(normal(description), []).append(Term(description, code, "finding", by=by))
    return {name: (terms[0],) for name, terms in found.items() if len(terms) == 1}


