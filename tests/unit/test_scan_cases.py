"""Bad and hard DICOM, case by case: the numbers are those of the list of cases that every DICOM pipeline meets.

    13 polyglot preamble                 below
    14 deflate bomb                      test_dicom.py: test_deflated_files_are_read_and_deflate_bombs_are_not; below
    15 dimensions against bytes          test_dicom.py: test_what_cannot_be_an_image_is_refused
    16 crashing codec                    below; test_dicom.py: test_a_cut_codestream_is_never_filled_up,
                                         test_a_codestream_of_another_size_is_not_allocated
    17 lying transfer syntax, no meta    below; test_dicom_connector.py: test_headless_files_decode_like_others
    18 no PixelSpacing                   below
    19 mixed series                      test_dicom.py: test_a_series_is_parted_by_what_it_holds,
                                         test_slices_at_one_place_are_flagged_and_kept
    20 gaps, uneven steps                test_dicom.py: test_odd_geometry_is_flagged, test_a_bad_slice_costs_itself
    21 gantry tilt                       test_dicom.py: test_a_tilted_gantry_gives_a_sheared_affine
    22 polarity and colour               below; test_dicom.py: test_windows_and_polarity, test_colour_becomes_rgb
    23 stored bits, signs, padding       below; test_dicom.py: test_stored_bits_are_what_counts
    24 rescale, VOI LUT, windows         below; test_dicom.py: test_lookup_tables, test_windows_and_polarity
    25 multi-frame, 4-D, cine            below; test_dicom.py: test_a_cine_gives_evenly_spaced_frames,
                                         test_enhanced_multi_frame_is_a_volume_when_it_is_one_scan
    26 what is no image                  below; test_segments.py
    27 to 29                             test_deidentify.py
    30 DICOMDIR, links                   below
    31 conflicting and missing instances below; test_dicomweb.py: test_lost_cut_and_unlisted_instances_cost_themselves
"""

from __future__ import annotations

import io
import os
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicomfiles import codes, data_of, decoded, image, one, read, samples, volumes
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    RLELossless,
    TwelveLeadECGWaveformStorage,
)

from infra.errors import Terminal
from transforms.decoded import IngestParams
from transforms.decoders import dicom
from transforms.scans import guarded
from transforms.scans.guarded import Ended, limited

PLAIN = {"RescaleSlope": None, "RescaleIntercept": None, "Modality": "DX"}


def test_case_13_a_preamble_that_is_a_program_is_neither_read_nor_kept() -> None:
    program = b"MZ" + b"\x90" * 126
    plain = data_of(image(1))
    (kept,) = decoded(program + plain[128:])
    assert np.array_equal(one([kept]).pixels, one(decoded(plain)).pixels)
    assert one([kept]).encoded is None  # stored as a picture of its own, never as the file


def nested(depth: int, items: int) -> bytes:
    """A file with a private sequence of many empty items, some levels deep."""
    holder = image(1)
    plain = data_of(holder)
    at = plain.index(b"\x10\x00\x20\x00LO")
    item, end = b"\xfe\xff\x00\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
    begin, opened, closed = b"\x09\0\x01\x10SQ\0\0\xff\xff\xff\xff", item[:4] + b"\xff" * 4, b"\xfe\xff\x0d\xe0\0\0\0\0"
    body = (opened + begin) * depth + item * items + (end + closed) * depth
    return plain[:at] + begin + body + end + plain[at:]


def test_case_14_a_header_that_explodes_costs_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = nested(0, 1000)
    assert codes(decoded(fine)) == {}
    bomb = nested(0, 300_000)  # 2.4 MB of items
    restart(monkeypatch, MEMORY=300 << 20)
    large = image(5, np.zeros((1200, 1000), np.int16))
    made = codes(decoded(image(3), bomb, large))
    assert made.keys() == {"1"} and made["1"] in ("PARSE_LIMIT", "PARSE_CRASHED", "DICOM_UNREADABLE")
    restart(monkeypatch, MEMORY=3 << 30, SECONDS=1)
    assert codes(decoded(bomb)) == {"0": "PARSE_LIMIT"}
    assert codes(decoded(nested(3000, 1))) == {"0": "DICOM_UNREADABLE"}


