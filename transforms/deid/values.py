"""Single values: which may stay as they are, and what stands in for the others.

The invariant: a replacement depends on the key, the value and (for dates) the patient alone, so files that were cleaned
in different processes fit together. Nothing here is random.

>>> Values(b"key", Identity.of(data, elements)).uids(b"1.2.3")
b'2.25.…'
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from uuid import UUID

from infra.keys import pseudonym
from transforms.deid.elements import Element
from transforms.deid.embedded import clean_profile
from transforms.deid.profile import fillers, hashed_kinds, safe_private, vocabulary, vrs_of

PATIENT_ID, PATIENT_NAME = 0x00100020, 0x00100010
_OTHER_IDS = (PATIENT_ID, 0x00080050, 0x00101000, 0x00100032)
_FALLBACKS = (PATIENT_ID, 0x0020000D, 0x00200052, 0x00080018)
"""What a patient is known by: PatientID, else the study, the frame of reference, the instance."""
SHIFT_DAYS = (100, 3650)
"""Dates move back by so many days, at least and at most."""

_TEXT = frozenset(["LO", "SH", "CS", "UC", "ST", "LT", "UT", "AE", "PN", "UR"])
_BINARY = frozenset(["OB", "OW", "OF", "OD", "OL", "OV"])
_NUMERALS = {
    "DS": b"0123456789+-.eE \\\0", "IS": b"0123456789+- \\\0", "TM": b"0123456789.: -\\\0", "DA": b"0123456789. -\\\0",
    "DT": b"0123456789.+- \\\0", "UI": b"0123456789.\\ \0", "AS": b"0123456789DWMY\\ \0",
}
"""The characters of VRs that are text and have no room for a name."""
_DUMMIES = {
    "PN": b"REMOVED", "LO": b"REMOVED", "SH": b"REMOVED", "LT": b"REMOVED", "ST": b"REMOVED", "UT": b"REMOVED",
    "UC": b"REMOVED", "CS": b"REMOVED", "AE": b"REMOVED", "UR": b"urn:removed", "DA": b"19000101",
    "DT": b"19000101000000", "TM": b"000000", "AS": b"000Y", "IS": b"0", "DS": b"0", "OB": b"\0\0", "OW": b"\0\0",
    "UN": b"", "SQ": b"", "SS": bytes(2), "US": bytes(2), "SL": bytes(4), "UL": bytes(4), "FL": bytes(4),
    "FD": bytes(8), "SV": bytes(8), "UV": bytes(8), "AT": bytes(4), "OF": bytes(4), "OD": bytes(8), "OL": bytes(4),
    "OV": bytes(8),
}
_APART = re.compile(r"[\^=\\,;\s_/]+")


@dataclass(frozen=True)
class Identity:
    """Whom a file is about."""

    patient: str
    """what the patient is known by, in clear; "" where nothing says"""
    tokens: tuple[bytes, ...]
    """names and numbers of the patient and the staff, in capitals: text that repeats one does not stay"""

    @classmethod
    def of(cls, data: bytes, elements: list[Element]) -> Identity:
        """Read it from the outermost dataset."""
        names: set[str] = set()
        known = {}
        for e in elements:
            if e.vr == "PN" or e.tag in _OTHER_IDS:
                for part in _APART.split(data[e.value : e.stop].decode("latin-1").strip(" \0").upper()):
                    if len(part) >= (3 if part.isalpha() else 4) and part not in vocabulary():
                        names.add(part)
            if e.tag in _FALLBACKS:
                known[e.tag] = data[e.value : e.stop].strip(b" \0").decode("utf-8", "replace")
        patient = next((known[tag] for tag in _FALLBACKS if known.get(tag)), "")
        return cls(patient, tuple(name.encode("latin-1", "replace") for name in sorted(names)))


def keepable(data: bytes, e: Element, tokens: tuple[bytes, ...]) -> bool:
    """Whether an element that the plan keeps is what its tag says, and names nobody."""
    vr, vrs = e.vr, vrs_of(e.tag)
    if e.items is not None:
        return False
    if vr == "UN" and vrs:
        vr = vrs[0]
    elif vr not in vrs and not (vr in _BINARY and vrs[0] in _BINARY) and (vr in _TEXT or vr in _BINARY or vr == "UN"):
        return False
    if allowed := _NUMERALS.get(vr):
        return not data[e.value : e.stop].translate(None, allowed)
    if tokens and vr in _TEXT:
        value = data[e.value : e.stop].upper()
        return not any(token in value and _stands_alone(token, value) for token in tokens)
    return True


def _stands_alone(token: bytes, value: bytes) -> bool:
    """Whether a token is in the value as a word: LI is not in LIVER."""
    return re.search(rb"(?<![A-Z0-9])" + re.escape(token) + rb"(?![A-Z0-9])", value) is not None


def private_kept(data: bytes, elements: list[Element]) -> frozenset[int]:
    """Tags of the private elements of one dataset that are known to be safe and hold numbers, with their creators."""
    creators: dict[tuple[int, int], tuple[int, str]] = {}
    kept: set[int] = set()
    for e in elements:
        group, number = e.tag >> 16, e.tag & 0xFFFF
        if not group & 1:
            continue
        if 0x10 <= number <= 0xFF:
            creators[group, number] = (e.tag, data[e.value : e.stop].strip(b" \0").decode("latin-1"))
        elif block := creators.get((group, number >> 8)):
            vr = safe_private().get((block[1], group, number & 0xFF))
            numeric = vr in _NUMERALS or vr == "SH"
            value = data[e.value : e.stop]
            if vr and e.items is None and e.vr in (vr, "UN") and not (
                numeric and value.translate(None, _NUMERALS["DS"] + b":")
            ):
                kept |= {e.tag, block[0]}
    return frozenset(kept)


class Values:
    """What stands in for the values of one file."""

    def __init__(self, key: bytes, identity: Identity) -> None:
        self.key, self.identity = key, identity
        self.uid_map: dict[str, str] = {}
        self.patient_map: dict[str, str] = {}
        self._days = days_of(key, identity.patient)

    def changed(self, action: str, e: Element, data: bytes) -> bytes | None:
        """The value that stands in, by action (see profile.py); None: the element goes."""
        value = data[e.value : e.stop]
        if action == "Z":
            return b""
        if action == "D":
            if e.vr == "UI" or vrs_of(e.tag) == ("UI",):
                return self.uids(value)
            return _DUMMIES[(vrs_of(e.tag) or (e.vr,))[0] if e.vr == "UN" else e.vr]
        if action == "H":
            return self._hashed(e.tag, value)
        replace: Callable[[bytes], bytes | None] = {
            "U": self.uids, "T": self._dates, "C": cleaned, "A": ages, "I": clean_profile
        }[action]
        return replace(value)

    def uids(self, value: bytes) -> bytes:
        """UIDs of somebody's making become keyed ones; those of the standard stay."""
        return b"\\".join(self._uid(uid.strip(b" \0")) for uid in value.split(b"\\"))

    def _uid(self, uid: bytes) -> bytes:
        if not uid or _is_standard(uid):
            return uid
        new = _new_uid(self.key, uid)
        self.uid_map[uid.decode("latin-1")] = new.decode()
        return new

    def _hashed(self, tag: int, value: bytes) -> bytes:
        stated = value.strip(b" \0").decode("utf-8", "replace")
        kind = hashed_kinds()[tag]
        if tag == PATIENT_NAME or (tag == PATIENT_ID and not stated):
            stated = self.identity.patient
        if not stated:
            return b""
        new = pseudonym(self.key, kind, stated)[: 16 if vrs_of(tag) == ("SH",) else None]
        if tag == PATIENT_ID:
            self.patient_map[stated] = new
        return new.encode()

    def _dates(self, value: bytes) -> bytes:
        return b"\\".join(moved(one, self._days) for one in value.split(b"\\"))


