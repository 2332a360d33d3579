"""Conversations are read the way their trainers read them, and every turn is held against the catalog."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from exporthome import all_held, caption, made_home  # noqa: F401
from PIL import Image

from catalog.exports import llava
from flows.export import run_export
from infra.errors import ConfigError


def test_llava_training_reads_every_turn(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """LazySupervisedDataset of llava/train/train.py: json.load, join of the image folder, roles, one image token."""
    out = tmp_path / "out"
    run_export(home, "true", "llava", out, None, [], licences="all")
    records = json.loads((out / "llava.json").read_text(encoding="utf-8"))
    assert {r["id"] for r in records} == {i for i, s in held.items() if caption(s)}
    regions = 0
    for record in records:
        kept = held[record["id"]]
        with Image.open(out / "images" / record["image"]) as image:
            assert image.size == (kept["width"], kept["height"])
        assert (out / "images" / record["image"]).read_bytes() == kept["image"]["bytes"]
        turns = record["conversations"]
        assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert [t["value"].count("<image>") for t in turns] == [1] + [0] * (len(turns) - 1)
        assert turns[0]["value"].startswith("<image>\n")
        assert turns[1]["value"] == str(caption(kept)).replace("<image>", "image")
        wanted = [t for t in kept["texts"] if t["kind"] == "region"]
        assert [t["value"] for t in turns[3::2]] == [t["text"] for t in wanted]
        boxes = {r["roi_id"]: r["box"] for r in kept["rois"]}
        for turn, text in zip(turns[2::2], wanted, strict=True):
            shares = [float(x) for x in re.findall(r"\d\.\d{3}", turn["value"])]
            sides = [kept["width"], kept["height"]] * 2
            true = [min(max(b / s, 0), 1) for b, s in zip(boxes[text["roi_ids"][0]], sides, strict=True)]
            assert shares == pytest.approx(true, abs=0.00051) and all(0 <= s <= 1 for s in shares)
            regions += 1
    assert regions == 11


def test_llava_varies_its_questions_by_sample_and_by_the_length_of_the_answer(home: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_export(home, "true", "llava", tmp_path / name, None, ["vary=true", "regions=false"])
    first, again = (json.loads((tmp_path / name / "llava.json").read_text()) for name in ("one", "two"))
    known = yaml.safe_load(llava.INSTRUCTIONS.read_text())
    asked = set()
    for record in first:
        question, answer = (turn["value"] for turn in record["conversations"][:2])
        kind = "brief" if len(answer.split()) < llava.BRIEF_WORDS else "detailed"
        assert question.removeprefix("<image>\n") in known[kind]
        asked.add(question)
    assert first == again and len(asked) > 1
    assert not any(llava.TOKEN in question for kind in known.values() for question in kind)


def test_llava_questions_cannot_break_the_format(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave <image> out"):
        run_export(home, "true", "llava", tmp_path / "out", None, ["question=<image> what?"])
    options = ["region_question=Braces {x} at {box} {0}?"]
    run_export(home, "true", "llava", tmp_path / "out", None, options, licences="all")
    turns = json.loads((tmp_path / "out" / "llava.json").read_text())[0]["conversations"]
    assert turns[2]["value"].startswith("Braces {x} at [0.")


def regions_of(kept: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """(text, box cut to the image) of the texts about one region."""
    boxes = {r["roi_id"]: r["box"] for r in kept["rois"]}
    sides = [kept["width"], kept["height"]] * 2
    found = [(t["text"], boxes[t["roi_ids"][0]]) for t in kept["texts"] if t["kind"] == "region"]
    return [(text, [min(max(b, 0), s) for b, s in zip(box, sides, strict=True)]) for text, box in found]


def plain(text: str) -> str:
    while "<image>" in text:
        text = text.replace("<image>", "image")
    return text


def test_swift_places_are_as_many_as_its_objects(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """As swift/template reads it: roles alternate, each <image>, <bbox>, <ref-object> takes the next of its list."""
    out = tmp_path / "out"
    said = run_export(home, "true", "ms_swift", out, None, [], licences="all")
    assert said.startswith("11 of 12") and "1 left out: no caption" in said
    records = [json.loads(line) for line in (out / "swift.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert {r["id"] for r in records} == {i for i, s in held.items() if caption(s)} and len(records) == 11
    for record in records:
        kept, messages, objects = held[record["id"]], record["messages"], record["objects"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        words = "".join(m["content"] for m in messages)
        counts = [words.count(token) for token in ("<image>", "<bbox>", "<ref-object>")]
        assert counts == [len(record["images"]), len(objects["bbox"]), len(objects["ref"])] and counts[0] == 1
        assert objects["bbox_type"] == "real" and messages[0]["content"].startswith("<image>")
        assert messages[1]["content"] == plain(str(caption(kept)))
        about = regions_of(kept)
        assert [m["content"] for m in messages[3:-2:2]] == [text for text, _ in about]
        all_boxes = [[min(max(b, 0), s) for b, s in zip(r["box"], [kept["width"], kept["height"]] * 2, strict=True)]
                     for r in kept["rois"]]
        assert objects["bbox"] == [box for _, box in about] + all_boxes
        assert objects["ref"] == [r["label"] for r in kept["rois"]]
        stored = (out / record["images"][0]).read_bytes()
        assert stored == kept["image"]["bytes"] or kept["image"]["bytes"].startswith(b"GIF")
        with Image.open(out / record["images"][0]) as image:
            assert image.size == (kept["width"], kept["height"]) and image.format in ("PNG", "JPEG", "WEBP")


def test_llama_factory_finds_its_columns(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """As llamafactory/data reads it: dataset_info.json, the columns and tags it names, media beside the file."""
    out = tmp_path / "out"
    run_export(home, "true", "llama_factory", out, None, [], licences="all")
    info = json.loads((out / "dataset_info.json").read_text())["medloom"]
    assert info["formatting"] == "sharegpt"
    tags, columns = info["tags"], info["columns"]
    import datasets

    loaded = datasets.load_dataset("json", data_files=str(out / info["file_name"]), split="train",
                                   cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 11
    for record in loaded:
        kept, messages = held[record["id"]], record[columns["messages"]]
        roles = [m[tags["role_tag"]] for m in messages]
        assert roles == [tags["user_tag"], tags["assistant_tag"]] * (len(messages) // 2)
        said = [m[tags["content_tag"]] for m in messages]
        assert "".join(said).count("<image>") == len(record[columns["images"]]) == 1
        assert said[1] == plain(str(caption(kept)))
        about = regions_of(kept)
        assert said[3::2] == [text for text, _ in about]
        for question, (_, box) in zip(said[2::2], about, strict=True):
            shares = [float(x) for x in re.findall(r"\d\.\d{3}", question)]
            sides = [kept["width"], kept["height"]] * 2
            assert shares == pytest.approx([b / s for b, s in zip(box, sides, strict=True)], abs=0.00051)
        assert (out / record[columns["images"]][0]).is_file()


@pytest.mark.parametrize("format", ["ms_swift", "llama_factory"])
def test_questions_of_conversations_hold_no_places(home: Path, tmp_path: Path, format: str) -> None:
    for option in ("question=<image> what?", "region_question=Is <bbox> it?"):
        with pytest.raises(ConfigError, match="leave <image> and other placeholders out"):
            run_export(home, "true", format, tmp_path / "out", None, [option])
