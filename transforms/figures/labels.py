"""Panel labels as captions write them: A, b, A1, iii, 4, and sets of them: A–C; A and B; A, C; A1-3.

The invariant: a set is ascending and of one family (upper, lower, roman, digit, or letter: either case); anything else
is no set of labels.

>>> expand("A–C, E", "upper"), expand("i-iii", "roman"), expand("C-A", "upper")
(('A', 'B', 'C', 'E'), ('i', 'ii', 'iii'), None)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Rank = tuple[int, int]
"""place of a label in its family, and the number of a sub-panel (A1 is (1, 1)), 0 without"""

ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")
_ROMAN = "|".join(sorted(ROMAN, key=len, reverse=True))
_ONE = {"upper": r"[A-Z]\d?", "lower": r"[a-z]\d?", "roman": f"(?:{_ROMAN})", "digit": r"\d{1,2}",
        "letter": r"[A-Za-z]\d?"}
FAMILIES = tuple(_ONE)
LETTERS = ("upper", "lower", "letter")
_DASH = r"\s*(?:[-–—~‐‑]|\bto\b|\bthrough\b)\s*"
_AND = r"(?:\s*[,&/;](?:\s*and\b)?\s*|\s+and\b\s*)"


def pattern(family: str) -> str:
    """A regular expression (without groups) for a label of a family or a set of them; what may stand before is open."""
    one = rf"{_ONE[family]}(?![A-Za-z0-9])"
    more = rf"(?:{one}|\d(?![A-Za-z0-9]))" if family in LETTERS else one
    return rf"{one}(?:(?:{_DASH}|{_AND}){more}){{0,30}}"


def rank(label: str, family: str) -> Rank:
    """The place of a label among those of its family."""
    if family == "digit":
        return int(label), 0
    if family == "roman":
        return ROMAN.index(label) + 1, 0
    return ord(label[0].lower()) - ord("a") + 1, int(label[1:] or 0)


def expand(words: str, family: str) -> tuple[str, ...] | None:
    """The labels of a set, in order; None where the words are none (descending, doubled, a range across sub-panels)."""
    labels: list[str] = []
    pieces = re.split(rf"({_DASH}|{_AND})", words.strip())
    for joint, word in zip(["", *pieces[1::2]], pieces[::2], strict=True):
        if labels and family in LETTERS and word.isdigit():
            word = labels[-1][0] + word  # A1-3
        if re.fullmatch(_DASH, joint or " "):
            between = _between(labels[-1], word, family)
            if between is None:
                return None
            labels += between
        labels.append(word)
    ranks = [rank(label, family) for label in labels]
    one_case = len({label[0].isupper() for label in labels}) == 1
    return tuple(labels) if one_case and ranks == sorted(set(ranks)) else None


def _between(first: str, last: str, family: str) -> list[str] | None:
    """The labels that a range leaves out, or None where it is no range."""
    (a, i), (b, j) = rank(first, family), rank(last, family)
    if i or j:
        return [f"{first[0]}{n}" for n in range(i + 1, j)] if a == b and 0 < i < j else None
    if a >= b:
        return None
    if family == "digit":
        return [str(n) for n in range(a + 1, b)]
    if family == "roman":
        return list(ROMAN[a : b - 1])
    return [chr(ord(first) + n) for n in range(1, b - a)]


def in_sequence(labels: Iterable[str], family: str) -> Sequence[str]:
    """The labels that can be counted to without a gap from the first of the family: A, B, C1, C2 … of any order."""
    known = {rank(label, family): label for label in labels}
    found: list[str] = []
    at = 1
    while subs := [n for n in range(10) if (at, n) in known]:
        first = 0 if 0 in subs else 1
        run = [n for n in range(first, 10) if set(range(first, n + 1)) <= set(subs)]
        if not run:
            break
        found += [known[at, n] for n in run]
        at += 1
    return found
