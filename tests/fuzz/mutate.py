"""One change to a file: where its format can be seen, to a field of it, with checksums put right; else to its bytes.

The invariant: the same file and the same state of `rng` give the same change.

>>> changed(b"II*\\0...", random.Random(1), most=65536)
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Callable
from random import Random

Change = Callable[[bytes, Random], bytes]

EDGES = (0, 1, 2, 3, 4, 7, 8, 16, 32, 64, 127, 128, 255, 256, 512, 1024, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31,
         2**32 - 2, 2**32 - 1)
WORDS = (
    b"", b" ", b"0", b"-1", b"1", b"1e300", b"-1e300", b"1e-300", b"nan", b"inf", b"99999999999", b"0.0", b"1\\2\\3",
    b"1\\0\\0\\0\\1\\0", b"\\", b"\\\\", b"\xff\xfe", b"\x1b$B", b"\0\0", b"CT", b"MR", b"US", b"SEG", b"RTSTRUCT",
    b"MONOCHROME1", b"RGB", b"YBR_FULL_422", b"PALETTE COLOR", b"ISO_IR 192", b"ISO 2022 IR 87", b"ORIGINAL\\MOSAIC",
    b"DERIVED\\LOCALIZER", b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.5", b"\xed\xa0\x80",
    b"A" * 300,
)
SNIPPETS = (
    b"<fig>", b"</fig>", b"<fig id='f1'><graphic/></fig>", b"<sup>", b"</sup>", b"<!--c-->", b"<?pi x?>", b"&beta;",
    b"&x;",
    b"&#0;", b"&#xD800;", b"&#xFFFE;", b"<![CDATA[x]]>", b"<a:b/>", b" xmlns='u'", b" id=''", b" rid='f1'",
    b"<!DOCTYPE article [<!ENTITY x 'y'>]>", b"\xff", b"\xc2", b"<xref rid='f1'>1-3</xref>", b"<label/>",
    b"<tex-math/>",
    b"<graphic xlink:href=''/>", b"<alternatives>", b"</alternatives>", b"<sub-article>", b"</sub-article>", b"<bio>",
    b"</bio>",
    b"<year>\xd9\xa2\xd9\xa0\xd9\xa2\xd9\xa0</year>", b"<month>\xc2\xb2</month>", b"<article>", b"</article>",
)
SHARE_OF_BYTES = 0.25
"""How often the bytes are changed though the format is known."""
SHARE_MENDED = 0.6
"""How often XML is well-formed again after a change."""
MOST_INFLATED = 1 << 20


def changed(data: bytes, rng: Random, most: int) -> bytes:
    """The file after one to four changes, cut to `most` bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        data = _once(data, rng)
    return data[:most]


def _once(data: bytes, rng: Random) -> bytes:
    known = next((change for fits, change in _FORMATS if fits(data)), None)
    return known(data, rng) if known and rng.random() > SHARE_OF_BYTES else _bytes(data, rng)


def _at(data: bytes, rng: Random) -> int:
    return rng.randrange(len(data) + 1)


def _put(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at + len(piece) :]


def _number(rng: Random, width: int, order: str | None = None) -> bytes:
    value = rng.choice(EDGES) if rng.random() < 0.8 else rng.getrandbits(32)
    return (value & (1 << 8 * width) - 1).to_bytes(width, order or rng.choice(("little", "big")))  # type: ignore[arg-type]


def _bytes(data: bytes, rng: Random) -> bytes:
    if not data:
        return rng.randbytes(8)
    a, b = sorted((_at(data, rng), _at(data, rng)))
    b = min(b, a + rng.choice((1, 4, 64, 1 << 20)))
    match rng.randrange(8):
        case 0:
            return _put(data, min(a, len(data) - 1), rng.randbytes(1))
        case 1:
            return _put(data, a, _number(rng, rng.choice((1, 2, 4, 8))))
        case 2:
            return data[:a]
        case 3:
            return data[:a] + data[b:]
        case 4:
            return data[:b] + data[a:b] + data[b:]
        case 5:
            return data[:a] + rng.randbytes(rng.choice((1, 2, 16))) + data[a:]
        case 6:
            return _put(data, _at(data, rng), data[a:b])
        case _:
            return data[:a] + bytes([rng.choice((0, 255))]) * (b - a) + data[b:]


