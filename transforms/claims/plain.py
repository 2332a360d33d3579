"""Texts in a patient's words, turned back into terms: only what stands in brackets can be held against rows.

The invariant: a plain name is taken for its term only where the table of plain names states it so; other words stay,
and must be borne out like those of any text.

>>> in_terms("It shows the belly (abdomen).")
'It shows the abdomen.'
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import yaml

FILE = Path(__file__).parents[1] / "captioners" / "lay.yaml"
"""The table that the captioners write from."""
_ARTICLE = re.compile(r"^(a|an|the|one) ")


def in_terms(text: str) -> str:
    """The text with each plain name that its term follows in brackets replaced by that term."""
    return _plain_names().sub(lambda m: f"{(_ARTICLE.match(m['plain']) or [''])[0]}{m['term']}", text)


@cache
def _plain_names() -> re.Pattern[str]:
    table: dict[str, dict[str, str]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    plain = sorted({name for names in table.values() for name in names.values()}, key=lambda n: (-len(n), n))
    return re.compile(rf"(?<!\w)(?P<plain>{'|'.join(map(re.escape, plain))}) \((?P<term>[^()]+)\)", re.IGNORECASE)
