"""LLaVA JSON: `llava.json` with conversations, and the images beside it under `images/`.

Turns alternate human and gpt, the first human turn holds the one `<image>`; region texts follow as further turns whose
boxes are normalised to 0..1 of the image, with three decimals, as LLaVA's own grounding data writes them. `image` is
the name under the folder that training takes as its image folder: OUT/images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from catalog.exports import CAPTION_KINDS, Counts
from catalog.selection import Row
from infra.keys import sha256

NAME = "llava"
REQUIRES: dict[str, str] = {}
TOKEN = "<image>"
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

    @field_validator("question", "region_question")
    @classmethod
    def _holds_no_token(cls, question: str) -> str:
        if TOKEN in question:
            raise ValueError(f"leave {TOKEN} out, the exporter puts it where it belongs")
        return question


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write llava.json and images/. Samples without a caption are left out and counted."""
    counts = Counts()
    (out / "images").mkdir()
    with open(out / "llava.json", "w", encoding="utf-8") as file:
        file.write("[")
        for row in rows:
            caption = row.caption(params.caption)
            if caption is None:
                counts.without_caption += 1
                continue
            name = f"{row.name}.{row.suffix}"
            (out / "images" / name).write_bytes(row.image["image"]["bytes"])
            record = {"id": row.id, "image": name, "conversations": _turns(row, str(caption["text"]), params)}
            file.write(",\n" if counts.written else "\n")
            file.write(json.dumps(record, ensure_ascii=False))
            counts.add(row)
        file.write("\n]\n")
    return counts


def _turns(row: Row, caption: str, params: Params) -> list[dict[str, str]]:
    question = _instruction(row.id, caption) if params.vary else params.question
    turns = [("human", f"{TOKEN}\n{question}"), ("gpt", _safe(caption))]
    boxes = {roi["roi_id"]: roi["box"] for roi in row.rois}
    for text in row.texts if params.regions else ():
        if text["kind"] == "region" and len(text["roi_ids"]) == 1 and text["roi_ids"][0] in boxes:
            turns.append(("human", params.region_question.replace("{box}", _box(boxes[text["roi_ids"][0]], row.image))))
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


def _box(box: Sequence[int], image: Mapping[str, Any]) -> str:
    """A box as shares of the image's width and height; what reaches beyond the image ends at its edge."""
    sides = (image["width"], image["height"]) * 2
    shares = (min(max(at / side, 0), 1) for at, side in zip(box, sides, strict=True))
    return f"[{', '.join(f'{share:.3f}' for share in shares)}]"
