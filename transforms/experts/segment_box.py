"""Expert: a SAM in a folder (MedSAM, SAM) that outlines what another expert has boxed.

The invariant: what a region is called comes from the detector's region whose box prompted it, and where it lies from
the SAM; of the masks that the SAM offers for a box, the one it thinks best is taken, its predicted IoU is the score.

    - use: ground
      experts: [box_prompted]
      options:
        box_prompted:
          model: /models/medsam
          detector: detector
          detector_options: {model: /models/yolos-nodules, labels: {nodule: {label: lung nodule, role: lesion}}}

The picture is encoded once, its boxes are decoded `batch` at a time. Kirillov et al., ICCV 2023; Ma et al., Nature
Communications 2024 (MedSAM was trained to offer one mask: `best_of_three: false`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from infra.errors import ConfigError, Dropped
from transforms.adapters.folders import model_folder
from transforms.adapters.networks import DIGITS, REQUIRES, Network, finite, opened, steady
from transforms.adapters.wanted import ModelParams, card_of, refuse_others
from transforms.decoded import Pixels, Region
from transforms.experts.card import Card, Trust
from transforms.experts.expert import Expert, chosen

__all__ = ["REQUIRES"]

NAME = "box_prompted"
VERSION = "1"
CARD = Card(
    family="prompt", trust="boundary", prompts=("box",), value_space="rgb8", licence_weights="as the model says",
    commercial=None,
)
TRUST = CARD.trust

Box = tuple[float, float, float, float]


class Params(ModelParams):
    """What a recipe may set for the box_prompted expert."""

    detector: str = Field("foreground", description="the expert whose boxes prompt it")
    detector_options: Mapping[str, Any] = Field(
        default_factory=dict, exclude=True, description="the detector's own parameters; they enter the key as it "
        "declares them",
    )
    best_of_three: bool = Field(True, description="the best of three masks a box; false: the one for a clear prompt")
    least: float = Field(0, ge=0, le=1, description="least predicted IoU of a region")
    trust: Trust = Field("boundary", description="how far its outlines may be believed: boundary, box or presence")

    @field_validator("detector")
    @classmethod
    def _another(cls, name: str) -> str:
        if name == NAME:
            raise ValueError(f"{NAME} cannot prompt itself; name an expert that finds regions without boxes")
        return name


def card(params: Params) -> Card:
    """What it finds with these parameters: whatever its detector finds."""
    return card_of(CARD, params, _detector(params).card.classes, trust=params.trust)


def ingredients(params: Params) -> Mapping[str, str]:
    """The hash of the model, and the detector as far as it decides. Raises ConfigError for what is not there."""
    folder = model_folder(params.model)
    if folder.model_type != "sam":
        raise ConfigError(
            f"{params.model}: a {folder.model_type} model; box_prompted runs sam. Run others by the expert command"
        )
    return {"model": folder.sha256, "detector": _detector(params).identity}


def applies(image: Mapping[str, Any]) -> str | None:
    """None: which pictures it looks at is for the recipe to say, and `find` keeps to it."""
    return None


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> Iterator[Region]:
    """One region a box of the detector, in its order; a box for which the SAM draws nothing has none.

    Raises Dropped for a picture that it or its detector is not to see, and whatever the detector raises.
    """
    refuse_others(card(params), image)
    ingredients(params)
    detector = _detector(params)
    if reason := detector.module.applies(image):
        raise Dropped("NOT_ON_CARD", f"{detector.name}: {reason}")
    found = detector.module.find(pixels, image, detector.params)
    prompts = [(region, box) for region in found if (box := _box(region, pixels))]
    if not prompts:
        return
    network = opened("SamModel", params)
    with steady():
        encoded = _encoded(network, pixels)

    def drawn(batch: Sequence[tuple[Region, Box]]) -> tuple[Any, Any]:
        with steady():
            masks, scores = encoded(np.array([box for _, box in batch]), params.best_of_three)
        return masks, scores

    answers = (one for masks, scores in network.batches(drawn, prompts, params.batch)
               for one in zip(masks, scores, strict=True))
    for (region, _), (mask, score) in zip(prompts, answers, strict=True):
        if mask.any() and score >= params.least:
            yield Region(region.label, region.role, mask=mask, ontology_id=region.ontology_id, score=score)


def _detector(params: Params) -> Expert:
    (detector,) = chosen("expert", (params.detector,), {params.detector: params.detector_options})
    return detector


def _box(region: Region, pixels: Pixels) -> Box | None:
    """Where the region lies in the picture: the extent of its mask, else its box cut to the picture."""
    height, width = pixels.shape[:2]
    if region.mask is not None:
        rows, columns = np.flatnonzero(region.mask.any(axis=1)), np.flatnonzero(region.mask.any(axis=0))
        return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if rows.size else None
    if region.box is None:
        return None
    x0, y0, x1, y1 = region.box
    box = (max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1))
    return box if box[0] < box[2] and box[1] < box[3] else None


def _encoded(network: Network, pixels: Pixels) -> Any:
    """The picture, encoded: a function of boxes (n, 4) to masks (n, height, width) and scores (n)."""
    import torch

    height, width = pixels.shape[:2]
    ready = network.prepared([pixels])
    inner = [int(side) for side in ready["reshaped_input_sizes"][0]]
    scale = np.array([inner[1] / width, inner[0] / height] * 2)
    (embedding,) = network.batches(lambda _: network.model.get_image_embeddings(ready["pixel_values"]), [pixels], 1)

    def decode(boxes: Any, three: bool) -> tuple[Any, Any]:
        prompts = network.placed(torch.from_numpy((boxes * scale)[None]).float())
        answer = network.model(image_embeddings=embedding, input_boxes=prompts, multimask_output=three)
        scores = finite(answer.iou_scores)[0]
        best = scores.argmax(1)
        each = torch.arange(len(best), device=best.device)
        masks = finite(answer.pred_masks)[0][each, best][:, None]
        (large,) = network.processor.post_process_masks([masks], [(height, width)], [inner])
        return large[:, 0].cpu().numpy(), [round(float(score), DIGITS) for score in scores[each, best]]

    return decode
