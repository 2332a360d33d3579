"""W-Net, the vessel network of lwnet: two small U-Nets, the second of which sees the picture and the first's answer.

Galdran et al., "The Little W-Net That Could", arXiv 2009.01907; checkpoints at github.com/agaldran/lwnet (MIT).
The invariant: the depth and the widths are read from the checkpoint, and every weight in it is used; a checkpoint with
anything more or less is refused. It is read as tensors only (`weights_only`), no code in it is run.

>>> to_onnx(locate("lwnet-vessels"))   # (1, 3, H, W) values 0 to 1 -> logits (1, K, H, W); H and W multiples of 8
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import ConfigError
from transforms.networks.onnxmodel import Graph

VERSION = "1"
CHECKPOINT = "model_checkpoint.pth"

Tensors = Mapping[str, npt.NDArray[Any]]


def to_onnx(folder: Path) -> bytes:
    """The network of a folder that holds a checkpoint. Raises ConfigError for one that is no W-Net."""
    path = folder / CHECKPOINT
    weights = _Weights(_tensors(path))
    graph = Graph()
    try:
        first = _unet(graph, weights, "unet1", "input")
        logits = _unet(graph, weights, "unet2", graph.add("Concat", ["input", first], axis=1))
        classes, colours = len(weights["unet2.final.bias"]), weights["unet1.first.block.0.weight"].shape[1]
    except KeyError as error:
        raise ConfigError(f"{path}: no W-Net, {error.args[0]} is not in it") from error
    if unused := weights.unused():
        raise ConfigError(f"{path}: no W-Net that is known, {unused[0]} in it has no place")
    return graph.model((1, colours, "height", "width"), logits, (1, classes, "height", "width"))


def _tensors(path: Path) -> Tensors:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"]
        return {name: tensor.numpy() for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read as a checkpoint of tensors ({error})") from error


class _Weights:
    """Tensors by name, with a book of those that were used."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._used: set[str] = set()

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        self._used.add(name)
        return self._tensors[name]

    def count(self, prefix: str) -> int:
        """How many numbered parts a list of parts has."""
        inner = (name.removeprefix(f"{prefix}.") for name in self._tensors if name.startswith(f"{prefix}."))
        return len({name.partition(".")[0] for name in inner})

    def unused(self) -> list[str]:
        return sorted(set(self._tensors) - self._used)


def _unet(graph: Graph, weights: _Weights, name: str, value: str) -> str:
    value = _block(graph, weights, f"{name}.first", value)
    skipped = []
    for depth in range(weights.count(f"{name}.down_path")):
        skipped.append(value)
        value = graph.add("MaxPool", [value], kernel_shape=[2, 2], strides=[2, 2])
        value = _block(graph, weights, f"{name}.down_path.{depth}", value)
    for step, skip in enumerate(reversed(skipped)):
        up = f"{name}.up_path.{step}"
        value = graph.add("ConvTranspose", [value, *_pair(weights, f"{up}.up_layer.block.0")], strides=[2, 2])
        bridge = _layer(graph, weights, f"{up}.conv_bridge_layer.block", 0, skip)
        value = _block(graph, weights, f"{up}.conv_layer", graph.add("Concat", [value, bridge], axis=1))
    return graph.add("Conv", [value, *_pair(weights, f"{name}.final")])


def _block(graph: Graph, weights: _Weights, name: str, value: str) -> str:
    """Two layers, and a shortcut past them."""
    deep = _layer(graph, weights, f"{name}.block", 3, _layer(graph, weights, f"{name}.block", 0, value))
    short = graph.add("Conv", [value, weights[f"{name}.shortcut.0.weight"]])
    return graph.add("Add", [deep, _normalised(graph, weights, f"{name}.shortcut.1", short)])


def _layer(graph: Graph, weights: _Weights, name: str, at: int, value: str) -> str:
    """Convolution, ReLU and batch normalisation, which follow each other from place `at`."""
    value = graph.add("Conv", [value, *_pair(weights, f"{name}.{at}")], pads=[1, 1, 1, 1])
    return _normalised(graph, weights, f"{name}.{at + 2}", graph.add("Relu", [value]))


def _normalised(graph: Graph, weights: _Weights, name: str, value: str) -> str:
    parts = [weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
    return graph.add("BatchNormalization", [value, *parts], epsilon=1e-5)


def _pair(weights: _Weights, name: str) -> list[npt.NDArray[np.float32]]:
    return [weights[f"{name}.weight"], weights[f"{name}.bias"]]
