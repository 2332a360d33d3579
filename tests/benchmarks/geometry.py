"""Geometry and intensity of every DICOM series below a folder, against SimpleITK and (where it is at hand) dcm2niix.

    python tests/benchmarks/geometry.py [FOLDER] [--dcm2niix PATH]

One line a scan or single image: greatest difference of spacing (mm), of direction (cosines), of the place of any corner
(mm) and of any value. FOLDER is MEDLOOM_DATA/dicom if none is given. The exit status is 1 when orientation differs,
spacing is off by more than 1e-4 mm, or any value differs. What SimpleITK does otherwise is done to our values first and
noted: it inverts MONOCHROME1, leaves out modality LUTs, and computes in 64 bits what is stored here in 32. dcm2niix is
not asked about scans with uneven steps, which it cuts or resamples; they are flagged here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.items import Item
from connectors import dicom as connector
from infra.errors import ItemError
from infra.fileindex import FileIndex
from transforms.decoders import dicom
from transforms.scans.deidentify import check_image, number, text, value
from transforms.scans.frames import Picture, read_picture
from transforms.scans.opening import open_safely
from transforms.scans.series import Slice, slices_of, stacks

SPACING = 1e-4
DIRECTION = 1e-4
CORNER = 1e-2
Grid = tuple[npt.NDArray[Any], npt.NDArray[np.float64] | None]
"""(x, y, z) values, 4 x 4 affine in RAS+ or None"""


@dataclass
class Line:
    """How a scan or image compares with one oracle."""

    name: str
    oracle: str
    shape: str
    spacing: float | None
    direction: float | None
    corner: float | None
    value: float | None
    note: str = ""

    @property
    def wrong(self) -> bool:
        limits = ((self.spacing, SPACING), (self.direction, DIRECTION), (self.corner, CORNER), (self.value, 0.0))
        return any(found is not None and found > most for found, most in limits)

    def __str__(self) -> str:
        numbers = ["-" if v is None else f"{v:.1e}" if v else "0" for v in
                   (self.spacing, self.direction, self.corner, self.value)]
        return " | ".join([f"{self.name:<58.58}", f"{self.oracle:<9}", f"{self.shape:<12}",
                           *(f"{n:>7}" for n in numbers), "DIFFERS" if self.wrong else "same", self.note])


def compared(name: str, oracle: str, ours: Grid, theirs: Grid, note: str = "") -> Line:
    """Both grids brought to one orientation, and their greatest differences."""
    import nibabel as nib

    (values, affine), (other, other_affine) = ours, theirs
    shape = "x".join(map(str, values.shape))
    if affine is None or other_affine is None:
        differ = float(np.abs(values - other).max()) if values.shape == other.shape else np.inf
        return Line(name, oracle, shape, None, None, None, differ, f"no place; {note}" if note else "no place")
    other = other.astype(np.float32)
    images = [
        nib.as_closest_canonical(nib.Nifti1Image(np.asarray(v, np.float64), a))
        for v, a in ((values, affine), (other, other_affine))
    ]
    (a, b), (mine, yours) = (i.affine for i in images), (i.get_fdata() for i in images)
    if mine.shape != yours.shape:
        return Line(name, oracle, shape, None, None, None, np.inf, f"their shape: {yours.shape}")
    steps = [np.linalg.norm(m[:3, :3], axis=0) for m in (a, b)]
    corners = np.array([[*i, 1] for i in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in mine.shape), 1]
    return Line(
        name, oracle, shape, float(np.abs(steps[0] - steps[1]).max()),
        float(np.abs(a[:3, :3] / steps[0] - b[:3, :3] / steps[1]).max()),
        float(np.linalg.norm((corners @ (a - b).T)[:, :3], axis=1).max()), float(np.abs(mine - yours).max()), note,
    )


def by_simpleitk(paths: Sequence[Path], flat: bool = False) -> Grid:
    """SimpleITK's reading of a file, or of the files of one scan in its own order."""
    import SimpleITK as sitk

    if len(paths) == 1:
        image = sitk.ReadImage(str(paths[0]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            for number, path in enumerate(paths):
                (Path(folder) / f"{number:05d}").symlink_to(path)
            names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder)
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(names)
            image = reader.Execute()
    values = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        return values, None
    values = values if values.ndim == 3 else values[None]
    if image.GetDimension() == 2:
        return values.transpose(2, 1, 0), None
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return values.transpose(2, 1, 0), None if flat else np.diag([-1, -1, 1, 1]) @ affine


def by_dcm2niix(binary: str, paths: Sequence[Path]) -> Iterator[Grid]:
    """What dcm2niix makes of files: one grid a time point."""
    import nibabel as nib

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as out:
        for number, path in enumerate(paths):
            (Path(folder) / f"{number:05d}.dcm").symlink_to(path)
        subprocess.run(
            [binary, "-b", "n", "-z", "n", "-m", "y", "-l", "o", "-f", "%s_%d", "-o", out, folder],
            capture_output=True, check=False, timeout=60,
        )
        for made in sorted(Path(out).glob("*.nii")):
            image: Any = nib.load(made)
            values = image.get_fdata()
            for at in range(values.shape[3] if values.ndim == 4 else 1):
                yield (values[..., at] if values.ndim == 4 else values), image.affine


def items_of(root: Path) -> Iterator[Item]:
    params = connector.Params(root=str(root))
    for partition in connector.list_partitions("s", params, FileIndex(None)):
        yield from connector.read(partition, params)


def lines(root: Path, binary: str | None) -> Iterator[Line]:
    """Every series below a folder against every oracle."""
    for _, run in groupby((item for item in items_of(root) if item.error is None), key=lambda item: item.group):
        slices: list[Slice] = []
        seen: set[str] = set()
        files = {}
        for item in run:
            try:
                dataset = open_safely(item.files["main"])
                check_image(dataset, len(item.files["main"]))
            except ItemError:
                continue
            if item.sha256() not in seen:
                seen.add(item.sha256())
                files[item.id] = item.files["main"]
                slices += slices_of(item.id, item.sha256(), dataset)
        with tempfile.TemporaryDirectory() as folder:
            at = {name: Path(folder) / str(n) for n, name in enumerate(files)}
            for name, data in files.items():
                at[name].write_bytes(data)
            found = stacks(slices)
            for stack in found:
                names = list(dict.fromkeys(s.item for s in stack.slices))
                if stack.is_scan:
                    several = sum(other.slices[0].item == names[0] for other in found) > 1
                    uneven = bool({"gap", "non_uniform"} & set(stack.flags))
                    yield from scan(names, [files[name] for name in names], [at[name] for name in names],
                                    stack.slices[0].mosaic, several, None if uneven else binary)
                elif not stack.slices[0].frame:
                    yield from still(stack.slices[0], at[names[0]])


def scan(
    names: list[str], data: list[bytes], paths: list[Path], mosaic: bool, several: bool, binary: str | None
) -> Iterator[Line]:
    name = names[0] if len(names) == 1 else f"{names[0]} (+{len(names) - 1})"
    opened = dicom.open_scan(data)
    ours = (opened.values, opened.affine)
    if several:
        yield Line(name, "-", "x".join(map(str, ours[0].shape)), None, None, None, None, "first of several scans")
    if not mosaic and not several:
        yield compared(name, "SimpleITK", ours, by_simpleitk(paths))
    if binary:
        theirs = list(by_dcm2niix(binary, paths))
        if not theirs:
            yield Line(name, "dcm2niix", "", None, None, None, None, "it makes nothing of it")
        for grid in theirs[:1]:
            yield compared(name, "dcm2niix", ours, grid, f"{len(theirs)} volumes" if len(theirs) > 1 else "")


def still(s: Slice, path: Path) -> Iterator[Line]:
    shape = "x".join(map(str, s.size[1::-1]))
    try:
        picture = read_picture(s)
    except ItemError as error:
        yield Line(s.item, "-", shape, None, None, None, None, f"refused: {error.code}")
        return
    try:
        values, affine = by_simpleitk([path])
    except RuntimeError:
        yield Line(s.item, "SimpleITK", shape, None, None, None, None, "it cannot read the file")
        return
    if picture.values.ndim == 3:
        values = values[0] if values.ndim == 4 else values
        eight = values >> 8 if values.dtype.itemsize == 2 else values
        same_shape = eight.shape == picture.values.shape
        differ = float(np.abs(eight.astype(float) - picture.values).max()) if same_shape else np.inf
        yield Line(s.item, "SimpleITK", shape, None, None, None, differ, text(s.dataset, "PhotometricInterpretation"))
        return
    shown, note = as_itk_shows(s, picture)
    ours = shown.T[..., None].astype(np.float64)
    if not s.has_place:
        spacing = None if s.spacing is None or affine is None else float(
            np.abs(np.linalg.norm(affine[:3, :2], axis=0) - s.spacing[::-1]).max()
        )
        line = compared(s.item, "SimpleITK", (ours, None), (values[..., :1].astype(np.float32), None), note)
        line.spacing = spacing
        yield line
        return
    placed = np.eye(4)
    assert s.along_row is not None and s.along_column is not None and s.spacing is not None
    assert s.position is not None and s.normal is not None
    placed[:3, 0], placed[:3, 1] = s.along_row * s.spacing[1], s.along_column * s.spacing[0]
    thick = 1.0 if affine is None else float(np.linalg.norm(affine[:3, 2]))
    placed[:3, 2], placed[:3, 3] = s.normal * thick, s.position  # one slice has no step of its own
    yield compared(s.item, "SimpleITK", (ours, np.diag([-1, -1, 1, 1]) @ placed), (values[..., :1], affine), note)


def as_itk_shows(s: Slice, picture: Picture) -> tuple[npt.NDArray[Any], str]:
    """Our values after what SimpleITK does otherwise, and what that is."""
    raw = picture.raw
    if value(s.dataset, "ModalityLUTSequence"):
        return raw, "modality LUT left out by SimpleITK"
    if not s.inverted:
        return picture.values, ""
    flipped = 2 ** int(number(s.dataset, "BitsStored") or 0) - 1 - raw.astype(np.float64)
    slope, intercept = number(s.dataset, "RescaleSlope"), number(s.dataset, "RescaleIntercept")
    flipped = flipped * slope + intercept if slope and intercept is not None else flipped
    return flipped.astype(np.float32), "MONOCHROME1 inverted by SimpleITK"


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("folder", nargs="?", type=Path)
    asked.add_argument("--dcm2niix")
    given = asked.parse_args()
    data = os.environ.get("MEDLOOM_DATA", Path(__file__).parents[2].parent / "shared" / "data")
    made = list(lines(given.folder or Path(data) / "dicom", given.dcm2niix))
    print("series | oracle | shape | spacing mm | direction | corner mm | value | verdict | note")
    for line in sorted(made, key=lambda line: (line.name, line.oracle)):
        print(line)
    print(f"{len(made)} comparisons, {sum(line.wrong for line in made)} differ")
    return int(any(line.wrong for line in made))


if __name__ == "__main__":
    sys.exit(main())
