"""What a caption says of each panel: found by grammar alone, no model, no list of journals.

The invariant: every span is an offset into the caption as given, so every part is made of its words; where the grammar
is not sure there is no split, and the whole caption is common to all panels.

>>> parts = split("CT (A) and MRI (B) of the liver.").parts
>>> [(part.labels, [caption[a:b] for a, b in part.spans]) for part in parts]
[(('A',), ['CT', 'of the liver.']), (('B',), ['MRI', 'of the liver.'])]

How it decides. Every style (in brackets, with a colon, bold letters gone bare …) and family (A, a, i, 1) gives
candidates; those that can be counted from the first without a gap form a run, and the run with the best standing wins.
A run of one label is none, and neither is a run that leaves a label standing first in a sentence unaccounted for.
Then each sentence is read by itself: labels lead ("(A) CT and (B) MRI"), or follow ("CT (A) and MRI (B)"), or, where
that cannot be told, the sentence speaks of all of its labels. Sentences without a label belong to the labels before
them, up to the first that speaks of the figure ("Scale bar", "Data are", abbreviations …), or to all panels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transforms.figures.cutting import divide, trimmed
from transforms.figures.labels import FAMILIES, in_sequence, rank
from transforms.figures.markers import STYLES, Marker, markers, side_markers
from transforms.figures.sentences import Span

LEADS = ("start", "before", "gap")
KEPT = 64
"""How many unfinished runs are followed at a time; captions made to have more lose a run, never a word."""
_WEIGHT = {"start": 3.0, "before": 2.0, "gap": 2.0, "after": 2.0, "open": 1.0}
_STYLE = {"bare": 0.8, "half": 0.9, "colon": 0.9, "comma": 0.9, "dot": 0.9}
_OPPOSITE = (("left", "right"), ("top", "bottom"), ("upper", "lower"))


@dataclass(frozen=True)
class Part:
    """What is said of one panel, or of several together."""

    labels: tuple[str, ...]
    """as the caption writes them; sides ("left", "upper right") in lower case"""
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Split:
    """A caption, divided."""

    parts: tuple[Part, ...]
    common: tuple[Span, ...]
    """what is said of the figure as a whole: title, scale bars, abbreviations; everything where there are no parts"""
    confidence: float
    """0 (no split) to 1"""
    grammar: str = "none"
    """style and family of the labels, for people"""

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label, in the order of the caption."""
        return tuple(label for part in self.parts for label in part.labels)


@dataclass(frozen=True)
class _Run:
    markers: tuple[Marker, ...]
    labels: frozenset[str]
    weight: float


def split(caption: str) -> Split:
    """Divide a caption among its panels. Any text is fine; one that is not divided has no parts and confidence 0."""
    best = max(_readings(caption), key=lambda found: found.confidence, default=None)
    return best or unsplit(caption)


def unsplit(caption: str) -> Split:
    """The caption as one piece that is common to all panels."""
    whole = trimmed(caption, 0, len(caption))
    return Split((), (whole,) if whole else (), 0.0)


def _readings(caption: str) -> Iterator[Split]:
    """Every way to read the caption that holds together; of equally sure ones the first is the best."""
    for style in STYLES:
        for family in FAMILIES if style == "paren" else FAMILIES[:-1]:
            found = markers(caption, style, family)
            run, sure = _run(found, family)
            if run is not None and (made := _divided(caption, run, family)):
                yield Split(*made, round(sure * _STYLE.get(style, 1.0), 3), f"{style} {family}")
    sides = _sides(side_markers(caption))
    if sides and (made := _divided(caption, sides, "side")):
        yield Split(*made, 0.6, "side")


def _run(found: Sequence[Marker], family: str) -> tuple[tuple[Marker, ...] | None, float]:
    """The markers that make up the run of labels, and how sure that is."""
    leading = [m for m in found if m.place in LEADS]
    run = _best(leading, family)
    everywhere = _best(found, family)
    if run is None or (everywhere is not None and _adds(run, everywhere)):
        run = everywhere
    if run is None:
        return None, 0.0
    if family == "letter" and len({label[0].isupper() for label in run.labels}) == 1:
        return None, 0.0  # read as upper or lower already
    first = [m for m in found if m.place == "start"]
    if any(not run.labels.issuperset(m.labels) for m in first):
        return None, 0.0  # a label that stands first and does not fit: the count is wrong somewhere
    if len(run.markers) == 1 and (len(run.labels) == 1 or run.markers[0].place != "start"):
        return None, 0.0
    sure = 0.7 + 0.1 * min(map(_WEIGHT.__getitem__, (m.place for m in run.markers)))
    sure -= 0.3 * (family in ("digit", "letter")) + 0.05 * (family == "roman") + 0.1 * (len(run.markers) == 1)
    again = [m for m in first if m not in run.markers and _is_repeat(m, run.markers)]
    return tuple(sorted([*run.markers, *again], key=lambda m: m.start)), sure - 0.2 * bool(again)


