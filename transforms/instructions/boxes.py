"""Boxes as text, in the four forms that grounded question sets use, and back.

The invariant: what is written can be read again. Read back, a box is the one that was written as long as no side of the
image is longer than `exact_up_to(form)` pixels, and within half a step of the form beyond.

    pixels    [12, 30, 118, 96]                        columns and rows of the stored image
    unit      [0.094, 0.234, 0.922, 0.750]             shares of width and height (LLaVA); more decimals where 3 are few
    thousand  [94, 234, 921, 749]                      the shares times 999, rounded
    tagged    <ref>liver</ref><box>[[94, 234, 921, 749]]</box>   the same in the tags of MedRegInstruct

All are x0, y0, x1, y1, half-open, of the image as it is stored: who resizes it must scale `pixels`, and nothing else.
Several boxes stand in a row, parted by ", " (in `tagged` inside the one pair of brackets).

>>> write_boxes([(12, 30, 118, 96)], (128, 128), "unit"), read_boxes("[0.094, 0.234, 0.922, 0.750]", (128, 128), "unit")
('[0.094, 0.234, 0.922, 0.750]', [(12, 30, 118, 96)])
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Box = tuple[int, int, int, int]
Form = Literal["pixels", "unit", "thousand", "tagged"]

STEPS = 999
"""The largest number of `thousand` and `tagged`: 0 to 999, as MedRegInstruct writes them."""
_ONE = re.compile(r"\[\s*(\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){3})\s*\]")


def write_boxes(boxes: Sequence[Sequence[int]], size: tuple[int, int], form: Form, label: str | None = None) -> str:
    """Boxes (x0, y0, x1, y1 in pixels, half-open) of an image of `size` (width, height) as text.

    `label` stands in the tags of `tagged` where there is one. What reaches beyond the image ends at its edge. Raises
    ValueError for no box, and for a box that is empty or lies outside.
    """
    if not boxes:
        raise ValueError("there is no box to write")
    written = ", ".join(f"[{', '.join(_numbers(box, size, form))}]" for box in boxes)
    if form != "tagged":
        return written
    return f"{f'<ref>{label}</ref>' if label else ''}<box>[{written}]</box>"


def read_boxes(text: str, size: tuple[int, int], form: Form) -> list[Box]:
    """The boxes of a text, in order, in pixels of an image of `size` (width, height); [] where there are none.

    Raises ValueError for numbers that the form cannot hold.
    """
    sides = size * 2
    largest = {"pixels": None, "unit": 1}.get(form, STEPS)
    found: list[Box] = []
    for match in _ONE.finditer(text):
        numbers = [float(number) for number in match[1].split(",")]
        most = [float(side) for side in sides] if largest is None else [float(largest)] * 4
        if any(number > limit for number, limit in zip(numbers, most, strict=True)):
            raise ValueError(f"{match[0]} is no box of the form {form!r} in an image of {size[0]} by {size[1]}")
        at = [_half_up(number / limit * side) for number, limit, side in zip(numbers, most, sides, strict=True)]
        found.append((at[0], at[1], at[2], at[3]))
    return found


def exact_up_to(form: Form) -> int | None:
    """The longest side, in pixels, up to which reading gives what was written; None: any."""
    return STEPS if form in ("thousand", "tagged") else None


def _numbers(box: Sequence[int], size: tuple[int, int], form: Form) -> list[str]:
    sides = size * 2
    inside = [min(max(at, 0), side) for at, side in zip(box, sides, strict=True)]
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise ValueError(f"{list(box)} has no area in an image of {size[0]} by {size[1]}")
    if form == "pixels":
        return [str(at) for at in inside]
    shares = [at / side for at, side in zip(inside, sides, strict=True)]
    if form == "unit":
        decimals = max(3, len(str(max(size))))
        return [f"{share:.{decimals}f}" for share in shares]
    return [str(_half_up(share * STEPS)) for share in shares]


def _half_up(value: float) -> int:
    """Rounded; halves go up, so that the result does not depend on whether the whole number is even."""
    return int(value + 0.5)
