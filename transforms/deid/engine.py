"""Writes a DICOM file again without who it shows: every element by its action, in every sequence, to any depth.

The invariant: a byte of the file reaches the output only inside an element whose tag and VR the plan says to keep, and
whose value looks like its VR; what the engine cannot read in full, it refuses. The same key gives the same UIDs,
identifiers and dates in every process and run.

>>> made = deidentify_file(path.read_bytes(), Profile.of("modified_dates"), key)
>>> made.write(out)
>>> made.actions[0x00100010, "H"]
1

The header is walked as bytes (`elements.py`): values that stay are copied in runs, never converted; pixels are passed
through as a view of the input. Text that stays is searched for the names and numbers that the file states of the
patient and the staff, and goes where it repeats one. Descriptions inside colour profiles and compressed frames are
blanked. Source: DICOM PS3.15 Annex E; PS3.10 7.1 for the file meta information, which is written new.
"""

from __future__ import annotations

import io
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from infra.errors import Dropped, Terminal
from transforms.deid.elements import EXPLICIT, SYNTAXES, Element, Odd, Short, Syntax, fragments, read
from transforms.deid.embedded import blanks
from transforms.deid.profile import Plan, Profile
from transforms.deid.values import Identity, Values, keepable, private_kept
from transforms.scans.deidentify import DEFLATED, bad_values, check_image, inflated, open_dataset, quietly

Actions = Counter[tuple[int, str]]
"""(tag, action of profile.py) -> how often it was done. Elements that were kept are not counted."""

PIXELS = 0x7FE00010
PLAIN = "1.2.840.10008.1.2.1"
COMPRESSED = "1.2.840.10008.1.2.4"
IMPLEMENTATION = b"2.25.106273955413498720457163094837215460917"
_META_CLASS, _META_INSTANCE, _META_SYNTAX = 0x00020002, 0x00020003, 0x00020010
_INSTANCE, _CLASS = 0x00080018, 0x00080016


@dataclass
class Deidentified:
    """A file as it may leave, in parts that follow one another; and what was done to it."""

    parts: list[bytes | memoryview]
    actions: Actions = field(default_factory=Counter)
    uids: dict[str, str] = field(default_factory=dict)
    """UID in clear -> UID in the output: private, for `mapping.py` alone"""
    patients: dict[str, str] = field(default_factory=dict)
    """PatientID in clear -> in the output: private, for `mapping.py` alone"""

    def write(self, path: Path) -> None:
        """Write the file; it is never executable, whatever the preamble of the input was."""
        with open(path, "wb") as file:
            file.writelines(self.parts)

    def data(self) -> bytes:
        """The whole file."""
        return b"".join(self.parts)


def deidentify_file(data: bytes, profile: Profile, key: bytes, pixels: Sequence[str] = ()) -> Deidentified:
    """A DICOM file without who it shows. `pixels` says what is known of them: clean_pixels, clean_faces, shows_face.

    Deflated files come out inflated, files without preamble or file meta with both. Raises Terminal: NOT_DICOM,
    DICOM_UNREADABLE, DICOM_TRUNCATED, PIXELS_TRUNCATED, DEFLATE_LIMIT.
    """
    try:
        meta, body = _meta(data)
        syntax_uid = meta[_META_SYNTAX].decode("ascii")
        if syntax_uid == DEFLATED:
            data = inflated(data)
            meta, body = _meta(data)
            syntax_uid = meta[_META_SYNTAX].decode("ascii")
        syntax = SYNTAXES.get(syntax_uid, EXPLICIT)
        elements = read(data, body, len(data), syntax)
    except Short:
        raise Terminal("DICOM_TRUNCATED", "the file ends within an element; fetch it again") from None
    except (Odd, KeyError, UnicodeDecodeError, EOFError, zlib.error):
        meta = {}
        syntax_uid, data = _rewritten(data)
        syntax = SYNTAXES.get(syntax_uid, EXPLICIT)
        try:
            elements = read(data, 0, len(data), syntax)
        except Odd as error:
            raise Terminal("DICOM_UNREADABLE", f"the header does not add up ({error}); fetch the file again") from None
    return _File(data, profile, key, syntax).made(elements, syntax_uid, pixels, meta)


