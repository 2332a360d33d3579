"""Segmentations and RT structure sets: outlines on the slices of the images they refer to.

The invariant: an outline lands on a slice only where both lie in one plane of one frame of reference (or where the file
names that very image and none of the two says where it lies); what lands nowhere is an error of its own file.

    SEG        binary, fractional (a pixel counts from half of the greatest value on) and label map, any number of
               segments; frames on another grid in the same plane are taken by nearest neighbour
    RTSTRUCT   closed planar contours; a pixel belongs to a contour when its centre lies inside. Several contours of one
               structure in one plane are taken by exclusive or, which is how holes are drawn, as are keyholes

>>> for outline in outlines(dataset, slices).found:
...     print(outline.at, outline.named.label, outline.mask.sum())
41 Liver 10233

Sources: PS3.3 C.8.20 (segmentation), C.8.8.5 and C.8.8.6 (structure set, ROI contour).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import Dropped, Terminal
from transforms.scans.deidentify import is_encapsulated, number, numbers, text, value
from transforms.scans.frames import read_stored
from transforms.scans.names import Named, of_roi, of_segment, people_of
from transforms.scans.series import Slice, functional, slices_of
from transforms.scans.volumes import Structure

Mask = npt.NDArray[np.bool_]

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
ON_PLANE = 0.25
"""mm that an outline may lie beside the plane of its slice."""
PARALLEL = 0.9999
"""Cosine of the angle between two normals from which on planes are parallel: 0.8 degrees."""


@dataclass(frozen=True, eq=False)
class Outline:
    """A structure on one slice: the mask of its bounding box, and where that begins."""

    at: int
    """index of the slice among those given"""
    segment: int
    """number of the structure in its file"""
    named: Named
    mask: Mask
    corner: tuple[int, int]
    """row and column of the mask's first pixel"""

    def whole(self, size: tuple[int, int]) -> Mask:
        """The mask of the whole slice."""
        made = np.zeros(size, bool)
        (row, column), (height, width) = self.corner, self.mask.shape
        made[row : row + height, column : column + width] = self.mask
        return made


@dataclass
class Outlines:
    """What a file outlines."""

    found: list[Outline] = field(default_factory=list)
    on: set[int] = field(default_factory=set)
    """indices of the slices that it speaks of, be it to say that nothing is there"""


def has_segments(dataset: Any) -> bool:
    """Whether a file outlines structures on other images."""
    return text(dataset, "SOPClassUID") in (*SEGMENTATIONS, STRUCTURE_SET)


def outlines(dataset: Any, slices: Sequence[Slice]) -> Outlines:
    """What a segmentation or structure set says about slices.

    Raises Dropped NO_OUTLINES (it has none); Terminal REFERENCE_MISSING (none of them lies on these slices),
    SEGMENTS_UNREADABLE and what decoding its frames raises.
    """
    planes = _Planes(slices)
    is_set = text(dataset, "SOPClassUID") == STRUCTURE_SET
    made, count = Outlines(), 0
    for said in _contoured(dataset, planes) if is_set else _segmented(dataset, planes):
        count += 1
        for outline in said:
            made.on.add(outline.at)
            if outline.mask.size:
                made.found.append(outline)
    if not count:
        raise Dropped("NO_OUTLINES", "it outlines nothing; nothing to do")
    if not made.on:
        raise Terminal("REFERENCE_MISSING", "the images that it outlines are not here; add their series to the source")
    return made


def structures(found: Sequence[Outline], places: Mapping[int, int]) -> list[Structure]:
    """Outlines as structures of a scan (x: column, y: row, z); `places` says the z of the slices that belong to it."""
    gathered: dict[tuple[int, Named], list[Outline]] = defaultdict(list)
    for outline in found:
        if outline.at in places:
            gathered[outline.segment, outline.named].append(outline)
    made = []
    for (_, name), parts in gathered.items():
        low = np.array([[places[p.at], *p.corner] for p in parts])
        high = low + [[1, *p.mask.shape] for p in parts]
        first = low.min(axis=0)
        box = np.zeros(high.max(axis=0) - first, bool)
        for part, (z, row, column), (_, below, right) in zip(parts, low - first, high - first, strict=True):
            box[z, row:below, column:right] |= part.mask
        corner = (int(first[2]), int(first[1]), int(first[0]))
        made.append(Structure(name.label, name.role, box.transpose(2, 1, 0), corner, name.ontology_id))
    return made


