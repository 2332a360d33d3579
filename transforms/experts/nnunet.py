"""Volume expert: a model folder of nnU-Net v2 (TotalSegmentator's are such), run in process on whole scans.

The invariant: nothing of the folder is run. Its plans may name networks, layers, normalisations and resampling of
nnU-Net's own, which stand in lists here; checkpoints are read as tensors alone (adapters/checkpoints.py). What is found
lies on the scan's own grid, left and right are the patient's.

    - use: ground_volumes
      experts: [nnunet]
      options:
        nnunet:
          model: /models/Dataset297_TotalSegmentator_total_3mm/nnUNetTrainer__nnUNetPlans__3d_fullres
          labels: own                                  # or {liver: {label: liver, role: organ}}

A folder holds dataset.json (channels, names of labels), plans.json and fold_N/checkpoint_final.pth. nnU-Net itself
resamples to the spacing of the plans and back. What a trainer of its own would change in the network is not followed:
then the weights do not fit, and that is said. Isensee et al., Nature Methods 18:203, 2021.

Install: `pip install nnunetv2` alone replaces a torch for processors by one for GPUs; see the notes on experts.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from infra.errors import ConfigError, Terminal
from infra.keys import canonical, sha256
from infra.plugins import nearest
from infra.settings import be_quiet
from infra.storage import resolve
from transforms.adapters.checkpoints import digest, fill, tensors
from transforms.adapters.networks import check_device, steady
from transforms.adapters.scans import (
    Patch,
    ScanParams,
    Seen,
    refuse_scan,
    scan_card,
    scan_classes,
    shown,
    structures,
)
from transforms.adapters.wanted import Named
from transforms.experts.card import Card
from transforms.scans.volumes import Scan, Structure

NAME = "nnunet"
VERSION = "1"
REQUIRES: Mapping[str, str] = {"torch": "torch", "nnunetv2": "nnunetv2 (with --no-deps)"}
CARD = Card(
    family="label_map", trust="boundary", ndim=3, value_space="raw", licence_weights="as the model says",
    commercial=None, memory_gb=8,
)

CHECKPOINT = "checkpoint_final.pth"
NETWORKS = {
    f"dynamic_network_architectures.architectures.{module}.{name}"
    for module, name in (
        ("unet", "PlainConvUNet"), ("unet", "ResidualEncoderUNet"), ("residual_unet", "ResidualEncoderUNet"),
    )
}
LAYER = re.compile(r"torch\.nn(\.modules\.\w+)?\.((Conv|InstanceNorm|BatchNorm|Dropout)[123]d|(Leaky)?ReLU|[GESP]ELU)")
"""Layers that plans may name. nnU-Net looks up whatever stands there, by import, and calls it."""
CHOICES: Mapping[str, frozenset[str]] = {
    "normalization_schemes": frozenset({
        "CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization",
        "RGBTo01Normalization",
    }),
    "resampling_fn_data": frozenset(),
    "resampling_fn_seg": frozenset(),
    "resampling_fn_probabilities": frozenset(),
    "preprocessor_name": frozenset({"DefaultPreprocessor"}),
}
"""key of a configuration -> what it may say; resampling: RESAMPLING"""
RESAMPLING = frozenset({
    "resample_data_or_seg_to_shape", "resample_torch_fornnunet", "resample_torch_simple",
    "no_resampling_data_or_seg_to_shape",
})


class Params(ScanParams):
    """What a recipe may set for the nnunet expert."""

    folds: tuple[int | str, ...] = Field(("all",), description="folds whose answers are averaged: numbers, or all")
    configuration: str | None = Field(
        None, description="3d_fullres, 3d_lowres or 2d; null: the one that the checkpoint was trained in"
    )
    mirroring: bool = Field(False, description="average over mirrored copies, too: eight times the work")
    step: float = Field(0.5, gt=0, le=1, description="distance of patches, as a share of their side")


@dataclass(frozen=True, eq=False)
class Folder:
    """A model folder that may be run: what its files say."""

    address: str
    dataset: Mapping[str, Any]
    plans: Mapping[str, Any]
    checkpoints: tuple[Path, ...]

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and self.sha256 == other.sha256

    @cached_property
    def sha256(self) -> str:
        files = [[path.parent.name, digest(path)] for path in self.checkpoints]
        return sha256(canonical([self.dataset, self.plans, files]))

    @property
    def labels(self) -> dict[int, str]:
        """Number of each thing it finds, in the order of dataset.json, background and ignore left out -> its name."""
        names = [name for name in self.dataset["labels"] if name not in ("background", "ignore")]
        values = [self.values(name) for name in names]
        if all(len(v) == 1 for v in values):
            return {v[0]: name for v, name in zip(values, names, strict=True)}
        return dict(enumerate(names, 1))

    def values(self, name: str) -> tuple[int, ...]:
        """Values of the label map that are a thing; several for a region such as the whole tumour."""
        value = self.dataset["labels"][name]
        return tuple(value) if isinstance(value, list) else (int(value),)

    @property
    def channels(self) -> list[str]:
        return [str(name) for name in self.dataset["channel_names"].values()]


@dataclass
class Model:
    """A loaded nnU-Net."""

    predictor: Any
    patch: Patch = field(repr=False)


def folder_of(params: Params) -> Folder:
    """The folder of these parameters. Raises ConfigError when it may not be run."""
    root = resolve(params.model)
    dataset, plans = (_json(params.model, root / name) for name in ("dataset.json", "plans.json"))
    for key, kind in (("labels", dict), ("channel_names", dict)):
        if not isinstance(dataset.get(key), kind):
            raise ConfigError(f"{params.model}: dataset.json has no {key}; it is no folder of nnU-Net v2")
    if len(dataset["channel_names"]) != 1:
        raise ConfigError(
            f"{params.model}: the model reads {len(dataset['channel_names'])} channels "
            f"({', '.join(map(str, dataset['channel_names'].values()))}); a scan has one. Run it by the expert command"
        )
    there = {path.parent.name.removeprefix("fold_"): path for path in sorted(root.glob(f"fold_*/{CHECKPOINT}"))}
    if not there:
        raise ConfigError(f"{params.model}: no fold_N/{CHECKPOINT} in it; name the folder that holds plans.json")
    # folds: ("all",) is fold_all where nnU-Net trained on everything, else every fold that is there
    names = [str(fold) for fold in params.folds]
    if names == ["all"] and "all" not in there:
        names = sorted(there)
    for name in names:
        if name not in there:
            raise ConfigError(f"{params.model}: no fold_{name}{nearest(name, there)}; there are {', '.join(there)}")
    return Folder(params.model, dataset, plans, tuple(there[name] for name in names))


def card(params: Params) -> Card:
    """What it finds with these parameters; a model of CT reads Hounsfield units of CT alone."""
    folder = folder_of(params)
    return scan_card(CARD, params, _classes(folder, params), folder.channels[0].upper() == "CT")


def ingredients(params: Params) -> Mapping[str, str]:
    """The hash of the model. Raises ConfigError for a folder or a class that is not there."""
    folder = folder_of(params)
    _classes(folder, params)
    return {"model": folder.sha256}


def segment(scan: Scan, params: Params) -> Iterator[Structure]:
    """One structure a class that is there. Raises Dropped for a scan it is not to see, Terminal where it fails on it.

    A class of the recipe that is a region of nnU-Net (the whole tumour) is all of its labels together.
    """
    refuse_scan(card(params), scan)
    folder = folder_of(params)
    classes = _classes(folder, params)
    seen = shown(scan, params.orientation)
    model = opened(folder, params)
    values = model.patch.fitting(lambda patch: _labels(model, patch, seen), folder.address)
    names = folder.labels
    yield from structures(
        classes, lambda number: np.isin(values, folder.values(names[number])), seen, params.min_voxels
    )


def _labels(model: Model, patch: tuple[int, ...], seen: Seen) -> npt.NDArray[np.int16]:
    """The label map on the grid of `seen`. nnU-Net's axes are z, y, x."""
    predictor = model.predictor
    predictor.configuration_manager.configuration["patch_size"] = list(patch)
    image = np.ascontiguousarray(seen.values.transpose(2, 1, 0))[None]
    with steady(), _silent():
        try:
            found = predictor.predict_single_npy_array(image, {"spacing": list(seen.spacing[::-1])})
        except RuntimeError as error:
            if "inf in predicted array" in str(error):
                raise Terminal("NOT_FINITE", "the model's answer holds infinity") from error
            raise
    return np.asarray(found, np.int16).transpose(2, 1, 0)


