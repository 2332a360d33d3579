"""A bundle of MONAI through MONAI's own transforms, window and inverse; and what of a bundle is never run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinymodels import no_network as no_network
from tinyvolumes import BONE, LEFT, RIGHT, phantom
from tinyvolumes import bundle_folder as bundle_folder

from infra.errors import ConfigError
from transforms.adapters.configs import Plain
from transforms.adapters.wanted import Named
from transforms.experts import monai_bundle

pytest.importorskip("torch")
pytest.importorskip("monai", reason="MONAI is not here: pip install --no-deps monai")
pytestmark = pytest.mark.usefixtures("no_network")


def changed(folder: str, to: Path, change: Any, name: str = "inference") -> monai_bundle.Params:
    copy = Path(shutil.copytree(folder, to))
    path = copy / "configs" / f"{name}.json"
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))
    return monai_bundle.Params(model=str(copy), labels="own")


def test_what_is_found_is_what_the_weights_were_set_to_find(bundle_folder: str):
    params = monai_bundle.Params(model=bundle_folder, labels="own")
    found = {one.label: one for one in monai_bundle.segment(phantom(), params)}
    assert set(found) == {LEFT, RIGHT, BONE}
    assert found[BONE].corner == (15, 8, 2) and found[BONE].mask.all() and found[BONE].mask.shape == (2, 3, 12)
    assert found[LEFT].corner == (19, 4, 2) and found[RIGHT].corner == (3, 4, 2)
    bone = monai_bundle.Params(model=bundle_folder, labels={BONE: {"label": "skeleton", "role": "organ"}})
    assert [one.label for one in monai_bundle.segment(phantom(), bone)] == ["skeleton"]


def test_another_spacing_is_made_and_undone(bundle_folder: str, tmp_path: Path):
    def coarse(config: dict[str, Any]) -> None:
        config["preprocessing"]["transforms"][3]["pixdim"] = [4.0, 4.0, 3.0]

    params = changed(bundle_folder, tmp_path / "b", coarse)
    params = params.model_copy(update={"labels": {RIGHT: Named(label=RIGHT)}})
    (one,) = monai_bundle.segment(phantom(), params)
    assert 2 <= one.corner[0] <= 5 and one.mask.shape[0] <= 8 and one.mask.shape[1] >= 10


def test_classes_told_by_themselves_may_overlap(bundle_folder: str, tmp_path: Path):
    def sigmoid(config: dict[str, Any]) -> None:
        config["postprocessing"]["transforms"][0] = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}

    params = changed(bundle_folder, tmp_path / "b", sigmoid)
    bundle = monai_bundle.bundle_of(params)
    assert bundle.overlapping and 0 in bundle.labels, "no channel is background then"
    params = params.model_copy(update={"labels": {BONE: Named(label=BONE)}})
    (one,) = monai_bundle.segment(phantom(), params)
    assert one.mask.sum() == 72


def _at(*keys: Any) -> Any:
    def change(value: Any) -> Any:
        def run(config: dict[str, Any]) -> None:
            inner: Any = config
            for key in keys[:-1]:
                inner = inner[key]
            inner[keys[-1]] = value
        return run
    return change


STEPS = ("preprocessing", "transforms", 4)


@pytest.mark.parametrize(("change", "said"), [
    (_at("network_def", "_target_")("os.system"), "os.system"),
    (_at("network_def", "_target_")("monai.networks.nets.torchvision_fc.TorchVisionFCModel"), "TorchVision"),
    (_at("network_def", "channels")("$__import__('os').mkdir('ran')"), "__import__"),
    (_at("network_def", "norm")({"_target_": "subprocess.run", "args": ["true"]}), "subprocess.run"),
    (_at("network_def", "norm")("@evil"), "refers to what is not there"),
    (_at("size")("@size"), "refers to itself"),
    (_at(*STEPS)({"_target_": "Lambdad", "keys": "image", "func": "$print"}), "Lambdad"),
    (_at(*STEPS)({"_target_": "CropForegroundd", "keys": "image", "select_fn": "$lambda x: x > 0"}), "lambda"),
    (_at("inferer")({"_target_": "SlidingWindowInferer", "roi_size": "$[9, 9, 9]"}), "9, 9, 9"),
    (_at("network_def", "channels")([4, 4]), "not those of the network"),
])
def test_what_a_bundle_says_is_read_and_never_run(
    bundle_folder: str, tmp_path: Path, change: Any, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    params = changed(bundle_folder, tmp_path / "b", change)
    with pytest.raises(ConfigError, match=said):
        list(monai_bundle.segment(phantom(), params))
    assert not (tmp_path / "ran").exists()


def test_references_are_followed_to_plain_values():
    plain = Plain("x", {"a": {"b": [1, {"c": "@d"}]}, "d": 7, "e": "$@a::b"})
    assert plain.value("@a::b", "w") == plain.value("@e", "w") == plain.value("@a#b", "w") == [1, {"c": 7}]
    assert plain.value("@a::b::0", "w") == 1


def test_memory_that_runs_out_makes_the_window_smaller(bundle_folder: str, tmp_path: Path):
    import torch

    params = changed(bundle_folder, tmp_path / "b", lambda config: config.update(size=[64, 64, 64]))
    model = monai_bundle._opened(monai_bundle.bundle_of(params), "cpu")

    def cramped(module: Any, given: tuple[Any, ...]) -> None:
        if np.prod(given[0].shape[2:]) > 40**3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.network.register_forward_pre_hook(cramped)
    assert {one.label: one.mask.sum() for one in monai_bundle.segment(phantom(), params)} == {
        LEFT: 288, RIGHT: 288, BONE: 72}
    hook.remove()
    assert model.patch.shrunk == 3 and model.patch.size == (32, 32, 32)


def test_the_hash_is_of_what_decides(bundle_folder: str, tmp_path: Path):
    before = monai_bundle.ingredients(monai_bundle.Params(model=bundle_folder, labels="own"))
    same = changed(bundle_folder, tmp_path / "a", lambda _: None)
    assert monai_bundle.ingredients(same) == before
    other = changed(bundle_folder, tmp_path / "b", _at("inferer", "overlap")(0.25))
    assert monai_bundle.ingredients(other) != before
    two = changed(bundle_folder, tmp_path / "c", lambda held: held["network_data_format"]["inputs"]["image"].update(
        num_channels=2), "metadata")
    with pytest.raises(ConfigError, match="2 channels"):
        monai_bundle.ingredients(two)
