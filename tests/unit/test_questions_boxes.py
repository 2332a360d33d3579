"""Boxes as text: four forms, each read back to the pixel it was written from."""

from __future__ import annotations

import random
import re

import pytest

from transforms.instructions.boxes import STEPS, Form, exact_up_to, read_boxes, write_boxes

FORMS: tuple[Form, ...] = ("pixels", "unit", "thousand", "tagged")


@pytest.mark.parametrize("form", FORMS)
def test_every_box_of_every_size_is_read_back_as_it_was_written(form: Form) -> None:
    draw = random.Random(1)
    longest = exact_up_to(form) or 40_000
    for _ in range(4000):
        size = draw.randint(1, longest), draw.randint(1, longest)
        x0, y0 = draw.randrange(size[0]), draw.randrange(size[1])
        box = x0, y0, draw.randint(x0 + 1, size[0]), draw.randint(y0 + 1, size[1])
        assert read_boxes(write_boxes([box], size, form), size, form) == [box]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [1, 2, 7, 512, 998, STEPS])
def test_no_column_of_an_image_is_lost(form: Form, width: int) -> None:
    for x in range(width):
        assert read_boxes(write_boxes([(x, 0, x + 1, 1)], (width, 1), form), (width, 1), form) == [(x, 0, x + 1, 1)]


@pytest.mark.parametrize("form", ["thousand", "tagged"])
def test_beyond_a_thousand_pixels_the_error_is_half_a_step(form: Form) -> None:
    size = 5000, 3000
    for x in range(0, 4990, 7):
        [read] = read_boxes(write_boxes([(x, 5, x + 9, 40)], size, form), size, form)
        assert abs(read[0] - x) <= size[0] / STEPS / 2 + 0.5 and abs(read[1] - 5) <= size[1] / STEPS / 2 + 0.5


def test_the_four_forms() -> None:
    boxes, size = [(12, 30, 118, 96), (0, 0, 128, 128)], (128, 128)
    assert write_boxes(boxes, size, "pixels") == "[12, 30, 118, 96], [0, 0, 128, 128]"
    assert write_boxes(boxes, size, "unit") == "[0.094, 0.234, 0.922, 0.750], [0.000, 0.000, 1.000, 1.000]"
    assert write_boxes(boxes, size, "thousand") == "[94, 234, 921, 749], [0, 0, 999, 999]"
    tagged = write_boxes(boxes, size, "tagged", "liver")
    assert tagged == "<ref>liver</ref><box>[[94, 234, 921, 749], [0, 0, 999, 999]]</box>"
    assert read_boxes(f"They are at {tagged}.", size, "tagged") == boxes
    assert write_boxes(boxes[:1], size, "tagged") == "<box>[[94, 234, 921, 749]]</box>"


def test_one_box_in_two_sizes_of_an_image_has_one_text_but_in_pixels() -> None:
    """A box moves with its image: what users of MedReasoner and MedRegA had to find out."""
    small, large = ((10, 20, 30, 40), (100, 200)), ((40, 80, 120, 160), (400, 800))
    for form in FORMS:
        same = write_boxes([small[0]], small[1], form) == write_boxes([large[0]], large[1], form)
        assert same == (form != "pixels")


def test_what_is_no_box_is_refused() -> None:
    with pytest.raises(ValueError, match="no box"):
        write_boxes([], (10, 10), "unit")
    for outside in ((5, 5, 5, 9), (11, 0, 20, 5), (8, 3, 2, 9)):
        with pytest.raises(ValueError, match="no area"):
            write_boxes([outside], (10, 10), "unit")
    assert write_boxes([(-3, 2, 14, 9)], (10, 10), "pixels") == "[0, 2, 10, 9]"
    for text, form in (("[0, 0, 11, 3]", "pixels"), ("[0.1, 0.2, 1.5, 0.9]", "unit"), ("[0, 0, 1000, 3]", "thousand")):
        with pytest.raises(ValueError, match=re.escape(text)):
            read_boxes(text, (10, 10), form)
    assert read_boxes("nothing here [1, 2, 3]", (10, 10), "pixels") == []
