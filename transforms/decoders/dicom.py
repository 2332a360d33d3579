"""DICOM: the files of one series become volumes and their slices, frames of cines, or single images.

The invariant: pixels are those the standard says to show (modality LUT, then the file's own window, then polarity),
one value gives one grey on all slices of a volume, and nothing of a header comes through but what
`transforms/scans/deidentify.py` allows. Errors never quote the header.

>>> for made in decode(items_of_one_series, IngestParams(), pseudonym):
...     print(type(made).__name__, getattr(made, "locator", ""))
Volume
Sample axial:41:soft_tissue

Windows, in order: WindowCenter and WindowWidth (the first pair), a VOI LUT, the whole range for 8-bit pixels, else the
least to the greatest value without padding. A SIGMOID window is shown as the line through its middle. CT in Hounsfield
units follows `transforms/scans/windows.py` instead. Of cines, and other multi-frame files that are not one scan,
`IngestParams.frames` frames are taken, and as many scans of a file that holds several (times, echoes). Segmentations
and structure sets become regions of the images they refer to; reports, plans and dose grids are dropped: they are no
images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from catalog.items import Item, Label
from infra.errors import Dropped, ItemError, Terminal
from infra.keys import canonical, key, sha256
from transforms.decoded import Decoded, IngestParams, Pixels, Pseudonym, Refused, Region, Sample, Volume
from transforms.deid.faces import Geometry, face_in, geometry_of, series_of
from transforms.deid.picture import without_text
from transforms.scans.deidentify import (
    Described,
    check_image,
    describe,
    header_facts,
)
from transforms.scans.frames import Picture, read_picture, voi_lut
from transforms.scans.mosaics import unmosaic
from transforms.scans.opening import open_safely
from transforms.scans.references import references
from transforms.scans.segments import Outlines, has_segments, outlines, structures
from transforms.scans.series import Slice, Stack, affine_of, conflicting, slices_of, stacks, without
from transforms.scans.volumes import Scan, Structure, cut
from transforms.scans.windows import Window, choose_windows, to_grey

NAME = "dicom"
VERSION = "3"
REQUIRES = {"pydicom": "pydicom"}


class Params(BaseModel):
    """This decoder has no settings of its own; `ingest:` in the recipe holds them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def decode(items: Sequence[Item], params: IngestParams, pseudonym: Pseudonym) -> Iterator[Decoded]:
    """Decode the files of one series (role "main"). Codes of refusals beside those of `open_dataset`:

    NOT_AN_IMAGE and NO_OUTLINES (dropped), DUPLICATE_FILE (dropped), UID_CONFLICT, PARSE_LIMIT, PARSE_CRASHED,
    TEXT_POSSIBLE and TEXT_REMAINS (where `burned_in` is clean), NO_PIXELS, DIMENSIONS_IMPLAUSIBLE, PIXELS_TRUNCATED,
    PIXELS_CORRUPT, PIXELS_UNSUPPORTED, DECODE_LIMIT, DECODE_CRASHED, TRANSFER_SYNTAX_UNSUPPORTED, MOSAIC_UNSUPPORTED,
    REFERENCE_MISSING, SEGMENTS_UNREADABLE.
    """
    sources: dict[str, Described] = {}
    slices: list[Slice] = []
    outlining: dict[str, Any] = {}
    first_with: dict[str, str] = {}
    geometry: list[Geometry] = []
    for item in items:
        filled = False
        data = item.files["main"]
        digest = item.sha256()
        try:
            if digest in first_with:
                raise Dropped("DUPLICATE_FILE", f"same bytes as {first_with[digest]}; nothing to do")
            dataset = open_safely(data)
            if has_segments(dataset):
                outlining[item.id] = dataset
            else:
                check_image(dataset, len(data))
                if params.burned_in == "clean":
                    dataset, filled = without_text(data, dataset)
        except ItemError as error:
            yield Refused(item.id, error)
            continue
        first_with[digest] = item.id
        if item.id not in outlining:
            sources[item.id] = describe(item, dataset, pseudonym)
            if filled:
                sources[item.id] = _with(sources[item.id], Label("burned-in annotation", "filled", "decoder:dicom"))
            geometry.append(geometry_of(dataset))
            slices += slices_of(item.id, digest, dataset)
    if geometry and (face := face_in(series_of(geometry))).shows != "no":
        flag = Label("could show a face", face.shows, "decoder:dicom")
        sources = {name: _with(source, flag) for name, source in sources.items()}
    conflicts = conflicting(slices)
    conflict = Terminal("UID_CONFLICT", "another file has its UID and place but other pixels; find out which is true")
    yield from (Refused(item, conflict) for item in conflicts)
    slices = [s for s in slices if s.item not in conflicts]
    drawn, refused = _drawn(outlining, slices)
    yield from refused
    kept: set[str] = set()
    for made in _images(slices, sources, drawn, params, pseudonym):
        kept.update(made.items if isinstance(made, Sample) else ())
        yield made
    for item_id in drawn.files:
        if item_id not in kept:
            yield Refused(item_id, Terminal("REFERENCE_MISSING", "the images that it outlines could not be read"))


