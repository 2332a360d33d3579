"""Captioner: fixed sentences over the facts; no model, no network, the same words every time.

The invariant: nothing is said that no row states, and every text cites the rows it rests on. Left and right are the
patient's where the image's orientation is known; otherwise they are said to be of the image. Extent is told only of
outlines that may be believed (trust "boundary"). A passage is never told of this image: it is a text of its own kind.

    An axial CT image of the abdomen. The source marks liver, spleen and left kidney.
    Liver in the upper part of the image, toward the patient's right, covering 12% of the image.
    Left kidney posterior to spleen.

Kinds: `global`, one where anything is known; `region`, one a region (a group of many counts as one, a body gets none);
`relation`, one a pair; `knowledge`, the best passage word by word, where there is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from transforms.facts import Facts, GroupFact, LabelFact, RegionFact, RelationFact
from transforms.stage import Context, SampleRows
from transforms.vocabulary import article, listed

NAME = "template"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}

TOWARD = {
    "L": "to the patient's left of", "R": "to the patient's right of", "A": "anterior to", "P": "posterior to",
    "S": "superior to", "H": "superior to", "I": "inferior to", "F": "inferior to",
}
"""Direction letter of images.orientation (S, I or, in DICOM, H, F) -> how a region lies that is further there."""
OPPOSITE = dict(zip("LRAPSIHF", "RLPAISFH", strict=True))
HEIGHT = {"upper": "in the upper part", "middle": "at mid-height", "lower": "in the lower part"}
NOTHING = frozenset({"no finding", "no findings"})


class Params(BaseModel):
    """What a recipe may set for the template captioner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    knowledge: bool = Field(True, description="write the best passage as a text of kind knowledge")


def ingredients(params: Params) -> Mapping[str, str]:
    """What else decides the texts: nothing but this module's version."""
    return {}


def open_captioner(params: Params, context: Context) -> Callable[[Facts, SampleRows], list[dict[str, Any]]]:
    """The captioner; there is nothing to load."""

    def captions(facts: Facts, sample: SampleRows) -> list[dict[str, Any]]:
        texts = [*_global(facts), *_regions(facts), *_relations(facts)]
        if params.knowledge and facts.passages:
            best = facts.passages[0]
            texts.append(_text("knowledge", best.text, [f"passage:{best.id}"]))
        return texts

    return captions


def _text(kind: str, text: str, evidence: list[str], roi_ids: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "kind": kind, "text": text[:1].upper() + text[1:], "evidence": evidence, "roi_ids": list(roi_ids),
        "language": "en", "generator": f"{NAME}@{VERSION}",
    }


def _global(facts: Facts) -> Iterator[dict[str, Any]]:
    sentences = [_what(facts), *_labels(facts.labels), *_shown(facts)]
    evidence = [f"image:{name}" for name in ("view", "modality", "anatomy") if getattr(facts, name) is not None]
    evidence += [f"label:{label.id}" for label in facts.labels]
    evidence += [f"roi:{region.id}" for region in facts.regions if region.role != "body"]
    if evidence:  # of a figure of which only its caption is known there is nothing to add to that caption
        yield _text("global", " ".join(sentences), evidence)


def _what(facts: Facts) -> str:
    view = "" if facts.view is None else f"{facts.view} "
    noun = article(view + (facts.modality_image or "medical image"))
    if facts.anatomy is None:
        return f"{noun}."
    the = "" if facts.anatomy.lower().startswith(("the ", "a ", "an ")) else "the "
    return f"{noun} of {the}{facts.anatomy}."


def _labels(labels: tuple[LabelFact, ...]) -> Iterator[str]:
    stated: dict[str, list[str]] = {"present": [], "absent": [], "uncertain": []}
    attributes = []
    for label in labels:
        if label.value in stated:
            stated[label.value].append("showing no finding" if label.name.lower() in NOTHING else label.name)
        else:
            attributes.append(f"{label.name} is {label.value}")
    if stated["present"]:
        yield f"The source labels it as {listed(stated['present'])}."
    if stated["absent"]:
        yield f"The source states the absence of {listed(stated['absent'])}."
    if stated["uncertain"]:
        yield f"The source is uncertain about {listed(stated['uncertain'])}."
    if attributes:
        yield f"The source states that {listed(attributes)}."


def _shown(facts: Facts) -> Iterator[str]:
    for origin, opening in (("given", "The source marks"), ("human", "A reader marked"), ("predicted", "")):
        found = [region for region in facts.regions if region.origin == origin and region.role != "body"]
        experts = " and ".join(sorted({region.expert.split("@")[0] for region in found}))
        counts = Counter(region.label for region in found)
        named = [label if n == 1 else f"{n} regions labelled {label}" for label, n in counts.items()]
        if named:
            yield f"{opening or f'Found by the algorithm {experts}:'} {listed(named)}."


def _regions(facts: Facts) -> Iterator[dict[str, Any]]:
    for region in facts.single:
        if region.role != "body":
            text = f"{region.label} {_place(region)}{_extent(region)}."
            yield _text("region", text, [f"roi:{region.id}"], (region.id,))
    for group in facts.groups:
        text = f"{group.count} regions labelled {group.label}{_extent(group)}."
        yield _text("region", text, [f"roi:{roi}" for roi in group.ids], group.ids)


def _place(region: RegionFact) -> str:
    if region.side is None:
        return f"in the {region.position} of the image"
    height = HEIGHT["middle" if region.position == "center" else region.position.split()[0]]
    side = "near the midline" if region.side == "midline" else f"toward the patient's {region.side}"
    return f"{height} of the image, {side}"


def _extent(region: RegionFact | GroupFact) -> str:
    if region.percent is None:
        return ""
    together = " together" if isinstance(region, GroupFact) else ""
    return f",{together} covering {region.percent} of the image"


def _relations(facts: Facts) -> Iterator[dict[str, Any]]:
    for pair in facts.relations:
        a, b = facts.region(pair.a).label, facts.region(pair.b).label
        first, second = (f"one region labelled {a}", "another") if a == b else (a, b)
        text = f"{first} {_lies(pair, facts.orientation, second)}."
        yield _text("relation", text, [f"roi:{pair.a}", f"roi:{pair.b}"], (pair.a, pair.b))


def _lies(pair: RelationFact, orientation: str | None, other: str) -> str:
    plain = {"contains": "containing", "overlaps": "overlapping"}.get(pair.words, pair.words)
    axis = {"left of": 0, "right of": 0, "above": 1, "below": 1}.get(pair.words)
    if axis is None:
        return f"{plain} {other}"
    if orientation is None or not set(orientation[:2]) <= set(OPPOSITE) or len(orientation) < 2:
        return f"{plain} {other} in the image"
    grows = orientation[axis]
    return f"{TOWARD[grows if pair.words in ('right of', 'below') else OPPOSITE[grows]]} {other}"
