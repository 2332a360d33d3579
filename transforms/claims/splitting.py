"""Sentences and words of a text, with their places in it.

The invariant: a token never spans a blank, and `sentence.text[token.start:token.end]` is what stands there.

>>> [token.word for token in sentences("Left-sided mass, 9.0% of it.")[0].tokens]
['left', 'sided', 'mass', ',', '9.0', '%', 'of', 'it', '.']
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

from transforms.figures import sentences as prose

_TOKEN = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?![\w])|[^\W_]+(?:['’](?:s|t)\b)?|%|[^\w\s]")
_JOINS = frozenset("-/_&+()[]'’\"“”")
_SEMICOLON = re.compile(r";\s+|\s[–—]\s|\n+|\s*•\s*")


@dataclass(frozen=True)
class Token:
    """A word, number or mark, in lower case; start and end within its sentence."""

    word: str
    start: int
    end: int

    @property
    def is_word(self) -> bool:
        return self.word[0].isalnum()


@dataclass(frozen=True)
class Sentence:
    """A sentence, or a part of one that a semicolon, a dash or a line's end sets off."""

    text: str

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        return tuple(Token(m[0].lower().replace("’", "'"), *m.span()) for m in _TOKEN.finditer(self.text))

    @cached_property
    def words(self) -> tuple[str, ...]:
        return tuple(token.word.removesuffix("'s") for token in self.tokens)

    @cached_property
    def stems(self) -> tuple[str, ...]:
        """The stem of every token."""
        return tuple(stem(word) for word in self.words)

    @cached_property
    def content(self) -> tuple[int, ...]:
        """The tokens that names are made of: all but the marks within and around words."""
        return tuple(n for n, token in enumerate(self.tokens) if token.word not in _JOINS)

    def within(self, start: int, end: int) -> range:
        """The tokens that touch these characters."""
        touched = [n for n, token in enumerate(self.tokens) if token.start < end and token.end > start]
        return range(touched[0], touched[-1] + 1) if touched else range(0)

    def span(self, tokens: range) -> str:
        """The words of some tokens, as they stand."""
        return self.text[self.tokens[tokens[0]].start : self.tokens[tokens[-1]].end] if tokens else ""


def sentences(text: str) -> list[Sentence]:
    """The sentences of a text, in order."""
    whole = [text[a:b] for a, b in prose.sentences(text)]
    parts = [part.strip() for sentence in whole for part in _SEMICOLON.split(sentence)]
    return [Sentence(part) for part in parts if part]


def name_words(name: str) -> tuple[str, ...]:
    """The words of a name as they are compared: stems, without marks within words."""
    sentence = Sentence(name)
    return tuple(sentence.stems[n] for n in sentence.content)


_IRREGULAR = {
    "lies": "lie",
    "lying": "lie",
    "lay": "lie",
    "seen": "see",
    "saw": "see",
    "shown": "show",
    "found": "find",
    "left": "left",
    "vertebrae": "vertebra",
    "nuclei": "nucleus",
    "metastases": "metastasis",
    "diagnoses": "diagnosis",
    "taken": "take",
    "given": "give",
    "made": "make",
    "known": "know",
    "opacities": "opacity",
    "calculi": "calculus",
    "bronchi": "bronchus",
    "masses": "mass",
    "atria": "atrium",
    "gas": "gas",
    "atelectases": "atelectasis",
}


@lru_cache(maxsize=16384)
def stem(word: str) -> str:
    """The word without its endings of plural and tense: crude, the same on both sides of a comparison.

    >>> stem("covering"), stem("covers"), stem("opacities")
    ('cover', 'cover', 'opacity')
    """
    word = word.removesuffix("'s")
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 3 or not word.isalpha() or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "ches", "shes", "xes")):
        return word[:-2]
    if word.endswith("s"):
        word = word[:-1]
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and re.search("[aeiouy]", word[: -len(ending)]):
            base = word[: -len(ending)]
            if base[-1] == base[-2] and base[-1] not in "lsz":
                base = base[:-1]
            return base.removesuffix("e")
    return word.removesuffix("e") if len(word) > 4 else word


_UNITS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
)
NUMBER_WORDS = {word: float(n) for n, word in enumerate(_UNITS)} | {"pair": 2.0, "couple": 2.0, "dozen": 12.0}


def number(word: str) -> float | None:
    """The value of a number in digits or, up to twenty, in letters."""
    if word[0].isdigit():
        try:
            return float(word.replace(",", ""))
        except ValueError:
            return None
    return NUMBER_WORDS.get(word)
