"""Structures of the brain in T1-weighted MR of the head, by the MeshNet models of brainchop.

The invariant: the label map lies on the volume's own grid, and left and right are the patient's, whichever way the
volume is stored. brain.py makes a volume expert of it.

    tissue       white and grey matter; seconds
    subcortical  17 structures, both sides together
    parcels      103 structures and cortical parcels, left and right apart; trusted for the place only (trust "box"), as
                 their borders on the cortex are not those of another atlas

Method: the volume is brought to 1 mm along the body's axes (transforms/networks/grid.py), its values so that the 2nd
percentile is 0 and the 98th 1; then the network (transforms/networks/meshnet.py) runs in the box of the head. Where
`tissue` sees brain (its largest piece), and there with a margin, the larger two run; parcels outside of it are taken
away, as that model calls skull and neck brain. The method is that of brainchop (Masoud et al., JOSS 8:5098, 2023).

Measured on the MNI ICBM 152 template, an average of many heads (tests/benchmarks/experts.py): Dice with its own tissue
maps 0.72 (white) and 0.75 (grey matter) for `tissue`, 0.88 for cerebral white matter of `subcortical`; 99.5 % of the
voxels of `parcels` lie on the side they name. Children, lesions and operated brains were not tried.

>>> labels, classes = segment(values, affine, "subcortical")
>>> hippocampus = labels == next(c.value for c in classes if c.label == "hippocampus")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import yaml

from infra.errors import ConfigError, Terminal
from infra.keys import canonical, sha256
from infra.weights import locate, named
from transforms.experts.card import Card, Class, Trust
from transforms.networks.grid import conform, crop_to, to_native
from transforms.networks.meshnet import MeshNet, open_meshnet
from transforms.networks.onnxmodel import REQUIRES as ONNX_REQUIRES
from transforms.networks.onnxmodel import Values

Model = Literal["tissue", "subcortical", "parcels"]
Labels = npt.NDArray[np.uint8]

VERSION = "1"
REQUIRES: Mapping[str, str] = {**ONNX_REQUIRES, "scipy": "scipy"}
WEIGHTS: Mapping[Model, tuple[str, ...]] = {
    "tissue": ("meshnet-tissue",),
    "subcortical": ("meshnet-tissue", "meshnet-subcortical"),
    "parcels": ("meshnet-tissue", "meshnet-parcels"),
}
"""model -> names in weights.yaml: the model itself is the last, the one that finds the brain for it the first"""

HEAD = 0.1
"""Normalised value from which a voxel is head and not air."""
MARGIN = 10
"""Millimetres around the head or the brain that a network sees."""
RIM = 3
"""Millimetres around white and grey matter in which a parcel may lie: the cortex of `parcels` is a little wider."""

_TRUST: Mapping[Model, Trust] = {"tissue": "boundary", "subcortical": "boundary", "parcels": "box"}
_MEMORY: Mapping[Model, float] = {"tissue": 2, "subcortical": 4, "parcels": 4}


@cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_name("meshnet.yaml").read_text())
    return table


def _classes(model: Model) -> Iterator[tuple[str, Class]]:
    """(the model's own name, class) of all that a model tells, without values."""
    for name, entry in _table()["structures"].items():
        if model in entry["models"]:
            pair = model == "parcels" and entry.get("pair", False)
            for own, side in (("Left-", "left "), ("Right-", "right ")) if pair else (("", ""),):
                yield own + name, Class(side + entry["label"], "organ", entry.get("id"))
    for name, label in _table()["cortex"].items() if model == "parcels" else ():
        for own, side in (("ctx-lh-", "left "), ("ctx-rh-", "right ")):
            yield own + name, Class(side + label, "organ")


CARDS: Mapping[Model, Card] = {
    model: Card(
        family="label_map", trust=_TRUST[model], classes=tuple(c for _, c in _classes(model)), modalities=("MR",),
        anatomy=("brain", "head"), ndim=3, value_space="raw", licence_weights="MIT", weights=weights,
        memory_gb=_MEMORY[model],
    )
    for model, weights in WEIGHTS.items()
}


def weights_sha256(model: Model) -> str:
    """One hash of all the weights that a model uses, the same on every machine."""
    return sha256(canonical({name: named(name).identity for name in WEIGHTS[model]}))


def segment(values: npt.ArrayLike, affine: npt.ArrayLike, model: Model = "tissue") -> tuple[Labels, tuple[Class, ...]]:
    """The label map of a volume and what its values mean.

    `values`: (x, y, z), any scale; `affine`: (4, 4), from voxels to RAS mm. Returns labels, uint8 (x, y, z), 0 where
    there is none of the classes, and the classes with their values. Raises Terminal for a volume that cannot be looked
    at, and ConfigError where weights are missing, or are not those of weights.yaml.
    """
    networks = [_network(locate(name)) for name in WEIGHTS[model]]
    classes = _valued(model, networks[-1])
    conformed, there = conform(values, affine)
    labels = _labels(_normalised(conformed), networks, model)
    return to_native(labels, there, np.shape(values), affine), classes


def _labels(head: Values, networks: list[MeshNet], model: Model) -> Labels:
    tissue = _within(head, head > HEAD, networks[0])
    brain = _largest(tissue > 0)
    if model == "tissue":
        return np.where(brain, tissue, 0).astype(np.uint8)
    if not brain.any():
        return tissue
    labels = _within(head, brain, networks[-1])
    return np.where(_filled(brain), labels, 0).astype(np.uint8) if model == "parcels" else labels


def _within(head: Values, mask: npt.NDArray[np.bool_], network: MeshNet) -> Labels:
    """The labels in the box of a mask and around it, 0 elsewhere."""
    box = crop_to(mask, MARGIN)
    labels = np.zeros(head.shape, np.uint8)
    labels[box] = network.classify(np.ascontiguousarray(head[box]))
    return labels


def _normalised(volume: Values) -> Values:
    low, high = (np.float32(value) for value in np.quantile(volume, (0.02, 0.98)))
    if high <= low:
        raise Terminal("VOLUME_EMPTY", "nearly all voxels have one value; there is no head in the volume")
    return np.asarray(np.clip((volume - low) / (high - low), 0, 1), np.float32)


def _largest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    from scipy import ndimage

    pieces, count = ndimage.label(mask)
    return np.asarray(pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])) if count else mask


def _filled(brain: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The brain with its rim and its ventricles."""
    from scipy import ndimage

    box = crop_to(brain, MARGIN)
    filled = np.zeros_like(brain)
    filled[box] = ndimage.binary_fill_holes(ndimage.binary_dilation(brain[box], iterations=RIM))
    return filled


@cache
def _network(folder: Path) -> MeshNet:
    return open_meshnet(folder)


def _valued(model: Model, network: MeshNet) -> tuple[Class, ...]:
    known = dict(_classes(model))
    for name in network.names[1:]:
        if name not in known:
            raise ConfigError(f"{WEIGHTS[model][-1]}: the class {name!r} is not in transforms/experts/meshnet.yaml")
    return tuple(
        Class(known[name].label, known[name].role, known[name].ontology_id, value)
        for value, name in enumerate(network.names) if value
    )
