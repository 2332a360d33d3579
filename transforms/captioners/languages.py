"""A caption in another language, put together from the table languages.yaml; no model.

The invariant: every word comes from the table, or stands as the facts give it (an English term in quotation marks); the
English label of a region follows in brackets, so key terms are kept. Fields and not sentences: nothing is inflected.

>>> translated(facts, {}, "de").text
'Bildart: CT-Bild. Ebene oder Ansicht: axial. Körperregion: Bauch. Markiert: Leber (liver), Lage im Bild: oben links, …'
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from transforms.captioners.lay import term_of
from transforms.captioners.parts import NOTHING, REGIONS, Said, Terms, view_of
from transforms.facts import Facts, RegionFact

FILE = Path(__file__).with_name("languages.yaml")


@cache
def _tables() -> Mapping[str, Any]:
    read: Mapping[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return read


def translated(facts: Facts, terms: Terms, language: str) -> Said | None:
    """The caption in a language of the table (KeyError for another); None where it would say nothing."""
    table = _tables()[language]
    fields, told, rests = _fields(table), [], []
    modality = table["modalities"].get(facts.modality)
    if modality:
        told.append(f"{fields['picture']} {modality}")
        rests.append("image:modality")
    if (view := view_of(facts)) in table["views"]:
        told.append(f"{fields['view']} {table['views'][view]}")
        rests.append("image:view")
    if facts.anatomy:
        told.append(f"{fields['anatomy']} {_term(facts.anatomy, table)}")
        rests.append("image:anatomy")
    for value, field in (("present", "findings"), ("absent", "absent")):
        named = [
            (name, {f"label:{label.id}", f"label:{id}"}) for label in facts.labels if label.value == value
            for name, id in terms.get(label.id) or ((label.name, label.id),)
        ]
        if named:
            nothing = NOTHING if value == "present" else ()
            words = [table["nothing"] if name.lower() in nothing else _term(name, table) for name, _ in named]
            told.append(f"{fields[field]} {', '.join(dict.fromkeys(words))}")
            rests += sorted(id for _, ids in named for id in ids)
    regions, ids = _regions(facts, table)
    if not told and not regions:
        return None
    return Said(". ".join([*told, *regions]) + ".", (*dict.fromkeys(rests), *(f"roi:{roi}" for roi in ids)))


def _regions(facts: Facts, table: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """One clause for each of the largest regions, in their order, and one for each group; their ids."""
    fields = _fields(table)
    single = [r for r in facts.single if r.role not in ("body", "panel", "text") and r.trust != "presence"]
    largest = sorted(single, key=lambda r: (-r.area_fraction, r.id))[:REGIONS]
    shown = [region for region in single if region in largest]
    told = []
    for region in shown:
        words = f"{fields['marked']} {_term(region.label, table)} ({region.label}); {fields['place']} " \
                f"{table['positions'][region.position]}"
        told.append(words + (f"; {fields['share']} {_percent(region, table)}" if region.percent else ""))
    groups = [group for group in facts.groups if group.role != "body"]
    told += [f"{fields['marked']} {_term(g.label, table)} ({g.label}); {fields['number']} {g.count}" for g in groups]
    return told, [region.id for region in shown] + [roi for group in groups for roi in group.ids]


def _fields(table: Mapping[str, Any]) -> Mapping[str, str]:
    """The names of the fields with the colon as the language writes it."""
    return {name: words + table["colon"] for name, words in table["fields"].items()}


def _term(label: str, table: Mapping[str, Any]) -> str:
    """A term in the language, its side in brackets; in English in quotation marks where the table lacks it."""
    term = term_of(label)
    word = table["terms"].get(term.name) if term else None
    if word is None or term is None:
        return f"“{label}”"
    number = label.split()[-1] if label.split()[-1][-1:].isdigit() and label.lower() != term.name.lower() else None
    extra = [x for x in (number, table["sides"].get(term.side)) if x and x.lower() not in word.lower()]
    return f"{word} ({', '.join(extra)})" if extra else word


def _percent(region: RegionFact, table: Mapping[str, Any]) -> str:
    words = (region.percent or "").removesuffix("%")
    under = words.startswith("under ")
    number = words.removeprefix("under ").replace(".", table["decimal"]) + table["percent"]
    return f"{table['under']} {number}" if under else number
