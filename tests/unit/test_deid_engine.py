"""The engine: no planted identifier comes out of a file, what others need does, and every process agrees."""

from __future__ import annotations

import io
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import BASES, KEPT, leaks, nested_at_random, planted, rows_of_table
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from infra.errors import ConfigError, Terminal
from infra.keys import pseudonym
from transforms.deid.elements import EXPLICIT, read
from transforms.deid.embedded import blanks, clean_profile
from transforms.deid.engine import deidentify, deidentify_file
from transforms.deid.profile import OPTIONS, Profile, table, vrs_of
from transforms.deid.values import ages, cleaned, days_of, moved
from transforms.scans.deidentify import quietly

KEY = b"test"
MODIFIED = Profile.of("modified_dates")


def opened(data: bytes) -> Dataset:
    with quietly():
        dataset = dcmread(io.BytesIO(data))
        list(dataset.iterall())
    return dataset


def small(**elements: Any) -> bytes:
    dataset = dcmread(get_testdata_file("CT_small.dcm"))
    with quietly():
        for keyword, element in elements.items():
            setattr(dataset, keyword, element)
        file = io.BytesIO()
        dataset.save_as(file)
    return file.getvalue()


def cleaned_up(profile: Profile = MODIFIED, **elements: Any) -> Dataset:
    return opened(deidentify_file(small(**elements), profile, KEY).data())


@pytest.mark.parametrize("base", BASES)
def test_case_27_no_planted_identifier_comes_out(base: str) -> None:
    data = planted(3, base)
    assert len(leaks(data)) == 7
    for profile in (Profile(), MODIFIED, Profile.of("clean_descriptors", "clean_structured", "clean_graphics")):
        made = deidentify_file(data, profile, KEY)
        assert leaks(made.data()) == []
        assert made.actions.total() > 500
        with quietly():
            before, after = opened(data), opened(made.data())
            changed = [k for k in KEPT if k in before and k != "PixelData" and before[k].value != after.get(k)]
            assert changed == []
            if "PixelData" in before:
                assert np.array_equal(before.pixel_array, after.pixel_array)


def test_case_13_the_preamble_and_the_file_meta_are_new() -> None:
    data = planted(1)
    made = deidentify_file(data, MODIFIED, KEY).data()
    assert data[:2] == b"MZ" and made[:132] == bytes(128) + b"DICM"
    after = opened(made)
    assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
    assert after.file_meta.MediaStorageSOPClassUID == after.SOPClassUID
    assert [e.keyword for e in after.file_meta] == [
        "FileMetaInformationGroupLength", "FileMetaInformationVersion", "MediaStorageSOPClassUID",
        "MediaStorageSOPInstanceUID", "TransferSyntaxUID", "ImplementationClassUID", "ImplementationVersionName",
    ]


@pytest.mark.parametrize("seed", range(25))
def test_random_nesting_never_leaks(seed: int) -> None:
    dataset = dcmread(get_testdata_file("CT_small.dcm"))
    dataset.update(nested_at_random(seed))
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if seed % 2 else ExplicitVRLittleEndian
    with quietly():
        file = io.BytesIO()
        dataset.save_as(file)
    cleaning = Profile.of(*(option for option in OPTIONS if option.startswith("clean")))
    for profile in (MODIFIED, cleaning, Profile.of("retain_safe_private")):
        assert leaks(deidentify_file(file.getvalue(), profile, KEY).data()) == []


def _meta(syntax: str) -> bytes:
    body = EXPLICIT.encode(0x00020010, "UI", syntax.encode())
    return EXPLICIT.encode(0x00020000, "UL", len(body).to_bytes(4, "little")) + body


def _body_length(file: bytes) -> int:
    """What follows the file meta information."""
    at = 144 + int.from_bytes(file[140:144], "little")
    return len(file) - at


