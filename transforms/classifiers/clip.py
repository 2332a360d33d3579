"""Classifier: zero-shot by an image-text model of the CLIP family that lies on this machine.

The invariant: nothing is downloaded, no code of the model's folder is run, and weights in pickle files are refused. The
vectors of a class's prompts (classes.yaml) are averaged; the score is the softmax of the cosine similarities times the
model's own scale.

    - use: image_type
      classifier: clip
      options: {model: /models/clip-vit-b-32}

`model` is a folder saved by sentence-transformers (it has a modules.json). A CLIP or SigLIP model in the layout of
transformers becomes one with `SentenceTransformer(FOLDER).save(NEW_FOLDER)`. BiomedCLIP is published for open_clip and
has to be converted to the layout of transformers first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator

from infra.errors import ConfigError
from infra.plugins import nearest
from transforms.classifiers.classes import Classify, table
from transforms.decoded import Pixels
from transforms.knowledge.embedding import Device, Embedder, one_thread_an_operation
from transforms.stage import Context, Resources

NAME = "clip"
VERSION = "1"
REQUIRES: Mapping[str, str] = {"sentence_transformers": "medloom[embed]"}
DIGITS = 4
"""Decimals of a score: more would only tell processors apart."""

Vectors = npt.NDArray[np.float32]


class Params(BaseModel):
    """What a recipe may set for the clip classifier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        exclude=True, description="folder of the model, or pkg:PACKAGE/PATH; ~ and $VARIABLES are expanded"
    )
    classes: tuple[str, ...] = Field((), description="codes of classes.yaml to choose among; empty: all of them")
    device: Device = Field("cpu", description="cpu or cuda")

    @field_validator("classes")
    @classmethod
    def _known(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        for code in classes:
            if code not in table():
                raise ValueError(f"there is no class {code!r}{nearest(code, list(table()))}; see classes.yaml")
        return classes


def ingredients(params: Params) -> Mapping[str, str]:
    """The hash of the model: its weights, its configuration and the device."""
    return {"model": _lying(params).fingerprint}


def resources(params: Params) -> Resources:
    """A GPU where the recipe asks for one."""
    return Resources(gpus=1 if params.device == "cuda" else 0)


def open_classifier(params: Params, context: Context) -> Classify:
    """Loads the model and embeds the prompts. Raises ConfigError for a model that does not see pictures."""
    model = _lying(params).model
    scale = getattr(getattr(model[0], "model", None), "logit_scale", None)
    if "image" not in model.modalities or scale is None:
        raise ConfigError(f"{params.model}: not an image-text model of the CLIP family; name one as `model`")
    codes = params.classes or tuple(table())
    prompts = np.stack([_mean(_vectors(model, table()[code].prompts)) for code in codes])
    return partial(_scores, model, codes, prompts * math.exp(scale.item()))


def _lying(params: Params) -> Embedder:
    return Embedder(params.model, device=params.device)


def _scores(model: Any, codes: Sequence[str], prompts: Vectors, pixels: Pixels) -> Mapping[str, float]:
    logits = prompts @ _vectors(model, [Image.fromarray(pixels).convert("RGB")])[0]
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return {code: round(float(share), DIGITS) for code, share in zip(codes, shares, strict=True)}


def _vectors(model: Any, things: Sequence[str | Image.Image]) -> Vectors:
    """Unit vectors of texts or pictures, each by itself and on one thread, so that no neighbour moves the last bits."""
    with one_thread_an_operation():
        vectors = [model.encode([thing], normalize_embeddings=True, show_progress_bar=False)[0] for thing in things]
    return np.stack(vectors).astype(np.float32)


def _mean(vectors: Vectors) -> Vectors:
    mean = vectors.mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)
