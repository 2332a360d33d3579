"""DICOM SEG: masks on slices of DICOM series as segmentation objects that viewers and archives lay over their images.

One file a volume (`seg/VOLUME.dcm`: a series, or the part of one that makes a scan of its own), in the study and frame
of reference of its images, with a segment for each label and who drew it, a binary frame for each segment and slice.

The invariant: a pixel of a mask lies on the very pixel of the very frame that it was drawn on. What cannot be put there
without guessing is left out and counted: slices reformatted across the frames, pictures that were shrunk, volumes whose
files lack UIDs or share them. Regions with a box alone have no pixels to give.

References are the UIDs of the files that the receiver has (transforms/scans/references.py): the original ones where the
source's identifiers are public, else those that `medloom deid` writes under the same key, whose PatientID is `group_id`
too. PatientID and PatientName are `group_id` in any case; where identifiers are public the files have the original
ones. The images referenced are those that were looked at: a frame of a referenced image that has no segment shows none
of them, an image that is not referenced may show anything.

Concepts: SCT, FMA, RADLEX, NCIt and UMLS ids as they are; all others stand under the private designator 99MEDLOOM, the
id (or a hash of the label) as value. How a given mask was drawn is not known; the standard wants a word, which is
MANUAL, and SegmentDescription says so. A thickness that the files do not state is the distance from slice to slice.
There are no clocks: ContentDate is 1900-01-01. Equal selections give equal bytes. Memory holds the masks of one volume.

>>> highdicom.seg.segread(out / "seg" / "9f0c….dcm").get_pixels_by_source_instance(uids, combine_segments=True)

Sources: PS3.3 A.51 and C.8.20 (segmentation), C.7.6.16 (functional groups), PS3.16 CID 7150 (categories).
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from catalog.exports import Counts
from catalog.exports.placing import frame_mask, why_nowhere
from catalog.exports.progress import begun, counted
from catalog.exports.regions import NO_REGION, RegionParams, chosen
from catalog.masks import decode_mask
from catalog.selection import Row
from infra.keys import key, sha256

NAME = "dicom_seg"
REQUIRES = {"highdicom": "medloom[seg]"}
RESUMES = True
VOLUMES = True
MAKER = "medloom"
VERSION = "1"
PRIVATE = "99MEDLOOM"
SCHEMES = {"SCT": "SCT", "FMA": "FMA", "RADLEX": "RADLEX", "NCIT": "NCIt", "UMLS": "UMLS"}
"""Prefix of an ontology id -> coding scheme designator of PS3.16 8."""
CATEGORIES = {
    "organ": ("123037004", "Anatomical Structure"), "cell": ("123037004", "Anatomical Structure"),
    "body": ("123037004", "Anatomical Structure"), "lesion": ("49755003", "Morphologically Abnormal Structure"),
    "device": ("260787004", "Physical object"),
}
OTHER = ("309825002", "Spatial and Relational Concept")
ONE_FRAME = "1.2.840.10008.5.1.4.1.1.2"
"""CT Image Storage, as which the frames of an enhanced object are shown to highdicom, until `_refer` mends that."""
REPEAT = "a repeat: a segmentation holds a region once"


class Params(RegionParams):
    """Which regions; of pictures without one, `empty` says in the file that they were looked at."""


@dataclass(frozen=True, order=True)
class _Segment:
    """What makes regions one segment."""

    role: str
    label: str
    expert: str
    origin: str
    concept: str
    weights: str

    @classmethod
    def of(cls, roi: Mapping[str, Any]) -> _Segment:
        return cls(roi["role"], roi["label"], roi["expert"], roi["origin"], roi["ontology_id"] or "",
                   roi["expert_weights_sha256"] or "")


@dataclass
class _Scan:
    """The rows of one volume, until the next one begins."""

    volume: Mapping[str, Any]
    rows: list[tuple[Row, dict[_Segment, list[Any]]]] = field(default_factory=list)

    def masks(self, places: Sequence[int], segment: _Segment, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """(frames, rows, columns) of a segment."""
        made = np.zeros((len(places), *size), bool)
        at = {z: n for n, z in enumerate(places)}
        for row, found in self.rows:
            for code in found.get(segment, ()):
                made[at[row.image["slice_index"]]] |= frame_mask(decode_mask(code), row.image, self.volume)
        return made


def write(rows: Iterable[Row], out: Path, params: RegionParams) -> Counts:
    """Write seg/VOLUME.dcm. Samples without a mask are left out and counted, unless `empty`."""
    files, counts = begun(out)
    for scan in _scans(rows, params, counts):
        segments = {segment for _, found in scan.rows for segment in found}
        if not segments:
            counts.left_out[NO_REGION] += len(scan.rows)
            continue
        name = f"seg/{_name(scan.volume['volume_id'])}.dcm"
        while name in files:  # samples of a volume that do not lie together
            name = name.replace(".dcm", "-more.dcm")
        with counted(out, name, files, counts) as draft:
            for row, _ in scan.rows:
                counts.add(row)
            _write(scan, sorted(segments), draft)
    return counts


def _name(volume: str) -> str:
    """A volume's id, or a hash of it where an id from elsewhere could be a path."""
    return volume if volume.isascii() and volume.isalnum() and len(volume) <= 64 else key("name", volume)


