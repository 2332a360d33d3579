"""A model's folder: its identity, what is refused and with which advice, memory that runs out, and GPUs."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tinymodels import COLOURS, flag
from tinymodels import clipseg as clipseg
from tinymodels import colours as colours
from tinymodels import no_network as no_network
from tinymodels import sam as sam
from tinymodels import yolos as yolos

from catalog.schema import LAYERS
from infra.errors import ConfigError, Terminal
from infra.plugins import why_unavailable
from transforms import ground
from transforms.adapters.folders import model_folder
from transforms.adapters.networks import Network, opened
from transforms.experts import detect, label_map, segment_box, segment_text
from transforms.stage import Context, fingerprint

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("no_network")


def test_a_model_is_named_by_what_lies_in_its_folder(colours: str, tmp_path: Path):
    moved = Path(shutil.copytree(colours, tmp_path / "elsewhere"))
    (moved / "README.md").write_text("not what decides")
    params = label_map.Params(model=str(moved), labels=COLOURS)
    assert label_map.ingredients(params) == {"model": model_folder(colours).sha256}
    settings = moved / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("64", "32"))
    changed = label_map.ingredients(params)
    assert changed != {"model": model_folder(colours).sha256}
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert label_map.ingredients(params) != changed


def test_folders_that_may_not_be_loaded_are_refused_with_advice(colours: str, tmp_path: Path):
    import torch

    def refused(said: str, change: Any) -> None:
        folder = Path(shutil.copytree(colours, tmp_path / "model"))
        change(folder)
        with pytest.raises(ConfigError, match=said):
            label_map.ingredients(label_map.Params(model=str(folder), labels=COLOURS))
        shutil.rmtree(folder)

    def pickled(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")

    def indexed(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.bin"}}))

    refused("no config.json", lambda folder: (folder / "config.json").unlink())
    refused("no JSON", lambda folder: (folder / "config.json").write_text("<html>"))
    refused("pickle", pickled)
    refused("download the weights", lambda folder: (folder / "model.safetensors").unlink())
    refused("no .safetensors file beside it", indexed)
    refused("merge_and_unload", lambda folder: (folder / "adapter_config.json").write_text("{}"))
    with pytest.raises(ConfigError, match="nothing there"):
        label_map.ingredients(label_map.Params(model=str(tmp_path / "none"), labels=COLOURS))
    cyst = COLOURS["2"]
    for labels, said in (({"rde": cyst}, "did you mean 'red'"), ({"2": cyst, "blue": cyst}, "twice")):
        with pytest.raises(ConfigError, match=said):
            label_map.ingredients(label_map.Params(model=colours, labels=labels))


def test_folders_that_do_not_hold_what_is_asked_are_refused(colours: str, sam: str, yolos: str, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(ConfigError, match="runs sam"):
        segment_box.ingredients(segment_box.Params(model=colours))
    with pytest.raises(ConfigError, match="runs clipseg"):
        segment_text.ingredients(segment_text.Params(model=sam, prompts=["lung"]))
    with pytest.raises(ConfigError, match="cannot load this yolos"):
        opened("AutoModelForSemanticSegmentation", label_map.Params(model=yolos, labels=COLOURS))

    def changed(name: str, change: Any) -> label_map.Params:
        folder = Path(shutil.copytree(colours, tmp_path / name))
        change(folder)
        return label_map.Params(model=str(folder), labels=COLOURS)

    def headless(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        left = {name: values for name, values in weights.items() if "classifier" not in name}
        save_file(left, folder / "model.safetensors", {"format": "pt"})

    def cropping(folder: Path) -> None:
        from transformers import CLIPImageProcessorPil

        CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)

    for params, said in (
        (changed("headless", headless), "would be random"),
        (changed("cropping", cropping), "do_center_crop"),
        (changed("unprepared", lambda folder: (folder / "preprocessor_config.json").unlink()), "cannot load"),
        (changed("truncated", lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 9)), "cannot load"),
    ):
        with pytest.raises(ConfigError, match=said):
            list(label_map.find(flag(), {}, params))


def test_code_in_a_folder_is_not_run(colours: str, tmp_path: Path):
    folder = Path(shutil.copytree(colours, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModelForSemanticSegmentation": "own.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto}))
    (folder / "own.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(ConfigError, match="cannot load"):
        list(label_map.find(flag(), {}, label_map.Params(model=str(folder), labels=COLOURS)))


def test_a_batch_that_does_not_fit_is_halved_and_counted_and_one_that_never_fits_is_the_pictures_loss(colours: str):
    import torch

    network = Network(None, None, None, model_folder(colours), "cpu", torch.float32)

    def work(limit: int) -> Any:
        def run(batch: list[int]) -> list[int]:
            if len(batch) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return list(batch)
        return run

    assert [x for batch in network.batches(work(2), range(9), 8) for x in batch] == list(range(9))
    assert (network.halved, network.fits) == (2, 2)
    assert [len(batch) for batch in network.batches(work(2), range(5), 8)] == [2, 2, 1], "what fits is remembered"
    with pytest.raises(Terminal, match="OUT_OF_MEMORY"):
        list(network.batches(work(0), range(3), 8))


def test_the_stage_books_regions_under_the_hash_of_the_model(colours: str, tmp_path: Path):
    moved = Path(shutil.copytree(colours, tmp_path / "elsewhere"))
    buffer = io.BytesIO()
    Image.fromarray(flag()).save(buffer, "PNG")
    images = LAYERS["images"].table([{
        "sample_id": "a", "image": {"bytes": buffer.getvalue(), "path": "x.png"}, "width": 140, "height": 90,
        "source": "s", "source_item": "i", "group_id": "g", "sha256": "0", "pixel_sha256": "0", "modality": "CT",
    }])

    def stage(folder: str | Path, **more: Any) -> Any:
        options = {"label_map": {"model": str(folder), "labels": COLOURS, **more}}
        return ground.make_stage(ground.Params(experts=["label_map"], options=options), Context(tmp_path))

    outcome = stage(colours, trust="presence")({"images": images, "rois": LAYERS["rois"].table([])}, None)
    rows = outcome.tables["rois"].to_pylist()
    assert [(r["label"], r["expert"], r["trust"]) for r in rows] == [
        ("liver", "label_map@1", "presence"), ("cyst", "label_map@1", "presence")]
    assert {r["expert_weights_sha256"] for r in rows} == {model_folder(colours).sha256}
    assert fingerprint(stage(colours)) == fingerprint(stage(moved)) != fingerprint(stage(colours, patch=64))
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert fingerprint(stage(colours)) != fingerprint(stage(moved))
    other = stage(colours, modalities=["US"])({"images": images, "rois": LAYERS["rois"].table([])}, None)
    (check,) = other.tables["checks"].to_pylist()
    assert check["verdict"] == "unknown" and "looks at US" in check["detail"]


def test_numbers_that_overflow_are_no_answer(colours: str, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(colours, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["decode_head.classifier.bias"][1] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Terminal, match="NOT_FINITE"):
        list(label_map.find(flag(), {}, label_map.Params(model=str(folder), labels=COLOURS)))


def test_a_gpu_that_is_not_there_is_said_at_once(colours: str):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert why_unavailable(label_map) is None
    with pytest.raises(ConfigError, match="no GPU"):
        list(label_map.find(flag(), {}, label_map.Params(model=colours, labels=COLOURS, device="cuda")))
    with pytest.raises(ValueError, match="device cuda"):
        label_map.Params(model=colours, labels=COLOURS, half=True)


@pytest.fixture
def gpu() -> Iterator[None]:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("half", [False, True])
def test_a_gpu_agrees_with_the_processor(colours: str, sam: str, yolos: str, clipseg: str, gpu: None, half: bool):
    there = {"device": "cuda", "half": half}
    for module, options in (
        (label_map, {"model": colours, "labels": COLOURS}),
        (detect, {"model": yolos, "labels": {"nodule": {"label": "n", "role": "lesion"}}}),
        (segment_text, {"model": clipseg, "prompts": ["lung"], "threshold": 0.01}),
        (segment_box, {"model": sam, "detector": "detector",
                       "detector_options": {"model": yolos, "labels": {"nodule": {"label": "n"}}}}),
    ):
        here = list(module.find(flag(), {"modality": "CT"}, module.Params(**options)))
        found = list(module.find(flag(), {"modality": "CT"}, module.Params(**options, **there)))
        again = list(module.find(flag(), {"modality": "CT"}, module.Params(**options, **there)))
        assert [r.label for r in here] == [r.label for r in found] == [r.label for r in again]
        for ours, theirs, twice in zip(here, found, again, strict=True):
            assert theirs.score == pytest.approx(ours.score, abs=0.01) and theirs.score == twice.score
            if ours.mask is not None:
                assert np.array_equal(theirs.mask, twice.mask) and (ours.mask != theirs.mask).mean() < 0.02
