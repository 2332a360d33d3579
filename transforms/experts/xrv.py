"""Expert: fourteen structures of a frontal chest radiograph, by the PSPNet of TorchXRayVision (ChestX-Det).

The invariant: masks may overlap, each lies on the grid of the stored picture, and the weights are read as tensors
alone from a file that the recipe names: nothing is downloaded.

    - use: ground
      experts: [xrv]
      options:
        xrv: {model: /models/pspnet_chestxray_best_model_4.pth}

The network's definition is the library's own; the rest of the library is not imported, as it would need torchvision
(which has to match torch to the build) and would fetch weights by itself. The picture is put into a black square, so
that no rim is lost, and brought to 512 x 512, the size it was trained at. Left and right are the model's words: the
patient's, on a picture hung as usual. Its class "Weasand" is called trachea here. Trained on adults; Lian et al., IEEE
TMI 40:2042, 2021; Cohen et al., MIDL 2022.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from infra.errors import ConfigError, Terminal
from infra.settings import be_quiet
from infra.storage import resolve
from transforms.adapters.checkpoints import digest, fill, tensors
from transforms.adapters.networks import DIGITS, check_device, finite, steady
from transforms.adapters.wanted import Shown, card_of, refuse_others
from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Class, Trust
from transforms.knowledge.embedding import Device

NAME = "xrv"
VERSION = "1"
REQUIRES: Mapping[str, str] = {"torch": "torch", "torchxrayvision": "torchxrayvision (with --no-deps)"}
CLASSES = (
    Class("left clavicle", "organ"), Class("right clavicle", "organ"), Class("left scapula", "organ"),
    Class("right scapula", "organ"), Class("left lung", "organ", "UBERON:0002168"),
    Class("right lung", "organ", "UBERON:0002167"), Class("left hilum", "organ"), Class("right hilum", "organ"),
    Class("heart", "organ", "UBERON:0000948"), Class("aorta", "organ", "UBERON:0000947"),
    Class("diaphragm", "organ", "UBERON:0001103"), Class("mediastinum", "organ", "UBERON:0003728"),
    Class("trachea", "organ", "UBERON:0003126"), Class("spine", "organ", "UBERON:0001130"),
)
"""In the order of the network's outputs."""
CARD = Card(
    family="label_map", trust="boundary", classes=CLASSES, modalities=("DX", "CR"), anatomy=("chest", "thorax", "lung"),
    value_space="grey8", licence_code="Apache-2.0", licence_weights="as the model says", commercial=None, memory_gb=3,
)
TRUST = CARD.trust

SIDE = 512
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, by which the library normalises values of 0 to 1."""
_NETWORK = "torchxrayvision.baseline_models.chestx_det.ptsemseg"


class Params(Shown):
    """What a recipe may set for the xrv expert."""

    model: str = Field(exclude=True, description="the library's pspnet_chestxray_best_model_4.pth")
    modalities: tuple[str, ...] = Field(CARD.modalities, description="codes of modalities it is shown")
    anatomy: tuple[str, ...] = Field(
        CARD.anatomy, description="words one of which the picture's anatomy must hold, where it is known"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="probability from which a pixel belongs to a structure")
    min_area: int = Field(1, ge=1, description="smallest region, in pixels")
    device: Device = Field("cpu", description="cpu or cuda")
    trust: Trust = Field("boundary", description="how far its outlines may be believed: boundary, box or presence")


def card(params: Params) -> Card:
    """Its card with these parameters."""
    return card_of(CARD, params, CLASSES, trust=params.trust)


def ingredients(params: Params) -> Mapping[str, str]:
    """The hash of the weights. Raises ConfigError where they are not there."""
    return {"model": digest(_weights(params))}


def applies(image: Mapping[str, Any]) -> str | None:
    """Why it does not look at the image."""
    return CARD.why_not(image)


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> Iterator[Region]:
    """One region a structure that is seen; its score is its pixels' mean probability. Raises Dropped, Terminal."""
    refuse_others(card(params), image)
    check_device(params.device)
    path = _weights(params)
    network = _opened(path, digest(path), params.device)
    for found, share in zip(CLASSES, _shares(network, pixels, params.device), strict=True):
        mask = share > params.threshold
        if np.count_nonzero(mask) >= params.min_area:
            score = round(float(share[mask].mean()), DIGITS)
            yield Region(found.label, found.role, mask=mask, ontology_id=found.ontology_id, score=score)


def _shares(network: Any, pixels: Pixels, device: str) -> npt.NDArray[np.float32]:
    """(14, height, width) probabilities on the grid of the picture."""
    import torch
    from PIL import Image

    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float32) / 255
    height, width = grey.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side), np.float32)
    square[top : top + height, left : left + width] = grey
    functional = torch.nn.functional
    with steady(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the library calls interpolate by a name of old
        try:
            values = torch.from_numpy(square)[None, None]
            values = functional.interpolate(values, size=(SIDE, SIDE), mode="bilinear", antialias=True)
            mean, spread = (torch.tensor(numbers)[None, :, None, None] for numbers in (MEAN, SPREAD))
            told = finite(network(((values - mean) / spread).to(device))).sigmoid()
            large = functional.interpolate(told, size=(side, side), mode="bilinear", align_corners=False)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise Terminal("OUT_OF_MEMORY", "the picture does not fit into memory; use device cpu") from None
    return np.asarray(large[0, :, top : top + height, left : left + width].cpu().numpy())


def _weights(params: Params) -> Path:
    path = resolve(params.model)
    if not path.is_file():
        raise ConfigError(f"{params.model}: no file; name the library's pspnet_chestxray_best_model_4.pth")
    return path


@lru_cache(maxsize=2)
def _opened(path: Path, sha256: str, device: str) -> Any:
    be_quiet()
    held = tensors(path)
    weights = {name.removeprefix("module."): value for name, value in held.items()}  # it was trained in parallel
    return fill(_definition()(len(CLASSES)), weights, path.name).to(device)


def _definition() -> Any:
    """The library's class of the network, from its own file; the packages around it are not imported."""
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None or spec.origin is None:
        raise ConfigError("torchxrayvision is not installed: pip install --no-deps torchxrayvision")
    folder = Path(spec.origin).parent.joinpath(*_NETWORK.split(".")[1:])
    name = f"_medloom_{folder.name}"
    if name not in sys.modules:
        whole = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if whole is None or whole.loader is None or not (folder / "pspnet.py").is_file():
            raise ConfigError("this torchxrayvision has no PSPNet where version 1.5 has it; install 1.5.7")
        sys.modules[name] = importlib.util.module_from_spec(whole)
        whole.loader.exec_module(sys.modules[name])
    return importlib.import_module(f"{name}.pspnet").pspnet
