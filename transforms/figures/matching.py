"""Which panel is which: regions that a detector found, against the labels of a caption.

The invariant: a panel gets a label only where it was read in the picture, or where nothing that was read speaks against
it; each assignment says how it was made. Panels that cannot be told apart stay without a label.

>>> [a and (a.label, a.method) for a in assign([Panel((0, 0, 9, 9), "b"), Panel((9, 0, 18, 9), None)], ["A", "B"])]
[('B', 'read'), None]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

Box = tuple[int, int, int, int]

READ_ORDER, BLIND_ORDER, GEOMETRY = 0.8, 0.5, 0.7
"""How far an assignment may be believed: by order where letters were read too, where none was, and by place."""
SIDES = frozenset({"left", "right", "top", "bottom", "upper", "lower", "middle", "center"})


@dataclass(frozen=True)
class Panel:
    """A region of the figure; `letter` as it was read in it, or None."""

    box: Box
    letter: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Assigned:
    """The label of a panel, as the caption writes it (as it was read, where the caption does not have it)."""

    label: str
    method: str
    """read, order or geometry"""
    score: float


def assign(panels: Sequence[Panel], labels: Sequence[str]) -> list[Assigned | None]:
    """The label of each panel, in the order of the panels.

    Letters count first, in either case. The rest is given by reading order (rows, then columns; or columns, where only
    that agrees with the letters), but only where there are as many panels as labels and no letter contradicts. Labels
    that are sides go by the place of the panels.
    """
    panels = _single_letters(panels)
    if labels and all(set(label.split()) <= SIDES for label in labels):
        return _by_place(panels, labels)
    spelled = {label.casefold(): label for label in labels}
    found: list[Assigned | None] = [
        None if p.letter is None else
        Assigned(spelled.get(p.letter.casefold(), p.letter), "read", 1.0 if p.score is None else p.score)
        for p in panels
    ]
    unread = [n for n, panel in enumerate(panels) if panel.letter is None]
    if not unread or len(panels) != len(labels):
        return found
    for order in (_rows(panels), _rows([_turned(panel) for panel in panels])):
        if all((known := found[n]) is None or known.label == label for n, label in zip(order, labels, strict=True)):
            read = len(unread) < len(panels)
            for n, label in zip(order, labels, strict=True):
                found[n] = found[n] or Assigned(label, "order", READ_ORDER if read else BLIND_ORDER)
            break
    return found


def _single_letters(panels: Sequence[Panel]) -> list[Panel]:
    """A letter read twice counts where it was read best; of equals, nowhere."""
    best: dict[str, float] = {}
    times: Counter[tuple[str, float]] = Counter()
    for panel in panels:
        if panel.letter is not None:
            letter, score = panel.letter.casefold(), panel.score or 0.0
            best[letter] = max(best.get(letter, score), score)
            times[letter, score] += 1
    return [
        panel if panel.letter is None or (
            (panel.score or 0.0) == best[panel.letter.casefold()] and
            times[panel.letter.casefold(), panel.score or 0.0] == 1
        ) else replace(panel, letter=None)
        for panel in panels
    ]


def _rows(panels: Sequence[Panel]) -> list[int]:
    """Indexes in reading order: a panel joins a row where it shares half of the lower height with its first one."""
    rows: list[list[int]] = []
    for n in sorted(range(len(panels)), key=lambda n: (panels[n].box[1], panels[n].box[0])):
        top, bottom = panels[n].box[1], panels[n].box[3]
        for row in rows:
            first = panels[row[0]].box
            shared = min(bottom, first[3]) - max(top, first[1])
            if 2 * shared >= min(bottom - top, first[3] - first[1]):
                row.append(n)
                break
        else:
            rows.append([n])
    return [n for row in rows for n in sorted(row, key=lambda n: panels[n].box[0])]


def _turned(panel: Panel) -> Panel:
    """The panel with its axes swapped, so that rows become columns."""
    x0, y0, x1, y1 = panel.box
    return replace(panel, box=(y0, x0, y1, x1))


def _by_place(panels: Sequence[Panel], labels: Sequence[str]) -> list[Assigned | None]:
    """Sides by the centres of the panels, where each panel has one side and each side a panel."""
    nobody: list[Assigned | None] = [None] * len(panels)
    if len(panels) < 2:
        return nobody
    left, top = min(p.box[0] for p in panels), min(p.box[1] for p in panels)
    wide, tall = max(p.box[2] for p in panels) - left, max(p.box[3] for p in panels) - top
    chosen: list[str] = []
    for panel in panels:
        x0, y0, x1, y1 = panel.box
        across, down = ((x0 + x1) / 2 - left) / wide, ((y0 + y1) / 2 - top) / tall
        able = [label for label in labels if all(_lies(word, across, down) for word in label.split())]
        if len(able) != 1:
            return nobody
        chosen += able
    if set(chosen) != set(labels):
        return nobody
    return [Assigned(label, "geometry", GEOMETRY) for label in chosen]


def _lies(word: str, across: float, down: float) -> bool:
    """Whether a centre, as shares of the figure's width and height, lies where the word says."""
    if word in ("left", "right"):
        return across < 0.4 if word == "left" else across > 0.6
    if word in ("middle", "center"):
        return 0.4 <= across <= 0.6
    return down < 0.4 if word in ("top", "upper") else down > 0.6
