"""The words for modalities, labels and sides: one place, so that captions and checks speak the same language.

The invariant: a modality is named only from the column `images.modality` and the table `vocabulary.yaml`, never from a
prompt or a file name. A value the table does not know is used as the source gives it.

>>> modality("CT").image, phrase("kidney_left"), named_modalities("An MRI of the head; fact.")
('CT image', 'left kidney', {'MRI': frozenset({'MR'})})
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_name("vocabulary.yaml")


@dataclass(frozen=True)
class Modality:
    """A modality in words; see vocabulary.yaml for the fields."""

    code: str
    name: str
    image: str
    kind: str
    words: tuple[str, ...]


@cache
def table() -> Mapping[str, Modality]:
    """code -> modality, as in vocabulary.yaml."""
    entries: Mapping[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["modalities"]
    return {code: Modality(code, e["name"], e["image"], e["kind"], tuple(e["words"])) for code, e in entries.items()}


def modality(code: str | None) -> Modality | None:
    """The modality of a code; one that the table does not know is named by the code itself; None stays None."""
    if code is None:
        return None
    return table().get(code) or Modality(code, code, f"{code} image", "other", (code,))


@cache
def _spotter() -> tuple[re.Pattern[str], Mapping[str, frozenset[str]]]:
    codes: dict[str, set[str]] = {}
    for entry in table().values():
        for word in entry.words:
            codes.setdefault(word if _cased(word) else word.lower(), set()).add(entry.code)
    longest_first = sorted(codes, key=lambda word: (-len(word), word))
    either = "|".join(re.escape(w) if _cased(w) else f"(?i:{re.escape(w)})" for w in longest_first)
    return re.compile(rf"(?<!\w)({either})s?(?!\w)"), {word: frozenset(found) for word, found in codes.items()}


def _cased(word: str) -> bool:
    return any(letter.isupper() for letter in word)


def named_modalities(text: str) -> dict[str, frozenset[str]]:
    """The modality words in a text, in order -> the codes each may mean."""
    pattern, codes = _spotter()
    found = (match.group(1) for match in pattern.finditer(text))
    return {word: codes[word] if word in codes else codes[word.lower()] for word in found}


def phrase(name: str) -> str:
    """A label as a person would say it: `kidney_left` is "left kidney", `0_normal` is "normal"."""
    words = re.sub(r"\s+", " ", re.sub(r"^\d+_", "", name).replace("_", " ")).strip()
    return re.sub(r"^(.+?) (left|right)( \d+)?$", r"\2 \1\3", words) or name


def article(noun: str) -> str:
    """The noun with "a" or "an" before it, as it is spoken: an MR image, an x-ray, a CT image, a uterus."""
    first = re.match(r"\w+", noun)
    word = first.group() if first else noun
    if word.isupper() and (len(word) == 1 or word not in _SPOKEN):  # spelled out letter by letter
        vowel = word[0] in "AEFHILMNORSX"
    elif re.match(r"x[-\s]", noun, re.IGNORECASE) or re.match(r"(?:honest|hour|heir)", word, re.IGNORECASE):
        vowel = True
    else:
        vowel = word[:1].lower() in "aeiou" and not re.match(_YOU, word, re.IGNORECASE)
    return f"{'an' if vowel else 'a'} {noun}"


_YOU = r"uni(?!n|mp)|us[ei]|ut[ei]|ur[eio]|ubi|eu|one\b"
"""Beginnings with a vowel letter that are spoken with a consonant."""
_SPOKEN = frozenset({"PET", "SPECT", "FLAIR"})


def listed(things: Sequence[str]) -> str:
    """Things in a row, as in a sentence: "a", "a and b", "a, b and c"."""
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"


def modality_spans(text: str) -> list[tuple[int, int, frozenset[str]]]:
    """Where modality words stand in a text, in order: start, end, and the codes each may mean."""
    pattern, codes = _spotter()
    found = []
    for match in pattern.finditer(text):
        word = match.group(1)
        found.append((*match.span(), codes[word] if word in codes else codes[word.lower()]))
    return found