def days_of(key: bytes, patient: str) -> int:
    """Days by which the dates of a patient move back."""
    low, high = SHIFT_DAYS
    return low + int(pseudonym(key, "days", patient), 16) % (high - low + 1)


def moved(value: bytes, days: int) -> bytes:
    """A DA or DT some days earlier; b"" where it is no full date, which cannot be moved."""
    text = value.strip(b" \0").replace(b".", b"", 2) if value[4:5] == b"." else value.strip(b" \0")
    if not re.fullmatch(rb"\d{8}([\d.]*([+-]\d{4})?)?", text):
        return b""
    try:
        day = date(int(text[:4]), int(text[4:6]), int(text[6:8])) - timedelta(days)
    except (ValueError, OverflowError):
        return b""
    return b"%04d%02d%02d" % (day.year, day.month, day.day) + text[8:]


def cleaned(value: bytes) -> bytes:
    """The words of the vocabulary with the fillers and numbers of at most two digits between; b"" without any."""
    words = _APART.split(value.decode("latin-1").strip(" \0"))
    known = [w for w in words if w.upper() in vocabulary() | fillers() or re.fullmatch(r"\d{1,2}", w)]
    return " ".join(known).encode() if any(w.upper() in vocabulary() - fillers() for w in known) else b""


def ages(value: bytes) -> bytes:
    """An age string, 090Y for everyone of 90 and above; b"" where it is none."""
    text = value.strip(b" \0")
    if not re.fullmatch(rb"\d{3}[DWMY]", text):
        return b""
    return b"090Y" if text[3:] == b"Y" and int(text[:3]) > 89 else text


@lru_cache(maxsize=100_000)
def _new_uid(key: bytes, uid: bytes) -> bytes:
    """A UID under 2.25, the branch of UUIDs (PS3.5 B.2), version 8: made of whatever its maker likes (RFC 9562)."""
    number = int.from_bytes(hmac.digest(key, b"uid\0" + uid, "sha256")[:16], "big")
    number = number & ~(0xF << 76) & ~(3 << 62) | 8 << 76 | 2 << 62
    return b"2.25.%d" % UUID(int=number).int


@lru_cache(maxsize=10_000)
def _is_standard(uid: bytes) -> bool:
    from pydicom._uid_dict import UID_dictionary

    return uid.decode("latin-1") in UID_dictionary
