"""The words that checks know: terms with their wholes and kinds, words that claim nothing, words for looks.

The invariant: a name bears out itself, what it is a part or kind of, and nothing else: "left kidney" bears out kidney
and abdomen, never spleen and never an upper pole.

>>> lexicon().closure("lung nodule") >= {"lung nodule", "nodule", "lung", "chest", "lung opacity"}
True
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from transforms.claims.splitting import Sentence, name_words, stem
from transforms.terms.lookup import Names, bundled, normal

FILE = Path(__file__).with_name("lexicon.yaml")
MOST = 9
"""Words of the longest name that is looked for."""

Kind = Literal["anatomy", "finding"]
Words = tuple[str, ...]


@dataclass(frozen=True)
class Concept:
    """What a name means: `key` as in map.yaml, or the name itself in its normal form."""

    key: str
    kind: Kind
    side: str | None = None
    """left or right, where the name says so and is not an organ's own (left ventricle)"""


@dataclass(frozen=True)
class Lexicon:
    """The bundled terms and wordings, and what ontologies add to them."""

    data: Mapping[str, Any]
    names: Names
    further: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """key -> keys of what an ontology calls its kinds"""

    _closures: dict[str, frozenset[str]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def carriers(self) -> frozenset[str]:
        """Stems of words that claim nothing."""
        return frozenset(form for word in self.data["carriers"].split() for form in (word, stem(word)))

    @cached_property
    def phrases(self) -> re.Pattern[str]:
        """What claims nothing as a whole."""
        return re.compile(rf"\b(?:{'|'.join(map(re.escape, self.data['phrases']))})\b", re.IGNORECASE)

    @cached_property
    def looks(self) -> frozenset[str]:
        """Stems of words for how a thing looks."""
        return frozenset(stem(part) for word in self.data["appearance"].split() for part in word.split("-"))

    @cached_property
    def heads(self) -> frozenset[str]:
        return frozenset(stem(word) for word in self.data["heads"])

    @cached_property
    def concepts(self) -> Mapping[Words, Concept]:
        """Words in their stems -> concept: the terms of the map and all wordings."""
        found: dict[Words, Concept] = {}
        for name, terms in self.names.items():
            if len(terms) == 1:
                kind: Kind = "anatomy" if terms[0].kind == "anatomy" else "finding"
                key = name if re.search(r"\d", name) and name != normal(terms[0].name) else terms[0].name
                found.setdefault(name_words(name), Concept(key, kind))
        for key, wordings in self.data["also"].items():
            known = found.get(name_words(normal(key)), Concept(key, "anatomy"))
            for wording in (key, *wordings):
                found[name_words(normal(wording))] = known
        for section, kind in (("parts", "anatomy"), ("kinds", "finding")):
            for whole, members in self.data[section].items():
                for name in (whole, *members):
                    found.setdefault(name_words(normal(name)), Concept(name, kind))
        for head in self.data["heads"]:
            found.setdefault(name_words(head), Concept(stem(head), "finding"))
        return found

    @cached_property
    def _above(self) -> Mapping[str, frozenset[str]]:
        above: dict[str, set[str]] = {}
        for section in ("parts", "kinds", "sites"):
            for whole, members in self.data[section].items():
                for member in members:
                    above.setdefault(member, set()).add(whole)
        return {name: frozenset(wholes) for name, wholes in above.items()}

    def concept(self, name: str, kind: Kind) -> Concept:
        """What a label means; one that no list holds means itself. left and right beside a name are a side."""
        words = name_words(normal(name))
        if known := self.concepts.get(words):
            return known
        bare, side = _sided(words)
        if side and (known := self.concepts.get(bare)):
            return Concept(known.key, known.kind, side)
        return Concept(" ".join(bare), kind, side)

    def closure(self, key: str) -> frozenset[str]:
        """The keys that a thing of this key bears out: itself, its wholes, its kinds, and the terms within its name."""
        if key in self._closures:
            return self._closures[key]
        found: set[str] = set()
        ahead = [key]
        while ahead:
            name = ahead.pop()
            if name in found:
                continue
            found.add(name)
            ahead += self._above.get(name, ())
            ahead += self.further.get(name, ())
            words = name_words(normal(name))
            if len(words) > 1:
                if words[-1] in self.heads:
                    ahead.append(words[-1])
                if words[-1].isdigit() or re.fullmatch(r"[a-z]\d+", words[-1]):
                    ahead.append(" ".join(words[:-1]))
                for start in range(len(words)):
                    for end in range(start + 1, len(words) + 1):
                        part = self.concepts.get(words[start:end])
                        if part and (end - start < len(words)) and part.key != "normal":
                            ahead.append(part.key)
        self._closures[key] = frozenset(found)
        return self._closures[key]


def _sided(words: Words) -> tuple[Words, str | None]:
    if len(words) > 1:
        for place in (0, -1):
            if words[place] in ("left", "right"):
                return (words[1:] if place == 0 else words[:-1]), words[place]
    return words, None


def spots(sentence: Sentence, known: Sequence[Mapping[Words, Concept]]) -> Iterator[tuple[range, Concept]]:
    """Names in a sentence as ranges of its tokens, the longest at each place; the first map that knows one wins."""
    places = sentence.content
    words = [sentence.stems[n] for n in places]
    n = 0
    while n < len(words):
        for length in range(min(MOST, len(words) - n), 0, -1):
            part = tuple(words[n : n + length])
            found = next((names[part] for names in known if part in names), None)
            if found is not None:
                yield range(places[n], places[n + length - 1] + 1), found
                n += length
                break
        else:
            n += 1


@cache
def lexicon() -> Lexicon:
    """The lexicon that comes with medloom."""
    return Lexicon(yaml.safe_load(FILE.read_text(encoding="utf-8")), bundled())
