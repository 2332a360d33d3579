"""The elements of a DICOM dataset as places in its bytes, to any depth, without converting a single value.

The invariant: the elements of a dataset lie one after the other and cover its bytes, so that what is kept can be copied
as it stands. Whatever does not add up raises `Odd`, and nothing is guessed.

>>> [f"{e.tag:08X} {e.vr}" for e in read(data, 344, len(data), EXPLICIT)][:2]
['00080005 CS', '00080008 CS']

Source: DICOM PS3.5, chapter 7 and annex A.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from transforms.deid.profile import vrs_of

DEPTH = 24
"""Sequences within sequences that are followed; more is no picture but an attack."""
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SHORT = "AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US"
_LONG = "OB OD OF OL OV OW SQ SV UC UN UR UT UV"
_VRS = {vr.encode(): vr for vr in f"{_SHORT} {_LONG}".split()}
_LONG_BYTES = frozenset(_LONG.encode().split())


class Odd(ValueError):
    """These bytes are not what the standard says they should be."""


class Short(Odd):
    """The bytes end before the last element does."""


def _cut(needed: int, data: bytes) -> Odd:
    """What is wrong where an element would end at `needed`: the file, or a length within it."""
    return Short("the file ends too soon") if needed > len(data) else Odd("an element is longer than what holds it")


class Syntax:
    """How elements are encoded."""

    def __init__(self, explicit: bool, little: bool = True) -> None:
        order = "<" if little else ">"
        self.explicit, self.little = explicit, little
        self.long, self.short, self.implicit = (Struct(order + form) for form in ("HH2sHL", "HH2sH", "HHL"))
        self.length = Struct(f"{order}L")

    def encode(self, tag: int, vr: str, value: bytes) -> bytes:
        """One element; the value is padded to even length."""
        if len(value) % 2:
            value += b" " if vr in "AE CS DA DS DT IS LO LT PN SH ST TM UC UR UT AS" else b"\0"
        group, number = tag >> 16, tag & 0xFFFF
        if not self.explicit:
            return self.implicit.pack(group, number, len(value)) + value
        if vr in _LONG:
            return self.long.pack(group, number, vr.encode(), 0, len(value)) + value
        return self.short.pack(group, number, vr.encode(), len(value)) + value

    def item(self, content: bytes) -> bytes:
        """One item of a sequence."""
        return self.implicit.pack(0xFFFE, 0xE000, len(content)) + content


EXPLICIT, IMPLICIT, BIG_ENDIAN = Syntax(True), Syntax(False), Syntax(True, False)
SYNTAXES = {"1.2.840.10008.1.2": IMPLICIT, "1.2.840.10008.1.2.2": BIG_ENDIAN}
"""Transfer syntax -> encoding of the header; all others are explicit and little-endian."""


class Element(NamedTuple):
    """One element and where it lies."""

    tag: int
    vr: str
    """as the file says, or the dictionary where the encoding is implicit; UN where nobody knows"""
    start: int
    value: int
    stop: int
    """end of the value"""
    after: int
    """end of the element with its delimiter"""
    items: list[list[Element]] | None = None
    """of a sequence"""
    nested: Syntax | None = None
    """encoding of those items"""


def read(data: bytes, at: int, end: int, syntax: Syntax, depth: int = 0) -> list[Element]:
    """The elements from `at` to `end`."""
    return _elements(data, at, end, syntax, depth, False)[0]


def _elements(data: bytes, at: int, end: int, syntax: Syntax, depth: int, delimited: bool) -> tuple[list[Element], int]:
    """The elements up to `end` or, of an item without length, up to its delimiter; and where that ended."""
    if depth > DEPTH:
        raise Odd("sequences nested too deep")
    found: list[Element] = []
    explicit, head = syntax.explicit, syntax.short.unpack_from
    whole, longer = syntax.implicit.unpack_from, syntax.length.unpack_from
    while at < end:
        start = at
        if at + 8 > end:
            raise _cut(at + 8, data)
        if explicit:
            group, number, code, length = head(data, at)
            if group == 0xFFFE:
                if number == 0xE00D and delimited:
                    return found, at + 8
                raise Odd("a delimiter where an element should be")
            if code in _LONG_BYTES:
                if at + 12 > end:
                    raise _cut(at + 12, data)
                length = longer(data, at + 8)[0]
                at += 12
            else:
                at += 8
            vr = _VRS.get(code)
            if vr is None:
                raise Odd("no such VR")
            tag = group << 16 | number
        else:
            group, number, length = whole(data, at)
            if group == 0xFFFE:
                if number == 0xE00D and delimited:
                    return found, at + 8
                raise Odd("a delimiter where an element should be")
            at += 8
            tag = group << 16 | number
            vr = (vrs_of(tag) or ("UN",))[0]
        if length == UNDEFINED and tag == 0x7FE00010 and vr != "SQ":
            stop, after = _fragments(data, at, end, syntax)
            found.append(Element(tag, vr, start, at, stop, after))
            at = after
        elif vr == "SQ" or length == UNDEFINED:
            nested = IMPLICIT if vr == "UN" else syntax
            items, stop, after = _items(data, at, end if length == UNDEFINED else at + length, nested, depth,
                                        length == UNDEFINED)
            if after > end:
                raise _cut(after, data)
            found.append(Element(tag, vr, start, at, stop, after, items, nested))
            at = after
        else:
            after = at + length
            if after > end:
                raise _cut(after, data)
            if vr == "UN" and length >= 8 and data[at : at + 4] == b"\xfe\xff\x00\xe0":
                found.append(_unknown(data, tag, start, at, after, depth))
            else:
                found.append(Element(tag, vr, start, at, after, after))
            at = after
    if delimited:
        raise _cut(at + 1, data)
    return found, at


def _unknown(data: bytes, tag: int, start: int, at: int, after: int, depth: int) -> Element:
    """An element of VR UN that may be a sequence (PS3.5 6.2.2: then it is implicit and little-endian)."""
    try:
        items = _items(data, at, after, IMPLICIT, depth, False)[0]
    except Odd:
        return Element(tag, "UN", start, at, after, after)
    return Element(tag, "UN", start, at, after, after, items, IMPLICIT)


def _items(
    data: bytes, at: int, end: int, syntax: Syntax, depth: int, delimited: bool
) -> tuple[list[list[Element]], int, int]:
    items: list[list[Element]] = []
    whole = syntax.implicit.unpack_from
    if end > len(data):
        raise _cut(end, data)
    while at < end:
        if at + 8 > end:
            raise _cut(at + 8, data)
        group, number, length = whole(data, at)
        tag = group << 16 | number
        if tag == SEQUENCE_END:
            return items, at, at + 8
        if tag != ITEM:
            raise Odd("no item where one should be")
        at += 8
        if length == UNDEFINED:
            elements, at = _elements(data, at, end, syntax, depth + 1, True)
        else:
            if at + length > end:
                raise _cut(at + length, data)
            elements, at = _elements(data, at, at + length, syntax, depth + 1, False)
        items.append(elements)
    if delimited:
        raise _cut(at + 1, data)
    return items, at, at


def _fragments(data: bytes, at: int, end: int, syntax: Syntax) -> tuple[int, int]:
    """Where encapsulated pixels end, without and with the delimiter."""
    whole = syntax.implicit.unpack_from
    while at + 8 <= end:
        group, number, length = whole(data, at)
        tag = group << 16 | number
        if tag == SEQUENCE_END:
            return at, at + 8
        if tag != ITEM:
            raise Odd("no fragment where one should be")
        at += 8 + length
    raise _cut(at + 8, data)


def fragments(data: bytes, element: Element, syntax: Syntax) -> list[tuple[int, int]]:
    """(start, end) of each fragment of encapsulated pixels, without the offset table."""
    whole = syntax.implicit.unpack_from
    at, found = element.value, []
    while at < element.stop:
        length = whole(data, at)[2]
        found.append((at + 8, at + 8 + length))
        at += 8 + length
    return found[1:]
