"""Showing a scan to a model, whichever way it lies, and carrying the answer back to the scan's own grid.

The invariant: a model sees axes that grow in the directions it was trained with, so left and right are the patient's,
and every structure lies voxel for voxel on the scan. A scan of unknown orientation is refused, never guessed at.

>>> seen = shown(scan, "RAS")
>>> mask = seen.back(model(seen.values, seen.spacing) == 1)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from infra.errors import ConfigError, Dropped, Terminal
from transforms.adapters.wanted import ModelParams, Named, card_of, named_classes, refuse_others
from transforms.experts.card import Card, Class, Trust
from transforms.scans.volumes import Scan, role_of

R = TypeVar("R")
Shape = tuple[int, ...]
_log = logging.getLogger(__name__)

LONGEST = 64
"""Characters that a model's own name of a class may have."""


class ScanParams(ModelParams):
    """What every expert takes that shows whole scans to a model's folder."""

    labels: Mapping[str, Named] | Literal["own"] = Field(
        description="the model's class (its name, or its number) -> label and role; own: all of them under their own "
        "names, roles by their words"
    )
    orientation: str = Field(
        "RAS", description="patient directions in which the axes x, y, z grew in training: RAS for most NIfTI sets and "
        "TotalSegmentator, LPS for DICOM series"
    )
    min_voxels: int = Field(1, ge=1, description="smallest structure, in voxels")
    trust: Trust = Field("boundary", description="how far its outlines may be believed: boundary, box or presence")

    @field_validator("orientation")
    @classmethod
    def _three_axes(cls, codes: str) -> str:
        if sorted(codes.translate(str.maketrans("LPI", "RAS"))) != sorted("RAS"):
            raise ValueError(f"{codes!r} is no orientation: three letters, one each of R or L, A or P, S or I")
        return codes


@dataclass(frozen=True, eq=False)
class Seen:
    """A scan with its axes as a model wants them."""

    values: npt.NDArray[np.float32]
    """(x, y, z) in the directions asked for"""
    spacing: tuple[float, float, float]
    """mm along these axes"""
    affine: npt.NDArray[np.float64]
    """of these axes, to RAS mm"""
    back: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    """an array on this grid -> on the scan's own"""


def shown(scan: Scan, codes: str) -> Seen:
    """The scan, permuted and flipped, never resampled. Raises Terminal NO_SPACING, NOT_A_VOLUME."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    if scan.affine is None:
        raise Terminal("NO_SPACING", "where the voxels lie in the patient is unknown, so left and right would be too")
    if scan.values.ndim != 3 or 0 in scan.values.shape:
        raise Terminal("NOT_A_VOLUME", f"the scan has the shape {scan.values.shape}; a model sees three axes")
    own, wanted = io_orientation(scan.affine), axcodes2ornt(codes)  # type: ignore[no-untyped-call]
    there, here = ornt_transform(own, wanted), ornt_transform(wanted, own)  # type: ignore[no-untyped-call]
    values = np.ascontiguousarray(apply_orientation(scan.values, there), np.float32)  # type: ignore[no-untyped-call]
    affine = scan.affine @ inv_ornt_aff(there, scan.values.shape)  # type: ignore[no-untyped-call]
    x, y, z = (float(mm) for mm in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    return Seen(values, (x, y, z), affine, lambda array: apply_orientation(array, here))  # type: ignore[no-untyped-call]


def own_names(where: str, names: Mapping[int, str]) -> dict[int, Named]:
    """A model's classes under its own names. Raises ConfigError for a name that is no plain word or two."""
    found: dict[int, Named] = {}
    for number, name in sorted(names.items()):
        label = " ".join(re.sub(r"[_\s]+", " ", name).split()).lower()
        if len(label) > LONGEST or not re.fullmatch(r"[\w()+./ -]*\w[\w()+./ -]*", label):
            raise ConfigError(f"{where}: class {number} is called {name[:99]!r}, which is no label; give `labels`")
        found[number] = Named(label=label, role=role_of(name))
    return found


def scan_classes(where: str, names: Mapping[int, str], params: ScanParams) -> dict[int, Named]:
    """Class number -> what it is called here, for the names of a model's classes, background left out."""
    if params.labels == "own":
        return own_names(where, names)
    return named_classes(where, names, params.labels)


def scan_card(card: Card, params: ScanParams, classes: Mapping[int, Named], hounsfield: bool) -> Card:
    """The card of a model's folder with these parameters; a model of CT reads Hounsfield units of CT alone."""
    found = [named.as_class(number) for number, named in classes.items()]
    if hounsfield:
        params = params.model_copy(update={"modalities": params.modalities or ("CT",)})
        return card_of(card, params, found, trust=params.trust, value_space="HU")
    return card_of(card, params, found, trust=params.trust)


def refuse_scan(card: Card, scan: Scan) -> None:
    """Raises Dropped for a scan that the card does not name, or whose values cannot be what the model was shown."""
    refuse_others(card, {"modality": scan.modality, "anatomy": scan.anatomy})
    if card.value_space == "HU" and (scan.modality != "CT" or scan.values.min() > -200):
        raise Dropped("NOT_ON_CARD", "the model reads Hounsfield units, and the values of this scan are none")


def structures(
    classes: Mapping[int, Named], mask: Callable[[int], npt.NDArray[np.bool_]], seen: Seen, least: int
) -> Iterator[Any]:
    """One structure a class that is there, on the scan's own grid; `mask` gives that of a class as the model saw it."""
    from transforms.experts.shapes import structure

    for number, named in classes.items():
        found = np.asarray(mask(number), bool)
        if found.shape != seen.values.shape:
            raise ValueError(f"class {number}: the mask is {found.shape}, the scan {seen.values.shape}")
        if np.count_nonzero(found) < least:
            continue
        made = structure(Class(named.label, named.role, named.ontology_id), seen.back(found))
        if made is not None:
            yield made


@dataclass
class Patch:
    """The piece of a volume that goes through a network at a time; smaller where memory runs out."""

    size: Shape
    step: Shape
    """what its sides must be multiples of"""
    shrunk: int = 0
    """how often it was made smaller for want of memory"""

    def fitting(self, work: Callable[[Shape], R], where: str) -> R:
        """`work` with this patch, or one that fits. Raises Terminal OUT_OF_MEMORY where the smallest does not."""
        import torch

        while True:
            try:
                return work(self.size)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                # on a processor torch has no error of its own for it
                if type(error) is RuntimeError and "can't allocate memory" not in str(error):
                    raise
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                smaller = self._smaller()
                if smaller == self.size:
                    raise Terminal(
                        "OUT_OF_MEMORY", "the smallest patch does not fit into memory; use device cpu, or a machine "
                        "with more of it",
                    ) from None
                self.size, self.shrunk = smaller, self.shrunk + 1
                _log.warning("%s: out of memory; patches of %s from here on", where, self.size)

    def _smaller(self) -> Shape:
        """The patch with its longest side halved, to a multiple of the step."""
        sides = list(self.size)
        axis = max((a for a in range(len(sides)) if sides[a] > self.step[a]), key=lambda a: sides[a], default=None)
        if axis is not None:
            sides[axis] = max(self.step[axis], sides[axis] // 2 // self.step[axis] * self.step[axis])
        return tuple(sides)