def _with(source: Described, label: Label) -> Described:
    """The source with a label, in the place of one of the same name."""
    others = tuple(one for one in source.labels if one.name != label.name)
    return replace(source, labels=(*others, label))


def _images(
    slices: list[Slice], sources: Mapping[str, Described], drawn: _Drawn, params: IngestParams, pseudonym: Pseudonym
) -> Iterator[Decoded]:
    """What becomes of the slices of a series: scans, and single images or frames of what is no scan."""
    found = stacks(slices)
    many = _scans_of_files(found)
    loose: dict[str, list[Slice]] = {}
    for stack in found:
        first = stack.slices[0]
        if stack.is_scan and first.frame is None:
            yield from _scan(stack, sources, drawn, params, pseudonym)
        elif first.source not in many:
            for s in stack.slices:
                loose.setdefault(s.item, []).append(s)
    for scans in many.values():
        yield from _scans_of_file(scans, sources, drawn, params, pseudonym)
    for frames in loose.values():
        yield from _stills(sorted(frames, key=lambda s: s.frame or 0), sources, drawn, params)


def _scans_of_files(found: Sequence[Stack]) -> dict[str, list[Stack]]:
    """The scans of multi-frame files (or concatenations of them) of which every frame belongs to a scan."""
    by_source: dict[str, list[Stack]] = {}
    for stack in found:
        if stack.slices[0].frame is not None:
            by_source.setdefault(stack.slices[0].source, []).append(stack)
    return {source: scans for source, scans in by_source.items() if all(stack.is_scan for stack in scans)}


