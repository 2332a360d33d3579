"""LLaMA-Factory: `medloom.json` in ShareGPT form, `dataset_info.json` that names it, and images/ beside them.

Each record has as many `<image>` as images: one, in the first message. Boxes stand in the words of a question, as
shares of the image's width and height with three decimals.

>>> llamafactory-cli train … --dataset_dir OUT --dataset medloom
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from catalog.exports import NO_CAPTION, Counts, picture
from catalog.exports.conversations import BOX, TOKEN, TalkParams, Turn, dialogues, share_box
from catalog.selection import Row

NAME = "llama_factory"
REQUIRES: dict[str, str] = {}
INFO = {
    "medloom": {
        "file_name": "medloom.json", "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
}


class Params(TalkParams):
    """What the turns say."""


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write medloom.json, dataset_info.json and images/. Samples of which nothing is written are counted."""
    counts, written = Counts(), 0
    (out / "images").mkdir()
    with open(out / "medloom.json", "w", encoding="utf-8") as file:
        file.write("[")
        for row in rows:
            suffix, data = picture(row)
            name = f"images/{row.name}.{suffix}"
            records = [_record(row, name, tail, talk) for tail, talk in dialogues(row, params)]
            if not records:
                counts.left_out[NO_CAPTION] += 1
                continue
            (out / name).write_bytes(data)
            counts.add(row)
            for record in records:
                file.write(",\n" if written else "\n")
                file.write(json.dumps(record, ensure_ascii=False))
                written += 1
        file.write("\n]\n")
    (out / "dataset_info.json").write_text(json.dumps(INFO, indent=1) + "\n")
    return counts


def _record(row: Row, name: str, tail: str, talk: list[Turn]) -> dict[str, Any]:
    messages = []
    for turn in talk:
        box = share_box(turn.box, row.image) if turn.box is not None else BOX
        messages += [{"role": "user", "content": turn.question.replace(BOX, box)},
                     {"role": "assistant", "content": turn.answer}]
    messages[0]["content"] = TOKEN + messages[0]["content"]
    return {"id": row.id + tail, "messages": messages, "images": [name]}
