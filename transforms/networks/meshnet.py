"""MeshNet of brainchop: a chain of dilated 3-D convolutions that keeps the grid, published as TensorFlow.js layers.

Fedorov et al., IJCNN 2017 (arXiv 1612.00940); models at github.com/niivue/niivue-brainchop (MIT). A folder holds
model.json (topology and manifest), the weights file it names, and colormap.json with the names of the classes.
The invariant: only what is understood is run; a layer, an activation or a weight that is none of it is refused.

The last layer, a 1x1x1 convolution, is not part of the graph: its answer for 104 classes would fill 7 GB, so `classify`
takes the best class slab by slab.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import ConfigError
from transforms.networks.onnxmodel import Graph, Run, Values, session

VERSION = "1"
ACTIVATIONS: Mapping[str, str] = {"relu": "Relu", "elu": "Elu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
"""of Keras -> of ONNX"""
SLAB = 1 << 20
"""Voxels whose classes are told at once."""


@dataclass(frozen=True)
class Convolution:
    """A layer: kernel (out, in, x, y, z), bias (out,), dilation by axis, and the activation after it."""

    kernel: Values
    bias: Values
    dilation: tuple[int, ...]
    activation: str


@dataclass(frozen=True)
class MeshNet:
    """An opened network and the names of its classes, by value."""

    names: tuple[str, ...]
    run: Run
    head: Convolution

    def classify(self, values: Values) -> npt.NDArray[np.uint8]:
        """The class of each voxel of a normalised volume (x, y, z)."""
        features = self.run(values[None, None])[0].reshape(self.head.kernel.shape[1], -1)
        weight = self.head.kernel.reshape(len(self.head.kernel), -1)
        classes = np.empty(features.shape[1], np.uint8)
        for start in range(0, len(classes), SLAB):
            slab = slice(start, start + SLAB)
            classes[slab] = (weight @ features[:, slab] + self.head.bias[:, None]).argmax(axis=0)
        return classes.reshape(values.shape)


def open_meshnet(folder: Path) -> MeshNet:
    """The network of a folder. Raises ConfigError for one that is no MeshNet, or none that is known."""
    *trunk, head = read_layers(folder)
    names = tuple(_json(folder / "colormap.json")["labels"])
    if len(names) != len(head.bias) or len(names) > 256:
        raise ConfigError(f"{folder}: {len(names)} names for {len(head.bias)} classes; these files do not fit")
    return MeshNet(names, session(to_onnx(trunk)), head)


def to_onnx(trunk: Sequence[Convolution]) -> bytes:
    """The graph of all layers but the last: (1, 1, x, y, z) -> features (1, F, x, y, z), on any grid."""
    graph, value = Graph(), "input"
    for layer in trunk:
        reach = [d * (size // 2) for d, size in zip(layer.dilation, layer.kernel.shape[2:], strict=True)]
        value = graph.add("Conv", [value, layer.kernel, layer.bias], dilations=list(layer.dilation), pads=reach + reach)
        if layer.activation != "linear":
            value = graph.add(ACTIVATIONS[layer.activation], [value])
    grid = ("x", "y", "z")
    return graph.model((1, trunk[0].kernel.shape[1], *grid), value, (1, len(trunk[-1].bias), *grid))


def read_layers(folder: Path) -> list[Convolution]:
    """The layers of a model.json, in their order; the last is 1x1x1. Raises ConfigError for what is not understood."""
    path = folder / "model.json"
    model = _json(path)
    try:
        weights = _weights(folder, model["weightsManifest"])
        layers: list[Convolution] = []
        for entry in model["modelTopology"]["model_config"]["config"]["layers"]:
            _add(layers, entry["class_name"], entry["config"], weights)
    except (KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"{path}: no model of TensorFlow.js layers, {error!r}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if len(layers) < 2 or layers[-1].kernel.shape[2:] != (1, 1, 1) or layers[-1].activation != "linear":
        raise ConfigError(f"{path}: no MeshNet; the last layer of one is a plain 1x1x1 convolution")
    if weights:
        raise ConfigError(f"{path}: no MeshNet that is known; {next(iter(weights))} belongs to no layer")
    return layers


def _add(layers: list[Convolution], kind: str, config: Mapping[str, Any], weights: dict[str, Values]) -> None:
    """Append a layer, or join an activation to the last one; takes what it uses out of `weights`."""
    name = config["name"]
    if kind == "InputLayer":
        return
    if config.get("activation", "linear") not in (*ACTIVATIONS, "linear"):
        raise ValueError(f"the activation {config['activation']!r} of layer {name} is not known")
    if kind == "Activation" and layers and layers[-1].activation == "linear":
        last = layers.pop()
        layers.append(Convolution(last.kernel, last.bias, last.dilation, config["activation"]))
    elif kind == "Conv3D" and (config["padding"], config["data_format"]) == ("same", "channels_last") and (
        set(config["strides"]) == {1} and config.get("groups", 1) == 1
    ):
        kernel = weights.pop(f"{name}/kernel").transpose(4, 3, 0, 1, 2)
        bias = weights.pop(f"{name}/bias") if config.get("use_bias", True) else np.zeros(len(kernel), np.float32)
        layers.append(Convolution(kernel, bias, tuple(config["dilation_rate"]), config.get("activation", "linear")))
    else:
        raise ValueError(f"layer {name}, {kind} of these settings, is not known")


def _weights(folder: Path, manifest: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    """name -> tensor; the files of a group of the manifest lie end to end, in float32."""
    found: dict[str, Values] = {}
    for group in manifest:
        data = b"".join(_inside(folder, name).read_bytes() for name in group["paths"])
        start = 0
        for entry in group["weights"]:
            if entry["dtype"] != "float32" or "quantization" in entry:
                raise ValueError(f"{entry['name']} is not plain float32")
            size = 4 * int(np.prod(entry["shape"]))
            found[entry["name"]] = np.frombuffer(data[start : start + size], "<f4").reshape(entry["shape"])
            start += size
        if start != len(data):
            raise ValueError(f"{len(data)} bytes of weights where the manifest has {start}")
    return found


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder itself: the manifest is not to name any other."""
    if Path(name).name != name or not (folder / name).is_file():
        raise ValueError(f"there is no file {name!r} beside it")
    return folder / name


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
