"""De-identification: whatever a header holds, wherever it stands, only what the table allows comes out."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from pydicom.config import disable_value_validation
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, UltrasoundImageStorage

from catalog.items import Item
from infra.errors import ItemError
from infra.keys import pseudonym
from transforms.decoded import IngestParams, Refused, Sample, Volume
from transforms.decoders import dicom
from transforms.scans.deidentify import fact_labels, header_facts, identifiers, open_dataset, quietly

hide = partial(pseudonym, b"test")

PLANTED: dict[str, Any] = {
    "AE": "DOEJOHN", "AS": "077X", "CS": "DOEJOHN", "DA": "19620304", "DS": "987654321", "DT": "19620304010203",
    "IS": "987654321", "LO": "Doejohn Lo", "LT": "Doejohn Lt", "PN": "Doejohn^Pn", "SH": "Doejohn Sh",
    "ST": "Doejohn St", "TM": "010203.987654", "UC": "Doejohn Uc", "UI": "1.2.987654321", "UR": "http://doejohn.org",
    "UT": "Doejohn Ut", "FL": 987654321.0, "FD": 987654321.0, "SL": 987654321, "UL": 987654321, "SS": 23456,
    "US": 54321, "OB": b"Doejohn Ob", "OW": b"Doejohn Ow", "UN": b"Doejohn Un", "AT": 0x00100010, "SV": 987654321,
    "UV": 987654321,
}
SEQUENCES = ("RequestAttributesSequence", "OtherPatientIDsSequence", "ReferencedImageSequence")
MARKERS = ("doejohn", "19620304", "98765", "23456", "54321", "077x", "010203")


def slice_of_ct(z: float) -> Dataset:
    """A small, valid CT slice."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.Modality = CTImageStorage, "CT"
    made.Rows, made.Columns, made.SamplesPerPixel, made.PhotometricInterpretation = 8, 8, 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
    made.ImagePositionPatient, made.ImageOrientationPatient = [0, 0, z], [1, 0, 0, 0, 1, 0]
    made.PixelSpacing, made.RescaleSlope, made.RescaleIntercept = [1, 1], 1, 0
    made.WindowCenter, made.WindowWidth = 40, 400
    made.PixelData = np.arange(64, dtype=np.int16).tobytes()
    return made


def planted(into: Dataset, depth: int) -> Dataset:
    """The dataset with markers in every attribute that it lacks, in private ones, and in sequences, to a depth."""
    taken = {element.keyword for element in into} | {"SpecificCharacterSet"}
    for tag, (vr, multiplicity, *_, keyword) in DicomDictionary.items():
        group = tag >> 16
        if not keyword or keyword in taken or group <= 2 or group in (0x0028, 0x7FE0, 0xFFFE, 0xFFFA):
            continue
        vr = vr.split(" or ")[0]
        if vr == "SQ":
            if depth and keyword in SEQUENCES:
                setattr(into, keyword, [planted(Dataset(), depth - 1)])
        elif vr in PLANTED:
            count = int(multiplicity[0]) if multiplicity[0].isdigit() else 1
            into.add_new(tag, vr, PLANTED[vr] if count == 1 or vr.startswith("O") else [PLANTED[vr]] * count)
    block = into.private_block(0x0099, "DOEJOHN PRIVATE", create=True)
    for number, (vr, marker) in enumerate(PLANTED.items()):
        block.add_new(number, vr, marker)
    return into