def _gzip(data: bytes, rng: Random) -> bytes:
    try:
        inner = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, MOST_INFLATED)
    except zlib.error:
        return _bytes(data, rng)
    return gzip.compress(_once(inner, rng), 1, mtime=0)


_LONG = (b"OB", b"OW", b"OF", b"OD", b"OL", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OV", b"SV", b"UV")


def _dicom(data: bytes, rng: Random) -> bytes:
    """An element (explicit VR, little endian) with another value, tag or VR, twice, or gone."""
    found = [m.start() for m in re.finditer(rb"(?s)[\x00-\x7f].[\x00-\x7f].(?=[A-Z]{2})", data) if m.start() > 127]
    if not found:
        return _bytes(data, rng)
    at = rng.choice(found)
    vr, long = data[at + 4 : at + 6], data[at + 4 : at + 6] in _LONG
    head = 12 if long else 8
    (length,) = struct.unpack_from("<I" if long else "<H", data.ljust(at + 12, b"\0"), at + (8 if long else 6))
    end = min(at + head + (0 if length == 0xFFFFFFFF else length), len(data))
    numeric = vr in (b"US", b"SS", b"UL", b"SL", b"FD", b"FL", b"AT")
    match rng.randrange(10):
        case 0:
            return data[:at] + data[end:]
        case 1:
            return data[:end] + data[at:end] + data[end:]
        case 2:
            other = rng.choice(found)
            return _put(data, at, data[other : other + 4])
        case 3:
            return _put(data, at + 4, rng.choice((b"SQ", b"UN", b"DS", b"US", b"OW", b"LO", b"FD", b"AT", b"XX")))
        case 4:
            return _put(data, at + (8 if long else 6), _number(rng, 4 if long else 2, "little"))
        case 5 if not long:
            value = data[at + 8 : end].strip() + b"\\" + rng.choice(WORDS)
        case _:
            width = {b"US": 2, b"SS": 2}.get(vr, rng.choice((4, 8)))
            value = _number(rng, width, "little") if numeric else rng.choice(WORDS)
    value += b" " * (len(value) % 2)
    stated = struct.pack("<I", len(value)) if long else struct.pack("<H", len(value) & 0xFFFF)
    return data[: at + head - len(stated)] + stated + value + data[end:]


def _nifti(data: bytes, rng: Random) -> bytes:
    """A field of the header: dim, datatype, bitpix, pixdim, vox_offset, slope, units, codes, quaternion, sform."""
    second = data[4:7] == b"n+2"
    shorts = (12, 14) if second else (*range(40, 56, 2), 70, 72, 252, 254, 123)
    floats = (104, 112, 120, 176, 184, 352, 400, 472) if second else (*range(76, 120, 4), *range(256, 328, 4))
    if rng.random() < 0.5:
        longs = tuple(range(16, 80, 8)) if second else ()
        at = rng.choice((*shorts, *longs))
        whole = rng.choice((*range(-1, 9), 16, 64, 128, 256, 512, 768, 1024, 1280, 1536, 2304, 32767, -32768))
        return _put(data, at, struct.pack("<q" if at in longs else "<h", whole))
    number = rng.choice((0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 352.0, 353.0, 1e6, 0.5, 3e38))
    return _put(data, rng.choice(floats), struct.pack("<d" if second else "<f", number))


def _png(data: bytes, rng: Random) -> bytes:
    """A chunk changed, its checksum put right."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return _bytes(data, rng)
    n = rng.randrange(len(chunks))
    kind, body = chunks[n]
    if rng.random() < 0.2:
        kind = rng.choice((b"acTL", b"fcTL", b"fdAT", b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"sBIT", b"IHDR"))
    if kind == b"IDAT" and rng.random() < 0.6:
        try:
            body = zlib.compress(_bytes(zlib.decompressobj().decompress(body, MOST_INFLATED), rng), 1)
        except zlib.error:
            body = _bytes(body, rng)
    else:
        body = _bytes(body, rng)
    chunks[n] = kind, body
    made = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return data[:8] + b"".join(made)


def _tiff(data: bytes, rng: Random) -> bytes:
    """An entry of the first directory."""
    order, sign = ("little", "<") if data[:2] == b"II" else ("big", ">")
    start = struct.unpack_from(f"{sign}I", data.ljust(8, b"\0"), 4)[0]
    count = struct.unpack_from(f"{sign}H", data, start)[0] if start + 2 <= len(data) else 0
    if not count:
        return _bytes(data, rng)
    entry = start + 2 + 12 * rng.randrange(count)
    part, width = rng.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 2)))
    if part == 0:
        tag = rng.choice((*range(254, 285), 317, 320, *range(322, 326), 338, 339, 347, 34675))
        return _put(data, entry, tag.to_bytes(2, order))
    return _put(data, entry + part, _number(rng, width, order))


def _zip(data: bytes, rng: Random) -> bytes:
    """A field of a local or central header, or of the end."""
    found = [m.start() for m in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06|\x06\x06)", data)]
    at = rng.choice(found or [0]) + 4 + 2 * rng.randrange(22)
    return _put(data, at, _number(rng, rng.choice((2, 4)), "little"))


def _tar(data: bytes, rng: Random) -> bytes:
    """A field of a header, its checksum put right."""
    found = [m.start() - 257 for m in re.finditer(b"ustar", data) if m.start() >= 257]
    if not found:
        return _bytes(data, rng)
    at = rng.choice(found)
    block = bytearray(data[at : at + 512].ljust(512, b"\0"))
    start, width = rng.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)))
    new = rng.choice((
        rng.choice(WORDS), b"%o" % rng.choice(EDGES), b"../x", b"/x", b"7777777777", b"\x80" + bytes(10), b"\xff" * 12,
        bytes([rng.choice(b"0123456789xgLKSVDNMA\0")]),
    ))[:width]
    block[start : start + width] = new.ljust(width, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return _put(data, at, bytes(block))


def _xml(data: bytes, rng: Random) -> bytes:
    """Tags and the text between them deleted, doubled, moved, renamed, nested deep, or snippets put in."""
    changed = _tags(data, rng)
    return _mended(changed) if rng.random() < SHARE_MENDED else changed


def _mended(xml: bytes) -> bytes:
    from lxml import etree

    try:
        root = etree.fromstring(xml, etree.XMLParser(recover=True, resolve_entities=False, load_dtd=False))
    except etree.XMLSyntaxError:
        return xml
    return xml if root is None else etree.tostring(root.getroottree(), encoding="utf-8")


def _tags(data: bytes, rng: Random) -> bytes:
    parts = re.findall(rb"<[^>]*>|[^<]+", data)
    if len(parts) < 2:
        return _bytes(data, rng)
    a, b = sorted((rng.randrange(len(parts)), rng.randrange(len(parts))))
    match rng.randrange(8):
        case 0:
            del parts[a]
        case 1:
            parts[b:b] = parts[a : min(b, a + 40)]
        case 2:
            parts[a], parts[b] = parts[b], parts[a]
        case 3:
            parts[a] = re.sub(rb"^<(/?)[\w:-]+", lambda m: b"<" + m[1] + _name(parts[b]), parts[a])
        case 4:
            parts.insert(a, rng.choice(SNIPPETS))
        case 5:
            name, deep = _name(rng.choice(parts)), rng.choice((1, 1, 1, 5, 200, 255))
            parts[a:b] = [b"<" + name + b">"] * deep + parts[a:b] + [b"</" + name + b">"] * deep
        case 6:
            old, new = _name(parts[a]), _name(parts[b])
            parts = [re.sub(rb"^<(/?)" + re.escape(old), rb"<\1" + new, part) for part in parts]
        case _:
            new = rng.choice((b"", b"f1", b"f1 f2", b"1-9", b"%ff", b"x" * 99))
            parts[a] = re.sub(rb"(=['\"])[^'\"]*", lambda m: m[1] + new, parts[a])
    return b"".join(parts)


def _name(part: bytes) -> bytes:
    found = re.match(rb"</?([\w:-]+)", part)
    return found[1] if found else b"p"


_FORMATS: tuple[tuple[Callable[[bytes], bool], Change], ...] = (
    (lambda data: data[:2] == b"\x1f\x8b", _gzip),
    (lambda data: data[128:132] == b"DICM", _dicom),
    (lambda data: data[344:348] == b"n+1\0" or data[4:8] == b"n+2\0", _nifti),
    (lambda data: data[:8] == b"\x89PNG\r\n\x1a\n", _png),
    (lambda data: data[:4] in (b"II*\0", b"MM\0*"), _tiff),
    (lambda data: data[:2] == b"PK", _zip),
    (lambda data: data[257:262] == b"ustar", _tar),
    (lambda data: data.lstrip()[:1] == b"<", _xml),
)
