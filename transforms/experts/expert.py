"""An expert as a recipe chooses it: its module and parameters, what decides its regions, and what it finds in a sample.

The invariant: whoever runs an expert (a stage, or another expert) knows it by the same card, weights and identity.

>>> (cells,) = chosen("expert", ("cells",), {"cells": {"min_area": 40}})
>>> cells.card.trust, cells.weights
('boundary', None)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from infra.errors import ConfigError, ItemError, Transient
from infra.keys import canonical, key, sha256
from infra.plugins import load, nearest
from transforms.decoded import Pixels
from transforms.experts.card import Card
from transforms.options import checked
from transforms.regions import roi_row
from transforms.stage import Resources, SampleRows

OUT_OF_MEMORY = "OUT_OF_MEMORY: it does not fit into this machine; make pictures smaller (ingest: max_side)"
"""What is said of an expert that ran out of memory; what was found before counts for nothing."""


@dataclass(frozen=True)
class Expert:
    """An expert module and what a recipe sets for it."""

    kind: str
    """expert, or volume_expert"""
    name: str
    params: BaseModel

    @property
    def module(self) -> Any:
        return load(self.kind, self.name)

    @cached_property
    def identity(self) -> str:
        """What decides its regions, beside the picture."""
        return key(self.module.VERSION, self.weights, self.params.model_dump(mode="json"))

    @cached_property
    def card(self) -> Card:
        chosen = getattr(self.module, "card", None)
        card: Card = chosen(self.params) if chosen else self.module.CARD
        return card

    @cached_property
    def weights(self) -> str | None:
        """Hash of its weights, of all of them together where there are several; None: it has none."""
        chosen = getattr(self.module, "ingredients", None)
        hashes = dict(chosen(self.params)) if chosen else {}
        own = getattr(self.module, "WEIGHTS_SHA256", None)
        return sha256(canonical(hashes)) if len(hashes) > 1 else next(iter(hashes.values()), own)


def chosen(
    kind: str, names: tuple[str, ...], options: Mapping[str, Mapping[str, Any]]
) -> tuple[Expert, ...]:
    """The experts of a recipe. Raises ConfigError for an unknown one, or options that it does not take."""
    if strange := [name for name in options if name not in names]:
        raise ConfigError(
            f"options are given for {strange[0]!r}{nearest(strange[0], list(names))}, which is not among the experts "
            f"{', '.join(names)}"
        )
    return tuple(Expert(kind, name, checked(kind, load(kind, name), options.get(name, {}))) for name in names)


def needs(experts: tuple[Expert, ...]) -> Resources:
    """The processors that a stage of these experts needs: they run one after the other."""
    cards = [expert.card for expert in experts]
    return Resources(max((card.cpus for card in cards), default=1), max((card.gpus for card in cards), default=0))


def regions_found(
    expert: Expert, sample: SampleRows, image: Mapping[str, Any] | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """Rows of `rois`, and why there are none where the expert could not answer. Raises Transient.

    `image` is the row of `images` as the expert is shown it, where that differs from the sample's own.
    """
    module = expert.module
    shown = sample.image if image is None else image
    if reason := module.applies(shown):
        return [], str(reason)
    pixels: Pixels = sample.pixels()
    height, width = pixels.shape[:2]
    rows: dict[str, dict[str, Any]] = {}
    try:
        for region in module.find(pixels, shown, expert.params):
            row = roi_row(
                sample.id, region, (height, width), expert=f"{module.NAME}@{module.VERSION}", origin="predicted",
                trust=expert.card.trust, weights_sha256=expert.weights,
            )
            if row is not None:
                rows[row["roi_id"]] = row
    except Transient:
        raise
    except ItemError as error:
        return [], str(error)
    except MemoryError:
        return [], OUT_OF_MEMORY
    return list(rows.values()), None
