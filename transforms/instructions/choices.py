"""Multiple choice: a question with its options in one text, the letter of the answer, and back.

The invariant: exactly one option is the answer, options differ, and the place of the answer depends on ids alone,
evenly over the letters. The text is the question, then one option a line:

    Which view does this image show?
    A. coronal
    B. axial
    C. sagittal

and the answer is its line: "B. axial".

>>> read_choices("Which?\\nA. liver\\nB. spleen")
('Which?', {'A': 'liver', 'B': 'spleen'})
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infra.keys import key

LETTERS = "ABCDEFGH"
_OPTION = re.compile(r"([A-H])\. (.+)")


@dataclass(frozen=True)
class Choices:
    """A question with options; `answer` is the line of the right one."""

    text: str
    answer: str


def write_choices(question: str, right: str, wrong: Sequence[str], *ids: str) -> Choices:
    """Options in an order decided by the hash of the ids.

    Raises ValueError for no wrong option, options that are equal but for case, and line feeds in what is written.
    """
    options = [right, *wrong]
    if not wrong or len({option.casefold() for option in options}) < len(options) or len(options) > len(LETTERS):
        raise ValueError(f"these are no options to choose from: {options}")
    if any("\n" in words for words in (question, *options)):
        raise ValueError("a question and its options are one line each")
    rest = sorted(wrong, key=lambda option: key("option", *ids, option))
    place = int(key("place", question, *ids), 16) % len(options)
    lines = [f"{LETTERS[n]}. {option}" for n, option in enumerate([*rest[:place], right, *rest[place:]])]
    return Choices("\n".join([question, *lines]), lines[place])


def read_choices(text: str) -> tuple[str, Mapping[str, str]]:
    """The question and its options by letter. Raises ValueError where a text is no such thing."""
    question, *lines = text.split("\n")
    found = [_OPTION.fullmatch(line) for line in lines]
    letters = "".join(match[1] if match else "?" for match in found)
    if len(lines) < 2 or letters != LETTERS[: len(lines)]:
        raise ValueError(f"no question with options A, B …: {text[:60]!r}")
    return question, {match[1]: match[2] for match in found if match}
