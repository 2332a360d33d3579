"""DICOM files that look like CT slices to codecs: smooth anatomy, texture and noise, each its own patient and series.

The invariant: file N of a size and syntax is the same bytes, whoever writes it and whatever else is written.

>>> write_files(tmp_path, 4, 512, ["plain", "rle"])
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SYNTAXES = {"plain": "1.2.840.10008.1.2.1", "rle": "1.2.840.10008.1.2.5", "j2k": "1.2.840.10008.1.2.4.90"}
"""Explicit VR little endian, RLE lossless, JPEG 2000 lossless."""
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ROOT = "1.2.826.0.1.3680043.8.498"


def write_files(folder: Path, count: int, side: int, syntaxes: Sequence[str]) -> Path:
    """Write `count` files of side x side pixels below a new folder, the syntaxes in turn; returns the folder."""
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        turns = islice(cycle(syntaxes), count)
        list(workers.map(partial(_write, folder, side), range(count), turns, chunksize=20))
    return folder


def _write(folder: Path, side: int, number: int, syntax: str) -> None:
    from openjpeg.utils import encode
    from pydicom.encaps import encapsulate

    dataset = ct_dataset(number, side)
    if syntax == "rle":
        dataset.compress(SYNTAXES[syntax], generate_instance_uid=False)
    elif syntax == "j2k":  # pydicom's own encoder for it wants one more package
        stored = np.frombuffer(dataset.PixelData, np.uint16).reshape(side, side)
        stream = encode(stored, bits_stored=dataset.BitsStored, photometric_interpretation=2)
        dataset.add_new("PixelData", "OB", encapsulate([stream]))
        dataset.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    dataset.save_as(folder / f"{number:06}.dcm", enforce_file_format=True)


def ct_dataset(number: int, side: int) -> Any:
    """One slice with the header elements that scanners commonly write."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = UID(SYNTAXES["plain"])
    stored = (slice_hu(number, side) + 1024).astype(np.uint16)
    for keyword, value in {
        "SpecificCharacterSet": "ISO_IR 100", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "SOPClassUID": CT_IMAGE,
        "SOPInstanceUID": f"{ROOT}.1.{number}", "StudyDate": "20200102", "SeriesDate": "20200102",
        "AcquisitionDate": "20200102", "ContentDate": "20200102", "StudyTime": "101112", "SeriesTime": "101213",
        "ContentTime": "101314", "AccessionNumber": f"A{number}", "Modality": "CT", "Manufacturer": "SIEMENS",
        "InstitutionName": "Some Hospital", "ReferringPhysicianName": "Doctor^Some", "StudyDescription": "CT Abdomen",
        "SeriesDescription": "Abdomen 5.0 B30f", "ManufacturerModelName": "Sensation 64", "PatientName": f"P^{number}",
        "PatientID": f"ID{number:06}", "PatientBirthDate": "19500101", "PatientSex": "FM"[number % 2],
        "PatientAge": f"{20 + number % 60:03}Y", "SliceThickness": 5, "KVP": 120, "DataCollectionDiameter": 500,
        "SoftwareVersions": "syngo CT 2007C", "ProtocolName": "Abdomen", "ReconstructionDiameter": 380,
        "DistanceSourceToDetector": 1040, "DistanceSourceToPatient": 570, "GantryDetectorTilt": 0, "TableHeight": 150,
        "RotationDirection": "CW", "ExposureTime": 500, "XRayTubeCurrent": 200, "Exposure": 100,
        "FilterType": "WEDGE_3", "GeneratorPower": 24, "FocalSpots": 1.2, "ConvolutionKernel": "B30f",
        "PatientPosition": "HFS", "StudyInstanceUID": f"{ROOT}.2.{number}", "SeriesInstanceUID": f"{ROOT}.3.{number}",
        "StudyID": "1", "SeriesNumber": 2, "AcquisitionNumber": 1, "InstanceNumber": 1 + number % 90,
        "ImagePositionPatient": [-190, -190, 5 * (number % 90)], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "FrameOfReferenceUID": f"{ROOT}.4.{number}", "SliceLocation": 5 * (number % 90), "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "Rows": side, "Columns": side,
        "PixelSpacing": [round(380 / side, 6)] * 2, "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11,
        "PixelRepresentation": 0, "WindowCenter": 40, "WindowWidth": 400, "RescaleIntercept": -1024, "RescaleSlope": 1,
        "RescaleType": "HU",
    }.items():
        setattr(made, keyword, value)
    made.add_new("PixelData", "OW", stored.tobytes())
    return made


def slice_hu(number: int, side: int) -> npt.NDArray[np.float64]:
    """(side, side) Hounsfield units, -1024 to 3071: a body with organs, a spine and air, smooth texture, and noise."""
    from scipy.ndimage import zoom

    random = np.random.default_rng(number)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]

    def inside(middle: tuple[float, float], radii: tuple[float, float]) -> npt.NDArray[np.bool_]:
        return ((x - middle[0]) / radii[0]) ** 2 + ((y - middle[1]) / radii[1]) ** 2 < 1  # type: ignore[no-any-return]

    hu = np.full((side, side), -1000.0)
    width, depth = random.uniform(0.7, 0.9), random.uniform(0.5, 0.65)
    hu[inside((0, 0), (width, depth))] = -100  # fat
    hu[inside((0, 0), (width - 0.08, depth - 0.08))] = 50
    for _ in range(12):
        middle = random.uniform(-0.5, 0.5), random.uniform(-0.35, 0.35)
        radii = random.uniform(0.04, 0.25), random.uniform(0.04, 0.2)
        hu[inside(middle, radii)] = random.choice([-900.0, -80, 10, 40, 60, 110, 160])
    hu[inside((0, depth - 0.2), (0.1, 0.09))] = 500  # spine
    for grid, depth_hu in ((8, 15), (64, 10)):
        hu += depth_hu * zoom(random.standard_normal((grid, grid)), side / grid, order=1)
    hu += random.normal(0, 12, (side, side))
    clipped: npt.NDArray[np.float64] = np.clip(np.rint(hu), -1024, 3071)
    return clipped
