"""Image files from anywhere: opened safely, freed of metadata, encoded, hashed.

The invariant: `pixels` are what `encoded`, the bytes that may be stored, shows to every later reader, because metadata
is taken out first and what is left is what gets decoded. A file is judged by its content, never by its name; its size
is checked before any pixel is decoded; a file that is cut short or damaged is an error and never padded.

How pixels become 8-bit grey (h, w) or RGB (h, w, 3), upright:

- EXIF orientation is applied once (`orientation` says which it was, `upright_box` turns boxes with it).
- Transparent images are laid on white, the colour of the page that a figure with a transparent ground is made for.
- 16-bit grey is mapped linearly from `window`: 0 to the largest value that the file declares (TIFF MaxSampleValue),
  else 0 to the end of the smallest detector depth (8, 10, 12, 14 or 16 bits) that holds the largest value, because 12
  bits in a 16-bit file are the norm and would be black. 16-bit RGB keeps its high bytes.
- CMYK and YCCK become RGB by Pillow's plain formula; ICC profiles are kept in `encoded` but not applied.
- Of several frames or pages the first is taken; `frames` counts them.

>>> opened = open_image(path.read_bytes())
>>> opened.pixels.shape, opened.format, opened.frames
((480, 640, 3), 'JPEG', 1)
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from infra.errors import Terminal
from infra.keys import sha256
from transforms.decoded import Pixels
from transforms.pictures.imagestrip import PNG_SIGNATURE, STRIPPERS, Stripped, strip, webp_is_lossy
from transforms.regions import scaled_size

MAX_PIXELS = 64_000_000
"""Pixels that one image may have: 192 MB as RGB."""
PNG_LEVEL = 3
"""Measured with Pillow 13 (zlib-ng) on radiographs, smears and figures, MP/s and bytes a pixel: level 1: 25, 0.61;
3: 17, 0.56; 4: 15, 0.58; 6: 5, 0.54. Level 6 costs three times the time for 4 % less."""

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"), (PNG_SIGNATURE, "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"), (b"BM", "BMP"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"), (b"\xff\x4f\xff\x51", "JPEG2000"),
    *((b"P%d%c" % (kind, blank), "PPM") for kind in range(1, 7) for blank in b"\n\r\t #"),
)
_UNSUPPORTED_MAGIC = (
    (b"8BPS", "Photoshop"), (b"\0\0\1\0", "ICO"), (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"II\xbc\1", "JPEG XR"), (b"%!PS", "PostScript"), (b"\xd7\xcd\xc6\x9a", "WMF"), (b"SIMPLE  =", "FITS"),
    (b"\x76\x2f\x31\x01", "OpenEXR"), (b"\xff\xd8", "JPEG without a marker"),
)
_LOSSY: Mapping[str, bool | None] = {"JPEG": True, "JPEG2000": None}
_LOSSY_TIFF = frozenset((6, 7, 34892, 50001))
"""TIFF compressions: old and new JPEG, lossy JPEG (DNG), WebP"""
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, AttributeError,
    NotImplementedError, struct.error, zlib.error,
)
"""What Pillow is known to raise on damaged files; it has no exception of its own for them."""
_DEPTHS = (255, 1023, 4095, 16383, 65535)
_ORIENTATION, _COMPRESSION, _PHOTOMETRIC, _MAX_SAMPLE = 274, 259, 262, 281
_TRANSPOSE: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Opened:
    """A decoded image file."""

    pixels: Pixels
    """(height, width) or (height, width, 3), uint8, upright"""
    format: str
    """JPEG, PNG, GIF, WEBP, TIFF, BMP, JPEG2000 or PPM"""
    encoded: bytes | None
    """The original without metadata, where it is a web format that shows exactly `pixels` wherever it is opened: one
    frame, upright, 8 bit, grey or RGB or palette, opaque. None: store `encode_png(pixels)`."""
    lossy: bool | None
    """Whether the file's own codec lost something; None: cannot be told (JPEG 2000)."""
    frames: int = 1
    orientation: int = 1
    """EXIF orientation that was applied, 1 to 8"""
    window: tuple[float, float] | None = None
    """raw values mapped to 0 and 255, for images of more than 8 bits of grey"""

    @property
    def raw_size(self) -> tuple[int, int]:
        """(height, width) before the orientation was applied."""
        height, width = self.pixels.shape[:2]
        return (width, height) if self.orientation >= 5 else (height, width)


def open_image(data: bytes) -> Opened:
    """Decode an image file of unknown origin.

    Raises Terminal: NOT_IMAGE (SVG, HTML, PDF, anything else), IMAGE_UNSUPPORTED (an image that is not decoded here),
    IMAGE_BOMB (over MAX_PIXELS), IMAGE_TRUNCATED, IMAGE_CORRUPT.
    """
    loaded = load_picture(data)
    pixels, window = _to_8_bit(loaded)
    stored = loaded.stripped.data if loaded.web else None
    turned = np.asarray(turned_upright(Image.fromarray(pixels), loaded))
    return Opened(turned, loaded.format, stored, loaded.lossy, loaded.frames, loaded.orientation, window)