def restart(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    """Let the next call start a child with other limits."""
    for name, most in limits.items():
        monkeypatch.setattr(guarded, name, most)
    if guarded._CHILD is not None:
        guarded._CHILD.close()


def crash() -> None:
    os.abort()


def hoard() -> int:
    return len(bytes(8 << 30))


def loop() -> None:
    time.sleep(60)


def refuse() -> None:
    raise Terminal("NO", "no")


def test_case_16_a_call_that_crashes_hoards_or_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limited(len, b"abc") == 3
    first = guarded._CHILD
    assert limited(len, b"abcd") == 4 and guarded._CHILD is first  # one child for many calls
    with pytest.raises(Terminal, match="NO"):
        limited(refuse)
    assert guarded._CHILD is first
    for call, how in ((crash, "crashed"), (hoard, "memory")):
        with pytest.raises(Ended) as ended:
            limited(call)
        assert ended.value.how == how and limited(len, b"a") == 1
    restart(monkeypatch, SECONDS=1)
    with pytest.raises(Ended) as ended:
        limited(loop)
    assert ended.value.how == "time" and limited(len, b"a") == 1
    assert guarded._CHILD is not None
    guarded._CHILD._process.kill()  # something else ended it: the file is not to blame
    assert limited(len, b"ab") == 2


def test_case_16_a_codec_that_dies_costs_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = image(1)
    bad.compress(RLELossless)
    data = data_of(bad)
    assert codes(decoded(data)) == {}
    monkeypatch.setattr("transforms.scans.frames._one_frame", die)
    made = decoded(image(2), data, image(3))
    assert codes(made) == {"1": "DECODE_CRASHED"} and len(samples(made)) == 2


def die(*_: Any) -> None:
    os.abort()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_case_17_every_plain_syntax_gives_the_same_pixels(syntax: str) -> None:
    expected = one(decoded(image(1))).pixels
    made = image(1)
    made.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        made.PixelData = np.frombuffer(made.PixelData, "<i2").astype(">i2").tobytes()
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    assert np.array_equal(one(decoded(file.getvalue())).pixels, expected)


def test_case_17_pixels_count_and_not_what_the_file_says_they_are(sample_data: Path) -> None:
    root = sample_data / "dicom"
    for name in ("pydicom_test_files/MR_small_jp2klossless.dcm", "pydicom_test_files/MR_small_jpeg_ls_lossless.dcm"):
        honest = (root / name).read_bytes()
        dataset = dcmread(io.BytesIO(honest))
        stream = dataset.PixelData
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OW", False
        for pixels in (stream, stream[stream.index(b"\xff\xd8\xff" if b"ls" in name.encode() else b"\xff\x4f\xff"):]):
            dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
            file = io.BytesIO()
            dataset.save_as(file, enforce_file_format=True)
            made = decoded(file.getvalue())
            if pixels is stream or b"ls" in name.encode():
                assert np.array_equal(one(made).pixels, one(decoded(honest)).pixels)


def test_case_17_plain_pixels_under_a_compressed_name() -> None:
    honest = data_of(image(1))
    lying = honest.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0", 1)
    assert lying != honest and np.array_equal(one(decoded(lying)).pixels, one(decoded(honest)).pixels)


def test_case_18_no_spacing_is_ever_made_up() -> None:
    flat = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    for elements in ({}, {"ImagerPixelSpacing": [0.2, 0.2]}, {"SliceThickness": 3}):
        (made,) = samples(decoded(image(0, **PLAIN, **flat, **elements)))
        assert made.columns["pixel_spacing"] is None
    for wrong in ([0, 0], [-1, 1]):
        (made,) = samples(decoded(image(0, **PLAIN, PixelSpacing=wrong)))
        assert made.columns["pixel_spacing"] is None
    assert not volumes(decoded(*[image(n, PixelSpacing=None) for n in range(5)]))


def test_case_22_palettes_and_polarity() -> None:
    indices = np.arange(16, dtype=np.uint8).reshape(4, 4)
    tables = {}
    for colour, slope in (("Red", 4096), ("Green", 2048), ("Blue", 0)):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [16, 0, 16]
        tables[f"{colour}PaletteColorLookupTableData"] = (np.arange(16) * slope).astype("<u2").tobytes()
    made = one(decoded(image(0, indices, **PLAIN, PhotometricInterpretation="PALETTE COLOR", **tables)))
    assert made.pixels[0, 1].tolist() == [16, 8, 0] and made.pixels[3, 3].tolist() == [240, 120, 0]
    scan = [image(n, PhotometricInterpretation="MONOCHROME1", Modality="MR") for n in range(5)]
    turned = [image(n, Modality="MR") for n in range(5)]
    for dark, bright in zip(samples(decoded(*scan)), samples(decoded(*turned)), strict=True):
        assert np.abs(dark.pixels.astype(int) + bright.pixels - 255).max() <= 1


def test_case_23_signs_and_padding() -> None:
    negative = np.array([[-5, 3], [100, -2000]], np.int16)
    made = one(decoded(image(0, negative, **PLAIN, PixelPaddingValue=-2000)))
    assert made.columns["window"] == [-5, 100]
    low = np.array([[0x0FFF, 1], [2, 0]], np.uint16)  # -1 in 12 bits
    made = one(decoded(image(0, low, **PLAIN, BitsStored=12, HighBit=11, PixelRepresentation=1)))
    assert made.columns["window"] == [-1, 2]
    ranged = one(decoded(image(0, np.array([[1, 50], [60, 7]], np.uint16), **PLAIN, PixelPaddingValue=50,
                               PixelPaddingRangeLimit=60)))
    assert ranged.columns["window"] == [1, 7]


def test_case_24_what_counts_before_what() -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [256, 0, 16])
    table.add_new("LUTData", "OW", (65535 - 257 * np.arange(256)).astype("<u2").tobytes())
    both = one(decoded(image(0, ramp, **PLAIN, VOILUTSequence=[table], WindowCenter=[128, 9], WindowWidth=[256, 9])))
    assert both.columns["window"] == [0, 255]  # the first window, and the window before the table
    stored = [image(n, Modality="PT", Units="BQML", RescaleSlope=0.5 + n, RescaleIntercept=0) for n in range(5)]
    (row,) = volumes(decoded(*stored))
    scan = dicom.open_scan([data_of(s) for s in stored])
    expected = np.frombuffer(stored[3].PixelData, np.int16).reshape(6, 8).T * np.float32(3.5)
    assert row["rescale_applied"] and np.array_equal(scan.values[:, :, 3], expected)  # each slice has its own slope


