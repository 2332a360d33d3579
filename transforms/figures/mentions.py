"""Which sentences of an article speak of which panel: "Fig. 1A", "Figure 2(b, c)", "Figs 3A–C", "panel B".

The invariant: a sentence is given to a panel only where it names that panel of that figure. A sentence that cites the
figure as a whole ("see Fig. 2") is given to no panel: the figure's own mention holds it.

>>> mention = "It grew (Fig. 1A). As in Fig. 2A and B, it stopped; panel C differs. So does Fig. 2."
>>> [(label, [mention[a:b] for a, b in spans]) for label, spans in by_panel(mention, "2").items()][0]
('A', ['As in Fig. 2A and B, it stopped; panel C differs.'])

A figure is known by its number: "2", "S3", and "2-s1" for "Figure 2—figure supplement 1".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from transforms.figures.labels import expand, pattern
from transforms.figures.sentences import Span, sentences

_FIGURE = r"\b(?:(?P<prefix>supp\w*\.?|extended\s+data)\s+)?(?:figures?|figs?\b\.?)"
_NUMBER = r"(?P<number>S?\d{1,3})(?![\d.]\d)(?P<supplement>\s*[-–—]\s*figure\s+supplements?\s+(?P<of>\d{1,2}))?"
_LETTERS = "|".join(f"{pattern(family)}(?![A-Za-z0-9])" for family in ("upper", "lower")).replace(
    "[A-Z]", r"(?!S\d)[A-Z]"  # S3 is a figure
)
_PANELS = re.compile(
    rf"(?:[-–]?(?P<near>{_LETTERS})|\s*[-,]?\s*[(\[](?:panels?\s+)?(?P<in>{_LETTERS})[)\]]"
    rf"|,?\s+panels?\s+(?P<word>{_LETTERS})|\s(?P<apart>{_LETTERS})(?=\s*(?:[).;,\]]|and\b|$)))"
)
_HEAD = re.compile(_FIGURE, re.IGNORECASE)
_NUMBERED = re.compile(rf"\s*{_NUMBER}", re.IGNORECASE)
_ALONE = re.compile(rf"\b[Pp]anels?\s+\(?(?P<letters>{_LETTERS})")
_AND = re.compile(r"\s*(?:,\s*and|[,;&–-]|\band\b|\bto\b)\s*")
_CITATION = re.compile(rf"{_FIGURE}|\bpanels?\s+\(?(?:{_LETTERS})", re.IGNORECASE)


def figure_number(words: str | None) -> str | None:
    """The number in a figure's label ("Figure 2—figure supplement 1." gives "2-s1"); None where there is none."""
    found = _HEAD.search(words or "")
    number = _NUMBERED.match(words or "", found.end()) if found else None
    return _named(found, number) if found and number else None


def number_cited(mentions: Iterable[str]) -> str | None:
    """The one number that all paragraphs have in common: each of them cites the figure, so it is the figure's.

    None where several are common, as in a single paragraph about two figures: a figure's number is not guessed.
    """
    paragraphs = list(mentions)
    counts = Counter(number for text in paragraphs for number in {n for n, _, _ in _cited(text)})
    common = [number for number, times in counts.items() if times == len(paragraphs)]
    return common[0] if len(common) == 1 else None


def by_panel(mention: str, number: str) -> Mapping[str, tuple[Span, ...]]:
    """Label, as the mention writes it, -> the sentences that name this panel of the figure of that number.

    "panel B" alone is of the figure that was cited last, in this sentence or before it.
    """
    said: dict[str, list[Span]] = {}
    cited = list(_cited(mention))
    for span in sentences(mention):
        inside = [labels for figure, labels, at in cited if figure == number and span[0] <= at < span[1]]
        for label in dict.fromkeys(label for labels in inside for label in labels):
            said.setdefault(label, []).append(span)
    return {label: tuple(spans) for label, spans in said.items()}


def _cited(text: str) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """(number of a figure, labels of its panels, place in the text), in order."""
    last: str | None = None
    for match in _CITATION.finditer(text):
        head = _HEAD.match(text, match.start())
        if head is None:
            alone = _ALONE.match(text, match.start())
            if alone and last:
                yield last, _labels(alone["letters"]), match.start()
            continue
        for number, labels in _references(text, head):
            last = number
            yield number, labels, match.start()


def _references(text: str, head: re.Match[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The figures behind one "Figs": 2A and B, 3, 4(c); of a range of numbers every one."""
    at, joint, before = head.end(), "", 0
    while number := _NUMBERED.match(text, at):
        plain = number["number"].isdigit() and not number["supplement"]
        if joint in ("-", "–", "to") and plain and before:
            yield from ((str(n), ()) for n in range(before + 1, min(int(number["number"]), before + 100)))
        at = number.end()
        panels = _PANELS.match(text, at)
        words = next((w for w in panels.groups() if w), "") if panels else ""
        yield _named(head, number), _labels(words)
        at = panels.end() if panels else at
        before = int(number["number"]) if plain and not words else 0
        between = _AND.match(text, at)
        if between is None:
            return
        at, joint = between.end(), between[0].strip()


def _named(head: re.Match[str], number: re.Match[str]) -> str:
    name = number["number"].upper()
    prefix = (head["prefix"] or "").lower()
    if prefix and not name.startswith("S"):
        name = f"{'ED' if prefix.startswith('ext') else 'S'}{name}"
    return f"{name}-s{number['of']}" if number["of"] else name


def _labels(words: str) -> tuple[str, ...]:
    if not words:
        return ()
    return expand(words, "upper" if words[0].isupper() else "lower") or ()
