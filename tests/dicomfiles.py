"""DICOM datasets made for tests, and what the decoder makes of them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
)

from catalog.items import Item, Partition
from connectors import dicom as connector
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


def listed(root: Path, index: FileIndex | None = None, **params: Any) -> list[Partition]:
    given = connector.Params(root=str(root), **params)
    return list(connector.list_partitions("s", given, index or FileIndex(None)))


def read(root: Path, **params: Any) -> list[Item]:
    given = connector.Params(root=str(root), **params)
    return [item for partition in listed(root, **params) for item in connector.read(partition, given)]


def segmentation(of: list[Dataset], masks: npt.NDArray[Any] | None = None, **elements: Any) -> Dataset:
    """A segmentation of slices: one segment, called Liver, a frame a slice; `masks` (frames, rows, columns)."""
    first = of[0]
    if masks is None:
        masks = np.zeros((len(of), first.Rows, first.Columns), bool)
        masks[:, 1:4, 2:5] = True
    bits = np.packbits(masks.ravel().astype(bool), bitorder="little").tobytes()
    made = image(
        900, np.zeros(masks.shape[1:], np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG",
        SeriesInstanceUID="1.2.2.77", NumberOfFrames=len(masks), BitsAllocated=1, BitsStored=1,
        HighBit=0, PixelData=bits + b"\0" * (len(bits) % 2), SegmentationType="BINARY", RescaleSlope=None,
        RescaleIntercept=None, ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None,
        SOPInstanceUID="1.2.3.900", FrameOfReferenceUID=first.FrameOfReferenceUID,
    )
    series = Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    made.ReferencedSeriesSequence = [series]
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = 1, "Liver"
    segment.SegmentedPropertyCategoryCodeSequence = [concept("123037004", "SCT", "Anatomical Structure")]
    segment.SegmentedPropertyTypeCodeSequence = [concept("10200004", "SCT", "Liver")]
    made.SegmentSequence = [segment]
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = first.PixelSpacing, first.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    made.SharedFunctionalGroupsSequence = [shared]
    made.PerFrameFunctionalGroupsSequence = [frame_of(one) for one in of]
    for keyword, element in elements.items():
        setattr(made, keyword, element)
    return made


def frame_of(source: Dataset, segment: int = 1) -> Dataset:
    """The functional groups of a frame that outlines a slice."""
    frame, position, identified, derived, reference = (Dataset() for _ in range(5))
    position.ImagePositionPatient = source.ImagePositionPatient
    identified.ReferencedSegmentNumber = segment
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    derived.SourceImageSequence = [reference]
    frame.PlanePositionSequence, frame.SegmentIdentificationSequence = [position], [identified]
    frame.DerivationImageSequence = [derived]
    return frame


def concept(code: str, scheme: str, meaning: str) -> Dataset:
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = code, scheme, meaning
    return made


def structure_set(of: list[Dataset], rois: dict[str, list[tuple[int, list[list[float]]]]], **elements: Any) -> Dataset:
    """An RT structure set: name -> contours, each the index of a slice and points (x, y) in mm."""
    made = image(
        901, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3", Modality="RTSTRUCT", SOPInstanceUID="1.2.3.901",
        SeriesInstanceUID="1.2.2.78", PixelData=None, ImagePositionPatient=None, ImageOrientationPatient=None,
    )
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = of[0].SeriesInstanceUID
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study]
    made.ReferencedFrameOfReferenceSequence = [frame]
    made.StructureSetROISequence, made.ROIContourSequence, made.RTROIObservationsSequence = [], [], []
    for number, (name, contours) in enumerate(rois.items(), 1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, of[0].FrameOfReferenceUID
        drawn.ReferencedROINumber = number
        drawn.ContourSequence = [_contour(of[at], points) for at, points in contours]
        made.StructureSetROISequence.append(roi)
        made.ROIContourSequence.append(drawn)
    for keyword, element in elements.items():
        setattr(made, keyword, element)
    return made


def _contour(of: Dataset, points: list[list[float]]) -> Dataset:
    contour, reference = Dataset(), Dataset()
    z = float(of.ImagePositionPatient[2])
    contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
    contour.ContourData = [f"{v:.6f}" for x, y in points for v in (x, y, z)]
    reference.ReferencedSOPInstanceUID = of.SOPInstanceUID
    contour.ContourImageSequence = [reference]
    return contour