def open_mask(data: bytes) -> Opened:
    """Decode a mask: `pixels` are 255 where the file is neither zero (black) nor transparent, 0 elsewhere, upright.

    A mask in a lossy format has ringing around its edges: there, only values above half count. Raises as `open_image`.
    """
    loaded = load_picture(data)
    image, threshold = loaded.image, 127 if loaded.lossy is not False else 0
    visible: Any = True
    if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        visible = np.asarray(image.getchannel("A")) > 0
        image = image.convert("RGB")
    values = np.asarray(image)
    inside = (values > threshold).any(axis=2) if values.ndim == 3 else values > threshold
    mask = Image.fromarray(np.where(inside & visible, 255, 0).astype(np.uint8))
    turned = np.asarray(turned_upright(mask, loaded))
    return Opened(turned, loaded.format, None, loaded.lossy, loaded.frames, loaded.orientation)


@dataclass(frozen=True)
class _Loaded:
    """A decoded file before anything is made of its pixels."""

    image: Image.Image
    format: str
    stripped: Stripped
    lossy: bool | None
    frames: int
    orientation: int
    tags: Mapping[int, Any]
    """of the first TIFF directory"""

    @property
    def web(self) -> bool:
        """Whether the stripped file shows the same pixels to every reader, also to one that ignores transparency."""
        if self.format not in STRIPPERS or self.frames != 1 or self.orientation != 1:
            return False
        deep = self.format == "PNG" and self.stripped.data[24] > 8  # bit depth in IHDR; Pillow says RGB for 16 bit too
        return not deep and self.image.mode in ("L", "RGB", "P", "RGBA") and _opaque(self.image)


def sniff(data: bytes) -> str:
    """The format of an image file, from its first bytes. Raises Terminal NOT_IMAGE or IMAGE_UNSUPPORTED."""
    head = data[:32]
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    other = next((name for magic, name in _UNSUPPORTED_MAGIC if head.startswith(magic)), None)
    if other is None and brand in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"):
        other = "AVIF or HEIC"
    if other:
        raise Terminal("IMAGE_UNSUPPORTED", f"{other} is not decoded here; convert it to PNG or TIFF")
    raise Terminal("NOT_IMAGE", f"the content is no image ({_guess(data)}); leave the file out of the source")


def _guess(data: bytes) -> str:
    text = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "it is empty"
    if data.startswith(b"%PDF"):
        return "PDF"
    if b"<svg" in text:
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html")):
        return "HTML, perhaps an error page saved in its place"
    return "XML" if text.startswith(b"<?xml") else f"it begins with {data[:8].hex(' ')}"


def load_picture(data: bytes) -> _Loaded:
    format = sniff(data)
    stripped = strip(format, data) if format in STRIPPERS else Stripped(data)
    # what Pillow warns of are odd tags that go anyway, and sizes that are checked here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _decode(format, stripped)
        except Image.DecompressionBombError as error:
            raise Terminal("IMAGE_BOMB", f"{error}; shrink the image or leave it out") from error
        except UnidentifiedImageError as error:
            raise Terminal("IMAGE_CORRUPT", f"the header of the {format} file is damaged; fetch it again") from error
        except _BROKEN as error:
            raise Terminal("IMAGE_CORRUPT", f"{format}: {error}; fetch the file again") from error


def _decode(format: str, stripped: Stripped) -> _Loaded:
    image = Image.open(io.BytesIO(stripped.data), formats=[format])
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Terminal(
            "IMAGE_BOMB", f"{width} x {height} pixels, more than {MAX_PIXELS}; shrink the image or leave it out"
        )
    tags: Mapping[int, Any] = dict(getattr(image, "tag_v2", {}))
    if format == "TIFF":
        _check_tiff_is_whole(tags, len(stripped.data))
    frames = getattr(image, "n_frames", 1) if format == "TIFF" else stripped.frames
    orientation = _orientation(tags.get(_ORIENTATION, 1) if format == "TIFF" else _exif_orientation(stripped.exif))
    lossy = _LOSSY.get(format, False)
    if format == "WEBP":
        lossy = webp_is_lossy(stripped.data)
    elif format == "TIFF":
        lossy = tags.get(_COMPRESSION) in _LOSSY_TIFF
    image.seek(0)
    image.load()
    return _Loaded(image, format, stripped, lossy, frames, orientation, tags)


def _check_tiff_is_whole(tags: Mapping[int, Any], size: int) -> None:
    """A strip or tile beyond the end of the file means that it is cut short."""
    for offsets, counts in ((273, 279), (324, 325)):
        ends = [a + b for a, b in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)]
        if ends and max(ends) > size:
            raise Terminal("IMAGE_TRUNCATED", f"TIFF: {size} of {max(ends)} bytes are there; fetch the file again")


def _exif_orientation(exif: bytes | None) -> Any:
    if exif is None:
        return 1
    found = Image.Exif()
    try:
        found.load(exif)
        return found.get(_ORIENTATION, 1)
    except _BROKEN:  # a damaged EXIF block says nothing about the picture, which is whole
        return 1


