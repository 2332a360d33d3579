"""Volume expert: the brain in T1-weighted MR of the head, by deepbet and the two networks that ship in its package.

The invariant: the networks are TorchScript, which is a program, so they run only where their bytes are those of
WEIGHTS below: deepbet 1.0.2 as published. What is found lies on the scan's own grid.

    - use: ground_volumes
      experts: [brain_mask]

The mask includes the fluid around the brain. Whether a scan is T1-weighted its row does not say, so a recipe that names
this expert says it. The package lays its networks in a folder called `data` beside it, a name that other packages
claim, too; it is looked for by hash. Fisch et al., Computers in Biology and Medicine 179:108845, 2024: healthy adults.

Install: `pip install --no-deps deepbet==1.0.2 fill-voids connected-components-3d` beside torch, pandas and tqdm: the
requirements it declares bring a graphical toolkit. MIT, code and weights.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from infra.errors import ConfigError, Terminal
from infra.keys import canonical, sha256
from infra.settings import be_quiet
from infra.storage import resolve
from transforms.adapters.checkpoints import scripted
from transforms.adapters.networks import check_device, steady
from transforms.adapters.scans import Seen, refuse_scan, shown
from transforms.adapters.wanted import Shown, card_of
from transforms.experts.card import Card, Class
from transforms.experts.shapes import structure
from transforms.knowledge.embedding import Device
from transforms.scans.volumes import Scan, Structure

NAME = "brain_mask"
VERSION = "1"
REQUIRES: Mapping[str, str] = {
    "torch": "torch", "deepbet": "deepbet (with --no-deps)", "fill_voids": "fill-voids",
    "cc3d": "connected-components-3d", "pandas": "pandas", "tqdm": "tqdm",
}
WEIGHTS: Mapping[str, str] = {
    "bbox_model.pt": "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa",
    "model.pt": "de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd",
}
"""file -> SHA-256; the first finds the box of the brain, the second outlines it"""
BRAIN = Class("brain", "organ", "UBERON:0000955")
CARD = Card(
    family="label_map", trust="boundary", classes=(BRAIN,), modalities=("MR",), anatomy=("brain", "head"), ndim=3,
    value_space="raw", licence_code="MIT", licence_weights="MIT", memory_gb=2,
)


class Params(Shown):
    """What a recipe may set for the brain_mask expert."""

    modalities: tuple[str, ...] = Field(CARD.modalities, description="codes of modalities it is shown")
    anatomy: tuple[str, ...] = Field(
        CARD.anatomy, description="words one of which the scan's anatomy must hold, where it is known"
    )
    model: str | None = Field(
        None, exclude=True, description="folder with bbox_model.pt and model.pt; null: that of the package"
    )
    device: Device = Field("cpu", description="cpu or cuda")
    threshold: float = Field(0.5, gt=0, lt=1, description="probability from which a voxel is brain")
    licence: str | None = Field("MIT", description="licence of the weights, as an SPDX code")
    commercial: bool | None = Field(True, description="whether its regions may be used commercially")


def card(params: Params) -> Card:
    """Its card with these parameters."""
    return card_of(CARD, params, (BRAIN,))


def ingredients(params: Params) -> Mapping[str, str]:
    """The hash of the weights, which are the same everywhere. Raises ConfigError where they are not there."""
    _folder(params)
    return {"model": sha256(canonical(WEIGHTS))}


def segment(scan: Scan, params: Params) -> Iterator[Structure]:
    """The brain, or nothing where none is seen. Raises Dropped for a scan it is not to see, Terminal NO_SPACING."""
    refuse_scan(card(params), scan)
    seen = shown(scan, "RAS")
    check_device(params.device)
    found = _brain(_opened(_folder(params), params.device), seen, params.threshold)
    if found is not None and (made := structure(BRAIN, seen.back(found))) is not None:
        yield made


def _brain(extraction: Any, seen: Seen, threshold: float) -> Any:
    """The mask on the grid of `seen`; None where the first network sees nothing."""
    import torch

    if seen.values.max() == seen.values.min():
        return None
    with steady():
        try:
            share = extraction.run_model(seen.values.copy())
            if not np.isfinite(share).all():
                raise Terminal("NOT_FINITE", "the model's answer holds NaN or infinity")
            return np.asarray(extraction.postprocess(share > threshold), bool)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise Terminal("OUT_OF_MEMORY", "the scan does not fit into memory; use device cpu") from None
        except (ValueError, AssertionError) as error:
            if "empty sequence" in str(error) or "Not enough foreground" in str(error):
                return None  # deepbet says so where no voxel is brain
            raise


def _folder(params: Params) -> Path:
    if params.model is not None:
        folder = resolve(params.model)
    else:
        spec = importlib.util.find_spec("deepbet")
        if spec is None or spec.origin is None:
            raise ConfigError("deepbet is not installed: pip install --no-deps deepbet==1.0.2")
        folder = Path(spec.origin).parents[1] / "data" / "models"
    for name in WEIGHTS:
        if not (folder / name).is_file():
            raise ConfigError(f"{params.model or 'deepbet'}: no {name} in {folder}; install deepbet 1.0.2 again")
    return folder


@lru_cache(maxsize=2)
def _opened(folder: Path, device: str) -> Any:
    """deepbet with our networks in it: its own loading would take any file."""
    be_quiet()
    kind: Any = importlib.import_module("deepbet").BrainExtraction
    box, whole = (scripted(folder / name, digest, device) for name, digest in WEIGHTS.items())
    extraction = kind.__new__(kind)
    extraction.model, extraction.bbox_model, extraction.bbox = whole, box, None
    return extraction
