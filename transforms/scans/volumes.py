"""Volumes: from a 3-D scan to upright, windowed 2-D slices with their regions.

The invariant: which way the array happened to lie on disk does not show. Axes are permuted and flipped, never
resampled, so a slice always looks as radiologists hang it: the patient's right on the image's left, feet down.

    plane      rows go down to   columns go right to   orientation
    axial      posterior         left                  LP
    coronal    inferior          left                  LI
    sagittal   inferior          posterior             PI

>>> for piece in cut(Scan(hounsfield, affine, "CT", "abdomen"), IngestParams(slices="middle", windows=("bone",))):
...     print(piece.locator, piece.pixels.shape)
axial:56:bone (101, 122)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import ConfigError
from infra.plugins import nearest
from transforms.decoded import IngestParams, Pixels, Region
from transforms.scans.windows import Window, choose_windows, named_window, percentile_window, to_grey

__all__ = ["Cut", "Scan", "Structure", "Window", "canonical", "check", "choose_slices", "cut", "role_of", "to_grey"]

PLANES: Mapping[str, tuple[int, str]] = {"sagittal": (0, "PI"), "coronal": (1, "LI"), "axial": (2, "LP")}
"""plane -> (axis of an LPS array that it cuts across, directions in which its columns and rows grow)"""

NATIVE = "native"
"""The plane across the third array axis of a scan whose orientation is unknown."""

BODY_HU = -300.0
"""CT voxels above this are patient (or couch), not air."""
FOREGROUND = 0.1
"""Elsewhere: voxels above this share of the display window are not background."""
FOREGROUND_SHARE = 0.01
"""A slice with a smaller share of such voxels is background."""


@dataclass(frozen=True, eq=False)
class Structure:
    """An outlined structure of a scan: the mask of its bounding box, and where that begins."""

    label: str
    role: str
    mask: npt.NDArray[np.bool_]
    """(x, y, z)"""
    corner: tuple[int, int, int]
    """voxel index of the mask's first voxel"""
    ontology_id: str | None = None


