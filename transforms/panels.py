"""Stage: panels of compound figures become samples of their own, each with what is said of it.

The invariant: a figure stays as it is, with the regions of its panels; every panel is a new sample that names its
figure (`parent_id`) and its place in it (`parent_box`), in pixels of the figure's stored image, never resampled. Every
text of a panel is made of words of the figure's texts, and its evidence says which: "text:TEXT_ID@START:END".

    - use: panels
      detector: panels
      llm: {base_url: "http://127.0.0.1:9014/v1", model: local}     # for captions that the grammar cannot divide

Looked at are figures of articles (`article_id`) that are not panels themselves. A panel is a sample with

    rois    on the figure: role "panel"
    labels  on the panel: name "panel", value A, origin read (in the picture), order or geometry
    texts   on the panel: original_caption (its part), caption_context (what is said of all panels), mention (sentences)
    checks  on the figure: panels_found (how many, and how they were told apart, or why there are none), caption_split
            (how sure the division of the caption is)

The figure's number, which tells "Fig. 2B" from "Fig. 3B", is that of its label "figure label" where the source gives
one, else the one that all its mentions cite; where neither is clear, panels get no mentions. A caption is taken to be
the figure's first text of kind original_caption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import Terminal
from infra.keys import key, sha256
from transforms.decoded import Pixels
from transforms.experts.expert import Expert, chosen, needs, regions_found
from transforms.figures.matching import Assigned, Box, Panel, assign
from transforms.figures.mentions import by_panel, figure_number, number_cited
from transforms.figures.sentences import Span
from transforms.figures.splitter import LanguageModel, Splitter, open_splitter, prompt_sha256
from transforms.figures.subcaptions import Split, split, unsplit
from transforms.pictures.imagefile import encode_png, phash, pixel_sha256
from transforms.stage import Context, Rows, SampleRows, Stage, each_sample

NAME = "panels"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}
UNREAD = "panel"
"""what a detector calls a region whose letter it could not read"""


class Params(BaseModel):
    """What a recipe may set for the panels stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    detector: str = Field("panels", description="expert plug-in that finds panels: regions of role panel, labelled "
                          "with the letter read in them, or 'panel'")
    options: Mapping[str, Any] = Field(
        default_factory=dict, exclude=True, description="the detector's own parameters; they enter the key as it "
        "declares them",
    )
    min_side: int = Field(32, ge=1, description="pixels; a panel with a shorter side stays a region and is not cut out")
    min_confidence: float = Field(
        0.5, ge=0, le=1, description="a caption divided with less confidence counts as undivided"
    )
    llm: LanguageModel | None = Field(
        None, description="language model for captions of compound figures that the grammar does not divide; null: none"
    )


@dataclass(frozen=True)
class Caption:
    """A figure's caption, and how it was divided."""

    row: Mapping[str, Any] | None
    """its row of `texts`; None: the figure has no caption"""
    split: Split
    source: Mapping[str, Any] = field(default_factory=dict)
    """columns that name the model that divided it"""
    bill: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """why a model that was to be asked gave no answer"""


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError for an unknown detector or options that it does not take."""
    (detector,) = chosen("expert", (params.detector,), {params.detector: params.options})
    return each_sample(
        NAME, VERSION, reads=("images", "texts", "labels"), writes=("images", "rois", "texts", "labels", "checks"),
        row=partial(_divided, params, detector), params=params,
        ingredients={"detector": detector.identity, **({"prompt": prompt_sha256()} if params.llm else {})},
        open=partial(open_splitter, params.llm, context) if params.llm else None,
        resources=needs((detector,)),
        attempts=1 if params.llm else 3,  # the client of the language model has its own patience
    )


def _divided(params: Params, detector: Expert, sample: SampleRows, splitter: Splitter | None) -> Rows:
    image = sample.image
    if image.get("article_id") is None or image.get("parent_id") is not None:
        return {}
    pixels: Pixels = sample.pixels()
    found, problem = _found(detector, sample)
    panels = _distinct(found)
    if len(panels) < 2:
        said = problem or "one picture, not a compound figure"
        verdict = "unknown" if problem else "pass"
        return {"rois": found, "checks": [_check("", "panels_found", len(panels), verdict, said)]}
    caption = _caption(params, sample, splitter)
    names = assign([_panel(row) for row in panels], caption.split.labels)
    rows: dict[str, list[dict[str, Any]]] = {"images": [], "rois": found, "texts": [], "labels": [], "checks": []}
    for roi, name in zip(panels, names, strict=True):
        x0, y0, x1, y1 = roi["box"]
        if min(x1 - x0, y1 - y0) < params.min_side:
            continue
        row = _image(image, (x0, y0, x1, y1), pixels)
        rows["images"].append(row)
        rows["labels"] += [] if name is None else [_label(row["sample_id"], name)]
        rows["texts"] += _texts(row["sample_id"], name, caption, sample, any(names))
    if rows["texts"]:
        rows["texts"][0] |= caption.bill
    rows["checks"] = list(_checks(params, found, panels, names, caption, len(rows["images"])))
    return rows


def _found(detector: Expert, sample: SampleRows) -> tuple[list[dict[str, Any]], str | None]:
    """Rows of `rois`, and why there are none where the detector could not answer. A panel is always box-grade."""
    if reason := detector.module.applies(sample.image):
        return [], f"{detector.module.NAME}: {reason}"
    rows, problem = regions_found(detector, sample)
    return [{**row, "trust": "box"} for row in rows if row["role"] == "panel"], problem


def _distinct(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One region a box, the surest: a sample is named by its box."""
    best: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in found:
        box = tuple(row["box"])
        if box not in best or (row["score"] or 0) > (best[box]["score"] or 0):
            best[box] = row
    return list(best.values())


