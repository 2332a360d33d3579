"""DICOM: the files of one series become volumes and their slices, frames of cines, or single images.

The invariant: pixels are those the standard says to show (modality LUT, then the file's own window, then polarity),
one value gives one grey on all slices of a volume, and nothing of a header comes through but what
`transforms/deidentify.py` allows. Errors never quote the header.

>>> for made in decode(items_of_one_series, IngestParams(), pseudonym):
...     print(type(made).__name__, getattr(made, "locator", ""))
Volume
Sample axial:41:soft_tissue

Windows, in order: WindowCenter and WindowWidth (the first pair), a VOI LUT, the whole range for 8-bit pixels, else the
least to the greatest value without padding. A SIGMOID window is shown as the line through its middle. CT in Hounsfield
units follows `transforms/windows.py` instead. Of cines, and other multi-frame files that are not one scan,
`IngestParams.frames` frames are taken. Segmentations, reports, plans and dose grids are dropped: they are no images.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from catalog.items import Item, Label
from infra.errors import Dropped, ItemError, Terminal
from infra.keys import canonical, key, sha256
from transforms.decoded import Decoded, IngestParams, Pixels, Pseudonym, Refused, Region, Sample, Volume
from transforms.deidentify import (
    Described,
    bad_values,
    check_image,
    describe,
    header_facts,
    is_encapsulated,
    number,
    numbers,
    open_dataset,
    quietly,
    text,
    uid_name,
    value,
)
from transforms.series import Slice, Stack, affine_of, functional, slices_of, stacks, unmosaic, without
from transforms.volumes import Scan, cut
from transforms.windows import Window, choose_windows, to_grey

NAME = "dicom"
VERSION = "1"
REQUIRES = {"pydicom": "pydicom"}

PLUGINS = ("pylibjpeg", "pyjpegls", "pydicom", "pillow", "gdcm")
"""The first of these that knows a transfer syntax decodes it. There is no second opinion: gdcm fills up cut streams."""
GDCM_SECONDS = 120
"""Time that gdcm may take for one frame."""


class Params(BaseModel):
    """This decoder has no settings of its own; `ingest:` in the recipe holds them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def decode(items: Sequence[Item], params: IngestParams, pseudonym: Pseudonym) -> Iterator[Decoded]:
    """Decode the files of one series (role "main"). Codes of refusals beside those of `open_dataset`:

    NOT_AN_IMAGE (dropped), DUPLICATE_FILE (dropped), NO_PIXELS, DIMENSIONS_IMPLAUSIBLE, PIXELS_TRUNCATED,
    PIXELS_CORRUPT, PIXELS_UNSUPPORTED, TRANSFER_SYNTAX_UNSUPPORTED, MOSAIC_UNSUPPORTED.
    """
    sources: dict[str, Described] = {}
    slices: list[Slice] = []
    first_with: dict[str, str] = {}
    for item in items:
        data = item.files["main"]
        digest = sha256(data)
        try:
            if digest in first_with:
                raise Dropped("DUPLICATE_FILE", f"same bytes as {first_with[digest]}; nothing to do")
            dataset = open_dataset(data)
            check_image(dataset, len(data))
        except ItemError as error:
            yield Refused(item.id, error)
            continue
        first_with[digest] = item.id
        sources[item.id] = describe(item, dataset, pseudonym)
        slices += slices_of(item.id, digest, dataset)
    loose: dict[str, list[Slice]] = {}
    for stack in stacks(slices):
        if _is_whole_scan(stack):
            yield from _scan(stack, sources, params)
            continue
        for s in stack.slices:
            loose.setdefault(s.item, []).append(s)
    for frames in loose.values():
        yield from _stills(sorted(frames, key=lambda s: s.frame or 0), sources, params)


def open_scan(files: Sequence[bytes]) -> Scan:
    """The scan of a row of `volumes` again, from its files in the order of the row. Raises ItemError."""
    slices = [s for n, data in enumerate(files) for s in slices_of(str(n), sha256(data), open_dataset(data))]
    found = stacks(slices)
    if len(found) != 1 or not found[0].is_scan:
        raise Terminal("NOT_A_SCAN", "these files do not make one scan; give all files of one row of volumes")
    values, rescaled, lost = _read(found[0])
    if lost:
        raise next(iter(lost.values()))
    facts = header_facts(found[0].slices[0].dataset)
    return _scan_of(found[0], values, rescaled, facts.get("Modality"), facts.get("BodyPartExamined"))


def _is_whole_scan(stack: Stack) -> bool:
    """A scan of single-frame files, or of all frames of one file."""
    first = stack.slices[0]
    return stack.is_scan and (first.frame is None or len(stack.slices) == number(first.dataset, "NumberOfFrames"))


