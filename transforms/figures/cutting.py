"""Cutting a caption at its labels: which words belong to which panel, once it is known which labels are meant.

The invariant: spans lie in the region given, hold no label, and begin and end with words; words that belong to several
panels are given to each of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from transforms.figures.markers import OPENS, Marker
from transforms.figures.sentences import Span, sentences

Said = dict[str, list[Span]]

_EDGE = re.compile(r"^(?:[\s,;:–—-]+|(?:and|or|but|while|whereas|as well as)\b\s*)+", re.IGNORECASE)
_TAIL = re.compile(r"(?:[\s,;:–—(-]+|[\s,;]+(?:and|or|but|while|whereas|as well as))+$", re.IGNORECASE)
_JOINED = re.compile(r"\s*(?:[,;.]|(?:and|or|but|while|whereas|versus|vs\.?)\b|[A-Z]|$)")
_FIGURE_NUMBER = re.compile(r"(?:supp\w*\s+)?fig(?:ure|\.)?\s*S?\d+[.:]?", re.IGNORECASE)
_OF_ALL = (
    r"(?:scale|error|colou?r)?\s?bars?\b", r"(?:all|both)\s+(?:data|images|panels|values|experiments)\b",
    r"(?:the\s+)?(?:raw\s+)?data\s+(?:are|is|was|were|represent|presented|shown|in)\b", r"values\s+(?:are|represent)\b",
    r"results?\s+(?:are|were|represent)\b", r"means?\s*(?:and|±|\+|values)", r"(?:original\s+)?magnifications?\b",
    r"abbreviations?\b", r"[*#†‡§+]", r"p[\s-]*values?\b", r"p\s?[<=>≤]", r"n\s?=",
    r"statistic\w*\b", r"significan\w+\b", r"asterisks?\b",
    r"see\s+(?:also|text|main|methods|materials|supplement\w*)\b", r"additional\s+details\b", r"source\s+data\b",
    r"(?:for|in)\s+(?:all|each|both)\s+(?:panels?|images?|figures?|cases)\b",
    r"(?:adapted|reproduced|reprinted|modified|courtesy|source:|photo|images?\s+courtesy)\b", r"presented\s+are\b",
    r"[A-Za-z][\w/+-]{0,11}\s?[,:=]\s?[^.;]{2,80};\s?[\w/+-]{1,12}\s?[,:=]\s?\w",
)
_CUES = [re.compile(cue, re.IGNORECASE) for cue in _OF_ALL]
"""Beginnings of sentences that speak of the figure as a whole; the last is a list of abbreviations."""
_OF_PANELS = re.compile(r"\b[Pp]anels?\s+\(?[A-Za-z]\b")


def divide(caption: str, region: Span, run: Sequence[Marker]) -> tuple[Said, list[Span]]:
    """What a region of the caption says of each label of the run, and what of all of them."""
    said: Said = {label: [] for marker in run for label in marker.labels}
    common: list[Span] = []
    heading: Span | None = None
    head: Span | None = None
    open_labels: tuple[str, ...] = ()
    units = list(_units(caption, region, run))
    last = max((n for n, (_, inside) in enumerate(units) if inside), default=0)
    for number, (unit, inside) in enumerate(units):
        following = units[number + 1][1] if number + 1 < len(units) else []
        if inside:
            if heading:
                _add(said, [label for m in inside for label in m.labels], heading)
            if caption[unit[0] : inside[0].start].strip():
                head = trimmed(caption, unit[0], inside[0].start) if inside[0].place == "before" else None
            elif head and caption[: unit[0]].rstrip().endswith(";"):  # "Masses of A, LipH; B, LipN"
                _add(said, [label for m in inside for label in m.labels], head)
            open_labels = _read(caption, unit, inside, said)
        elif following and caption[: unit[1]].rstrip().endswith(":"):
            heading = trimmed(caption, *unit)
            open_labels = ()
        elif not open_labels or (number > last and _speaks_of_all(caption, unit, units[:number])):
            open_labels = ()
            common += _common(caption, unit)
        else:
            _add(said, open_labels, trimmed(caption, *unit))
    if heading and all(heading in spans for spans in said.values()):
        said = {label: [span for span in spans if span != heading] for label, spans in said.items()}
        common.insert(0, heading)
    for_all = [span for span in next(iter(said.values()), []) if all(span in spans for spans in said.values())]
    if len(said) > 1 and all(set(spans) - set(for_all) for spans in said.values()):
        later = [span for span in for_all if span[0] > max(m.start for m in run) and _starts_sentence(caption, span)]
        said = {label: [span for span in spans if span not in later] for label, spans in said.items()}
        common += later
    return said, sorted(common)


def trimmed(caption: str, start: int, end: int) -> Span | None:
    """A span without the white space, separators and conjunctions around it; None where nothing is left."""
    words = caption[start:end]
    if lead := _EDGE.match(words):
        start += lead.end()
    words = caption[start:end]
    if tail := _TAIL.search(words):
        end = start + tail.start()
    return (start, end) if re.search(r"\w", caption[start:end]) else None


def _add(said: Said, labels: Sequence[str], span: Span | None) -> None:
    if span is not None:
        for label in labels:
            if span not in said[label]:
                said[label].append(span)


def _common(caption: str, unit: Span) -> list[Span]:
    span = trimmed(caption, *unit)
    return [] if span is None or _FIGURE_NUMBER.fullmatch(caption[slice(*span)]) else [span]


def _starts_sentence(caption: str, span: Span) -> bool:
    return caption[: span[0]].rstrip().endswith((".", "!", "?"))


def _units(caption: str, region: Span, run: Sequence[Marker]) -> Iterator[tuple[Span, list[Marker]]]:
    """Sentences of the region, cut also before a label that stands first, each with its markers."""
    offset, end = region
    ends = {offset + b for _, b in sentences(caption[offset:end])}
    first = {m.start for m in run if m.place in ("start", "gap")}
    cuts = sorted({offset, end, *first, *(e for e in ends if not any(m.start < e < m.end for m in run))})
    for a, b in pairwise(cuts):
        if caption[a:b].strip():
            yield (a, b), [m for m in run if a <= m.start < b]


def _speaks_of_all(caption: str, unit: Span, before: Sequence[tuple[Span, list[Marker]]]) -> bool:
    """Whether a sentence after the last label speaks of the figure, as none in the middle did with such a beginning."""
    words = caption[slice(*unit)].lstrip()
    if _OF_PANELS.search(words):
        return True
    cue = next((cue for cue in _CUES if cue.match(words)), None)
    at = next((n for n, (_, inside) in enumerate(before) if inside), 0)
    middle = max((n for n, (_, inside) in enumerate(before) if inside), default=0)
    earlier = [caption[slice(*span)].lstrip() for span, inside in before[at:middle] if not inside]
    return cue is not None and not any(cue.match(sentence) for sentence in earlier)


def _read(caption: str, unit: Span, inside: Sequence[Marker], said: Said) -> tuple[str, ...]:
    """Give the words of a sentence to its labels. Returns the labels that sentences behind it go on about."""
    labels = tuple(dict.fromkeys(label for m in inside for label in m.labels))
    leading = sum(m.place in ("start", "before", "gap") for m in inside)
    following = sum(m.place == "after" for m in inside)
    first = inside[0].place in ("start", "gap")
    if first or leading > following:
        if _lead(caption, unit, inside, said):
            return labels
    elif following > leading and len(inside) == 1:
        # the rest of a sentence with one label speaks of it too
        _add(said, labels, trimmed(caption, unit[0], inside[0].start))
        _add(said, labels, trimmed(caption, inside[0].end, unit[1]))
        return ()
    elif following > leading and _follow(caption, unit, inside, said):
        return ()
    for start, end in zip([unit[0], *(m.end for m in inside)], [*(m.start for m in inside), unit[1]], strict=True):
        _add(said, labels, trimmed(caption, start, end))
    return labels if first else ()


def _lead(caption: str, unit: Span, inside: Sequence[Marker], said: Said) -> bool:
    """Labels in front of their words. False, and nothing done, where one has none."""
    ends = [*(m.start for m in inside[1:]), unit[1]]
    own = [trimmed(caption, m.end, end) for m, end in zip(inside, ends, strict=True)]
    if None in own[:-1] or (own[-1] is None and len(inside) > 1):
        return False
    if any(OPENS.search(caption[slice(*span)]) for span in own[:-1] if span):
        return False  # "(a) uptake in mice, and strains for mapping of (b) loss"
    head = trimmed(caption, unit[0], inside[0].start)
    for marker, span in zip(inside, own, strict=True):
        _add(said, marker.labels, head)
        _add(said, marker.labels, span)
    return True


def _follow(caption: str, unit: Span, inside: Sequence[Marker], said: Said) -> bool:
    """Labels behind their words. False, and nothing done, where the words between two belong to both sides."""
    starts = [unit[0], *(m.end for m in inside[:-1])]
    own = [trimmed(caption, start, m.start) for start, m in zip(starts, inside, strict=True)]
    if None in own or not all(_JOINED.match(caption[m.end :]) for m in inside[:-1]):
        return False
    tail = trimmed(caption, inside[-1].end, unit[1])
    for marker, span in zip(inside, own, strict=True):
        _add(said, marker.labels, span)
        _add(said, marker.labels, tail)
    return True
