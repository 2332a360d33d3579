"""Stage: regions found by expert algorithms and models, where the source gives none.

The invariant: all instances that an expert finds are kept, and every sample gets a check `roi_status` that says what
was found or why nothing was. No region is a normal answer; an expert that fails costs its regions, never the sample.

    - use: ground
      experts: [foreground, cells]
      options: {cells: {min_area: 40}}

An expert is a module of `transforms/experts` with NAME, REQUIRES, Params, VERSION, CARD (what it finds, and how far its
outlines may be believed: transforms/experts/card.py), `applies(image) -> str | None` (why it does not look at an image,
from its row of `images`) and `find(pixels, image, params) -> Iterable[Region]`. `find` may raise Dropped when the
pixels show that the image is not for it, Terminal when it fails on it. WEIGHTS_SHA256 names its weights, if any;
`ingredients(params) -> Mapping[str, str]` the hashes of weights that its parameters choose, and `card(params)` their
card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import ConfigError, ItemError, Transient
from infra.keys import canonical, key, sha256
from infra.plugins import load, nearest
from transforms.decoded import Pixels
from transforms.experts.card import Card
from transforms.options import checked
from transforms.regions import roi_row
from transforms.stage import Context, Resources, Rows, SampleRows, Stage, each_sample

NAME = "ground"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}


class Params(BaseModel):
    """What a recipe may set for the ground stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: tuple[str, ...] = Field(("foreground", "cells"), description="expert plug-ins, in order")
    options: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=dict, exclude=True, description="expert -> its own parameters; they enter the key as the "
        "expert declares them",
    )
    prefer_given: bool = Field(True, description="samples with regions of their source get no predicted ones")
    max_regions: int | None = Field(
        None, ge=1, description="keep so many regions of an expert, the largest; a check `regions_capped` fails where "
        "there were more",
    )


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


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError for an unknown expert or options that it does not take."""
    experts = chosen("expert", params.experts, params.options)
    return each_sample(
        NAME, VERSION, reads=("images", "rois"), writes=("rois", "checks"), row=partial(_grounded, params, experts),
        params=params, ingredients={f"expert:{e.name}": e.identity for e in experts},
        resources=Resources(
            max((e.card.cpus for e in experts), default=1), max((e.card.gpus for e in experts), default=0),
        ),
    )


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


def _grounded(params: Params, experts: tuple[Expert, ...], sample: SampleRows, state: None) -> Rows:
    given = sum(row["origin"] != "predicted" for row in sample.rows("rois"))
    if given and params.prefer_given:
        return {"checks": [_check("roi_status", given, "pass", f"regions of the source: {given}; no expert was asked")]}
    rois: list[dict[str, Any]] = []
    checks, said, answered = [], [], False
    for expert in experts:
        found, problem = _found(expert, sample)
        answered |= problem is None
        said.append(f"{expert.name}: {problem or f'found {len(found)}'}")
        if params.max_regions is not None and len(found) > params.max_regions:
            detail = f"{expert.name} found {len(found)} regions; the {params.max_regions} largest were kept"
            checks.append(_check("regions_capped", len(found), "fail", detail))
            largest = sorted(found, key=lambda row: (-row["area_fraction"], row["roi_id"]))[: params.max_regions]
            found = [row for row in found if row in largest]
        rois += found
    status = _check("roi_status", len(rois), "pass" if answered else "unknown", "; ".join(said))
    return {"rois": rois, "checks": [status, *checks]}


def _found(expert: Expert, sample: SampleRows) -> tuple[list[dict[str, Any]], str | None]:
    """Rows of `rois`, and why there are none where the expert could not answer."""
    module = expert.module
    if reason := module.applies(sample.image):
        return [], str(reason)
    pixels: Pixels = sample.pixels()
    height, width = pixels.shape[:2]
    rows: dict[str, dict[str, Any]] = {}
    try:
        for region in module.find(pixels, sample.image, expert.params):
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
    return list(rows.values()), None


def _check(name: str, value: float, verdict: str, detail: str) -> dict[str, Any]:
    return {"text_id": "", "check": name, "version": VERSION, "value": value, "verdict": verdict, "detail": detail}