def _orientation(stated: Any) -> int:
    return stated if isinstance(stated, int) and 1 <= stated <= 8 else 1


def turned_upright(image: Image.Image, loaded: _Loaded) -> Image.Image:
    # Pillow turns TIFF upright while it loads, and no other format
    if loaded.format == "TIFF" or loaded.orientation == 1:
        return image
    return image.transpose(_TRANSPOSE[loaded.orientation])


def _to_8_bit(loaded: _Loaded) -> tuple[Pixels, tuple[float, float] | None]:
    image = loaded.image
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return np.asarray(image), None
    if image.mode == "1":
        return np.asarray(image.convert("L")), None
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bit(loaded)
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        return _on_white(image), None
    if image.mode in ("CMYK", "YCbCr", "RGBX", "HSV"):
        return np.asarray(image.convert("RGB")), None
    raise Terminal("IMAGE_UNSUPPORTED", f"pixels of mode {image.mode} have no stated black and white; store 16 bit")


def _from_16_bit(loaded: _Loaded) -> tuple[Pixels, tuple[float, float]]:
    values = np.asarray(loaded.image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _DEPTHS[-1]:
        raise Terminal("IMAGE_UNSUPPORTED", f"grey values {low} to {high} are outside of 16 bits; store 8 or 16 bit")
    declared = loaded.tags.get(_MAX_SAMPLE)
    if isinstance(declared, tuple) and declared:
        declared = declared[0]
    top = min(depth for depth in _DEPTHS if depth >= high)
    if isinstance(declared, int) and max(high, 1) <= declared <= _DEPTHS[-1]:
        top = declared
    grey = ((values * 255 * 2 + top) // (2 * top)).astype(np.uint8)
    if loaded.format == "TIFF" and loaded.tags.get(_PHOTOMETRIC) == 0:  # WhiteIsZero: Pillow inverts 8 bit only
        return 255 - grey, (float(top), 0.0)
    return grey, (0.0, float(top))


def _on_white(image: Image.Image) -> Pixels:
    grey = image.mode in ("LA", "La", "L")
    over = image.convert("RGBA")
    white = Image.new("RGBA", over.size, "white")
    flat = Image.alpha_composite(white, over).convert("RGB")
    return np.asarray(flat.getchannel("R") if grey else flat)


def _opaque(image: Image.Image) -> bool:
    if "transparency" in image.info:
        return False
    return image.mode != "RGBA" or image.getchannel("A").getextrema() == (255, 255)


def upright_box(
    box: tuple[float, float, float, float], orientation: int, raw_size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A half-open box (x0, y0, x1, y1) of the raw image of `raw_size` (height, width), in the upright image."""
    (height, width), (x0, y0, x1, y1) = raw_size, box
    if orientation in (2, 3, 7, 8):
        x0, x1 = width - x1, width - x0
    if orientation in (3, 4, 6, 7):
        y0, y1 = height - y1, height - y0
    return (y0, x0, y1, x1) if orientation >= 5 else (x0, y0, x1, y1)


def encode_png(pixels: Pixels) -> bytes:
    """Pixels as a lossless PNG without any metadata; the same pixels give the same bytes."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()


def pixel_sha256(pixels: Pixels) -> str:
    """SHA-256 of "{height}x{width}x{channels}", a line feed, and the pixels row by row."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    return sha256(f"{height}x{width}x{channels}\n".encode() + np.ascontiguousarray(pixels).tobytes())


def shrink(pixels: Pixels, max_side: int | None) -> tuple[Pixels, float]:
    """The image with its longer side at most `max_side`, each pixel the mean of the area it covers, and new/old size.

    Images that are small enough, and all if `max_side` is None, come back as they are with a scale of 1.
    """
    height, width = pixels.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return pixels, 1.0
    scale = max_side / max(height, width)
    new_height, new_width = scaled_size((height, width), scale)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((new_width, new_height), Image.Resampling.BOX)), scale


def phash(pixels: Pixels) -> str:
    """64-bit DCT perceptual hash, 16 hex digits (Zauner 2010, "Implementation and benchmarking of perceptual image hash
    functions"): grey, area-resized to 32 x 32; a bit is set where one of the 8 x 8 lowest coefficients, row by row,
    exceeds their median. In integers, so every machine computes the same.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("L")
    small = np.asarray(image.resize((32, 32), Image.Resampling.BOX)).astype(np.int64)
    basis = _dct_basis()
    low = basis @ small @ basis.T
    bits = low > np.median(low)
    return np.packbits(bits).tobytes().hex()


@cache
def _dct_basis() -> npt.NDArray[np.int64]:
    """The first 8 rows of the 32-point DCT-II, scaled to integers; rows but the first sum to exactly 0."""
    frequency, at = np.arange(8)[:, None], np.arange(32)[None, :]
    basis: npt.NDArray[np.int64] = np.rint(np.cos(np.pi * frequency * (2 * at + 1) / 64) * 2**14).astype(np.int64)
    return basis