def enhanced(places: list[tuple[float, dict[str, Any]]], **elements: Any) -> Dataset:
    """An enhanced MR: z of each frame, and what else its functional groups say: {group: {keyword: value}}."""
    stack = np.stack([np.full((4, 5), 10 * n, np.int16) for n in range(len(places))])
    away = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
                          "RescaleIntercept"))
    made = image(0, stack[0], SOPClassUID=EnhancedMRImageStorage, Modality="MR", NumberOfFrames=len(places),
                 PixelData=stack.tobytes(), **away, **elements)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = [2, 3], [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], []
    for z, groups in places:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, z]
        frame.PlanePositionSequence = [position]
        for group, said in groups.items():
            inner = Dataset()
            for keyword, value in said.items():
                setattr(inner, keyword, value)
            setattr(frame, group, [inner])
        made.PerFrameFunctionalGroupsSequence.append(frame)
    return made


@pytest.mark.parametrize("group, keyword", [
    ("FrameContentSequence", "TemporalPositionIndex"), ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"), ("FrameContentSequence", "StackID"),
])
def test_case_25_four_dimensions_of_one_file_are_several_volumes(group: str, keyword: str) -> None:
    places = [(2.0 * z, {group: {keyword: t if keyword != "StackID" else str(t)}}) for z in range(4) for t in (1, 2, 3)]
    data = data_of(enhanced(places))
    made = decoded(data)
    rows = volumes(made)
    assert [row["geometry_flags"] for row in rows] == [[]] * 3 and len({row["volume_id"] for row in rows}) == 3
    for t, row in enumerate(rows):
        assert f'"frame":{t},"frames":3' in row["header"]
        assert dicom.open_scan([data], t).values[0, 0].tolist() == [10 * (3 * z + t) for z in range(4)]
    assert len({s.locator for s in samples(made)}) == len(samples(made)) == 12
    assert len(volumes(decoded(data, params=IngestParams(frames=2)))) == 2


def test_case_25_dimension_indices_part_frames_that_nothing_else_does() -> None:
    indices = [(t, z) for t in (1, 2) for z in range(4)]
    places = [(2.0 * z, {"FrameContentSequence": {"DimensionIndexValues": [t, z + 1]}}) for t, z in indices]
    four = enhanced(places)
    pointers = []
    for tag in (0x00080008, 0x00200032):
        pointer = Dataset()
        pointer.DimensionIndexPointer = tag
        pointers.append(pointer)
    four.DimensionIndexSequence = pointers
    assert [row["geometry_flags"] for row in volumes(decoded(four))] == [[], []]


def test_case_25_the_parts_of_a_concatenation_are_one_volume() -> None:
    parts = [
        enhanced([(2.0 * z, {}) for z in range(first, first + 3)], ConcatenationUID="1.2.55", InConcatenationNumber=n,
                 SOPInstanceUID=f"1.2.56.{n}", InstanceNumber=n)
        for n, first in ((1, 0), (2, 3))
    ]
    (row,) = volumes(decoded(*parts))
    assert row["items"] == ["0", "1"] and row["shape"] == [5, 4, 6] and row["geometry_flags"] == []
    assert dicom.open_scan([data_of(p) for p in parts]).values.shape == (5, 4, 6)
    (alone,) = volumes(decoded(enhanced([(2.0 * z, {}) for z in range(4)])))
    assert alone["shape"] == [5, 4, 4]