def _scans(rows: Iterable[Row], params: RegionParams, counts: Counts) -> Iterator[_Scan]:
    """The samples that can be placed, those of a volume together."""
    scan: _Scan | None = None
    for row in rows:
        if scan is not None and row.image["volume_id"] != scan.volume["volume_id"]:
            yield scan
            scan = None
        reason = REPEAT if row.copy else why_nowhere(row.image, row.volume)
        found: dict[_Segment, list[Any]] = {}
        if reason is None:
            drawn = chosen(row, params, counts)
            counts.notes["regions without a mask, not written"] += sum(roi["mask"] is None for roi in drawn)
            for roi in drawn:
                if roi["mask"] is not None and roi["area"]:
                    found.setdefault(_Segment.of(roi), []).append(roi["mask"])
            counts.notes["regions joined with another of their segment"] += sum(len(m) - 1 for m in found.values())
            reason = None if found or params.empty else NO_REGION
        if reason is not None:
            counts.left_out[reason] += 1
            continue
        assert row.volume is not None
        scan = scan or _Scan(row.volume)
        scan.rows.append((row, found))
    if scan is not None:
        yield scan


def _write(scan: _Scan, segments: Sequence[_Segment], path: Path) -> None:
    """One segmentation object."""
    from highdicom.content import PixelMeasuresSequence
    from highdicom.seg import Segmentation
    from pydicom.valuerep import DS

    volume = scan.volume
    places = sorted({row.image["slice_index"] for row, _ in scan.rows})
    columns, height, _ = volume["shape"]
    pixels = _pixels(scan, segments, places, (height, columns))
    content = sha256(pixels.tobytes() + key([vars(s) for s in segments], places, VERSION).encode())
    spacing = [float(np.round(mm, 9)) for mm in volume["spacing"]]
    even = not {"gap", "non_uniform", "tilt"}.intersection(volume["geometry_flags"] or ())
    sources = [_source(volume, z, (height, columns)) for z in places]
    with _quiet():
        made = Segmentation(
            source_images=sources, pixel_array=pixels, segmentation_type="BINARY",
            segment_descriptions=[_described(n, one) for n, one in enumerate(segments, 1)],
            series_instance_uid=_uid("series", volume["volume_id"]), series_number=1,
            sop_instance_uid=_uid("instance", volume["volume_id"], content), instance_number=1,
            manufacturer=MAKER, manufacturer_model_name=MAKER, software_versions=f"{NAME} {VERSION}",
            device_serial_number="0", content_label="MEDLOOM", content_description="Regions exported by medloom",
            content_date="19000101", content_time="000000", specific_character_set="ISO_IR 192",
            pixel_measures=PixelMeasuresSequence([spacing[1], spacing[0]], _thickness(volume)),
        )
        del made.InstanceCreationDate, made.InstanceCreationTime
        for equipment in made.ContributingEquipmentSequence:
            del equipment.ContributionDateTime
        (measures,) = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        measures.pop("SpacingBetweenSlices", None)  # highdicom makes one of the frames that are there, with gaps
        if even:
            measures.SpacingBetweenSlices = DS(spacing[2], auto_format=True)
        organized = _uid("dimensions", volume["volume_id"])
        for one in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
            one.DimensionOrganizationUID = organized
        for item, one in zip(made.SegmentSequence, segments, strict=True):
            item.SegmentDescription = _words(_HOW.get(one.origin, one.origin), 1024)
        _refer(made, volume, places)
        made.save_as(path)


def _pixels(
    scan: _Scan, segments: Sequence[_Segment], places: Sequence[int], size: tuple[int, int]
) -> npt.NDArray[Any]:
    """(frames, rows, columns) numbers of segments, or (frames, rows, columns, segments) where any overlap."""
    labels = np.zeros((len(places), *size), np.uint16)
    for number, segment in enumerate(segments, 1):
        mask = scan.masks(places, segment, size)
        if labels[mask].any():
            return np.stack([scan.masks(places, one, size) for one in segments], axis=-1)
        labels[mask] = number
    return labels


