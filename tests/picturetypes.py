"""Labelled pictures for classifiers of picture kinds: scans and figures of the sample data, and drawn ones.

The invariant: every picture names its source (patient, article, collection or generator), so that an evaluation can
leave whole sources out. Pictures whose licence forbids commercial use have `open` False: they may test, never train.

Figures and panels of articles were labelled by eye in `picturetypes.csv`: SHA-256 of the figure's file, its article and
name, the box (shares of width and height) and the class. No pixels are kept here.
"""

from __future__ import annotations

import csv
import io
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from drawnpictures import DRAWN
from PIL import Image, ImageDraw, ImageFont

from infra.fileindex import FileIndex
from infra.plugins import load
from transforms.decoded import IngestParams, Pixels, Sample

FIGURES = Path(__file__).with_suffix(".csv")
LEAST_SIDE, LEAST_CONTRAST = 62, 4.0
"""Scans below this (test images of 16 pixels, empty slices) show nothing to recognise."""
DICOM_CLASSES = {"CT": "ct", "MR": "mr", "CR": "xray", "DX": "xray", "US": "ultrasound"}
SCANNED = IngestParams(
    max_side=1024, frames=3, slices="stride:0.2", planes=("axial", "coronal", "sagittal"),
    windows=("soft_tissue", "lung", "bone"),
)
PHOTOGRAPHS = {"image1.dcm", "image2.dcm", "HTJ2K_08_RGB.dcm"}
NOT_SHOWN = ("pul_", "pulmonary_artery", "heart.nii", "ct_1.dcm")
"""Label maps, noise and phantoms."""


@dataclass(frozen=True)
class Picture:
    """One labelled picture."""

    pixels: Pixels
    kind: str
    source: str
    open: bool = True


@dataclass(frozen=True)
class Folder:
    """A folder of the sample data and how to read it."""

    path: str
    use: str
    decoder: str
    params: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None
    """class of all its pictures; None: told by the modality"""
    source: str | None = None
    """None: each patient is a source"""
    open: bool = True


def _images(path: str, kind: str | None, source: str | None, open: bool = True, **params: Any) -> Folder:
    return Folder(path, "images", "image", {"layout": "imagefolder", **params}, kind, source, open)


def _scans(path: str) -> Folder:
    return Folder(path, "dicom", "dicom")


_NOT_DICOM = {"exclude": ["*.nii.gz", "*.nii", "*.json", "*.bval", "*.bvec"]}
FOLDERS = (
    Folder("dicom/dcm_qa_mr", "dicom", "dicom", _NOT_DICOM, "mr", "dcm_qa"),
    Folder("dicom/deid_data", "dicom", "dicom"),
    Folder("dicom/pydicom_data", "dicom", "dicom"),
    Folder("dicom/pydicom_test_files", "dicom", "dicom"),
    Folder("dicom/totalseg_ct_series", "dicom", "dicom"),
    Folder("nifti/bids_like", "nifti", "nifti", {}, "mr", "dcm_qa"),
    Folder("nifti/mni_icbm152", "nifti", "nifti", {"include": ["*_t1_*"]}, "mr", "mni_icbm152"),
    Folder("nifti/nibabel_samples", "nifti", "nifti", {}, "mr", "nibabel"),
    Folder("nifti/totalseg_mr_msd", "nifti", "nifti", {"layout": "msd"}, "mr", "totalseg_mr"),
    Folder("nifti/totalseg_ct_msd", "nifti", "nifti", {"layout": "msd"}, "ct", "totalseg_ct"),
    Folder("nifti/totalseg_pulmonary_masks", "nifti", "nifti", {"modality": "CT"}, "ct", "totalseg_heart"),
    _images("classification/nih_cxr64/NIH1000", "xray", "nih_cxr64", splits=["train", "valid", "test"]),
    _images("detection/bccd_voc/BCCD/JPEGImages", "light_microscopy", "bccd"),
    _images("detection/bccd_coco/train", "light_microscopy", "bccd"),
    _images("segmentation/dsb2018/stage1_train", None, None, include=["*/images/*"]),
    _images("pkg:sklearn/datasets/images", "photo", "photo scikit-learn"),
    _images("classification/covid_cxr_nc/images", None, None, open=False),
)


def pictures(data: Path, folders: Sequence[Folder] = FOLDERS) -> Iterator[Picture]:
    """The real pictures of folders of the sample data, then the labelled figures and panels of its articles."""
    for folder in folders:
        root = folder.path if folder.path.startswith("pkg:") else str(data / folder.path)
        for sample in _samples(root, folder):
            name = f"{folder.path}/{sample.items[0]}"
            kind, source = _labelled(folder, sample, name)
            shown = min(sample.pixels.shape[:2]) >= LEAST_SIDE and sample.pixels.std() >= LEAST_CONTRAST
            if kind and shown and not any(word in sample.items[0] for word in NOT_SHOWN):
                yield Picture(sample.pixels, kind, source, folder.open)
    yield from _figures(data)


def _labelled(folder: Folder, sample: Sample, name: str) -> tuple[str | None, str]:
    """Class and source of a sample."""
    if "dsb2018" in name:
        grey = np.ptp(sample.pixels.astype(int), axis=-1).max() < 8 if sample.pixels.ndim == 3 else True
        kind = "fluorescence_microscopy" if grey else "light_microscopy"
        return kind, f"dsb2018 {sample.pixels.shape[1]}"
    if "covid_cxr" in name:
        return ("ct" if "/CT/" in name else "xray"), "covid_cxr"
    if Path(name).name in PHOTOGRAPHS:
        return "photo", f"photo {Path(name).name[:5]}"
    if Path(name).name.startswith("GREYSCALE"):
        return "ultrasound", "deid greyscale"
    modality = str(sample.columns.get("modality"))
    return folder.kind or DICOM_CLASSES.get(modality), folder.source or str(sample.group)


