"""DICOM files with planted identifiers, made from the files that pydicom ships: everything of them has to go.

>>> made = planted(0)                     # bytes of a file; see MARKERS for what must not come out, KEPT for what must
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from struct import pack
from typing import Any

from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.data import get_testdata_file
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence_item
from pydicom.tag import BaseTag
from pydicom.uid import UID, EncapsulatedPDFStorage, ExplicitVRLittleEndian

from transforms.deid.profile import table, vrs_of
from transforms.scans.deidentify import quietly

BASES = (
    "CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_jp2klossless.dcm",
    "JPEGLSNearLossless_16.dcm", "rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm",
)
MARKERS = (
    b"doejohn", b"d\0o\0e\0j\0o\0h\0n", b"\0d\0o\0e\0j\0o\0h\0n", b"19620304", b"98765432", b"1.2.3.98765", b"077y",
)
"""What is planted, in small letters, also as UTF-16."""
KEPT = (
    "SOPClassUID", "Modality", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "SamplesPerPixel", "PhotometricInterpretation", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient",
    "SliceThickness", "SliceLocation", "KVP", "XRayTubeCurrent", "WindowCenter", "WindowWidth", "RescaleSlope",
    "RescaleIntercept", "EchoTime", "RepetitionTime", "FlipAngle", "MagneticFieldStrength", "ImageType",
    "InstanceNumber", "SeriesNumber", "PatientPosition", "Manufacturer", "PixelData",
)
"""Attributes that say nothing of the patient and that others need."""
VALUES: dict[str, Any] = {
    "AE": "DOEJOHN", "AS": "077Y", "CS": "DOEJOHN", "DA": "19620304", "DT": "19620304010203", "LO": "Doejohn of Ward 7",
    "LT": "seen by Dr Doejohn", "PN": "Doejohn^Mary", "SH": "Doejohn", "ST": "Mr Doejohn", "TM": "010203",
    "UC": "Doejohn", "UI": "1.2.3.98765.4", "UR": "http://doejohn.org", "UT": "Doejohn says", "OB": b"Doejohn ",
    "UN": b"Doejohn ",
}
DEPTH = 4


def rows_of_table() -> list[int]:
    """The tags of PS3.15 E.1-1 that the dictionary knows and a dataset may hold."""
    words = " ".join(table()["basic"].values()).split()
    tags = (tag_for_keyword(word) for word in words)
    return [int(tag) for tag in tags if tag is not None and 8 <= tag >> 16 < 0xFFFA]


def plant(into: Dataset, rows: Sequence[int], depth: int = DEPTH) -> Dataset:
    """The dataset with markers in these attributes, in private ones, and in sequences, to a depth."""
    for tag in rows:
        vr = vrs_of(tag)[0]
        if vr in VALUES:
            into.add_new(tag, vr, VALUES[vr])
        elif vr == "SQ" and depth > 0 and keyword_for_tag(tag) in (
            "RequestAttributesSequence", "ReferencedImageSequence", "AcquisitionContextSequence"
        ):
            into.add_new(tag, "SQ", [plant(Dataset(), rows, depth - 2)])
    into.ContributingEquipmentSequence = [_text_item(depth)]
    into.ContentSequence = [_text_item(depth), _text_item(depth)]
    block = into.private_block(0x0099, "DOEJOHN PRIVATE", create=True)
    for number, (vr, value) in enumerate(VALUES.items()):
        block.add_new(number, vr, value)
    block.add_new(0x80, "SQ", [_text_item(depth - 1)])
    return into


def _text_item(depth: int) -> Dataset:
    item = Dataset()
    item.PersonName = item.OperatorsName = item.InstitutionName = "Doejohn"
    item.TextValue, item.ContributionDescription = "Doejohn was here", "by Doejohn"
    item.Manufacturer = "Doejohn Ltd"
    item.UID = "1.2.3.98765.77"
    if depth > 0:
        item.ContentSequence = [_text_item(depth - 1)]
        item.OriginalAttributesSequence = [_text_item(0)]
        item.ReferencedSeriesSequence = [_text_item(0)]
    return item


def planted(seed: int, base: str | None = None, parts: int = 1) -> bytes:
    """One file, with another patient for every seed; with `parts`, one of so many parts of the table at a time."""
    with disable_value_validation(), quietly():
        dataset = dcmread(get_testdata_file(base or BASES[seed % len(BASES)]))
        plant(dataset, rows_of_table()[seed % parts :: parts])
        dataset.PatientID, dataset.AccessionNumber = f"98765432{seed:04}", f"A98765432{seed:03}"
        dataset.PatientName = "Doejohn^Mary"
        dataset.SOPInstanceUID = f"1.2.3.98765.{seed}.1"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.3.98765.{seed}.2", f"1.2.3.98765.{seed}.3"
        dataset.file_meta.SourceApplicationEntityTitle = "DOEJOHN"
        dataset.file_meta.PrivateInformationCreatorUID = UID("1.2.3.98765.9")
        dataset.file_meta.PrivateInformation = b"Doejohn "
        dataset.preamble = b"MZDoejohn".ljust(128, b"\0")
        _beside_the_pixels(dataset)
        file = io.BytesIO()
        dataset.save_as(file)
    return file.getvalue()


def _beside_the_pixels(dataset: Dataset) -> None:
    """Overlays, curves, an icon, a colour profile, a sequence that hides in UN, and padding."""
    dataset.add_new(0x60003000, "OW", b"Doejohn ")
    dataset.add_new(0x60004000, "LT", "Doejohn")
    dataset.add_new(0x60000022, "LO", "Doejohn")
    dataset.add_new(0x50003000, "OW", b"Doejohn ")
    dataset.add_new(0x50000030, "SH", "Doejohn")
    icon = Dataset()
    icon.Rows = icon.Columns = 2
    icon.BitsAllocated, icon.PixelData = 8, b"Doejohn "
    icon["PixelData"].VR = "OB"
    dataset.IconImageSequence = [icon]
    dataset.ICCProfile = icc_profile(b"made for Doejohn")
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_implicit_VR and syntax.is_little_endian:
        dataset[0x00081115] = hidden_sequence(0x00081115, _text_item(1))
    dataset.add_new(0xFFFCFFFC, "OB", b"Doejohn ")
    if syntax.is_compressed and "PixelData" in dataset:
        dataset.PixelData = commented(dataset.PixelData)


def hidden_sequence(tag: int, item: Dataset) -> RawDataElement:
    """An element of VR UN that is in truth a sequence of one item (implicit, little-endian)."""
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = True, True
    write_sequence_item(file, item, ["iso8859"])
    value = bytes(file.getvalue())
    return RawDataElement(BaseTag(tag), "UN", len(value), value, 0, False, True)


def commented(pixels: bytes) -> bytes:
    """Encapsulated pixels of one frame whose codestream says a name in a comment."""
    from pydicom.encaps import generate_frames

    stream = next(generate_frames(pixels, number_of_frames=1))
    text = b"by Doejohn"
    if stream[:2] == b"\xff\xd8":
        stream = stream[:2] + b"\xff\xfe" + pack(">H", len(text) + 2) + text + stream[2:]
    elif stream[:2] == b"\xff\x4f":  # after SIZ, which has to be first
        at = 4 + int.from_bytes(stream[4:6], "big")
        stream = stream[:at] + b"\xff\x64" + pack(">HH", len(text) + 4, 1) + text + stream[at:]
    return encapsulate([stream])


def icc_profile(text: bytes) -> bytes:
    """A colour profile that holds nothing but descriptions."""
    description = b"desc" + bytes(4) + pack(">L", len(text) + 1) + text + b"\0"
    unicode = b"mluc" + bytes(4) + pack(">LL", 1, 12) + b"enUS" + pack(">LL", len(text) * 2, 28)
    unicode += text.decode().encode("utf-16-be")
    first = 128 + 4 + 2 * 12
    tags = b"desc" + pack(">LL", first, len(description))
    tags += b"dmnd" + pack(">LL", first + len(description), len(unicode))
    body = pack(">L", 2) + tags + description + unicode
    return pack(">L", 128 + len(body)) + bytes(32) + b"acsp" + bytes(88) + body


def document() -> bytes:
    """An encapsulated PDF."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = EncapsulatedPDFStorage, "1.2.3.98765.5"
    dataset.PatientName, dataset.EncapsulatedDocument = "Doejohn", b"%PDF Doejohn"
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def nested_at_random(seed: int) -> Dataset:
    """A dataset of markers in a random tree of sequences, public, private and hidden."""
    draw = random.Random(seed)
    rows = [tag for tag in rows_of_table() if vrs_of(tag)[0] in VALUES]
    sequences = [0x00081115, 0x00081140, 0x0040A730, 0x00400275, 0x00082112, 0x52009229, 0x00409096, 0x0018A001]

    def grow(depth: int) -> Dataset:
        made = Dataset()
        for tag in draw.sample(rows, 12):
            made.add_new(tag, vrs_of(tag)[0], VALUES[vrs_of(tag)[0]])
        if draw.random() < 0.5:
            block = made.private_block(0x0011 + 2 * draw.randrange(9), "DOEJOHN", create=True)
            block.add_new(1, "LO", "Doejohn")
            if depth:
                block.add_new(2, "SQ", [grow(depth - 1)])
        for tag in draw.sample(sequences, 2) if depth else ():
            made.add_new(tag, "SQ", [grow(depth - 1) for _ in range(draw.randrange(1, 3))])
            if draw.random() < 0.4:
                made[tag].is_undefined_length = True
        if depth and draw.random() < 0.3:
            made[0x00081250] = hidden_sequence(0x00081250, grow(depth - 1))
        return made

    with disable_value_validation(), quietly():
        return grow(5)


def leaks(data: bytes) -> list[bytes]:
    """The markers that are anywhere in these bytes."""
    small = data.lower()
    return [marker for marker in MARKERS if marker in small]