def deidentify(dataset: Any, profile: Profile, key: bytes, pixels: Sequence[str] = ()) -> tuple[Any, Actions]:
    """A pydicom dataset without who it shows, and what was done; the one given is left as it is.

    The pixels of the result are those of the input, not a copy, unless a comment in them was blanked.
    """
    from pydicom import dcmread
    from pydicom.dataset import Dataset

    header = Dataset({tag: dataset.get_item(tag) for tag in dataset.keys() if tag != PIXELS})  # noqa: SIM118
    uid = _syntax_of(dataset)
    syntax = SYNTAXES.get(uid, EXPLICIT)
    with quietly():
        file = io.BytesIO()
        header.save_as(file, implicit_vr=not syntax.explicit, little_endian=syntax.little, enforce_file_format=False)
        made = deidentify_file(_preface({}, uid) + file.getvalue(), profile, key, pixels)
        result = dcmread(io.BytesIO(made.data()))
        if PIXELS in dataset:
            result[PIXELS] = copy(dataset[PIXELS])
            whole = result[PIXELS].value
            if uid.startswith(COMPRESSED) and isinstance(whole, bytes):
                result[PIXELS].value = _blanked(whole)
    return result, made.actions


def _syntax_of(dataset: Any) -> str:
    """The transfer syntax of a dataset in memory: as its file meta says, else as it was read."""
    uid = str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", ""))
    if uid in ("", DEFLATED):
        implicit, little = dataset.original_encoding
        return next((uid for uid, s in SYNTAXES.items() if (not s.explicit, s.little) == (implicit, little)), PLAIN)
    return uid


def _meta(data: bytes) -> tuple[dict[int, bytes], int]:
    """Values of the file meta information by tag, and where the dataset begins. Raises Odd, KeyError."""
    at = 132 if data[128:132] == b"DICM" else 0
    end = at
    while data[end : end + 2] == b"\2\0":
        code, short = data[end + 4 : end + 6], data[end + 6 : end + 8]
        long = code in (b"OB", b"UN", b"UT", b"OW", b"SQ")
        begin = end + (12 if long else 8)
        end = begin + int.from_bytes(data[end + 8 : end + 12] if long else short, "little")
    elements = read(data, at, end, EXPLICIT)
    return {e.tag: data[e.value : e.stop].rstrip(b" \0") for e in elements}, end


def _preface(meta: dict[int, bytes], syntax_uid: str) -> bytes:
    """Preamble of zeros, mark, and new file meta information."""
    rows = {
        0x00020001: ("OB", b"\0\1"), **{tag: ("UI", uid) for tag, uid in meta.items()},
        _META_SYNTAX: ("UI", syntax_uid.encode()), 0x00020012: ("UI", IMPLEMENTATION), 0x00020013: ("SH", b"MEDLOOM"),
    }
    body = b"".join(EXPLICIT.encode(tag, vr, value) for tag, (vr, value) in rows.items())
    return bytes(128) + b"DICM" + EXPLICIT.encode(0x00020000, "UL", len(body).to_bytes(4, "little")) + body


def _rewritten(data: bytes) -> tuple[str, bytes]:
    """Transfer syntax and dataset of a file that is not quite DICOM, as pydicom understands it, encoded anew."""
    dataset = open_dataset(data)
    if PIXELS in dataset:
        with suppress(Dropped):  # it need not be an image
            check_image(dataset, len(data))
    uid = str(dataset.file_meta.TransferSyntaxUID)
    syntax = SYNTAXES.get(uid, EXPLICIT)
    with quietly():
        for tag in list(dataset.keys()):
            try:
                element = dataset[tag]
                if element.VR == "SQ":
                    for item in element.value:
                        list(item.iterall())
            except bad_values():
                del dataset[tag]
        del dataset.file_meta
        file = io.BytesIO()
        try:
            dataset.save_as(
                file, implicit_vr=not syntax.explicit, little_endian=syntax.little, enforce_file_format=False
            )
        except bad_values() as error:
            name = type(error).__name__
            raise Terminal("DICOM_UNREADABLE", f"the header cannot be written again ({name}); fetch the file") from None
    written = file.getvalue()
    return uid, written[132:] if written[128:132] == b"DICM" else written


