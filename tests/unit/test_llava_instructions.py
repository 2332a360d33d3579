"""Questions and conversations in the LLaVA export: tied by evidence, one record each, as training takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from makehome import Rows, make_home

from flows.export import run_export

ASKED = ("q1", "question", "Is this a CT image?", ["image:modality"], "questions@1/modality/closed")


def texts(rows: Rows) -> str:
    """Gives the first CT sample a pair, a multiple choice and a conversation; returns its id."""
    sample = str(next(row["sample_id"] for row in rows["images"] if row["modality"] == "CT"))
    told = [
        ASKED, ("a1", "answer", "Yes.", ["text:q1", "image:modality"], ASKED[4]),
        ("q2", "question", "Is this an MR image?", ["text:q1", "image:modality"], "questions@1/modality/adversarial"),
        ("a2", "answer", "No.", ["text:q2", "image:modality"], "questions@1/modality/adversarial"),
        ("c1", "choices", "Which <image>?\nA. x\nB. y", ["image:view"], "questions@1/view/choices"),
        ("a3", "answer", "B. y", ["text:c1", "image:view"], "questions@1/view/choices"),
        # a conversation whose ids sort the wrong way round
        ("z1", "question", "First?", ["text:src@0:9"], "chat@1"),
        ("y1", "answer", "One.", ["text:z1", "text:src@0:9"], "chat@1"),
        ("x1", "question", "Second?", ["text:y1", "text:src@10:19"], "chat@1"),
        ("w1", "answer", "Two.", ["text:x1", "text:src@10:19"], "chat@1"),
        ("v1", "question", "Third?", ["text:w1"], "chat@1"),
        ("lost", "answer", "To nothing.", ["text:gone"], "chat@1"), ("mute", "question", "Unanswered?", [], "chat@1"),
    ]
    rows["texts"] += [
        {"sample_id": sample, "text_id": id, "roi_ids": [], "kind": kind, "language": "en", "text": text,
         "evidence": evidence, "generator": by, "licence": "CC-BY-4.0"} for id, kind, text, evidence, by in told
    ]
    return sample


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("made"), change=texts)


def export(home: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    run_export(home, "true", "llava", out, None, list(options))
    read: list[dict[str, Any]] = json.loads((out / "llava.json").read_text(encoding="utf-8"))
    return read


def test_without_the_option_nothing_changes(home: Path, tmp_path: Path) -> None:
    records = export(home, tmp_path / "out")
    assert len(records) == 12 and all(set(record) == {"id", "image", "conversations"} for record in records)


def test_every_question_is_a_record_and_a_conversation_is_one(home: Path, tmp_path: Path) -> None:
    records = export(home, tmp_path / "out", "instructions=true", "captions=false")
    said = {r["id"].rpartition("-")[2]: [turn["value"] for turn in r["conversations"]] for r in records}
    assert said == {
        "q1": ["<image>\nIs this a CT image?", "Yes."], "q2": ["<image>\nIs this an MR image?", "No."],
        "c1": ["<image>\nWhich image?\nA. x\nB. y", "B. y"], "z1": ["<image>\nFirst?", "One.", "Second?", "Two."],
    }
    for record in records:
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert [turn["value"].count("<image>") for turn in turns] == [1] + [0] * (len(turns) - 1)
        assert (tmp_path / "out" / "images" / record["image"]).is_file()
    evidence = {r["id"].rpartition("-")[2]: r["evidence"] for r in records}
    assert evidence["q2"] == [["image:modality"]] and evidence["z1"] == [["text:src@0:9"], ["text:src@10:19"]]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["written"] == 1 and manifest["without_caption"] == 11  # samples, not records
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1


def test_captions_and_instructions_go_together_and_can_be_chosen(home: Path, tmp_path: Path) -> None:
    assert len(export(home, tmp_path / "all", "instructions=true")) == 12 + 4
    chosen = export(home, tmp_path / "some", "instructions=true", "captions=false", "asked_by=[questions@1/modality]")
    assert [record["generator"].rpartition("/")[2] for record in chosen] == ["closed", "adversarial"]


def test_a_ring_of_evidence_ends(tmp_path: Path) -> None:
    def ring(rows: Rows) -> None:
        texts(rows)
        for row in rows["texts"]:
            if row["text_id"] == "v1":
                row["evidence"] = ["text:w1"]
            if row["text_id"] == "lost":
                row["evidence"] = ["text:v1"]
            if row["text_id"] == "mute":
                row["evidence"] = ["text:lost"]
        sample = next(row for row in rows["texts"] if row["text_id"] == "w1")
        rows["texts"].append({**sample, "text_id": "again", "evidence": ["text:mute"]})

    records = export(make_home(tmp_path, change=ring), tmp_path / "out", "instructions=true", "captions=false")
    assert max(len(record["conversations"]) for record in records) == 8
