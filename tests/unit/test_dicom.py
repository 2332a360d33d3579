"""DICOM: listing, reading, decoding, geometry. SimpleITK is the judge of geometry and values, nibabel of mosaics."""

from __future__ import annotations

import io
import json
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dicomfiles import OBLIQUE, codes, data_of, decoded, image, listed, one, samples, volumes
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from infra.keys import pseudonym
from transforms.decoded import IngestParams, Sample
from transforms.decoders import dicom

hide = partial(pseudonym, b"test")


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
    twice = volumes(decoded(enhanced([0, 2, 4, 6, 0, 2, 4, 6])))
    assert [row["geometry_flags"] for row in twice] == [["duplicate_slices"]] * 2
    assert not volumes(decoded(enhanced([0, 2, 4, 6, 9, 9])))  # not every frame is part of a scan


@pytest.mark.parametrize(
    ("elements", "code"),
    [
        ({"SOPClassUID": ComprehensiveSRStorage, "PixelData": None}, "NOT_AN_IMAGE"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2"}, "NOT_AN_IMAGE"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "REFERENCE_MISSING"),
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
