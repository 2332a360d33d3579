"""Small sources of every kind, generated: the same bytes for the same arguments."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

TRUNCATED = 200
"""Bytes kept of a file that is to be unreadable: enough to look like what it was."""


def picture(seed: int, size: int = 64, channels: int = 1) -> npt.NDArray[np.uint8]:
    """Smooth blobs with some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    blobs = sum(
        np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * s**2))
        for cx, cy, s in zip(rng.uniform(0, size, 3), rng.uniform(0, size, 3), rng.uniform(4, 14, 3), strict=True)
    )
    grey = np.clip(160 * blobs + rng.normal(20, 4, (size, size)), 0, 255).astype(np.uint8)
    return grey if channels == 1 else np.stack([grey] * 3, axis=-1)


def encoded(pixels: npt.NDArray[np.uint8], format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def make_images(root: Path, count: int, size: int = 64) -> Path:
    """An ImageFolder with the classes healthy and sick."""
    for i in range(count):
        path = root / ("sick" if i % 3 == 0 else "healthy") / f"image{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(i, size)))
    return root


def make_dicom(root: Path, slices: int = 8) -> Path:
    """One CT series of axial slices, 3 mm apart."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    root.mkdir(parents=True, exist_ok=True)
    volume = np.stack([picture(900, 64).astype(np.int16) * 8 - 1000 + 3 * z for z in range(slices)])
    for z in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{z + 1}"
        ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.PatientName, ds.PatientID = "Doe^Planted", "PLANTED-4711"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.100", "1.2.826.0.1.3680043.8.498.101"
        ds.Modality, ds.BodyPartExamined = "CT", "CHEST"
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [-32, -32, 3 * z], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [0.8, 0.8], 3
        ds.Rows = ds.Columns = 64
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleSlope, ds.RescaleIntercept = 1, 0
        ds.WindowCenter, ds.WindowWidth = 40, 400
        ds.PixelData = volume[z].tobytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds.save_as(root / f"slice{z:02d}.dcm", enforce_file_format=True)
    return root


def make_nifti(root: Path, count: int = 3) -> Path:
    """MSD layout: CT volumes with a liver and a tumour."""
    import json

    import nibabel as nib

    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    affine = np.diag([-2.0, -2.0, 4.0, 1.0])
    for i in range(count):
        values = np.stack([picture(50 + i, 48).T.astype(np.int16) * 4 - 200] * 10, axis=-1)
        labels = np.zeros(values.shape, np.uint8)
        labels[10:30, 12:34, 2:8] = 1
        labels[15:20, 18:24, 4:6] = 2
        nib.save(nib.Nifti1Image(values, affine), root / "imagesTr" / f"case{i}.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), root / "labelsTr" / f"case{i}.nii.gz")
    training = [{"image": f"./imagesTr/case{i}.nii.gz", "label": f"./labelsTr/case{i}.nii.gz"} for i in range(count)]
    (root / "dataset.json").write_text(json.dumps({
        "name": "small", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "liver tumour"},
        "licence": "CC0-1.0", "training": training, "test": [],
    }))
    return root


ARTICLE = """<?xml version="1.0"?>
<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><journal-meta><journal-title-group><journal-title>Journal of
Examples</journal-title></journal-title-group></journal-meta><article-meta>
<article-id pub-id-type="pmc">{pmc}</article-id>
<title-group><article-title>Article {pmc}</article-title></title-group><permissions><license
xlink:href="https://creativecommons.org/licenses/by/4.0/"><license-p>CC BY 4.0</license-p></license></permissions>
</article-meta></front><body><p>See <xref ref-type="fig" rid="f1">Figure 1</xref> and <xref ref-type="fig"
rid="f2">Figure 2</xref>.</p><fig id="f1"><label>Figure 1</label><caption><title>First.</title><p>A scan.</p></caption>
<graphic xlink:href="fig1"/></fig><fig id="f2"><label>Figure 2</label><caption><p>A plot.</p></caption><graphic
xlink:href="fig2.png"/></fig></body></article>"""


def make_articles(root: Path, count: int = 3) -> Path:
    """Article folders, two figures each."""
    for i in range(count):
        folder = root / f"PMC{1000 + i}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "article.nxml").write_text(ARTICLE.format(pmc=f"PMC{1000 + i}"))
        (folder / "fig1.jpg").write_bytes(encoded(picture(200 + i, 80, 3), "JPEG"))
        (folder / "fig2.png").write_bytes(encoded(picture(300 + i, 80)))
    return root


def truncate(path: Path) -> None:
    """Make a file unreadable, as a broken download does."""
    path.write_bytes(path.read_bytes()[:TRUNCATED])


RECIPE = """
name: generated
sources:
  - {{name: pictures, use: images, layout: imagefolder, root: {root}/images, modality: XC, identifiers: public,
     capacity: 8}}
  - {{name: series, use: dicom, root: {root}/dicom, identifiers: public}}
  - {{name: volumes, use: nifti, layout: msd, root: {root}/nifti, identifiers: public, capacity: 1}}
  - {{name: articles, use: pmc, root: {root}/pmc, identifiers: public, capacity: 1}}
stages:
  - {{use: panels}}
  - {{use: image_type}}
  - {{use: harmonise}}
  - {{use: ground_volumes}}
  - {{use: ground}}
  - {{use: measure}}
  - {{use: caption}}
  - {{use: caption, name: variants, captioner: variants, options: {{variants: 2}}}}
  - {{use: verify}}
"""


def make_all(root: Path) -> Path:
    """Sources of every kind and a recipe over them; returns the recipe's path."""
    make_images(root / "images", 30)
    make_dicom(root / "dicom")
    make_nifti(root / "nifti")
    make_articles(root / "pmc")
    (root / "recipe.yaml").write_text(RECIPE.format(root=root))
    return root / "recipe.yaml"
