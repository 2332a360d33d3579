"""Text burned into pixels: what to fill, what to let pass, what a person has to look at.

The invariant: a picture of a risky class passes only if a rule of `pixels.yaml` filled its areas and nothing is read
in the rest. Reading (OCR) can only add areas or stop a picture; alone it never calls a risky one clean.

    class of picture          BurnedInAnnotation   rule   read            outcome
    others                    NO or absent         -      not looked at   keep
    watched (XA, RF, MG …)    NO or absent         -      nothing         keep
    risky (US, SC, ES …)      whatever             yes    -               fill, read again
    risky                     whatever             no     whatever        quarantine TEXT_POSSIBLE
    watched or others         whatever             -      some text       fill the bands of the text, read again
    watched or others         YES                  -      nothing         quarantine TEXT_POSSIBLE
    any that was filled                                   text remains    quarantine TEXT_REMAINS

>>> clean = clean_pixels(dataset, read_words)
>>> clean.outcome, clean.areas
('mask', (Area(x0=0, y0=0, x1=800, y1=60, why='ultrasound header, GE'),))

Filled pixels come out uncompressed. Up to LOOKS frames are read one by one, of longer cines the brightest values of
LOOKS runs of frames: text that stays on the screen is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import yaml

from infra.errors import Terminal
from transforms.scans.deidentify import bad_values, is_encapsulated, number, quietly, text, texts, value

LOOKS = 8
"""Pictures of one file that are read."""
MARGIN = 0.6
"""Heights of a word that its band reaches beyond it, above and below."""

Risk = Literal["risky", "watched", "others"]
Frames = npt.NDArray[Any]
"""(frames, rows, columns, samples)"""


class Found(Protocol):
    """A word that was read, see transforms/pictures/ocr.py."""

    @property
    def box(self) -> tuple[float, float, float, float]: ...


Reader = Callable[[npt.NDArray[np.uint8]], Sequence[Found]]
"""Picture (rows, columns) or (rows, columns, 3), uint8 -> what is read in it."""


@dataclass(frozen=True)
class Area:
    """A part of a picture, in pixels, half-open, and why it is filled."""

    x0: int
    y0: int
    x1: int
    y1: int
    why: str


@dataclass(frozen=True)
class Cleaned:
    """What became of the pixels of a file."""

    outcome: Literal["keep", "mask"]
    dataset: Any
    """as given, or a copy with filled pixels"""
    areas: tuple[Area, ...] = ()


def risk_of(dataset: Any) -> Risk:
    """How likely the class of a picture carries text."""
    rules = _table()
    modality, sop_class = text(dataset, "Modality"), text(dataset, "SOPClassUID")
    captured = any(word in kind for kind in texts(dataset, "ImageType") for word in rules["risky"]["image_types"])
    in_class = any(sop_class == uid or sop_class.startswith(f"{uid}.") for uid in rules["risky"]["sop_classes"])
    if modality in rules["risky"]["modalities"] or in_class or captured or value(dataset, "ConversionType"):
        return "risky"
    return "watched" if modality in rules["watched"]["modalities"] else "others"


def needs_look(dataset: Any) -> bool:
    """Whether the pixels may not pass unseen."""
    return "PixelData" in dataset and (text(dataset, "BurnedInAnnotation") == "YES" or risk_of(dataset) != "others")


def rule_areas(dataset: Any) -> tuple[Area, ...]:
    """The areas that the first fitting rule of pixels.yaml fills; () where none fits."""
    rows, columns = int(number(dataset, "Rows") or 0), int(number(dataset, "Columns") or 0)
    for rule in _table()["rules"]:
        if _fits(dataset, rule["when"], rows, columns):
            if rule.get("outside") == "regions":
                return tuple(_outside(list(_regions(dataset)), rows, columns, rule["name"]))
            return tuple(_area(corners, rows, columns, rule["name"]) for corners in rule["areas"])
    return ()


def clean_pixels(dataset: Any, read: Reader) -> Cleaned:
    """Fill what the rules and the reader find. Raises Terminal: TEXT_POSSIBLE, TEXT_REMAINS, PIXELS_UNSUPPORTED."""
    if not needs_look(dataset):
        return Cleaned("keep", dataset)
    risk, stated = risk_of(dataset), text(dataset, "BurnedInAnnotation")
    areas = list(rule_areas(dataset))
    if risk == "risky" and not areas:
        raise Terminal("TEXT_POSSIBLE", "this class of picture often carries names and no rule says where; look at it")
    made = _native(dataset)
    frames = _frames(made)
    height, width = frames.shape[1:3]
    _fill(frames, areas, made)
    found = [band for picture in _looks(frames) for band in _bands(read(picture), height, width)]
    if not found and not areas:
        if stated != "YES":
            return Cleaned("keep", dataset)
        raise Terminal("TEXT_POSSIBLE", "the header states text in the pixels and none was read; look at it")
    if found:
        _fill(frames, found, made)
        if any(read(picture) for picture in _looks(frames)):
            raise Terminal("TEXT_REMAINS", "text can still be read after filling; look at it")
    made.PixelData = _bytes_of(frames, made)
    return Cleaned("mask", made, tuple(dict.fromkeys([*areas, *found])))


def _fits(dataset: Any, when: dict[str, Any], rows: int, columns: int) -> bool:
    checks: dict[str, Callable[[Any], bool]] = {
        "modality": lambda names: text(dataset, "Modality") in names,
        "sop_class": lambda uids: text(dataset, "SOPClassUID") in uids,
        "manufacturer": lambda words: any(word in text(dataset, "Manufacturer").split() or (
            " " in word and word in text(dataset, "Manufacturer")) for word in words),
        "model": lambda words: any(word in text(dataset, "ManufacturerModelName") for word in words),
        "rows": lambda band: band[0] <= rows <= band[1],
        "columns": lambda band: band[0] <= columns <= band[1],
        "regions": lambda _: any(True for _ in _regions(dataset)),
    }
    return all(checks[name](wanted) for name, wanted in when.items())


def _area(corners: Sequence[float], rows: int, columns: int, why: str) -> Area:
    def place(corner: float, size: int) -> int:
        at = round(corner * size) if isinstance(corner, float) else corner
        return min(max(at + size if at < 0 else at, 0), size)

    x0, y0, x1, y1 = corners
    return Area(place(x0, columns), place(y0, rows), place(x1, columns), place(y1, rows), why)


def _regions(dataset: Any) -> Iterator[tuple[int, int, int, int]]:
    """x0, y0, x1, y1 of the ultrasound regions that the header states, half-open (the standard's are inclusive)."""
    names = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")
    for item in value(dataset, "SequenceOfUltrasoundRegions") or ():
        corners = [number(item, name) for name in names]
        if None not in corners:
            x0, y0, x1, y1 = (int(corner or 0) for corner in corners)
            if x1 > x0 and y1 > y0:
                yield x0, y0, x1 + 1, y1 + 1


def _outside(regions: list[tuple[int, int, int, int]], rows: int, columns: int, why: str) -> Iterator[Area]:
    """Areas that cover all of a picture but the regions: in bands between their edges, the gaps along each."""
    cuts = sorted({0, rows, *(min(max(y, 0), rows) for r in regions for y in (r[1], r[3]))})
    for top, bottom in pairwise(cuts):
        at = 0
        for x0, y0, x1, y1 in sorted(regions):
            if y0 <= top and bottom <= y1:
                if x0 > at:
                    yield Area(at, top, min(x0, columns), bottom, why)
                at = max(at, x1)
        if at < columns:
            yield Area(at, top, columns, bottom, why)


def _bands(words: Sequence[Found], height: int, width: int) -> list[Area]:
    """The whole width around each word: where a fragment was read, more may stand that was not."""
    bands = []
    for word in words:
        _, y0, _, y1 = word.box
        more = MARGIN * (y1 - y0) + 2
        bands.append(Area(0, max(0, int(y0 - more)), width, min(height, int(y1 + more) + 1), "text was read"))
    return bands


def _native(dataset: Any) -> Any:
    """A copy of the dataset with uncompressed pixels."""
    undecodable: tuple[type[Exception], ...] = (*bad_values(), RuntimeError)
    with quietly():
        made = deepcopy(dataset)  # elements are changed in place
        try:
            if is_encapsulated(made):
                made.decompress(generate_instance_uid=False)
        except undecodable as error:
            name = type(error).__name__
            raise Terminal("PIXELS_UNSUPPORTED", f"the pixels cannot be decoded to fill them ({name})") from None
    stored = number(made, "BitsAllocated")
    if stored not in (8, 16, 32) or text(made, "PhotometricInterpretation") == "YBR_FULL_422":
        raise Terminal("PIXELS_UNSUPPORTED", "pixels of this layout cannot be filled; convert the file first")
    return made


def _frames(dataset: Any) -> Frames:
    """The stored values, in a copy that may be written to."""
    rows, columns, samples = (int(number(dataset, k) or 1) for k in ("Rows", "Columns", "SamplesPerPixel"))
    count = int(number(dataset, "NumberOfFrames") or 1)
    big = dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.2"
    dtype = np.dtype(f"{'>' if big else '<'}u{int(number(dataset, 'BitsAllocated') or 8) // 8}")
    needed = count * rows * columns * samples
    values = np.frombuffer(dataset.PixelData, dtype, count=-1)
    if len(values) < needed:
        raise Terminal("PIXELS_TRUNCATED", "there are fewer pixels than the header says; fetch the file again")
    planar = samples > 1 and number(dataset, "PlanarConfiguration") == 1
    shape = (count, samples, rows, columns) if planar else (count, rows, columns, samples)
    frames = values[:needed].reshape(shape)
    return np.array(frames.transpose(0, 2, 3, 1) if planar else frames)


def _bytes_of(frames: Frames, dataset: Any) -> bytes:
    planar = frames.shape[3] > 1 and number(dataset, "PlanarConfiguration") == 1
    stored = (frames.transpose(0, 3, 1, 2) if planar else frames).tobytes()
    return stored + b"\0" * (len(stored) % 2)


def _fill(frames: Frames, areas: Sequence[Area], dataset: Any) -> None:
    """Fill areas with the least value, of YBR with black."""
    black = [0, 128, 128] if text(dataset, "PhotometricInterpretation").startswith("YBR") else 0
    fill: Any = black if frames.shape[3] > 1 else frames.min()
    if frames.shape[3] == 1 and number(dataset, "PixelRepresentation") == 1:
        fill = frames.view(frames.dtype.str.replace("u", "i")).min().astype(frames.dtype)
    for area in areas:
        frames[:, area.y0 : area.y1, area.x0 : area.x1] = fill


def _looks(frames: Frames) -> Iterator[npt.NDArray[np.uint8]]:
    """The pictures to read, stretched to 8 bit."""
    for run in np.array_split(frames, min(len(frames), LOOKS)):
        picture = run.max(axis=0).astype(np.float32)
        low, high = float(picture.min()), float(picture.max())
        shown = ((picture - low) * (255 / max(high - low, 1))).astype(np.uint8)
        yield shown[:, :, :3] if shown.shape[2] >= 3 else shown[:, :, 0]


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
    return table
