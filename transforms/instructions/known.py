"""What of a picture is known well enough to be asked: what is there, what is surely not, and by which rows.

The invariant: nothing counts as absent because nobody mentioned it. A thing is absent where a label says so, or where
the recipe says of the source that it states or marks this thing wherever it is (`Complete`) and the sample has neither
it nor anything related to it (transforms/instructions/words.py).

>>> complete = Complete(labels={"chexpert": ("edema", "fracture")}, regions={})
>>> known_of(facts, sample, complete, predicted=False, smallest=50).absent
{'fracture': ('image:source', 'label:…')}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transforms.facts import HARMONISED, Facts, RegionFact
from transforms.instructions.words import askable, related, table
from transforms.stage import SampleRows
from transforms.vocabulary import phrase

ROLES = ("organ", "lesion", "cell", "device", "region")
"""Roles of regions that are asked for; a panel, a text or the whole body is not."""

Evidence = tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """One sample, as far as it may be asked about."""

    present: Mapping[str, Evidence]
    """findings that labels say are there, in the terms of `harmonise` where it ran"""
    absent: Mapping[str, Evidence]
    """findings that are not"""
    regions: Mapping[str, tuple[RegionFact, ...]]
    """label -> its regions, all of them large enough and of an origin that is asked about"""
    missing: Mapping[str, Evidence]
    """names of regions that the source would have marked"""
    normal: Evidence | None
    """what says that nothing was found"""
    whole: frozenset[str]
    """names of which the source marks every region there is"""


@dataclass(frozen=True)
class Complete:
    """What a source never leaves out: source -> names that its labels state, or its regions mark, wherever they are."""

    labels: Mapping[str, Sequence[str]]
    regions: Mapping[str, Sequence[str]]


def known_of(facts: Facts, sample: SampleRows, complete: Complete, predicted: bool, smallest: int) -> Known:
    """What is known. `smallest`: regions of fewer pixels are not asked about, nor is their label."""
    present, absent, uncertain = (_stated(facts, sample, value) for value in ("present", "absent", "uncertain"))
    normal = next((ids for name, ids in present.items() if name.lower() in table()["normal"]), None)
    findings = {name: ids for name, ids in present.items() if name.lower() not in table()["normal"]}
    marked = [region for region in facts.regions if predicted or region.origin != "predicted"]
    source = str(sample.image.get("source"))
    there = {*findings, *absent, *uncertain, *(spoken(region.label) for region in facts.regions)}
    labels = ("image:source", *(f"label:{label.id}" for label in facts.labels))
    regions = ("image:source", *(f"roi:{region.id}" for region in marked))
    marks = tuple(dict.fromkeys(spoken(name) for name in complete.regions.get(source, ())))
    return Known(
        present={name: ids for name, ids in findings.items() if askable(name)},
        absent={
            **{name: ids for name, ids in absent.items() if askable(name)},
            **dict.fromkeys(_lacking(complete.labels.get(source, ()), there), labels),
        },
        regions=_regions(facts, marked, smallest),
        missing=dict.fromkeys(_lacking(marks, there), regions),
        normal=normal if normal and not findings else None,
        whole=frozenset(marks),
    )


def _lacking(names: Sequence[str], there: set[str]) -> list[str]:
    said = dict.fromkeys(spoken(name) for name in names)
    return [
        name for name in said
        if askable(name) and name.lower() not in table()["normal"] and not any(related(name, t) for t in there)
    ]


def spoken(label: str) -> str:
    """A label as it stands in a question: "vertebrae L1" is one vertebra."""
    return re.sub(r"^vertebrae (?=[CTLS]\d+$)", "vertebra ", phrase(label))


def _stated(facts: Facts, sample: SampleRows, value: str) -> dict[str, Evidence]:
    """Name -> the row that states it, for labels of this value; a term instead of the source's wording."""
    terms: dict[str, list[tuple[str, str]]] = {}
    for row in sample.rows("labels"):
        if row["origin"].startswith(HARMONISED):
            terms.setdefault(row["origin"].removeprefix(HARMONISED), []).append((row["name"], row["label_id"]))
    found: dict[str, Evidence] = {}
    for label in facts.labels:
        if label.value == value:
            for name, label_id in terms.get(label.id, [(phrase(label.name), label.id)]):
                found.setdefault(name, (f"label:{label_id}",))
    return found


def _regions(facts: Facts, marked: Sequence[RegionFact], smallest: int) -> dict[str, tuple[RegionFact, ...]]:
    found: dict[str, list[RegionFact]] = {}
    for region in marked:
        if region.role in ROLES and askable(spoken(region.label)):
            found.setdefault(spoken(region.label), []).append(region)
    pixels = facts.width * facts.height
    return {
        label: tuple(regions) for label, regions in found.items()
        if all(region.area_fraction * pixels >= smallest for region in regions)
    }