def test_case_26_what_is_no_image_is_counted() -> None:
    kinds = (ComprehensiveSRStorage, KeyObjectSelectionDocumentStorage, GrayscaleSoftcopyPresentationStateStorage,
             EncapsulatedPDFStorage, TwelveLeadECGWaveformStorage)
    made = decoded(image(0), *[image(n + 9, SOPClassUID=kind, PixelData=None) for n, kind in enumerate(kinds)])
    assert codes(made) == {str(n): "NOT_AN_IMAGE" for n in range(1, 6)} and len(samples(made)) == 1


def medium(root: Path, *names: list[str]) -> Path:
    """A folder with slices 0 to 3 in IMAGES, and a DICOMDIR of the files with these names."""
    (root / "images").mkdir(parents=True)
    for n in range(4):
        image(n).save_as(root / "images" / f"im{n}", enforce_file_format=True)
    table = image(9, PixelData=None)
    table.SOPClassUID = "1.2.840.10008.1.3.10"
    table.DirectoryRecordSequence = []
    for name in names:
        record = Dataset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such names are not allowed
            record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", name
        table.DirectoryRecordSequence.append(record)
    table.save_as(root / "DICOMDIR", enforce_file_format=True)
    return root


def test_case_30_a_dicomdir_is_a_listing_and_never_a_way_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    image(7).save_as(secret, enforce_file_format=True)
    root = medium(
        tmp_path / "cd", ["IMAGES", "IM0"], ["IMAGES", "IM2"], ["IMAGES", "IM9"], ["..", "secret"],
        ["IMAGES", "../../secret"], [str(secret)], ["LINK"],
    )
    (root / "link").symlink_to(secret)
    folder = {item.id: getattr(item.error, "code", None) for item in read(root, exclude=["link"])}
    broken = {"IMAGES/IM9": "FILE_MISSING", **{f"DICOMDIR!record{n}": "PATH_UNSAFE" for n in (3, 4, 5, 6)}}
    assert folder == {"DICOMDIR": "DICOMDIR", **{f"images/im{n}": None for n in range(4)}, **broken}
    listed = {item.id: getattr(item.error, "code", None) for item in read(root / "DICOMDIR")}
    assert listed == {"DICOMDIR": "DICOMDIR", "images/im0": None, "images/im2": None, **broken}
    (root / "DICOMDIR").write_bytes((root / "DICOMDIR").read_bytes()[:300])
    whole = {item.id for item in read(root, exclude=["link"]) if item.error is None}
    assert whole == {f"images/im{n}" for n in range(4)}


def test_case_30_loops_of_links_are_cut(tmp_path: Path) -> None:
    image(1).save_as(tmp_path / "a", enforce_file_format=True)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert [item.id for item in read(tmp_path)] == ["a"]


def test_zips_in_zips_are_read_and_bombs_are_not(tmp_path: Path) -> None:
    def packed(**entries: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in entries.items():
                archive.writestr(name.replace("_", "."), data)
        return file.getvalue()

    inner = packed(a_dcm=data_of(image(1)), b_dcm=data_of(image(2)))
    (tmp_path / "study.zip").write_bytes(packed(series_zip=inner, c_dcm=data_of(image(3))))
    items = read(tmp_path)
    assert [item.id for item in items] == [
        "study.zip!series.zip!a.dcm", "study.zip!series.zip!b.dcm", "study.zip!c.dcm",
    ] and all(item.error is None for item in items)
    assert items[1].files["main"] == data_of(image(2))
    bomb = packed(**{f"x{n}_zip": packed(big=bytes(60 << 20)) for n in range(4)})
    (tmp_path / "study.zip").write_bytes(bomb)
    assert [item.error.code for item in read(tmp_path)] == ["ARCHIVE_BOMB"]  # type: ignore[union-attr]


def test_case_31_two_files_of_one_uid_and_other_pixels_are_both_refused() -> None:
    other = image(2, np.full((6, 8), 77, np.int16))
    made = decoded(*[image(n) for n in range(5)], other)
    assert codes(made) == {"2": "UID_CONFLICT", "5": "UID_CONFLICT"}
    (row,) = volumes(made)
    assert row["geometry_flags"] == ["gap", "non_uniform"]
    careless = [image(n, SOPInstanceUID="1.2.3.4") for n in range(5)]  # one UID for all, and all at their own place
    assert codes(decoded(*careless)) == {}
