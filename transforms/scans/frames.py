"""Pixels of DICOM frames: decompressed, rescaled to modality units, with the window that the file asks for.

The invariant: values are those of the standard's modality stage, whichever codec is installed; a stream that does not
decode whole is refused, never filled up. Codecs can crash and explode, so all of them run in a child (`guarded.py`).

>>> picture = read_picture(slices_of(dataset)[0])
>>> picture.values.dtype
dtype('float32')
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import Terminal
from transforms.scans.deidentify import (
    bad_values,
    is_encapsulated,
    number,
    numbers,
    quietly,
    text,
    uid_name,
    value,
)
from transforms.scans.guarded import Ended, limited
from transforms.scans.series import Slice, functional
from transforms.scans.windows import Window

PLUGINS = ("pylibjpeg", "pyjpegls", "pydicom", "pillow", "gdcm")
"""The first of these that knows a transfer syntax decodes it. There is no second opinion: gdcm fills up cut streams."""
MAGIC = (
    (b"\xff\x4f\xff\x51", "1.2.840.10008.1.2.4.91"), (b"\xff\xc0", "1.2.840.10008.1.2.4.50"),
    (b"\xff\xc1", "1.2.840.10008.1.2.4.51"), (b"\xff\xc3", "1.2.840.10008.1.2.4.57"),
    (b"\xff\xf7", "1.2.840.10008.1.2.4.81"),
)
"""Markers (JPEG 2000's beginning; the frame header of JPEG and JPEG-LS) and the transfer syntax that reads them."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded frame."""

    values: npt.NDArray[Any]
    """(rows, columns) float32 in modality units, or (rows, columns, 3) uint8 RGB"""
    rescaled: bool
    """values were turned into the modality's unit"""
    of: Slice
    raw: npt.NDArray[Any]
    """as stored"""

    @cached_property
    def extent(self) -> Window:
        """What to show where the file names no window."""
        return (0.0, 255.0) if self.values.ndim == 3 else _extent(self.of, self.raw, self.values, self.rescaled)


def read_picture(s: Slice) -> Picture:
    """Decode one frame, to modality units or to RGB. Raises Terminal."""
    from pydicom.pixels.processing import apply_color_lut

    raw = read_stored(s)
    with quietly():
        try:
            if text(s.dataset, "PhotometricInterpretation") == "PALETTE COLOR":
                raw = apply_color_lut(raw, s.dataset)
                return Picture(_eight_bit(raw, 8 * raw.dtype.itemsize), False, s, raw)
            if raw.ndim == 3:
                return Picture(_eight_bit(raw, int(number(s.dataset, "BitsStored") or 8)), False, s, raw)
            values, rescaled = _rescaled(s, raw)
        except _bad_pixels() as error:
            raise Terminal("PIXELS_CORRUPT", f"a lookup table does not fit ({type(error).__name__})") from None
    if not np.isfinite(values).all():
        raise Terminal("PIXELS_CORRUPT", "pixels are infinite or not numbers; check the file")
    return Picture(values, rescaled, s, raw)


def read_stored(s: Slice) -> npt.NDArray[Any]:
    """Stored values of one frame; colour as RGB. Raises Terminal."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    syntax = s.dataset.file_meta.TransferSyntaxUID
    name = uid_name(syntax) or "a private transfer syntax"
    with quietly():
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError:
            raise Terminal("TRANSFER_SYNTAX_UNSUPPORTED", f"no decoder for {name}; transcode the file") from None
        if not decoder.is_available:
            wanted = "; ".join(decoder.missing_dependencies)
            raise Terminal("TRANSFER_SYNTAX_UNSUPPORTED", f"{name} needs one of: {wanted}")
        if syntax == JPEGExtended12Bit and (number(s.dataset, "BitsStored") or 0) > 8:
            raise Terminal("TRANSFER_SYNTAX_UNSUPPORTED", f"{name} with more than 8 bits needs pylibjpeg-libjpeg (GPL)")
        raw = _decompressed(s, decoder) if is_encapsulated(s.dataset) else _native(s, decoder)
    if raw.ndim == 3 and raw.shape[2] != 3:
        raise Terminal("PIXELS_UNSUPPORTED", f"{raw.shape[2]} samples a pixel; only grey, palette and RGB are read")
    return raw


@cache
def _bad_pixels() -> tuple[type[Exception], ...]:
    """What pydicom and its plug-ins raise for a bad codestream or lookup table."""
    return (*bad_values(), RuntimeError, EOFError, OSError, MemoryError)


def _native(s: Slice, decoder: Any) -> npt.NDArray[Any]:
    try:
        raw: npt.NDArray[Any] = decoder.as_array(s.dataset, index=s.frame or 0)[0]
    except _bad_pixels() as error:
        raise _corrupt(s, error) from None  # pydicom quotes the header
    return raw


def _decompressed(s: Slice, decoder: Any) -> npt.NDArray[Any]:
    """One frame, decompressed by a child."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.utils import as_pixel_options

    try:
        options = as_pixel_options(s.dataset, pixel_keyword="PixelData")
        frames, offsets = options["number_of_frames"], options.pop("extended_offsets", None)
        options["number_of_frames"] = 1
        stream = get_frame(s.dataset.PixelData, s.frame or 0, number_of_frames=frames, extended_offsets=offsets)
    except _bad_pixels() as error:
        raise _corrupt(s, error) from None
    start = stream.find(b"\xff\x4f\xff\x51", 0, 512)
    if start >= 0:  # JPEG 2000: its own size, not the header's, decides what is allocated
        right, down, left, up = np.frombuffer(stream.ljust(start + 24, b"\0"), ">u4", 4, start + 8).tolist()
        if (down - up, right - left) != s.size[:2]:
            raise Terminal("PIXELS_CORRUPT", "the JPEG 2000 stream has another size than the header; fetch it again")
    plugin = next(name for name in PLUGINS if name in decoder.available_plugins)
    try:
        raw = limited(_one_frame, str(decoder.UID), stream, options, plugin)
    except Ended as ended:
        code = "DECODE_CRASHED" if ended.how == "crashed" else "DECODE_LIMIT"
        raise Terminal(code, f"{plugin} ended on the pixels ({ended.how}); check the file, or transcode it") from None
    if isinstance(raw, str):
        raise _corrupt(s, raw)
    return raw


def _one_frame(syntax: str, stream: bytes, options: dict[str, Any], plugin: str) -> npt.NDArray[Any] | str:
    """Decode one frame, or say which error that met."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    with quietly():
        try:
            return get_decoder(syntax).as_array(encapsulate([stream]), index=0, decoding_plugin=plugin, **options)[0]
        except MemoryError:
            raise
        except _bad_pixels() as error:
            return type(error).__name__


def _corrupt(s: Slice, error: Exception | str) -> Terminal:
    where = "" if s.frame is None else f" of frame {s.frame}"
    name = uid_name(s.dataset.file_meta.TransferSyntaxUID)
    what = error if isinstance(error, str) else type(error).__name__
    return Terminal("PIXELS_CORRUPT", f"the pixels{where} do not decode as {name} ({what}); fetch it again")


def mend_syntax(dataset: Any) -> None:
    """Name the transfer syntax that the pixels are in, where the file names another.

    Files are stored by tools that copy a header or decompress without a word. What counts is how the pixels begin: an
    item tag or a codestream's marker, or exactly the bytes that plain pixels need. Nothing else is mended. Raises
    Terminal DICOM_UNREADABLE where it names several.
    """
    from pydicom.encaps import encapsulate, get_frame

    if not isinstance(dataset.file_meta.TransferSyntaxUID, str):
        raise Terminal("DICOM_UNREADABLE", "the file names several transfer syntaxes; fetch it again")
    pixels = value(dataset, "PixelData")
    shape = [number(dataset, k) or 0 for k in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
    frames = number(dataset, "NumberOfFrames") or 1
    plain = int(np.prod([*shape, frames]) // 8)
    if not pixels or len(pixels) < 8 or uid_name(dataset.file_meta.TransferSyntaxUID) is None:
        return  # a private syntax may mean anything
    items = pixels[:4] == b"\xfe\xff\x00\xe0"
    if is_encapsulated(dataset):
        if not items and len(pixels) in (plain, plain + plain % 2):
            dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        return
    if len(pixels) in (plain, plain + plain % 2) or not (items or pixels[:3] == b"\xff\xd8\xff"):
        return
    try:
        stream = get_frame(pixels, 0, number_of_frames=int(frames)) if items else pixels
    except _bad_pixels():
        return
    found = [(at, syntax) for marker, syntax in MAGIC if (at := stream.find(marker, 0, 1 << 16)) >= 0]
    if found:
        dataset.file_meta.TransferSyntaxUID = min(found)[1]
        if not items:
            dataset.PixelData = encapsulate([pixels])


def _eight_bit(colour: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(colour >> (bits - 8) if bits > 8 else colour, dtype=np.uint8)


def _rescaled(s: Slice, raw: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], bool]:
    """Values after the modality LUT, and whether there was one. A slope of 0 would erase the image and is none."""
    from pydicom.pixels.processing import apply_modality_lut

    if value(s.dataset, "ModalityLUTSequence"):
        return apply_modality_lut(raw, s.dataset).astype(np.float32), True
    group = functional(s.dataset, s.frame, "PixelValueTransformationSequence")
    slope, intercept = number(group, "RescaleSlope"), number(group, "RescaleIntercept")
    if not slope or intercept is None:
        return raw.astype(np.float32), False
    values = raw * np.float64(slope)
    values += intercept
    return values.astype(np.float32), True


def _extent(s: Slice, raw: npt.NDArray[Any], values: npt.NDArray[np.float32], rescaled: bool) -> Window:
    bits = int(number(s.dataset, "BitsStored") or 16)
    if bits <= 8 and not rescaled and number(s.dataset, "PixelRepresentation") == 0:
        return 0.0, float(2**bits - 1)
    padding = number(s.dataset, "PixelPaddingValue")
    if padding is not None:
        other = number(s.dataset, "PixelPaddingRangeLimit")
        low, high = sorted((padding, padding if other is None else other))
        values = values[(raw < low) | (raw > high)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def voi_lut(s: Slice, picture: Picture) -> tuple[npt.NDArray[Any], Window] | None:
    """A picture after its VOI LUT, and the range of that; None: there is none. Raises Terminal."""
    from pydicom.pixels.processing import apply_voi_lut

    tables = value(s.dataset, "VOILUTSequence")
    if not tables:
        return None
    with quietly():
        try:
            looked_up = apply_voi_lut(np.rint(picture.values).astype(np.int32), s.dataset)
        except _bad_pixels() as error:
            raise Terminal("PIXELS_CORRUPT", f"the VOI LUT does not fit its pixels ({type(error).__name__})") from None
    bits = (numbers(tables[0], "LUTDescriptor", 3) or (0, 0, 16))[2]
    return looked_up, (0.0, 2.0**bits - 1)
