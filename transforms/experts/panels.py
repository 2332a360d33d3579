"""Expert: the panels of a compound figure, cut along its gutters and told apart by their letters.

The invariant: panels do not overlap; a letter is one that was read, else the label is "panel"; a figure that is one
picture has no panels. The box of a panel is its picture, with a letter that stands within it and without one that
stands beside it in the gutter (trust "box": edges are those of what is drawn, not of an invisible frame).

Method: a recursive XY-cut (Nagy & Seth, ICPR 1984) cuts only where both sides hold pictures: things that hang together,
of a least size, and of a size like those of the other side. A plot's axis labels, legend or bars are none. Then letters
are read where letters of such pictures stand (transforms/pictures/letters.py). Where there are some, the page is cut
anew until each part holds one of them, at the gutters that fit best how the letters stand; where none shows, before a
letter. Measured by tests/benchmarks/panels.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from transforms.decoded import Pixels, Region
from transforms.experts.card import Card
from transforms.pictures.gutters import Box, Cut, Page, parts
from transforms.pictures.imagefile import shrink
from transforms.pictures.letters import Letter, clear, gaps, marks, read, sequence
from transforms.pictures.ocr import RECOGNISER
from transforms.pictures.ocr import REQUIRES as OCR_REQUIRES

TALLEST = 24
"""Pixels that a letter may be high in a figure however small."""

READ_AT_ONCE = 10
"""So many marks are read before it is asked whether all letters are there."""

NAME = "panels"
VERSION = "1"
CARD = Card(family="classical", trust="box", value_space="rgb8", licence_weights="Apache-2.0")
"""Its labels are the letters it reads."""
TRUST = CARD.trust
REQUIRES: Mapping[str, str] = {**OCR_REQUIRES, "scipy": "scipy"}
WEIGHTS_SHA256 = RECOGNISER[1]


class Params(BaseModel):
    """What a recipe may set for the panel expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_side: int = Field(1280, ge=200, description="longer side, in pixels, that figures are shrunk to before")
    min_side: float = Field(
        0.09, gt=0, lt=1, description="least side of a panel without a letter, as a share of the root of the figure's "
        "area",
    )
    balance: float = Field(
        0.1, ge=0, le=1, description="least area of the pictures on one side of a cut, as a share of those on the "
        "other, where no letter tells",
    )
    letter_score: float = Field(0.5, ge=0, le=1, description="letters read with less certainty are none")
    letter_height: float = Field(0.08, gt=0, lt=0.5, description="largest letter, as a share of that root")
    max_marks: int = Field(40, ge=1, description="so many marks are read, those most like a panel's letter first")
    threads: int = Field(1, ge=1, exclude=True, description="threads of the recogniser")


def applies(image: Mapping[str, Any]) -> str | None:
    """Why the expert does not look at this image (a row of `images`), or None when it does."""
    if image.get("article_id") is None:
        return "looks at figures of articles only"
    if image.get("parent_id") is not None:
        return "is a panel already"
    return None


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> Iterator[Region]:
    """The panels, in reading order; none where the figure is one picture.

    `label` is the letter without brackets, or "panel"; `score` is how surely the letter was read, None without one.
    """
    small, scale = shrink(pixels, params.max_side)
    page = Page(small)
    found = _panels(page, params)
    if len(found) < 2:
        return
    height, width = pixels.shape[:2]
    for panel in _in_reading_order(found):
        x0, y0, x1, y1 = (edge / scale for edge in panel.box)
        yield Region(
            label=panel.letter.text if panel.letter and panel.letter.text else "panel", role="panel",
            box=(x0, y0, min(x1, float(width)), min(y1, float(height))),
            score=round(panel.letter.score, 4) if panel.letter and panel.letter.text else None,
        )


@dataclass(frozen=True)
class Panel:
    """A part of the page and its letter."""

    box: Box
    letter: Letter | None


def _panels(page: Page, params: Params) -> list[Panel]:
    whole = page.trimmed(page.whole)
    if whole is None:
        return []
    plain = [box for box, _ in _Splitter(page, params).split(whole, ())]
    seen = marks(page, max(TALLEST, params.letter_height * page.side))
    rank = {mark: min(_place(mark, box) for box in plain) + (not clear(page, mark)) for mark in seen}
    seen.sort(key=lambda mark: (rank[mark], mark[1] - mark[3], mark))
    found: list[Letter] = []
    letters: list[Letter] = []
    for start in range(0, params.max_marks, READ_AT_ONCE):
        found += read(page, seen[: params.max_marks][start : start + READ_AT_ONCE], params.threads)
        letters = _letters([letter for letter in found if rank[letter.box] < 3], plain, params)
        if len(letters) >= max(2, len(plain)) and not gaps(letters):
            break
    letters = [*letters, *_unread(letters, seen, plain)] if letters else letters
    splitter = _Splitter(page, params, letters, _below(letters, plain))
    return [Panel(box, letter) for box, letter in splitter.split(whole, letters)]


