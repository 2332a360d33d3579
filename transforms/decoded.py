"""What a decoder makes of raw items: samples, volumes, and refusals, before they are rows.

A decoder is a plug-in module of `transforms/decoders` with

    def decode(items: Sequence[Item], params: IngestParams, pseudonym: Pseudonym) -> Iterator[Decoded]

called once for each run of items of one group. The invariant it keeps: every item ends up either in the `items` of at
least one Sample or Volume, or in exactly one Refused, never in both; a bad item costs itself, never its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from catalog.items import Label, Licences, Text
from infra.errors import ItemError

Pixels = npt.NDArray[np.uint8]
"""(height, width) grey or (height, width, 3) RGB, 8 bit."""

Pseudonym = Callable[[str, str], str]
"""(kind, identifier in clear) -> a stable stand-in: pseudonym("patient", "4711") -> "9f0c…" """


class IngestParams(BaseModel):
    """How raw items become samples; a recipe sets these under `ingest:`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_side: int | None = Field(None, ge=16, description="shrink images whose longer side exceeds this (area resize)")
    windows: tuple[str, ...] = Field(
        (), description="named CT windows (transforms/scans/windows.yaml), one sample each; empty: the table's window "
        "for the anatomy, else the file's own, else soft_tissue",
    )
    slices: str = Field(
        "largest:1+stride:0.25",
        description="which slices of a volume become samples, see transforms/scans/volumes.py: largest:N (largest "
        "labelled area), each:N (of every structure), negative:N (without any), stride:F (every fraction F of the "
        "extent), all, middle; joined by +",
    )
    planes: tuple[str, ...] = Field(("axial",), description="planes cut from a volume: axial, coronal, sagittal")
    burned_in: Literal["clean", "flag"] | None = Field(
        None, description="DICOM: text in the pixels is filled, or the file refused where it cannot be told (clean: "
        "transforms/deid/pixels.py), or only stated as a label (flag); null: clean where identifiers are private",
    )
    frames: int = Field(
        8, ge=1, description="how many evenly spaced frames of a cine become samples, and of a 4-D file volumes"
    )


@dataclass(frozen=True)
class Region:
    """A region of a sample, in pixels of the sample as decoded; a mask, or a box alone."""

    label: str
    role: str
    mask: npt.NDArray[np.bool_] | None = None
    """(height, width) of the decoded image"""
    box: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1, half-open; taken from the mask where there is one"""
    ontology_id: str | None = None
    score: float | None = None
    rater: str | None = None
    """who drew it, where the source has several"""


@dataclass(frozen=True)
class Sample:
    """One 2-D image to be: its pixels, where it came from, and what is known about it."""

    items: tuple[str, ...]
    """ids of the items it was made from"""
    content: tuple[str, ...]
    """SHA-256 of the source bytes it was made from; with `locator`, this decides its sample_id"""
    locator: str
    """place within those bytes: "", "frame:3", "axial:41:soft_tissue" …"""
    pixels: Pixels
    encoded: bytes | None = None
    """the original bytes where they are a web format that shows exactly `pixels` and hold no identifying metadata"""
    group: str | None = None
    """pseudonymous group_id; None: the sample is its own group"""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """columns of `images`: modality, anatomy, view, window, pixel_spacing …"""
    regions: tuple[Region, ...] = ()
    labels: tuple[Label, ...] = ()
    texts: tuple[Text, ...] = ()
    licences: Licences | None = None


@dataclass(frozen=True)
class Volume:
    """A row of `volumes`, without the columns that ingest adds (source, licences)."""

    items: tuple[str, ...]
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Article:
    """A row of `articles`, without `source`."""

    row: Mapping[str, Any]


@dataclass(frozen=True)
class Refused:
    """An item that did not become anything."""

    item: str
    error: ItemError


Decoded = Sample | Volume | Article | Refused
