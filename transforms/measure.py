"""Stage: what can be measured on regions and between them, as numbers and as plain words.

The invariant: a measure goes only as far as the trust of its region, its words follow from its number by the edges of
transforms/measures/words.py, and the check `measured` says what was left out. The same sample gives the same rows.

Which measures there are: transforms/measures/region.py and pairs.py.

    - use: measure
      neighbours: 2

How many slices of a volume a region goes through is not measured: a stage sees one sample.

>>> medloom sql "SELECT name, avg(value) FROM measures WHERE unit = 'mm' GROUP BY name"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.keys import key
from transforms.facts import RELATIONS_AMONG
from transforms.measures.pairs import Outlines, measured, measures_between, pairs_of
from transforms.measures.picture import Measure, picture_of
from transforms.measures.region import measures_of
from transforms.stage import Context, Rows, SampleRows, Stage, each_sample

NAME = "measure"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}


class Params(BaseModel):
    """What a recipe may set for the measure stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    relations_among: int = Field(
        RELATIONS_AMONG, ge=0, description="measure each pair among so many largest regions, as captions relate them"
    )
    neighbours: int = Field(1, ge=0, description="measure each region against so many nearest ones")
    neighbours_among: int = Field(
        60, ge=0, description="nearest ones are sought among so many largest regions; what is left out stands in the "
        "check `measured`",
    )


def make_stage(params: Params, context: Context) -> Stage:
    """The stage."""
    return each_sample(
        NAME, VERSION, reads=("images", "rois"), writes=("measures", "checks"), row=partial(_measured, params),
        params=params,
    )


def _measured(params: Params, sample: SampleRows, state: None) -> Rows:
    rois = sample.rows("rois")
    if not rois:
        return {}
    picture = picture_of(sample.image, sample.pixels())
    rows: list[dict[str, Any]] = []
    for roi in rois:
        rows += _rows(sample.id, roi["roi_id"], None, measures_of(picture, roi))
    outlines, pairs = Outlines(), 0
    asked = params.relations_among, params.neighbours, params.neighbours_among
    for smaller, larger in pairs_of(rois, *asked, outlines):
        found = measures_between(picture, smaller, larger, outlines)
        rows += _rows(sample.id, smaller["roi_id"], larger["roi_id"], found)
        pairs += 1
    return {"measures": rows, "checks": [_check(params, rois, pairs)]}


def _rows(sample: str, roi: str, other: str | None, found: Iterable[Measure]) -> Iterator[dict[str, Any]]:
    for measure in found:
        yield {
            "measure_id": key(sample, roi, other, measure.name), "roi_id": roi, "other_roi_id": other,
            "name": measure.name, "value": float(measure.value), "unit": measure.unit, "words": measure.words,
            "version": VERSION,
        }


def _check(params: Params, rois: Iterable[Mapping[str, Any]], pairs: int) -> dict[str, Any]:
    rois = list(rois)
    outlined = sum(row["trust"] == "boundary" and row["mask"] is not None for row in rois)
    trusts = Counter(row["trust"] for row in rois)
    boxes = len(rois) - outlined - trusts["presence"]
    left_out = max(0, len(measured(rois)) - params.neighbours_among) if params.neighbours else 0
    said = f"by outline {outlined}, by box {boxes}, by presence (not measured) {trusts['presence']}; pairs {pairs}"
    if left_out:
        said += f"; no neighbours were sought of the {left_out} smallest regions (neighbours_among)"
    return {
        "text_id": "", "check": "measured", "version": VERSION, "value": float(outlined + boxes),
        "verdict": "unknown" if left_out else "pass", "detail": said,
    }
