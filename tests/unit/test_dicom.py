"""DICOM: listing, reading, decoding, geometry. SimpleITK is the judge of geometry and values, nibabel of mosaics."""

from __future__ import annotations

import io
import json
import os
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    ComprehensiveSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from catalog.items import Item, Partition
from connectors import dicom as connector
from infra.errors import Dropped, Terminal, Transient
from infra.fileindex import FileIndex
from infra.keys import pseudonym
from transforms.decoded import Decoded, IngestParams, Refused, Sample, Volume
from transforms.decoders import dicom

hide = partial(pseudonym, b"test")
OBLIQUE = (0.9, 0.1, -0.42426407, -0.09534626, 0.99505, 0.02731)
ALL = IngestParams(slices="all")


def image(number: int = 0, pixels: npt.NDArray[Any] | None = None, **elements: Any) -> Dataset:
    """A CT slice 2.5 mm above the one before; any element may be given, None removes one."""
    pixels = pixels if pixels is not None else np.random.default_rng(number).integers(-1000, 2000, (6, 8), np.int16)
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = CTImageStorage, f"1.2.3.{number}", "CT"
    made.StudyInstanceUID, made.SeriesInstanceUID, made.PatientID = "1.2.1", "1.2.2", "4711"
    made.FrameOfReferenceUID, made.InstanceNumber = "1.2.4", number + 1
    made.Rows, made.Columns = pixels.shape[:2] if pixels.ndim == 2 else pixels.shape[-3:-1]
    made.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[-1]
    made.PhotometricInterpretation = "MONOCHROME2" if made.SamplesPerPixel == 1 else "RGB"
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    made.ImagePositionPatient, made.ImageOrientationPatient = [-10, -20, 2.5 * number], [1, 0, 0, 0, 1, 0]
    made.PixelSpacing, made.RescaleSlope, made.RescaleIntercept = [0.7, 0.5], 1, -24
    made.PixelData = pixels.tobytes()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = elements.pop("syntax", ExplicitVRLittleEndian)
    for keyword, element in elements.items():
        if element is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, element)
    return made


