"""Text in pixels and faces in scans: filled, flagged, or stopped; never waved through."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
)

from infra.errors import Terminal
from transforms.deid.faces import Geometry, Series, check_public, face_in, series_of
from transforms.deid.pixels import Area, clean_pixels, needs_look, risk_of, rule_areas


@dataclass(frozen=True)
class Word:
    box: tuple[float, float, float, float]


def bright(picture: Any) -> list[Word]:
    """Reads every picture with a bright spot as one word there: a reader whose answer is known."""
    grey = picture if picture.ndim == 2 else picture.max(axis=2)
    rows, columns = np.nonzero(grey > 250)
    if not 5 < len(rows) < grey.size / 2:
        return []
    return [Word((float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)))]


def nothing(picture: Any) -> list[Word]:
    return []


def picture(modality: str, sop_class: str, pixels: Any = None, **elements: Any) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.Modality, made.SOPClassUID = modality, sop_class
    pixels = np.full((480, 640), 60, np.uint8) if pixels is None else pixels
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation = (3, "RGB") if pixels.ndim == 3 else (1, "MONOCHROME2")
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.PixelRepresentation = 0
    made.PixelData = pixels.tobytes()
    for keyword, element in elements.items():
        setattr(made, keyword, element)
    return made


def region(x0: int, y0: int, x1: int, y1: int) -> Dataset:
    item = Dataset()
    item.RegionLocationMinX0, item.RegionLocationMinY0 = x0, y0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = x1, y1
    return item


def refusal(dataset: Dataset, read: Callable[[Any], Sequence[Word]]) -> str:
    with pytest.raises(Terminal) as caught:
        clean_pixels(dataset, read)
    return caught.value.code


def test_case_28_an_ultrasound_header_band_is_filled() -> None:
    pixels = np.full((480, 640), 60, np.uint8)
    pixels[10:30, 20:200] = 255
    clean = clean_pixels(picture("US", UltrasoundImageStorage, pixels, BurnedInAnnotation="NO"), bright)
    after = np.frombuffer(clean.dataset.PixelData, np.uint8).reshape(480, 640)
    assert clean.outcome == "mask" and after.max() == 60
    assert (after[100:400] == pixels[100:400]).all()


def test_all_outside_the_ultrasound_regions_is_filled() -> None:
    pixels = np.arange(480 * 640, dtype=np.uint32).reshape(480, 640).astype(np.uint8) // 2 + 1
    regions = [region(100, 80, 499, 379), region(520, 200, 599, 299)]
    given = picture("US", UltrasoundImageStorage, pixels, SequenceOfUltrasoundRegions=regions)
    clean = clean_pixels(given, nothing)
    after = np.frombuffer(clean.dataset.PixelData, np.uint8).reshape(480, 640)
    inside = np.zeros((480, 640), bool)
    inside[80:380, 100:500] = inside[200:300, 520:600] = True
    assert (after[inside] == pixels[inside]).all() and (after[~inside] == pixels.min()).all()
    assert given.PixelData == pixels.tobytes()


def test_text_outside_the_known_areas_is_filled_as_a_band_and_read_again() -> None:
    pixels = np.full((480, 640), 60, np.uint8)
    pixels[300:320, 20:60] = 255
    clean = clean_pixels(picture("US", UltrasoundImageStorage, pixels), bright)
    after = np.frombuffer(clean.dataset.PixelData, np.uint8).reshape(480, 640)
    assert after.max() == 60 and [a.why for a in clean.areas][-1] == "text was read"
    assert (clean.areas[-1].x0, clean.areas[-1].x1) == (0, 640) and clean.areas[-1].y0 < 300 < 320 < clean.areas[-1].y1


def test_text_that_stays_is_quarantined() -> None:
    def always(picture: Any) -> list[Word]:
        return [Word((0, 0, 5, 5))]

    assert refusal(picture("US", UltrasoundImageStorage), always) == "TEXT_REMAINS"


@pytest.mark.parametrize("stated", ["NO", "YES", None])
def test_a_secondary_capture_is_never_clean_by_reading_alone(stated: str | None) -> None:
    made = picture("OT", SecondaryCaptureImageStorage)
    if stated:
        made.BurnedInAnnotation = stated
    assert refusal(made, nothing) == "TEXT_POSSIBLE"
    assert refusal(picture("CT", CTImageStorage, ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]), nothing) == (
        "TEXT_POSSIBLE"
    )


def test_what_the_header_says_counts_by_class() -> None:
    assert not needs_look(picture("CT", CTImageStorage))
    assert clean_pixels(picture("CT", CTImageStorage, BurnedInAnnotation="NO"), bright).outcome == "keep"
    assert refusal(picture("CT", CTImageStorage, BurnedInAnnotation="YES"), nothing) == "TEXT_POSSIBLE"
    angiogram = picture("XA", "1.2.840.10008.5.1.4.1.1.12.1")
    assert clean_pixels(angiogram, nothing).outcome == "keep"
    stated = picture("XA", "1.2.840.10008.5.1.4.1.1.12.1", BurnedInAnnotation="YES")
    assert refusal(stated, nothing) == "TEXT_POSSIBLE"
    angiogram.BurnedInAnnotation = "NO"
    assert clean_pixels(angiogram, nothing).outcome == "keep"
    assert risk_of(picture("MR", "1.2.840.10008.5.1.4.1.1.4")) == "others"


@pytest.mark.parametrize("kind", ["rgb", "planar", "16 bit", "signed", "big-endian", "cine"])
def test_filling_knows_the_layout(kind: str) -> None:
    flat = np.full((480, 640), 60, np.uint8)
    flat[10:30, 20:200] = 255
    pixels = np.stack([flat] * 3, axis=2) if kind in ("rgb", "planar") else flat
    made = picture("US", UltrasoundImageStorage, pixels)
    if kind == "planar":
        made.PlanarConfiguration, made.PixelData = 1, pixels.transpose(2, 0, 1).tobytes()
    elif kind in ("16 bit", "signed", "big-endian"):
        dtype = {"16 bit": "<u2", "signed": "<i2", "big-endian": ">u2"}[kind]
        made.BitsAllocated, made.PixelData = 16, flat.astype(dtype).tobytes()
        made.PixelRepresentation = int(kind == "signed")
        made.file_meta.TransferSyntaxUID = ExplicitVRBigEndian if kind == "big-endian" else ExplicitVRLittleEndian
    elif kind == "cine":
        made.NumberOfFrames, made.PixelData = 20, np.stack([flat] * 20).tobytes()
    clean = clean_pixels(made, bright)
    after = clean.dataset.pixel_array
    assert after.max() == 60 and after.shape == made.pixel_array.shape


def test_compressed_pixels_come_out_filled_and_uncompressed() -> None:
    from pydicom import dcmread

    made = dcmread(get_testdata_file("SC_rgb_jpeg_dcmtk.dcm"))
    made.Modality, made.SOPClassUID = "US", UltrasoundImageStorage
    clean = clean_pixels(made, nothing)
    assert clean.outcome == "mask" and not clean.dataset.file_meta.TransferSyntaxUID.is_compressed
    area = clean.areas[0]
    assert clean.dataset.pixel_array[area.y0 : area.y1, area.x0 : area.x1].max() <= 1
    assert made.file_meta.TransferSyntaxUID.is_compressed


def test_rules_know_makers_and_sizes() -> None:
    by_ge = picture("US", UltrasoundImageStorage, Manufacturer="GE Healthcare")
    assert {a.why for a in rule_areas(by_ge)} == {"ultrasound header, GE"}
    assert rule_areas(by_ge)[0] == Area(0, 0, 640, 48, "ultrasound header, GE")
    assert {a.why for a in rule_areas(picture("US", UltrasoundImageStorage))} == {"ultrasound header, others"}


@pytest.mark.skipif(importlib.util.find_spec("rapidocr") is None, reason="needs medloom[ocr]")
def test_a_name_drawn_outside_the_areas_is_read_and_filled() -> None:
    from transforms.pictures.ocr import read_words

    drawn = Image.fromarray(np.zeros((480, 640), np.uint8))
    pen = ImageDraw.Draw(drawn)
    pen.text((40, 10), "St Elsewhere Hospital", fill=255, font_size=22)
    pen.text((300, 240), "DOE JOHN 04.03.1962", fill=255, font_size=22)
    clean = clean_pixels(picture("US", UltrasoundImageStorage, np.asarray(drawn)), read_words)
    after = np.frombuffer(clean.dataset.PixelData, np.uint8)
    assert clean.outcome == "mask" and after.max() == 0


HEAD = Series("CT", ("HEAD",), 160, 1.0, 160.0, 250.0)


@pytest.mark.parametrize(
    ("change", "shows"),
    [
        ({}, "yes"), ({"modality": "MR", "anatomy": ("T1 MPRAGE BRAIN",)}, "yes"), ({"anatomy": ()}, "possible"),
        ({"anatomy": (), "field": 450.0}, "no"), ({"anatomy": ("CHEST",)}, "no"), ({"slices": 5}, "no"),
        ({"spacing": 10.0}, "no"), ({"coverage": 30.0}, "no"), ({"field": 80.0}, "no"), ({"modality": "US"}, "no"),
        ({"anatomy": (), "spacing": float("nan"), "coverage": float("nan"), "field": float("nan")}, "possible"),
        ({"anatomy": ("CHEST", "HEAD AND NECK")}, "yes"),
    ],
)
def test_case_29_a_scan_that_could_show_a_face_is_flagged(change: dict[str, Any], shows: str) -> None:
    verdict = face_in(replace(HEAD, **change))
    assert verdict.shows == shows
    if shows == "no":
        check_public(verdict)
        return
    with pytest.raises(Terminal) as caught:
        check_public(verdict)
    assert caught.value.code == "FACE_POSSIBLE"
    check_public(verdict, defaced=True)


def test_a_series_is_measured_over_its_files() -> None:
    files = [Geometry("CT", ("HEAD",), 1.5 * n, 5.0, 1, 240.0, False) for n in range(80)]
    scout = Geometry("CT", ("HEAD",), 0.0, 5.0, 1, 500.0, True)
    series = series_of([*files, scout])
    assert (series.slices, series.spacing, series.coverage, series.field) == (80, 1.5, 118.5, 240.0)
    frames = series_of([Geometry("MR", (), float("nan"), 1.0, 170, 256.0, False)])
    assert (frames.slices, frames.coverage) == (170, 170.0)