def opened(folder: Folder, params: Params) -> Model:
    """The model, loaded once a process. Raises ConfigError for what may not be run or does not fit together."""
    check_device(params.device)
    return _opened(folder, params.device, params.configuration, params.mirroring, params.step)


@lru_cache(maxsize=2)
def _opened(
    folder: Folder, device: str, configuration: str | None, mirroring: bool, step: float
) -> Model:
    be_quiet()
    saved = [tensors(path) for path in folder.checkpoints]
    for path, one in zip(folder.checkpoints, saved, strict=True):
        if "network_weights" not in one:
            raise ConfigError(f"{folder.address}: {path.parent.name}/{path.name} is no checkpoint of nnU-Net v2")
    own = saved[0].get("init_args", {})
    name = configuration or (own.get("configuration") if isinstance(own, dict) else None)
    with _silent():
        import torch

        predicting: Any = import_module("nnunetv2.inference.predict_from_raw_data")
        building: Any = import_module("nnunetv2.utilities.get_network_from_plans")
        handling: Any = import_module("nnunetv2.utilities.plans_handling.plans_handler")
        plans = handling.PlansManager(json.loads(json.dumps(folder.plans)))
        if name not in folder.plans.get("configurations", {}):
            raise ConfigError(f"{folder.address}: plans.json has no configuration {name!r}; set `configuration`")
        chosen = plans.get_configuration(name)
        _check(folder, chosen.configuration)
        heads = plans.get_label_manager(folder.dataset).num_segmentation_heads
        try:
            network = building.get_network_from_plans(
                chosen.network_arch_class_name, chosen.network_arch_init_kwargs,
                chosen.network_arch_init_kwargs_req_import, 1, heads, allow_init=False, deep_supervision=False,
            )
        except (TypeError, ValueError, AssertionError, AttributeError, KeyError) as error:
            raise ConfigError(f"{folder.address}: plans.json describes no network: {error}") from error
        for path, one in zip(folder.checkpoints, saved, strict=True):
            fill(network, one["network_weights"], f"{folder.address}: {path.parent.name}")
        predictor = predicting.nnUNetPredictor(
            tile_step_size=step, use_mirroring=mirroring, device=torch.device(device), allow_tqdm=False
        )
        predictor.manual_initialization(
            network, plans, chosen, [one["network_weights"] for one in saved], folder.dataset, "nnUNetTrainer",
            saved[0].get("inference_allowed_mirroring_axes"),
        )
    strides = np.prod(np.array(chosen.pool_op_kernel_sizes), axis=0)
    return Model(predictor, Patch(tuple(map(int, chosen.patch_size)), tuple(map(int, strides))))


