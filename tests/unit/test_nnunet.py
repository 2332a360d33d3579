"""nnU-Net's own predictor on a folder whose answer is known; what is refused, and memory that runs out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinymodels import no_network as no_network
from tinyvolumes import BONE, LEFT, RIGHT, phantom
from tinyvolumes import nnunet_folder as nnunet_folder

from infra.errors import ConfigError, Dropped, Terminal
from transforms.adapters.scans import Patch, own_names, shown
from transforms.experts import nnunet

pytest.importorskip("torch")
pytest.importorskip("nnunetv2", reason="nnU-Net is not here: pip install --no-deps nnunetv2, see the notes on experts")
pytestmark = pytest.mark.usefixtures("no_network")
NAMES = {"left_rim": {"label": LEFT, "role": "region"}, "3": {"label": BONE, "role": "organ", "ontology_id": "X:1"}}


def changed(folder: str, to: Path, name: str, change: Any) -> str:
    copy = Path(shutil.copytree(folder, to))
    held = json.loads((copy / name).read_text())
    change(held)
    (copy / name).write_text(json.dumps(held))
    return str(copy)


def test_what_is_found_is_what_the_weights_were_set_to_find(nnunet_folder: str):
    scan = phantom()
    found = {one.label: one for one in nnunet.segment(scan, nnunet.Params(model=nnunet_folder, labels="own"))}
    assert set(found) == {LEFT, RIGHT, BONE}
    assert found[BONE].corner == (15, 8, 2) and found[BONE].mask.all() and found[BONE].mask.shape == (2, 3, 12)
    assert found[LEFT].corner == (19, 4, 2) and found[RIGHT].corner == (3, 4, 2), "x grows to the patient's left"
    some = list(nnunet.segment(scan, nnunet.Params(model=nnunet_folder, labels=NAMES)))
    assert [(one.label, one.role, one.ontology_id) for one in some] == [
        (LEFT, "region", None), (BONE, "organ", "X:1")]
    turned = nnunet.Params(model=nnunet_folder, labels="own", orientation="LAS")
    other = {one.label: one.corner[0] for one in nnunet.segment(scan, turned)}
    assert other[LEFT] < other[RIGHT], "shown the other way round it takes the sides for each other"


def test_a_region_of_several_labels_is_all_of_them(nnunet_folder: str, tmp_path: Path):
    def nested(dataset: dict[str, Any]) -> None:
        dataset["labels"] = {"background": 0, "rims": [1, 2, 3], "right": [2, 3], "bone": [3]}
        dataset["regions_class_order"] = [1, 2, 3]

    folder = nnunet.folder_of(nnunet.Params(model=changed(nnunet_folder, tmp_path / "a", "dataset.json", nested),
                                            labels="own"))
    assert folder.labels == {1: "rims", 2: "right", 3: "bone"} and folder.values("right") == (2, 3)


@pytest.mark.parametrize(("name", "keys", "value", "said"), [
    ("plans.json", ("architecture", "network_class_name"), "os.system", "os.system"),
    ("plans.json", ("architecture", "arch_kwargs", "conv_op"), "subprocess.Popen", "subprocess.Popen"),
    ("plans.json", ("architecture", "arch_kwargs", "nonlin"), "torch.nn.modules.module.os", "module.os"),
    ("plans.json", ("normalization_schemes",), ["ABC"], "ABC"),
    ("plans.json", ("resampling_fn_data",), "resize_segmentation", "resize_segmentation"),
    ("plans.json", ("preprocessor_name",), "Pool", "Pool"),
    ("plans.json", ("previous_stage",), "3d_lowres", "cascade"),
    ("plans.json", ("architecture", "arch_kwargs", "features_per_stage"), [4, 4], "not those of the network"),
])
def test_plans_that_name_what_is_on_no_list_are_refused(
    nnunet_folder: str, tmp_path: Path, name: str, keys: tuple[str, ...], value: Any, said: str
):
    def change(plans: dict[str, Any]) -> None:
        inner = plans["configurations"]["3d_fullres"]
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    folder = changed(nnunet_folder, tmp_path / "model", name, change)
    with pytest.raises(ConfigError, match=said):
        list(nnunet.segment(phantom(), nnunet.Params(model=folder, labels="own")))


def test_folders_and_classes_that_are_not_there_are_said(nnunet_folder: str, tmp_path: Path):
    def refused(said: str, **options: Any) -> None:
        with pytest.raises(ConfigError, match=said):
            nnunet.ingredients(nnunet.Params(**{"model": nnunet_folder, "labels": "own", **options}))

    refused("no fold_3", folds=[3])
    refused("did you mean 'left_rim'", labels={"left_rym": NAMES["3"]})
    refused("no dataset.json", model=str(tmp_path))
    two = changed(nnunet_folder, tmp_path / "two", "dataset.json",
                  lambda held: held["channel_names"].update({"1": "T2"}))
    refused("2 channels", model=two)
    with pytest.raises(ValueError, match="no orientation"):
        nnunet.Params(model=nnunet_folder, labels="own", orientation="RAR")
    with pytest.raises(ConfigError, match="no label"):
        own_names("x", {1: "liver; DROP"})
    moved = shutil.copytree(nnunet_folder, tmp_path / "moved")
    assert nnunet.ingredients(nnunet.Params(model=str(moved), labels="own")) == nnunet.ingredients(
        nnunet.Params(model=nnunet_folder, labels="own"))


def test_memory_that_runs_out_makes_patches_smaller_and_is_counted(nnunet_folder: str, tmp_path: Path, monkeypatch):
    import torch

    folder = changed(nnunet_folder, tmp_path / "own", "plans.json", lambda held: held.update(plans_name="another"))
    params = nnunet.Params(model=folder, labels="own")
    model = nnunet.opened(nnunet.folder_of(params), params)
    network = model.predictor.network
    seen: list[tuple[int, ...]] = []

    def cramped(module: Any, given: tuple[Any, ...]) -> None:
        seen.append(tuple(given[0].shape[2:]))
        if np.prod(given[0].shape[2:]) > 8 * 8 * 16:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = network.register_forward_pre_hook(cramped)
    found = {one.label: one.mask.sum() for one in nnunet.segment(phantom(), params)}
    assert found == {LEFT: 288, RIGHT: 288, BONE: 72}, "smaller patches say the same"
    assert (model.patch.size, model.patch.shrunk) == ((8, 8, 16), 2) and seen[0] == (16, 16, 16)
    hook.remove()
    tight = network.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(Terminal, match="OUT_OF_MEMORY"):
        list(nnunet.segment(phantom(), params))
    tight.remove()
    with pytest.raises(RuntimeError, match="a bug"):
        Patch((8,), (2,)).fitting(lambda _: (_ for _ in ()).throw(RuntimeError("a bug")), "x")


def test_a_scan_that_cannot_be_laid_is_refused():
    with pytest.raises(Terminal, match="NO_SPACING"):
        shown(phantom(None), "RAS")
    with pytest.raises(Dropped):
        nnunet.refuse_scan(nnunet.CARD.__class__("label_map", "box", modalities=("MR",)), phantom())
