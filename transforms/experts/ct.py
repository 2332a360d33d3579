"""Volume expert: body, lungs and bone in a CT, by Hounsfield thresholds and morphology.

The invariant: pure functions of the values and the spacing; a mask may be empty (no lung in a pelvis). Lengths are
millimetres, so that the answer does not hang on the grid: finer volumes are worked on in blocks of about 2 mm, and the
mask is interpolated back.

>>> masks = body(values_hu, (0.8, 0.8, 3.0)), lungs(values_hu, (0.8, 0.8, 3.0)), bone(values_hu, (0.8, 0.8, 3.0))

Rules. Body: over -300 HU, opening, largest part, holes filled slice by slice; in a volume cut within the chest, the
lung that runs out of it belongs to the body. Lungs: under -320 HU within the body, parts of 20 mL and more, without
those whose core is mostly under -950 HU (gas in the bowel: there is no tissue in it), closing with 6 mm. Bone: Gaussian
of 1.5 mm, over 150 HU where joined to what is over 280 HU, closing with 6 mm, holes filled slice by slice.

Trust: boundary for the body and aerated lung, box for bone. Windpipe and main bronchi are part of the lungs;
consolidated lung is not. Bone takes in whatever is as dense, contrast medium and metal: ask `contrast` first.

Measured on two abdominal CTs at 3 mm (TotalSegmentator's test files, which show the bases of the lungs only) against
that model's labels, which are no human truth: the body holds every labelled voxel; Dice of the lungs 0.94 and 0.96, of
bone 0.83 and 0.68 (in the second, ribs of a few voxels and three vertebrae). In a cardiac CT with contrast medium, bone
wrongly takes in the heart, and `contrast` answers yes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from infra.errors import Dropped, Terminal
from transforms.experts.card import Card, Class
from transforms.experts.shapes import structure
from transforms.scans.volumes import Scan, Structure

Values = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]
"""mm along the three axes of the array, in their order"""

NAME = "ct"
VERSION = "1"
REQUIRES: Mapping[str, str] = {"scipy": "scipy"}
CARD = Card(
    family="classical", trust="box", kinds=("radiology",), modalities=("CT",), ndim=3, value_space="HU", memory_gb=4,
    classes=(
        Class("body", "body"), Class("lungs", "organ", "UBERON:0002048"), Class("bone", "organ", "UBERON:0001474"),
    ),
)

TISSUE, AERATED, GAS = -300.0, -320.0, -950.0
"""HU: tissue is above the first, aerated lung below the second, gas without any tissue below the third."""
GAS_SHARE = 0.6
"""A part with more of its core below GAS is bowel gas; of lung cores a fifth is, of bowel gas nearly all."""
CORE_MM = 3.0
"""What lies this deep in a part is its core: the rim is a blur of gas and wall."""
LUNG_ML = 20.0
CUT_SHARE = 0.2
"""Lung that runs out of the volume is at least so large a share of the body; the foam of a table is less."""
BONE, BONE_RIM = 280.0, 150.0
SMOOTH_MM, GAP_MM, OPEN_MM = 1.5, 6.0, 3.0
SOLID_MM = 10.0
"""No bone is as dense as BONE throughout so deep under its surface; a heart or a kidney with contrast medium is."""
BLOCK_MM = 2.0


class Params(BaseModel):
    """What a recipe may set for the CT expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    find: tuple[Literal["body", "lungs", "bone"], ...] = Field(
        ("body", "lungs", "bone"), min_length=1, description="what is looked for"
    )


def segment(scan: Scan, params: Params) -> Iterator[Structure]:
    """What is there of body, lungs and bone; no bone where contrast medium or metal would be taken for it.

    Raises Terminal NO_SPACING; Dropped NOT_HOUNSFIELD for values that no CT has.
    """
    if scan.spacing is None or scan.orientation is None:
        raise Terminal("NO_SPACING", "the size of the voxels is unknown, and the rules are in millimetres")
    if float(scan.values.min()) > TISSUE:
        raise Dropped("NOT_HOUNSFIELD", f"no value is under {TISSUE:.0f}, so these are no Hounsfield units with air")
    axial = next(axis for axis, letter in enumerate(scan.orientation) if letter in "SI")
    masks = {"body": body, "lungs": lungs, "bone": bone}
    for found in CARD.classes:
        dense = found.label == "bone" and contrast(scan.values, scan.spacing)
        if found.label in params.find and not dense:
            made = structure(found, masks[found.label](scan.values, scan.spacing, axial))
            if made is not None:
                yield made


def body(values_hu: Values, spacing: Spacing, axial: int = 2) -> Mask:
    """The patient's body, lungs and bowel gas included, the table not; bool, of the shape of `values_hu`.

    `axial` is the axis along which axial slices are stacked. Raises ValueError where the volume is not 3-D.
    """
    coarse, size = _coarse(values_hu, spacing)
    return _fine(_body(coarse, size, axial), values_hu.shape)


def lungs(values_hu: Values, spacing: Spacing, axial: int = 2) -> Mask:
    """Aerated lung of both sides, with the airways; arguments as `body`."""
    from scipy import ndimage

    coarse, size = _coarse(values_hu, spacing)
    parts, count = ndimage.label((coarse < AERATED) & _body(coarse, size, axial))
    volumes = np.bincount(parts.ravel(), minlength=count + 1) * float(np.prod(size)) / 1000
    found = np.zeros(coarse.shape, bool)
    for part, window in enumerate(ndimage.find_objects(parts), start=1):
        if window is not None and volumes[part] >= LUNG_ML:
            inside = parts[window] == part
            if not _gas(coarse[window], inside, size):
                found[window] |= inside
    return _fine(_closed(found, size), values_hu.shape)


