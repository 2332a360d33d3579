"""Which paragraphs speak of which figure: those with an xref to it, and those that name a range it lies in.

The invariant: a figure is mentioned where the text names it, by its id, or by a number between two that are named
("Figs 2–4" mentions figure 3). What cannot be told from ids and labels is no mention.

>>> mentions(article.iter("xref"), {"f2": [fig2], "f3": [fig3], "f4": [fig4]})[fig3]
[<Element p at 0x7f…>]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from connectors.pmc.xml import Element, said

_LABEL = re.compile(r"(\D*?)\s*(\d+)[\s.:|]*")
_TO = r"\s*(?:[-–—‒‑−]|to|through)\s*"
_FROM_TO = re.compile(rf"[A-Za-z]?{_TO}(?:(?:fig(?:ure)?|table)s?\.?\s*)?", re.IGNORECASE)
"""what stands between two xrefs that are the ends of a range: 2A–Fig. 4"""
_RANGE = re.compile(rf"(\d+)[A-Za-z]?{_TO}(\d+)", re.IGNORECASE)
"""a range in the words of one xref: Figs 2–4"""


def mentions(xrefs: Iterable[Element], floats: Mapping[str, Sequence[Element]]) -> dict[Element, list[Element]]:
    """Figure -> the paragraphs that mention it, each once, in the order of the document.

    `floats` are figures, tables and their groups by id. Where an id is given twice, in an article and in its
    translation, the nearest around the xref counts.
    """
    found: dict[Element, dict[Element, None]] = {}
    numbers = _Numbers(chain.from_iterable(floats.values()))
    for xref in xrefs:
        rids = [rid for rid in xref.get("rid", "").split() if rid in floats]
        paragraph = _paragraph(xref) if rids else None
        if paragraph is None:
            continue
        named = [one for rid in rids for one in _nearest(floats[rid], xref)]
        if (first := _range_start(xref)) in floats:
            named += numbers.between(_nearest(floats[first], xref)[0], named[0])
        if told := _RANGE.search("".join(xref.itertext()) if len(xref) else xref.text or ""):
            named += numbers.told(named[0], int(told[1]), int(told[2]))
        for one in named:
            found.setdefault(one, {})[paragraph] = None
    return {one: list(paragraphs) for one, paragraphs in found.items()}


def _paragraph(element: Element | None) -> Element | None:
    while element is not None and element.tag != "p":
        element = element.getparent()
    return element


def part(element: Element) -> Element | None:
    """The article, sub-article or response that an element lies in."""
    return next(element.iterancestors("sub-article", "response", "article"), None)


def _nearest(named: Sequence[Element], xref: Element) -> Sequence[Element]:
    if len(named) < 2:
        return named
    around = part(xref)
    while around is not None:
        if own := [one for one in named if part(one) is around]:
            return own
        around = part(around)
    return named


def _range_start(xref: Element) -> str:
    """The last id of the xref before this one, where only "to" stands between them."""
    before = xref.getprevious()
    if before is None or before.tag != "xref" or not _FROM_TO.fullmatch(before.tail or ""):
        return ""
    return next(reversed(before.get("rid", "").split()), "")


class _Numbers:
    """The numbered floats of an article, in series: figures, supplementary figures, tables, each part its own."""

    def __init__(self, floats: Iterator[Element]) -> None:
        self._place: dict[Element, tuple[tuple[Element, str, str], int]] = {}
        self._series: dict[tuple[Element, str, str], dict[int, Element]] = {}
        for one in floats:
            label = _LABEL.fullmatch(said(one.find("label")) or "")
            if label:
                series, number = (part(one), one.tag, label[1].lower().rstrip(" .")), int(label[2])
                self._place[one] = series, number
                self._series.setdefault(series, {})[number] = one

    def between(self, first: Element, last: Element) -> list[Element]:
        """The floats between two of one series."""
        (series, low), (other, high) = self._place.get(first, (None, 0)), self._place.get(last, (None, 0))
        if series is None or series != other:
            return []
        return [one for n, one in self._series[series].items() if low < n < high]

    def told(self, named: Element, low: int, high: int) -> list[Element]:
        """The floats of a range that is told in words and begins with the number of `named`."""
        series, number = self._place.get(named, (None, 0))
        if series is None or number != low or high not in self._series[series]:
            return []
        return [one for n, one in self._series[series].items() if low < n <= high]