def as_bytes(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.fixture(scope="module")
def planted_files() -> list[bytes]:
    files = []
    with disable_value_validation(), quietly():  # some markers break the rules of their VR
        for n in range(5):
            dataset = planted(slice_of_ct(2.0 * n), 2)
            dataset.SOPInstanceUID, dataset.InstanceNumber = f"1.2.987654321.{n}", n
            files.append(as_bytes(dataset))
    return files


def everything(outputs: Iterator[object]) -> str:
    """All that a decoder yields, as text."""
    np.set_printoptions(threshold=100_000)
    return "\n".join(map(repr, outputs)).lower()


def test_no_planted_identifier_comes_out(planted_files: list[bytes]) -> None:
    assert sum(data.lower().count(b"doejohn") for data in planted_files) > 5000
    items = [Item(f"{n}.dcm", "dicom", "g", {"main": data}) for n, data in enumerate(planted_files)]
    made = list(dicom.decode(items, IngestParams(), hide))
    assert [type(m) for m in made] == [Volume, *[Sample] * 4]
    single = list(dicom.decode(items[:1], IngestParams(), hide))
    assert [type(m) for m in single] == [Sample]
    text = everything(iter(made + single))
    assert [marker for marker in MARKERS if marker in text] == []


def test_errors_quote_nothing(planted_files: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    data = planted_files[0]
    pixels = data.rindex(np.arange(64, dtype=np.int16).tobytes())
    broken = {
        "short": data[: pixels + 20], "header": data[: len(data) // 2],
        "syntax": data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.987654321.1.2.1\0", 1),
        "pixels": data[: pixels - 4],
        "class": data.replace(str(CTImageStorage).encode(), b"1.2.987654321.10008.1.2.3", 1),
    }
    errors = []
    for name, bad in broken.items():
        for made in dicom.decode([Item(name, "dicom", "g", {"main": bad})], IngestParams(), hide):
            if isinstance(made, Refused):
                errors.append(f"{made.error!r} {made.error.__cause__!r}")
    assert len(errors) >= 4
    text = "\n".join([*errors, caplog.text]).lower()
    assert [marker for marker in MARKERS if marker in text] == []


def facts_of(**elements: Any) -> dict[str, Any]:
    dataset = Dataset()
    for keyword, element in elements.items():
        setattr(dataset, keyword, element)
    return header_facts(dataset)


@pytest.mark.parametrize(
    ("age", "band"),
    [("064Y", "60-69"), ("089Y", "80-89"), ("090Y", "90+"), ("104Y", "90+"), ("018M", "0-9"), ("003D", "0-9")],
)
def test_age_is_a_decade(age: str, band: str) -> None:
    assert facts_of(PatientAge=age)["PatientAge"] == band


def test_facts_are_those_of_the_table() -> None:
    facts = facts_of(
        Modality="CT", BodyPartExamined="HEAD_NECK", PatientSex="F", KVP="120", SliceThickness="2.5", Laterality="L",
        Manufacturer="SIEMENS Doejohn Inc.", ContrastBolusAgent="given by Doejohn", ViewPosition="DOE",
    )
    assert facts == {
        "Modality": "CT", "BodyPartExamined": "head and neck", "PatientSex": "F", "KVP": 120.0, "SliceThickness": 2.5,
        "Laterality": "left", "Manufacturer": "Siemens", "Contrast": "yes", "burned_in_annotation": "unknown",
    }


@pytest.mark.parametrize("agent", ["NO", "none", "W/O CONTRAST", "Without", ""])
def test_contrast_that_was_not_given_is_not_stated(agent: str) -> None:
    assert "Contrast" not in facts_of(ContrastBolusAgent=agent)


def test_burned_in_text_is_not_believed_absent_where_it_is_common() -> None:
    assert facts_of(Modality="CT", BurnedInAnnotation="NO")["burned_in_annotation"] == "no"
    assert facts_of(Modality="US", BurnedInAnnotation="NO")["burned_in_annotation"] == "unknown"
    assert facts_of(Modality="CT", BurnedInAnnotation="YES")["burned_in_annotation"] == "yes"
    assert facts_of(Modality="CT")["burned_in_annotation"] == "unknown"
    said = fact_labels(facts_of(Modality="US", SOPClassUID=UltrasoundImageStorage))
    assert [(label.name, label.value) for label in said] == [("burned-in annotation", "unknown")]
    assert fact_labels(facts_of(Modality="CT")) == ()


def test_pseudonyms_are_stable_and_fall_back() -> None:
    dataset = Dataset()
    dataset.PatientID, dataset.StudyInstanceUID = "4711 ", "1.2.3"
    assert identifiers(dataset, hide, "a.dcm") == {
        "patient": hide("patient", "4711"), "study": hide("study", "1.2.3"), "series": hide("series", "a.dcm"),
    }
    dataset.PatientID = ""
    assert identifiers(dataset, hide, "a.dcm")["patient"] == hide("patient", "1.2.3")
    assert identifiers(Dataset(), hide, "a.dcm")["patient"] == hide("patient", "a.dcm")


@pytest.mark.parametrize(
    "data", [b"", b"hello", bytes(200), b"\x08\0" + b"\xff" * 400, bytes(128) + b"DICM" + b"\xff" * 60]
)
def test_what_is_no_dicom_is_an_item_error(data: bytes) -> None:
    with pytest.raises(ItemError) as caught:
        open_dataset(data)
    assert caught.value.code in ("NOT_DICOM", "DICOM_UNREADABLE")
