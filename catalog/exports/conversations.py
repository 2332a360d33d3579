"""What is said about a sample as questions and answers: what formats of conversations have in common.

The invariant: of the words of a text nothing is lost but the power to stand for a picture or a box: placeholders such
as <image> lose their brackets, so that their number is the number of pictures and boxes given.

>>> [[turn.answer for turn in talk] for talk in dialogues(row, TalkParams())]
[['A chest radiograph.', 'Lungs clear.']]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from catalog.exports import CAPTION_KINDS, inside
from catalog.selection import Row

TOKEN = "<image>"
_PLACEHOLDERS = re.compile(r"<(image|video|audio|bbox|ref-object|cot-process|start-image|end-image)>")
BOX = "{box}"
Exchange = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A question and its answer, as rows of texts."""


class TalkParams(BaseModel):
    """What the turns say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    caption: tuple[str, ...] = Field(CAPTION_KINDS, description="kinds of text for the first answer")
    question: str = Field("Describe this image.", description="the first question")
    region_question: str = Field("What is in the region {box}?", description="the question before a region's text")
    captions: bool = Field(True, description="write a record for each sample's caption, and its regions")
    regions: bool = Field(True, description="add a turn for each text about one region")
    instructions: bool = Field(
        False, description="write a record for each question with its answer, and for each conversation"
    )

    @field_validator("question", "region_question")
    @classmethod
    def _holds_no_token(cls, question: str) -> str:
        if _PLACEHOLDERS.search(question):
            raise ValueError("leave <image> and other placeholders out, the exporter puts them where they belong")
        return question


@dataclass(frozen=True)
class Turn:
    """A question with its answer; `box` is what BOX in the question stands for, in pixels of the stored image."""

    question: str
    answer: str
    box: Sequence[int] | None = None


def dialogues(row: Row, params: TalkParams) -> Iterator[tuple[str, list[Turn]]]:
    """(what tells it from others of the sample, turns) for each record of a sample."""
    caption = row.caption(params.caption) if params.captions else None
    if caption is not None:
        turns = [Turn(params.question, safe(caption["text"]))]
        boxes = {roi["roi_id"]: inside(roi["box"], row) for roi in row.rois}
        for text in row.texts if params.regions else ():
            box = boxes.get(text["roi_ids"][0]) if len(text["roi_ids"]) == 1 and text["kind"] == "region" else None
            if box is not None:
                turns.append(Turn(params.region_question, safe(text["text"]), box))
        yield "", turns
    for talk in talks(row.texts) if params.instructions else ():
        yield f"-{talk[0][0]['text_id']}", [Turn(safe(q["text"]), safe(a["text"])) for q, a in talk]


def safe(text: str) -> str:
    """A text whose placeholders are plain words."""
    while (plain := _PLACEHOLDERS.sub(r"\1", text)) != text:
        text = plain
    return text


def talks(texts: Sequence[Mapping[str, Any]]) -> Iterator[list[Exchange]]:
    """The conversations among the texts of a sample, by the evidence that ties them: an answer's begins with its
    question, a later question's with the answer before it."""
    questions = {f"text:{t['text_id']}": t for t in texts if t["kind"] in ("question", "choices")}
    answers = {f"text:{t['text_id']}": t for t in texts if t["kind"] == "answer" and _tie(t) in questions}
    following = {_tie(question): name for name, question in questions.items() if _tie(question) in answers}
    first = {_tie(answer): name for name, answer in reversed(answers.items())}
    for name, answer in answers.items():
        if _tie(questions[_tie(answer)]) in answers:
            continue
        talk, seen = [(questions[_tie(answer)], answer)], {name}
        while (question := following.get(name)) in first and (name := first[question]) not in seen:
            talk.append((questions[question], answers[name]))
            seen.add(name)
        yield talk


def _tie(text: Mapping[str, Any]) -> str:
    return str(text["evidence"][0]) if text["evidence"] else ""


def share_box(box: Sequence[int], image: Mapping[str, Any]) -> str:
    """A box as shares of the image's width and height; what reaches beyond the image ends at its edge."""
    sides = (image["width"], image["height"]) * 2
    shares = (min(max(at / side, 0), 1) for at, side in zip(box, sides, strict=True))
    return f"[{', '.join(f'{share:.3f}' for share in shares)}]"
