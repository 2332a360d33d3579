"""Panel letters of a compound figure: marks of letter size, read one by one, of which the best sequence is kept.

The invariant: a letter is what the recogniser read, or none. Of several marks that read as one letter the one with the
best score wins; letters count only as a sequence that starts at its first (A, B, C … or a, b … or 1, 2 …), so that a
stray "C" of a plot is none.

>>> [letter.text for letter in sequence(read(page, marks(page, largest=40)), least=0.5)]
['A', 'B', 'C']
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from transforms.pictures.gutters import Box, Mask, Page
from transforms.pictures.ocr import read_line

DARK, LIGHT = 110, 190
"""Grey levels that a letter is darker, or lighter, than."""
CONTRAST = 60
"""Grey levels between a letter and what is around it."""
SMALLEST = 7
"""Height in pixels of the smallest letter that is read."""
SHAPE = re.compile(r"[\[(]?([A-Za-z]|[0-9]{1,2}|[ivx]{1,4})[\])]?[.:,]?")
UPPER, LOWER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
NUMBERS = tuple(str(number) for number in range(1, 31))
ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
LOOKALIKE = {"0": "O", "1": "I", "l": "I", "|": "I"}


@dataclass(frozen=True)
class Letter:
    """A mark and what it reads as; `text` is None where nothing was read."""

    text: str | None
    box: Box
    score: float = 0.0
    bracketed: bool = False

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]


def marks(page: Page, largest: float) -> list[Box]:
    """Boxes of all that could be a letter, up to `largest` pixels high: small, alone, and unlike what is around it."""
    found = [box for mask in (page.grey < DARK, page.grey > LIGHT) for box in _marks(page, mask, largest)]
    return sorted(set(found), key=lambda box: (box[1], box[0], box[3], box[2]))


def _marks(page: Page, mask: Mask, largest: float) -> Iterator[Box]:
    from scipy import ndimage

    pieces, _ = ndimage.label(mask, np.ones((3, 3)))
    boxes = [
        (columns.start, rows.start, columns.stop, rows.stop) for rows, columns in ndimage.find_objects(pieces)
        if rows.stop - rows.start <= largest and columns.stop - columns.start <= 2.5 * largest
    ]
    for box in _joined([box for box in boxes if box[3] - box[1] > 2]):
        tall, wide = box[3] - box[1], box[2] - box[0]
        if SMALLEST <= tall <= largest and 0.1 * tall <= wide <= 2.2 * tall and _alone(page, mask, box):
            yield box


def _joined(boxes: Sequence[Box]) -> list[Box]:
    """Boxes, with those joined that are side by side as the letters of a word are: "(", "a" and ")"."""
    owner: dict[tuple[int, int], list[int]] = {}
    cell = 24
    for at, (x0, y0, _, _) in enumerate(boxes):
        owner.setdefault((x0 // cell, y0 // cell), []).append(at)
    group = list(range(len(boxes)))

    def root(at: int) -> int:
        while group[at] != at:
            group[at] = group[group[at]]
            at = group[at]
        return at

    for at, (x0, y0, x1, y1) in enumerate(boxes):
        reach = max(2, round(0.3 * (y1 - y0)))
        for column in range((x0 - reach) // cell, (x1 + reach) // cell + 1):
            for row in range(y0 // cell - 1, y1 // cell + 1):
                for other in owner.get((column, row), ()):
                    a0, b0, _, b1 = boxes[other]
                    if other != at and x0 <= a0 <= x1 + reach and min(y1, b1) > max(y0, b0):
                        group[root(other)] = root(at)
    merged: dict[int, Box] = {}
    for at, box in enumerate(boxes):
        old = merged.get(root(at), box)
        merged[root(at)] = (min(old[0], box[0]), min(old[1], box[1]), max(old[2], box[2]), max(old[3], box[3]))
    return list(merged.values())


def _alone(page: Page, mask: Mask, box: Box) -> bool:
    """Whether the ring around a mark is free of its tone, and differs from it."""
    x0, y0, x1, y1 = box
    pad = max(2, round(0.12 * (y1 - y0)))
    around = mask[max(0, y0 - pad) : y1 + pad, max(0, x0 - pad) : x1 + pad]
    inside = mask[y0:y1, x0:x1]
    if int(around.sum()) - int(inside.sum()) > 0.03 * (around.size - inside.size):
        return False
    ring = _ring(page, box, pad)
    return abs(ring - float(page.grey[y0:y1, x0:x1][inside].mean())) > CONTRAST


def _ring(page: Page, box: Box, pad: int) -> float:
    """Mean grey level around a box."""
    x0, y0, x1, y1 = box
    around, inside = page.grey[max(0, y0 - pad) : y1 + pad, max(0, x0 - pad) : x1 + pad], page.grey[y0:y1, x0:x1]
    return float((around.sum(dtype=float) - inside.sum(dtype=float)) / max(1, around.size - inside.size))


def clear(page: Page, box: Box) -> bool:
    """Whether nothing of a mark's tone stands to its left or above it: so with a panel's letter, hardly in text."""
    x0, y0, x1, y1 = box
    tall = y1 - y0
    dark = float(page.grey[y0:y1, x0:x1].mean()) < _ring(page, box, 2)
    before = page.grey[max(0, y0 - tall // 4) : y1 + tall // 4, max(0, x0 - round(1.5 * tall)) : x0]
    above = page.grey[max(0, y0 - round(0.6 * tall)) : y0, max(0, x0 - tall // 2) : x1 + tall // 2]
    return not any((part < DARK if dark else part > LIGHT).any() for part in (before, above))


def read(page: Page, boxes: Iterable[Box], threads: int = 1) -> list[Letter]:
    """Each mark read on its own; marks that are no letter come back with the text None."""
    return [_read(page, box, threads) for box in boxes]


def _read(page: Page, box: Box, threads: int) -> Letter:
    x0, y0, x1, y1 = box
    pad = max(2, round(0.2 * (y1 - y0)))
    line = read_line(page.pixels[max(0, y0 - pad) : y1 + pad, max(0, x0 - pad) : x1 + pad], threads)
    match = SHAPE.fullmatch(line.text.replace(" ", ""))
    if match is None:
        return Letter(None, box)
    return Letter(match[1], box, line.score, bracketed=line.text != match[1])


def best(candidates: Sequence[Letter], least: float) -> Letter | None:
    """The candidate with the highest score, the first among equals; None where none was read at `least` or better."""
    good = [letter for letter in candidates if letter.text is not None and letter.score >= least]
    return max(good, key=lambda letter: letter.score) if good else None


def sequence(found: Sequence[Letter], least: float, pictures: int = 0, numbers: bool = False) -> list[Letter]:
    """The longest run of letters of one kind and one height that starts at the first letter, one mark a letter.

    Among as many letters as there are `pictures`, up to a third may be missing. Numbers without brackets count only if
    `numbers` says so, as the axes of plots are full of them. Empty where there are less than two.
    """
    runs = [
        _run(candidates, names, height, least, pictures)
        for candidates, names in _alphabets(found, numbers)
        for height in sorted({_size(letter) for letter in candidates})
    ]
    return max(runs, key=lambda run: (len(run), sum(letter.score for letter in run)), default=[])


def gaps(letters: Sequence[Letter]) -> bool:
    """Whether letters are missing in a sequence."""
    texts = [letter.text for letter in letters]
    return not any(texts == list(names[: len(texts)]) for names in (UPPER, LOWER, NUMBERS, ROMAN))


def _alphabets(found: Sequence[Letter], numbers: bool) -> Iterator[tuple[list[Letter], Sequence[str]]]:
    read = [letter for letter in found if letter.text is not None]
    yield [_as(letter, str.upper) for letter in read], UPPER
    yield [_as(letter, str.lower) for letter in read], LOWER
    bracketed = [letter for letter in read if letter.bracketed]
    yield read if numbers else bracketed, NUMBERS
    yield bracketed, ROMAN


def _as(letter: Letter, case: Any) -> Letter:
    """The letter in the other case, where a crop cannot tell the two apart (c and C)."""
    text = letter.text or ""
    if text.lower() in "ckopsuvwxyz" or text in LOOKALIKE:
        text = case(LOOKALIKE.get(text, text))
    return replace(letter, text=text)


def _size(letter: Letter) -> int:
    """Height, as if it were that of a capital."""
    low = letter.text is not None and letter.text in "acegmnopqrsuvwxyz" and not letter.bracketed
    return round(letter.height * (1.35 if low else 1))


def _run(
    candidates: Sequence[Letter], names: Sequence[str], height: int, least: float, pictures: int
) -> list[Letter]:
    alike = [letter for letter in candidates if 0.8 * height <= _size(letter) <= 1.25 * height]
    chosen: list[Letter] = []
    complete: list[Letter] = []
    for at, name in enumerate(names):
        fitting = [letter for letter in alike if letter.text == name and not any(_before(letter, c) for c in chosen)]
        letter = best(fitting, least)
        if letter is not None:
            chosen.append(letter)
        elif at >= pictures:
            break
        if letter is not None and 3 * (at + 1 - len(chosen)) <= at + 1 and (at < pictures or len(chosen) == at + 1):
            complete = list(chosen)
    return complete if len(complete) >= (3 if gaps(complete) else 2) else []


def _before(letter: Letter, other: Letter) -> bool:
    """Whether a letter stands left of the other or above it, where no later letter stands in any reading order."""
    (x0, y0, x1, y1), (a0, b0, a1, b1) = letter.box, other.box
    left, above = x1 <= a0, y1 <= b0
    return (left and y0 < b1) or (above and x0 < a1)
