"""Metadata taken out of JPEG, PNG, WebP and GIF files without touching the pixels.

The invariant: what comes back decodes to the same pixels and holds only what decoding and colour need. Everything is
left out unless it is on the list of its format, so EXIF, XMP, IPTC, comments, thumbnails, previews, times, maker notes
and whatever is appended to the file go, known or not; ICC profiles stay.

>>> strip("JPEG", data).data.count(b"Exif")
0
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from infra.errors import Terminal

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_KEPT = frozenset(
    (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"pHYs")
)
WEBP_KEPT = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP", b"ANIM", b"ANMF"))


@dataclass(frozen=True)
class Stripped:
    """A file without its metadata, and what had to be read from it."""

    data: bytes
    frames: int = 1
    """pictures in the file; of an animated PNG only its still picture is left in `data`"""
    exif: bytes | None = None
    """the TIFF structure of the EXIF block"""


def strip(format: str, data: bytes) -> Stripped:
    """The file without metadata; `format` is a key of STRIPPERS.

    Raises Terminal IMAGE_TRUNCATED where the file ends before its own end mark, IMAGE_CORRUPT where its structure makes
    no sense.
    """
    try:
        return STRIPPERS[format](data)
    except (IndexError, struct.error):
        raise truncated(format, len(data)) from None


def truncated(format: str, size: int) -> Terminal:
    """The error for a file that ends before its end mark."""
    return Terminal("IMAGE_TRUNCATED", f"the {format} file ends too early, after {size} bytes; fetch it again")


def _corrupt(format: str, at: int, what: str) -> Terminal:
    return Terminal("IMAGE_CORRUPT", f"{format}: {what} at byte {at}; fetch the file again")


_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
"""A marker other than the restarts and stuffed zeros that belong to entropy-coded data."""
_EOI, _SOS, _APP0, _APP1, _APP2, _APP14, _APP15, _COM = 0xD9, 0xDA, 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE


def _strip_jpeg(data: bytes) -> Stripped:
    """ITU-T T.81 annex B: marker segments up to EOI, entropy-coded data after each SOS; bytes elsewhere are skipped."""
    kept, exif, at, scan = [b"\xff\xd8"], None, 2, False
    while found := _MARKER.search(data, at):
        if scan:
            kept.append(data[at : found.start()])
        marker, start = found[1][0], found.end()
        if marker == _EOI:
            return Stripped(b"".join([*kept, b"\xff\xd9"]), exif=exif)
        at = start + int(struct.unpack_from(">H", data, start)[0])
        if at > len(data):
            break
        payload = data[start + 2 : at]
        if marker == _APP1 and exif is None and payload.startswith(b"Exif\0"):
            exif = payload[6:]
        kept.append(_jpeg_segment(marker, payload))
        scan = marker == _SOS
    raise truncated("JPEG", len(data))


def _jpeg_segment(marker: int, payload: bytes) -> bytes:
    """The segment as it is kept: whole, shortened, or b""."""
    if marker == _APP0:
        if not payload.startswith(b"JFIF\0"):
            return b""
        payload = payload[:12] + b"\0\0"  # the thumbnail goes, its size becomes 0 x 0
    elif marker == _APP2:
        if not payload.startswith(b"ICC_PROFILE\0"):
            return b""
    elif marker == _APP14:
        # it says whether three or four components are YCC: without it colours come out wrong
        if not payload.startswith(b"Adobe"):
            return b""
        payload = payload[:12]
    elif _APP1 <= marker <= _APP15 or marker == _COM:
        return b""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def _strip_png(data: bytes) -> Stripped:
    """PNG (third edition) section 5: length, type, data, CRC; CRCs are checked by whoever decodes."""
    kept, exif, frames, at = [PNG_SIGNATURE], None, 1, len(PNG_SIGNATURE)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise truncated("PNG", len(data))
        if kind == b"eXIf":
            exif = data[at + 8 : end - 4]
        elif kind == b"acTL":
            (frames,) = struct.unpack_from(">I", data, at + 8)
        if kind in PNG_KEPT:
            kept.append(data[at:end])
        if kind == b"IEND":
            return Stripped(b"".join(kept), max(frames, 1), exif)
        at = end


def _strip_webp(data: bytes) -> Stripped:
    """RFC 9649 section 2: RIFF chunks padded to even length; the flags of VP8X must agree with what is left."""
    (size,) = struct.unpack_from("<I", data, 4)
    stop = 8 + size
    if stop > len(data):
        raise truncated("WEBP", len(data))
    kept, exif, frames, at = [], None, 0, 12
    while at < stop:
        kind, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length + length % 2
        if end > stop:
            raise _corrupt("WEBP", at, "a chunk is longer than the file")
        frames += kind == b"ANMF"
        if kind == b"EXIF":
            exif = data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
        elif kind == b"VP8X":
            kept.append(data[at : at + 8] + bytes([data[at + 8] & ~0x0C]) + data[at + 9 : end])
        elif kind in WEBP_KEPT:
            kept.append(data[at:end])
        at = end
    body = b"WEBP" + b"".join(kept)
    return Stripped(b"RIFF" + struct.pack("<I", len(body)) + body, max(frames, 1), exif)


def _strip_gif(data: bytes) -> Stripped:
    """GIF89a sections 17-26: of the extensions only the graphic control (transparency, delay) is kept."""
    at = 13 + _palette_size(data[10])
    kept, frames = [data[:at]], 0
    while True:
        start, block = at, data[at]
        if block == 0x3B:
            return Stripped(b"".join([*kept, b"\x3b"]), frames)
        if block == 0x21:
            at = _after_sub_blocks(data, at + 2)
            if data[start + 1] == 0xF9:
                kept.append(data[start:at])
        elif block == 0x2C:
            at = _after_sub_blocks(data, at + 11 + _palette_size(data[at + 9]))
            kept.append(data[start:at])
            frames += 1
        else:
            raise _corrupt("GIF", at, "no block")


def _palette_size(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_sub_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += data[at] + 1
    return at + 1


STRIPPERS: Mapping[str, Callable[[bytes], Stripped]] = {
    "JPEG": _strip_jpeg, "PNG": _strip_png, "WEBP": _strip_webp, "GIF": _strip_gif,
}
"""Format, as Pillow calls it -> what strips it: the web formats"""


def webp_is_lossy(data: bytes) -> bool:
    """Whether any picture of the WebP file is coded as VP8 rather than VP8L."""
    return b"VP8 " in set(_webp_codecs(data))


def _webp_codecs(data: bytes) -> Iterator[bytes]:
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind
        at += 24 if kind == b"ANMF" else 8 + length + length % 2  # a frame's chunks lie inside ANMF
