"""A caption in words that a patient would use, from the table lay.yaml; no model.

The invariant: every plain name is one that the table states for the term, and the term follows it in brackets, as the
facts give it; where the table knows none of a picture's terms, there is no lay text.

>>> lay_text(facts).text
'This is a picture made with X-rays from all around the body (CT image). It shows the belly (abdomen). …'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import yaml

from transforms.captioners.english import counted, plural, prose, row, sentence, the
from transforms.captioners.parts import NOTHING, Said, Terms
from transforms.facts import Facts
from transforms.terms.lookup import Lookup, Term, bundled

FILE = Path(__file__).with_name("lay.yaml")


@cache
def _table() -> Mapping[str, Mapping[str, str]]:
    read: Mapping[str, Mapping[str, str]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return read


def term_of(label: str) -> Term | None:
    """The one term of the bundled map that a label means; None where it means none or several."""
    found = Lookup([bundled()])(label)
    return found[0] if found and len(found) == 1 else None


def plain_name(label: str) -> str | None:
    """The plain name of a term with the term in brackets: "a small spot in the lung (pulmonary nodule)"."""
    term = term_of(label)
    plain = (_table()["anatomy"].get(term.name) or _table()["findings"].get(term.name)) if term else None
    if plain is None or plain.removeprefix("the ") == label or (plural(label) and plain.startswith(("a ", "one "))):
        return None
    return f"{plain} ({label})"


def lay_text(facts: Facts, terms: Terms | None = None) -> Said | None:
    """The caption in plain words; None where the table has nothing to say."""
    told = [*_picture(facts), *_marked(facts), *_findings(facts, terms or {})]
    if not any(plain for plain, _ in told):
        return None
    evidence = dict.fromkeys(id for _, said in told for id in said.evidence)
    return Said(prose(said.text for _, said in told), tuple(evidence))


def _picture(facts: Facts) -> Iterator[tuple[bool, Said]]:
    plain = _table()["modalities"].get(facts.modality or "")
    if plain:
        yield True, Said(f"This is {plain} ({facts.modality_image}).", ("image:modality",))
    if facts.anatomy:
        name = plain_name(facts.anatomy)
        yield bool(name), Said(f"It shows {name or the(facts.anatomy)}.", ("image:anatomy",))


def _marked(facts: Facts) -> Iterator[tuple[bool, Said]]:
    shown = [region for region in facts.regions if region.role not in ("body", "panel", "text")]
    if not shown:
        return
    counts = Counter(region.label for region in shown)
    plain = {label: plain_name(label) for label in counts}
    names = [
        (plain[label] or the(label)) if n == 1 else _several(n, label, plain[label]) for label, n in counts.items()
    ]
    evidence = tuple(f"roi:{region.id}" for region in shown)
    yield any(plain.values()), Said(sentence(f"in the picture these are marked: {row(names)}"), evidence)


def _several(count: int, label: str, plain: str | None) -> str:
    return f"{counted(count, label)}, each {plain}" if plain else counted(count, label)


def _findings(facts: Facts, terms: Terms) -> Iterator[tuple[bool, Said]]:
    for value, opening in (("present", "the source says that it shows"), ("absent", "the source says that it lacks")):
        found = {
            name: (f"label:{label.id}", f"label:{id}")
            for label in facts.labels if label.value == value
            for name, id in terms.get(label.id) or ((label.name, label.id),)
        }
        evidence = tuple(dict.fromkeys(id for ids in found.values() for id in ids))
        if found and set(map(str.lower, found)) <= NOTHING:
            if value == "present":
                yield False, Said("The source says that it shows nothing unusual.", evidence)
        elif found:
            plain = {name: plain_name(name) for name in found}
            yield any(plain.values()), Said(sentence(f"{opening} {row([plain[n] or n for n in found])}"), evidence)