def _panel(row: Mapping[str, Any]) -> Panel:
    x0, y0, x1, y1 = row["box"]
    return Panel((x0, y0, x1, y1), None if row["label"] == UNREAD else row["label"], row["score"])


def _caption(params: Params, sample: SampleRows, splitter: Splitter | None) -> Caption:
    row = next((row for row in sample.rows("texts") if row["kind"] == "original_caption"), None)
    if row is None:
        return Caption(None, unsplit(""))
    made = split(row["text"])
    if made.confidence >= params.min_confidence and made.parts:
        return Caption(row, made)
    if splitter is None:
        return Caption(row, unsplit(row["text"]))
    try:
        told = splitter(row["text"], str(sample.image["source"]))
    except Terminal as error:  # what the model cannot do costs the division, not the figure
        return Caption(row, unsplit(row["text"]), problem=str(error))
    return Caption(row, told.split, told.source, told.bill)


def _image(figure: Mapping[str, Any], box: Box, pixels: Pixels) -> dict[str, Any]:
    """The row of a panel: what is known of the figure holds for its parts."""
    x0, y0, x1, y1 = box
    cut = pixels[y0:y1, x0:x1]
    encoded = encode_png(cut)
    name = key("panel", figure["sample_id"], list(box))
    return {
        **figure, "sample_id": name, "image": {"bytes": encoded, "path": f"{name}.png"}, "width": x1 - x0,
        "height": y1 - y0, "parent_id": figure["sample_id"], "parent_box": list(box), "sha256": sha256(encoded),
        "pixel_sha256": pixel_sha256(cut), "phash": phash(cut),
    }


def _label(panel: str, name: Assigned) -> dict[str, Any]:
    return {
        "sample_id": panel, "label_id": key(panel, "panel", name.method, name.label), "name": "panel",
        "value": name.label, "origin": name.method,
    }


def _texts(
    panel: str, name: Assigned | None, caption: Caption, sample: SampleRows, told_apart: bool
) -> Iterator[dict[str, Any]]:
    """A panel's part of the caption, what the caption says of all panels, and the sentences that cite the panel.

    Where no panel of the figure got a label, the caption's parts help nobody, and all of it is context.
    """
    if caption.row is not None:
        parts = [part.spans for part in caption.split.parts if name is not None and name.label in part.labels]
        common = caption.split.common if told_apart else unsplit(caption.row["text"]).common
        for kind, spans in (*(("original_caption", spans) for spans in parts), ("caption_context", common)):
            if spans:
                yield {**_text(panel, kind, caption.row, spans), **caption.source}
    if name is None:
        return
    mentions = [row for row in sample.rows("texts") if row["kind"] == "mention"]
    number = _number(sample, mentions)
    for row in mentions if number else ():
        cited = by_panel(row["text"], str(number)).items()
        said = {span for label, spans in cited if label.casefold() == name.label.casefold() for span in spans}
        if said:
            yield _text(panel, "mention", row, sorted(said))


def _number(sample: SampleRows, mentions: Sequence[Mapping[str, Any]]) -> str | None:
    stated = next((row["value"] for row in sample.rows("labels") if row["name"] == "figure label"), None)
    return figure_number(stated) if stated else number_cited(row["text"] for row in mentions)


def _text(panel: str, kind: str, row: Mapping[str, Any], spans: Sequence[Span]) -> dict[str, Any]:
    """Words of a text of the figure as a text of the panel."""
    evidence = [f"text:{row['text_id']}@{start}:{end}" for start, end in spans]
    return {
        "sample_id": panel, "text_id": key(panel, kind, evidence, NAME), "roi_ids": [], "kind": kind,
        "language": row["language"], "text": " ".join(row["text"][start:end] for start, end in spans),
        "evidence": evidence, "generator": f"{NAME}@{VERSION}", "licence": row["licence"],
    }


def _checks(
    params: Params, found: Sequence[Any], panels: Sequence[Mapping[str, Any]], names: Sequence[Assigned | None],
    caption: Caption, cut: int,
) -> Iterator[dict[str, Any]]:
    methods = Counter(name.method for name in names if name is not None)
    said = [f"{len(panels)} panels", *(f"{count} by {method}" for method, count in sorted(methods.items()))]
    if small := len(panels) - cut:
        said.append(f"{small} under {params.min_side} pixels not cut out")
    if double := len(found) - len(panels):
        said.append(f"{double} regions with the box of another")
    if unknown := sum(name is None for name in names):
        said.append(f"{unknown} without a label")
    lost = [label for label in caption.split.labels if label not in {name.label for name in names if name is not None}]
    if lost:
        said.append(f"nobody is {', '.join(lost)}")
    yield _check("", "panels_found", len(panels), "pass", "; ".join(said))
    if caption.row is not None:
        parts = caption.split.parts
        words = f"{caption.split.grammar}: {', '.join(caption.split.labels)}" if parts else "not divided"
        detail = "; ".join(filter(None, (words, caption.problem)))
        verdict = "pass" if parts else "unknown"
        yield _check(caption.row["text_id"], "caption_split", caption.split.confidence, verdict, detail)


def _check(text_id: str, name: str, value: float, verdict: str, detail: str) -> dict[str, Any]:
    return {
        "text_id": text_id, "check": name, "version": VERSION, "value": value, "verdict": verdict, "detail": detail,
    }