def _scan(stack: Stack, sources: Mapping[str, Described], params: IngestParams) -> Iterator[Decoded]:
    """The volume of a stack and the slices cut from it; unreadable slices are refused, and leave a gap."""
    values, rescaled, lost = _read(stack)
    if lost and stack.slices[0].frame is not None:
        yield Refused(stack.slices[0].item, next(iter(lost.values())))
        return
    yield from (Refused(stack.slices[at].item, error) for at, error in lost.items())
    rest = without(stack, lost) if lost else [stack]
    if not (rest and rest[0].is_scan):
        for left in rest:
            yield from _stills(list(left.slices), sources, params)
        return
    stack, first = rest[0], sources[rest[0].slices[0].item]
    try:
        values = np.delete(values, list(lost), axis=2) if lost else values
        scan = _scan_of(stack, values, rescaled, first.columns["modality"], first.columns["anatomy"])
    except Terminal as error:
        yield Refused(first.item.id, error)
        return
    items = tuple(dict.fromkeys(s.item for s in stack.slices))
    content = tuple(dict.fromkeys(s.sha256 for s in stack.slices))
    volume_id = key("volume", *content)
    yield Volume(items, {
        "volume_id": volume_id, "group_id": first.group, "items": list(items), "sha256": list(content),
        "modality": first.columns["modality"], "shape": list(scan.values.shape),
        "affine": None if scan.affine is None else scan.affine.ravel().tolist(),
        "spacing": None if scan.spacing is None else list(scan.spacing),
        "orientation": scan.orientation, "rescale_applied": rescaled, "geometry_flags": list(stack.flags),
        "header": canonical(dict(first.facts)).decode(),
    })
    labels = tuple(dict.fromkeys(label for item in items for label in sources[item].labels))
    texts = tuple(dict.fromkeys(words for item in items for words in sources[item].item.texts))
    for piece in cut(scan, params):
        yield Sample(
            items, content, piece.locator, piece.pixels, group=first.group,
            columns={**piece.columns, **first.columns, "volume_id": volume_id},
            regions=piece.regions, labels=labels, texts=texts, licences=first.item.licences,
        )


def _read(stack: Stack) -> tuple[npt.NDArray[np.float32], bool, dict[int, ItemError]]:
    """(x, y, z) values of a stack in modality units, whether they were rescaled, the errors of unreadable slices."""
    rows, columns, _ = stack.slices[0].size
    values = np.zeros((columns, rows, len(stack.slices)), np.float32, order="F")
    rescaled = True
    lost: dict[int, ItemError] = {}
    for at, s in enumerate(stack.slices):
        try:
            picture = read_picture(s)
        except ItemError as error:
            lost[at] = error
        else:
            values[:, :, at] = picture.values.T
            rescaled &= picture.rescaled
    return values, rescaled, lost


def _scan_of(
    stack: Stack, values: npt.NDArray[np.float32], rescaled: bool, modality: str | None, anatomy: str | None
) -> Scan:
    """CT that was not rescaled is not in Hounsfield units: it goes without a modality, so no CT window is put on it."""
    first = stack.slices[0]
    values, affine = unmosaic(first, values[:, :, 0].T) if first.mosaic else (values, affine_of(stack.slices))
    shown_as = None if modality == "CT" and not rescaled else modality
    return Scan(values, affine, shown_as, anatomy, stack.window, first.inverted)


