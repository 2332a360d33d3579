"""Which words of a sentence are denied and which are in doubt: triggers and their reach, after NegEx.

The invariant: a word is denied only where a listed trigger stands in the same sentence and no stop lies between.

Source: Chapman et al. 2001, J Biomed Inform 34:301 (NegEx). The words are in negation.yaml.

>>> polarity(("no", "effusion", "but", "a", "mass"))[0]
('absent', 'absent', 'present', 'present', 'present')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

FILE = Path(__file__).with_name("negation.yaml")
Polarity = Literal["present", "absent", "uncertain"]
REACH = 24
"""Words as far as a trigger works at most."""


@cache
def _data() -> Mapping[tuple[str, ...], str]:
    """Words -> role: absent+, absent-, uncertain+, uncertain- (+ works forward), pseudo, stop."""
    data: Mapping[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    roles: dict[tuple[str, ...], str] = {}
    for phrase in data["stops"]:
        roles[tuple(phrase.split())] = "stop"
    for kind in ("uncertain", "absent"):
        for where, mark in (("before", "+"), ("after", "-")):
            for phrase in data[kind][where]:
                words = tuple(phrase.split())
                roles[words] = f"{kind}*" if roles.get(words) in (f"{kind}+",) and mark == "-" else f"{kind}{mark}"
    for phrase in data["pseudo"]:
        roles[tuple(phrase.split())] = "pseudo"
    return roles


@cache
def _longest() -> int:
    return max(map(len, _data()))


def polarity(words: Sequence[str]) -> tuple[tuple[Polarity, ...], frozenset[int]]:
    """For every word (lower case) its polarity, and the places of the words that are triggers."""
    roles = _data()
    found: list[tuple[int, int, str]] = []
    n = 0
    while n < len(words):
        for length in range(min(_longest(), len(words) - n), 0, -1):
            if role := roles.get(tuple(words[n : n + length])):
                found.append((n, n + length, role))
                n += length
                break
        else:
            n += 1
    said: list[Polarity] = ["present"] * len(words)
    for at, (start, end, role) in enumerate(found):
        kind = role[:-1]
        if kind not in ("absent", "uncertain"):
            continue
        value: Polarity = "absent" if kind == "absent" else "uncertain"
        forward = role[-1] == "+" or (role[-1] == "*" and not _closes(words, end))
        if forward:
            stop = next(
                (s for s, _, other in found[at + 1 :] if other == "stop" or (other[:-1] == kind and other[-1] == "-")),
                len(words),
            )
            reach = range(end, min(stop, end + REACH))
        else:
            stop = next((e for _, e, other in reversed(found[:at]) if other == "stop"), 0)
            reach = range(max(stop, start - REACH), start)
        for place in reach:
            if said[place] == "present" or value == "absent":
                said[place] = value
    triggers = (range(s, e) for s, e, role in found if role not in ("stop", "pseudo"))
    return tuple(said), frozenset(place for reach in triggers for place in reach)


def _closes(words: Sequence[str], end: int) -> bool:
    """Whether a trigger that works both ways ends its clause, and so works on what stands before."""
    return end >= len(words) or not words[end][0].isalnum() or words[end] in ("in", "on", "from", "and")
