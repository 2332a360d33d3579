"""Which language a text is in, told from its script or its commonest words; unknown where that is not plain.

The invariant: a short or mixed text, a list of terms or a language that is not listed is unknown (None), never wrong:
a caption is only turned away where another language is plainly meant. The words are data: infra/languages.yaml.

>>> language_of("Das CT zeigt eine Läsion in der linken Lunge.")
'de'
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

WORDS = Path(__file__).with_name("languages.yaml")
FEWEST = 3
"""Frequent words that must be found before a language is named."""
MARGIN = 2.0
"""How many times as many of them the language must have as the next."""


@cache
def _known() -> tuple[Mapping[str, frozenset[str]], Mapping[str, tuple[str, ...]]]:
    data = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    words = {language: frozenset(map(str, listed)) for language, listed in data["words"].items()}
    return words, {language: tuple(listed) for language, listed in data["scripts"].items()}


def language_of(text: str) -> str | None:
    """ISO 639-1 code of the language that the text is plainly in; None: not plain, or not one we know."""
    words, scripts = _known()
    letters = [unicodedata.name(c, "").partition(" ")[0] for c in text if c.isalpha()]
    blocks = Counter(letters)
    for language, names in sorted(scripts.items(), key=lambda item: item[0] == "zh"):  # Japanese writes Chinese too
        share = sum(blocks[name] for name in names) / max(1, len(letters))
        if share > (0.1 if language == "ja" else 0.3):
            return language
    said = re.findall(r"[^\W\d_]+", text.lower())
    scores = sorted(((sum(w in listed for w in said), code) for code, listed in words.items()), reverse=True)
    (best, language), (second, _) = scores[:2]
    return language if best >= FEWEST and best >= MARGIN * second else None


def other_language(data: Any, expected: str) -> str | None:
    """The language of an answer's prose where it is plainly not the expected one (ISO 639-1).

    `data` is JSON; its strings of four words and more, or of any script but Latin, are read together, so that ids and
    codes do not count. Only languages that we know are held against the expected one.
    """
    words, scripts = _known()
    wanted = expected.lower().partition("-")[0]
    if wanted not in words and wanted not in scripts:
        return None
    found = language_of(" ".join(text for text in _strings(data) if len(text.split()) > 3 or not text.isascii()))
    return found if found != wanted else None


def _strings(data: Any) -> list[str]:
    if isinstance(data, str):
        return [data]
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, (list, tuple)) else ()
    return [text for part in parts for text in _strings(part)]
