"""Files that are as they should be, small and of many kinds: where fuzzing begins. name -> bytes, always the same."""

from __future__ import annotations

import gzip
import io
import tarfile
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import dicomfiles
import jatsfiles
import make_nifti
import numpy as np
from PIL import Image
from sources import ARTICLE

MOST_DICOM = 16_000
"""Bytes of the largest of pydicom's files that is a seed: small ones are fuzzed faster."""


@cache
def dicoms() -> dict[str, bytes]:
    """Files of pydicom's tests, in every transfer syntax and with every oddity it knows, and some of ours."""
    import pydicom.data

    folder = Path(pydicom.data.__file__).parent / "test_files"
    found = {path.name: path.read_bytes() for path in sorted(folder.glob("*.dcm"))}
    return {name: data for name, data in found.items() if len(data) <= MOST_DICOM} | parts_of_series() | {
        "cine": dicomfiles.data_of(dicomfiles.image(1, _pixels(3, 6, 8, 1), NumberOfFrames=3, Modality="US")),
        "colour": dicomfiles.data_of(dicomfiles.image(1, _pixels(6, 8, 3).astype(np.uint8), Modality="XC")),
    }


@cache
def slices() -> dict[str, bytes]:
    return {f"slice{n}": dicomfiles.data_of(dicomfiles.image(n)) for n in range(6)}


@cache
def parts_of_series() -> dict[str, bytes]:
    """A slice, and what may outline it."""
    of = [dicomfiles.image(n) for n in range(6)]
    square = [[-9.0, -19.0], [-7.0, -19.0], [-7.0, -17.0], [-9.0, -17.0]]
    masks = np.zeros((6, 6, 8), np.uint8)
    masks[:, 1:4, 2:6] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "slice2": slices()["slice2"],
            "segmentation": dicomfiles.data_of(dicomfiles.segmentation(of, masks)),
            "structures": dicomfiles.data_of(dicomfiles.structure_set(of, {"Liver": [(1, square), (3, square)]})),
        }


@cache
def volumes() -> dict[str, bytes]:
    """NIfTI-1 and -2, plain and packed, of several types and shapes; MGH and NRRD."""
    import nibabel as nib

    grey = make_nifti.voxels()
    four = np.stack([grey, grey * 2, grey + 5], axis=-1)
    floats = grey.astype(np.float32)
    floats[0, 0, 0] = np.nan
    nrrd = (
        b"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 8 6 5\n"
        b"space directions: (2,0,0) (0,2,0) (0,0,3)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
        b"space origin: (0,0,0)\n\n"
    )

    def slope(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = 2, -10

    return {
        "plain.nii": make_nifti.make(packed=False),
        "packed.nii.gz": make_nifti.make(),
        "second.nii": make_nifti.make(kind=nib.Nifti2Image, packed=False),
        "frames.nii.gz": make_nifti.make(four),
        "floats.nii": make_nifti.make(floats, packed=False, change=slope),
        "bytes.nii": make_nifti.make(make_nifti.voxels(np.uint8), packed=False),
        "scan.mgh": nib.MGHImage(grey, make_nifti.RAS).to_bytes(),
        "scan.mgz": gzip.compress(nib.MGHImage(grey, make_nifti.RAS).to_bytes(), mtime=0),
        "scan.nrrd": nrrd + grey.tobytes(order="F"),
    }


@cache
def labels() -> dict[str, bytes]:
    found = np.zeros(make_nifti.SHAPE, np.uint8)
    found[2:6, 1:4, 1:4], found[3:5, 2:3, 2:3] = 1, 2
    finer = np.diag([1.0, 1.0, 1.5, 1.0])
    return {
        "labels.nii": make_nifti.make(found, packed=False),
        "labels.nii.gz": make_nifti.make(found),
        "finer.nii.gz": make_nifti.make(found.repeat(2, 0).repeat(2, 1).repeat(2, 2), finer),
        "floats.nii": make_nifti.make(found.astype(np.float32), packed=False),
    }


@cache
def images() -> dict[str, bytes]:
    """Each format in the modes that differ in how they are read."""
    grey = _pixels(20, 24).astype(np.uint8)
    colour = _pixels(20, 24, 3).astype(np.uint8)
    pictures = {
        "grey": Image.fromarray(grey), "colour": Image.fromarray(colour),
        "palette": Image.fromarray(colour).quantize(8), "bits": Image.fromarray(grey > 99),
        "clear": Image.fromarray(np.dstack([colour, grey])), "deep": Image.fromarray(_pixels(20, 24).astype(np.uint16)),
    }
    exif = Image.Exif()
    exif[0x0112] = 6
    wanted: list[tuple[str, str, str, dict[str, Any]]] = [
        *(("PNG", "png", name, {}) for name in pictures),
        *(("TIFF", "tif", name, {}) for name in pictures),
        ("TIFF", "lzw.tif", "colour", {"compression": "tiff_lzw"}),
        ("TIFF", "jpeg.tif", "colour", {"compression": "jpeg"}),
        ("TIFF", "fax.tif", "bits", {"compression": "group4"}),
        ("TIFF", "pack.tif", "grey", {"compression": "packbits"}),
        ("TIFF", "pages.tif", "grey", {"save_all": True, "append_images": [pictures["colour"]]}),
        ("JPEG", "jpg", "grey", {}), ("JPEG", "jpg", "colour", {"exif": exif}),
        ("JPEG", "progressive.jpg", "colour", {"progressive": True}),
        ("GIF", "gif", "palette", {"save_all": True, "append_images": [pictures["grey"]]}), ("GIF", "gif", "grey", {}),
        ("WEBP", "webp", "colour", {}), ("WEBP", "lossless.webp", "clear", {"lossless": True}),
        ("WEBP", "moving.webp", "grey", {"save_all": True, "append_images": [pictures["colour"]], "exif": exif}),
        *(("BMP", "bmp", name, {}) for name in ("grey", "colour", "palette", "bits")),
        ("PPM", "pgm", "grey", {}), ("PPM", "ppm", "colour", {}), ("JPEG2000", "jp2", "grey", {}),
    ]
    found = {}
    for format, suffix, name, how in wanted:
        file = io.BytesIO()
        pictures[name].save(file, format, **how)
        found[f"{name}.{suffix}"] = file.getvalue()
    found["moving.png"] = _saved(pictures["grey"], save_all=True, append_images=[Image.fromarray(255 - grey)])
    return found


def _saved(picture: Image.Image, **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **how)
    return file.getvalue()


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 255, shape, np.int16)


