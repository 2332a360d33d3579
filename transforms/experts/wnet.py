"""Expert: blood vessels in colour fundus photographs, by the W-Net of lwnet; arteries and veins apart where asked for.

The invariant: at most one region a class, on the stored image's own pixels and within its field of view; a picture
that is no colour fundus photograph is refused. Outlines are believed (trust "boundary"); where arteries and veins
cross, they are sometimes taken for one another.

Method, as published (Galdran et al., arXiv 2009.01907; predict_one_image.py and predict_one_image_av.py of lwnet): crop
to the field of view, 512 by 512, mean of the probabilities of the picture and its three flips, back by bicubic
interpolation, threshold 0.42. Of arteries and veins, half of what is "uncertain" goes to each, and the likeliest class
is taken. The authors give Dice 0.81 on DRIVE's validation images for vessels. Pathology was not tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from infra.errors import Dropped
from infra.weights import locate, missing, named
from transforms.decoded import Pixels, Region
from transforms.experts import foreground
from transforms.experts.card import Card, Class
from transforms.networks import wnet
from transforms.networks.onnxmodel import REQUIRES as ONNX_REQUIRES
from transforms.networks.onnxmodel import Run, Values, open_model

NAME = "wnet"
VERSION = "1"
VESSELS = Class("retinal vessels", "organ")
ARTERIES = Class("retinal arteries", "organ")
VEINS = Class("retinal veins", "organ")
WEIGHTS: Mapping[str, str] = {"vessels": "lwnet-vessels", "artery_vein": "lwnet-artery-vein"}
CARD = Card(
    family="label_map", trust="boundary", classes=(VESSELS, ARTERIES, VEINS), modalities=("OP",),
    anatomy=("retina", "eye", "fundus", "optic", "macula"), value_space="rgb8", licence_weights="MIT",
    weights=tuple(WEIGHTS.values()),
)
TRUST = CARD.trust
REQUIRES: Mapping[str, str] = {**ONNX_REQUIRES, "torch": "medloom[experts]", "scipy": "scipy"}

SIDE = 512
"""Pixels on a side of what the network was trained on."""
FLIPS = ((), (2,), (3,), (2, 3))
"""Axes of (1, colours, height, width) that are flipped."""


class Params(BaseModel):
    """What a recipe may set for the vessel expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: Literal["vessels", "artery_vein"] = Field(
        "vessels", description="all vessels as one region, or arteries and veins as two, by a larger network"
    )
    threshold: float = Field(0.42, gt=0, lt=1, description="probability from which a pixel is a vessel (vessels only)")
    flips: bool = Field(True, description="mean over the picture's flips, as published; false is four times as fast")


def available() -> str | None:
    """Why it cannot run here: none of its weights are here."""
    lacking = [reason for name in WEIGHTS.values() if (reason := missing(name))]
    return lacking[0] if len(lacking) == len(WEIGHTS) else None


def ingredients(params: Params) -> Mapping[str, str]:
    """The hash of the weights. Raises ConfigError where they are missing or are others, before any work is done."""
    name = WEIGHTS[params.classes]
    locate(name)
    return {name: named(name).identity}


def applies(image: Mapping[str, Any]) -> str | None:
    """Why the expert does not look at this image (a row of `images`), or None when it does."""
    return CARD.why_not(image)


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> Iterator[Region]:
    """The vessels, or nothing where the picture is blank or has none. Raises Dropped for what is no colour fundus."""
    if pixels.ndim == 2:
        raise Dropped("NOT_COLOUR", "the picture is grey; the network knows colour fundus photographs only")
    fields = foreground.find(pixels, {"modality": "OP"}, foreground.Params())
    if not fields or fields[0].mask is None:
        return
    field = fields[0].mask
    red, _, blue = np.median(pixels[field], axis=0)
    if red <= blue:
        raise Dropped("NOT_FUNDUS", "the picture is not reddish, as every colour fundus photograph is")
    name = WEIGHTS[params.classes]
    chances = _chances(_opened(locate(name), name), pixels, field, params.flips)
    for kind, mask, chance in _told(chances, params):
        mask &= field
        if mask.any():
            score = round(float(chance[mask].mean()), 3)
            yield Region(kind.label, kind.role, mask=mask, ontology_id=kind.ontology_id, score=score)


def _told(chances: Values, params: Params) -> Iterator[tuple[Class, npt.NDArray[np.bool_], Values]]:
    if params.classes == "vessels":
        yield VESSELS, chances[0] >= params.threshold, chances[0]
        return
    background, uncertain, artery, vein = chances
    apart = np.stack([background, artery + uncertain / 2, vein + uncertain / 2])
    best = apart.argmax(axis=0)
    yield ARTERIES, best == 1, apart[1]
    yield VEINS, best == 2, apart[2]


def _chances(run: Run, pixels: Pixels, field: npt.NDArray[np.bool_], flips: bool) -> Values:
    """(classes, height, width): probabilities in the box of the field of view, 0 around it."""
    rows, columns = (np.flatnonzero(field.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    crop = Image.fromarray(pixels[box])
    small = crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    values = (np.asarray(small, np.float32) / 255).transpose(2, 0, 1)[None]
    each = [
        np.flip(_softened(run(np.ascontiguousarray(np.flip(values, flip)))), flip)
        for flip in (FLIPS if flips else FLIPS[:1])
    ]
    mean: Values = np.stack(each).mean(axis=0)[0]
    chances = np.zeros((len(mean), *field.shape), np.float32)
    for out, chance in zip(chances, mean, strict=True):
        out[box] = np.asarray(Image.fromarray(chance).resize(crop.size, Image.Resampling.BICUBIC)).clip(0, 1)
    return chances


def _softened(logits: Values) -> Values:
    """Probabilities: of one class by itself (sigmoid), of several among each other (softmax)."""
    if logits.shape[1] == 1:
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


@cache
def _opened(folder: Path, name: str) -> Run:
    """The network; once a worker and folder."""
    return open_model(name, wnet.to_onnx, wnet.VERSION)
