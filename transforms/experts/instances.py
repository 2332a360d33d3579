"""Expert: a model that tells things of one kind apart (InstanSeg, Cellpose, StarDist), one region an instance.

The invariant: a pixel belongs to at most one instance, an instance is one region with the label that the recipe gives,
and all instances are kept, however many there are. No instance is an answer.

    - use: ground                                    # InstanSeg, in this process
      experts: [instances]
      options:
        instances:
          backend: instanseg
          model: /models/instanseg/brightfield_nuclei/0.1.1/instanseg.pt
          pinned: 5f0c…                              # SHA-256 of that file
          label: {label: nucleus, role: cell}
    - use: ground                                    # Cellpose, by its own program
      experts: [instances]
      options:
        instances:
          backend: command
          command: [$CELLPOSE/bin/cellpose, --image_path, "{image}", --savedir, "{out}", --save_png, --no_npy,
                    --pretrained_model, $MODELS/cpsam_v2]
          file: image_cp_masks.png
          files: [$MODELS/cpsam_v2]
          label: {label: cell, role: cell}

An InstanSeg model is TorchScript, that is a program: it runs only where `pinned` is the hash of its file, and whoever
pins it vouches for it. Its picture is brought to the pixel size that the model was trained at where the picture's own
is known or `microns` says it, and its values to their 0.1st and 99.9th percentile, as the library does (Goldsborough et
al., arXiv:2408.15954). Cellpose 4 (a network of 1.2 GB, needs torchvision) and StarDist (needs TensorFlow) run as
programs of their own environments; StarDist's is `stardist-predict2d -i {image} -o {out} -m FOLDER`, which writes
image.stardist.tif. What a program writes is a picture of one channel, a number an instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from infra.errors import ConfigError, Terminal
from infra.settings import be_quiet
from infra.storage import resolve
from transforms.adapters.checkpoints import digest, scripted
from transforms.adapters.commands import program_of, run
from transforms.adapters.folders import contents_sha256
from transforms.adapters.networks import check_device, finite, steady
from transforms.adapters.pictures import label_picture
from transforms.adapters.wanted import Named, Shown, card_of, refuse_others
from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Trust
from transforms.knowledge.embedding import Device

NAME = "instances"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}
CARD = Card(
    family="label_map", trust="boundary", value_space="rgb8", licence_code="as the program says",
    licence_weights="as the model says", commercial=None, memory_gb=4,
)
TRUST = CARD.trust

RIM = 0.1
"""Percentile that becomes 0, from either end."""
CLOSE = 0.01
"""Pixel sizes that differ by less than this share are one: a picture is not resampled for it."""


class Params(Shown):
    """What a recipe may set for the instances expert."""

    backend: Literal["instanseg", "command"] = Field(description="instanseg: in this process; command: another program")
    label: Named = Field(description="what an instance is called: label and role")
    min_area: int = Field(1, ge=1, description="smallest instance, in pixels")
    trust: Trust = Field("boundary", description="how far its outlines may be believed: boundary, box or presence")
    model: str | None = Field(None, exclude=True, description="instanseg: its instanseg.pt, a TorchScript file")
    pinned: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="instanseg: SHA-256 of the model's file, which is run as a program"
    )
    output: int = Field(0, ge=0, description="instanseg: which of the model's outputs: 0 nuclei, 1 cells where it has "
                        "both")
    microns: float | None = Field(None, gt=0, description="instanseg: size of a pixel, where the picture does not say")
    device: Device = Field("cpu", description="instanseg: cpu or cuda")
    command: tuple[str, ...] = Field(
        (), description="command: program and arguments with {image}, {facts}, {out}; $VARIABLES are expanded"
    )
    file: str = Field("labels.png", description="command: the label map it writes into {out}, PNG or TIFF")
    version: str | None = Field(None, description="command: what to call the program; a new one runs it again")
    files: tuple[str, ...] = Field((), exclude=True, description="command: files that decide what it says")
    environment: Mapping[str, str] = Field(default_factory=dict, description="command: variables it is given")
    seconds: float = Field(300, gt=0, exclude=True, description="command: time that one picture may take")
    memory_gb: float | None = Field(16, gt=0, exclude=True, description="command: address space; null: no limit")

    @model_validator(mode="after")
    def _is_whole(self) -> Params:
        if self.backend == "instanseg":
            if not self.model or not self.pinned:
                raise ValueError("instanseg needs `model` and `pinned`: its model is a program, so its hash is pinned")
        elif not all(any(mark in argument for argument in self.command[1:]) for mark in ("{image}", "{out}")):
            raise ValueError("command needs a program with {image} and {out} among its arguments")
        elif self.version is None and not self.files:
            raise ValueError("give `files` or `version`: without, nobody sees that the program has changed")
        if Path(self.file).name != self.file:
            raise ValueError(f"file {self.file!r}: a file of the folder {{out}} itself")
        return self


def card(params: Params) -> Card:
    """What it finds with these parameters."""
    return card_of(CARD, params, (params.label.as_class(),), trust=params.trust)


def ingredients(params: Params) -> Mapping[str, str]:
    """The hash of the model or of the files. Raises ConfigError for what is not there or is another."""
    if params.backend == "instanseg":
        path = _model(params)
        if (found := digest(path)) != params.pinned:
            raise ConfigError(f"{params.model}: its SHA-256 is {found}, pinned is {params.pinned}; it was not run")
        return {"model": found}
    program_of(params.command)
    return {f"file:{n}": contents_sha256(resolve(address)) for n, address in enumerate(params.files)}


def applies(image: Mapping[str, Any]) -> str | None:
    """None: which pictures it looks at is for the recipe to say, and `find` keeps to it."""
    return None


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> Iterator[Region]:
    """One region an instance, by its number. Raises Dropped for a picture it is not to see, Terminal where it fails."""
    refuse_others(card(params), image)
    size = (pixels.shape[0], pixels.shape[1])
    if params.backend == "instanseg":
        values = _instanseg(pixels, image, params)
    else:
        values = run(
            params.command, pixels, image, params.environment, seconds=params.seconds, memory_gb=params.memory_gb,
            read=partial(_read, params.file, size),
        )
    yield from regions(values, params.label, params.min_area)


def regions(values: npt.NDArray[np.integer[Any]], label: Named, least: int) -> Iterator[Region]:
    """One region for each number above 0 of a label map (height, width)."""
    from scipy import ndimage

    numbers, flat = np.unique(np.where(values > 0, values, 0), return_inverse=True)
    flat = flat.reshape(values.shape) + (0 if numbers[0] == 0 else 1)  # 0 is background, and the rest counts on
    for number, place in enumerate(ndimage.find_objects(flat), 1):
        if place is None:
            continue
        part = flat[place] == number
        if np.count_nonzero(part) >= least:
            mask = np.zeros(values.shape, bool)
            mask[place] = part
            yield Region(label.label, label.role, mask=mask, ontology_id=label.ontology_id)


def _read(name: str, size: tuple[int, int], out: Path) -> npt.NDArray[np.int32]:
    return label_picture(out / name, size)


def _model(params: Params) -> Path:
    path = resolve(str(params.model))
    if not path.is_file():
        raise ConfigError(f"{params.model}: no file; name the instanseg.pt itself")
    return path


def _instanseg(pixels: Pixels, image: Mapping[str, Any], params: Params) -> npt.NDArray[np.int32]:
    """The label map of the model's output on the grid of the picture."""
    import torch

    check_device(params.device)
    network = _opened(_model(params), str(params.pinned), params.device)
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    values = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).float()[None]
    scale = _scale(image, params, network)
    with steady():
        try:
            if scale != 1:
                values = torch.nn.functional.interpolate(values, scale_factor=scale, mode="bilinear")
            found = finite(network(_stretched(values).to(params.device)))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise Terminal("OUT_OF_MEMORY", "the picture does not fit into memory; use device cpu") from None
        if found.ndim != 4 or found.shape[1] <= params.output:
            raise ConfigError(f"{params.model}: it answers {tuple(found.shape)}, so it has no output {params.output}")
        if tuple(found.shape[-2:]) != pixels.shape[:2]:
            found = torch.nn.functional.interpolate(found, size=pixels.shape[:2], mode="nearest")
    return np.asarray(found[0, params.output].cpu().numpy(), np.int32)


def _scale(image: Mapping[str, Any], params: Params, network: Any) -> float:
    """What to enlarge the picture by, so that it has the model's pixel size; 1 where either is unknown."""
    spacing = image.get("pixel_spacing")
    own = params.microns or (1000 * float(spacing[0]) if spacing else None)
    wanted = float(getattr(network, "pixel_size", 0) or 0)
    scale = own / wanted if own and wanted else 1.0
    return 1.0 if abs(scale - 1) < CLOSE else scale


def _stretched(values: Any) -> Any:
    """(1, channels, h, w) with the outer percentiles of each channel at 0 and 1."""
    import torch

    for channel in values[0]:
        low, high = np.percentile(channel.numpy(), [RIM, 100 - RIM])
        channel.sub_(float(low)).div_(max(1e-3, float(high - low)))
    return torch.as_tensor(values)


@lru_cache(maxsize=2)
def _opened(path: Path, sha256: str, device: str) -> Any:
    be_quiet()
    return scripted(path, sha256, device)