@dataclass(frozen=True, eq=False)
class Scan:
    """A 3-D array with its geometry, in modality units."""

    values: npt.NDArray[Any]
    """(x, y, z) float or integer, finite; HU for CT after rescale, raw otherwise"""
    affine: npt.NDArray[np.float64] | None
    """4 x 4, voxel index to millimetres in RAS+; None: unknown"""
    modality: str | None
    """DICOM code: CT, MR …"""
    anatomy: str | None
    window: Window | None = None
    """the file's own window"""
    inverted: bool = False
    """MONOCHROME1: low values are bright"""
    labels: npt.NDArray[Any] | None = None
    """(x, y, z) integers on the same grid; 0 is background"""
    label_table: Mapping[int, str] = field(default_factory=dict)
    """label value -> name"""
    masks: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    """name -> (x, y, z); unlike labels, masks may overlap"""
    structures: tuple[Structure, ...] = ()
    """as masks, with role and concept, and no larger than they must be"""

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Millimetres along the three axes; None: unknown."""
        if self.affine is None:
            return None
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)

    @property
    def orientation(self) -> str | None:
        """Patient directions in which the axes grow, three letters (LPS, RAS …); None: unknown."""
        if self.affine is None:
            return None
        from nibabel.orientations import aff2axcodes

        return "".join(aff2axcodes(self.affine))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, eq=False)
class Cut:
    """One slice of a scan in one window: a sample to be."""

    locator: str
    """plane, index and window: axial:41:soft_tissue"""
    plane: str
    index: int
    """slice index along that axis of the scan's own array, as it was given, that is closest to the plane's normal"""
    pixels: Pixels
    """(height, width)"""
    columns: Mapping[str, Any]
    """columns of `images`: view, slice_index, window, pixel_spacing, orientation, modality, anatomy"""
    regions: tuple[Region, ...]


def canonical(scan: Scan) -> Scan:
    """The scan with its axes permuted and flipped so that they grow to the patient's left, posterior and superior.

    Nothing is resampled: an oblique scan keeps its voxels and goes by its closest axes. The affine is changed along, so
    every voxel stays where it was in the patient. A scan of unknown orientation comes back as it is.
    """
    if scan.affine is None:
        return scan
    lay = _lay(scan.affine)
    return replace(
        scan,
        values=lay.apply(scan.values),
        affine=scan.affine @ lay.matrix(scan.values.shape),
        labels=None if scan.labels is None else lay.apply(scan.labels),
        masks={name: lay.apply(mask) for name, mask in scan.masks.items()},
        structures=tuple(lay.structure(one, scan.values.shape) for one in scan.structures),
    )


def cut(scan: Scan, params: IngestParams) -> Iterator[Cut]:
    """The slices of a scan that the parameters ask for, in the order planes, slices, windows.

    Slices are chosen on the upright scan, so two files of one scan that lie differently give the same pictures; the
    index is that of the file's own array. Without an affine there are no planes: the slices across the third axis are
    cut as they lie, and view, orientation and spacing stay unknown. Raises ConfigError, see `check`.
    """
    upright = canonical(scan)
    windows = choose_windows(scan.values, scan.modality, scan.anatomy, scan.window, params.windows)
    if "percentile" in windows:
        upright = replace(upright, window=windows["percentile"])  # so that it is not sought again for every plane
    for plane in (NATIVE,) if scan.affine is None else params.planes:
        axis, orientation = (2, None) if plane == NATIVE else _plane(plane)
        for at in choose_slices(upright, axis, params.slices):
            index = at if scan.affine is None else _lay(scan.affine).index(axis, at, upright.values.shape[axis])
            values, regions = _face(upright.values, axis, at), tuple(_regions(upright, axis, at))
            for name, window in windows.items():
                columns = {
                    "view": None if plane == NATIVE else plane,
                    "slice_index": index,
                    "window": list(window),
                    "pixel_spacing": _pixel_spacing(upright, axis),
                    "orientation": orientation,
                    "modality": scan.modality,
                    "anatomy": scan.anatomy,
                }
                pixels = to_grey(values, window, scan.inverted)
                yield Cut(f"{plane}:{index}:{name}", plane, index, pixels, columns, regions)


def regions_at(upright: Scan, affine: Any, plane: str | None, index: int) -> list[Region]:
    """What an upright scan (`canonical`) shows on a slice that `cut` gave: by its view and slice_index."""
    axis = 2 if plane is None else _plane(plane)[0]
    at = index if affine is None else _lay(affine).index(axis, index, upright.values.shape[axis])
    return list(_regions(upright, axis, at))


def choose_slices(scan: Scan, plane_axis: int, rule: str) -> list[int]:
    """Indices of the slices across an axis that a rule picks, sorted, none twice.

    A rule is one or more of these, joined by "+":

        largest:N   the N slices of largest labelled area: of lesions where the scan has any, else of all labels. They
                    are at least L // (2 N) slices apart, L being the number of labelled slices, so that N are found
                    wherever N are labelled. None without labels.
        each:N      the same for every structure by itself
        negative:N  N slices, evenly spaced among those without any label within the extent of non-background. None
                    without labels: a scan that nobody labelled says nothing of what is not there
        stride:F    slices at the fractions F/2, 3F/2, 5F/2 … of the extent of non-background; 0 < F <= 1
        middle      the middle of that extent
        all         every slice, background too

    Raises ConfigError for any other rule.
    """
    chosen: set[int] = set()
    for name, argument in _parse(rule):
        if name == "largest":
            chosen.update(_largest(_labelled_area(scan, plane_axis), int(argument)))
        elif name == "each":
            for area in _areas(scan, plane_axis).values():
                chosen.update(_largest(area, int(argument)))
        elif name == "negative":
            chosen.update(_negative(scan, plane_axis, int(argument)))
        elif name == "all":
            chosen.update(range(scan.values.shape[plane_axis]))
        else:
            first, count = _extent(scan, plane_axis)
            steps = (argument / 2 + argument * i for i in range(int(1 / argument) + 1))
            chosen.update(first + int(at * count) for at in steps if at < 1)
    return sorted(chosen)


def check(params: IngestParams) -> None:
    """Raise ConfigError if these parameters name a plane, window or slice rule that does not exist."""
    _parse(params.slices)
    for plane in params.planes:
        _plane(plane)
    for name in params.windows:
        named_window(name)


_LESION = re.compile(
    r"(?<![a-z])(lesion|tumou?r|cancer|carcinoma|neoplasm|metastas[ie]s|nodule|mass|cyst|polyp|abscess|o?edema|necrosis|"
    r"necrotic|ha?emorrhage|ha?ematoma|infarct|infarction|effusion|pneumothorax|consolidation|opacity|embolism|"
    r"aneurysm|fracture|plaque|calcification|stone|enhancing)s?(?![a-z])"
)
_DEVICE = re.compile(r"(?<![a-z])(catheter|stent|pacemaker|implant|screw|tube|wire|clip|prosthesis|device)s?(?![a-z])")


def role_of(name: str) -> str:
    """What a label's name speaks of: "lesion" (liver_tumour, kidney_cyst_left), "device", "body", or else "organ"."""
    words = name.lower()
    if _LESION.search(words):
        return "lesion"
    if _DEVICE.search(words):
        return "device"
    return "body" if words in ("body", "skin", "body_trunc", "body_extremities") else "organ"