def _samples(root: str, folder: Folder) -> Iterator[Sample]:
    connector, decoder = load("connector", folder.use), load("decoder", folder.decoder)
    params = connector.Params(root=root, **folder.params)
    for partition in connector.list_partitions("source", params, FileIndex(None)):
        good = (item for item in connector.read(partition, params) if item.error is None)
        for _, items in groupby(good, key=lambda item: item.group):
            made = decoder.decode(list(items), SCANNED, lambda kind, name: f"{kind} {name}")
            yield from (sample for sample in made if isinstance(sample, Sample))


def _figures(data: Path) -> Iterator[Picture]:
    by_file: dict[str, list[dict[str, str]]] = {}
    with open(FIGURES, newline="") as file:
        for row in csv.DictReader(file):
            by_file.setdefault(row["sha256"], []).append(row)
    for sample in _samples(str(data / "pmc"), Folder("pmc", "pmc", "figure")):
        for row in by_file.get(sample.content[0], ()):
            height, width = sample.pixels.shape[:2]
            x0, x1 = (round(float(row[name]) * width) for name in ("x0", "x1"))
            y0, y1 = (round(float(row[name]) * height) for name in ("y0", "y1"))
            yield Picture(sample.pixels[y0:y1, x0:x1], row["class"], f"article {row['article']}")


def drawn(count: int) -> Iterator[Picture]:
    """`count` pictures of each kind that code can draw."""
    for kind, draw in DRAWN.items():
        rng = np.random.default_rng(zlib.crc32(kind.encode()))
        for _ in range(count):
            yield Picture(np.asarray(draw(rng)), kind, f"drawn {kind}")


def varied(picture: Picture, rng: np.random.Generator) -> Picture:
    """The picture as another paper might print it: cropped, scaled, toned, lettered, framed, compressed."""
    image = Image.fromarray(picture.pixels).convert("RGB")
    image = _cropped(image, rng)
    if picture.kind in TONES and rng.random() < 0.65:
        image = TONES[picture.kind](image, rng)
    scale = 2 ** rng.uniform(6.3, 10) / max(image.size)
    image = image.resize(tuple(max(24, round(side * scale)) for side in image.size), Image.Resampling.BICUBIC)
    if picture.kind not in DRAWN and rng.random() < 0.35:
        _letter(image, rng)
    if rng.random() < 0.15:
        edge, colour = int(rng.integers(2, 25)), "white" if rng.random() < 0.7 else "black"
        framed = Image.new("RGB", (image.width + 2 * edge, image.height + 2 * edge), colour)
        framed.paste(image, (edge, edge))
        image = framed
    if rng.random() < 0.7:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(35, 96)))
        image = Image.open(buffer)
    return Picture(np.asarray(image), picture.kind, picture.source, picture.open)


def _cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.3:
        return image
    x0, y0, x1, y1 = rng.uniform(0, 0.15, 4)
    return image.crop((
        int(x0 * image.width), int(y0 * image.height),
        math.ceil((1 - x1) * image.width), math.ceil((1 - y1) * image.height),
    ))


def _letter(image: Image.Image, rng: np.random.Generator) -> None:
    size = max(10, int(max(image.size) * rng.uniform(0.05, 0.11)))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    corner = (4 if rng.random() < 0.6 else image.width - size, 2 if rng.random() < 0.6 else image.height - size - 4)
    letter, fill = "ABCDEFGHabcdefgh"[rng.integers(16)], ("white", "black", "yellow")[rng.integers(3)]
    draw.text(corner, letter, fill=fill, font=font)


def _curved(image: Image.Image, gamma: float) -> Image.Image:
    return image.point([round(255 * (value / 255) ** gamma) for value in range(256)] * 3)


def _radiological(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _curved(image, rng.uniform(0.65, 1.5))


def _inverted_at_times(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    image = _radiological(image, rng)
    return image.point([255 - value for value in range(256)] * 3) if rng.random() < 0.3 else image


def _stained(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Each channel with a curve of its own, as another stain and another lamp would give."""
    return image.point([round(255 * (v / 255) ** g) for g in rng.uniform(0.6, 1.6, 3) for v in range(256)])


def _pseudocoloured(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Stretched and tinted as fluorescence channels are printed, at times with a second channel beside the first."""
    grey = np.asarray(image.convert("L"), np.float32)
    grey = (grey - grey.min()) / max(float(np.quantile(grey, 0.995) - grey.min()), 8.0)
    grey = np.clip(grey, 0, 1) ** rng.uniform(0.6, 1.4)
    tints = ((0, 1, 0), (0, 0.2, 1), (1, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
    made = grey[..., None] * np.array(tints[rng.integers(len(tints))])
    if rng.random() < 0.4:
        other = np.roll(grey[::-1], int(rng.integers(1, 40)), axis=int(rng.integers(2)))
        made = made + other[..., None] * np.array(tints[rng.integers(len(tints))]) * rng.uniform(0.3, 1)
    return Image.fromarray((np.clip(made, 0, 1) * 255).astype(np.uint8))


TONES: Mapping[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "ct": _radiological, "mr": _radiological, "xray": _inverted_at_times, "ultrasound": _radiological,
    "gel": _inverted_at_times, "light_microscopy": _stained, "fluorescence_microscopy": _pseudocoloured,
    "photo": _stained,
}