def _letters(found: Sequence[Letter], plain: Sequence[Box], params: Params) -> list[Letter]:
    """The letters: those that stand where letters do, else all that fit; numbers only where there is one a picture."""
    placed = [letter for letter in found if min(_place(letter.box, box) for box in plain) < 2]
    for among in (placed, found):
        if letters := sequence(among, params.letter_score, len(plain)):
            return letters
    numbers = sequence(placed, params.letter_score, len(plain), numbers=True)
    one_each = all(sum(_holds(box, number) for number in numbers) == 1 for box in plain)
    return numbers if one_each else []


def _place(mark: Box, picture: Box) -> int:
    """How likely a mark is the letter of a picture by where it stands: 0 at the upper left, 1 at another usual place, 2
    elsewhere."""
    near = 3 * (mark[3] - mark[1])
    left, right = mark[0] - picture[0], picture[2] - mark[2]
    above, below = mark[1] - picture[1], picture[3] - mark[3]
    if -near < left < near and -near < above < near:
        return 0
    if min(abs(above), abs(below)) < near and (min(abs(left), abs(right)) < near or abs(left - right) < near):
        return 1
    return 2


def _below(letters: Sequence[Letter], plain: Sequence[Box]) -> bool:
    """Whether most letters are nearer to the lower rim of their picture than to the upper one."""
    placed = [(letter, box) for letter in letters for box in plain if _holds(box, letter)]
    lower = sum(box[3] - letter.box[3] < letter.box[1] - box[1] for letter, box in placed)
    return 2 * lower > len(placed)


