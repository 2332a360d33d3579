"""Expert: 159 structures of a chest radiograph by CXAS, a program of an environment of its own.

The invariant: CXAS is not imported (it holds pydicom below 3) and fetches nothing: it is shown a folder in which its
weights lie already, and their hash enters the key. Masks may overlap; classes that the recipe does not name are left
out.

    - use: ground
      experts: [cxas]
      options:
        cxas:
          program: $CXAS_ENV/bin/cxas_segment
          weights: /models/cxas                      # holds .cxas/weights/UNet_ResNet50_default.pth
          pinned: 9d21…                              # SHA-256 of that file
          labels: {heart: {label: heart, role: organ}, right lung: {label: right lung, role: organ}}

CXAS reads its weights as a pickle, which may run code, in its environment and under our limits (adapters/commands.py).
So the file's hash is pinned, or, without `pinned`, it is first seen to hold nothing but tensors. Its program writes
{out}/image/CLASS.png, one mask a class on the grid of the picture. Seibold et al., MIDL 2023. MIT.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from infra.errors import ConfigError, Terminal
from infra.storage import resolve
from transforms.adapters.checkpoints import digest, tensors
from transforms.adapters.commands import program_of, run
from transforms.adapters.pictures import label_picture
from transforms.adapters.wanted import Named, Shown, card_of, refuse_others
from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Trust
from transforms.knowledge.embedding import Device

NAME = "cxas"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}
CARD = Card(
    family="label_map", trust="boundary", modalities=("DX", "CR"), anatomy=("chest", "thorax", "lung"),
    value_space="grey8", licence_code="MIT", licence_weights="as the model says", commercial=None, memory_gb=6,
)
TRUST = CARD.trust

MODEL = "UNet_ResNet50_default"
WEIGHTS = Path(".cxas", "weights", f"{MODEL}.pth")
PICTURE = "image"
"""Name, without ending, of the picture that commands.run writes: CXAS calls its folder so."""


class Params(Shown):
    """What a recipe may set for the cxas expert."""

    program: str = Field(description="cxas_segment of its environment; $VARIABLES are expanded")
    weights: str = Field(exclude=True, description="folder in which .cxas/weights lies")
    pinned: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="SHA-256 of the weights; null: tensors only")
    labels: Mapping[str, Named] = Field(min_length=1, description="CXAS's name of a class -> label and role")
    modalities: tuple[str, ...] = Field(CARD.modalities, description="codes of modalities it is shown")
    anatomy: tuple[str, ...] = Field(
        CARD.anatomy, description="words one of which the picture's anatomy must hold, where it is known"
    )
    device: Device = Field("cpu", description="cpu or cuda")
    min_area: int = Field(1, ge=1, description="smallest region, in pixels")
    seconds: float = Field(300, gt=0, exclude=True, description="time that one picture may take")
    memory_gb: float | None = Field(16, gt=0, exclude=True, description="address space it may have; null: no limit")
    trust: Trust = Field("boundary", description="how far its outlines may be believed: boundary, box or presence")

    @field_validator("labels")
    @classmethod
    def _are_files(cls, labels: Mapping[str, Named]) -> Mapping[str, Named]:
        for name in labels:
            if Path(name).name != name:
                raise ValueError(f"class {name!r}: a mask's name is a file's name")
        return labels


def card(params: Params) -> Card:
    """What it finds with these parameters."""
    return card_of(CARD, params, (named.as_class() for named in params.labels.values()), trust=params.trust)


def ingredients(params: Params) -> Mapping[str, str]:
    """The hash of the weights. Raises ConfigError for a program or weights that are not there, or may not be run."""
    program_of((params.program,))
    path = resolve(params.weights) / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"{params.weights}: no {WEIGHTS.as_posix()} in it; CXAS would fetch it, so put it there")
    found = digest(path)
    if params.pinned is None:
        _tensors_alone(path, found)
    elif found != params.pinned:
        raise ConfigError(f"{params.weights}: the SHA-256 of its weights is {found}, pinned is {params.pinned}")
    return {"model": found}


def applies(image: Mapping[str, Any]) -> str | None:
    """Why it does not look at the image."""
    return CARD.why_not(image)


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> list[Region]:
    """One region a class that is there, by name. Raises Dropped for a picture it is not to see, Terminal."""
    refuse_others(card(params), image)
    ingredients(params)
    command = (
        params.program, "-i", "{image}", "-o", "{out}", "-s", "-ot", "png", "-m", MODEL, "-g",
        "cpu" if params.device == "cpu" else "0",
    )
    room = {"CXAS_PATH": str(resolve(params.weights)), "CXAS_NO_WELCOME": "1"}
    return run(
        command, pixels, image, room, seconds=params.seconds, memory_gb=params.memory_gb,
        read=partial(_read, params, (pixels.shape[0], pixels.shape[1])),
    )


def _read(params: Params, size: tuple[int, int], out: Path) -> list[Region]:
    there = {path.stem for path in (out / PICTURE).glob("*.png")}
    if not there:
        raise Terminal("NO_OUTPUT", f"CXAS ended well but wrote no {PICTURE}/CLASS.png into {{out}}")
    if not there & set(params.labels):
        raise Terminal("NO_KNOWN_CLASS", f"CXAS wrote {min(there)}.png, which `labels` does not name")
    found = []
    for name, named in sorted(params.labels.items()):
        if name not in there:
            continue
        mask = label_picture(out / PICTURE / f"{name}.png", size) != 0
        if mask.sum() >= params.min_area:
            found.append(Region(named.label, named.role, mask=mask, ontology_id=named.ontology_id))
    return found


@lru_cache(maxsize=4)
def _tensors_alone(path: Path, sha256: str) -> None:
    """Raises ConfigError for weights that hold more than tensors."""
    tensors(path)
