"""Scans that could show a face: from thin slices of a head anyone can render one.

The invariant: a scan is only called free of a face when its anatomy says so, or it is too thin or too coarse to render
one; where nothing is known, a field of view of the size of a head is enough to be flagged.

>>> face_in(Series("CT", ("HEAD",), slices=160, spacing=1.0, coverage=160.0, field=250.0))
Verdict(shows='yes', why='head, 160 mm in slices of 1.0 mm')

The rule: CT, MR or PET; at least MIN_SLICES slices, no further apart than MAX_SPACING mm, over at least MIN_COVERAGE
mm, and a field of view of at least MIN_FIELD mm (smaller ones, an orbit or an inner ear, hold no face). Body parts
decide then; with none stated, a field of view up to HEAD_FIELD mm may be a head. Faces were matched to photographs
from MR slices of about 1 mm (Schwarz et al., NEJM 2019, 10.1056/NEJMc1908881); slices of 5 mm still show a profile.
medloom does not deface: the profile "public" refuses a flagged scan until it was (then say `defaced`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from infra.errors import Terminal
from transforms.scans.deidentify import number, numbers, text, texts

MIN_SLICES, MAX_SPACING, MIN_COVERAGE, MIN_FIELD, HEAD_FIELD = 12, 6.0, 60.0, 120.0, 320.0
_HEAD = re.compile(r"HEAD|BRAIN|SKULL|FACE|FACIAL|NECK|SINUS|ORBIT|CEREB|CRAN|JAW|MAXILL|MANDIB|TEMPORAL|PITUIT|IAC|"
                   r"NEURO|KOPF|TETE|CABEZA|WHOLE ?BODY|C-?SPINE|CERVIC|EYE|EAR")
_ELSEWHERE = re.compile(r"CHEST|THORA|LUNG|ABD|PELVIS|LIVER|KNEE|ANKLE|FOOT|HAND|WRIST|ELBOW|HIP|PROSTATE|LSPINE|"
                        r"L-?SPINE|TSPINE|BREAST|HEART|CARDIAC|COLON|KIDNEY|SHOULDER|FEMUR|TIBIA|UTERUS|BLADDER")


@dataclass(frozen=True)
class Series:
    """What is known of the geometry of one series; lengths in mm, NaN where unknown."""

    modality: str
    anatomy: tuple[str, ...]
    """BodyPartExamined and descriptions, in capitals"""
    slices: int
    spacing: float
    coverage: float
    field: float
    """the larger side of the pictures"""


@dataclass(frozen=True)
class Verdict:
    """Whether a scan could show a face."""

    shows: Literal["yes", "possible", "no"]
    why: str


def face_in(series: Series) -> Verdict:
    """Judge a series; unknown lengths are taken for those of a face."""
    if series.modality not in ("CT", "MR", "PT"):
        return Verdict("no", "no CT, MR or PET")
    if series.slices < MIN_SLICES or series.spacing > MAX_SPACING or series.coverage < MIN_COVERAGE:
        return Verdict("no", "too few or too coarse slices to render a face")
    if series.field < MIN_FIELD:
        return Verdict("no", "the field of view is smaller than a face")
    shape = f"{series.coverage:.0f} mm in slices of {series.spacing:.1f} mm"
    if any(_HEAD.search(word) for word in series.anatomy):
        return Verdict("yes", f"head, {shape}")
    if any(_ELSEWHERE.search(word) for word in series.anatomy):
        return Verdict("no", "another part of the body")
    if series.field > HEAD_FIELD:
        return Verdict("no", "no head is stated, and the field of view is that of a trunk")
    return Verdict("possible", f"no body part is stated, and the size is that of a head: {shape}")


def check_public(verdict: Verdict, defaced: bool = False) -> None:
    """Refuse what may not be published. Raises Terminal FACE_POSSIBLE."""
    if verdict.shows != "no" and not defaced:
        raise Terminal("FACE_POSSIBLE", f"could show a face ({verdict.why}); deface it, or keep it from the public")


@dataclass(frozen=True)
class Geometry:
    """What one file tells of its series; small enough to keep for every file."""

    modality: str
    anatomy: tuple[str, ...]
    place: float
    """mm along the normal of the slices; NaN where unknown"""
    spacing: float
    frames: int
    field: float
    localizer: bool


def geometry_of(dataset: Any) -> Geometry:
    """Read it from a header."""
    position, plane = numbers(dataset, "ImagePositionPatient", 3), numbers(dataset, "ImageOrientationPatient", 6)
    place = math.nan
    if position and plane:
        (a, b, c), (d, e, f) = plane[:3], plane[3:]
        place = sum(p * n for p, n in zip(position, (b * f - c * e, c * d - a * f, a * e - b * d), strict=True))
    pixel = numbers(dataset, "PixelSpacing", 2)
    sides = (number(dataset, "Rows") or 0, number(dataset, "Columns") or 0)
    spacing = number(dataset, "SpacingBetweenSlices") or number(dataset, "SliceThickness")
    words = ("BodyPartExamined", "StudyDescription", "SeriesDescription", "ProtocolName")
    return Geometry(
        text(dataset, "Modality"), tuple(w for w in (text(dataset, name) for name in words) if w), place,
        spacing or math.nan, int(number(dataset, "NumberOfFrames") or 1),
        max(p * s for p, s in zip(pixel, sides, strict=True)) if pixel else math.nan,
        "LOCALIZER" in texts(dataset, "ImageType"),
    )


def series_of(files: Sequence[Geometry]) -> Series:
    """The series that files make; localizers do not count."""
    scan = [g for g in files if not g.localizer] or list(files)
    places = sorted({round(g.place, 2) for g in scan if not math.isnan(g.place)})
    slices = sum(g.frames for g in scan)
    first = scan[0]
    if len(places) > 1 and slices == len(scan):
        coverage = places[-1] - places[0]
        spacing = coverage / (len(places) - 1)
        slices = len(places)
    else:
        spacing, coverage = first.spacing, first.spacing * slices
    anatomy = tuple(dict.fromkeys(word for g in scan for word in g.anatomy))
    fields = [g.field for g in scan if not math.isnan(g.field)]
    return Series(first.modality, anatomy, slices, spacing, coverage, max(fields, default=math.nan))
