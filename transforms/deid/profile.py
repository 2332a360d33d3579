"""The confidentiality profile: what is to be done with each attribute, under the options that a hospital chose.

`profile.yaml` holds Table E.1-1 of PS3.15 (edition 2026c), `rules.yaml` what medloom adds. The invariant: every tag has
an action, also those that neither names, and what is unknown is removed.

>>> plan = Profile.of("modified_dates", "retain_patient").plan()
>>> plan[0x00100030], plan[0x00080020], plan[0x00091001]     # birth date, study date, a private element
('Z', 'T', 'X')

How the table was checked: the standard itself could not be had where it was written. Its basic column was compared, row
by row, with the table that dicom-anonymizer 2.1.0 generated from 2026c: 655 rows, no difference in effect (for
AnnotationGroupUID, "dummy" is a hashed UID here). Its option columns were written by hand from the standard and rest on
reading alone. Where the standard leaves a choice (X/Z, Z/D, X/Z/D) the one is taken that keeps any object valid: Z for
X/Z, else D; sequences are kept with cleaned items.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from infra.errors import ConfigError

Action = str
"""K keep · X remove · Z empty · D dummy · U replace the UID · S clean the items of a sequence · T move the date ·
C clean the text · H keyed pseudonym · A keep, but ages above 89 years as 90 · I clean the ICC profile ·
P private: keep what is known to be safe"""

OPTIONS = (
    "retain_uids", "retain_device", "retain_institution", "retain_patient", "full_dates", "modified_dates",
    "clean_descriptors", "clean_structured", "clean_graphics", "retain_safe_private",
)
"""Options of the profile that concern the header, in the words of this module."""

_CHOICE = {"X/Z": "Z", "X/D": "D", "X/Z/D": "D", "Z/D": "D", "X/Z/U*": "S"}
ICC_PROFILE, PATIENT_AGE = 0x00282000, 0x00101010


@dataclass(frozen=True)
class Profile:
    """The basic profile with some of its options."""

    options: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if unknown := sorted(self.options - set(OPTIONS)):
            raise ConfigError(f"no such option of the profile: {', '.join(unknown)}; there are {', '.join(OPTIONS)}")
        if {"full_dates", "modified_dates"} <= self.options:
            raise ConfigError("full_dates and modified_dates exclude each other: dates are kept, or moved, or removed")

    @classmethod
    def of(cls, *options: str) -> Profile:
        """The profile with these options."""
        return cls(frozenset(options))

    def plan(self) -> Plan:
        """Tag -> action."""
        return _plan(self.options)

    @property
    def temporal(self) -> str:
        """What LongitudinalTemporalInformationModified has to say."""
        return {"full_dates": "UNMODIFIED", "modified_dates": "MODIFIED"}.get(
            next(iter(self.options & {"full_dates", "modified_dates"}), ""), "REMOVED"
        )

    def method_codes(self, *pixels: str) -> list[tuple[str, str]]:
        """(code value, meaning) of the profile, its options, and `pixels` (clean_pixels, clean_faces); CID 7050."""
        codes = table()["codes"]
        used = ["basic", *(name for name in codes if name in self.options or name in pixels)]
        return [(str(codes[name][0]), codes[name][1]) for name in used]


class Plan(dict[int, Action]):
    """Tag -> action; rows of the table are there from the start, all other tags are decided when first met."""

    def __init__(self, rows: dict[int, Action], safe_private: bool, kept: frozenset[int]) -> None:
        super().__init__(rows)
        self.private = "P" if safe_private else "X"
        self.kept = kept

    def __missing__(self, tag: int) -> Action:
        action = self[tag] = self._unlisted(tag)
        return action

    def _unlisted(self, tag: int) -> Action:
        if tag >> 16 & 1:
            return self.private
        if tag & 0xFFFF == 0 or tag >> 24 in (0x50, 0x60):  # group lengths; curves and overlays go as a whole
            return "X"
        vrs = vrs_of(tag)
        if not vrs:
            return "X"
        if vrs == ("SQ",):
            return "S"
        return "K" if tag in self.kept else rules()["unlisted"].get(vrs[0], "K")


@cache
def _plan(options: frozenset[str]) -> Plan:
    rows = {tag: _CHOICE.get(action, action) for tag, action in _tags(table()["basic"]).items()}
    rows |= _tags({action: keyword for keyword, action in rules()["added"].items()})
    dates = {tag for tag in rows if set(vrs_of(tag)) & {"DA", "DT", "TM"}} - {_tag(k) for k in table()["no_dates"]}
    rows |= {_tag(keyword): "H" for keyword in rules()["hashed"]}
    for option in OPTIONS:  # cleaning before keeping: what an option keeps stays whole
        if option in options:
            rows |= {tag: {"K": "K", "C": "C"}[how] for tag, how in _tags(table()["options"].get(option, {})).items()}
    if "full_dates" in options:
        rows |= dict.fromkeys(dates, "K")
    if "modified_dates" in options:
        moved = {tag for tag in dates if rows[tag] != "K"}
        rows |= {tag: "K" if vrs_of(tag) == ("TM",) else "T" for tag in moved}
    for tag, action in rows.items():
        if "SQ" in vrs_of(tag) and action not in "XZ":
            rows[tag] = "S"
    if rows[PATIENT_AGE] == "K":
        rows[PATIENT_AGE] = "A"
    rows[ICC_PROFILE] = "I"
    return Plan(rows, "retain_safe_private" in options, frozenset(map(_tag, rules()["kept"].split())))


def _tags(columns: dict[str, str]) -> dict[int, str]:
    """Tag -> action of columns {action: words}. Masks are left to `Plan`, which removes their groups as a whole."""
    return {_tag(word): action for action, words in columns.items() for word in words.split() if "xx" not in word}


@cache
def _tag(word: str) -> int:
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(word)
    return int(word, 16) if tag is None else int(tag)


@cache
def vrs_of(tag: int) -> tuple[str, ...]:
    """The value representations that the standard's dictionary gives an attribute; () when it knows none."""
    from pydicom.datadict import dictionary_VR

    try:
        return tuple(dictionary_VR(tag).split(" or "))
    except KeyError:
        return ()


@cache
def table() -> dict[str, Any]:
    """profile.yaml"""
    return _yaml("profile.yaml")


@cache
def rules() -> dict[str, Any]:
    """rules.yaml"""
    return _yaml("rules.yaml")


@cache
def hashed_kinds() -> dict[int, str]:
    """Tag -> kind of identifier, of the attributes that get a keyed pseudonym."""
    return {_tag(keyword): kind for keyword, kind in rules()["hashed"].items()}


@cache
def vocabulary() -> frozenset[str]:
    """Words that are no identifiers, in capitals."""
    return frozenset(rules()["vocabulary"].split())


@cache
def fillers() -> frozenset[str]:
    """Words that may stand between those of the vocabulary."""
    return frozenset(rules()["fillers"].split())


@cache
def safe_private() -> dict[tuple[str, int, int], str]:
    """(creator, group, element within its block) -> VR."""
    return {
        (creator, int(group, 16), int(str(element), 16)): vr
        for creator, groups in rules()["safe_private"].items()
        for group, elements in groups.items()
        for element, vr in elements.items() if vr
    }


def _yaml(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(Path(__file__).with_name(name).read_text("utf-8"))
    return read