@cache
def archives() -> dict[str, bytes]:
    files = {"PMC1/a.nxml": b"<article/>", "PMC1/fig/a.jpg": bytes(range(256)) * 3, "PMC1/empty": b""}
    found = {}
    for suffix, mode, format in (
        ("tar", "w", tarfile.PAX_FORMAT), ("tar.gz", "w:gz", tarfile.PAX_FORMAT), ("gnu.tar", "w", tarfile.GNU_FORMAT),
    ):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode, format=format) as packed:  # type: ignore[call-overload]
            for name, data in {**files, "long" * 40 + "ä": b"1"}.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                packed.addfile(info, io.BytesIO(data))
        found[suffix] = file.getvalue()
    found["tar.gz"] = gzip.compress(gzip.decompress(found["tar.gz"]), mtime=0)
    for suffix, method in (("zip", zipfile.ZIP_DEFLATED), ("stored.zip", zipfile.ZIP_STORED)):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as zipped:
            for name, data in {**files, "ä.txt": b"1"}.items():
                zipped.writestr(zipfile.ZipInfo(name), data, method)
        found[suffix] = file.getvalue()
    return found


@cache
def articles() -> dict[str, bytes]:
    """JATS with what it may hold: groups, tables, sub-articles, formulas, entities, dates, licences."""
    rich = """<p>See <xref rid="f1 f2">Figs 1</xref>-<xref rid="f4">4</xref>, 10<sup>5</sup> CO<sub>2</sub>
    &#945;<inline-formula><mml:math><mml:mi>x</mml:mi></mml:math><tex-math>x</tex-math></inline-formula></p>
    <fig-group id="g"><label>Figure 1</label><caption><p>Both.</p></caption><fig id="f1"><label>Figure 1</label>
    <caption><title>One</title><p>Left.</p></caption><alternatives><graphic xlink:href="a.tif"/><graphic
    xlink:href="a.jpg"/></alternatives></fig><fig id="f2"><label>Figure 2</label><graphic xlink:href="b"/>
    <permissions><license license-type="open-access"><license-p>CC BY-NC 4.0</license-p></license></permissions></fig>
    </fig-group><table-wrap id="t1"><label>Table 1</label><caption><p>T.</p></caption><graphic xlink:href="t"/>
    </table-wrap><fig id="f4" xml:lang="de"><label>Figure 4</label><graphic xlink:href="d%20d.png"/></fig>"""
    meta = """<article-id pub-id-type="pmcid">PMC12</article-id><article-id pub-id-type="doi">10.1/x</article-id>
    <article-categories><subj-group><subject>Medicine</subject></subj-group></article-categories><title-group>
    <article-title>Retracted: <italic>x</italic></article-title></title-group><pub-date pub-type="epub"><day>31</day>
    <month>Feb</month><year>2020</year></pub-date><pub-date iso-8601-date="2021-03-04"/><permissions><license
    xlink:href="https://creativecommons.org/licenses/by/4.0/"><ali:license_ref>http://creativecommons.org/licenses/by/4.0/
    </ali:license_ref></license></permissions><abstract><title>Abstract</title><sec>
    <title>Aim</title><p>To see.</p></sec>
    </abstract><abstract abstract-type="graphical"><p><graphic xlink:href="g"/></p></abstract><kwd-group><kwd>k</kwd>
    </kwd-group>"""
    after = """<back><sec><title>More</title><p>Fig. 4</p></sec></back><floats-group>
    <fig id="f9"><graphic xlink:href="z"/>
    </fig></floats-group><sub-article><front-stub/><body>
    <fig id="f1"><graphic xlink:href="q"/></fig></body></sub-article>"""
    entities = b'<?xml version="1.0"?><!DOCTYPE article PUBLIC "-//NLM//DTD JATS" "a.dtd">'
    return {
        "plain": ARTICLE.format(pmc="PMC7").encode(),
        "rich": jatsfiles.article(rich, meta, after, 'article-type="research-article" xml:lang="en"'),
        "entities": entities + jatsfiles.article("<p>TGF-&beta; &nbsp;</p>" + rich[: rich.index("<fig-group")]),
        "spaced": jatsfiles.article(rich).replace(b"<article ", b'<article xmlns="https://jats.nlm.nih.gov" '),
    }