def data_of(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def decoded(*datasets: Dataset | bytes, params: IngestParams = ALL) -> list[Decoded]:
    files = [d if isinstance(d, bytes) else data_of(d) for d in datasets]
    items = [Item(str(n), "dicom", "g", {"main": data}) for n, data in enumerate(files)]
    made = list(dicom.decode(items, params, hide))
    refused = [m.item for m in made if isinstance(m, Refused)]
    kept = {item for m in made if isinstance(m, Sample | Volume) for item in m.items}
    assert sorted([*refused, *kept]) == sorted(item.id for item in items)  # nothing vanishes, nothing is both
    return made


def volumes(made: Iterable[Decoded]) -> list[dict[str, Any]]:
    return [dict(m.row) for m in made if isinstance(m, Volume)]


def samples(made: Iterable[Decoded]) -> list[Sample]:
    return [m for m in made if isinstance(m, Sample)]


def codes(made: Iterable[Decoded]) -> dict[str, str]:
    return {m.item: m.error.code for m in made if isinstance(m, Refused)}


def one(made: Iterable[Decoded]) -> Sample:
    (sample,) = made
    assert isinstance(sample, Sample)
    return sample


def oblique(number: int, **elements: Any) -> Dataset:
    """A slice of a series whose axes are all oblique."""
    rows = np.array(OBLIQUE).reshape(2, 3)
    rows[0] /= np.linalg.norm(rows[0])
    rows[1] -= (rows[1] @ rows[0]) * rows[0]
    rows[1] /= np.linalg.norm(rows[1])
    place = np.array([5.0, -7.0, 11.0]) + 3.25 * number * np.cross(*rows)
    cosines, position = ([f"{v:.10f}" for v in vector] for vector in (rows.ravel(), place))
    return image(number, ImageOrientationPatient=cosines, ImagePositionPatient=position, **elements)


def itk_series(files: list[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """SimpleITK's reading of files in its own order: values (x, y, z), affine in RAS+."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    read = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(read.GetDirection()).reshape(3, 3) * np.array(read.GetSpacing())
    affine[:3, 3] = read.GetOrigin()
    return sitk.GetArrayFromImage(read).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine


def agrees_with_itk(folder: Path) -> None:
    import SimpleITK as sitk

    files = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    values, affine = itk_series(files)
    made = decoded(*[path.read_bytes() for path in sorted(folder.iterdir())])
    (row,) = volumes(made)
    order = [sorted(folder.iterdir())[int(item)] for item in row["items"]]
    scan = dicom.open_scan([path.read_bytes() for path in order])
    assert row["shape"] == list(values.shape) == list(scan.values.shape)
    assert np.array_equal(scan.values, values)
    assert scan.affine is not None and np.allclose(scan.affine, affine, atol=1e-4)
    assert row["affine"] == scan.affine.ravel().tolist()


@pytest.mark.parametrize("make", [image, oblique])
def test_generated_series_agrees_with_simpleitk(tmp_path: Path, make: Callable[[int], Dataset]) -> None:
    for number, name in enumerate("hbgaecfd"):
        make(number).save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
    agrees_with_itk(tmp_path)


def test_real_series_agrees_with_simpleitk(sample_data: Path) -> None:
    agrees_with_itk(sample_data / "dicom" / "totalseg_ct_series")


def test_real_mosaics_agree_with_dcm2niix(sample_data: Path) -> None:
    import nibabel as nib

    root = sample_data / "dicom" / "dcm_qa_mr"
    pairs = {
        "ax/axasc35": "ax_asc_35sl_6", "cor/corasc35": "cor_asc_35sl_16", "sag/sagasc35": "sag_asc_35sl_22",
        "axmb/AxAsc36mb2a": "fMRI_MB_asc_25", "axmb/AxInt36mb": "fMRI_MB_int_26",
    }
    for folder, reference in pairs.items():
        judge = nib.as_closest_canonical(nib.load(root / "Ref" / f"{reference}.nii"))
        for time_point, path in enumerate(sorted((root / "In" / "Orientation" / folder).iterdir())):
            scan = dicom.open_scan([path.read_bytes()])
            ours = nib.as_closest_canonical(nib.Nifti1Image(scan.values, scan.affine))
            assert np.allclose(ours.affine, judge.affine, atol=1e-3)
            assert np.array_equal(ours.get_fdata(), judge.get_fdata()[..., time_point])


def test_order_of_files_does_not_matter() -> None:
    files = [data_of(image(number)) for number in range(6)]
    (first,), (second,) = volumes(decoded(*files)), volumes(decoded(*files[::-1]))
    assert first.pop("items") == ["0", "1", "2", "3", "4", "5"]
    assert second.pop("items") == ["5", "4", "3", "2", "1", "0"]
    assert first == second


def test_volume_row_and_slices() -> None:
    made = decoded(*[image(n, SliceThickness=9, BodyPartExamined="CHEST") for n in range(5)])
    (row,) = volumes(made)
    assert row["shape"] == [8, 6, 5] and row["orientation"] == "LPS" and row["geometry_flags"] == []
    assert np.allclose(row["spacing"], [0.5, 0.7, 2.5])  # not SliceThickness
    assert row["rescale_applied"] and row["group_id"] == hide("patient", "4711")
    assert json.loads(row["header"])["SliceThickness"] == 9
    slices = samples(made)
    assert [s.columns["slice_index"] for s in slices] == list(range(5))
    assert {s.columns["volume_id"] for s in slices} == {row["volume_id"]}
    assert slices[0].columns["anatomy"] == "chest" and slices[0].columns["view"] == "axial"
    assert slices[0].columns["pixel_spacing"] == pytest.approx([0.7, 0.5])


def test_one_value_is_one_grey_in_all_slices() -> None:
    made = decoded(*[
        image(n, np.full((6, 8), 124, np.int16), Modality="MR", WindowCenter=100 + n, WindowWidth=200) for n in range(5)
    ])
    assert len({int(v) for s in samples(made) for v in s.pixels.ravel()}) == 1


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        (lambda n: {"ImagePositionPatient": [0, 0, 2.5 * n + 5 * (n > 2)]}, ["gap", "non_uniform"]),
        (lambda n: {"ImagePositionPatient": [0, 0, 2.5 * n + 0.4 * (n == 2)]}, ["non_uniform"]),
        (lambda n: {"ImagePositionPatient": [0, n, 2.5 * n]}, ["tilt"]),
    ],
)
def test_odd_geometry_is_flagged(change: Callable[[int], dict[str, Any]], flags: list[str]) -> None:
    (row,) = volumes(decoded(*[image(n, **change(n)) for n in range(6)]))
    assert row["geometry_flags"] == flags


def test_a_tilted_gantry_gives_a_sheared_affine() -> None:
    (row,) = volumes(decoded(*[image(n, ImagePositionPatient=[0, n, 2.5 * n]) for n in range(6)]))
    assert np.allclose(np.array(row["affine"]).reshape(4, 4)[:3, 2], [0, -1, 2.5])


def test_a_series_is_parted_by_what_it_holds() -> None:
    axial = [image(n, AcquisitionNumber=1) for n in range(5)]
    again = [image(n + 10, AcquisitionNumber=2, ImagePositionPatient=[-10, -20, 2.5 * n]) for n in range(4)]
    turned = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    sagittal = [image(n + 20, ImagePositionPatient=[n, 0, 0], **turned) for n in range(4)]
    scout = image(30, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    large = image(31, np.zeros((9, 9), np.int16))
    other = [image(n + 40, PatientID="4712") for n in range(4)]
    made = decoded(*axial, *again, *sagittal, scout, large, *other)
    assert sorted(len(row["items"]) for row in volumes(made)) == [4, 4, 4, 5]
    assert all(row["geometry_flags"] == [] for row in volumes(made))
    alone = [s for s in samples(made) if "volume_id" not in s.columns]
    assert [("localizer" in [label.name for label in s.labels]) for s in alone] == [True, False]


def test_slices_at_one_place_are_flagged_and_kept() -> None:
    made = decoded(*[image(n) for n in range(5)], image(9, ImagePositionPatient=[-10, -20, 5]))
    (row,) = volumes(made)
    assert row["geometry_flags"] == ["duplicate_slices"] and len(row["items"]) == 5
    assert [s.items for s in samples(made) if "volume_id" not in s.columns] == [("5",)]
    assert codes(decoded(image(0), image(0))) == {"1": "DUPLICATE_FILE"}


def test_a_bad_slice_costs_itself() -> None:
    files = [data_of(image(n, syntax=ExplicitVRLittleEndian)) for n in range(7)]
    bad = image(3)
    bad.compress(RLELossless)
    bad.PixelData = bad.PixelData[:30] + b"\xff" * (len(bad.PixelData) - 30)
    made = decoded(*files[:3], bad, *files[4:])
    assert codes(made) == {"3": "PIXELS_CORRUPT"}
    (row,) = volumes(made)
    assert row["items"] == ["0", "1", "2", "4", "5", "6"] and row["geometry_flags"] == ["gap", "non_uniform"]
    made = decoded(*files[:2], bad, files[4])
    assert codes(made) == {"2": "PIXELS_CORRUPT"} and not volumes(made) and len(samples(made)) == 3


def still(pixels: npt.NDArray[Any], **elements: Any) -> Sample:
    """What becomes of one picture that is not CT."""
    plain = {"RescaleSlope": None, "RescaleIntercept": None, "Modality": "DX"}
    return one(decoded(image(0, pixels, **{**plain, **elements})))


def test_windows_and_polarity() -> None:
    ramp = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    full = still(ramp)
    assert full.columns["window"] == [0, 4080] and full.pixels.ravel()[[0, -1]].tolist() == [0, 255]
    assert np.array_equal(still(ramp, PhotometricInterpretation="MONOCHROME1").pixels, 255 - full.pixels)
    assert still(ramp, WindowCenter=[2048, 1], WindowWidth=[4096, 1]).columns["window"] == [0, 4095]
    exact = still(ramp, WindowCenter=2048, WindowWidth=4096, VOILUTFunction="LINEAR_EXACT")
    assert exact.columns["window"] == [0, 4096]
    assert still(ramp, WindowCenter=2048, WindowWidth=0).columns["window"] == [0, 4080]
    padded = ramp.copy()
    padded[0, 0] = 65000
    assert still(padded, PixelPaddingValue=65000).columns["window"] == [16, 4080]
    assert still((ramp // 16).astype(np.uint8) // 2).pixels.max() == 127  # 8 bits are shown as they are
    assert still(ramp, RescaleSlope=0, RescaleIntercept=5).columns["window"] == [0, 4080]


def test_lookup_tables() -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    falling = table_of(65535 - 257 * np.arange(256))
    assert np.array_equal(still(ramp, VOILUTSequence=[falling]).pixels.ravel(), np.arange(255, -1, -1))
    assert still(ramp, VOILUTSequence=[falling]).columns["window"] is None
    assert still(ramp, ModalityLUTSequence=[table_of(3 * np.arange(256))]).columns["window"] == [0, 765]


def test_a_table_that_does_not_fit_refuses_the_picture() -> None:
    short = table_of(np.arange(4))
    short.LUTData = b"\0\0"
    made = decoded(image(0, RescaleSlope=None, RescaleIntercept=None, VOILUTSequence=[short]))
    assert codes(made) == {"0": "PIXELS_CORRUPT"}


def table_of(entries: npt.NDArray[Any]) -> Dataset:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [len(entries), 0, 16])
    table.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return table


def test_stored_bits_are_what_counts() -> None:
    stored = np.array([[-2048, -1], [0, 2047]], np.int16)
    with_overlay = (stored & 0x0FFF) | 0x5000  # an overlay in the high bits
    made = still(with_overlay.astype(np.int16), BitsStored=12, HighBit=11)
    assert made.columns["window"] == [-2048, 2047] and made.pixels.tolist() == [[0, 127], [128, 255]]


def test_colour_becomes_rgb() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    assert np.array_equal(still(red, PlanarConfiguration=0).pixels, red)
    planes = red.transpose(2, 0, 1).tobytes()
    assert np.array_equal(still(red, PlanarConfiguration=1, PixelData=planes).pixels, red)
    for name in ("SC_ybr_full_uncompressed", "SC_ybr_full_422_uncompressed", "SC_rgb_rle_16bit", "SC_rgb"):
        if (path := get_testdata_file(f"{name}.dcm", download=False)) is not None:
            stripes = one(decoded(Path(str(path)).read_bytes())).pixels[5::10, 50]
            assert np.abs(stripes[[0, 2, 4]].astype(int) - np.diag([255] * 3)).max() <= 5


def test_ct_windows_by_name() -> None:
    made = decoded(image(0), params=IngestParams(windows=("lung", "bone")))
    assert [(s.locator, s.columns["window"]) for s in samples(made)] == [
        ("lung", [-1350, 150]), ("bone", [-770, 1730]),
    ]
    raw = one(decoded(image(0, RescaleSlope=None, RescaleIntercept=None)))  # not in Hounsfield units
    assert raw.locator == "" and raw.columns["modality"] == "CT"


def test_facts_become_columns_and_labels() -> None:
    made = still(
        np.zeros((4, 4), np.uint8), ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None,
        ImagerPixelSpacing=[0.2, 0.2], ViewPosition="LL", BodyPartExamined="CHEST", PatientSex="F", PatientAge="064Y",
        PatientOrientation=["P", "F"], LossyImageCompression="01",
    )
    assert made.columns == {
        "view": "left lateral", "slice_index": None, "window": [0, 255], "pixel_spacing": None, "orientation": "PI",
        "modality": "DX", "anatomy": "chest", "lossy": True,
    }
    assert {(label.name, label.value) for label in made.labels} == {("patient sex", "F"), ("patient age", "60-69")}


def test_a_cine_gives_evenly_spaced_frames() -> None:
    frames = np.stack([np.full((4, 4), n, np.uint8) for n in range(20)])
    cine = image(0, frames[0], NumberOfFrames=20, PixelData=frames.tobytes(), Modality="US", RescaleSlope=None)
    made = samples(decoded(cine, params=IngestParams(frames=4)))
    assert [(s.locator, s.columns["slice_index"], int(s.pixels[0, 0])) for s in made] == [
        ("frame:2", 2, 2), ("frame:7", 7, 7), ("frame:12", 12, 12), ("frame:17", 17, 17),
    ]


def enhanced(places: list[float]) -> Dataset:
    """An enhanced CT with a frame at each place and a rescale of its own."""
    stack = np.stack([np.full((4, 5), 100, np.int16) for _ in places])
    in_groups = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    made = image(
        0, stack[0], SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=len(places), PixelData=stack.tobytes(),
        **dict.fromkeys(in_groups),
    )
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = [2, 3], [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    made.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number, z in enumerate(places):
        frame, position, units = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, z]
        units.RescaleSlope, units.RescaleIntercept, units.RescaleType = 1, 10 * number, "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [units]
        frames.append(frame)
    made.PerFrameFunctionalGroupsSequence = frames
    return made


def test_enhanced_multi_frame_is_a_volume_when_it_is_one_scan() -> None:
    data = data_of(enhanced([8, 6, 4, 2, 0]))
    (row,) = volumes(decoded(data))
    assert row["items"] == ["0"] and row["shape"] == [5, 4, 5] and np.allclose(row["spacing"], [3, 2, 2])
    assert dicom.open_scan([data]).values[0, 0].tolist() == [140, 130, 120, 110, 100]  # sorted from below
    made = decoded(enhanced([0, 2, 4, 6, 0, 2, 4, 6]))
    assert not volumes(made) and len(samples(made)) == 8


@pytest.mark.parametrize(
    ("elements", "code"),
    [
        ({"SOPClassUID": ComprehensiveSRStorage, "PixelData": None}, "NOT_AN_IMAGE"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "NOT_AN_IMAGE"),
        ({"PixelData": None}, "NO_PIXELS"),
        ({"PixelData": bytes(94)}, "PIXELS_TRUNCATED"),
        ({"Rows": 0}, "DIMENSIONS_IMPLAUSIBLE"),
        ({"Rows": 65535, "Columns": 65535}, "DIMENSIONS_IMPLAUSIBLE"),
        ({"NumberOfFrames": 2**31 - 1}, "DIMENSIONS_IMPLAUSIBLE"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "MOSAIC"]}, "MOSAIC_UNSUPPORTED"),
    ],
)
def test_what_cannot_be_an_image_is_refused(elements: dict[str, Any], code: str) -> None:
    made = decoded(image(1), image(7, **elements), image(2))
    assert codes(made) == {"1": code} and len(samples(made)) == 2


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.3.4", "1.2.840.10008.1.2.4.51"])
def test_transfer_syntaxes_without_a_decoder_are_named(syntax: str) -> None:
    bad = image(7, syntax=syntax, PixelData=encapsulate([bytes(96)]))
    bad["PixelData"].VR, bad["PixelData"].is_undefined_length = "OB", True
    file = io.BytesIO()
    bad.save_as(file, implicit_vr=False, little_endian=True, force_encoding=True)
    made = decoded(image(1), file.getvalue(), image(2))
    assert codes(made) == {"1": "TRANSFER_SYNTAX_UNSUPPORTED"} and len(samples(made)) == 2


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_a_cut_codestream_is_never_filled_up(syntax: str) -> None:
    good = image(0, np.random.default_rng(1).integers(0, 4000, (64, 64), np.int16))
    good.compress(syntax)
    stream = get_frame(good.PixelData, 0, number_of_frames=1)
    assert codes(decoded(good)) == {}
    for share in (0.2, 0.5, 0.9):
        good.PixelData = encapsulate([stream[: int(len(stream) * share)]])
        assert codes(decoded(good)) == {"0": "PIXELS_CORRUPT"}


def test_a_codec_that_dies_costs_one_file(sample_data: Path) -> None:
    data = (sample_data / "dicom" / "pydicom_data" / "JPEG-LL.dcm").read_bytes()  # only gdcm reads it
    with pytest.raises(BrokenExecutor):
        dicom._gdcm().submit(os.abort).result()
    assert codes(decoded(data)) == {"0": "PIXELS_CORRUPT"}
    assert codes(decoded(data)) == {}


def test_a_codestream_of_another_size_is_not_allocated() -> None:
    size = np.array([2**31, 2**31, 0, 0], ">u4").tobytes()
    bomb = image(0, PixelData=encapsulate([b"\xff\x4f\xff\x51\x00\x29\x00\x00" + size + bytes(40)]))
    bomb["PixelData"].VR, bomb["PixelData"].is_undefined_length = "OB", True
    bomb.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    assert codes(decoded(bomb)) == {"0": "PIXELS_CORRUPT"}


def deflated(dataset: Dataset, more: int = 0) -> bytes:
    """A file in the deflated transfer syntax whose stream unpacks to `more` extra bytes."""
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = data_of(dataset)
    if not more:
        return data
    start = 132 + 12 + int.from_bytes(data[140:144], "little")
    plain = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    head = b"\x09\x00\x01\x00OB\0\0" + more.to_bytes(4, "little")
    at = plain.index(b"\x10\x00\x20\x00LO")  # before group 0010, so that a reader of the header has to pass it
    stream = packer.compress(plain[:at] + head)
    for _ in range(more >> 20):
        stream += packer.compress(bytes(1 << 20))
    return data[:start] + stream + packer.compress(plain[at:]) + packer.flush()


def test_deflated_files_are_read_and_deflate_bombs_are_not(tmp_path: Path) -> None:
    plain, packed = one(decoded(image(1))), one(decoded(deflated(image(1))))
    assert np.array_equal(plain.pixels, packed.pixels) and plain.columns == packed.columns
    bomb = deflated(image(2), 300 << 20)
    assert len(bomb) < 1 << 20
    (tmp_path / "bomb.dcm").write_bytes(bomb)
    tracemalloc.start()
    assert codes(decoded(bomb)) == {"0": "DEFLATE_LIMIT"}
    assert len(listed(tmp_path)) == 1
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()
    assert codes(decoded(deflated(image(1))[:-20])) == {"0": "DICOM_UNREADABLE"}


# the connector


def listed(root: Path, index: FileIndex | None = None, **params: Any) -> list[Partition]:
    given = connector.Params(root=str(root), **params)
    return list(connector.list_partitions("s", given, index or FileIndex(None)))


def read(root: Path, **params: Any) -> list[Item]:
    given = connector.Params(root=str(root), **params)
    return [item for partition in listed(root, **params) for item in connector.read(partition, given)]


def test_files_of_a_series_are_kept_together(tmp_path: Path) -> None:
    for series in range(6):
        for number in range(5):
            folder = tmp_path / str(number)  # a series is scattered over folders
            folder.mkdir(exist_ok=True)
            image(number, SeriesInstanceUID=f"1.2.3.{series}").save_as(folder / f"{series}", enforce_file_format=True)
    partitions = listed(tmp_path, capacity=10)
    assert len(partitions) > 2 and sum(len(p.refs) for p in partitions) == 30
    given = connector.Params(root=str(tmp_path), capacity=10)
    items = [item for p in partitions for item in connector.read(p, given)]
    runs = [group for group, _ in groupby(items, key=lambda item: item.group)]
    assert len(runs) == len(set(runs)) == 6
    assert all(item.kind == "dicom" and item.error is None and len(item.files["main"]) > 100 for item in items)
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert [p.key for p in listed(moved, capacity=10)] == [p.key for p in partitions]


def test_series_without_uid_go_by_folder_and_study(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for number in range(4):
            image(number, SeriesInstanceUID="").save_as(tmp_path / folder / str(number), enforce_file_format=True)
    assert len({item.group for item in read(tmp_path)}) == 2
    anonymous = {"SeriesInstanceUID": None, "StudyInstanceUID": None, "FrameOfReferenceUID": None}
    image(9, **anonymous).save_as(tmp_path / "9", enforce_file_format=True)
    image(8, **anonymous).save_as(tmp_path / "8", enforce_file_format=True)
    assert len({item.group for item in read(tmp_path)}) == 4


def test_the_index_spares_reading_and_holds_no_identifier(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    whose = {"SeriesInstanceUID": "1.2.987654321", "PatientName": "Doe^Jane"}
    image(1, **whose).save_as(root / "a.dcm", enforce_file_format=True)
    os.utime(root / "a.dcm", ns=(time.time_ns(), time.time_ns() - 10**11))
    with FileIndex(tmp_path / "index") as index:
        first = listed(root, index)
    content = (tmp_path / "index").read_bytes() + repr(first).encode()
    assert b"987654321" not in content and b"Doe" not in content and b"4711" not in content
    (root / "a.dcm").chmod(0)
    index = FileIndex(tmp_path / "index")
    index.ask = partial(_known_only, index, index.ask)  # type: ignore[method-assign]
    assert listed(root, index) == first


def _known_only(index: FileIndex, ask: Callable[..., Any], path: Path, name: str, fn: Callable[[Path], Any]) -> Any:
    def opened(path: Path) -> Any:
        raise AssertionError(f"{path} was opened again for {name}")

    return ask(path, name, opened)


def test_globs_choose_files(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm", "c.txt"):
        image(1).save_as(tmp_path / name, enforce_file_format=True)
    assert [item.id for item in read(tmp_path, include=["*.dcm"], exclude=["b*"])] == ["a.dcm"]
    (item,) = read(tmp_path / "a.dcm", modality="XC", anatomy="skin")
    assert item.id == "a.dcm" and item.facts == {"modality": "XC", "anatomy": "skin"}


def test_what_is_no_dicom_is_an_item_with_an_error(tmp_path: Path) -> None:
    image(1).save_as(tmp_path / "good.dcm", enforce_file_format=True)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "noise").write_bytes(b"\x08\0" + np.random.default_rng(0).bytes(500))
    directory = image(2, PixelData=None)
    directory.SOPClassUID = MediaStorageDirectoryStorage
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    bare = data_of(image(3))
    (tmp_path / "headless").write_bytes(bare[132 + 12 + int.from_bytes(bare[140:144], "little") :])
    found = {item.id: item.error for item in read(tmp_path)}
    assert found["good.dcm"] is None and found["headless"] is None
    for name in ("notes.txt", "empty", "noise"):
        assert isinstance(found[name], Terminal) and found[name].code == "NOT_DICOM"
    assert isinstance(found["DICOMDIR"], Dropped) and found["DICOMDIR"].code == "DICOMDIR"


def test_headless_files_decode_like_others() -> None:
    whole = data_of(image(3))
    bare = whole[132 + 12 + int.from_bytes(whole[140:144], "little") :]
    assert np.array_equal(one(decoded(bare)).pixels, one(decoded(whole)).pixels)
    cut = data_of(image(3))[132:]  # file meta without a preamble
    assert np.array_equal(one(decoded(cut)).pixels, one(decoded(whole)).pixels)


def test_members_of_a_zip_are_items(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"s/{number}", data_of(image(number)))
        archive.writestr("s/readme.txt", "hello")
        archive.writestr("__MACOSX/._0", "x")
    image(9).save_as(tmp_path / "9.dcm", enforce_file_format=True)
    items = read(tmp_path)
    good = [item for item in items if item.error is None]
    assert [item.id for item in good] == ["9.dcm", *(f"scan.zip!s/{n}" for n in range(4))]
    assert len({item.group for item in good}) == 1 and good[3].files["main"] == data_of(image(2))
    assert [(item.id, item.error.code) for item in items if item.error] == [("scan.zip!s/readme.txt", "NOT_DICOM")]  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["9.dcm", "scan.zip"]  # nothing was unpacked


@pytest.mark.parametrize("member", ["../../evil", "/etc/evil", "C:/evil"])
def test_an_unsafe_zip_is_refused_whole(tmp_path: Path, member: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good", data_of(image(1)))
        archive.writestr(member, data_of(image(2)))
    (item,) = read(tmp_path)
    assert item.id == "a.zip" and isinstance(item.error, Terminal) and item.error.code == "ARCHIVE_UNSAFE"


def test_empty_and_broken_zips_are_counted(tmp_path: Path) -> None:
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    found = {item.id: item.error.code for item in read(tmp_path)}  # type: ignore[union-attr]
    assert found["empty.zip"] == "ARCHIVE_EMPTY" and found["broken.zip"].startswith("ARCHIVE_")


def test_a_file_that_changed_or_went_after_listing_may_be_tried_again(tmp_path: Path) -> None:
    for name in "abc":
        image(ord(name)).save_as(tmp_path / name, enforce_file_format=True)
    partitions = listed(tmp_path)
    (tmp_path / "a").write_bytes(b"other")
    (tmp_path / "b").unlink()
    given = connector.Params(root=str(tmp_path))
    found = {item.id: item.error for p in partitions for item in connector.read(p, given)}
    assert isinstance(found["a"], Transient) and found["a"].code == "SOURCE_CHANGED"
    assert isinstance(found["b"], Transient) and found["b"].code == "SOURCE_UNREADABLE"
    assert found["c"] is None


def test_every_sample_file_is_kept_or_refused(sample_data: Path) -> None:
    items = read(sample_data / "dicom", capacity=50)
    outcome: dict[str, str] = {item.id: item.error.code for item in items if item.error}  # type: ignore[attr-defined]
    for _, run in groupby((item for item in items if item.error is None), key=lambda item: item.group):
        together = list(run)
        for made in dicom.decode(together, IngestParams(), hide):
            if isinstance(made, Refused):
                assert outcome.setdefault(made.item, made.error.code) == made.error.code
            else:
                outcome.update(dict.fromkeys(getattr(made, "items", ()), "kept"))
    assert outcome.keys() == {item.id for item in items}
    assert list(outcome.values()).count("kept") >= 80
    assert not {"PIXELS_CORRUPT", "DICOM_UNREADABLE"} & set(outcome.values())
