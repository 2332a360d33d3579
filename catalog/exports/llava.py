"""LLaVA JSON: `llava.json` with conversations, and the images beside it under `images/`.

Turns alternate human and gpt, the first human turn holds the one `<image>`; region texts follow as further turns whose
boxes are normalised to 0..1 of the image, with three decimals, as LLaVA's own grounding data writes them. `image` is
the name under the folder that training takes as its image folder: OUT/images.

With `instructions`, every question with its answer is a record of its own, and a conversation of several turns is one:
`id` is then SAMPLE-TEXT (the first question's text_id), `generator` says who asked, and `evidence` lists for each
answer the ids of the rows that decide it; training ignores both. Questions of one sample stand apart since one would
give away the answer to its twin.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from catalog.exports import CAPTION_KINDS, NO_CAPTION, Counts
from catalog.exports.conversations import TOKEN, share_box, talks
from catalog.selection import Row
from infra.keys import sha256

NAME = "llava"
REQUIRES: dict[str, str] = {}
INSTRUCTIONS = Path(__file__).with_name("instructions.yaml")
BRIEF_WORDS = 30
"""Answers of fewer words get a question that asks for a brief one."""


class Params(BaseModel):
    """What the turns say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    caption: tuple[str, ...] = Field(CAPTION_KINDS, description="kinds of text for the first answer")
    question: str = Field("Describe this image.", description="the first human turn, after <image>")
    vary: bool = Field(
        False, description="draw the first human turn from instructions.yaml instead, by the sample's id: a brief one "
        "before answers of under 30 words, a detailed one before longer ones",
    )
    region_question: str = Field("What is in the region {box}?", description="the human turn before a region's text")
    regions: bool = Field(True, description="add a turn for each text about one region")

    captions: bool = Field(True, description="write a record for each sample's caption")
    instructions: bool = Field(
        False, description="write a record for each question with its answer, and for each conversation"
    )
    asked_by: tuple[str, ...] = Field(
        (), description="only questions whose generator starts with one of these, such as questions@1/side; (): all"
    )

    @field_validator("question", "region_question")
    @classmethod
    def _holds_no_token(cls, question: str) -> str:
        if TOKEN in question:
            raise ValueError(f"leave {TOKEN} out, the exporter puts it where it belongs")
        return question


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write llava.json and images/. Samples of which nothing is written are left out and counted."""
    counts = Counts()
    (out / "images").mkdir()
    with open(out / "llava.json", "w", encoding="utf-8") as file:
        file.write("[")
        for row in rows:
            name = f"{row.name}.{row.suffix}"
            records = list(_records(row, name, params))
            if not records:
                counts.left_out[NO_CAPTION] += 1
                continue
            (out / "images" / name).write_bytes(row.image["image"]["bytes"])
            file.write(",\n" if counts.written else "\n")
            file.write(",\n".join(json.dumps(record, ensure_ascii=False) for record in records))
            counts.add(row)
        file.write("\n]\n")
    return counts


def _records(row: Row, name: str, params: Params) -> Iterator[dict[str, Any]]:
    caption = row.caption(params.caption) if params.captions else None
    if caption is not None:
        yield {"id": row.id, "image": name, "conversations": _turns(row, str(caption["text"]), params)}
    for talk in talks(row.texts) if params.instructions else ():
        asked = talk[0][0]
        if not asked["generator"].startswith(params.asked_by or ""):
            continue
        turns = [part for question, answer in talk for part in (("human", question["text"]), ("gpt", answer["text"]))]
        values = [{"from": who, "value": _safe(value)} for who, value in turns]
        values[0]["value"] = f"{TOKEN}\n{values[0]['value']}"
        yield {
            "id": f"{row.id}-{asked['text_id']}", "image": name, "conversations": values,
            "generator": asked["generator"], "evidence": [list(answer["evidence"][1:]) for _, answer in talk],
        }


def _turns(row: Row, caption: str, params: Params) -> list[dict[str, str]]:
    question = _instruction(row.id, caption) if params.vary else params.question
    turns = [("human", f"{TOKEN}\n{question}"), ("gpt", _safe(caption))]
    boxes = {roi["roi_id"]: roi["box"] for roi in row.rois}
    for text in row.texts if params.regions else ():
        if text["kind"] == "region" and len(text["roi_ids"]) == 1 and text["roi_ids"][0] in boxes:
            where = share_box(boxes[text["roi_ids"][0]], row.image)
            turns.append(("human", params.region_question.replace("{box}", where)))
            turns.append(("gpt", _safe(text["text"])))
    return [{"from": who, "value": value} for who, value in turns]


def _instruction(sample: str, answer: str) -> str:
    kind = _instructions()["brief" if len(answer.split()) < BRIEF_WORDS else "detailed"]
    return kind[int(sha256(sample.encode()), 16) % len(kind)]


@cache
def _instructions() -> Mapping[str, Sequence[str]]:
    read: Mapping[str, Sequence[str]] = yaml.safe_load(INSTRUCTIONS.read_text(encoding="utf-8"))
    return read


def _safe(text: str) -> str:
    """A text that holds the image token would make two images of one."""
    return text.replace(TOKEN, "image")