def _check(folder: Folder, configuration: Mapping[str, Any]) -> None:
    """Raises ConfigError where plans name what is not on the lists: nnU-Net would import and call it."""
    def refuse(what: str, said: Any) -> None:
        raise ConfigError(
            f"{folder.address}: plans.json names {said!r} as {what}, which is not among those that may be run here; "
            "nothing of it was run. Run this model by the expert command, in an environment of its own"
        )

    if configuration.get("previous_stage"):
        raise ConfigError(f"{folder.address}: the second stage of a cascade; run it by the expert command")
    architecture = configuration["architecture"]
    if architecture["network_class_name"] not in NETWORKS:
        refuse("network", architecture["network_class_name"])
    for key, said in architecture["arch_kwargs"].items():
        if key in architecture["_kw_requires_import"] and said is not None and not LAYER.fullmatch(str(said)):
            refuse(key, said)
    for key, allowed in CHOICES.items():
        said = configuration.get(key)
        for one in said if isinstance(said, list) else [said]:
            if one is not None and one not in (allowed or RESAMPLING):
                refuse(key, one)
    if folder.plans.get("label_manager") not in (None, "LabelManager"):
        refuse("label_manager", folder.plans["label_manager"])


def _classes(folder: Folder, params: Params) -> dict[int, Named]:
    return scan_classes(folder.address, folder.labels, params)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """nnU-Net prints and warns of its own settings."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _json(address: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{address}: no {path.name} in it, so it is no model folder of nnU-Net v2") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{address}: {path.name} is no JSON ({error}); get it again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{address}: {path.name} holds no JSON object; get it again")
    return found
