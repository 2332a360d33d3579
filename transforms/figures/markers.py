"""Candidates for panel labels in a caption: every place where one may stand, and how it stands there.

The invariant: a marker is a span of the caption, and a place without evidence is told as such; nothing is decided here.

>>> [(m.labels, m.place) for m in markers("CT (A) and MRI (B).", "paren", "upper")]
[(('A',), 'after'), (('B',), 'after')]
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from transforms.figures.labels import expand, pattern

Place = Literal["start", "before", "gap", "after", "open"]
"""start: at the beginning of a sentence or clause; before: of what follows, within a clause; gap: before a word in
capitals with no stop in front; after: of what stands in front; open: cannot be told"""


@dataclass(frozen=True)
class Marker:
    """Labels at a place of the caption; `end` is behind brackets and what follows them (colon, comma, "shows")."""

    start: int
    end: int
    labels: tuple[str, ...]
    place: Place


SHOWS = r"(?:\s+(?:shows?|showing|depicts?|illustrates?|represents?|displays?|demonstrates?|presents?)\b)?"
_STYLES = {
    # (A)  (A–C)  (irradiance, panels A and B)  (a; list of what it shows)
    "paren": r"\(\s*(?:(?:[^()]{0,60}[,;]\s*)?[Pp]anels?\s+)?(?P<set>SET)(?:[;,:]\s[^()]{0,200})?\s*\)",
    "half": r"(?<![\w(\-])(?P<set>SET)\)(?=\s)",
    "dot": r"(?<![\w(\-.])(?P<set>SET)\.(?=\s+\S)",
    "comma": r"(?<![\w(\-])(?P<set>SET),(?=\s)",
    "colon": r"(?<![\w(\-])(?P<set>SET)(?:\s?[:=](?=\s)|\s[-–—](?=\s))",
    "panel": rf"\b[Pp]anels?\s+\(?(?P<set>SET)\)?{SHOWS}",
    "figure": rf"\b(?:[Ff]ig(?:ure|\.)?\s*)?\d+\s?-?\(?(?P<set>SET)\)?(?:\s*[:.,)](?=\s)|(?<=\w){SHOWS}(?=\s[a-z]))",
    "bare": r"(?<![\w(\-])(?P<set>SET)(?=\s+NEXT)",
}
STYLES = tuple(_STYLES)
SIDES = r"(?:(?:upper|lower|top|bottom|middle|far)[\s-]+)?(?:left|right|cent(?:er|re)|middle)|upper|lower|top|bottom"
_THING = r"(?:\s+(?:panels?|images?|columns?|rows?|side|figures?|pictures?|plots?|graphs?))"
_SIDE = re.compile(
    rf"\(\s*(?:(?:the\s+)?(?P<a>{SIDES}){_THING}?|[^()]{{0,60}}[,;]\s*(?P<b>{SIDES}){_THING})\s*\)"
    rf"|\b(?P<c>{SIDES})(?:{_THING}{SHOWS}|{_THING}?\s*[:=]|{_THING}?,)", re.IGNORECASE,
)
_STOP = re.compile(r"(?:\b(?:figs?|figures?|vs|approx|ca|cf|e\.g|i\.e|no|refs?|resp)\.|[^.:;!?])$", re.IGNORECASE)
_JOINT = re.compile(r"(?:,|\b(?:and|or|but|while|whereas|as well as|versus|vs\.?))$", re.IGNORECASE)
OPENS = re.compile(
    r"(?:\b(?:of|for|in|after|before|by|with|without|at|from|to|on|between|under|during|using|as|than|via|show|shows|"
    r"showing|showed|demonstrates?|demonstrating|reveals?|revealed|revealing|include|including|are|is|were|was)"
    r"(?:\s+(?:the|a|an|either|both|their|its))?|[–—])$", re.IGNORECASE,
)
_JOINS = re.compile(r"(?:and|or|but|while|whereas)\b", re.IGNORECASE)


def markers(caption: str, style: str, family: str) -> list[Marker]:
    """All places where labels of a family stand in a style, in order. Neighbours with nothing in between are one."""
    following = r"\w" if family == "lower" else r"(?:[A-Z][\w-]|A\s)"
    words = _STYLES[style].replace("SET", pattern(family)).replace("NEXT", following)
    form, found, at = re.compile(words), [], 0
    while match := form.search(caption, at):
        labels = expand(match["set"], family) or _first(match["set"], family, style)
        at = match.end() if labels else match.start("set") + 1  # in "×40; 3, liver" only the 3 is a label
        if labels is None:
            continue
        marker = Marker(*match.span(), labels, _place(caption, *match.span()))
        if _may_stand(marker, style, family, caption):
            found.append(replace(marker, place="gap") if style == "half" and marker.place == "open" else marker)
    return [_with_stop(m, caption) for m in _joined(found, caption, family)]


def side_markers(caption: str) -> list[Marker]:
    """Places where a side is named as a panel: (left), Left: …, Upper right panel, …"""
    found = []
    for match in _SIDE.finditer(caption):
        place: Place = _place(caption, *match.span())
        within = caption.count("(", 0, match.start()) > caption.count(")", 0, match.start())
        if match["c"] and (within or place not in ("start", "before")):
            continue
        word: str = match["a"] or match["b"] or match["c"]
        name = re.sub(r"[\s-]+", " ", word.lower()).replace("centre", "center")
        found.append(Marker(*match.span(), (name,), place))
    return [_with_stop(m, caption) for m in found]


def _first(words: str, family: str, style: str) -> tuple[str, ...] | None:
    """The label of "(A, H&E)", where it only looks like a set of them."""
    head = re.match(r"(\w+)[,;]", words)
    return expand(head[1], family) if head and style == "paren" else None


def _may_stand(marker: Marker, style: str, family: str, caption: str) -> bool:
    """Without brackets a letter is a label only where a sentence or clause begins; "A, CT and B, MRI" in capitals."""
    if style == "paren" or marker.place == "start":
        return True
    if style == "half":  # not the end of "(group B)"
        before = caption[: marker.start]
        return marker.place != "after" and before.count("(") <= before.count(")")
    return style in ("comma", "colon") and marker.place == "before" and family == "upper"


def _place(caption: str, start: int, end: int) -> Place:
    before, after = caption[:start].rstrip(), caption[end:].lstrip()
    if not before or not _STOP.search(before[-12:]):
        return "start"
    closed = not after or after[0] in ".,;:)" or bool(_JOINS.match(after))
    if _JOINT.search(before[-12:]) or OPENS.search(before[-24:]):
        return "open" if closed else "before"
    if closed:
        return "after"
    # "… per gene (C) Venn diagrams": a stop was forgotten, unless the word is an abbreviation
    return "gap" if re.match(r"[A-Z][a-z]+\b", after) else "open"


def _joined(found: list[Marker], caption: str, family: str) -> Iterator[Marker]:
    """`(A), (B)` and `(C)–(E)` as one marker."""
    last: Marker | None = None
    for marker in found:
        if last is not None:
            between = caption[last.end : marker.start].strip()
            near = re.fullmatch(r"(?P<to>[-–—~]|to)|[,&]|,?\s*and|", between)
            run = expand(f"{last.labels[-1]}{'–' if near and near['to'] else ','}{marker.labels[0]}", family)
            if near and run is not None:
                labels = (*last.labels[:-1], *run, *marker.labels[1:])
                last = Marker(last.start, marker.end, labels, _place(caption, last.start, marker.end))
                continue
            yield last
        last = marker
    if last is not None:
        yield last


def _with_stop(marker: Marker, caption: str) -> Marker:
    """The marker with the stop behind it, where it leads: `(A): CT`, `A. CT`, `(A), CT`."""
    if marker.place not in ("start", "before"):
        return marker
    tail = re.match(r"\s*[:.,–—-]?(?=\s)\s*", caption[marker.end :])
    return marker if tail is None else replace(marker, end=marker.end + tail.end())
