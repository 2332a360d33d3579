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
`IngestParams.frames` frames are taken. Segmentations, reports, plans and dose grids are dropped: they are no images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from catalog.items import Item, Label
from infra.errors import Dropped, ItemError, Terminal
from infra.keys import canonical, key, sha256
from transforms.decoded import Decoded, IngestParams, Pixels, Pseudonym, Refused, Region, Sample, Volume
from transforms.scans.deidentify import (
    Described,
    check_image,
    describe,
    header_facts,
    number,
    open_dataset,
)
from transforms.scans.frames import Picture, read_picture, voi_lut
from transforms.scans.series import Slice, Stack, affine_of, slices_of, stacks, unmosaic, without
from transforms.scans.volumes import Scan, cut
from transforms.scans.windows import Window, choose_windows, to_grey

NAME = "dicom"
VERSION = "1"
REQUIRES = {"pydicom": "pydicom"}



class Params(BaseModel):
    """This decoder has no settings of its own; `ingest:` in the recipe holds them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def decode(items: Sequence[Item], params: IngestParams, pseudonym: Pseudonym) -> Iterator[Decoded]:
    """Decode the files of one series (role "main"). Codes of refusals beside those of `open_dataset`:

    NOT_AN_IMAGE (dropped), DUPLICATE_FILE (dropped), NO_PIXELS, DIMENSIONS_IMPLAUSIBLE, PIXELS_TRUNCATED,
    PIXELS_CORRUPT, PIXELS_UNSUPPORTED, TRANSFER_SYNTAX_UNSUPPORTED, MOSAIC_UNSUPPORTED.
    """
    sources: dict[str, Described] = {}
    slices: list[Slice] = []
    first_with: dict[str, str] = {}
    for item in items:
        data = item.files["main"]
        digest = item.sha256()
        try:
            if digest in first_with:
                raise Dropped("DUPLICATE_FILE", f"same bytes as {first_with[digest]}; nothing to do")
            dataset = open_dataset(data)
            check_image(dataset, len(data))
        except ItemError as error:
            yield Refused(item.id, error)
            continue
        first_with[digest] = item.id
        sources[item.id] = describe(item, dataset, pseudonym)
        slices += slices_of(item.id, digest, dataset)
    loose: dict[str, list[Slice]] = {}
    for stack in stacks(slices):
        if _is_whole_scan(stack):
            yield from _scan(stack, sources, params)
            continue
        for s in stack.slices:
            loose.setdefault(s.item, []).append(s)
    for frames in loose.values():
        yield from _stills(sorted(frames, key=lambda s: s.frame or 0), sources, params)


def open_scan(files: Sequence[bytes]) -> Scan:
    """The scan of a row of `volumes` again, from its files in the order of the row. Raises ItemError."""
    slices = [s for n, data in enumerate(files) for s in slices_of(str(n), sha256(data), open_dataset(data))]
    found = stacks(slices)
    if len(found) != 1 or not found[0].is_scan:
        raise Terminal("NOT_A_SCAN", "these files do not make one scan; give all files of one row of volumes")
    values, rescaled, lost = _read(found[0])
    if lost:
        raise next(iter(lost.values()))
    facts = header_facts(found[0].slices[0].dataset)
    return _scan_of(found[0], values, rescaled, facts.get("Modality"), facts.get("BodyPartExamined"))


def _is_whole_scan(stack: Stack) -> bool:
    """A scan of single-frame files, or of all frames of one file."""
    first = stack.slices[0]
    return stack.is_scan and (first.frame is None or len(stack.slices) == number(first.dataset, "NumberOfFrames"))


def _scan(stack: Stack, sources: Mapping[str, Described], params: IngestParams) -> Iterator[Decoded]:
    """The volume of a stack and the slices cut from it; unreadable slices are refused, and leave a gap."""
    values, rescaled, lost = _read(stack)
    if lost and stack.slices[0].frame is not None:
        yield Refused(stack.slices[0].item, next(iter(lost.values())))
        return
    yield from (Refused(stack.slices[at].item, error) for at, error in lost.items())
    rest = without(stack, lost) if lost else [stack]
    if not (rest and rest[0].is_scan):
        for left in rest:
            yield from _stills(list(left.slices), sources, params)
        return
    stack, first = rest[0], sources[rest[0].slices[0].item]
    try:
        values = np.delete(values, list(lost), axis=2) if lost else values
        scan = _scan_of(stack, values, rescaled, first.columns["modality"], first.columns["anatomy"])
    except Terminal as error:
        yield Refused(first.item.id, error)
        return
    items = tuple(dict.fromkeys(s.item for s in stack.slices))
    content = tuple(dict.fromkeys(s.sha256 for s in stack.slices))
    volume_id = key("volume", *content)
    yield Volume(items, {
        "volume_id": volume_id, "group_id": first.group, "items": list(items), "sha256": list(content),
        "modality": first.columns["modality"], "shape": list(scan.values.shape),
        "affine": None if scan.affine is None else scan.affine.ravel().tolist(),
        "spacing": None if scan.spacing is None else list(scan.spacing),
        "orientation": scan.orientation, "rescale_applied": rescaled, "geometry_flags": list(stack.flags),
        "header": canonical(dict(first.facts)).decode(),
    })
    labels = tuple(dict.fromkeys(label for item in items for label in sources[item].labels))
    texts = tuple(dict.fromkeys(words for item in items for words in sources[item].item.texts))
    for piece in cut(scan, params):
        yield Sample(
            items, content, piece.locator, piece.pixels, group=first.group,
            columns={**piece.columns, **first.columns, "volume_id": volume_id},
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


def _stills(frames: list[Slice], sources: Mapping[str, Described], params: IngestParams) -> Iterator[Decoded]:
    """A single image, or evenly spaced frames of a multi-frame file; one bad frame among those refuses the file."""
    count = min(params.frames, len(frames))
    chosen = [frames[(2 * n + 1) * len(frames) // (2 * count)] for n in range(count)]
    source = sources[chosen[0].item]
    try:
        pictures = [read_picture(s) for s in chosen]
        shown = partial(_extent_of, pictures)
        made = [
            _still(s, name, pixels, window, source)
            for s, picture in zip(chosen, pictures, strict=True)
            for name, pixels, window in _shown(s, picture, shown, source, params)
        ]
    except ItemError as error:
        yield Refused(source.item.id, error)
        return
    yield from made


def _still(s: Slice, name: str, pixels: Pixels, window: Window | None, source: Described) -> Sample:
    place = "" if s.frame is None else f"frame:{s.frame}"
    boxes = tuple(Region(box.label, box.role, box=box.xyxy) for box in source.item.boxes)
    localizer = (Label("localizer", "present", "dicom:ImageType"),) if s.localizer else ()
    return Sample(
        (s.item,), (s.sha256,), ":".join(part for part in (place, name) if part), pixels, group=source.group,
        columns={
            "view": source.facts.get("ViewPosition") or s.plane, "slice_index": s.frame,
            "window": list(window) if window else None, "pixel_spacing": list(s.spacing) if s.spacing else None,
            "orientation": s.orientation, **source.columns,
        },
        regions=boxes, labels=(*source.labels, *localizer), texts=source.item.texts, licences=source.item.licences,
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
