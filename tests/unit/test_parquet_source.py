"""Parquet files of Hugging Face datasets: written by `datasets` and by pyarrow, read row group by row group."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from imagefolders import codes, items, partitions, put, sample
from PIL import Image

from catalog.items import Label
from connectors import parquet
from connectors.parquet import Params, read
from infra.errors import ConfigError


def png(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def table(path: Path, rows: list[dict[str, Any]], group: int = 4, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group, **options)
    return path


def picture(seed: int) -> dict[str, Any]:
    return {"bytes": png(seed), "path": f"{seed}.png"}


def test_what_datasets_writes(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({
        "image": datasets.Image(), "caption": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["normal", "pneumonia"]),
        "findings": datasets.Sequence(datasets.ClassLabel(names=["mass", "nodule"])),
        "objects": {"bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
                    "category": datasets.Sequence(datasets.ClassLabel(names=["lung", "heart"]))},
    })
    rows = {
        "image": [Image.open(io.BytesIO(png(n))) for n in range(3)], "caption": ["one", "", "three"],
        "label": [1, 0, -1], "findings": [[0, 1], [], [1]],
        "objects": [{"bbox": [[2, 3, 4, 5]], "category": [1]}, {"bbox": [], "category": []},
                    {"bbox": [], "category": []}],
    }
    (tmp_path / "data").mkdir()
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    params = Params(
        root=str(tmp_path), text_columns={"caption": "original_caption"}, modality="DX", objects_column="objects",
        label_map={"pneumonia": "lung infection"}, roles={"heart": "organ"},
    )
    found = items(params, parquet)
    name = "data/train-00000-of-00001.parquet"
    assert codes(found) == {f"{name}#{n}": None for n in range(3)}
    one = sample(found[f"{name}#0"])
    assert one.labels == (
        Label("split", "train", "parquet:file"), Label("lung infection", origin="parquet:label"),
        Label("mass", origin="parquet:findings"), Label("nodule", origin="parquet:findings"),
    )
    assert [(r.label, r.role, r.box) for r in one.regions] == [("heart", "organ", (2, 3, 6, 8))]
    assert [t.text for t in one.texts] == ["one"] and one.columns["modality"] == "DX"
    assert np.array_equal(one.pixels, np.asarray(Image.open(io.BytesIO(png(0)))))
    assert [label.name for label in sample(found[f"{name}#2"]).labels] == ["split", "nodule"]


def test_row_groups_are_partitions_and_rows_keep_their_keys(tmp_path: Path) -> None:
    rows = [{"image": picture(n), "text": str(n)} for n in range(10)]
    table(tmp_path / "a.parquet", rows)
    params = Params(root=str(tmp_path), capacity=4, text_columns={"text": "report"})
    before = partitions(params, parquet)
    assert [len(part.refs) for part in before] == [4, 4, 2]
    assert [len(p.refs) for p in partitions(params.model_copy(update={"capacity": 3}), parquet)] == [3, 1, 3, 3]
    assert [len(p.refs) for p in partitions(params.model_copy(update={"capacity": 8}), parquet)] == [8, 2]
    table(tmp_path / "a.parquet", [*rows[:9], {"image": picture(9), "text": "changed"}])
    after = partitions(params, parquet)
    assert [a.key == b.key for a, b in zip(before, after, strict=True)] == [True, True, False]
    other = partitions(params.model_copy(update={"modality": "CT"}), parquet)
    assert not {part.key for part in other} & {part.key for part in after}
    table(tmp_path / "sub" / "b.parquet", rows[:1])
    assert {part.key for part in after} < {part.key for part in partitions(params, parquet)}
    again = list(read(before[2], params))
    assert [item.error is None or str(item.error)[:14] for item in again] == [True, "SOURCE_CHANGED"]


def test_questions_in_columns_lists_and_conversations(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "CT."},
             {"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Head."}]
    rows = [
        {"image": picture(1), "question": ["a?"], "answer": ["yes", "no"], "turns": turns},
        {"image": picture(2), "question": ["a?", "b?"], "answer": ["1", "2"], "turns": []},
        {"image": picture(3), "question": ["a?", "b?"], "answer": ["1"], "turns": None},
    ]
    table(tmp_path / "a.parquet", rows)
    found = items(Params(
        root=str(tmp_path), question_column="question", answer_column="answer", conversation_column="turns",
    ), parquet)
    assert codes(found) == {"a.parquet#0": None, "a.parquet#1": None, "a.parquet#2": "ROW_MALFORMED"}
    paired = [[(t.about.text, t.text) for t in sample(found[f"a.parquet#{n}"]).texts if t.about] for n in (0, 1)]
    assert paired == [[("a?", "yes"), ("a?", "no"), ("What?", "CT."), ("Where?", "Head.")], [("a?", "1"), ("b?", "2")]]


def test_images_by_path_several_and_none(tmp_path: Path) -> None:
    put(tmp_path / "img" / "x.png", 5)
    put(tmp_path.parent / "outside.png", 6)
    rows = [
        {"id": "a", "views": ["img/x.png", "img/gone.png"]}, {"id": "b", "views": []},
        {"id": "c", "views": ["../outside.png"]},
    ]
    table(tmp_path / "a.parquet", rows)
    params = Params(root=str(tmp_path), image_column="views", attribute_columns=("id",))
    found = items(params, parquet)
    assert codes(found) == {
        "a.parquet#0.0": None, "a.parquet#0.1": "FILE_MISSING", "a.parquet#1": "NO_IMAGE",
        "a.parquet#2": "FILE_MISSING",
    }
    assert sample(found["a.parquet#0.0"]).group is not None
    before = partitions(params, parquet)[0].key
    put(tmp_path / "img" / "x.png", 7)
    assert partitions(params, parquet)[0].key != before


def test_bad_files_and_row_groups_cost_themselves_only(tmp_path: Path) -> None:
    rows = [{"image": picture(n), "label": n} for n in range(8)]
    table(tmp_path / "good.parquet", rows)
    (tmp_path / "page.parquet").write_bytes(b"<html>")
    whole = bytearray(table(tmp_path / "torn.parquet", rows, compression="zstd", use_dictionary=False).read_bytes())
    chunk = pq.ParquetFile(tmp_path / "torn.parquet").metadata.row_group(1).column(0)
    whole[chunk.data_page_offset : chunk.data_page_offset + 60] = b"\xff" * 60
    (tmp_path / "torn.parquet").write_bytes(whole)
    rows[3]["image"]["bytes"] = b"no image"
    table(tmp_path / "odd.parquet", rows)
    found = items(Params(root=str(tmp_path)), parquet)
    assert Counter(codes(found).values()) == {None: 8 + 8 + 4, "PARQUET_UNREADABLE": 2}
    assert "4 rows of row group 1" in str(found["torn.parquet#group1"].error)
    assert not any(str(tmp_path) in str(item.error) for item in found.values())


def test_columns_that_are_not_there_stop_the_run(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", [{"image": picture(1), "thumb": picture(2), "caption": "x"}])
    with pytest.raises(ConfigError, match="several columns are images"):
        partitions(Params(root=str(tmp_path)), parquet)
    with pytest.raises(ConfigError, match="did you mean 'caption'"):
        partitions(Params(root=str(tmp_path), image_column="image", text_columns={"captoin": "report"}), parquet)
    with pytest.raises(ConfigError, match="no file fits"):
        partitions(Params(root=str(tmp_path), include=("*.pq",)), parquet)
