"""DICOM headers, opened safely and de-identified: what may be known of a picture, and pseudonyms for who it shows.

The invariant: nothing that a header holds reaches an output unless `deidentify.yaml` names both the attribute and the
value (or the range of numbers). There is no list of what to remove that could miss something: sequences, private
elements and free text are simply never copied, to any depth.

>>> header_facts(open_dataset(Path("chest.dcm").read_bytes()))
{'Modality': 'DX', 'BodyPartExamined': 'chest', 'PatientAge': '60-69', 'burned_in_annotation': 'unknown'}

Sources: DICOM PS3.15 Annex E (age above 89 is identifying), PS3.16 Annex L (body parts).
Not done here: text burned into the pixels is flagged, not removed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from catalog.items import Item, Label
from infra.errors import Dropped, Terminal
from transforms.decoded import Pseudonym

DEFLATED = "1.2.840.10008.1.2.1.99"
"""The transfer syntax whose dataset is one deflate stream: half a megabyte of it can unpack to gigabytes."""
DEFLATE_LIMIT = 64 << 20
"""Bytes that such a stream may unpack to."""

NO_IMAGES = ("Segmentation", "Label Map", "Parametric Map", "RT Dose", "Surface", "Presentation State", "Registration")
"""Words in the names of SOP classes that may hold pixels and are not images."""
FRAME_BYTES = 1 << 29
"""Bytes that one decoded frame may have."""
FREE_BYTES = 1 << 30
RATIO = 200
"""A file may decode to FREE_BYTES, or to RATIO times its own size if that is more."""

NATIVE_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED)
LOSSY_SYNTAXES = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81")
"""JPEG baseline, JPEG extended, JPEG-LS near-lossless. Other syntaxes may be either, or were lossy before."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""SOP classes that begin with this UID are screenshots, scans of film and the like."""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep pydicom from warning and logging: its messages quote header values, which may identify a patient."""
    log = logging.getLogger("pydicom")
    if log.disabled:  # quiet already
        yield
        return
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = False


@cache
def bad_values() -> tuple[type[Exception], ...]:
    """What pydicom raises for an element whose bytes do not fit its type."""
    from pydicom.errors import BytesLengthException

    return (
        BytesLengthException, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, NotImplementedError,
        struct.error, OSError, EOFError,
    )


def open_dataset(data: bytes) -> Any:
    """A DICOM file as a pydicom dataset whose `file_meta` names its transfer syntax.

    Files without preamble or file meta are read as far as their first elements make sense. Raises Terminal: NOT_DICOM,
    DICOM_UNREADABLE (cut short inside the header, or damaged), DEFLATE_LIMIT.
    """
    from pydicom import dcmread
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if data[128:132] != b"DICM" and data[:2] not in (b"\2\0", b"\x08\0", b"\0\x08"):
        raise Terminal("NOT_DICOM", "neither the DICM mark nor an element of group 0002 or 0008 where a file begins")
    damaged: tuple[type[Exception], ...] = (*bad_values(), OSError, EOFError, zlib.error, RecursionError, MemoryError)
    with quietly():
        try:
            dataset = dcmread(io.BytesIO(inflated(data)), force=True)
            meta = dataset.file_meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
            if not meta.get("TransferSyntaxUID"):
                implicit, little = dataset.original_encoding
                explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
                meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        except damaged as error:
            raise Terminal(
                "DICOM_UNREADABLE", f"the header cannot be read ({type(error).__name__}); fetch the file again"
            ) from None  # pydicom quotes the header
    if not dataset:
        raise Terminal("DICOM_UNREADABLE", "the file holds no elements; fetch it again")
    return dataset


def inflated(data: bytes) -> bytes:
    """The file as it is, or unpacked and relabelled where its dataset is one deflate stream.

    Raises Terminal (DEFLATE_LIMIT), and zlib.error or EOFError for what cannot be unpacked.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filereader import read_dataset
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import ExplicitVRLittleEndian

    file = io.BytesIO(data)
    file.seek(132 if data[128:132] == b"DICM" else 0)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DEFLATED:
        return data
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    body = stream.decompress(data[file.tell() :], DEFLATE_LIMIT)
    if stream.unconsumed_tail:
        limit = DEFLATE_LIMIT >> 20
        raise Terminal("DEFLATE_LIMIT", f"unpacks to more than {limit} MB; unpack it by hand if it is honest")
    if not stream.eof:
        raise EOFError
    plain = DicomBytesIO()
    relabelled = FileMetaDataset(meta)
    relabelled.TransferSyntaxUID = ExplicitVRLittleEndian
    write_file_meta_info(plain, relabelled, enforce_standard=False)
    return bytes(128) + b"DICM" + plain.getvalue() + body


