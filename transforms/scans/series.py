"""Series: from the slices of a DICOM series to stacks that are one scan each, and their geometry.

The invariant: geometry comes from positions alone. Slices are sorted along their normal, spacing and affine are those
of ImagePositionPatient (never SliceThickness), and what is odd about them is flagged, not repaired. The result does
not depend on the order in which the files came.

>>> for stack in stacks(slices):
...     print(len(stack.slices), stack.is_scan, stack.flags)
120 True ('gap',)
1 False ()

Sources: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.16 (functional groups of enhanced multi-frame images).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from transforms.scans.deidentify import number, numbers, text, texts, value
from transforms.scans.windows import Window

Vector = npt.NDArray[np.float64]

SCAN_MODALITIES = ("CT", "MR", "PT")
FEWEST_SLICES = 4
"""Fewer parallel slices than this are single images."""

SAME_DIRECTION = 0.01
"""Direction cosines that differ less belong to one stack."""
SAME_PLACE = 0.01
"""mm along the normal within which two slices lie at one place."""
OFF_LINE = 0.5
"""Pixels by which a slice may lie beside the line through the first and the last slice of a scan."""
UNEVEN = 0.05
"""Share of the median step by which a step may differ before a scan is flagged `non_uniform`."""
GAP = 1.5
"""Steps longer than this many median steps are flagged `gap`."""
TILT = 0.005
"""Sine of the angle between the normal and the line of positions beyond which a scan is flagged `tilt`."""

TELLS_APART = (
    "AcquisitionNumber", "ImageType", "EchoNumbers", "EchoTime", "TemporalPositionIdentifier", "TriggerTime",
    "DiffusionBValue",
)
"""Attributes that tell slices at one place apart, in the order in which they are tried."""
FRAMES_TELL_APART = (
    ("StackID", "FrameContentSequence"), ("DimensionIndexValues", "FrameContentSequence"),
    ("TemporalPositionIndex", "FrameContentSequence"), ("EffectiveEchoTime", "MREchoSequence"),
    ("DiffusionBValue", "MRDiffusionSequence"),
    ("NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence"), ("FrameType", "MRImageFrameTypeSequence"),
    ("FrameType", "CTImageFrameTypeSequence"), ("FrameAcquisitionNumber", "FrameContentSequence"),
)
"""The same of frames of one file, with their functional groups; of dimension indices, those that are no places."""
OWNERS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
PLACES = (0x00200032, 0x00209057, 0x00209113)
"""Dimensions that say where a frame lies: ImagePositionPatient, InStackPositionNumber, PlanePositionSequence."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One frame of one DICOM file, with the geometry its header states."""

    item: str
    sha256: str
    """of the file"""
    dataset: Any
    frame: int | None = None
    """frame number from 0; None: the file has a single frame"""
    modality: str = ""
    owner: tuple[str, ...] = ()
    """patient, study, series and frame of reference, in clear: slices of two patients never meet"""
    uid: str = ""
    """SOPInstanceUID of the file, in clear; "": it has none"""
    source: str = ""
    """what its frames may be put together with: the item, or the concatenation that several items are parts of"""
    size: tuple[int, int, int] = (0, 0, 0)
    """rows, columns, samples a pixel as shown: a palette makes three of one"""
    position: Vector | None = None
    """mm, LPS, of the centre of the first pixel"""
    along_row: Vector | None = None
    """direction in LPS in which the column index grows"""
    along_column: Vector | None = None
    """direction in LPS in which the row index grows"""
    spacing: tuple[float, float] | None = None
    """mm between rows, mm between columns"""
    localizer: bool = False
    mosaic: bool = False
    """Siemens mosaic: the slices of a whole scan laid out as tiles of one picture"""

    @cached_property
    def window(self) -> Window | None:
        """Values shown as black and as white by the first window of the file (PS3.3 C.11.2.1.2), or None."""
        group = functional(self.dataset, self.frame, "FrameVOILUTSequence")
        center, width = number(group, "WindowCenter"), number(group, "WindowWidth")
        linear = text(group, "VOILUTFunction") in ("", "LINEAR")
        if center is None or width is None or width < (1 if linear else 1e-9):
            return None
        middle, half = (center - 0.5, (width - 1) / 2) if linear else (center, width / 2)
        return middle - half, middle + half

    @property
    def inverted(self) -> bool:
        """Low values are bright."""
        return text(self.dataset, "PhotometricInterpretation") == "MONOCHROME1"

    @cached_property
    def normal(self) -> Vector | None:
        """Unit vector in LPS, or None."""
        if self.along_row is None or self.along_column is None:
            return None
        return np.cross(self.along_row, self.along_column)

    @property
    def has_place(self) -> bool:
        return self.position is not None and self.normal is not None and self.spacing is not None

    @property
    def height(self) -> float:
        """mm along the normal; 0 without a place."""
        return float(self.position @ self.normal) if self.position is not None and self.normal is not None else 0.0

    @property
    def plane(self) -> str | None:
        """axial, coronal, sagittal, or oblique (normal more than 37 degrees from all three); None: unknown."""
        if self.normal is None:
            return None
        axis = int(np.argmax(np.abs(self.normal)))
        return ("sagittal", "coronal", "axial")[axis] if abs(self.normal[axis]) >= 0.8 else "oblique"

    @property
    def orientation(self) -> str | None:
        """Patient directions in which columns and rows grow, two letters; None: unknown."""
        if self.along_row is not None and self.along_column is not None:
            return _letter(self.along_row) + _letter(self.along_column)
        stated = texts(self.dataset, "PatientOrientation")  # projections: PS3.3 C.7.6.1.1.1
        letters = [{"H": "S", "F": "I"}.get(words[:1], words[:1]) for words in stated]
        axes = [next((axis for axis in ("LR", "AP", "SI") if x and x in axis), None) for x in letters]
        return "".join(letters) if len(letters) == 2 and None not in axes and axes[0] != axes[1] else None


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices that belong together, along their normal, or one that stands alone."""

    slices: tuple[Slice, ...]
    is_scan: bool
    """parallel, at different places on one line, enough of them: they make a volume"""
    flags: tuple[str, ...] = ()
    """what is odd: gap, non_uniform, tilt, duplicate_slices"""

    @property
    def window(self) -> Window | None:
        """One window for all slices: the median of the lower and of the upper ends of their own, or None."""
        windows = [window for s in self.slices if (window := s.window) is not None]
        if not windows:
            return None
        lower, upper = np.median(np.array(windows), axis=0)
        return float(lower), float(upper)


def slices_of(item: str, sha256: str, dataset: Any) -> list[Slice]:
    """The slices of a file: one for each frame."""
    count = int(number(dataset, "NumberOfFrames") or 1)
    return [_slice(item, sha256, dataset, frame if count > 1 else None) for frame in range(count)]


def functional(dataset: Any, frame: int | None, sequence: str) -> Any:
    """Where the attributes of a functional group of a frame are: its own group, else the shared one, else the file."""
    for groups, at in (("PerFrameFunctionalGroupsSequence", frame or 0), ("SharedFunctionalGroupsSequence", 0)):
        found = value(dataset, groups)
        if found is not None and at < len(found):
            inner = value(found[at], sequence)
            if inner is not None and len(inner):
                return inner[0]
    return dataset


def stacks(slices: Sequence[Slice]) -> list[Stack]:
    """Slices of one series as stacks, in a fixed order; every slice is in exactly one.

    Slices are put together by size, pixel spacing, orientation, localizer or not, and (multi-frame) file. Where several
    lie at one place, the attributes of TELLS_APART part them; what stays double is dealt out to further stacks, which
    are flagged `duplicate_slices`.
    """
    in_order = sorted(slices, key=_order)
    made = [Stack((s,), True) for s in in_order if s.mosaic]
    for alike in _alike(s for s in in_order if not s.mosaic):
        if len(alike) == 1 or not _could_be_scan(alike[0]):
            made += [Stack((s,), False) for s in alike]
            continue
        tells = TELLS_APART if alike[0].frame is None else FRAMES_TELL_APART
        for part in _told_apart(alike, tells):
            dealt = _dealt(part)
            flags = ("duplicate_slices",) if len(dealt) > 1 else ()
            made += [stack for pile in dealt for stack in _stack(pile, flags)]
    return made


def conflicting(slices: Iterable[Slice]) -> list[str]:
    """Items that share their UID and place with one of other pixels: which of them is true is unknown.

    Files of one UID at different places are different pictures of a careless tool, and those in another transfer syntax
    or bit depth are copies of a careless one; they do no harm.
    """
    alike: dict[tuple[Any, ...], list[Slice]] = defaultdict(list)
    for s in slices:
        if s.uid and not s.frame:
            place = None if s.position is None else tuple(s.position.tolist())
            syntax = s.dataset.file_meta.TransferSyntaxUID
            depth = number(s.dataset, "BitsAllocated")
            alike[s.uid, syntax, s.size, depth, s.frame, place, number(s.dataset, "InstanceNumber")].append(s)
    return [s.item for same in alike.values() if _differ([value(s.dataset, "PixelData") for s in same]) for s in same]


def _differ(pixels: list[Any]) -> bool:
    return any(other != pixels[0] for other in pixels[1:])  # a damaged VR makes them something that has no hash


def affine_of(slices: Sequence[Slice]) -> Vector:
    """4 x 4 from voxel index (x: column, y: row, z: slice) to mm in RAS+, for the slices of a scan.

    The step from slice to slice is the mean one: (last - first position) / (n - 1), as in ITK's series reader, but with
    its direction kept, so that a tilted gantry gives a sheared affine.
    """
    first, last = slices[0], slices[-1]
    assert first.position is not None and last.position is not None and first.spacing is not None
    assert first.along_row is not None and first.along_column is not None
    lps = np.eye(4)
    lps[:3, 0] = first.along_row * first.spacing[1]
    lps[:3, 1] = first.along_column * first.spacing[0]
    lps[:3, 2] = (last.position - first.position) / (len(slices) - 1)
    lps[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _slice(item: str, sha256: str, dataset: Any, frame: int | None) -> Slice:
    cosines = numbers(functional(dataset, frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    position = numbers(functional(dataset, frame, "PlanePositionSequence"), "ImagePositionPatient", 3)
    spacing = numbers(functional(dataset, frame, "PixelMeasuresSequence"), "PixelSpacing", 2)
    directions = _directions(cosines)
    palette = text(dataset, "PhotometricInterpretation") == "PALETTE COLOR"
    samples = 3 if palette else _count(dataset, "SamplesPerPixel")
    kinds = texts(dataset, "ImageType")
    return Slice(
        item, sha256, dataset, frame, text(dataset, "Modality"), tuple(text(dataset, keyword) for keyword in OWNERS),
        text(dataset, "SOPInstanceUID"), text(dataset, "ConcatenationUID") or item,
        (_count(dataset, "Rows"), _count(dataset, "Columns"), samples),
        None if position is None else np.array(position),
        *directions,
        (spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
        "LOCALIZER" in kinds, "MOSAIC" in kinds and samples == 1,
    )


def _could_be_scan(s: Slice) -> bool:
    return s.modality in SCAN_MODALITIES and s.has_place and not s.localizer and s.size[2] == 1


def _count(dataset: Any, keyword: str) -> int:
    return int(number(dataset, keyword) or 0)


def _directions(cosines: tuple[float, ...] | None) -> tuple[Vector | None, Vector | None]:
    """Row and column direction, if they are unit vectors at right angles, as the standard demands."""
    if cosines is None:
        return None, None
    pair = np.array(cosines).reshape(2, 3)
    if np.abs(pair @ pair.T - np.eye(2)).max() > 0.01:
        return None, None
    pair /= np.linalg.norm(pair, axis=1, keepdims=True)
    return pair[0], pair[1]


def _order(s: Slice) -> tuple[float, str, int]:
    return number(s.dataset, "InstanceNumber") or 0.0, s.sha256, s.frame or 0


def _alike(slices: Iterable[Slice]) -> list[list[Slice]]:
    """Slices put together with the first one they are like."""
    piles: list[list[Slice]] = []
    for s in slices:
        pile = next((p for p in piles if _are_alike(p[0], s)), None)
        if pile is None:
            piles.append([s])
        else:
            pile.append(s)
    return piles


def _are_alike(a: Slice, b: Slice) -> bool:
    kinds = [(s.modality, s.owner, s.size, s.localizer, s.has_place) for s in (a, b)]
    if kinds[0] != kinds[1]:
        return False
    if (a.frame is not None or b.frame is not None) and a.source != b.source:
        return False
    if not a.has_place:
        return True
    directions = ((a.along_row, b.along_row), (a.along_column, b.along_column))
    return np.allclose(a.spacing, b.spacing, rtol=1e-3) and all(  # type: ignore[arg-type]
        np.allclose(x, y, atol=SAME_DIRECTION) for x, y in directions  # type: ignore[arg-type]
    )


def _told_apart(slices: list[Slice], tells: Sequence[str | tuple[str, str]]) -> Iterator[list[Slice]]:
    """Slices parted by the first attribute that parts those at one place and leaves no part too small for a scan."""
    if not tells or not _doubled(slices):
        yield slices
        return
    parts: dict[str, list[Slice]] = defaultdict(list)
    for s in slices:
        parts[_told(s, tells[0])].append(s)
    if min(map(len, parts.values())) < FEWEST_SLICES:
        parts = {"": slices}
    for name in sorted(parts):
        yield from _told_apart(parts[name], tells[1:])


def _told(s: Slice, tell: str | tuple[str, str]) -> str:
    """The value of an attribute of TELLS_APART or FRAMES_TELL_APART, as text that sorts as its numbers do."""
    keyword, group = (tell, "") if isinstance(tell, str) else tell
    found = value(functional(s.dataset, s.frame, group) if group else s.dataset, keyword)
    if keyword == "DimensionIndexValues" and found is not None:
        pointers = [value(one, "DimensionIndexPointer") for one in value(s.dataset, "DimensionIndexSequence") or ()]
        many = found if hasattr(found, "__iter__") else (found,)
        found = [f"{at:09d}" for at, pointer in zip(many, pointers, strict=False) if pointer not in PLACES]
    return f"{found:020.6f}" if isinstance(found, float | int) else str(found)


def _doubled(slices: list[Slice]) -> bool:
    heights = np.sort([_height(slices[0], s) for s in slices])
    return bool((np.diff(heights) < SAME_PLACE).any())


def _height(first: Slice, s: Slice) -> float:
    """mm of a slice along the normal of the first of its stack."""
    assert s.position is not None and first.normal is not None
    return float(s.position @ first.normal)


def _dealt(slices: list[Slice]) -> list[list[Slice]]:
    """Slices sorted by height; the second at a place goes to a second pile, and so on."""
    piles: list[list[Slice]] = []
    first = slices[0]
    for s in sorted(slices, key=lambda s: _height(first, s)):  # stable: equal heights stay in the order of `_order`
        pile = next((p for p in piles if _height(first, s) - _height(first, p[-1]) >= SAME_PLACE), None)
        if pile is None:
            piles.append([s])
        else:
            pile.append(s)
    return piles


def _stack(pile: list[Slice], flags: tuple[str, ...]) -> list[Stack]:
    """One scan, or every slice alone where they are too few or do not lie on a line."""
    if len(pile) < FEWEST_SLICES or (geometry := _oddities(pile)) is None:
        return [Stack((s,), False) for s in pile]
    return [Stack(tuple(pile), True, (*geometry, *flags))]


def _oddities(pile: list[Slice]) -> tuple[str, ...] | None:
    """Flags of slices sorted by height; None when they do not lie on a line."""
    places = np.array([s.position for s in pile])
    line = places[-1] - places[0]
    line /= np.linalg.norm(line)
    beside = np.linalg.norm((places - places[0]) - np.outer((places - places[0]) @ line, line), axis=1)
    spacing, normal = pile[0].spacing, pile[0].normal
    assert spacing is not None and normal is not None
    if beside.max() > OFF_LINE * max(spacing):
        return None
    steps = np.diff(places @ normal)
    median = np.median(steps)
    found = {
        "gap": steps.max() > GAP * median,
        "non_uniform": np.abs(steps - median).max() > UNEVEN * median,
        "tilt": np.linalg.norm(np.cross(line, normal)) > TILT,
    }
    return tuple(name for name, odd in found.items() if odd)


def without(stack: Stack, lost: Iterable[int]) -> list[Stack]:
    """The stack again after the slices at some places in it turned out unreadable: still a scan, or single slices."""
    gone = set(lost)
    left = [s for at, s in enumerate(stack.slices) if at not in gone]
    if not stack.is_scan:
        return [replace(stack, slices=(s,)) for s in left]
    kept = tuple(flag for flag in stack.flags if flag == "duplicate_slices")
    return _stack(left, kept) if left else []


def _letter(direction: Vector) -> str:
    axis = int(np.argmax(np.abs(direction)))
    return ("LR", "PA", "SI")[axis][int(direction[axis] < 0)]
