"""Captioner: the sentences of a report, each tied to the regions of the picture that it speaks of; no model.

The invariant: a sentence is kept letter by letter, negated or not, and cites where in which text it stands; it is tied
to a region only by whole words: the region's label, a wording that the bundled map (transforms/terms) has for the same
term, or one that report_sentences.yaml states. A wording inside a longer one of another structure does not count: the
pulmonary artery is no lung. As RadGenome-Chest CT ties report sentences to masks, with rules for its language model.

    - use: caption
      captioner: report_sentences

Sides: a sentence that names left or right near a structure is tied to the regions of that side, by their label, else by
where they lie in the patient; one that says "both", "bilateral", or no side, is tied to all. A structure in the plural
is that of both sides. A sentence that speaks of no region gets no row: the report itself is kept beside.

Kind: `report_sentence`, from the texts of kind findings and impression, or the whole report where there are neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from infra.keys import sha256
from transforms.captioners.lay import term_of
from transforms.facts import Facts, RegionFact, of_source
from transforms.figures.sentences import sentences
from transforms.stage import Context, SampleRows
from transforms.terms.lookup import BUNDLED, bundled, normal

NAME = "report_sentences"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}
WORDINGS = Path(__file__).with_name("report_sentences.yaml")
SECTIONS = ("findings", "impression")
BOTH = frozenset({"both", "bilateral", "bilaterally"})
NEAR = 4
"""Words before a structure, and after it, among which its side is looked for: "left lower lobe of the lung"."""
LONGER = 3
"""Words by which a wording may be longer than the one inside it."""


class Params(BaseModel):
    """What a recipe may set for the sentences of reports."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sections: tuple[str, ...] = Field(SECTIONS, description="kinds of text to take sentences from")
    otherwise: str | None = Field("report", description="kind of text to take where there is none of those; null: none")


def ingredients(params: Params) -> Mapping[str, str]:
    """What else decides the texts: the wordings and the map of terms."""
    return {"wordings": sha256(WORDINGS.read_bytes()), "map": sha256(BUNDLED.read_bytes())}


def open_captioner(params: Params, context: Context) -> Callable[[Facts, SampleRows], list[dict[str, Any]]]:
    """The captioner; there is nothing to load."""

    def captions(facts: Facts, sample: SampleRows) -> list[dict[str, Any]]:
        own = [row for row in sample.rows("texts") if of_source(row)]
        chosen = [row for row in own if row["kind"] in params.sections]
        chosen = chosen or [row for row in own if row["kind"] == params.otherwise]
        return [text for row in chosen for text in _tied(row, facts)]

    return captions


def _tied(report: Mapping[str, Any], facts: Facts) -> Iterator[dict[str, Any]]:
    able = [region for region in facts.regions if region.role not in ("body", "panel", "text")]
    for start, end in sentences(report["text"]):
        words = report["text"][start:end]
        regions = [region.id for region in able if speaks_of(words, region)]
        if regions:
            yield {
                "kind": "report_sentence", "text": words, "roi_ids": regions,
                "language": report.get("language") or "en",
                "evidence": [f"text:{report['text_id']}@{start}:{end}", *(f"roi:{roi}" for roi in regions)],
                "generator": f"{NAME}@{VERSION}",
            }


def speaks_of(sentence: str, region: RegionFact) -> bool:
    """Whether a sentence names the structure that a region shows, on the region's side or on none."""
    words = re.findall(r"[^\W_]+", sentence.casefold())
    term = term_of(region.label)
    named = term.side if term else next((s for s in ("left", "right") if s in normal(region.label).split()), None)
    side = named or (region.side if region.side in ("left", "right") else None)
    for form in _forms(region.label):
        name = form.split()
        for at in range(len(words) - len(name) + 1):
            found = words[at : at + len(name)]
            many = found != name
            same = found == name or found == [*name[:-1], f"{name[-1]}s"]
            if same and not _within(words, at, len(name), form) and _on(side, words, at, len(name), many):
                return True
    return False


def _within(said: list[str], at: int, length: int, form: str) -> bool:
    """Whether a wording is part of a longer one that means something else: "pulmonary" in "pulmonary artery"."""
    meant, longer = _meanings().get(form), range(length + 1, length + LONGER + 1)
    around = (" ".join(said[start : start + n]) for n in longer for start in range(max(0, at + length - n), at + 1))
    return any(meant not in (None, _meanings().get(wording, meant)) for wording in around)


@cache
def _meanings() -> Mapping[str, tuple[str, ...]]:
    """Every known wording -> the names of the structures it speaks of."""
    of_map = {form: tuple(term.name for term in terms) for form, terms in bundled().items()}
    return of_map | {normal(wording): tuple(names) for wording, names in _stated().items()}


@cache
def _stated() -> Mapping[str, list[str]]:
    read: Mapping[str, list[str]] = yaml.safe_load(WORDINGS.read_text(encoding="utf-8"))["speaks_of"]
    return read


def _on(side: str | None, words: list[str], at: int, length: int, many: bool) -> bool:
    """Whether a structure at a place in a sentence may be the one of a side."""
    if side is None:
        return True
    before, after = words[max(0, at - NEAR) : at], words[at + length : at + length + NEAR]
    for near in (before[::-1], after):
        if BOTH & set(near):
            return True
        named = [word for word in near if word in ("left", "right")]
        if named:
            return (set(named) == {"left", "right"} and "and" in near) or named[0] == side
    return True if many else not ({"left", "right"} & set(words)) or side in words


@cache
def _forms(label: str) -> tuple[str, ...]:
    """The wordings of a structure without its side, longest first."""
    term = term_of(label)
    if term is None:
        return (re.sub(r"^(left|right) | (left|right)$", "", normal(label)),)
    known = (form for form, names in _meanings().items() if term.name in names)
    return tuple(sorted(known, key=lambda form: (-len(form), form)))
