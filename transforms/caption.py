"""Stage: texts about each sample, written by a captioner plug-in from the sample's facts.

The invariant: a captioner sees the facts and the rows of one sample and nothing else; every text gets an id that does
not depend on its words, and the strictest licence of what it cites.

    - use: caption
      captioner: template
      options: {knowledge: false}

A captioner is a module of `transforms/captioners` with NAME, REQUIRES, VERSION, Params,
`ingredients(params) -> Mapping[str, str]` (hashes of prompts and the like) and `open_captioner(params, context)`, which
returns a callable `(facts, sample) -> rows of texts` without sample_id, text_id and licence. It is opened once per
worker. `WANTS_PIXELS`, a bool or a function of its Params, says whether it looks at the image (default: no);
`ATTEMPTS`, how often a sample is tried when it raises Transient (default: 3); `CONCURRENCY`, a number or a function of
its Params, how many samples it is asked for at a time (default: 1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from catalog.licences import strictest
from infra.keys import key
from infra.plugins import load
from transforms.facts import GROUP_ABOVE, RELATIONS_AMONG, facts_of
from transforms.options import checked
from transforms.stage import Context, Rows, SampleRows, Stage, each_sample

NAME = "caption"
VERSION = "3"
REQUIRES: Mapping[str, str] = {}
READS = ("images", "labels", "rois", "measures", "passages", "texts")


class Params(BaseModel):
    """What a recipe may set for the caption stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    captioner: str = Field("template", description="name of the captioner plug-in")
    options: Mapping[str, Any] = Field(
        default_factory=dict, exclude=True, description="the captioner's own parameters; those that change its texts "
        "enter the key as the captioner declares them",
    )
    relations_among: int = Field(
        RELATIONS_AMONG, ge=0, description="tell the relations of each pair among so many largest regions"
    )
    group_above: int = Field(GROUP_ABOVE, ge=1, description="a label with more regions gets one text for all of them")


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError for an unknown captioner or options that it does not take."""
    captioner = load("captioner", params.captioner)
    options = checked("captioner", captioner, params.options)
    wants, many = getattr(captioner, "WANTS_PIXELS", False), getattr(captioner, "CONCURRENCY", 1)
    return each_sample(
        NAME, VERSION, reads=READS, writes=("texts",), row=partial(_texts, params), params=params,
        ingredients={
            "captioner": f"{captioner.NAME}@{captioner.VERSION}",
            "options": key(options.model_dump(mode="json")),
            **captioner.ingredients(options),
        },
        pixels=bool(wants(options) if callable(wants) else wants),
        open=partial(captioner.open_captioner, options, context), attempts=getattr(captioner, "ATTEMPTS", 3),
        concurrency=many(options) if callable(many) else many,
    )


def _texts(params: Params, sample: SampleRows, captions: Any) -> Rows:
    facts = facts_of(sample, relations_among=params.relations_among, group_above=params.group_above)
    return {"texts": list(_named(captions(facts, sample), sample))}


def _named(texts: Iterable[Mapping[str, Any]], sample: SampleRows) -> Iterator[dict[str, Any]]:
    """The rows with text_id and licence. Several texts of a kind on the same regions (questions) are numbered."""
    seen: Counter[str] = Counter()
    licences = {row["text_id"]: row["licence"] for row in sample.rows("texts")}
    for text in texts:
        other = [text["language"]] if text["language"] != "en" else []
        plain = key(sample.id, text["kind"], list(text["roi_ids"]), text["generator"], *other)
        text_id = key(plain, seen[plain]) if seen[plain] else plain
        seen[plain] += 1
        licences[text_id] = licence_of(text["evidence"], sample, licences)
        yield {**text, "text_id": text_id, "licence": licences[text_id]}


def licence_of(
    evidence: Iterable[str], sample: SampleRows, texts: Mapping[str, str | None] | None = None
) -> str | None:
    """The strictest licence of what a text cites; of the image where it cites nothing.

    `texts` are the licences of texts by id: the sample's own, and those that were written before this one. A predicted
    region is derived from the pixels and has the image's licence, a given one the annotation's.
    """
    image = sample.image
    given = {row["roi_id"] for row in sample.rows("rois") if row["origin"] != "predicted"}
    measured = {row["measure_id"]: row["roi_id"] for row in sample.rows("measures")}
    passages = {row["passage_id"]: row["licence"] for row in sample.rows("passages")}
    if texts is None:
        texts = {row["text_id"]: row["licence"] for row in sample.rows("texts")}

    def licence(kind: str, name: str) -> str | None:
        if kind == "text":
            name = name.partition("@")[0]  # text:ID@START:END, words cut from a text
        if kind == "measure":
            kind, name = "roi", measured.get(name, "")
        if kind == "label" or (kind == "roi" and name in given):
            return image.get("licence_annotation")
        if kind in ("image", "roi"):
            return image.get("licence_image")
        return (passages if kind == "passage" else texts if kind == "text" else {}).get(name)

    parts = (cited.partition(":") for cited in evidence)
    return strictest([licence(kind, name) for kind, _, name in parts] or [image.get("licence_image")])
