"""Expert: an object detection model in a folder (DETR, YOLOS, RT-DETR …), boxes only.

The invariant: a box lies inside the picture, in pixels of the stored image, under a label that the recipe gave to the
model's class; of boxes of one class that overlap by more than `overlap`, the one with the highest score is left.

    - use: ground
      experts: [detector]
      options:
        detector: {model: /models/yolos-nodules, labels: {nodule: {label: lung nodule, role: lesion}}, threshold: 0.4}

It can also tell the expert `box_prompted` where to look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from infra.errors import ConfigError
from transforms.adapters.folders import model_folder
from transforms.adapters.networks import DIGITS, REQUIRES, Network, finite, opened, steady
from transforms.adapters.wanted import ClassParams, card_of, class_ingredients, class_values, refuse_others
from transforms.decoded import Pixels, Region
from transforms.experts.card import Card

__all__ = ["REQUIRES"]

NAME = "detector"
VERSION = "1"
CARD = Card(family="detector", trust="box", value_space="rgb8", licence_weights="as the model says", commercial=None)
TRUST = CARD.trust

Box = tuple[float, float, float, float]


class Params(ClassParams):
    """What a recipe may set for the detector expert."""

    threshold: float = Field(0.5, ge=0, le=1, description="least score of a box")
    overlap: float = Field(
        0.5, gt=0, le=1, description="boxes of a class that overlap by more (intersection over union) are one"
    )
    trust: Literal["box", "presence"] = Field("box", description="how far its boxes may be believed: box or presence")


def card(params: Params) -> Card:
    """What it finds with these parameters."""
    classes = class_values(model_folder(params.model), params.labels)
    return card_of(CARD, params, (named.as_class() for named in classes.values()), trust=params.trust)


ingredients = class_ingredients


def applies(image: Mapping[str, Any]) -> str | None:
    """None: which pictures it looks at is for the recipe to say, and `find` keeps to it."""
    return None


def find(pixels: Pixels, image: Mapping[str, Any], params: Params) -> list[Region]:
    """Boxes, the surest first. Raises Dropped for a picture it is not to see, Terminal where it does not fit."""
    refuse_others(card(params), image)
    network = opened("AutoModelForObjectDetection", params)
    names = class_values(network.folder, params.labels)
    found = [box for box in _boxes(network, pixels, params.threshold) if box[1] in names]
    return [
        Region(names[value].label, names[value].role, box=box, ontology_id=names[value].ontology_id, score=score)
        for score, value, box in best_of_each(found, params.overlap)
    ]


def _boxes(network: Network, pixels: Pixels, threshold: float) -> list[tuple[float, int, Box]]:
    """(score, class, box) of all that the model finds; boxes are cut to the picture, empty ones are left out."""
    processor = network.processor
    if not hasattr(processor, "post_process_object_detection"):
        raise ConfigError(f"{network.folder.address}: its image processor makes no boxes of what it says; use another")
    height, width = pixels.shape[:2]

    def seen(batch: object) -> Any:
        with steady():
            answer = network.model(**network.prepared([pixels]))
            answer.logits, answer.pred_boxes = finite(answer.logits), finite(answer.pred_boxes)
            (found,) = processor.post_process_object_detection(answer, threshold, target_sizes=[(height, width)])
            return {name: values.cpu().tolist() for name, values in found.items()}

    (found,) = network.batches(seen, [pixels], 1)
    boxes = []
    for score, value, (x0, y0, x1, y1) in zip(found["scores"], found["labels"], found["boxes"], strict=True):
        x0, y0, x1, y1 = (round(edge, 2) for edge in (x0, y0, x1, y1))  # 63.000004 is no 64th pixel
        box = (max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1))
        if box[0] < box[2] and box[1] < box[3]:
            boxes.append((round(score, DIGITS), value, box))
    return boxes


def best_of_each(found: list[tuple[float, int, Box]], overlap: float) -> list[tuple[float, int, Box]]:
    """Greedy non-maximum suppression within each class; ties are broken by class and place, never by order."""
    kept: list[tuple[float, int, Box]] = []
    for one in sorted(found, key=lambda f: (-f[0], f[1], f[2])):
        if all(one[1] != other[1] or _shared(one[2], other[2]) <= overlap for other in kept):
            kept.append(one)
    return kept


def _shared(a: Box, b: Box) -> float:
    """Intersection over union."""
    common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)
