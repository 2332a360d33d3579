"""NIfTI: a volume with its label map and masks becomes a row of `volumes` and the slices cut from it.

The invariant: a region is drawn only where its voxels are known to lie on the image's grid. Labels on another grid are
brought over by nearest neighbour when theirs covers the image's, and left out, with a flag, when it does not.

>>> for made in decode([item], IngestParams(planes=("axial", "coronal")), pseudonym):
...     print(type(made).__name__, getattr(made, "locator", ""))
Volume
Sample axial:41:soft_tissue
Sample coronal:60:soft_tissue

Of a file with a fourth axis (time, echo, channel), `IngestParams.frames` evenly spaced frames become a volume each,
with "t:3/" before the locators and "frame" and "frames" in the header column; labels are taken from the same frame, or
from the only one. Roles of an item's files: "main"; "labels", whose names are in the fact "label_table"; "mask:NAME",
where voxels above the fact "mask_threshold" (0) belong to it. The fact "channels" names the frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from catalog.items import Item, Label
from infra.errors import ItemError, Terminal
from infra.keys import canonical, key
from transforms.decoded import Decoded, IngestParams, Pseudonym, Refused, Sample, Volume
from transforms.scans.niftifile import Affine, Nifti, read_nifti
from transforms.scans.volumes import Scan, cut

NAME = "nifti"
VERSION = "1"
REQUIRES = {"nibabel": "nibabel"}

OWN_FACTS = ("label_table", "mask_threshold", "channels", "article")
"""Facts for this decoder; the others are columns of `images`."""
MASK = "mask:"
SAME_AFFINE = 1e-3
"""Affines that differ by no more than this in any element (mm) are one grid."""


class Params(BaseModel):
    """This decoder has no settings of its own; `ingest:` in the recipe holds them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def decode(items: Sequence[Item], params: IngestParams, pseudonym: Pseudonym) -> Iterator[Decoded]:
    """Decode volumes, one an item. Codes of refusals: those of `read_nifti`, for any file of the item, and
    NO_FINITE_VALUES. A frame without a finite value is passed over while another one has some."""
    for item in items:
        try:
            files = {role: _open(role, item) for role in sorted(item.files)}
            for frame, values, lost in _frames(files["main"], params.frames):
                yield from _volume(item, files, frame, values, lost, params, pseudonym)
        except ItemError as error:
            yield Refused(item.id, error)


def open_scan(files: Sequence[bytes], frame: int = 0) -> Scan:
    """The scan of a row of `volumes` again, without labels; `frame` stands in its header column. Raises ItemError."""
    main = read_nifti(files[0])
    return Scan(main.values(frame)[0], main.affine, None, None)


def _open(role: str, item: Item) -> Nifti:
    try:
        return read_nifti(item.files[role])
    except Terminal as error:
        raise Terminal(error.code, error.message if role == "main" else f"{role}: {error.message}") from None


def _frames(main: Nifti, most: int) -> Iterator[tuple[int, npt.NDArray[Any], int]]:
    """Up to `most` evenly spaced frames, as (index, values, values that were not finite)."""
    count = min(most, main.frames)
    given, unusable = 0, None
    for n in range(count):
        frame = (2 * n + 1) * main.frames // (2 * count)
        try:
            values, lost = main.values(frame)
        except Terminal as error:
            unusable = error
            continue
        given += 1
        yield frame, values, lost
    if unusable and not given:
        raise unusable


def _volume(
    item: Item, files: Mapping[str, Nifti], frame: int, values: npt.NDArray[Any], lost: int, params: IngestParams,
    pseudonym: Pseudonym,
) -> Iterator[Volume | Sample]:
    """The row and the slices of one frame; nothing in here refuses the item."""
    main = files["main"]
    content = item.sha256()
    group = pseudonym("patient", item.patient or item.id)
    stated = {name: fact for name, fact in item.facts.items() if name not in OWN_FACTS}
    modality, anatomy = stated.get("modality"), stated.get("anatomy")
    place = {"frame": frame, "frames": main.frames} if main.frames > 1 else {}
    volume_id = key("volume", content, *([frame] if place else []))
    placed = _Placed(main, frame)
    labels = placed.labels(files["labels"]) if "labels" in files else None
    masks = placed.masks(files, float(item.facts.get("mask_threshold", 0)))
    hounsfield = modality != "CT" or _looks_hounsfield(values)
    flags = {*main.flags, *placed.flags, *(() if hounsfield else ("not_hounsfield",))}
    scan = Scan(
        values, main.affine, modality if hounsfield else None, anatomy, labels=labels, masks=masks,
        label_table={int(value): name for value, name in item.facts.get("label_table", {}).items()},
    )
    yield Volume((item.id,), {
        "volume_id": volume_id, "group_id": group, "items": [item.id], "sha256": [content], "modality": modality,
        "shape": list(main.shape), "affine": None if main.affine is None else main.affine.ravel().tolist(),
        "spacing": list(main.spacing) if main.spacing else None, "orientation": scan.orientation,
        "rescale_applied": (True if main.rescaled else None) if hounsfield else False, "geometry_flags": sorted(flags),
        "header": canonical({**main.facts, **place, "non_finite": lost, "left_out": placed.left_out}).decode(),
    })
    columns = {**stated, "volume_id": volume_id}
    if main.affine is None and main.spacing:
        columns["pixel_spacing"] = [main.spacing[1], main.spacing[0]]
    for piece in cut(scan, params):
        yield Sample(
            (item.id,), (content,), f"t:{frame}/{piece.locator}" if place else piece.locator, piece.pixels, group=group,
            columns={**piece.columns, **columns}, regions=piece.regions, labels=(*item.labels, *_channel(item, frame)),
            texts=item.texts, licences=item.licences,
        )


