"""Stage: what reviewers decided (`medloom browse`, HOME/decisions) becomes rows, beside what was judged.

The invariant: nothing that was judged is changed or taken away. A verdict is a check, a correction is a new row, so
filtering happens at query time; and only a decision about exactly what stands in the dataset counts, one about a text
or region that has changed since is told as stale.

    review/REVIEWER          about a text: value 1, pass where it was accepted, else 0, fail
    review/REVIEWER/roi:ID   likewise about a region; text_id is ''
    reviewed                 about the sample: value: decisions that count; unknown where some are stale
    texts                    a corrected text: generator `human`, evidence `text:ID` of the one it stands for
    rois                     a corrected region: origin `human`, expert `human:REVIEWER`

A region whose box was corrected has no mask and the trust of a box; one whose label alone was, keeps its outline.

    - use: decisions

>>> medloom sql "SELECT verdict, count(*) FROM checks WHERE \\"check\\" LIKE 'review/%' GROUP BY 1"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from catalog.decisions import Decision, count, digest, latest, read, seen_roi, seen_text
from catalog.masks import decode_mask
from infra.errors import ConfigError
from infra.keys import key
from transforms.decoded import Region
from transforms.regions import roi_row
from transforms.stage import Context, Rows, SampleRows, Stage, each_sample

NAME = "decisions"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}
READS = ("images", "rois", "texts")

BySample = Mapping[str, Sequence[Decision]]


class Params(BaseModel):
    """It has none: what counts is what was decided."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def make_stage(params: Params, context: Context) -> Stage:
    """The stage over the decisions that the home holds now: those made while it runs wait for the next build."""
    first = count(context.home)
    said = digest(read(context.home, first))
    return each_sample(
        NAME, VERSION, reads=READS, writes=("rois", "texts", "checks"), row=_decided, params=params,
        ingredients={"decisions": said}, pixels=False, open=partial(_open, context.home, first, said),
    )


def _open(home: Path, first: int, said: str) -> BySample:
    """sample_id -> its decisions. Raises ConfigError where they are not those that the plan was made with."""
    decisions = read(home, first)
    if digest(decisions) != said:
        raise ConfigError(f"files in {home / 'decisions'} were changed while the build ran; run it again")
    found: dict[str, list[Decision]] = {}
    for decision in latest(decisions):
        found.setdefault(decision.sample_id, []).append(decision)
    return found


def _decided(sample: SampleRows, state: BySample) -> Rows:
    decisions = state.get(sample.id, ())
    if not decisions:
        return {}
    texts = {row["text_id"]: row for row in sample.rows("texts")}
    rois = {row["roi_id"]: row for row in sample.rows("rois")}
    rows: dict[str, list[dict[str, Any]]] = {"checks": [], "texts": [], "rois": []}
    stale = []
    for decision in decisions:
        judged = (texts if decision.kind == "text" else rois).get(decision.id)
        shown = judged and (seen_text(judged["text"]) if decision.kind == "text" else seen_roi(judged))
        if judged is None or shown != decision.seen:
            stale.append(decision.about)
        elif decision.kind == "text":
            rows["texts"] += (corrected := list(_text(sample.id, judged, decision)))
            rows["checks"].append(_check(decision, [row["text_id"] for row in corrected]))
        else:
            rows["rois"] += (corrected := list(_roi(sample.image, judged, decision)))
            rows["checks"].append(_check(decision, [row["roi_id"] for row in corrected]))
    rows["checks"].append({
        "text_id": "", "check": "reviewed", "version": VERSION, "value": float(len(decisions) - len(stale)),
        "verdict": "unknown" if stale else "pass",
        "detail": f"changed since they were judged, or gone: {', '.join(stale)}" if stale else None,
    })
    return rows


def _check(decision: Decision, corrected: Sequence[str]) -> dict[str, Any]:
    of_text = decision.kind == "text"
    accepted = decision.verdict == "accept"
    told = [decision.verdict, *(f"to {decision.kind}:{name}" for name in corrected)]
    return {
        "text_id": decision.id if of_text else "",
        "check": f"review/{decision.reviewer}" + ("" if of_text else f"/{decision.about}"), "version": VERSION,
        "value": float(accepted), "verdict": "pass" if accepted else "fail",
        "detail": " ".join(told) + (f": {decision.note}" if decision.note else ""),
    }


def _text(sample_id: str, judged: Mapping[str, Any], decision: Decision) -> Iterator[dict[str, Any]]:
    if decision.text is not None:
        yield {
            "text_id": key(sample_id, "human", decision.reviewer, judged["text_id"]), "roi_ids": judged["roi_ids"],
            "kind": judged["kind"], "language": judged["language"], "text": decision.text,
            "evidence": [*judged["evidence"], decision.about], "generator": "human", "licence": judged["licence"],
        }


def _roi(image: Mapping[str, Any], judged: Mapping[str, Any], decision: Decision) -> Iterator[dict[str, Any]]:
    """The corrected region; none where its box lies outside the image."""
    if decision.verdict != "correct":
        return
    size, mask = (image["height"], image["width"]), None
    renamed = decision.label is not None and decision.label != judged["label"]
    if decision.box is None and judged["mask"] is not None:
        mask = decode_mask(judged["mask"])
    region = Region(
        decision.label or judged["label"], judged["role"], mask=mask,
        box=decision.box or tuple(judged["box"]), ontology_id=None if renamed else judged["ontology_id"],
    )
    trust = "box" if decision.box is not None else judged["trust"]
    row = roi_row(
        image["sample_id"], region, size, expert=f"human:{decision.reviewer}", origin="human", trust=trust,
    )
    if row is not None:
        yield row
