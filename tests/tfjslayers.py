"""MeshNet models as TensorFlow.js layers, tiny and random, in the published form: what the ONNX graph is tried on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def conv(name: str, filters: int, size: int = 3, dilation: int = 1, **changes: Any) -> dict[str, Any]:
    """A Conv3D layer of model.json."""
    config = {
        "name": name, "filters": filters, "kernel_size": [size] * 3, "strides": [1, 1, 1], "padding": "same",
        "data_format": "channels_last", "dilation_rate": [dilation] * 3, "groups": 1, "activation": "linear",
        "use_bias": True,
    }
    return {"class_name": "Conv3D", "config": config | changes, "name": name}


def activation(name: str, function: str = "elu") -> dict[str, Any]:
    """An Activation layer of model.json."""
    return {"class_name": "Activation", "config": {"name": name, "activation": function}, "name": name}


def write_model(
    folder: Path, labels: Sequence[str], layers: Sequence[dict[str, Any]], weights: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Write model.json, its weights (random where none are given) and colormap.json; returns the weights by name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, filled, into = np.random.default_rng(0), {}, 1
    for layer in layers:
        if layer["class_name"] != "Conv3D":
            continue
        config = layer["config"]
        shape = (*config["kernel_size"], into, config["filters"])
        filled[f"{config['name']}/kernel"] = rng.normal(0, 1 / np.sqrt(np.prod(shape[:4])), shape)
        filled[f"{config['name']}/bias"] = rng.normal(0, 0.1, config["filters"])
        into = config["filters"]
    filled = {name: np.asarray(array, np.float32) for name, array in (filled | (weights or {})).items()}
    start = {"class_name": "InputLayer", "config": {"name": "input", "batch_input_shape": [None, 256, 256, 256, 1]}}
    model = {
        "format": "layers-model",
        "modelTopology": {"model_config": {"class_name": "Functional", "config": {"layers": [start, *layers]}}},
        "weightsManifest": [{
            "paths": ["group1-shard1of1.bin"],
            "weights": [{"name": n, "shape": list(a.shape), "dtype": "float32"} for n, a in filled.items()],
        }],
    }
    (folder / "model.json").write_text(json.dumps(model))
    (folder / "group1-shard1of1.bin").write_bytes(b"".join(a.tobytes() for a in filled.values()))
    (folder / "colormap.json").write_text(json.dumps({"labels": list(labels)}))
    return filled
