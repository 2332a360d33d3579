"""Contamination: benchmarks as they lie on disk, and what of their words is recognised."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from sources import encoded, picture

from infra.errors import ConfigError
from infra.keys import sha256
from transforms.contamination import Params, make_stage
from transforms.curation.contamination import Wording, contents, pictures, texts
from transforms.stage import Context, fingerprint

LONG = "Is there a pleural effusion on the left side of this chest radiograph?"


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def make_benchmark(root: Path) -> Path:
    """A picture in each of the layouts, and a question in each of the kinds of table."""
    write(root / "VQA_RAD Image Folder" / "synpic1.jpg", encoded(picture(1), "JPEG"))
    write(root / "VQA_RAD Dataset Public.json", json.dumps(
        [{"image_name": "synpic1.jpg", "question": LONG, "answer": "yes"}]).encode())
    write(root / "imgs" / "xmlab1" / "source.jpg", encoded(picture(2), "JPEG"))
    asked = [{"img_name": "xmlab1/source.jpg", "question": "What organ is this?"}]
    write(root / "test.json", json.dumps(asked).encode())
    np.savez(root / "pneumoniamnist.npz", train_images=np.stack([picture(3, 28), picture(4, 28)]),
             test_images=np.stack([picture(5, 28, 3)]), test_labels=np.zeros((1, 1), np.uint8))
    shown = {"bytes": encoded(picture(6)), "path": "6.png"}
    rows = [{"image": shown, "question": "where is the lesion", "answer": "no"}]
    pq.write_table(pa.Table.from_pylist(rows), root / "pathvqa.parquet")
    write(root / "qas.pkl", pickle.dumps({"never": "opened"}))
    write(root / "captions.csv", b"image,caption\na.png,A caption\n")
    write(root / ".DS_Store", b"x")
    return root


def test_pictures_of_every_layout_are_read(tmp_path: Path) -> None:
    root = make_benchmark(tmp_path / "b")
    found = {name: (digest, pixels) for name, digest, pixels in pictures(root)}
    assert set(found) == {
        "VQA_RAD Image Folder/synpic1.jpg", "imgs/xmlab1/source.jpg", "pathvqa.parquet#0:image",
        "pneumoniamnist.npz:train_images[0]", "pneumoniamnist.npz:train_images[1]",
        "pneumoniamnist.npz:test_images[0]",
    }
    assert found["pneumoniamnist.npz:test_images[0]"][1].shape == (28, 28, 3)
    assert found["pathvqa.parquet#0:image"][0] == sha256(encoded(picture(6)))
    assert [name for name, _, _ in pictures(root, ["imgs/*"])] == ["imgs/xmlab1/source.jpg"]


def test_words_of_every_kind_of_table_are_read(tmp_path: Path) -> None:
    root = make_benchmark(tmp_path / "b")
    assert dict(texts(root, ("question", "caption"))) == {
        "VQA_RAD Dataset Public.json#0:0:question": LONG, "test.json#0:0:question": "What organ is this?",
        "pathvqa.parquet#0:question": "where is the lesion", "captions.csv#0:caption": "A caption",
    }


def test_pickled_arrays_broken_pictures_and_missing_folders_stop_with_what_to_do(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", x_images=np.array([{"a": 1}], object))
    with pytest.raises(ConfigError, match="pickles are not opened"):
        list(pictures(tmp_path))
    (tmp_path / "b.npz").unlink()
    write(tmp_path / "a.png", b"no picture")
    with pytest.raises(ConfigError, match=r"a.png cannot be read.*only"):
        list(pictures(tmp_path))
    with pytest.raises(ConfigError, match="no such folder"):
        contents(tmp_path / "nowhere")


def test_what_is_in_the_benchmark_enters_the_key_and_where_it_lies_does_not(tmp_path: Path) -> None:
    def print_of(root: Path) -> str:
        return fingerprint(make_stage(Params(sets=({"name": "b", "root": str(root)},)), Context(Path())))

    one, other = make_benchmark(tmp_path / "b"), make_benchmark(tmp_path / "elsewhere" / "c")
    for root in (one, other):  # archives of arrays tell when they were written
        (root / "pneumoniamnist.npz").unlink()
    assert print_of(one) == print_of(other)
    write(other / "imgs" / "xmlab1" / "source.jpg", encoded(picture(9), "JPEG"))
    assert print_of(one) != print_of(other)
    with pytest.raises(ValidationError, match="one name"):
        Params(sets=({"name": "b", "root": "x"}, {"name": "b", "root": "y"}))


def test_words_are_recognised_through_case_and_commas_and_common_questions_are_nobodys() -> None:
    report = "The heart is enlarged and there is a small effusion on the left with some basal atelectasis seen"
    common = "Which organ system is shown in this picture of the chest?"
    wording = Wording([("a", LONG), ("b", report), ("c", "Is it normal?"), ("d", common), ("e", common)])
    assert wording.names == ["a", "b"]
    assert wording.found("is there a pleural effusion, on the LEFT side of this chest radiograph") == ("text", "a", 1.0)
    assert wording.found(f"Findings. {report}. No pneumothorax.") == ("overlap", "b", 1.0)
    part = wording.found("The heart is enlarged and there is a small effusion on the right")
    assert part is not None and part[:2] == ("overlap", "b") and 0.3 < part[2] < 0.6
    for other in (common, "Is it normal?", "A lung without any finding at all in this patient today"):
        assert wording.found(other) is None