def _stills(frames: list[Slice], sources: Mapping[str, Described], params: IngestParams) -> Iterator[Decoded]:
    """A single image, or evenly spaced frames of a multi-frame file; one bad frame among those refuses the file."""
    count = min(params.frames, len(frames))
    chosen = [frames[(2 * n + 1) * len(frames) // (2 * count)] for n in range(count)]
    source = sources[chosen[0].item]
    try:
        pictures = [read_picture(s) for s in chosen]
        extent = min(p.extent[0] for p in pictures), max(p.extent[1] for p in pictures)
        made = [
            _still(s, name, pixels, window, source)
            for s, picture in zip(chosen, pictures, strict=True)
            for name, pixels, window in _shown(s, picture, extent, source, params)
        ]
    except ItemError as error:
        yield Refused(source.item.id, error)
        return
    yield from made


def _still(s: Slice, name: str, pixels: Pixels, window: Window | None, source: Described) -> Sample:
    place = "" if s.frame is None else f"frame:{s.frame}"
    boxes = tuple(Region(box.label, box.role, box=box.xyxy) for box in source.item.boxes)
    localizer = (Label("localizer", "present", "dicom:ImageType"),) if s.localizer else ()
    return Sample(
        (s.item,), (s.sha256,), ":".join(part for part in (place, name) if part), pixels, group=source.group,
        columns={
            "view": source.facts.get("ViewPosition") or s.plane, "slice_index": s.frame,
            "window": list(window) if window else None, "pixel_spacing": list(s.spacing) if s.spacing else None,
            "orientation": s.orientation, **source.columns,
        },
        regions=boxes, labels=(*source.labels, *localizer), texts=source.item.texts, licences=source.item.licences,
    )


def _shown(
    s: Slice, picture: Picture, extent: Window, source: Described, params: IngestParams
) -> Iterator[tuple[str, Pixels, Window | None]]:
    """A picture in each window it is to be shown in: name ("" unless it is CT in Hounsfield units), pixels, window."""
    if picture.values.ndim == 3:
        yield "", picture.values.astype(np.uint8), None
        return
    inverted, own = s.inverted, s.window
    hounsfield = s.modality == "CT" and picture.rescaled and not s.localizer
    if own is None and not hounsfield and (looked_up := voi_lut(s, picture)) is not None:
        yield "", to_grey(*looked_up, inverted), None
        return
    own = own if own is not None or hounsfield else extent
    anatomy = source.columns["anatomy"]
    windows = choose_windows(picture.values, "CT" if hounsfield else None, anatomy, own, params.windows)
    for name, window in windows.items():
        yield name if hounsfield else "", to_grey(picture.values, window, inverted), window


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded frame."""

    values: npt.NDArray[Any]
    """(rows, columns) float32 in modality units, or (rows, columns, 3) uint8 RGB"""
    rescaled: bool
    """values were turned into the modality's unit"""
    extent: Window
    """what to show where the file names no window"""


def read_picture(s: Slice) -> Picture:
    """Decode one frame, to modality units or to RGB. Raises Terminal."""
    from pydicom.pixels.processing import apply_color_lut

    raw = _raw(s)
    with quietly():
        try:
            if text(s.dataset, "PhotometricInterpretation") == "PALETTE COLOR":
                raw = apply_color_lut(raw, s.dataset)
                return Picture(_eight_bit(raw, 8 * raw.dtype.itemsize), False, (0.0, 255.0))
            if raw.ndim == 3:
                return Picture(_eight_bit(raw, int(number(s.dataset, "BitsStored") or 8)), False, (0.0, 255.0))
            values, rescaled = _rescaled(s, raw)
        except _bad_pixels() as error:
            raise Terminal("PIXELS_CORRUPT", f"a lookup table does not fit ({type(error).__name__})") from None
    if not np.isfinite(values).all():
        raise Terminal("PIXELS_CORRUPT", "pixels are infinite or not numbers; check the file")
    return Picture(values, rescaled, _extent(s, raw, values, rescaled))


def _raw(s: Slice) -> npt.NDArray[Any]:
    """Stored values of one frame; colour as RGB."""
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
        try:
            coded = is_encapsulated(s.dataset)
            raw = _decompressed(s, decoder) if coded else decoder.as_array(s.dataset, index=s.frame or 0)[0]
        except _bad_pixels() as error:
            where = "" if s.frame is None else f" of frame {s.frame}"
            raise Terminal(
                "PIXELS_CORRUPT", f"the pixels{where} do not decode as {name} ({type(error).__name__}); fetch it again"
            ) from None  # plug-ins quote the header
    if raw.ndim == 3 and raw.shape[2] != 3:
        raise Terminal("PIXELS_UNSUPPORTED", f"{raw.shape[2]} samples a pixel; only grey, palette and RGB are read")
    return raw


@cache
def _bad_pixels() -> tuple[type[Exception], ...]:
    """What pydicom and its plug-ins raise for a bad codestream or lookup table."""
    return (*bad_values(), RuntimeError, EOFError, OSError, MemoryError)


def _decompressed(s: Slice, decoder: Any) -> npt.NDArray[Any]:
    """One frame. gdcm runs in a process of its own, because some bad streams abort it."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.utils import as_pixel_options

    options = as_pixel_options(s.dataset, pixel_keyword="PixelData")
    frames, offsets = options["number_of_frames"], options.pop("extended_offsets", None)
    options["number_of_frames"] = 1
    stream = get_frame(s.dataset.PixelData, s.frame or 0, number_of_frames=frames, extended_offsets=offsets)
    start = stream.find(b"\xff\x4f\xff\x51", 0, 512)
    if start >= 0:  # JPEG 2000: its own size, not the header's, decides what is allocated
        right, down, left, up = np.frombuffer(stream, ">u4", 4, start + 8).tolist()
        if (down - up, right - left) != s.size[:2]:
            raise ValueError
    plugin = next(name for name in PLUGINS if name in decoder.available_plugins)
    if plugin != "gdcm":
        return _one_frame(str(decoder.UID), stream, options, plugin)
    try:
        return _gdcm().submit(_one_frame, str(decoder.UID), stream, options, plugin, GDCM_SECONDS).result()
    except BrokenExecutor:
        _gdcm.cache_clear()
        raise


@cache
def _gdcm() -> Executor:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _one_frame(syntax: str, stream: bytes, options: dict[str, Any], plugin: str, seconds: int = 0) -> npt.NDArray[Any]:
    """Decode one frame; with `seconds` this process ends when it takes longer."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    with quietly():
        if seconds:
            signal.alarm(seconds)
        try:
            return get_decoder(syntax).as_array(encapsulate([stream]), index=0, decoding_plugin=plugin, **options)[0]
        finally:
            if seconds:
                signal.alarm(0)


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
    return (raw * np.float64(slope) + intercept).astype(np.float32), True


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