def _source(volume: Mapping[str, Any], z: int, size: tuple[int, int]) -> Any:
    """What must be known of a frame to refer to it, in the form of a file of one frame."""
    from pydicom.dataset import Dataset
    from pydicom.valuerep import DS

    made = Dataset()
    several = volume["sop_frames"] is not None
    made.SOPClassUID, made.SOPInstanceUID = ONE_FRAME if several else volume["sop_class_uid"], _stand_in(volume, z)
    made.StudyInstanceUID, made.SeriesInstanceUID = volume["study_uid"], volume["series_uid"]
    made.FrameOfReferenceUID, made.Modality = volume["frame_of_reference_uid"], volume["modality"] or "OT"
    made.PatientID = made.PatientName = volume["group_id"]
    for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
        setattr(made, keyword, "")
    made.ReferringPhysicianName, made.PositionReferenceIndicator = "", ""
    made.Rows, made.Columns = size
    affine = np.array(volume["affine"]).reshape(4, 4)
    lps = np.diag([-1.0, -1.0, 1.0]) @ (affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0))
    directions = np.round(lps.T.ravel(), 10) + 0.0
    made.ImageOrientationPatient = [DS(float(c), auto_format=True) for c in directions]
    made.ImagePositionPatient = [DS(mm, auto_format=True) for mm in volume["slice_positions"][z]]
    made.PixelSpacing = [DS(float(np.round(volume["spacing"][axis], 9)), auto_format=True) for axis in (1, 0)]
    made.SliceThickness = DS(_thickness(volume), auto_format=True)
    return made


def _thickness(volume: Mapping[str, Any]) -> float:
    """mm; readers insist on one: where the files state none, the distance from slice to slice."""
    stated = json.loads(volume["header"] or "{}").get("SliceThickness")
    return float(np.round(stated or volume["spacing"][2], 9))


def _stand_in(volume: Mapping[str, Any], z: int) -> str:
    """The UID of the file of a frame; where it has several, one for the frame alone, until `_refer` mends that."""
    uid = str(volume["sop_uids"][z])
    return uid if volume["sop_frames"] is None else _uid("frame", uid, volume["sop_frames"][z])


def _refer(made: Any, volume: Mapping[str, Any], places: Sequence[int]) -> None:
    """Name files and frame numbers where files have several frames."""
    if volume["sop_frames"] is None:
        return
    real = {_stand_in(volume, z): (volume["sop_uids"][z], volume["sop_frames"][z]) for z in places}
    for frame in made.PerFrameFunctionalGroupsSequence:
        for derived in frame.DerivationImageSequence:
            for source in derived.SourceImageSequence:
                source.ReferencedSOPInstanceUID, source.ReferencedFrameNumber = real[source.ReferencedSOPInstanceUID]
                source.ReferencedSOPClassUID = volume["sop_class_uid"]
    for series in made.ReferencedSeriesSequence:
        once: dict[str, Any] = {}
        for instance in series.ReferencedInstanceSequence:
            instance.ReferencedSOPInstanceUID, _ = real[instance.ReferencedSOPInstanceUID]
            instance.ReferencedSOPClassUID = volume["sop_class_uid"]
            once.setdefault(instance.ReferencedSOPInstanceUID, instance)
        series.ReferencedInstanceSequence = list(once.values())


_HOW = {
    "given": "As given by the source; how it was drawn is not known", "human": "Drawn by a reviewer",
    "predicted": "Found by an algorithm",
}


def _described(number: int, segment: _Segment) -> Any:
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept

    prefix, _, value = segment.concept.partition(":")
    label = _words(segment.label, 64) or "region"
    if prefix.upper() in SCHEMES and 0 < len(value) <= 16:
        kind = CodedConcept(value, SCHEMES[prefix.upper()], label)
    else:
        fits = segment.concept.isascii() and segment.concept.isprintable() and len(segment.concept) <= 16
        kind = CodedConcept(segment.concept if segment.concept and fits else key("label", segment.concept or
                            segment.label)[:16], PRIVATE, label)
    code, meaning = CATEGORIES.get(segment.role, OTHER)
    found = segment.origin == "predicted"
    family = ("123110", "DCM", "Artificial Intelligence") if segment.weights else ("RULES", PRIVATE, "Without weights")
    return SegmentDescription(
        segment_number=number, segment_label=label,
        segmented_property_category=CodedConcept(code, "SCT", meaning), segmented_property_type=kind,
        algorithm_type="AUTOMATIC" if found else "MANUAL",
        algorithm_identification=AlgorithmIdentificationSequence(
            _words(segment.expert, 64), CodedConcept(*family), segment.weights[:16] or "not stated"
        ) if found else None,
        tracking_id=_words(f"{segment.label} / {segment.expert}", 64),
        tracking_uid=_uid("segment", *vars(segment).values()),
    )


def _words(text: str, most: int) -> str:
    """Printable words without the backslash, which parts values (PS3.5 6.2)."""
    return "".join(c for c in " ".join(text.replace("\\", "/").split()) if c.isprintable())[:most].strip()


def _uid(*parts: Any) -> str:
    """A UID under 2.25 (PS3.5 B.2) made of a hash: version 8 of RFC 9562."""
    number = int(sha256(key(NAME, *parts).encode())[:32], 16)
    return f"2.25.{UUID(int=number & ~(0xF << 76) & ~(3 << 62) | 8 << 76 | 2 << 62).int}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Labels may be longer or stranger than readers of old took; that is no news to whoever exports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
