"""Volume files: a scan with its label map and masks becomes a row of `volumes` and the slices cut from it.

The invariant: a region is drawn only where its voxels are known to lie on the image's grid. Labels on another grid are
brought over by nearest neighbour when theirs covers the image's, and left out, with a flag, when it does not.

>>> for made in decode([item], IngestParams(planes=("axial", "coronal")), pseudonym):
...     print(type(made).__name__, getattr(made, "locator", ""))
Volume
Sample axial:41:soft_tissue
Sample coronal:60:soft_tissue

Of a file with a fourth axis (time, echo, channel), `IngestParams.frames` evenly spaced frames become a volume each,
with "t:3/" before the locators and "frame" and "frames" in the header column; labels are taken from the same frame, or
from the only one. Roles of an item's files: "main"; "labels"; "mask:NAME", where voxels above the fact "mask_threshold"
(0) belong to it; and "header:ROLE" for the header of a pair. Facts: "label_table" names the values of the label map,
instead of its own table; "label_unions" makes regions of several values, "label_ignored" none of some; "channels" names
the frames; "acquisition" goes into the header column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from catalog.items import Item, Label
from infra.errors import ItemError, Terminal
from infra.keys import canonical, key
from transforms.decoded import Decoded, IngestParams, Pseudonym, Refused, Sample, Volume
from transforms.scans.openvolume import open_volume
from transforms.scans.volumefile import Affine, VolumeFile
from transforms.scans.volumes import BODY_HU, Scan, cut

NAME = "nifti"
VERSION = "2"
REQUIRES = {"nibabel": "nibabel"}

OWN_FACTS = (
    "label_table", "label_unions", "label_ignored", "mask_threshold", "channels", "acquisition", "article",
)
"""Facts for this decoder; the others are columns of `images`."""
MASK, HEADER = "mask:", "header:"
LEAST_TISSUE = 0.02
STORED_AIR = -500.0
"""A CT whose stored values reach below this, and that shows a smaller share of tissue once they are rescaled, held HU
before."""
SAME_AFFINE = 1e-3
"""Affines that differ by no more than this in any element (mm) are one grid."""


class Params(BaseModel):
    """This decoder has no settings of its own; `ingest:` in the recipe holds them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def decode(items: Sequence[Item], params: IngestParams, pseudonym: Pseudonym) -> Iterator[Decoded]:
    """Decode volumes, one an item. Codes of refusals: those of the readers, for any file of the item, and
    NO_FINITE_VALUES. A frame without a finite value is passed over while another one has some."""
    for item in items:
        try:
            files = {role: _open(role, item) for role in sorted(item.files) if not role.startswith(HEADER)}
            for frame, values, lost in _frames(files["main"], params.frames):
                yield from _volume(item, files, frame, values, lost, params, pseudonym)
        except ItemError as error:
            yield Refused(item.id, error)


def open_scan(files: Sequence[bytes], frame: int = 0) -> Scan:
    """The scan of a row of `volumes` again, without labels; `frame` stands in its header column. Raises ItemError.

    Of a pair, the header comes first, as in the row's sha256.
    """
    main = open_volume(files[-1], files[0] if len(files) > 1 else None)
    return Scan(main.values(frame)[0], main.affine, None, None)


def _open(role: str, item: Item) -> VolumeFile:
    try:
        return open_volume(item.files[role], item.files.get(f"{HEADER}{role}"))
    except Terminal as error:
        raise Terminal(error.code, error.message if role == "main" else f"{role}: {error.message}") from None


def _frames(main: VolumeFile, most: int) -> Iterator[tuple[int, npt.NDArray[Any], int]]:
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
    item: Item, files: Mapping[str, VolumeFile], frame: int, values: npt.NDArray[Any], lost: int, params: IngestParams,
    pseudonym: Pseudonym,
) -> Iterator[Volume | Sample]:
    """The row and the slices of one frame; nothing in here refuses the item."""
    main = files["main"]
    content = [item.sha256(role) for role in (f"{HEADER}main", "main") if role in item.files]
    group = pseudonym("patient", item.patient or item.id)
    stated = {name: fact for name, fact in item.facts.items() if name not in OWN_FACTS}
    modality, anatomy = stated.get("modality"), stated.get("anatomy")
    place = {"frame": frame, "frames": main.frames} if main.frames > 1 else {}
    volume_id = key("volume", *content, *([frame] if place else []))
    placed = _Placed(main, frame)
    labels = placed.labels(files["labels"]) if "labels" in files else None
    masks = placed.masks(files, float(item.facts.get("mask_threshold", 0)))
    named = _Named.of(item.facts, files.get("labels"))
    undeclared = named.undeclared(labels)
    hounsfield = modality != "CT" or _looks_hounsfield(values, main)
    odd = {"not_hounsfield": not hounsfield, "labels_undeclared": bool(undeclared)}
    flags = {*main.flags, *placed.flags, *(flag for flag, there in odd.items() if there)}
    scan = Scan(
        values, main.affine, modality if hounsfield else None, anatomy, labels=named.single(labels),
        masks={**named.unions(labels), **masks}, label_table=named.table,
    )
    yield Volume((item.id,), {
        "volume_id": volume_id, "group_id": group, "items": [item.id], "sha256": content, "modality": modality,
        "shape": list(main.shape), "affine": None if main.affine is None else main.affine.ravel().tolist(),
        "spacing": list(main.spacing) if main.spacing else None, "orientation": scan.orientation,
        "rescale_applied": (True if main.rescaled else None) if hounsfield else False, "geometry_flags": sorted(flags),
        "header": canonical({
            **main.facts, **place, **item.facts.get("acquisition", {}), "non_finite": lost, "left_out": placed.left_out,
            **({"labels_undeclared": undeclared} if undeclared else {}),
        }).decode(),
    })
    columns = {**stated, "volume_id": volume_id}
    if main.affine is None and main.spacing:
        columns["pixel_spacing"] = [main.spacing[1], main.spacing[0]]
    for piece in cut(scan, params):
        yield Sample(
            (item.id,), tuple(content), f"t:{frame}/{piece.locator}" if place else piece.locator, piece.pixels,
            group=group, columns={**piece.columns, **columns}, regions=piece.regions,
            labels=(*item.labels, *_channel(item, frame)), texts=item.texts, licences=item.licences,
        )


