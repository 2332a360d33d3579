"""Names of outlined structures: what may be said of them, and which code they have.

The invariant: a name typed by a person comes through only when every word of it is known (`structures.yaml`, and the
SNOMED CT terms that DICOM PS3.16 has for anatomy and segments) and is no part of a name in the same header; otherwise
the region is a "region".

>>> named("Lt Kidney_2", frozenset()), named("Kidney of Mr Doe", frozenset())
('Lt Kidney 2', None)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from transforms.scans.deidentify import text, texts, value
from transforms.scans.volumes import role_of

ANYTHING = "region"
CONTEXTS = frozenset({4, 244, 647, 648, 4030, 4031, *range(7150, 7200)})
"""Context groups of PS3.16 whose terms may be used in names: anatomic regions, and properties of segments."""
PEOPLE = (
    "PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ReferringPhysicianName",
    "PerformingPhysicianName", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "RequestingPhysician",
    "OperatorsName", "ContentCreatorName", "ReviewerName", "ResponsiblePerson",
)
"""Attributes that hold names of persons."""


@dataclass(frozen=True)
class Named:
    """What is known of a structure beside its outline."""

    label: str
    role: str
    ontology_id: str | None = None


def of_segment(segment: Any, people: frozenset[str]) -> Named:
    """The name of an item of SegmentSequence (PS3.3 C.8.20.4)."""
    kind, what = coded(segment, "SegmentedPropertyTypeCodeSequence")
    category, _ = coded(segment, "SegmentedPropertyCategoryCodeSequence")
    label = named(_plain(segment, "SegmentLabel"), people) or _spoken(segment, what, people) or ANYTHING
    role = _table()["roles"].get(category) or ("region" if label == ANYTHING else role_of(label))
    return Named(label, role, f"SCT:{kind}" if kind else None)


def of_roi(roi: Any, observation: Any, people: frozenset[str]) -> Named:
    """The name of an item of StructureSetROISequence, with what RTROIObservationsSequence says of it (or None)."""
    kind, what = coded(observation, "RTROIIdentificationCodeSequence") if observation is not None else ("", "")
    label = named(_plain(roi, "ROIName"), people) or _spoken(roi, what, people) or ANYTHING
    stated = text(observation, "RTROIInterpretedType") if observation is not None else ""
    role = _table()["interpreted"].get(stated) or ("region" if label == ANYTHING else role_of(label))
    return Named(label, role, f"SCT:{kind}" if kind else None)


def named(stated: str, people: frozenset[str]) -> str | None:
    """A name of which every word is known, with one blank between words; None: it may not be said, or says nothing."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", re.sub(r"[^0-9A-Za-z]+", " ", stated)).split()
    if not words or len(stated) > 64:
        return None
    known, lower = _words(), [word.lower() for word in words]
    if not all((word in known and word not in people) or re.fullmatch(r"\d{1,2}", word) for word in lower):
        return None
    if all(word in _table()["empty"] or word.isdigit() for word in lower):
        return None
    return " ".join(words)


def people_of(dataset: Any) -> frozenset[str]:
    """The words of the names of persons that stand in a header, in lower case."""
    names = [word for keyword in PEOPLE for word in texts(dataset, keyword)]
    return frozenset(word for name in names for word in re.findall(r"[^\W\d_]{2,}", name.lower()))


def coded(dataset: Any, keyword: str) -> tuple[str, str]:
    """(SNOMED CT code, its meaning as PS3.16 has it, else as the file has it) of a coded concept; "" for unknown."""
    from pydicom.sr._snomed_dict import mapping

    concepts = value(dataset, keyword)
    if not concepts:
        return "", ""
    code, scheme = text(concepts[0], "CodeValue"), text(concepts[0], "CodingSchemeDesignator")
    if scheme in ("SRT", "SNM3", "99SDM"):
        code, scheme = mapping["SRT"].get(code, ""), "SCT"
    if scheme != "SCT" or not re.fullmatch(r"\d{6,18}", code):
        return "", _plain(concepts[0], "CodeMeaning")
    return code, _meanings().get(code) or _plain(concepts[0], "CodeMeaning")


def _spoken(dataset: Any, what: str, people: frozenset[str]) -> str | None:
    """The meaning of a code with its side (Right kidney), if its words are known."""
    _, side = coded(dataset, "SegmentedPropertyTypeModifierCodeSequence")
    return named(f"{side} {what}" if side else what, people)


def _plain(dataset: Any, keyword: str) -> str:
    found = value(dataset, keyword)
    return "" if found is None else str(found).strip(" \0")


@cache
def _terms() -> list[tuple[str, str, list[int]]]:
    """Code, term and context groups of the SNOMED CT concepts of PS3.16."""
    from pydicom.sr._concepts_dict import concepts

    listed: Any = concepts["SCT"]
    return [(code, term, groups) for codes in listed.values() for code, (term, groups) in codes.items()]


@cache
def _meanings() -> dict[str, str]:
    """SNOMED CT code -> the shortest of its terms."""
    terms = [(code, term) for code, term, _ in _terms()]
    return dict(sorted(terms, key=lambda one: (len(one[1]), one[1]), reverse=True))  # the last one stays


@cache
def _words() -> frozenset[str]:
    """Every word that a name may have, in lower case."""
    codes = {code for code, _, groups in _terms() if CONTEXTS.intersection(groups)}
    terms = " ".join(term.lower() for code, term, _ in _terms() if code in codes)
    spoken = set(re.findall(r"[a-z]{2,}", terms))
    return frozenset(spoken | {"l", "r"} | set(_table()["words"]) | set(_table()["empty"]))


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("structures.yaml").read_text("utf-8"))
    return table