def _unread(letters: Sequence[Letter], seen: Sequence[Box], plain: Sequence[Box]) -> list[Letter]:
    """Letters that were not read: marks that stand in pictures without one just where the letters stand in theirs."""
    height = sorted(letter.height for letter in letters)[len(letters) // 2]
    placed = [(letter, box) for letter in letters for box in plain if _holds(box, letter)]
    free = [box for box in plain if not any(_holds(box, letter) for letter in letters)]
    unread = []
    for box in free:
        for mark in seen:
            candidate = Letter(None, mark)
            if _holds(box, candidate) and 0.7 * height <= candidate.height <= 1.3 * height and any(
                abs(mark[0] - box[0] - letter.box[0] + other[0]) < height / 2
                and min(abs(mark[at] - box[at] - letter.box[at] + other[at]) for at in (1, 3)) < height / 2
                for letter, other in placed
            ):
                unread.append(candidate)
                break
    return unread


@dataclass(frozen=True)
class _Splitter:
    """Cuts a page into panels: by the letters, where there are any."""

    page: Page
    params: Params
    letters: Sequence[Letter] = ()
    below: bool = False
    """Whether the letters stand under their pictures, or at their lower rim."""

    def split(self, box: Box, letters: Sequence[Letter]) -> Iterator[tuple[Box, Letter | None]]:
        """The panels within a box that holds these letters."""
        cut = self._between(box, letters) if len(letters) > 1 else None
        if cut is None and (not letters or (len(letters) == 1 and gaps(self.letters))):
            cut = self._plain(box, strict=bool(letters))
        if cut is None:
            letter = letters[0] if letters else None
            if (tight := self._without(box, letter)) is not None:
                yield tight, letter
            return
        for part in parts(box, cut):
            if (trimmed := self.page.trimmed(part)) is not None:
                yield from self.split(trimmed, [letter for letter in letters if _holds(part, letter)])

    def _all_cuts(self, box: Box) -> list[Cut]:
        return [*self.page.cuts(box, 0), *self.page.cuts(box, 1)]

    # where letters tell

    def _between(self, box: Box, letters: Sequence[Letter]) -> Cut | None:
        """The best cut that has letters on both of its sides and goes through none."""
        cuts = [cut for cut in self._all_cuts(box) if self._separates(cut, box, letters)]
        scored = [(self._fit(cut, letters), cut) for cut in cuts]
        if not cuts or not self.page.dense(box):
            scored += self._guesses(box, letters)
        return max(scored, key=lambda s: (s[0], -s[1].axis, -s[1].start))[1] if scored else None

    def _separates(self, cut: Cut, box: Box, letters: Sequence[Letter]) -> bool:
        """Whether a cut has letters on both sides, goes through none, and leaves room for a picture beside each."""
        room = 2 * max(letter.height for letter in letters)
        wide = all(min(part[2] - part[0], part[3] - part[1]) >= room for part in parts(box, cut))
        return wide and {_side(cut, letter) for letter in letters} == {-1, 1}

    def _fit(self, cut: Cut, letters: Sequence[Letter]) -> float:
        """How well a cut fits how the letters stand: wide, and right before the next letter (behind the last, where
        letters stand below)."""
        room = 0.04 * self.page.side
        edges = [letter.box[1 - cut.axis] for letter in letters if _side(cut, letter) > 0]
        away = min(edges) - cut.stop
        if self.below:
            away = 0 if cut.axis else cut.start - max(letter.box[3] for letter in letters if _side(cut, letter) < 0)
        return min(cut.width, room) / room - min(away, 4 * room) / (2 * room) + (cut.kind == "edge") * 0.3

    def _guesses(self, box: Box, letters: Sequence[Letter]) -> Iterator[tuple[float, Cut]]:
        """Lines before a letter, and how well they fit: between tiles that touch, where the picture changes most; on
        paper, where the line goes through the least ink."""
        for axis in (0, 1):
            low = 1 - axis
            offset = min(letter.box[low] for letter in letters) - box[low]
            for letter in letters:
                if self.page.dense(box):
                    at, score = self.page.edge(box, axis, letter.box[low] - offset - letter.height, letter.box[low])
                else:
                    at = max(box[low], letter.box[low] - min(offset, letter.height // 2) - 1)
                    score = -1 - 10 * self.page.crossing(box, axis, at)
                cut = Cut(axis, at, at, "guess")
                if self._separates(cut, box, letters):
                    yield score, cut

    # where no letter tells

    def _plain(self, box: Box, strict: bool = False) -> Cut | None:
        """The widest cut between two pictures; `strict`: between two that are much alike."""
        cuts = [cut for cut in self._all_cuts(box) if cut.kind != "shadow"]
        cuts.sort(key=lambda cut: (-cut.width, cut.kind, cut.axis, cut.start))
        least = (1.5 if strict else 1) * self.params.min_side * self.page.side
        balance = max(0.4, self.params.balance) if strict else self.params.balance
        return next((cut for cut in cuts if self._parts_pictures(box, cut, least, balance)), None)

    def _parts_pictures(self, box: Box, cut: Cut, least: float, balance: float) -> bool:
        sides = []
        for part in parts(box, cut):
            if min(part[2] - part[0], part[3] - part[1]) < least or not self.page.varied(part):
                return False
            sides.append(self.page.pictures(part, least))
        return min(sides) > 0 and min(sides) >= balance * max(sides)

    def _without(self, box: Box, letter: Letter | None) -> Box | None:
        """The box without a letter that stands beside the picture."""
        if letter is None:
            return box
        x0, y0, x1, y1 = box
        a0, b0, a1, b1 = letter.box
        options = [
            trimmed for part in ((x0, b1, x1, y1), (x0, y0, x1, b0), (a1, y0, x1, y1), (x0, y0, a0, y1))
            if part[2] > part[0] and part[3] > part[1] and (trimmed := self.page.trimmed(part)) is not None
            and self._beside(box, part, letter)
        ]
        return max(options, key=_area, default=box)

    def _beside(self, box: Box, part: Box, letter: Letter) -> bool:
        """Whether what is left away with the letter is the letter and nothing else."""
        ink = self.page.ink
        x0, y0, x1, y1 = box
        p0, q0, p1, q1 = part
        all_ink, kept = int(ink[y0:y1, x0:x1].sum()), int(ink[q0:q1, p0:p1].sum())
        a0, b0, a1, b1 = letter.box
        pad = letter.height // 2
        own = int(ink[max(y0, b0 - pad) : min(y1, b1 + pad), max(x0, a0 - pad) : min(x1, a1 + pad)].sum())
        return all_ink - kept <= own


def _holds(part: Box, letter: Letter) -> bool:
    x, y = (letter.box[0] + letter.box[2]) / 2, (letter.box[1] + letter.box[3]) / 2
    return part[0] <= x < part[2] and part[1] <= y < part[3]


def _side(cut: Cut, letter: Letter) -> int:
    """-1: the letter lies before the cut, 1: behind it, 0: the cut goes through it."""
    low, high = letter.box[1 - cut.axis], letter.box[3 - cut.axis]
    return -1 if high <= cut.start else 1 if low >= cut.stop else 0


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _in_reading_order(panels: Sequence[Panel]) -> list[Panel]:
    """Row by row; panels belong to one row where they overlap by half of the lower one's height."""
    rows: list[list[Panel]] = []
    for panel in sorted(panels, key=lambda panel: (panel.box[1], panel.box[0])):
        top = rows[-1][0].box if rows else None
        height = panel.box[3] - panel.box[1]
        if top and top[3] - panel.box[1] > 0.5 * min(height, top[3] - top[1]):
            rows[-1].append(panel)
        else:
            rows.append([panel])
    return [panel for row in rows for panel in sorted(row, key=lambda panel: (panel.box[0], panel.box[1]))]
