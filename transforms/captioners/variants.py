"""Captioner: the labels of a picture said in several ways, and for each region a phrase to find it by.

The invariant: every variant says the same facts, those that labels state, in the terms of the stage `harmonise` where
it ran, and cites them. A picture that no label speaks of gets no variant.

    - use: harmonise
    - use: caption
      captioner: variants
      options: {variants: 10}

Kinds: `variant`, as UniMed trains on (a label, ten captions of it); `phrase`, one a region, as BiomedParse prompts with
("liver in abdomen CT image"). The sentences are in variants.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from infra.keys import sha256
from transforms.facts import HARMONISED, Facts
from transforms.stage import Context, SampleRows
from transforms.vocabulary import article, listed

NAME = "variants"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}
SENTENCES = Path(__file__).with_name("variants.yaml")
NOTHING = frozenset({"normal", "no finding", "no findings"})
MOST = 10
"""Ways of saying a thing that variants.yaml holds."""


class Params(BaseModel):
    """What a recipe may set for the variants captioner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variants: int = Field(MOST, ge=0, le=MOST, description="captions of each picture's labels; 0: none")
    phrases: bool = Field(True, description="a phrase for each region: what it is, in which part and kind of picture")


def ingredients(params: Params) -> Mapping[str, str]:
    """What else decides the texts: the sentences."""
    return {"sentences": sha256(SENTENCES.read_bytes())}


def open_captioner(params: Params, context: Context) -> Callable[[Facts, SampleRows], list[dict[str, Any]]]:
    """The captioner; there is nothing to load."""

    def captions(facts: Facts, sample: SampleRows) -> list[dict[str, Any]]:
        told = list(_variants(facts, sample, params.variants))
        return told + list(_phrases(facts)) if params.phrases else told

    return captions


@cache
def _sentences() -> Mapping[str, Any]:
    read: Mapping[str, Any] = yaml.safe_load(SENTENCES.read_text(encoding="utf-8"))
    return read


def _variants(facts: Facts, sample: SampleRows, count: int) -> Iterator[dict[str, Any]]:
    found = _present(facts, sample)
    if not found:
        return
    kind = "nothing" if set(found) <= NOTHING else "findings"
    findings = listed([name for name in found if name not in NOTHING] or list(found))
    image = _image(facts)
    words = {"image": image, "findings": findings, "Image": _capital(image), "Findings": _capital(findings)}
    evidence = _about(facts) + [f"label:{label}" for label in dict.fromkeys(found.values())]
    for sentence in _sentences()[kind][:count]:
        yield _text("variant", sentence.format(**words), evidence)


def _present(facts: Facts, sample: SampleRows) -> dict[str, str]:
    """Name -> id of the label that states it, for what is present; the term instead of the source's wording."""
    terms: dict[str, list[tuple[str, str]]] = {}
    for row in sample.rows("labels"):
        if row["origin"].startswith(HARMONISED):
            terms.setdefault(row["origin"].removeprefix(HARMONISED), []).append((row["name"], row["label_id"]))
    stated = [label for label in facts.labels if label.value == "present"]
    return dict(named for label in stated for named in terms.get(label.id, [(label.name, label.id)]))


def _phrases(facts: Facts) -> Iterator[dict[str, Any]]:
    noun, anatomy = facts.modality_image or "image", facts.anatomy
    place = noun if anatomy is None or anatomy.casefold() in noun.casefold() else f"{anatomy} {noun}"
    shown = {region.label: [r for r in facts.regions if r.label == region.label] for region in facts.regions}
    for label, regions in shown.items():
        if regions[0].role != "body":
            ids = tuple(region.id for region in regions)
            text = _sentences()["region"].format(label=label, place=place)
            yield _text("phrase", text, [f"roi:{id}" for id in ids] + _about(facts, "view"), ids)


def _image(facts: Facts) -> str:
    noun = " ".join(filter(None, (facts.view, facts.modality_image or "medical image")))
    return f"{article(noun)} of the {facts.anatomy.removeprefix('the ')}" if facts.anatomy else article(noun)


def _about(facts: Facts, *without: str) -> list[str]:
    told = (name for name in ("view", "modality", "anatomy") if name not in without)
    return [f"image:{name}" for name in told if getattr(facts, name) is not None]


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _text(kind: str, text: str, evidence: list[str], roi_ids: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "kind": kind, "text": text, "evidence": evidence, "roi_ids": list(roi_ids), "language": "en",
        "generator": f"{NAME}@{VERSION}",
    }