def _channel(item: Item, frame: int) -> tuple[Label, ...]:
    channels = item.facts.get("channels", ())
    return (Label("sequence", channels[frame], "dataset.json:modality"),) if frame < len(channels) else ()


def _looks_hounsfield(values: npt.NDArray[Any]) -> bool:
    """False for CT values that start at 0 and have soft tissue near 1000: the intercept of -1024 was never applied."""
    if values.min() < 0:
        return True
    present = values[values != 0]
    return not present.size or float(np.percentile(present, 90)) < 800


class _Placed:
    """Labels and masks on the grid of one frame of the image; collects what was odd on the way."""

    def __init__(self, main: Nifti, frame: int) -> None:
        self._main, self._frame = main, frame
        self.flags: set[str] = set()
        self.left_out: list[str] = []
        """roles of files that could not be used"""

    def labels(self, file: Nifti) -> npt.NDArray[Any] | None:
        """(x, y, z) integers on the image's grid, or None when they cannot be."""
        values = self._values(file, "labels")
        if values is None:
            return None
        if values.dtype.kind == "f":
            whole = np.rint(values)
            if np.abs(values - whole).max() > SAME_AFFINE or np.abs(whole).max() > np.iinfo(np.int32).max:
                self._leave_out("labels", "labels_not_integers")
                return None
            values = whole.astype(np.int32)
        return self._fitted(values, file, "labels")

    def masks(self, files: Mapping[str, Nifti], threshold: float) -> dict[str, npt.NDArray[np.bool_]]:
        """name -> (x, y, z) of the masks that can be brought to the image's grid."""
        masks = {}
        for role, file in files.items():
            if not role.startswith(MASK) or (values := self._values(file, role)) is None:
                continue
            fitted = self._fitted((values > threshold).astype(np.uint8), file, role)
            if fitted is not None:
                masks[role.removeprefix(MASK)] = fitted.astype(np.bool_)
        return masks

    def _values(self, file: Nifti, role: str) -> npt.NDArray[Any] | None:
        if file.frames not in (1, self._main.frames):
            self._leave_out(role, "labels_grid_mismatch")
            return None
        try:
            values, lost = file.values(self._frame if file.frames > 1 else 0)
        except Terminal:
            self._leave_out(role, "labels_not_finite")
            return None
        if lost:
            self.flags.add("labels_not_finite")
        return values

    def _fitted(self, voxels: npt.NDArray[Any], file: Nifti, role: str) -> npt.NDArray[Any] | None:
        main = self._main
        if file.shape == main.shape and _same(file.affine, main.affine):
            return voxels
        if file.affine is None or main.affine is None or not _covers(file.shape, file.affine, main.shape, main.affine):
            self._leave_out(role, "labels_grid_mismatch")
            return None
        self.flags.add("labels_resampled")
        return _resampled(voxels, file.affine, main)

    def _leave_out(self, role: str, flag: str) -> None:
        self.flags.add(flag)
        self.left_out.append(role)


def _same(one: Affine | None, other: Affine | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.abs(one - other).max() <= SAME_AFFINE)


def _covers(shape: tuple[int, ...], affine: Affine, other_shape: tuple[int, ...], other: Affine) -> bool:
    """Whether every voxel centre of the other grid lies within half a voxel of this one's outermost centres."""
    corners = np.array([[*index, 1] for index in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in other_shape), 1]
    here = (corners @ (np.linalg.inv(affine) @ other).T)[:, :3]
    return bool((here >= -0.5 - SAME_AFFINE).all() and (here <= np.array(shape) - 0.5 + SAME_AFFINE).all())


def _resampled(voxels: npt.NDArray[Any], affine: Affine, main: Nifti) -> npt.NDArray[Any]:
    """Nearest neighbour on the grid of `main`."""
    from nibabel.nifti1 import Nifti1Image
    from nibabel.processing import resample_from_to

    image = Nifti1Image(voxels, affine)  # type: ignore[no-untyped-call]
    grid = (main.shape, main.affine)
    moved = resample_from_to(image, grid, order=0, mode="nearest")  # type: ignore[no-untyped-call]
    return np.asarray(moved.dataobj)