class _Planes:
    """Slices, to be found by the image they are or the plane they lie in."""

    def __init__(self, slices: Sequence[Slice]) -> None:
        self.slices = slices
        self.by_uid: dict[str, list[int]] = defaultdict(list)
        for at, s in enumerate(slices):
            if s.uid:
                self.by_uid[s.uid].append(at)
        self._placed = np.array([at for at, s in enumerate(slices) if s.has_place], int)
        placed = [slices[at] for at in self._placed]
        self._positions = np.array([s.position for s in placed]).reshape(-1, 3)
        self._normals = np.array([s.normal for s in placed]).reshape(-1, 3)
        self._frames = np.array([s.owner[-1] for s in placed])

    def through(self, points: npt.NDArray[np.float64], among: Sequence[int] | None, frame: str) -> list[int]:
        """Slices in whose plane points (n, 3; mm, LPS) lie: some of `among`, else of those in a frame of reference."""
        if not len(self._placed):
            return []
        off = np.abs(((points[:, None] - self._positions) * self._normals).sum(axis=2)).max(axis=0)
        near = off < ON_PLANE
        near &= np.isin(self._placed, among) if among else (self._frames == frame) & (frame != "")
        if not near.any():
            return []
        return [int(at) for at in self._placed[near & (off < off[near].min() + 0.01)]]


def _named_images(sequence: Any, planes: _Planes) -> list[int]:
    """Slices of the images that the items of a reference sequence name."""
    found = []
    for reference in sequence or ():
        frames = numbers(reference, "ReferencedFrameNumber")
        for at in planes.by_uid.get(text(reference, "ReferencedSOPInstanceUID"), ()):
            frame = planes.slices[at].frame
            if frames is None or frame is None or frame + 1 in frames:
                found.append(at)
    return found


def _segmented(dataset: Any, planes: _Planes) -> Iterator[Iterator[Outline]]:
    """The outlines of each frame of a segmentation."""
    people = people_of(dataset)
    segments = value(dataset, "SegmentSequence") or ()
    names = {int(number(one, "SegmentNumber") or 0): of_segment(one, people) for one in segments}
    kind = text(dataset, "SegmentationType")
    most = number(dataset, "MaximumFractionalValue") or 255
    _check_size(dataset)
    for frame in slices_of("", "", dataset):
        targets = _targets(frame, planes)
        if not targets:
            yield iter(())
            continue
        stored = _stored(frame)
        if kind == "LABELMAP":
            masks = {int(n): stored == n for n in np.unique(stored) if n and int(n) in names} or {0: stored > stored}
        else:
            identified = functional(dataset, frame.frame, "SegmentIdentificationSequence")
            segment = int(number(identified, "ReferencedSegmentNumber") or 0)
            masks = {segment: stored * 2.0 >= most if kind == "FRACTIONAL" else stored > 0}
        yield (
            _outline(at, segment, names.get(segment), _moved(mask, frame, planes.slices[at]))
            for segment, mask in masks.items() for at in targets
        )


def _targets(frame: Slice, planes: _Planes) -> list[int]:
    """The slices that a frame of a segmentation lies on."""
    derived = functional(frame.dataset, frame.frame, "DerivationImageSequence")
    sources = None if derived is frame.dataset else value(derived, "SourceImageSequence")
    among = _named_images(sources, planes)
    if not frame.has_place:
        return [at for at in among if planes.slices[at].size[:2] == frame.size[:2] and not planes.slices[at].has_place]
    assert frame.position is not None and frame.spacing is not None
    assert frame.along_row is not None and frame.along_column is not None
    rows, columns = frame.size[0] - 1, frame.size[1] - 1
    corners = frame.position + np.array([
        [0, 0, 0], frame.along_row * frame.spacing[1] * columns, frame.along_column * frame.spacing[0] * rows,
    ])
    return planes.through(corners, among, frame.owner[-1]) or planes.through(corners, None, frame.owner[-1])


def _check_size(dataset: Any) -> None:
    shape = [number(dataset, k) or 0 for k in ("Rows", "Columns", "BitsAllocated")]
    frames = number(dataset, "NumberOfFrames") or 1
    stored = value(dataset, "PixelData")
    needed = frames * 8 if is_encapsulated(dataset) else np.prod([*shape, frames]) / 8
    if not stored or min(*shape, frames) < 1 or len(stored) < int(needed) or shape[0] * shape[1] > 1 << 28:
        raise Terminal("SEGMENTS_UNREADABLE", "its pixels do not fit its header; fetch the file again")


