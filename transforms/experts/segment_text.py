"""Expert: a model in a folder that outlines what a text names (CLIPSeg).

The invariant: one region a prompt at the most; what the model does not see has no region. Labels are the recipe's.

    - use: ground
      experts: [text_prompted]
      options:
        text_prompted:
          model: /models/clipseg
          prompts: [lung, {text: the heart, label: heart, role: organ}]

Its outlines are box-grade by default: CLIPSeg works on a grid of 22 x 22 cells. Lüddecke and Ecker, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from infra.errors import ConfigError
from transforms.adapters.folders import model_folder
from transforms.adapters.networks import DIGITS, REQUIRES, Network, finite, opened, steady, whole_picture
from transforms.adapters.wanted import ModelParams, Named, card_of, refuse_others
from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Trust

__all__ = ["REQUIRES"]

NAME = "text_prompted"
VERSION = "1"
CARD = Card(
    family="text", trust="box", prompts=("text",), value_space="rgb8", licence_weights="as the model says",
    commercial=None,
)
TRUST = CARD.trust


class Prompt(Named):
    """A text and what is called by it."""

    text: str = Field(min_length=1, description="what the model is asked for")


def _spelled_out(prompt: Any) -> Any:
    return {"text": prompt, "label": prompt} if isinstance(prompt, str) else prompt


class Params(ModelParams):
    """What a recipe may set for the text_prompted expert."""

    prompts: tuple[Annotated[Prompt, BeforeValidator(_spelled_out)], ...] = Field(
        min_length=1, description="texts, or {text, label, role, ontology_id}; a text alone is its own label"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="probability from which a pixel belongs to the prompt")
    min_area: int = Field(1, ge=1, description="smallest region, in pixels")
    trust: Trust = Field("box", description="how far its outlines may be believed: boundary, box or presence")


def card(params: Params) -> Card:
    """What it finds with these parameters."""
    return card_of(CARD, params, (prompt.as_class() for prompt in params.prompts), trust=params.trust)


def ingredients(params: Params) -> Mapping[str, str]:
    """The hash of the model. Raises ConfigError for a folder that is no CLIPSeg."""
    folder = model_folder(params.model)
    if folder.model_type != "clipseg":
        raise ConfigError(
            f"{params.model}: a {folder.model_type} model; text_prompted runs clipseg. Run others by the expert command"
        )
    return {"model": folder.sha256}


def applies(image: Mapping[str, Any]) -> str | None:
    """None: which pictures it looks at is for the recipe to say, and `find` keeps to it."""
    return None


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> Iterator[Region]:
    """One region a prompt that is seen, in the order of the prompts; its score is its pixels' mean probability.

    Raises Dropped for a picture it is not to see, Terminal where it does not fit into memory.
    """
    import numpy as np

    refuse_others(card(params), image)
    ingredients(params)
    network = opened("CLIPSegForImageSegmentation", params, text=True)
    whole_picture(network)

    def seen(batch: Sequence[Prompt]) -> Any:
        with steady():
            return _shares(network, pixels, [prompt.text for prompt in batch]).cpu().numpy()

    found = (share for shares in network.batches(seen, params.prompts, params.batch) for share in shares)
    for prompt, share in zip(params.prompts, found, strict=True):
        mask = share > params.threshold
        if np.count_nonzero(mask) >= params.min_area:
            score = round(float(share[mask].mean()), DIGITS)
            yield Region(prompt.label, prompt.role, mask=mask, ontology_id=prompt.ontology_id, score=score)


def _shares(network: Network, pixels: Pixels, texts: Sequence[str]) -> Any:
    """Probabilities, (texts, height, width), on the picture's grid."""
    import torch

    longest = network.model.config.text_config.max_position_embeddings
    words = network.tokenizer(list(texts), padding="max_length", max_length=longest, return_tensors="pt")
    if words["input_ids"].shape[1] > longest:
        raise ConfigError(f"text_prompted: one of {list(texts)} is longer than the {longest} tokens the model reads")
    picture = network.prepared([pixels])["pixel_values"]
    logits = network.model(
        pixel_values=picture.expand(len(texts), -1, -1, -1), input_ids=network.placed(words["input_ids"]),
        attention_mask=network.placed(words["attention_mask"]),
    ).logits
    logits = finite(logits).reshape(len(texts), 1, *logits.shape[-2:])
    large = torch.nn.functional.interpolate(logits, size=pixels.shape[:2], mode="bilinear", align_corners=False)
    return large[:, 0].sigmoid()
