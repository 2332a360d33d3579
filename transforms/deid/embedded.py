"""Text that hides beside the pixels: in the colour profile, and in the comments of compressed frames.

The invariant: lengths do not change and no decoder sees another picture; only descriptive bytes become blanks.

>>> blanks(b"\\xff\\xd8\\xff\\xfe\\x00\\x06John\\xff\\xda...")
[(6, 10)]

Sources: ICC.1:2010 section 10 (text types), ITU-T T.81 annex B (JPEG markers), T.800 annex A (JPEG 2000 markers).
"""

from __future__ import annotations

from struct import error as StructError
from struct import unpack_from

_ICC_TEXT = {b"text": 8, b"desc": 8, b"mluc": 16, b"dict": 8, b"ZXML": 8}
"""Type of a tag of a colour profile -> where its text begins."""
_COMMENT = frozenset({0xFE, 0xE1, *range(0xE3, 0xE8), *range(0xE9, 0xEE), 0xEF})
"""JPEG markers that hold text or Exif: COM and APPn but JFIF (0), ICC profile (2), SPIFF (8) and Adobe (14)."""
_LONELY = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""


def clean_profile(profile: bytes) -> bytes:
    """A colour profile without its descriptions; b"" where it cannot be read."""
    try:
        size, count = unpack_from(">L", profile)[0], unpack_from(">L", profile, 128)[0]
        tags = [unpack_from(">LL", profile, 136 + 12 * n) for n in range(min(count, 200))]
        if size > len(profile) or count > 200 or any(at + length > size for at, length in tags):
            return b""
        cleaned = bytearray(profile[:size])
        cleaned[84:100] = bytes(16)  # profile ID: a digest of what is about to change
        for at, length in tags:
            _blank(cleaned, at, length)
    except StructError:
        return b""
    return bytes(cleaned)


def _blank(profile: bytearray, at: int, length: int) -> None:
    kind = bytes(profile[at : at + 4])
    if kind not in _ICC_TEXT:
        return
    begin = at + _ICC_TEXT[kind]
    if kind == b"mluc":
        begin += 12 * unpack_from(">L", profile, at + 8)[0]
    if kind == b"desc":  # an ASCII count, the text and its NUL, then Unicode and script parts: left without text
        profile[begin : at + length] = (b"\0\0\0\1" + bytes(length))[: length - 8]
    elif begin < at + length:
        profile[begin : at + length] = bytes(at + length - begin)


def blanks(stream: bytes | memoryview) -> list[tuple[int, int]]:
    """(start, end) of the bytes of a JPEG, JPEG-LS or JPEG 2000 codestream that hold comments or Exif."""
    if stream[:2] == b"\xff\xd8":
        return _segments(stream, 2, _COMMENT, frozenset({0xDA, 0xD9}))
    if stream[:2] == b"\xff\x4f":
        return [(start + 2, end) for start, end in _segments(stream, 2, frozenset({0x64}), frozenset({0x90, 0xD9}))]
    return []


def _segments(
    stream: bytes | memoryview, at: int, wanted: frozenset[int], last: frozenset[int]
) -> list[tuple[int, int]]:
    found = []
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker in last:
            break
        if marker == 0xFF or marker in _LONELY:
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker in wanted:
            found.append((at + 4, min(end, len(stream))))
        at = max(end, at + 2)
    return found