def bone(values_hu: Values, spacing: Spacing, axial: int = 2) -> Mask:
    """Bone with its marrow; arguments as `body`. Contrast medium and metal count as bone."""
    from scipy import ndimage

    coarse, size = _coarse(values_hu, spacing)
    smooth = ndimage.gaussian_filter(coarse, [SMOOTH_MM / mm for mm in size])
    dense, count = ndimage.label(smooth > BONE_RIM)
    joined = np.zeros(count + 1, bool)
    joined[np.unique(dense[smooth > BONE])] = True
    joined[0] = False
    return _fine(_filled(_closed(joined[dense], size), axial), values_hu.shape)


def contrast(values_hu: Values, spacing: Spacing) -> bool:
    """Whether contrast medium (or metal) fills something as thick as a heart: then `bone` is not to be believed."""
    from scipy import ndimage

    coarse, size = _coarse(values_hu, spacing)
    dense = ndimage.gaussian_filter(coarse, [SMOOTH_MM / mm for mm in size]) > BONE
    return bool((_depth(dense, size) > SOLID_MM).any()) if dense.any() else False


def _body(values: Values, spacing: Spacing, axial: int) -> Mask:
    from scipy import ndimage

    tissue = _opened(values > TISSUE, spacing)
    parts, count = ndimage.label(tissue)
    if not count:
        return tissue
    found = _filled(parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:])), axial)
    parts, count = ndimage.label((values < AERATED) & ~found)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    for part in range(1, count + 1):  # a volume cut within the chest: lung runs out of it and no slice can be filled
        if sizes[part] > CUT_SHARE * found.sum() and not _gas(values, parts == part, spacing):
            found |= parts == part
    return _filled(found, axial)


def _gas(values: Values, part: Mask, spacing: Spacing) -> bool:
    """Whether a part is gas alone; a part without a core is judged as a whole."""
    core = _depth(part, spacing) > CORE_MM
    inside = values[core if core.any() else part]
    return float((inside < GAS).mean()) > GAS_SHARE


def _depth(mask: Mask, spacing: Spacing) -> npt.NDArray[np.float64]:
    """mm from each voxel of a mask to the nearest voxel outside; beyond the rim of the volume it goes on."""
    from scipy import ndimage

    if mask.all():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing))


def _closed(mask: Mask, spacing: Spacing) -> Mask:
    """Closing with a ball of GAP_MM in radius."""
    if not mask.any():
        return mask
    radius = GAP_MM
    wide = np.pad(mask, [(int(np.ceil(radius / mm)) + 1,) * 2 for mm in spacing])
    grown = _depth(~wide, spacing) <= radius
    closed = _depth(grown, spacing) > radius
    inner = tuple(slice((wide.shape[a] - n) // 2, (wide.shape[a] + n) // 2) for a, n in enumerate(mask.shape))
    return closed[inner] | mask


def _opened(mask: Mask, spacing: Spacing) -> Mask:
    """Opening with a ball of OPEN_MM in radius: the table and blankets come off."""
    core = _depth(mask, spacing) > OPEN_MM
    return mask & (_depth(~core, spacing) <= OPEN_MM) if core.any() else core


def _filled(mask: Mask, axial: int) -> Mask:
    from scipy import ndimage

    slices = [ndimage.binary_fill_holes(one) for one in np.moveaxis(mask, axial, 0)]
    return np.moveaxis(np.stack(slices), 0, axial)


def _coarse(values: Values, spacing: Spacing) -> tuple[npt.NDArray[np.float32], Spacing]:
    """The mean over blocks of about BLOCK_MM, and the new spacing."""
    if values.ndim != 3:
        raise ValueError(f"a CT volume has three axes, this has shape {values.shape}")
    steps = [max(1, round(BLOCK_MM / mm)) for mm in spacing]
    coarse: npt.NDArray[Any] = values.astype(np.float32)
    for axis, step in enumerate(steps):
        if step > 1:
            starts = np.arange(0, coarse.shape[axis], step)
            counts = np.diff([*starts, coarse.shape[axis]]).astype(np.float32)
            shape = [-1 if a == axis else 1 for a in range(3)]
            coarse = np.add.reduceat(coarse, starts, axis=axis) / counts.reshape(shape)
    x, y, z = (mm * step for mm, step in zip(spacing, steps, strict=True))
    return coarse, (x, y, z)


def _fine(mask: Mask, shape: tuple[int, ...]) -> Mask:
    """A mask of blocks on the grid of the volume, its surface interpolated."""
    if mask.shape == shape:
        return mask
    steps = [-(-n // m) for n, m in zip(shape, mask.shape, strict=True)]
    found = mask.astype(np.float32)
    for axis, step in enumerate(steps):
        if step > 1:  # the centre of block b lies at voxel b * step + (step - 1) / 2
            at = np.clip((np.arange(shape[axis]) - (step - 1) / 2) / step, 0, mask.shape[axis] - 1)
            low = np.floor(at).astype(int)
            high = np.minimum(low + 1, mask.shape[axis] - 1)
            weight = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
            found = found.take(low, axis) * (1 - weight) + found.take(high, axis) * weight
    return np.asarray(found >= 0.5)
