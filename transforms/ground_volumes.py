"""Stage: regions found in whole scans, by experts in three dimensions, and carried to the slices that are samples.

The invariant: an expert looks at a scan once, on the scan's own grid, opened again from the source's files and checked
by hash; every slice of it that is a sample gets what the scan's labels show there, by the rules that cut the slice. A
scan that cannot be opened costs its regions, never its samples.

    - use: ground_volumes
      experts: [ct, brain]
      options: {ct: {find: [lungs, bone]}}

A volume expert is a module of `transforms/experts` with NAME, REQUIRES, Params, VERSION, CARD (ndim=3) and
`segment(scan, params) -> Iterable[Structure]`; `card(params)` and `ingredients(params)` as for experts of `ground`.
Every slice gets a check `volume_status` that says what was found in its scan, or why nothing was. `experts: auto`,
`routing`, `choose` and the other checks are those of `ground`; they are called volume_routing, volume_plausible/EXPERT
and volume_agreement/THING here (transforms/grounding/answers.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from infra.errors import ItemError, Transient
from transforms.experts.expert import OUT_OF_MEMORY, Expert, needs
from transforms.ground import opened
from transforms.grounding.agreement import Choose
from transforms.grounding.answers import Answer, concluded
from transforms.grounding.routing import Asked, Router, Routing
from transforms.regions import roi_row, scaled
from transforms.scans.volumes import Scan, Structure, canonical, regions_at
from transforms.stage import Context, Rows, SampleRows, Stage, Volumes, each_sample

NAME = "ground_volumes"
VERSION = "2"
REQUIRES: Mapping[str, str] = {}


class Params(BaseModel):
    """What a recipe may set for the ground_volumes stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: Literal["auto"] | tuple[str, ...] = Field(
        ("ct",), description="volume experts, in order of preference; auto: whom the rules ask"
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
    prefer_given: bool = Field(True, description="slices with regions of their source get no predicted ones")


@dataclass(frozen=True)
class _Found:
    """What one expert says of one scan."""

    expert: Expert
    upright: Scan | None
    """the scan with the expert's structures in place of its own labels; None: it did not look, or failed"""
    affine: Any
    said: str
    hu: Mapping[str, float] = field(default_factory=dict)
    """label -> mean Hounsfield units in the scan"""


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError for an unknown expert or options that it does not take."""
    router, experts, known = opened("volume_expert", params.experts, params.options, params.routing)
    auto = () if router is None else ("labels", "checks")
    return each_sample(
        NAME, VERSION, reads=("images", "rois", *auto), writes=("rois", "checks"),
        row=partial(_carried, params, router, experts), params=params, ingredients=known, pixels=False, volumes=True,
        resources=replace(needs(experts), memory_gb=max((e.card.memory_gb for e in experts), default=None)),
    )


def _carried(
    params: Params, router: Router | None, experts: tuple[Expert, ...], sample: SampleRows, volumes: Volumes
) -> Rows:
    image = sample.image
    if image.get("volume_id") is None:
        return {}
    given = sum(row["origin"] != "predicted" for row in sample.rows("rois"))
    if given and params.prefer_given:
        return {"checks": [_check(given, "pass", f"regions of the source: {given}; no expert was asked")]}
    asked = Asked(experts, image, None)
    if router is not None:
        asked = router.asked(image, sample.rows("checks"), sample.rows("labels"))
    answers = [_answer(found, sample) for found in _found(asked.experts, asked.image, volumes)]
    rois, checks = concluded(
        "volume", VERSION, sample, answers, choose=params.choose, shown=asked.image, routing=asked.said
    )
    return {"rois": rois, "checks": checks}


def _answer(found: _Found, sample: SampleRows) -> Answer:
    said = None if found.upright is None else found.said
    return Answer(found.expert, _rows(found, sample), None if said else found.said, found.hu, said)


def _found(experts: tuple[Expert, ...], image: Mapping[str, Any], volumes: Volumes) -> list[_Found]:
    """What the experts say of the slice's scan; kept until a slice of another scan, or one for others, comes."""
    asked = " ".join([image["volume_id"], *(expert.name for expert in experts)])
    if asked not in volumes.kept:
        volumes.kept.clear()
        volumes.kept[asked] = list(_asked(experts, image, volumes))
    found: list[_Found] = volumes.kept[asked]
    return found


def _asked(experts: tuple[Expert, ...], image: Mapping[str, Any], volumes: Volumes) -> Any:
    scan: Scan | ItemError | None = None
    flags = volumes.rows[image["volume_id"]]["geometry_flags"] or ()
    for expert in experts:
        reason = expert.card.why_not(image)
        if reason is None and expert.card.value_space == "HU" and "not_hounsfield" in flags:
            reason = "the values are no Hounsfield units"
        if reason:
            yield _Found(expert, None, None, reason)
            continue
        try:
            scan = scan or volumes.open(volumes.rows[image["volume_id"]])
        except Transient:
            raise
        except ItemError as error:
            scan = error
        yield _looked(expert, scan)


def _looked(expert: Expert, scan: Scan | ItemError) -> _Found:
    if isinstance(scan, ItemError):
        return _Found(expert, None, None, f"the scan cannot be opened: {scan}")
    try:
        structures = tuple(expert.module.segment(scan, expert.params))
    except Transient:
        raise
    except ItemError as error:
        return _Found(expert, None, None, str(error))
    except MemoryError:
        return _Found(expert, None, None, OUT_OF_MEMORY)
    bare = replace(scan, labels=None, masks={}, structures=structures)
    said = f"found {len(structures)} structures in the scan" if structures else "found nothing in the scan"
    hu = {s.label: _mean(scan, s) for s in structures} if expert.card.value_space == "HU" else {}
    return _Found(expert, canonical(bare), scan.affine, said, hu)


def _mean(scan: Scan, structure: Structure) -> float:
    """Mean of the scan's values in a structure."""
    window = tuple(slice(at, at + n) for at, n in zip(structure.corner, structure.mask.shape, strict=True))
    return round(float(np.mean(scan.values[window][structure.mask], dtype=np.float64)), 1)


def _rows(found: _Found, sample: SampleRows) -> list[dict[str, Any]]:
    """The structures that lie on the slice, in pixels of the stored image."""
    if found.upright is None:
        return []
    image, module = sample.image, found.expert.module
    height, width = image["height"], image["width"]
    rows = []
    for region in regions_at(found.upright, found.affine, image["view"], image["slice_index"]):
        assert region.mask is not None, "structures are masks"
        scale = max(height, width) / max(region.mask.shape)
        row = roi_row(
            sample.id, region if scale == 1 else scaled(region, scale), (height, width),
            expert=f"{module.NAME}@{module.VERSION}", origin="predicted", trust=found.expert.card.trust,
            weights_sha256=found.expert.weights,
        )
        rows += [] if row is None else [row]
    return rows


def _check(value: float, verdict: str, detail: str) -> dict[str, Any]:
    return {
        "text_id": "", "check": "volume_status", "version": VERSION, "value": value, "verdict": verdict,
        "detail": detail,
    }