def test_two_processes_agree(tmp_path: Path) -> None:
    (tmp_path / "in.dcm").write_bytes(planted(5))
    code = (
        "import sys; from pathlib import Path; from transforms.deid.engine import deidentify_file\n"
        "from transforms.deid.profile import Profile\n"
        "data, profile = Path(sys.argv[1]).read_bytes(), Profile.of('modified_dates')\n"
        "deidentify_file(data, profile, b'test').write(Path(sys.argv[2]))"
    )
    for name in "ab":
        command = [sys.executable, "-c", code, str(tmp_path / "in.dcm"), str(tmp_path / name)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert deidentify_file(planted(5), MODIFIED, b"another").data() != (tmp_path / "a").read_bytes()


def test_identifiers_link_files_of_one_patient() -> None:
    first = cleaned_up(PatientID="4711", StudyDate="20200101", SOPInstanceUID="1.2.3.1", AccessionNumber="A1")
    second = cleaned_up(PatientID="4711 ", StudyDate="20200131", SOPInstanceUID="1.2.3.2", AccessionNumber="A1")
    other = cleaned_up(PatientID="4712", StudyDate="20200101", SOPInstanceUID="1.2.3.1")
    assert first.PatientID == second.PatientID == pseudonym(KEY, "patient", "4711") != other.PatientID
    assert str(first.PatientName) == first.PatientID
    assert first.AccessionNumber == second.AccessionNumber != "A1"
    assert first.StudyInstanceUID == second.StudyInstanceUID and first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SOPInstanceUID == other.SOPInstanceUID
    assert first.SOPInstanceUID.startswith("2.25.") and UID(first.SOPInstanceUID).is_valid
    days = days_of(KEY, "4711")
    assert moved(b"20200101", days).decode() == first.StudyDate
    assert int(second.StudyDate) != int(first.StudyDate) != 20200101


def test_dates_by_option() -> None:
    dates = {"StudyDate": "20200101", "StudyTime": "101112", "AcquisitionDateTime": "20200101101112.5+0100"}
    assert [cleaned_up(Profile(), **dates).get(k) for k in ("StudyDate", "StudyTime")] == ["", ""]
    assert cleaned_up(Profile(), **dates).LongitudinalTemporalInformationModified == "REMOVED"
    full = cleaned_up(Profile.of("full_dates"), **dates)
    assert (full.StudyDate, full.StudyTime, full.LongitudinalTemporalInformationModified) == (
        "20200101", "101112", "UNMODIFIED"
    )
    shifted = cleaned_up(MODIFIED, **dates)
    assert shifted.StudyTime == "101112" and shifted.StudyDate < "20191001"
    assert shifted.AcquisitionDateTime == shifted.StudyDate + "101112.5+0100"
    assert shifted.PatientBirthDate == "" and shifted.LongitudinalTemporalInformationModified == "MODIFIED"
    assert [moved(b"2020", 1), moved(b"20201301", 1), moved(b"yesterday", 1), moved(b"2020.03.01", 1)] == [
        b"", b"", b"", b"20200229"
    ]


def test_the_method_is_stated_with_its_codes() -> None:
    made = cleaned_up(Profile.of("modified_dates", "retain_device"), DeidentificationMethod="by Dr Doe")
    assert made.PatientIdentityRemoved == "YES" and "Doe" not in str(made.DeidentificationMethod)
    codes = [(c.CodeValue, c.CodingSchemeDesignator) for c in made.DeidentificationMethodCodeSequence]
    assert codes == [("113100", "DCM"), ("113107", "DCM"), ("113109", "DCM")]
    assert [e.tag for e in made] == sorted(e.tag for e in made)


@pytest.mark.parametrize(
    ("option", "kept"),
    [
        ("retain_device", {"StationName": "CT01", "DeviceSerialNumber": "4-7-11"}),
        ("retain_institution", {"InstitutionName": "St Elsewhere", "InstitutionAddress": "1 Main St"}),
        ("retain_uids", {"StudyInstanceUID": "1.2.3.4"}),
        ("retain_patient", {"PatientWeight": 70, "PatientSex": "F", "PatientAge": "064Y"}),
    ],
)
def test_options_keep_what_they_say_and_nothing_else(option: str, kept: dict[str, Any]) -> None:
    with_it, without = cleaned_up(Profile.of(option), **kept), cleaned_up(Profile(), **kept)
    assert {k: with_it.get(k) for k in kept} == kept
    assert all(without.get(k) != v for k, v in kept.items())
    assert with_it.PatientID != "1CT1"


def test_ages_above_89_are_90() -> None:
    assert cleaned_up(Profile.of("retain_patient"), PatientAge="104Y").PatientAge == "090Y"
    assert [ages(a) for a in (b"089Y", b"090Y", b"018M", b"old")] == [b"089Y", b"090Y", b"018M", b""]


def test_cleaned_text_keeps_words_of_the_vocabulary() -> None:
    made = cleaned_up(Profile.of("clean_descriptors"), SeriesDescription="CHEST post contrast for Doe, 19991231")
    assert made.SeriesDescription == "CHEST post contrast for"
    assert [cleaned(b"of 7"), cleaned(b"Doe^John"), cleaned(b"T2_TSE_ax 3")] == [b"", b"", b"T2 TSE ax 3"]


def test_kept_text_that_repeats_a_name_goes() -> None:
    made = cleaned_up(PatientName="Garcia^Eva", PatientID="HX-99812", Manufacturer="Siemens", KVP="120",
                      ManufacturerModelName="used by EVA", ConvolutionKernel="garcian", FilterType="HX-99812 ")
    assert "ManufacturerModelName" not in made and "FilterType" not in made
    assert (made.Manufacturer, made.KVP, made.ConvolutionKernel) == ("Siemens", 120, "garcian")


def test_numbers_that_are_no_numbers_go() -> None:
    data = small(KVP="120", SliceThickness="2.5").replace(b"DS\x04\x00120 ", b"DS\x04\x00Jon ")
    made = deidentify_file(data, MODIFIED, KEY).data()
    assert b"Jon" not in made and opened(made).SliceThickness == 2.5


def test_safe_private_elements_stay_on_request_as_numbers() -> None:
    dataset = dcmread(get_testdata_file("CT_small.dcm"))
    block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", "1000")
    block.add_new(0x0D, "CS", "DOEJOHN")
    block.add_new(0x0B, "DS", "12")
    file = io.BytesIO()
    dataset.save_as(file)
    data = file.getvalue().replace(b"DS\x02\x0012", b"DS\x02\x00Jo")
    made = opened(deidentify_file(data, Profile.of("retain_safe_private"), KEY).data())
    kept = [(e.tag, e.value) for e in made if e.tag.is_private and e.tag.group == 0x19]
    assert [(f"{t:08X}", v) for t, v in kept if t.element > 0xFF and "19" in f"{t:08X}" and v in (1000, "1000")] != []
    assert not any(v in ("DOEJOHN", "Jo") for _, v in kept)
    none = opened(deidentify_file(data, Profile(), KEY).data())
    assert [e.tag for e in none if e.tag.is_private] == []


def test_a_dataset_comes_out_as_a_file_does() -> None:
    data = planted(4)
    dataset = opened(data)
    before = dataset.to_json()
    made, actions = deidentify(dataset, MODIFIED, KEY)
    whole = deidentify_file(data, MODIFIED, KEY)
    after = opened(whole.data())
    assert {e.tag: e.value for e in made} == {e.tag: e.value for e in after}
    assert actions[0x00100010, "H"] == whole.actions[0x00100010, "H"]
    assert dataset.to_json() == before


def test_pixels_are_passed_on_and_not_copied() -> None:
    data = small()
    made = deidentify_file(data, MODIFIED, KEY)
    views = [part for part in made.parts if isinstance(part, memoryview)]
    assert max(map(len, views)) >= 128 * 128 * 2 and all(view.obj is data for view in views)
    dataset = opened(data)
    assert deidentify(dataset, MODIFIED, KEY)[0].PixelData is dataset.PixelData


@pytest.mark.parametrize("damage", ["short", "header", "nothing", "text"])
def test_what_cannot_be_read_in_full_is_refused(damage: str) -> None:
    data = planted(0)
    broken = {"short": data[:-700], "header": data[:4000], "nothing": b"", "text": b"no dicom at all" * 20}[damage]
    with pytest.raises(Terminal) as caught:
        deidentify_file(broken, MODIFIED, KEY)
    assert caught.value.code in ("DICOM_TRUNCATED", "DICOM_UNREADABLE", "NOT_DICOM")
    assert leaks(str(caught.value).encode()) == []


@pytest.mark.parametrize(
    "name", ["badVR.dcm", "ExplVR_BigEndNoMeta.dcm", "no_meta_group_length.dcm", "UN_sequence.dcm", "image_dfl.dcm",
             "nested_priv_SQ.dcm", "rtstruct.dcm", "empty_charset_LEI.dcm"]
)
def test_odd_files_are_read(name: str) -> None:
    made = opened(deidentify_file(Path(get_testdata_file(name)).read_bytes(), MODIFIED, KEY).data())
    assert made.PatientIdentityRemoved == "YES" and not any(e.tag.is_private for e in made.iterall())


def test_sequences_that_nest_for_ever_are_refused() -> None:
    item = b""
    for _ in range(200):
        item = EXPLICIT.encode(0x00081115, "SQ", EXPLICIT.item(item))
    data = bytes(128) + b"DICM" + _meta("1.2.840.10008.1.2.1") + item
    with pytest.raises(Terminal):
        deidentify_file(data, MODIFIED, KEY)


def test_the_elements_cover_the_file() -> None:
    data = small()
    begin = len(data) - _body_length(data)
    found = read(data, begin, len(data), EXPLICIT)
    assert found[0].start == begin and found[-1].after == len(data)
    assert all(a.after == b.start for a, b in pairwise(found))


def test_comments_of_codestreams_and_profiles_are_found() -> None:
    stream = b"\xff\xd8\xff\xe0\0\6JFIF\xff\xe1\0\6Exif\xff\xfe\0\6John\xff\xda\0\2"
    assert [stream[a:b] for a, b in blanks(stream)] == [b"Exif", b"John"]
    assert blanks(b"\0\1\2\3") == [] and clean_profile(b"short") == b""


def test_the_table_is_whole_and_every_row_has_an_action() -> None:
    rows = rows_of_table()
    assert len(rows) > 600 and len(set(rows)) == len(rows)
    for options in ((), ("modified_dates",), ("full_dates",), ("retain_uids",)):
        plan = Profile.of(*options).plan()
        assert {plan[tag] for tag in rows} <= set("KXZDUSTCHAI")
        assert all(plan[tag] != "K" for tag in rows) or options
    assert set(table()["options"]) | {"retain_safe_private"} == set(OPTIONS)
    assert Profile().plan()[0x00091001] == Profile().plan()[0x60020010] == Profile().plan()[0x00089999] == "X"
    assert vrs_of(0x00089999) == ()
    with pytest.raises(ConfigError):
        Profile.of("full_dates", "modified_dates")
    with pytest.raises(ConfigError):
        Profile.of("keep_everything")


def test_real_series(sample_data: Path) -> None:
    files = sorted((sample_data / "dicom" / "totalseg_ct_series").iterdir())[:4]
    made = [opened(deidentify_file(f.read_bytes(), MODIFIED, KEY).data()) for f in files]
    assert len({m.file_meta.MediaStorageSOPInstanceUID for m in made}) == len(files)  # the datasets have none
    assert all(m.file_meta.MediaStorageSOPClassUID == CTImageStorage and m.Rows for m in made)
    for path, after in zip(files, made, strict=True):
        assert np.array_equal(dcmread(path).pixel_array, after.pixel_array)