def check_image(dataset: Any, size: int) -> None:
    """Raise ItemError unless the dataset is an image whose pixels may be decoded; `size` is that of the file.

    Nothing is decoded or allocated here. Codes: NOT_AN_IMAGE (dropped), NO_PIXELS, DIMENSIONS_IMPLAUSIBLE,
    PIXELS_TRUNCATED.
    """
    stored = (value(dataset, name) for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    pixels = next((data for data in stored if data), None)
    kind = uid_name(value(dataset, "SOPClassUID"))
    if kind and (any(word in kind for word in NO_IMAGES) or (pixels is None and "Image" not in kind)):
        raise Dropped("NOT_AN_IMAGE", f"{kind} is not an image; nothing to do")
    if pixels is None:
        raise Terminal("NO_PIXELS", "there is no pixel data; fetch the file again, or leave it out")
    shape = [number(dataset, k) or 0 for k in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
    frames = number(dataset, "NumberOfFrames") or 1
    frame = math.prod(shape) / 8
    total = frame * frames
    if min(*shape, frames) < 1 or frame > FRAME_BYTES or (total > FREE_BYTES and total > RATIO * size):
        raise Terminal("DIMENSIONS_IMPLAUSIBLE", f"{size} bytes are said to hold {total:.0f}; check the file")
    if is_encapsulated(dataset):
        needed = frames * 8  # every frame has at least an item tag and its length
    else:
        needed = total * 2 / 3 if text(dataset, "PhotometricInterpretation") == "YBR_FULL_422" else total
    if len(pixels) < int(needed):
        raise Terminal("PIXELS_TRUNCATED", f"{len(pixels)} of {int(needed)} bytes of pixels; fetch the file again")


def uid_name(uid: Any) -> str | None:
    """The name that the standard gives a UID; None for all others, which may identify and are not to be quoted."""
    from pydicom._uid_dict import UID_dictionary

    known = UID_dictionary.get(str(uid))
    return known[0] if known else None


def is_encapsulated(dataset: Any) -> bool:
    """Whether each frame is a codestream of its own, as in every transfer syntax but four."""
    return dataset.file_meta.TransferSyntaxUID not in NATIVE_SYNTAXES


def value(dataset: Any, keyword: str) -> Any:
    """The value of an element, or None when it is absent, empty or cannot be read."""
    tag = _tag(keyword)
    if tag not in dataset:  # most of what is asked for is not there, and looking is cheap
        return None
    with quietly():
        try:
            found = dataset[tag].value
        except bad_values():
            return None
    if _holds_items(tag) != (type(found).__name__ == "Sequence"):  # a damaged VR
        return None
    return None if found is None or found == "" else found


@cache
def _holds_items(tag: Any) -> bool:
    from pydicom.datadict import dictionary_VR

    return dictionary_VR(tag) == "SQ"


@cache
def _tag(keyword: str) -> Any:
    """Elements are found by tag in a fraction of the time that it takes by keyword."""
    from pydicom.tag import Tag

    return Tag(keyword)


def texts(dataset: Any, keyword: str) -> tuple[str, ...]:
    """The values of an element as upper-case text without outer blanks."""
    found = value(dataset, keyword)
    if found is None:
        return ()
    many = found if hasattr(found, "__iter__") and not isinstance(found, str) else (found,)
    return tuple(str(one).strip(" \0").upper() for one in many)


def text(dataset: Any, keyword: str) -> str:
    """The first value of an element as upper-case text without outer blanks; "" when there is none."""
    return next(iter(texts(dataset, keyword)), "")


def numbers(dataset: Any, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """The values of an element as finite numbers; None when it is absent, not numeric, or not `count` of them."""
    found = value(dataset, keyword)
    if found is None:
        return None
    try:
        values = tuple(float(v) for v in found) if hasattr(found, "__iter__") and not isinstance(found, str) else (
            float(found),
        )
    except bad_values():
        return None
    if not values or not all(map(math.isfinite, values)) or count not in (None, len(values)):
        return None
    return values


def number(dataset: Any, keyword: str) -> float | None:
    """The first value of an element as a finite number, or None."""
    values = numbers(dataset, keyword)
    return values[0] if values else None


def header_facts(dataset: Any) -> dict[str, Any]:
    """What may be known of a picture's header, by DICOM keyword; unknown and unlisted values are left out.

    Numbers are in the units of the standard (mm, ms, kV, T). PatientAge is a decade ("60-69", "90+"), Contrast is
    "yes" or absent, ImagerPixelSpacing is mm at the detector, and `burned_in_annotation` is yes, no or unknown.
    """
    facts: dict[str, Any] = {}
    for keyword, allowed in _table()["codes"].items():
        if (code := text(dataset, keyword)) in allowed:
            facts[keyword] = code
    for keyword, words in _table()["words"].items():
        if (code := _squeezed(text(dataset, keyword))) in words:
            facts[keyword] = words[code]
    for keyword, (low, high) in _table()["numbers"].items():
        if (measure := number(dataset, keyword)) is not None and low <= measure <= high:
            facts[keyword] = measure
    spacing = numbers(dataset, "ImagerPixelSpacing", 2)
    if spacing and all(0 < mm < 100 for mm in spacing):
        facts["ImagerPixelSpacing"] = list(spacing)
    made_by = {
        "Manufacturer": _maker(text(dataset, "Manufacturer")),
        "PatientAge": _decade(text(dataset, "PatientAge")),
        "Contrast": "yes" if _states_contrast(text(dataset, "ContrastBolusAgent")) else None,
        "burned_in_annotation": _burned_in(dataset),
    }
    return facts | {name: fact for name, fact in made_by.items() if fact is not None}


def lossy(dataset: Any) -> bool | None:
    """Whether the pixels went through a lossy codec; None: the file does not say."""
    stated = text(dataset, "LossyImageCompression")
    if stated == "01" or dataset.file_meta.TransferSyntaxUID in LOSSY_SYNTAXES:
        return True
    return False if stated == "00" else None


@dataclass(frozen=True)
class Described:
    """What may be known of an item beside its pixels."""

    item: Item
    group: str
    """pseudonym of the patient"""
    facts: Mapping[str, Any]
    """see `header_facts`"""
    columns: Mapping[str, Any]
    """of `images`: modality, anatomy, lossy, and what the source states, which counts more than the header"""
    labels: tuple[Label, ...]


def describe(item: Item, dataset: Any, pseudonym: Pseudonym) -> Described:
    """De-identify the header of an item, and add what its source states."""
    facts = header_facts(dataset)
    stated = {name: fact for name, fact in item.facts.items() if name not in ("label_table", "article")}
    columns = {"modality": facts.get("Modality"), "anatomy": facts.get("BodyPartExamined"), "lossy": lossy(dataset)}
    patient = identifiers(dataset, pseudonym, item.id)["patient"]
    group = pseudonym("patient", item.patient) if item.patient else patient
    return Described(item, group, facts, {**columns, **stated}, (*item.labels, *fact_labels(facts)))


def fact_labels(facts: Mapping[str, Any]) -> tuple[Label, ...]:
    """The header facts that are worth saying about a picture, as labels.

    Text in the pixels becomes a label where it is stated, or likely and not ruled out.
    """
    said = [
        ("patient sex", "PatientSex"), ("patient age", "PatientAge"), ("contrast agent", "Contrast"),
        ("laterality", "ImageLaterality" if "ImageLaterality" in facts else "Laterality"),
    ]
    origins = {"Contrast": "ContrastBolusAgent"}
    labels = [
        Label(name, str(facts[keyword]), f"dicom:{origins.get(keyword, keyword)}")
        for name, keyword in said if keyword in facts
    ]
    burned_in = facts["burned_in_annotation"]
    if burned_in == "yes" or (burned_in == "unknown" and facts.get("Modality") in _table()["burned_in_modalities"]):
        labels.append(Label("burned-in annotation", burned_in, "dicom:BurnedInAnnotation"))
    return tuple(labels)


def identifiers(dataset: Any, pseudonym: Pseudonym, stand_in: str) -> dict[str, str]:
    """Pseudonyms of the patient, study and series.

    A patient without PatientID is known by the study, a study without UID by its frame of reference; what nothing
    identifies, by `stand_in` (the item's id).
    """
    study = _identifier(dataset, "StudyInstanceUID") or _identifier(dataset, "FrameOfReferenceUID")
    series = _identifier(dataset, "SeriesInstanceUID")
    patient = _identifier(dataset, "PatientID")
    return {
        "patient": pseudonym("patient", patient or study or stand_in),
        "study": pseudonym("study", study or stand_in),
        "series": pseudonym("series", series or stand_in),
    }


def _identifier(dataset: Any, keyword: str) -> str:
    found = value(dataset, keyword)
    return "" if found is None else str(found).strip(" \0")


def _squeezed(code: str) -> str:
    """CT HEAD_NECK, HEAD-NECK and HEADNECK are one body part."""
    return re.sub(r"[ _\-/&+]", "", code)


def _maker(stated: str) -> str | None:
    return next((name for word, name in _table()["makers"].items() if word in stated.lower()), None)


def _decade(age: str) -> str | None:
    """The decade of an age string (PS3.5 AS: 064Y, 018M, 003W, 012D)."""
    match = re.fullmatch(r"(\d{1,3})([YMWD])", age)
    if not match:
        return None
    years = int(match[1]) if match[2] == "Y" else int(match[1]) // {"M": 12, "W": 52, "D": 365}[match[2]]
    return "90+" if years >= 90 else f"{years // 10 * 10}-{years // 10 * 10 + 9}"


def _states_contrast(agent: str) -> bool:
    return bool(agent) and not re.match(r"(NO|NONE|NIL|NON|WITHOUT|W/O|WO|N/?A|UNENHANCED|NATIVE|0)\b", agent)


def _burned_in(dataset: Any) -> str:
    """Whether text is burned into the pixels. A NO is not believed where such text is common (see the table)."""
    stated = text(dataset, "BurnedInAnnotation")
    risky = text(dataset, "Modality") in _table()["burned_in_modalities"] or text(
        dataset, "SOPClassUID"
    ).startswith(SECONDARY_CAPTURE)
    if stated == "YES":
        return "yes"
    return "no" if stated == "NO" and not risky else "unknown"


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
    return table
