"""Stage: regions found by expert algorithms and models, where the source gives none.

The invariant: all instances that an expert finds are kept, and every sample gets a check `roi_status` that says what
was found or why nothing was. No region is a normal answer; an expert that fails costs its regions, never the sample.

    - use: ground
      experts: [foreground, cells]
      options: {cells: {min_area: 40}}

With `experts: auto`, rules choose who is asked about which picture (transforms/grounding/routing.py); a check
`roi_routing` says which rule asked whom, and what keeps the others away:

    - use: ground
      experts: auto
      routing: {want: [lung, cell], rivals: 2}
      choose: best

Two experts on one thing are compared (transforms/grounding/agreement.py), and what is found is held against what can be
(transforms/grounding/plausible.py); the checks are those of transforms/grounding/answers.py.

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
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from transforms.experts.expert import Expert, chosen, needs, regions_found
from transforms.grounding.agreement import Choose
from transforms.grounding.answers import Answer, concluded, ingredients
from transforms.grounding.routing import Asked, Router, Routing, open_router
from transforms.stage import Context, Rows, SampleRows, Stage, each_sample

NAME = "ground"
VERSION = "2"
REQUIRES: Mapping[str, str] = {}


class Params(BaseModel):
    """What a recipe may set for the ground stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: Literal["auto"] | tuple[str, ...] = Field(
        ("foreground", "cells"), description="expert plug-ins, in order of preference; auto: whom the rules ask"
    )
    options: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=dict, exclude=True, description="expert -> its own parameters; they enter the key as the "
        "expert declares them",
    )
    routing: Routing = Field(Routing(), description="how `auto` chooses: rules, want, rivals")
    choose: Choose = Field(
        "all", description="of several experts' regions of one thing, all are kept, those of the best, or their "
        "consensus"
    )
    prefer_given: bool = Field(True, description="samples with regions of their source get no predicted ones")
    max_regions: int | None = Field(
        None, ge=1, description="keep so many regions of an expert, the largest; a check `regions_capped` fails where "
        "there were more",
    )


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError for an unknown expert or options that it does not take; under auto, an expert that
    lacks weights is no error."""
    router, experts, known = opened("expert", params.experts, params.options, params.routing)
    auto = () if router is None else ("labels", "checks")
    return each_sample(
        NAME, VERSION, reads=("images", "rois", *auto), writes=("rois", "checks"),
        row=partial(_grounded, params, router, experts), params=params, ingredients=known, resources=needs(experts),
    )


def opened(
    kind: str, names: Literal["auto"] | tuple[str, ...], options: Mapping[str, Mapping[str, Any]], routing: Routing
) -> tuple[Router | None, tuple[Expert, ...], dict[str, str]]:
    """The router under auto, the experts in order of preference, and what of both enters the key."""
    if names == "auto":
        router = open_router(kind, routing, options)
        return router, tuple(router.experts.values()), {**router.ingredients, **ingredients()}
    experts = chosen(kind, names, options)
    return None, experts, {**{f"expert:{expert.name}": expert.identity for expert in experts}, **ingredients()}


def _grounded(
    params: Params, router: Router | None, experts: tuple[Expert, ...], sample: SampleRows, state: None
) -> Rows:
    given = sum(row["origin"] != "predicted" for row in sample.rows("rois"))
    if given and params.prefer_given:
        return {"checks": [_check("roi_status", given, "pass", f"regions of the source: {given}; no expert was asked")]}
    asked = Asked(experts, sample.image, None)
    if router is not None:
        asked = router.asked(sample.image, sample.rows("checks"), sample.rows("labels"))
    answers, capped = [], []
    for expert in asked.experts:
        found, problem = regions_found(expert, sample, asked.image)
        if params.max_regions is not None and len(found) > params.max_regions:
            detail = f"{expert.name} found {len(found)} regions; the {params.max_regions} largest were kept"
            capped.append((len(found), detail))
            largest = sorted(found, key=lambda row: (-row["area_fraction"], row["roi_id"]))[: params.max_regions]
            found = [row for row in found if row in largest]
        answers.append(Answer(expert, found, problem))
    rois, checks = concluded(
        "roi", VERSION, sample, answers, choose=params.choose, shown=asked.image, routing=asked.said, pixels=True,
    )
    if capped:
        many = sum(count for count, _ in capped)
        checks.append(_check("regions_capped", many, "fail", "; ".join(said for _, said in capped)))
    return {"rois": rois, "checks": checks}


def _check(name: str, value: float, verdict: str, detail: str) -> dict[str, Any]:
    return {"text_id": "", "check": name, "version": VERSION, "value": value, "verdict": verdict, "detail": detail}
