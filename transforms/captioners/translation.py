"""Whether a translation kept what it must not lose: the key terms and the numbers of the text it translates.

The invariant: a translation is accepted only if every key term that the first text names stands in it, as it is or in
the words that the model itself states for the term, and if it holds the same numbers.

>>> kept("Die Leber bedeckt 9,0 % des Bildes.", "Leber"), kept("Das Organ ist groß.", "Leber")
(True, False)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

ENDING = 2
"""Letters at the end of a word that may be inflected: linke Niere, der linken Niere."""
SHORT = 4
"""Letters that must be the same at the start of a longer word."""


def kept(text: str, term: str) -> bool:
    """Whether every word of a term stands in a text, up to its ending and case."""
    words = re.findall(r"\w+", text.casefold())
    stems = [word[: max(SHORT, len(word) - ENDING)] for word in re.findall(r"\w+", term.casefold())]
    return bool(stems) and all(any(word.startswith(stem) for word in words) for stem in stems)


def numbers(text: str) -> list[str]:
    """The numbers of a text in order of size, with a point for a decimal comma."""
    return sorted(number.replace(",", ".") for number in re.findall(r"(?<![\w.,])\d+(?:[.,]\d+)?", text))


def lost(original: str, text: str, stated: Mapping[str, str]) -> str | None:
    """What a translation lacks, for the model that is to mend it; `stated`: term -> its translation."""
    for term, translation in stated.items():
        if kept(original, term) and not kept(text, translation) and not kept(text, term):
            return f"lacks the term {term!r} ({translation!r})"
    if numbers(original) != numbers(text):
        return f"has the numbers {numbers(text)} instead of {numbers(original)}"
    return None


def keeps_terms(terms: Mapping[str, str]) -> Any:
    """A validator for a model with `global_text` and `translations`; `terms`: handle -> term."""

    def check(captions: Any) -> Any:
        for language in type(captions.translations).model_fields:
            translation = getattr(captions.translations, language)
            given = translation.terms.model_dump() if terms else {}
            stated = {terms[handle]: words for handle, words in given.items()}
            if wrong := lost(captions.global_text, translation.text, stated):
                raise ValueError(f"the translation {language} {wrong}")
        return captions

    return model_validator(mode="after")(check)