def _best(found: Sequence[Marker], family: str) -> _Run | None:
    """The run that counts furthest, of those the best placed: each marker brings the next label and none twice."""
    order = in_sequence((label for m in found for label in m.labels), family)
    runs: dict[frozenset[str], _Run] = {frozenset(): _Run((), frozenset(), 0.0)}
    for marker in found:
        new = frozenset(marker.labels)
        for run in list(runs.values()):
            if new & run.labels or not new <= set(order):
                continue
            if marker.labels[0] != next(label for label in order if label not in run.labels):
                continue
            longer = _Run((*run.markers, marker), run.labels | new, run.weight + len(new) * _WEIGHT[marker.place])
            if longer.labels not in runs or runs[longer.labels].weight < longer.weight:
                runs[longer.labels] = longer
        if len(runs) > KEPT:
            runs = dict(sorted(runs.items(), key=lambda item: (-len(item[0]), -item[1].weight))[:KEPT])
    whole = [run for run in runs.values() if run.markers and run.labels == frozenset(order[: len(run.labels)])]
    return max(whole, key=lambda run: (len(run.labels), run.weight), default=None)


def _adds(leading: _Run, everywhere: _Run) -> bool:
    """Whether labels that do not lead continue the run in sentences of their own, as "… in males (C)" after "(B) …"."""
    more = [m for m in everywhere.markers if m not in leading.markers]
    return (
        everywhere.labels > leading.labels
        and set(leading.markers) <= set(everywhere.markers)
        and not any(m.place == "start" for m in leading.markers if m.start < more[-1].start)
    )


def _is_repeat(marker: Marker, run: Sequence[Marker]) -> bool:
    """Whether a label comes back first in a sentence, outside of a part that speaks of several ("(A–B) … (A) …")."""
    before = [m for m in run if m.start < marker.start]
    return bool(before) and not set(marker.labels) < set(before[-1].labels)


def _sides(found: Sequence[Marker]) -> tuple[Marker, ...] | None:
    """Sides that are named once each, with their opposites."""
    times = Counter(m.labels[0] for m in found)
    words = {word for name in times for word in name.split()}
    paired = any(a in words and b in words for a, b in _OPPOSITE)
    return tuple(found) if paired and max(times.values()) == 1 else None


def _divided(
    caption: str, run: Sequence[Marker], family: str
) -> tuple[tuple[Part, ...], tuple[Span, ...]] | None:
    """Parts and common spans, or None where a label would get no words, or all would get the same."""
    said, common = divide(caption, (0, len(caption)), run)
    for marker in run:
        if len(marker.labels) > 1 and family != "side":
            _refine(caption, marker, said, family)
    if any(not re.search(r"\w{2}", " ".join(caption[a:b] for a, b in spans)) for spans in said.values()):
        return None
    together: dict[tuple[Span, ...], list[str]] = {}
    for label, spans in said.items():
        together.setdefault(tuple(sorted(spans)), []).append(label)
    if len(together) == 1 and len(run) > 1:
        return None
    return tuple(Part(tuple(labels), spans) for spans, labels in together.items()), tuple(common)


def _refine(caption: str, marker: Marker, said: dict[str, list[Span]], family: str) -> None:
    """Divide what is said of several panels further: "(A–C) Venn diagrams of (A) …; (B) …; (C) …"."""
    spans = said[marker.labels[0]]
    if not spans or any(said[label] != spans for label in marker.labels):
        return
    region = (marker.end, max(end for _, end in spans))
    inner = [
        m for m in markers(caption, "paren", family)
        if region[0] <= m.start < region[1] and set(m.labels) < set(marker.labels) and m.place in LEADS
    ]
    names = [label for m in inner for label in m.labels]
    if names != sorted(names, key=lambda label: rank(label, family)) or set(names) != set(marker.labels):
        return
    finer, shared = divide(caption, region, inner)
    if all(finer.values()):
        said.update({label: [*shared, *own] for label, own in finer.items()})
