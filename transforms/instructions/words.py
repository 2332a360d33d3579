"""The tables of questions.yaml, and the grammar that questions need.

The invariant: what is drawn among several wordings depends on ids and names alone, so the same picture is asked the
same questions every time.

>>> the("left kidney"), draw(["a", "b"], "s1", "modality") in ("a", "b"), answer_of("pleural effusion")
('the left kidney', True, 'a pleural effusion')
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from infra.keys import key
from transforms.captioners.english import plural, the
from transforms.terms.lookup import Lookup, Term, bundled, normal
from transforms.vocabulary import article

__all__ = ["FILE", "answer_of", "askable", "capital", "draw", "plural", "related", "shuffled", "table", "the", "verbs"]

FILE = Path(__file__).parents[1] / "captioners" / "questions.yaml"
T = TypeVar("T")
_WORDS = re.compile(r"[^\W_][\w ,()'+-]*", re.UNICODE)
MOST_WORDS = 7
"""A longer label is a sentence of its source and no name."""


@cache
def table() -> Mapping[str, Any]:
    """questions.yaml."""
    read: Mapping[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return read


def draw(wordings: Sequence[T], *ids: Any) -> T:
    """One of them, by the hash of the ids."""
    return wordings[int(key("draw", *ids), 16) % len(wordings)]


def shuffled(things: Iterable[T], *ids: Any, name: Any = str) -> list[T]:
    """In an order that the hash of the ids and of each thing's name decides."""
    return sorted(things, key=lambda thing: key("order", *ids, name(thing)))


def capital(words: str) -> str:
    """With a capital at the start."""
    return words[:1].upper() + words[1:]


def verbs(label: str) -> dict[str, str]:
    """The verbs and pronouns that go with a label, as the fields of a wording."""
    many = plural(label)
    is_, does, has = ("are", "do", "have") if many else ("is", "does", "has")
    return {
        "the": the(label), "is": is_, "does": does, "has": has, "Is": capital(is_), "Does": capital(does),
        "It": "They" if many else "It",
    }


def plural_of(label: str) -> str:
    """Several of it: cells, nuclei, biopsies."""
    head, _, last = label.rpartition(" ")
    if plural(label):
        return label
    irregular: str | None = table()["plurals"].get(last)
    if irregular is None:
        irregular = re.sub(r"(?<![aeiou])y$", "ie", last) + ("es" if re.search(r"(?:s|x|ch|sh)$", last) else "s")
    return f"{head} {irregular}".strip()


def answer_of(finding: str) -> str:
    """A finding as it stands in a sentence: with an article where one of it can be counted."""
    last = finding.lower().split()[-1]
    return article(finding) if last in table()["counted"] or last in table()["pictures"] else finding


def askable(name: str) -> bool:
    """Whether a label is a name that a question can hold: words, not too many, none that says nothing."""
    return (
        bool(_WORDS.fullmatch(name)) and len(name.split()) <= MOST_WORDS and name.lower() not in table()["unaskable"]
        and len(name) > 1 and not name.isdigit()
    )


@cache
def _lookup() -> Lookup:
    return Lookup([bundled()])


@cache
def _terms(name: str) -> tuple[Term, ...]:
    return _lookup()(name) or ()


@cache
def _kin() -> Mapping[str, frozenset[int]]:
    """name -> the groups of `kin` it stands in, and the pairs of a whole and a part."""
    found: dict[str, set[int]] = {}
    pairs = [[whole, part] for whole, parts in table()["parts"].items() for part in parts]
    for number, group in enumerate([*table()["kin"], *pairs]):
        for name in group:
            found.setdefault(normal(name), set()).add(number)
    return {name: frozenset(groups) for name, groups in found.items()}


@cache
def related(a: str, b: str) -> bool:
    """Whether one of two names may be true wherever the other is: a synonym, a part, a kind, or kin by questions.yaml.

    Names of which one holds all words of the other are related, and so are names of one term, unless they are its left
    and its right.
    """
    words_a, words_b = set(normal(a).split()), set(normal(b).split())
    if words_a <= words_b or words_b <= words_a:
        return True
    terms_a, terms_b = _terms(a), _terms(b)
    for one in terms_a:
        for other in terms_b:
            opposite = one.side is not None and other.side is not None and one.side != other.side
            if one.name == other.name and not opposite:
                return True
    groups = [
        {g for form in (normal(name), *(normal(t.name) for t in terms)) for g in _kin().get(form, ())}
        for name, terms in ((a, terms_a), (b, terms_b))
    ]
    same = {t.name for t in terms_a} & {t.name for t in terms_b}
    return bool(groups[0] & groups[1]) and not same