def _scans_of_file(
    scans: Sequence[Stack], sources: Mapping[str, Described], drawn: _Drawn, params: IngestParams, pseudonym: Pseudonym
) -> Iterator[Decoded]:
    """At most `params.frames` evenly spaced scans of one file; a frame that cannot be read refuses the file."""
    count = min(params.frames, len(scans))
    chosen = [(2 * n + 1) * len(scans) // (2 * count) for n in range(count)]
    made: list[Decoded] = []
    for n in chosen:
        made += _scan(scans[n], sources, drawn, params, pseudonym, (n, len(scans)) if len(scans) > 1 else None)
        if any(isinstance(one, Refused) for one in made):
            yield from dict.fromkeys(one for one in made if isinstance(one, Refused))
            return
    left_out = {s.item for stack in scans for s in stack.slices} - {s.item for n in chosen for s in scans[n].slices}
    yield from (Refused(item, Dropped("FRAMES_NOT_CHOSEN", "other scans of its file were chosen")) for item in left_out)
    yield from made


@dataclass(frozen=True)
class _Drawn:
    """Regions on the slices of a series, by the files that state them."""

    files: Mapping[str, Outlines]
    places: Mapping[int, int]
    """identity of a slice -> its index among those that were outlined"""

    def on(self, slices: Sequence[Slice]) -> tuple[str, ...]:
        """The files that speak of any of these slices."""
        at = {self.places[id(s)] for s in slices} if self.files else set()
        return tuple(item for item, outlines in self.files.items() if outlines.on & at)

    def structures(self, stack: Stack) -> tuple[Structure, ...]:
        places = {self.places[id(s)]: z for z, s in enumerate(stack.slices)} if self.files else {}
        return tuple(one for outlines in self.files.values() for one in structures(outlines.found, places))

    def regions(self, s: Slice) -> tuple[Region, ...]:
        return tuple(
            Region(one.named.label, one.named.role, one.whole(s.size[:2]), ontology_id=one.named.ontology_id)
            for outlines in self.files.values() for one in outlines.found if one.at == self.places[id(s)]
        )


def _drawn(outlining: Mapping[str, Any], slices: Sequence[Slice]) -> tuple[_Drawn, list[Refused]]:
    """What segmentations and structure sets say about slices, and those that say nothing of use."""
    found: dict[str, Outlines] = {}
    refused = []
    for item, dataset in outlining.items():
        try:
            found[item] = outlines(dataset, slices)
        except ItemError as error:
            refused.append(Refused(item, error))
    return _Drawn(found, {id(s): at for at, s in enumerate(slices)}), refused


def open_scan(files: Sequence[bytes], frame: int = 0) -> Scan:
    """The scan of a row of `volumes` again, from its files in the order of the row. Raises ItemError.

    `frame` stands in the row's header column where a file holds several scans.
    """
    slices = [s for n, data in enumerate(files) for s in slices_of(str(n), sha256(data), open_safely(data))]
    found = stacks(slices)
    several = slices[0].frame is not None if slices else False
    if len(found) <= frame or not found[frame].is_scan or (len(found) > 1 and not several):
        raise Terminal("NOT_A_SCAN", "these files do not make one scan; give all files of one row of volumes")
    values, rescaled, lost = _read(found[frame])
    if lost:
        raise next(iter(lost.values()))
    facts = header_facts(found[frame].slices[0].dataset)
    return _scan_of(found[frame], values, rescaled, facts.get("Modality"), facts.get("BodyPartExamined"))


def _scan(
    stack: Stack, sources: Mapping[str, Described], drawn: _Drawn, params: IngestParams, pseudonym: Pseudonym,
    among: tuple[int, int] | None = None,
) -> Iterator[Decoded]:
    """The volume of a stack and the slices cut from it; unreadable slices are refused, and leave a gap.

    `among`: which scan of its file it is, and of how many.
    """
    values, rescaled, lost = _read(stack)
    if lost and stack.slices[0].frame is not None:
        yield Refused(stack.slices[0].item, next(iter(lost.values())))
        return
    yield from (Refused(stack.slices[at].item, error) for at, error in lost.items())
    rest = without(stack, lost) if lost else [stack]
    if not (rest and rest[0].is_scan):
        for left in rest:
            yield from _stills(list(left.slices), sources, drawn, params)
        return
    stack, first = rest[0], sources[rest[0].slices[0].item]
    try:
        values = np.delete(values, list(lost), axis=2) if lost else values
        scan = _scan_of(stack, values, rescaled, first.columns["modality"], first.columns["anatomy"])
        scan = scan if stack.slices[0].mosaic else replace(scan, structures=drawn.structures(stack))
    except Terminal as error:
        yield Refused(first.item.id, error)
        return
    items = tuple(dict.fromkeys(s.item for s in stack.slices))
    content = tuple(dict.fromkeys(s.sha256 for s in stack.slices))
    place = {"frame": among[0], "frames": among[1]} if among else {}
    volume_id = key("volume", *content, *(among[:1] if among else ()))
    yield Volume(items, {
        "volume_id": volume_id, "group_id": first.group, "items": list(items), "sha256": list(content),
        "modality": first.columns["modality"], "shape": list(scan.values.shape),
        "affine": None if scan.affine is None else scan.affine.ravel().tolist(),
        "spacing": None if scan.spacing is None else list(scan.spacing),
        "orientation": scan.orientation, "rescale_applied": rescaled, "geometry_flags": list(stack.flags),
        "header": canonical({**first.facts, **place}).decode(),
        **references(stack.slices, pseudonym),
    })
    labels = tuple(dict.fromkeys(label for item in items for label in sources[item].labels))
    texts = tuple(dict.fromkeys(words for item in items for words in sources[item].item.texts))
    for piece in cut(scan, params):
        yield Sample(
            (*items, *drawn.on(stack.slices)), content, f"t:{among[0]}/{piece.locator}" if among else piece.locator,
            piece.pixels, group=first.group, columns={**piece.columns, **first.columns, "volume_id": volume_id},
            regions=piece.regions, labels=labels, texts=texts, licences=first.item.licences,
        )


def _read(stack: Stack) -> tuple[npt.NDArray[np.float32], bool, dict[int, ItemError]]:
    """(x, y, z) values of a stack in modality units, whether they were rescaled, the errors of unreadable slices."""
    rows, columns, _ = stack.slices[0].size
    values = np.zeros((columns, rows, len(stack.slices)), np.float32, order="F")
    rescaled = True
    lost: dict[int, ItemError] = {}
    for at, s in enumerate(stack.slices):
        try:
            picture = read_picture(s)
        except ItemError as error:
            lost[at] = error
        else:
            values[:, :, at] = picture.values.T
            rescaled &= picture.rescaled
    return values, rescaled, lost


def _scan_of(
    stack: Stack, values: npt.NDArray[np.float32], rescaled: bool, modality: str | None, anatomy: str | None
) -> Scan:
    """CT that was not rescaled is not in Hounsfield units: it goes without a modality, so no CT window is put on it."""
    first = stack.slices[0]
    values, affine = unmosaic(first, values[:, :, 0].T) if first.mosaic else (values, affine_of(stack.slices))
    shown_as = None if modality == "CT" and not rescaled else modality
    return Scan(values, affine, shown_as, anatomy, stack.window, first.inverted)


def _stills(
    frames: list[Slice], sources: Mapping[str, Described], drawn: _Drawn, params: IngestParams
) -> Iterator[Decoded]:
    """A single image, or evenly spaced frames of a multi-frame file; one bad frame among those refuses the file."""
    count = min(params.frames, len(frames))
    chosen = [frames[(2 * n + 1) * len(frames) // (2 * count)] for n in range(count)]
    source = sources[chosen[0].item]
    try:
        pictures = [read_picture(s) for s in chosen]
        shown = partial(_extent_of, pictures)
        made = [
            _still(s, name, pixels, window, source, drawn, frames)
            for s, picture in zip(chosen, pictures, strict=True)
            for name, pixels, window in _shown(s, picture, shown, source, params)
        ]
    except ItemError as error:
        yield Refused(source.item.id, error)
        return
    yield from made


def _still(
    s: Slice, name: str, pixels: Pixels, window: Window | None, source: Described, drawn: _Drawn, of: Sequence[Slice]
) -> Sample:
    """A sample of one frame `of` a file."""
    place = "" if s.frame is None else f"frame:{s.frame}"
    boxes = [Region(box.label, box.role, box=box.xyxy) for box in source.item.boxes]
    outlined = drawn.regions(s) if drawn.files else ()
    localizer = (Label("localizer", "present", "dicom:ImageType"),) if s.localizer else ()
    return Sample(
        (s.item, *drawn.on(of)), (s.sha256,), ":".join(part for part in (place, name) if part), pixels,
        group=source.group,
        columns={
            "view": source.facts.get("ViewPosition") or s.plane, "slice_index": s.frame,
            "window": list(window) if window else None, "pixel_spacing": list(s.spacing) if s.spacing else None,
            "orientation": s.orientation, **source.columns,
        },
        regions=(*boxes, *outlined), labels=(*source.labels, *localizer), texts=source.item.texts,
        licences=source.item.licences,
    )


def _extent_of(pictures: Sequence[Picture]) -> Window:
    """One range for all frames of a file, so that one value is one grey."""
    return min(p.extent[0] for p in pictures), max(p.extent[1] for p in pictures)


def _shown(
    s: Slice, picture: Picture, extent: Callable[[], Window], source: Described, params: IngestParams
) -> Iterator[tuple[str, Pixels, Window | None]]:
    """A picture in each window it is to be shown in: name ("" unless it is CT in Hounsfield units), pixels, window."""
    if picture.values.ndim == 3:
        yield "", picture.values.astype(np.uint8), None
        return
    inverted, own = s.inverted, s.window
    hounsfield = s.modality == "CT" and picture.rescaled and not s.localizer
    if own is None and not hounsfield and (looked_up := voi_lut(s, picture)) is not None:
        yield "", to_grey(*looked_up, inverted), None
        return
    own = own if own is not None or hounsfield else extent()
    anatomy = source.columns["anatomy"]
    windows = choose_windows(picture.values, "CT" if hounsfield else None, anatomy, own, params.windows)
    for name, window in windows.items():
        yield name if hounsfield else "", to_grey(picture.values, window, inverted), window
