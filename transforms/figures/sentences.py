"""Sentences of scientific prose, as spans of the text.

The invariant: the spans are ordered, do not overlap, and hold every character that is not white space.

>>> [text[a:b] for a, b in sentences(text := "See Fig. 2 (p < 0.05). B. subtilis grew.")]
['See Fig. 2 (p < 0.05).', 'B. subtilis grew.']
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

Span = tuple[int, int]

_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s+(\S))")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[])(?:figs?|figures?|refs?|eqs?|nos?|vols?|pp?|tabs?|suppl?|e\.g|i\.e|vs|cf|approx|ca|resp|incl|"
    r"dr|mr|mrs|ms|prof|st|spp?|var|subsp|viz|inc|ltd|dept|avg|[a-z]\.[a-z](?:\.[a-z])*)\.$", re.IGNORECASE,
)
_INITIAL = re.compile(r"(?:^|[\s(\[])([A-Za-z])\.$")


def sentences(text: str) -> list[Span]:
    """The sentences of a text, white space around them left out."""
    return list(_stripped(text, [0, *(end for end in _ends(text)), len(text)]))


def _ends(text: str) -> Iterator[int]:
    start = 0
    for found in _END.finditer(text):
        if _is_end(text[start : found.end()], found[1]):
            yield found.end()
            start = found.end()


def _is_end(sentence: str, following: str) -> bool:
    if sentence.endswith(("etc.", "al.")):
        return following.isupper()
    if _ABBREVIATION.search(sentence):
        return False
    if initial := _INITIAL.search(sentence):
        # "E. coli", and "B. CT of the liver" where a label stands first; but "as shown in a. Next"
        before = sentence[: initial.start(1)].strip(" \t\n([")
        noun = re.search(r"(?:^|\s)[a-z]{4,}$", before) is not None  # "… of group A. Data"
        return bool(before) and not following.islower() and (initial[1].islower() or noun)
    return True


def _stripped(text: str, cuts: list[int]) -> Iterator[Span]:
    for start, end in pairwise(cuts):
        inner = text[start:end]
        if inner.strip():
            yield start + len(inner) - len(inner.lstrip()), start + len(inner.rstrip())