def _channel(item: Item, frame: int) -> tuple[Label, ...]:
    channels = item.facts.get("channels", ())
    return (Label("sequence", channels[frame], "dataset.json:modality"),) if frame < len(channels) else ()


def _looks_hounsfield(values: npt.NDArray[Any], main: VolumeFile) -> bool:
    """False for CT values whose intercept of -1024 was never applied, or is applied to what was HU before.

    Never: they start at 0 and have soft tissue near 1000. Twice: the stored values have air, and with the intercept
    hardly a voxel is more than air.
    """
    lowest = float(values.min())
    if lowest >= 0:
        present = values[values != 0]
        return not present.size or float(np.percentile(present, 90)) < 800
    stored = (lowest - main.facts["scl_inter"]) / main.facts["scl_slope"] if main.rescaled else 0
    return stored > STORED_AIR or float(np.count_nonzero(values > BODY_HU)) >= LEAST_TISSUE * values.size


@dataclass(frozen=True)
class _Named:
    """What the values of a label map mean."""

    table: Mapping[int, str]
    together: Mapping[str, tuple[int, ...]]
    """name -> the values that make it up"""
    ignored: tuple[int, ...]

    @classmethod
    def of(cls, facts: Mapping[str, Any], file: VolumeFile | None) -> _Named:
        table = facts.get("label_table") or (file.label_table if file else {})
        return cls(
            {int(value): name for value, name in table.items()},
            {name: tuple(values) for name, values in facts.get("label_unions", {}).items()},
            tuple(facts.get("label_ignored", ())),
        )

    def unions(self, labels: npt.NDArray[Any] | None) -> dict[str, npt.NDArray[np.bool_]]:
        """A mask for each union."""
        return {} if labels is None else {name: np.isin(labels, values) for name, values in self.together.items()}

    def single(self, labels: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
        """The labels that are regions of their own; those ignored, or named only as part of a union, are cleared."""
        parts = {value for values in self.together.values() for value in values} - self.table.keys()
        none = [*parts, *self.ignored]
        return labels if labels is None or not none else np.where(np.isin(labels, none), 0, labels)

    def undeclared(self, labels: npt.NDArray[Any] | None) -> list[int]:
        """The values that no table names, where there is one."""
        if labels is None or not (self.table or self.together):
            return []
        known = {0, *self.table, *self.ignored, *(value for values in self.together.values() for value in values)}
        return sorted({int(value) for value in np.unique(labels)} - known)


class _Placed:
    """Labels and masks on the grid of one frame of the image; collects what was odd on the way."""

    def __init__(self, main: VolumeFile, frame: int) -> None:
        self._main, self._frame = main, frame
        self.flags: set[str] = set()
        self.left_out: list[str] = []
        """roles of files that could not be used"""

    def labels(self, file: VolumeFile) -> npt.NDArray[Any] | None:
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

    def masks(self, files: Mapping[str, VolumeFile], threshold: float) -> dict[str, npt.NDArray[np.bool_]]:
        """name -> (x, y, z) of the masks that can be brought to the image's grid."""
        masks = {}
        for role, file in files.items():
            if not role.startswith(MASK) or (values := self._values(file, role)) is None:
                continue
            fitted = self._fitted((values > threshold).astype(np.uint8), file, role)
            if fitted is not None:
                masks[role.removeprefix(MASK)] = fitted.astype(np.bool_)
        return masks

    def _values(self, file: VolumeFile, role: str) -> npt.NDArray[Any] | None:
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

    def _fitted(self, voxels: npt.NDArray[Any], file: VolumeFile, role: str) -> npt.NDArray[Any] | None:
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


def _resampled(voxels: npt.NDArray[Any], affine: Affine, main: VolumeFile) -> npt.NDArray[Any]:
    """Nearest neighbour on the grid of `main`."""
    from nibabel.nifti1 import Nifti1Image
    from nibabel.processing import resample_from_to

    image = Nifti1Image(voxels, affine)  # type: ignore[no-untyped-call]
    grid = (main.shape, main.affine)
    moved = resample_from_to(image, grid, order=0, mode="nearest")  # type: ignore[no-untyped-call]
    return np.asarray(moved.dataobj)