@dataclass(frozen=True)
class _Lay:
    """How an LPS array is made from an array: for each LPS axis, the array's axis and whether it is flipped."""

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array.transpose(self.axes)[tuple(slice(None, None, -1 if f else 1) for f in self.flipped)]

    def structure(self, one: Structure, shape: tuple[int, ...]) -> Structure:
        x, y, z = (
            shape[own] - one.corner[own] - one.mask.shape[own] if flipped else one.corner[own]
            for own, flipped in zip(self.axes, self.flipped, strict=True)
        )
        return replace(one, mask=self.apply(one.mask), corner=(x, y, z))

    def index(self, axis: int, index: int, size: int) -> int:
        """The array's own index of slice `index` of an LPS axis."""
        return size - 1 - index if self.flipped[axis] else index

    def matrix(self, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """4 x 4, from LPS index to the array's own index."""
        matrix = np.diag([0.0, 0.0, 0.0, 1.0])
        for axis, (own, flipped) in enumerate(zip(self.axes, self.flipped, strict=True)):
            matrix[own, axis] = -1 if flipped else 1
            matrix[own, 3] = shape[own] - 1 if flipped else 0
        return matrix


def _lay(affine: npt.NDArray[np.float64]) -> _Lay:
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    own, lps = io_orientation(affine), axcodes2ornt("LPS")  # type: ignore[no-untyped-call]
    steps = ornt_transform(own, lps)  # type: ignore[no-untyped-call]
    axes = tuple(int(axis) for axis in np.argsort(steps[:, 0]))
    return _Lay(axes, tuple(bool(steps[axis, 1] < 0) for axis in axes))


def _plane(name: str) -> tuple[int, str]:
    if name not in PLANES:
        raise ConfigError(f"planes: there is no plane {name!r}{nearest(name, PLANES)}; use axial, coronal or sagittal")
    return PLANES[name]


def _face(array: npt.NDArray[Any], axis: int, index: int) -> npt.NDArray[Any]:
    """A slice of an LPS array as a picture: rows go down to posterior (axial) or to the feet."""
    face: npt.NDArray[Any] = np.moveaxis(array, axis, 0)[index].T  # a view: take would copy the volume
    return face if axis == 2 else face[::-1]


def _pixel_spacing(upright: Scan, axis: int) -> list[float] | None:
    """mm per row, mm per column."""
    if upright.spacing is None:
        return None
    across, down = (a for a in range(3) if a != axis)
    return [upright.spacing[down], upright.spacing[across]]


_COUNT = r"[1-9]\d*"
_ARGUMENTS = {"largest": _COUNT, "each": _COUNT, "negative": _COUNT, "stride": r"\d*\.?\d+", "middle": "", "all": ""}


def _parse(rule: str) -> list[tuple[str, Fraction]]:
    """The parts of a slice rule as (name, argument); the argument of middle and all is 1."""
    parts = []
    for part in (part.strip() for part in rule.split("+")):
        name, _, text = part.partition(":")
        known = name in _ARGUMENTS and re.fullmatch(_ARGUMENTS[name], text)
        argument = Fraction(text or 1) if known else Fraction(0)
        if argument <= 0 or (argument > 1 and name == "stride"):
            raise ConfigError(
                f"slices: {part!r} is no slice rule; use largest:N, each:N, negative:N, stride:F (0 < F <= 1), middle "
                "or all"
            )
        parts.append((name, argument))
    return parts


def _regions(scan: Scan, axis: int, index: int) -> Iterator[Region]:
    """What labels and masks show on a slice; labels called background are nothing."""
    if scan.labels is not None:
        labels = _face(scan.labels, axis, index)
        for value in (int(v) for v in np.unique(labels) if v != 0):
            name = scan.label_table.get(value, f"label {value}")
            if name.lower() != "background":
                yield Region(name, role_of(name), np.ascontiguousarray(labels == value))
    for name, mask in scan.masks.items():
        if (face := _face(mask, axis, index)).any():
            yield Region(name, role_of(name), np.ascontiguousarray(face))
    for one in scan.structures:
        at = index - one.corner[axis]
        if 0 <= at < one.mask.shape[axis] and (part := np.moveaxis(one.mask, axis, 0)[at]).any():
            across, down = (a for a in range(3) if a != axis)
            whole = np.zeros((scan.values.shape[across], scan.values.shape[down]), bool)
            x, y = one.corner[across], one.corner[down]
            whole[x : x + part.shape[0], y : y + part.shape[1]] = part
            turned = whole.T if axis == 2 else whole.T[::-1]
            yield Region(one.label, one.role, np.ascontiguousarray(turned), ontology_id=one.ontology_id)


def _areas(scan: Scan, axis: int) -> dict[tuple[str, str], npt.NDArray[np.int64]]:
    """(name, role) of every structure -> its pixels on each slice across an axis."""
    size = scan.values.shape[axis]
    areas: dict[tuple[str, str], npt.NDArray[np.int64]] = {}

    def add(name: str, role: str, pixels: npt.NDArray[Any], at: int = 0) -> None:
        areas.setdefault((name, role), np.zeros(size, np.int64))[at : at + pixels.size] += pixels

    if scan.labels is not None:
        for index, face in enumerate(np.moveaxis(scan.labels, axis, 0)):
            for value, pixels in zip(*np.unique(face, return_counts=True), strict=True):
                name = scan.label_table.get(int(value), f"label {value}")
                if value != 0 and name.lower() != "background":
                    add(name, role_of(name), np.array([pixels]), index)
    others = tuple(a for a in range(3) if a != axis)
    for name, mask in scan.masks.items():
        if (pixels := np.count_nonzero(mask, axis=others)).any():
            add(name, role_of(name), pixels)
    for one in scan.structures:
        add(one.label, one.role, np.count_nonzero(one.mask, axis=others), one.corner[axis])
    return areas


def _labelled_area(scan: Scan, axis: int) -> npt.NDArray[np.int64]:
    """Labelled pixels on each slice across an axis: of lesions if there are any, else of everything."""
    areas = _areas(scan, axis)
    lesions = [area for (_, role), area in areas.items() if role == "lesion" and area.any()]
    return sum(lesions or areas.values(), np.zeros(scan.values.shape[axis], np.int64))


def _negative(scan: Scan, axis: int, count: int) -> list[int]:
    """Evenly spaced slices without a label, by rank among all such slices that show more than background."""
    if scan.labels is None and not scan.masks and not scan.structures:
        return []
    labelled = sum(_areas(scan, axis).values(), np.zeros(scan.values.shape[axis], np.int64))
    first, extent = _extent(scan, axis)
    free = [index for index in range(first, first + extent) if not labelled[index]]
    count = min(count, len(free))
    return [free[(2 * n + 1) * len(free) // (2 * count)] for n in range(count)]


def _largest(area: npt.NDArray[np.int64], count: int) -> list[int]:
    gap = int(np.count_nonzero(area)) // (2 * count)
    chosen: list[int] = []
    for index in np.argsort(-area, kind="stable"):
        if area[index] and len(chosen) < count and all(abs(int(index) - other) >= gap for other in chosen):
            chosen.append(int(index))
    return chosen


def _extent(scan: Scan, axis: int) -> tuple[int, int]:
    """First slice that is not background, and the number of slices from it to the last; all if all are background."""
    if scan.modality == "CT":
        threshold = BODY_HU
    else:
        lower, upper = scan.window or percentile_window(scan.values)
        threshold = lower + FOREGROUND * (upper - lower)
    others = tuple(a for a in range(3) if a != axis)
    present = scan.values < threshold if scan.inverted else scan.values > threshold
    full = np.flatnonzero(present.mean(axis=others) >= FOREGROUND_SHARE)
    return (int(full[0]), int(full[-1] - full[0]) + 1) if full.size else (0, scan.values.shape[axis])
