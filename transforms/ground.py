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
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from transforms.experts.expert import Expert, chosen, needs, regions_found
from transforms.stage import Context, Rows, SampleRows, Stage, each_sample

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


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError for an unknown expert or options that it does not take."""
    experts = chosen("expert", params.experts, params.options)
    return each_sample(
        NAME, VERSION, reads=("images", "rois"), writes=("rois", "checks"), row=partial(_grounded, params, experts),
        params=params, ingredients={f"expert:{e.name}": e.identity for e in experts},
        resources=needs(experts),
    )


def _grounded(params: Params, experts: tuple[Expert, ...], sample: SampleRows, state: None) -> Rows:
    given = sum(row["origin"] != "predicted" for row in sample.rows("rois"))
    if given and params.prefer_given:
        return {"checks": [_check("roi_status", given, "pass", f"regions of the source: {given}; no expert was asked")]}
    rois: list[dict[str, Any]] = []
    checks, said, answered = [], [], False
    for expert in experts:
        found, problem = regions_found(expert, sample)
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


def _check(name: str, value: float, verdict: str, detail: str) -> dict[str, Any]:
    return {"text_id": "", "check": name, "version": VERSION, "value": value, "verdict": verdict, "detail": detail}
