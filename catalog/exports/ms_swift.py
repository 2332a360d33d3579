"""ms-swift: `swift.jsonl` with messages, images and objects, and the images beside it under `images/`.

Boxes are in pixels of the stored image (`bbox_type: real`), which ms-swift turns into what a model wants. In messages
each stands as `<bbox>`, each name of a region as `<ref-object>`; there are as many as `objects` lists. With `locate` a
last turn names the regions and where they are. Images are `images/NAME`: train with ROOT_IMAGE_DIR set to the folder.

>>> swift sft --dataset OUT/swift.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from catalog.exports import NO_CAPTION, Counts, inside, picture
from catalog.exports.conversations import BOX, TOKEN, TalkParams, Turn, dialogues, safe
from catalog.selection import Row

NAME = "ms_swift"
REQUIRES: dict[str, str] = {}


class Params(TalkParams):
    """What the turns say."""

    locate: bool = Field(True, description="end a caption's record with a turn that names all regions with their boxes")
    locate_question: str = Field("Which regions does the image show, and where?", description="the question of it")


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write swift.jsonl and images/. Samples of which nothing is written are left out and counted."""
    counts = Counts()
    (out / "images").mkdir()
    with open(out / "swift.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            suffix, data = picture(row)
            name = f"images/{row.name}.{suffix}"
            records = [_record(row, name, tail, talk, params) for tail, talk in dialogues(row, params)]
            if not records:
                counts.left_out[NO_CAPTION] += 1
                continue
            (out / name).write_bytes(data)
            counts.add(row)
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return counts


def _record(row: Row, name: str, tail: str, talk: list[Turn], params: Params) -> dict[str, Any]:
    said = [part for turn in talk for part in (("user", turn.question), ("assistant", turn.answer))]
    refs: list[str] = []
    boxes = [list(turn.box) for turn in talk if turn.box is not None and BOX in turn.question]
    messages = [
        {"role": role, "content": text.replace(BOX, "<bbox>", 1) if role == "user" else text} for role, text in said
    ]
    found = [(safe(roi["label"]), box) for roi in row.rois if (box := inside(roi["box"], row))]
    if params.locate and not tail and found:
        answer = "\n".join(["<ref-object><bbox>"] * len(found))
        messages += [{"role": "user", "content": params.locate_question}, {"role": "assistant", "content": answer}]
        refs += [label for label, _ in found]
        boxes += [box for _, box in found]
    messages[0]["content"] = TOKEN + messages[0]["content"]
    record: dict[str, Any] = {"id": row.id + tail, "messages": messages, "images": [name]}
    if boxes:
        record["objects"] = {"ref": refs, "bbox": boxes, "bbox_type": "real", "image_id": [0] * len(boxes)}
    return record
