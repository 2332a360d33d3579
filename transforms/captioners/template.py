"""Captioner: fixed sentences over the facts; no model, no network, the same words every time.

The invariant: nothing is said that no row states, and every text cites the rows it rests on. Left and right are the
patient's where the image's orientation is known; otherwise they are said to be of the image. Extent, shape and look are
told only of outlines that may be believed (trust "boundary"), a place of none of trust "presence". A passage is never
told of this image: it is a text of its own kind.

    This is an axial CT image of the abdomen. The source marks the liver, the spleen and the left kidney. The liver lies
    in the upper part of the image, toward the patient's right, and covers 12% of the image. …

Kinds: `part/modality` … `part/relation`, MedTrinity's five parts (parts.py), each only where something is known of it;
`global`, the parts as one caption; `region`, one a region (a group of many counts as one, a body gets none);
`relation`, one a pair; `volume`, where the slice of a scan was taken; `panel`, what the figure's own words say of a
panel; `knowledge`, the best passage word by word. With `lay` and `languages`, the caption again: in lay words (kind
`lay`) and in other languages (kind `global`, from languages.yaml).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.keys import sha256
from transforms.captioners.languages import FILE as TABLES
from transforms.captioners.languages import translated
from transforms.captioners.lay import FILE as LAY
from transforms.captioners.lay import lay_text
from transforms.captioners.parts import (
    Said,
    Terms,
    group_text,
    parts_of,
    prose_of,
    region_text,
    relation_text,
    view_of,
)
from transforms.facts import HARMONISED, Facts
from transforms.stage import Context, SampleRows
from transforms.vocabulary import article

NAME = "template"
VERSION = "2"
REQUIRES: Mapping[str, str] = {}


class Params(BaseModel):
    """What a recipe may set for the template captioner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    knowledge: bool = Field(True, description="write the best passage as a text of kind knowledge")
    parts: bool = Field(True, description="write the five parts of the caption as texts of their own too")
    lay: bool = Field(False, description="write the caption again in lay words, where lay.yaml knows some")
    languages: tuple[Literal["de", "es", "fr"], ...] = Field(
        (), description="write the caption again in these languages, as far as languages.yaml goes"
    )


def ingredients(params: Params) -> Mapping[str, str]:
    """What else decides the texts: the tables of words, where they are used."""
    lay = {"lay": sha256(LAY.read_bytes())} if params.lay else {}
    return lay | ({"languages": sha256(TABLES.read_bytes())} if params.languages else {})


def open_captioner(params: Params, context: Context) -> Callable[[Facts, SampleRows], list[dict[str, Any]]]:
    """The captioner; there is nothing to load."""

    def captions(facts: Facts, sample: SampleRows) -> list[dict[str, Any]]:
        return list(_texts(facts, sample, params))

    return captions


def _texts(facts: Facts, sample: SampleRows, params: Params) -> Iterator[dict[str, Any]]:
    terms = terms_of(sample)
    whole = prose_of(facts, terms)
    if whole:
        yield text_row("global", Said(whole.text, whole.evidence))
    if params.parts:
        yield from (text_row(f"part/{p.name}", Said(p.text, p.evidence, p.roi_ids)) for p in parts_of(facts, terms))
    same = Counter(region.label for region in facts.regions)
    for region in facts.single:
        said = None if region.role == "body" else region_text(region, same[region.label] - 1)
        if said:
            yield text_row("region", said)
    yield from (text_row("region", group_text(group)) for group in facts.groups)
    yield from (text_row("relation", relation_text(pair, facts)) for pair in facts.relations)
    yield from (text_row("volume", said) for said in _volume(facts, sample))
    yield from (text_row("panel", said) for said in _panel(sample))
    if params.lay and (said := lay_text(facts, terms)):
        yield text_row("lay", said)
    for language in params.languages:
        if said := translated(facts, terms, language):
            yield text_row("global", said, language)
    if params.knowledge and facts.passages:
        best = facts.passages[0]
        yield text_row("knowledge", Said(best.text, (f"passage:{best.id}",)))


def text_row(kind: str, said: Said, language: str = "en") -> dict[str, Any]:
    """A row of `texts`, as the stage `caption` takes it."""
    return {
        "kind": kind, "text": said.text[:1].upper() + said.text[1:], "evidence": list(said.evidence),
        "roi_ids": list(said.roi_ids), "language": language, "generator": f"{NAME}@{VERSION}",
    }


def terms_of(sample: SampleRows) -> Terms:
    """What the stage `harmonise` calls the source's labels."""
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for label in sample.rows("labels"):
        if label["origin"].startswith(HARMONISED):
            of = label["origin"].removeprefix(HARMONISED)
            found[of] = (*found.get(of, ()), (label["name"], label["label_id"]))
    return found


def _volume(facts: Facts, sample: SampleRows) -> Iterator[Said]:
    """Where in its scan a slice lies, and how it is shown."""
    if not facts.in_volume:
        return
    noun = f"{facts.modality_name} scan" if facts.modality_name else "scan"
    rests = ["image:volume_id", *(["image:modality"] if facts.modality_name else [])]
    told = [f"the image is a slice of a {noun}"]
    if facts.view is not None:
        told[0] = f"the image is {article(f'{view_of(facts)} slice')} of a {noun}"
        rests.append("image:view")
    if facts.slice_index is not None:
        told[0] += f", number {facts.slice_index} counted from 0"
        rests.append("image:slice_index")
    if facts.pixel_spacing is not None:
        high, wide = facts.pixel_spacing
        told.append(f"a pixel is {high:g} mm high and {wide:g} mm wide")
        rests.append("image:pixel_spacing")
    if facts.window is not None:
        low, top = facts.window
        unit = " HU" if facts.modality == "CT" else ""
        told.append(f"grey levels run from {low:g} to {top:g}{unit}")
        rests.append("image:window")
    words = "; ".join(told)
    yield Said(f"{words[:1].upper()}{words[1:]}.", tuple(rests))


def _panel(sample: SampleRows) -> Iterator[Said]:
    """What the words of a figure say of the panel that the image is."""
    for row in sample.rows("texts"):
        if row["kind"] == "original_caption" and row["generator"].startswith("panels@"):
            words = " ".join(row["text"].split())
            text = f"This is a panel of a figure, described there as follows: “{words}”"
            yield Said(text, (f"text:{row['text_id']}",))