def _stored(frame: Slice) -> npt.NDArray[Any]:
    """(rows, columns) stored values of a frame; frames of one bit a pixel need not begin at a byte."""
    rows, columns = frame.size[:2]
    if is_encapsulated(frame.dataset) or number(frame.dataset, "BitsAllocated") != 1:
        return read_stored(frame)
    first = (frame.frame or 0) * rows * columns
    packed = np.frombuffer(frame.dataset.PixelData, np.uint8)[first // 8 : (first + rows * columns + 7) // 8]
    return np.unpackbits(packed, bitorder="little")[first % 8 :][: rows * columns].reshape(rows, columns)


def _moved(mask: Mask, frame: Slice, to: Slice) -> Mask:
    """The mask of a frame on the pixels of a slice in the same plane, by nearest neighbour."""
    if not (frame.has_place and to.has_place):
        return mask
    assert frame.position is not None and frame.spacing is not None and to.position is not None
    assert to.spacing is not None and to.along_row is not None and to.along_column is not None
    axes = np.array([frame.along_column, frame.along_row]) / np.array(frame.spacing)[:, None]
    start = axes @ (to.position - frame.position)
    steps = axes @ np.array([to.along_column * to.spacing[0], to.along_row * to.spacing[1]]).T
    rows, columns = to.size[:2]
    reach = np.abs(start) + np.abs(steps - np.eye(2)) @ [rows, columns]
    if mask.shape == (rows, columns) and reach.max() < 0.5:
        return mask
    across, down = np.meshgrid(np.arange(columns), np.arange(rows))
    row, column = (np.rint(start[n] + steps[n, 0] * down + steps[n, 1] * across).astype(int) for n in (0, 1))
    inside = (row >= 0) & (row < mask.shape[0]) & (column >= 0) & (column < mask.shape[1])
    moved: Mask = inside & mask[np.where(inside, row, 0), np.where(inside, column, 0)]
    return moved


def _contoured(dataset: Any, planes: _Planes) -> Iterator[Iterator[Outline]]:
    """The outlines of each structure of a structure set that has closed contours."""
    people = people_of(dataset)
    seen = {number(one, "ReferencedROINumber"): one for one in value(dataset, "RTROIObservationsSequence") or ()}
    rois = {number(one, "ROINumber"): one for one in value(dataset, "StructureSetROISequence") or ()}
    for structure in value(dataset, "ROIContourSequence") or ():
        segment = number(structure, "ReferencedROINumber")
        closed = [
            contour for contour in value(structure, "ContourSequence") or ()
            if text(contour, "ContourGeometricType") in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
        ]
        if closed:
            roi = rois.get(segment)
            name = None if roi is None else of_roi(roi, seen.get(segment), people)
            frame = "" if roi is None else text(roi, "ReferencedFrameOfReferenceUID")
            yield (
                _outline(at, int(segment or 0), name, filled(contours, planes.slices[at].size[:2]))
                for at, contours in _on_slices(closed, planes, frame).items()
            )


def _on_slices(contours: Sequence[Any], planes: _Planes, frame: str) -> dict[int, list[npt.NDArray[np.float64]]]:
    """Slice -> contours on it, (n, 2) rows and columns in pixels from the centre of the first pixel."""
    found: dict[int, list[npt.NDArray[np.float64]]] = defaultdict(list)
    for contour in contours:
        data = numbers(contour, "ContourData")
        if data is None or len(data) % 3 or len(data) < 9:
            continue
        points = np.array(data).reshape(-1, 3)
        for at in planes.through(points, _named_images(value(contour, "ContourImageSequence"), planes), frame):
            s = planes.slices[at]
            assert s.position is not None and s.spacing is not None
            axes = np.array([s.along_column, s.along_row]) / np.array(s.spacing)[:, None]
            found[at].append((points - s.position) @ axes.T)
    return found


def filled(contours: Sequence[npt.NDArray[np.float64]], size: tuple[int, int]) -> Mask:
    """Pixels whose centres lie inside an odd number of closed contours, (n, 2) rows and columns.

    Of the centres on an edge, those to the right of or below the inside do not count, so that neighbours never overlap.
    """
    rows, columns = size
    toggles = np.zeros((rows, columns + 1), np.int32)
    for contour in contours:
        ends = np.stack([contour, np.roll(contour, -1, axis=0)])
        upper, lower = np.take_along_axis(ends, np.argsort(ends[..., :1], axis=0, kind="stable"), axis=0)
        first, last = (np.clip(np.ceil(end[:, 0]), 0, rows).astype(int) for end in (upper, lower))
        count = last - first
        edge = np.repeat(np.arange(len(count)), count)
        crossed = np.arange(count.sum()) + (first - np.cumsum(count) + count)[edge]
        slope = (lower - upper)[edge]
        at = upper[edge, 1] + (crossed - upper[edge, 0]) * slope[:, 1] / slope[:, 0]
        np.add.at(toggles, (crossed, np.clip(np.ceil(at), 0, columns).astype(int)), 1)
    inside: Mask = np.cumsum(toggles, axis=1)[:, :columns] % 2 == 1
    return inside


def _outline(at: int, segment: int, name: Named | None, mask: Mask) -> Outline:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, below = (int(rows[0]), int(rows[-1]) + 1) if rows.size else (0, 0)
    left, right = (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, 0)
    cropped = mask[top:below, left:right].copy()
    return Outline(at, segment, name or Named("region", "region"), cropped, (top, left))