class _File:
    """One file on its way through."""

    def __init__(self, data: bytes, profile: Profile, key: bytes, syntax: Syntax) -> None:
        self.data, self.view, self.profile, self.syntax = data, memoryview(data), profile, syntax
        self.plan: Plan = profile.plan()
        self.actions: Actions = Counter()
        self.key = key

    def made(
        self, elements: list[Element], syntax_uid: str, pixels: Sequence[str], stated: dict[int, bytes]
    ) -> Deidentified:
        """The whole file; `stated` is the file meta information as it was."""
        identity = Identity.of(self.data, elements)
        self.identity, self.values = identity, Values(self.key, identity)
        added = _added(self.profile, tuple(pixels), self.syntax)
        parts = self.dataset(elements, self.syntax, added)
        top = {e.tag: self.data[e.value : e.stop].rstrip(b" \0") for e in elements if e.tag in (_CLASS, _INSTANCE)}
        sop_class = top.get(_CLASS) or stated.get(_META_CLASS)
        instance = top.get(_INSTANCE) or stated.get(_META_INSTANCE)
        meta = {_META_CLASS: sop_class} if sop_class else {}
        if instance:
            meta[_META_INSTANCE] = instance if self.plan[_INSTANCE] == "K" else self.values.uids(instance)
        return Deidentified(
            [_preface(meta, syntax_uid), *parts], self.actions, self.values.uid_map, self.values.patient_map
        )

    def dataset(
        self, elements: list[Element], syntax: Syntax, added: dict[int, bytes] | None = None
    ) -> list[bytes | memoryview]:
        """The elements that may stay, in parts: views of the input where nothing changes."""
        parts: list[bytes | memoryview] = []
        plan, data, view, tokens = self.plan, self.data, self.view, self.identity.tokens
        begin = end = 0
        waiting = sorted(added.items(), reverse=True) if added else []
        private = private_kept(data, elements) if plan.private == "P" else frozenset()
        for e in elements:
            tag = e.tag
            while waiting and waiting[-1][0] <= tag:
                if end > begin:
                    parts.append(view[begin:end])
                begin = end
                parts.append(waiting.pop()[1])
            if added and tag in added:
                continue
            action = plan[tag]
            if action == "P":
                action = "K" if tag in private else "X"
                stays = action == "K"
            else:
                stays = action == "K" and keepable(data, e, tokens)
            if stays and tag != PIXELS:
                if end != e.start:
                    if end > begin:
                        parts.append(view[begin:end])
                    begin = e.start
                end = e.after
                continue
            if end > begin:
                parts.append(view[begin:end])
            begin = end
            if stays:
                parts += self.pixels(e, syntax)
                continue
            action = "X" if action == "K" else action
            self.actions[tag, action] += 1
            if action == "S":
                parts.append(self.sequence(e, syntax))
            elif action != "X":
                value = self.values.changed(action, e, data)
                if value is not None:
                    parts.append(syntax.encode(tag, e.vr, value))
        if end > begin:
            parts.append(view[begin:end])
        parts += [part for _, part in reversed(waiting)]
        return parts

    def sequence(self, e: Element, syntax: Syntax) -> bytes:
        """A sequence with its items cleaned; empty where what should be one cannot be read as such."""
        if e.items is None or e.nested is None:
            return syntax.encode(e.tag, e.vr, b"")
        nested = e.nested
        items = b"".join(nested.item(b"".join(self.dataset(item, nested))) for item in e.items)
        return syntax.encode(e.tag, e.vr, items)

    def pixels(self, e: Element, syntax: Syntax) -> list[bytes | memoryview]:
        """The pixels as they are; of compressed frames that hold comments, a copy with those blanked."""
        if e.stop == e.after:
            return [self.view[e.start : e.after]]
        parts: list[bytes | memoryview] = []
        at = e.start
        for start, end in fragments(self.data, e, syntax):
            for a, b in blanks(self.view[start:end]):
                parts += [self.view[at : start + a], bytes(b - a)]
                at = start + b
                self.actions[PIXELS, "C"] += 1
        return [*parts, self.view[at : e.after]]


def _blanked(items: bytes) -> bytes:
    """Encapsulated pixels as pydicom holds them, without comments; the same object where there are none."""
    parts: list[bytes | memoryview] = []
    at, view = 0, memoryview(items)
    for start, end in fragments(items, Element(PIXELS, "OB", 0, 0, len(items), len(items)), EXPLICIT):
        for a, b in blanks(view[start:end]):
            parts += [view[at : start + a], bytes(b - a)]
            at = start + b
    return b"".join([*parts, view[at:]]) if parts else items


@lru_cache(maxsize=64)
def _added(profile: Profile, pixels: tuple[str, ...], syntax: Syntax) -> dict[int, bytes]:
    """The elements that say what was done, encoded (PS3.15 E.1.1 step 6; CID 7050)."""
    codes = profile.method_codes(*pixels)
    encode = syntax.encode
    items = b"".join(
        syntax.item(
            encode(0x00080100, "SH", code.encode()) + encode(0x00080102, "SH", b"DCM")
            + encode(0x00080104, "LO", meaning.encode())
        )
        for code, meaning in codes
    )
    method = "\\".join(["medloom, PS3.15 Annex E (2026c)", *(name for name in sorted(profile.options))])
    added = {
        0x00120062: encode(0x00120062, "CS", b"YES"), 0x00120063: encode(0x00120063, "LO", method.encode()),
        0x00120064: encode(0x00120064, "SQ", items),
        0x00280303: encode(0x00280303, "CS", profile.temporal.encode()),
    }
    if "clean_pixels" in pixels:
        added[0x00280301] = encode(0x00280301, "CS", b"NO")
    if "shows_face" in pixels:
        added[0x00280302] = encode(0x00280302, "CS", b"YES")
    return added
