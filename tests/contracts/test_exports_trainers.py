"""Exports are read by the trainers' own loaders, and what those make of them is held against the catalog.

These pin other releases of torch and transformers, and one is under the AGPL, so each has an environment of its own;
without it, the test is skipped. Their rules alone are in test_exports_regions.py and test_exports_conversations.py.

    uv venv yolo && uv pip install --python yolo ultralytics
    uv venv swift && uv pip install --python swift ms-swift
    uv venv llama && uv pip install --python llama llamafactory   # torch as torchaudio wants it
    MEDLOOM_YOLO=yolo/bin/python MEDLOOM_SWIFT=swift/bin/python MEDLOOM_LLAMAFACTORY=llama/bin/python \\
      pytest tests/contracts/test_exports_trainers.py

Read on 2026-11-27 by ultralytics 8.4, ms-swift 4.6.0 and llamafactory 0.9.5.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporthome import all_held, caption, spoil  # noqa: F401
from makehome import Rows, make_home

from catalog.masks import decode_mask
from flows.export import run_export

YOLO = """
import json, sys
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset
data = check_det_dataset(sys.argv[1] + "/data.yaml", autodownload=False)
for split in ("train", "val"):
    found = YOLODataset(img_path=data[split], data=data, task=sys.argv[2], augment=False)
    for number in range(len(found)):
        one = found.get_image_and_label(number)
        one["instances"].convert_bbox("xyxy")
        print(json.dumps({
            "split": split, "file": one["im_file"], "shape": one["ori_shape"],
            "names": [data["names"][int(c)] for c in one["cls"].ravel()], "boxes": one["instances"].bboxes.tolist(),
            "outlines": [outline.tolist() for outline in found.labels[number]["segments"]],
        }))
"""
SWIFT = """
import json, sys
from swift.dataset import load_dataset
file = sys.argv[1] + "/swift.jsonl"
train, _ = load_dataset([file], num_proc=1, load_from_cache_file=False, strict=True, use_hf=True)
for one in train:
    print(json.dumps({**one, "images": [image["path"] for image in one["images"]]}))
"""
LLAMA = """
import json, sys
from types import SimpleNamespace
from llamafactory.data import loader
from llamafactory.data.parser import get_dataset_list
from llamafactory.hparams import DataArguments
data = DataArguments(dataset="medloom", dataset_dir=sys.argv[1], media_dir=sys.argv[1])
model = SimpleNamespace(cache_dir=None, hf_hub_token=None, trust_remote_code=False)
training = SimpleNamespace(local_process_index=0, world_size=1)
(described,) = get_dataset_list(data.dataset, data.dataset_dir)
for one in loader._load_single_dataset(described, model, data, training):
    print(json.dumps(one))
"""


def patients(rows: Rows) -> None:
    """As other exports have it, and every sample is of its own patient."""
    spoil(rows)
    for number, image in enumerate(rows["images"]):
        image["group_id"] = f"patient {number}"


@pytest.fixture(scope="module", name="home")
def home_of_patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("trainers"), patients)


def read(script: str, variable: str, folder: Path, *words: str) -> list[dict[str, Any]]:
    """What a trainer's loader says, a line each."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no Python with the trainer, see the top of this file")
    offline = {"HF_HUB_OFFLINE": "1", "HOME": str(folder.parent), "HF_HOME": str(folder.parent / "cache")}
    ran = subprocess.run(
        [str(Path(python).absolute()), "-c", script, str(folder), *words], env={**os.environ, **offline},
        capture_output=True, text=True, cwd=folder, timeout=280,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools decodes so
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_ultralytics_reads_boxes_and_outlines(
    home: Path, held: dict[str, dict[str, Any]], tmp_path: Path, task: str
) -> None:
    from pycocotools import mask as coco

    # ultralytics stops where a split is empty: the four masks fall on both sides at this share
    share = {"detect": "0.5", "segment": "0.7"}[task]
    run_export(home, "true", "yolo", tmp_path / "out", None, [f"validation={share}", f"task={task}"], licences="all")
    found = {Path(one["file"]).stem: one for one in read(YOLO, "MEDLOOM_YOLO", tmp_path / "out", task)}
    assert {one["split"] for one in found.values()} == {"train", "val"}
    wanted = {i: [r for r in s["rois"] if task == "detect" or r["mask"]] for i, s in held.items()}
    assert set(found) == {sample for sample, rois in wanted.items() if rois}
    for sample, one in found.items():
        width, height = held[sample]["width"], held[sample]["height"]
        assert one["shape"] == [height, width] and one["names"] == [roi["label"] for roi in wanted[sample]]
        for box, roi in zip(one["boxes"], wanted[sample], strict=True) if task == "detect" else ():
            x0, y0, x1, y1 = roi["box"]
            true = [max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)]
            assert np.array(box) * [width, height, width, height] == pytest.approx(true, abs=0.01)
        for outline, roi in zip(one["outlines"], [r for r in wanted[sample] if task == "segment"], strict=True):
            points = np.round(np.array(outline) * [width, height], 3)
            (code,) = coco.frPyObjects([points.ravel().tolist()], height, width)
            assert (coco.decode(code) == decode_mask(roi["mask"])).all()


def test_ms_swift_reads_every_turn_and_object(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_export(home, "true", "ms_swift", out, None, [], licences="all")
    written = [json.loads(line) for line in (out / "swift.jsonl").read_text(encoding="utf-8").split("\n") if line]
    found = {one["images"][0]: one for one in read(SWIFT, "MEDLOOM_SWIFT", out)}
    assert len(found) == len(written) == sum(caption(sample) is not None for sample in held.values())
    for record in written:
        one = found[record["images"][0]]
        assert one["messages"] == record["messages"] and one["images"] == record["images"]
        assert {name: one["objects"][name] for name in record["objects"]} == record["objects"]
        assert record["id"] in held and (out / one["images"][0]).is_file()


def test_llama_factory_reads_every_turn(home: Path, held: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_export(home, "true", "llama_factory", out, None, [], licences="all")
    info = json.loads((out / "dataset_info.json").read_text())["medloom"]
    written = json.loads((out / info["file_name"]).read_text(encoding="utf-8"))
    found = {Path(one["_images"][0]).name: one for one in read(LLAMA, "MEDLOOM_LLAMAFACTORY", out)}
    assert len(found) == len(written) == sum(caption(sample) is not None for sample in held.values())
    role, content = info["tags"]["role_tag"], info["tags"]["content_tag"]
    for record in written:
        (image,) = record[info["columns"]["images"]]
        one, turns = found[Path(image).name], record[info["columns"]["messages"]]
        assert [t["content"] for t in one["_prompt"] + one["_response"]] == [t[content] for t in turns]
        assert [t["role"] for t in one["_prompt"] + one["_response"]] == ["user", "assistant"] * (len(turns) // 2)
        assert {t[role] for t in turns} == {info["tags"]["user_tag"], info["tags"]["assistant_tag"]}
        assert Path(one["_images"][0]) == out / image and Path(one["_images"][0]).is_file()
