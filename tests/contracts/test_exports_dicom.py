"""Segmentations are read by highdicom and by pydicom alone, and held against the masks that the source gave.

What is drawn is known by file: a DICOM SEG beside the images says it (tests/dicomfiles.py), medloom reads that, cuts,
turns and windows the scans, and exports. Each frame's mask must come back on its own file, pixel for pixel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from dicomfiles import OBLIQUE, data_of, image, segmentation
from exporthome import files
from makehome import encode, make_home
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage

from catalog.exports import dicom_seg, placing, progress
from catalog.selection import Selection
from flows import build as work
from flows.deidentify import deidentify_folder
from flows.export import run_export
from flows.recipe import load_recipe
from infra.errors import ConfigError
from infra.runner import InlineRunner
from infra.settings import pseudonym_key
from transforms.deid.profile import Profile
from transforms.scans import volumes

hd = pytest.importorskip("highdicom", reason="highdicom is a package of the development group")
pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom and highdicom warn of names and values in old files

SIZE = (7, 9)
Frame = tuple[str, int]
"""UID of a file, and the number of a frame in it, from 1."""


def built(root: Path, identifiers: str = "public", **ingest: Any) -> Path:
    """The home of a build over a folder of DICOM files."""
    said = {
        "name": "scans", "sources": [{
            "name": "scans", "use": "dicom", "root": str(root), "identifiers": identifiers,
            "licence_image": "CC-BY-4.0", "licence_annotation": "CC-BY-4.0",
            "ingest": {"slices": "all", "burned_in": "flag", **ingest},
        }],
    }
    recipe = root.with_name(f"{root.name}.yaml")
    recipe.write_text(yaml.safe_dump(said))
    steps, home = load_recipe(recipe), root.with_name(f"{root.name}-home")
    plan = work.prepare(steps, home)
    progress = work.Progress(plan.todo)
    with InlineRunner() as runner:
        work.run_chains(plan.chains, steps, home, runner, progress)
    assert work.commit(plan, progress, steps, home).status == "snapshot"
    return home


def series(orientation: Sequence[float], heights: Sequence[float], shear: float = 0) -> list[Dataset]:
    """Slices at these heights along the normal; `shear` mm beside it for each mm of height."""
    across, down = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(across, down)
    made = []
    for n, height in enumerate(heights):
        at = np.array([-10.0, -20.0, 30.0]) + height * normal + shear * height * down
        pixels = np.random.default_rng(n).integers(-1000, 2000, SIZE, np.int16)
        made.append(image(n, pixels, ImageOrientationPatient=list(orientation),
                          ImagePositionPatient=[f"{mm:.6f}" for mm in at]))
    return made


def blobs(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> npt.NDArray[np.bool_]:
    return np.random.default_rng(seed).random((count, *size)) > 0.7


def saved(folder: Path, *datasets: Dataset) -> Path:
    folder.mkdir()
    for n, dataset in enumerate(datasets):
        (folder / f"{n:03d}.dcm").write_bytes(data_of(dataset))
    return folder


def plain_masks(path: Path) -> dict[Frame, dict[str, Any]]:
    """frame -> label -> mask, read by pydicom alone, as PS3.3 C.8.20 says."""
    seg = dcmread(path)
    assert (seg.Modality, seg.SegmentationType, seg.BitsAllocated) == ("SEG", "BINARY", 1)
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    names = {one.SegmentNumber: one.SegmentLabel for one in seg.SegmentSequence}
    size = seg.Rows * seg.Columns
    found: dict[Frame, dict[str, Any]] = {}
    for n, frame in enumerate(seg.PerFrameFunctionalGroupsSequence):
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert len(frame.PlanePositionSequence[0].ImagePositionPatient) == 3
        groups = frame if "SegmentIdentificationSequence" in frame else seg.SharedFunctionalGroupsSequence[0]
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        at = source.ReferencedSOPInstanceUID, int(source.get("ReferencedFrameNumber", 1))
        mask = bits[n * size : (n + 1) * size].reshape(seg.Rows, seg.Columns).astype(bool)
        assert names[number] not in found.setdefault(at, {})
        found[at][names[number]] = mask
    return found


def library_masks(path: Path, frames: Sequence[Frame]) -> dict[Frame, dict[str, Any]]:
    """The same by highdicom, which also checks that the object is whole."""
    seg = hd.seg.segread(path)
    uids = sorted({uid for uid, _ in frames})
    numbers = seg.segment_numbers
    if len(uids) < len(frames):
        (uid,) = uids
        at = sorted(n for _, n in frames)
        shown = seg.get_pixels_by_source_frame(uid, at, assert_missing_frames_are_empty=True)
        order: list[Frame] = [(uid, n) for n in at]
    else:
        shown = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
        order = [(uid, dict(frames)[uid]) for uid in uids]
    names = [seg.get_segment_description(n).segment_label for n in numbers]
    found: dict[Frame, dict[str, Any]] = {}
    for frame, planes in zip(order, shown, strict=True):
        given = {name: planes[..., k].astype(bool) for k, name in enumerate(names) if planes[..., k].any()}
        if given:
            found[frame] = given
    return found


def held(path: Path, drawn: dict[Frame, Any], label: str = "Liver") -> Any:
    """Hold both readings of a segmentation against what was drawn; returns it."""
    for found in (plain_masks(path), library_masks(path, list(drawn))):
        assert set(found) == {frame for frame, mask in drawn.items() if mask.any()}
        for frame, masks in found.items():
            assert set(masks) == {label} and np.array_equal(masks[label], drawn[frame])
    return dcmread(path)


def export(home: Path, out: Path, **options: Any) -> dict[str, Path]:
    """SeriesInstanceUID of the images -> the segmentation; `several` where a series has more."""
    run_export(home, "true", "dicom_seg", out, None, [f"{k}={v}" for k, v in options.items()], licences="all")
    paths = list((out / "seg").iterdir())
    found = {str(dcmread(path).ReferencedSeriesSequence[0].SeriesInstanceUID): path for path in paths}
    assert len(found) == len(paths)
    return found


AXIAL, FLIPPED = (1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0)
CORONAL, SAGITTAL = (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)
EVEN = [2.5 * n for n in range(6)]
SERIES: dict[str, tuple[Sequence[float], Sequence[float], float]] = {
    "axial": (AXIAL, EVEN, 0), "flipped": (FLIPPED, EVEN, 0), "transposed": ((0, 1, 0, 1, 0, 0), EVEN, 0),
    "turned": ((0, -1, 0, 1, 0, 0), EVEN, 0), "coronal": (CORONAL, EVEN, 0),
    "coronal upside down": ((-1, 0, 0, 0, 0, 1), EVEN, 0), "sagittal": (SAGITTAL, EVEN, 0),
    "sagittal turned": ((0, -1, 0, 0, 0, 1), EVEN, 0), "oblique": (OBLIQUE, EVEN, 0),
    "gap": (AXIAL, [0, 2.5, 5, 12.5, 15, 17.5], 0), "tilted gantry": (AXIAL, EVEN, 0.2),
}
BAD = ("same UID", "no UID", "no frame", "no region")


def stamped(number: int, datasets: Sequence[Dataset], keep: bool = False) -> Sequence[Dataset]:
    """With UIDs of a series of its own."""
    for n, one in enumerate(datasets):
        one.StudyInstanceUID, one.SeriesInstanceUID = f"1.2.1.{number}", f"1.2.2.{number}"
        one.FrameOfReferenceUID = f"1.2.4.{number}"
        one.SOPInstanceUID = one.SOPInstanceUID if keep else f"1.2.3.{number}.{n}"
    return datasets


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[list[Dataset], Any]]]:
    """A home of all SERIES, an enhanced object and what is bad, and of the good ones the slices with their masks."""
    folder, drawn = tmp_path_factory.mktemp("many"), {}
    every: list[Dataset] = []
    for number, name in enumerate((*SERIES, *BAD)):
        slices, masks = stamped(number, series(*SERIES.get(name, (AXIAL, EVEN, 0)))), blobs(6, seed=number)
        masks[3] = False
        for one in slices:
            one.SOPInstanceUID = {"same UID": "1.2.3.4", "no UID": "Doe^John"}.get(name, one.SOPInstanceUID)
            one.FrameOfReferenceUID = "" if name == "no frame" else one.FrameOfReferenceUID
        outlined = segmentation(list(slices), masks)
        outlined.StudyInstanceUID, outlined.SeriesInstanceUID = f"1.2.1.{number}", f"1.2.5.{number}"
        outlined.SOPInstanceUID = f"1.2.6.{number}"
        every += [*slices, *([] if name == "no region" else [outlined])]
        drawn[name] = list(slices), masks
    return built(saved(folder / "in", *every), planes=["axial", "coronal", "sagittal"]), drawn


@pytest.fixture(scope="module")
def exported(many: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    out = tmp_path_factory.mktemp("exported") / "out"
    return out, export(many[0], out)


@pytest.mark.parametrize("name", SERIES)
def test_masks_come_back_on_their_own_frames(many: tuple[Path, Any], exported: Any, name: str) -> None:
    slices, masks = many[1][name]
    orientation, heights, shear = SERIES[name]
    number = list(SERIES).index(name)
    seg = held(exported[1][f"1.2.2.{number}"], {
        (str(s.SOPInstanceUID), 1): mask for s, mask in zip(slices, masks, strict=True)
    })
    place = {str(s.SOPInstanceUID): s for s in slices}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        source = place[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
    (shared,) = seg.SharedFunctionalGroupsSequence
    assert np.allclose(shared.PlaneOrientationSequence[0].ImageOrientationPatient, orientation, atol=1e-5)
    assert shared.PixelMeasuresSequence[0].PixelSpacing == slices[0].PixelSpacing
    between = shared.PixelMeasuresSequence[0].get("SpacingBetweenSlices")
    assert (between is None) == (heights != EVEN or shear > 0)
    assert between is None or abs(float(between) - 2.5) < 1e-4  # the cosines of OBLIQUE are rounded
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (f"1.2.1.{number}", f"1.2.4.{number}")
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 5
    (segment,) = seg.SegmentSequence
    kind, category = segment.SegmentedPropertyTypeCodeSequence[0], segment.SegmentedPropertyCategoryCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, category.CodeValue) == ("10200004", "SCT", "123037004")
    assert segment.SegmentAlgorithmType == "MANUAL" and "source" in segment.SegmentDescription
    assert seg.ContentDate == "19000101" and "InstanceCreationDate" not in seg


def test_what_cannot_be_placed_is_left_out_with_a_reason(exported: tuple[Path, dict[str, Path]]) -> None:
    out, found = exported
    said = json.loads((out / "manifest.json").read_text())["left_out"]
    assert len(found) == len(SERIES)
    assert said.pop("a slice across the frames of its series") > 16 * len(SERIES)
    assert said.pop("no region") == 6 + len(SERIES)
    assert any("share a UID" in reason for reason in said) and any("kept their UIDs" in reason for reason in said)
    assert any("without frame_of_reference_uid" in reason for reason in said) and len(said) == 3


def test_pictures_without_a_region_are_referenced_when_asked(many: tuple[Path, Any], tmp_path: Path) -> None:
    found = export(many[0], tmp_path / "out", empty=True)
    seg = dcmread(found["1.2.2.0"])
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 6 and len(found) == len(SERIES)
    export(many[0], tmp_path / "again", empty=True)
    assert files(tmp_path / "out") == files(tmp_path / "again")


def test_frames_of_one_file_are_told_by_number(tmp_path: Path) -> None:
    """An enhanced MR with two times: two volumes of one file, two segmentations."""
    times, places = (1, 2), [2.0 * z for z in range(5)]
    stack = np.random.default_rng(0).integers(0, 900, (10, *SIZE)).astype(np.int16)
    away = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
                          "RescaleIntercept"))
    made = image(0, stack[0], SOPClassUID=EnhancedMRImageStorage, Modality="MR", NumberOfFrames=10,
                 PixelData=stack.tobytes(), **away)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = [2, 3], [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], []
    for z in places:
        for time in times:
            frame, position, content = Dataset(), Dataset(), Dataset()
            position.ImagePositionPatient, content.TemporalPositionIndex = [0, 0, z], time
            frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
            made.PerFrameFunctionalGroupsSequence.append(frame)
    planes = [image(0, stack[0], ImagePositionPatient=[0, 0, z], PixelSpacing=[2, 3]) for z in places]
    masks = blobs(5)
    outlined = segmentation(planes, masks)
    for n, frame in enumerate(outlined.PerFrameFunctionalGroupsSequence):  # of the second time alone
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = 2 * n + 2
    drawn = {("1.2.3.0", 2 * n + 2): mask for n, mask in enumerate(masks)}
    found = export(built(saved(tmp_path / "in", made, outlined)), tmp_path / "out")
    seg = held(found["1.2.2"], drawn)
    (instance,) = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert instance.ReferencedSOPClassUID == EnhancedMRImageStorage and "Derivation" not in instance


def test_private_references_fit_the_files_that_deid_gives(tmp_path: Path) -> None:
    slices, masks = series(AXIAL, EVEN), blobs(6)
    root = saved(tmp_path / "in", *slices, segmentation(slices, masks))
    home = built(root, "private")
    deidentify_folder(root, tmp_path / "given", pseudonym_key(home), Profile.of())
    given = [dcmread(path) for path in sorted(tmp_path.glob("given/**/*.dcm"))]
    given = sorted((d for d in given if d.Modality == "CT"), key=lambda d: float(d.ImagePositionPatient[2]))
    assert len(given) == 6 and not {"1.2.1", "1.2.2", "1.2.4", "1.2.3.0"} & {
        str(d[k].value) for d in given for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    }
    drawn = {(str(d.SOPInstanceUID), 1): mask for d, mask in zip(given, masks, strict=True)}
    (path,) = export(home, tmp_path / "out").values()
    seg = held(path, drawn)
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert {str(d[keyword].value) for d in given} == {str(seg[keyword].value)}
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == given[0].SeriesInstanceUID
    clear = (b"1.2.3.0", b"1.2.3.1", b"4711")
    written = [path.read_bytes() for path in (home / "shards").rglob("*.parquet")]
    assert not any(word in data for word in clear for data in [*written, *files(tmp_path / "out").values()])


def test_real_series(sample_data: Path, tmp_path: Path) -> None:
    places = ("pydicom_dicomdir/77654033/CT2", "totalseg_ct_series")
    every, drawn = [], {}
    for number, place in enumerate(places):
        paths = sorted(path for path in (sample_data / "dicom" / place).rglob("*") if path.is_file())[:5]
        slices = [dcmread(path) for path in paths]
        if not slices[0].SOPInstanceUID:  # whoever published the second series emptied its UIDs
            stamped(number, slices)
            for one in slices:
                one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
                one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        assert len(slices) >= 4
        masks = blobs(len(slices), (slices[0].Rows, slices[0].Columns), 3)
        every += [*slices, segmentation(slices, masks, SOPInstanceUID=f"1.2.6.{number}",
                                        SeriesInstanceUID=f"1.2.5.{number}")]
        drawn[str(slices[0].SeriesInstanceUID)] = {
            (str(s.SOPInstanceUID), 1): mask for s, mask in zip(slices, masks, strict=True)
        }
    found = export(built(saved(tmp_path / "in", *every)), tmp_path / "out")
    assert set(found) == set(drawn)
    for name, path in found.items():
        held(path, drawn[name])


def left_out(home: Path, out: Path) -> str:
    with pytest.raises(ConfigError) as told:
        run_export(home, "true", "dicom_seg", out, None, [], licences="all")
    assert not out.exists()
    return str(told.value)


def test_shrunk_pictures_are_refused(tmp_path: Path) -> None:
    slices = [image(n, np.zeros((24, 32), np.int16)) for n in range(6)]
    root = saved(tmp_path / "in", *slices, segmentation(slices, blobs(6, (24, 32))))
    assert "6 left out: a picture that was shrunk" in left_out(built(root, max_side=16), tmp_path / "out")


def test_pictures_of_other_sources_are_refused(tmp_path: Path) -> None:
    said = left_out(make_home(tmp_path), tmp_path / "out")
    assert "8 left out: no slice of a volume" in said and "4 left out: a volume that was not made of DICOM" in said


def test_segments_overlap_and_say_who_drew_them(many: tuple[Path, Any], tmp_path: Path) -> None:
    """Regions of an expert beside the given ones, overlapping them, with labels that need care."""
    home, (slices, masks) = many[0], many[1]["flipped"]
    rows = [row for row in Selection(home, "view = 'axial'", volumes=True).rows()
            if row.volume and row.volume["series_uid"] == "1.2.2.1" and row.rois]
    seen = rows[2]
    assert seen.volume is not None
    extra = blobs(1, SIZE, 9)[0]
    label = "Nodule \\ left\n" + "x" * 80
    added = [
        {**seen.rois[0], "roi_id": name, "label": label, "role": "lesion", "ontology_id": "HP:0033608",
         "expert": "finder", "expert_weights_sha256": "ab" * 32, "origin": "predicted", "mask": encode(mask)}
        for name, mask in (("a", extra), ("b", np.roll(extra, 1, 0)))
    ]
    rows[2] = replace(seen, rois=[*seen.rois, *added])
    counts = dicom_seg.write(rows, tmp_path, dicom_seg.Params())
    assert (counts.written, counts.notes["regions joined with another of their segment"]) == (5, 1)
    (path,) = (tmp_path / "seg").iterdir()
    seg = dcmread(path)
    assert seg.SegmentsOverlap == "YES" and len(seg.SegmentSequence) == 2
    (found,) = [one for one in seg.SegmentSequence if one.SegmentAlgorithmType == "AUTOMATIC"]
    assert found.SegmentLabel == ("Nodule / left " + "x" * 80)[:64]
    kind = found.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodingSchemeDesignator, kind.CodeValue) == ("99MEDLOOM", "HP:0033608")
    assert found.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"
    (algorithm,) = found.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("finder", "ab" * 8)
    uid = seen.volume["sop_uids"][seen.image["slice_index"]]
    both = plain_masks(path)[uid, 1]
    where = {str(s.SOPInstanceUID): n for n, s in enumerate(slices)}[uid]
    assert np.array_equal(both["Liver"], masks[where])
    drawn = (extra | np.roll(extra, 1, 0))[:, ::-1]  # the rows of these files run to the patient's right
    assert np.array_equal(both[found.SegmentLabel], drawn)
    assert json.loads(json.dumps(dict(counts.licences))) == {"CC-BY-4.0": 5}


def test_an_interrupted_export_goes_on_with_the_same_bytes(many: tuple[Path, Any], tmp_path: Path) -> None:
    rows = list(Selection(many[0], volumes=True).rows())
    for name in ("straight", "out"):
        (tmp_path / name).mkdir()
    straight = dicom_seg.write(iter(rows), tmp_path / "straight", dicom_seg.Params())

    def dying() -> Any:
        yield from rows[: len(rows) // 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dicom_seg.write(dying(), tmp_path / "out", dicom_seg.Params())
    done = progress.before(tmp_path / "out")
    assert 0 < done.seen < len(rows) // 2
    assert dicom_seg.write(iter(rows[done.seen :]), tmp_path / "out", dicom_seg.Params()) == straight
    assert files(tmp_path / "out") == files(tmp_path / "straight")


@pytest.mark.parametrize("volume", ["../../escape", "/etc/x", "a.b", "", "\u00e9" * 80])
def test_no_volume_leads_out_of_the_folder(many: tuple[Path, Any], tmp_path: Path, volume: str) -> None:
    rows = [
        replace(row, image={**row.image, "volume_id": volume}, volume={**row.volume, "volume_id": volume})
        for row in Selection(many[0], "view = 'axial'", volumes=True).rows()
        if row.volume and row.volume["series_uid"] == "1.2.2.0"
    ]
    (tmp_path / "out").mkdir()
    assert dicom_seg.write(rows, tmp_path / "out", dicom_seg.Params()).written == 5
    (made,) = (path for path in files(tmp_path) if path.endswith(".dcm"))
    assert len(Path(made).parts) == 3 and made.startswith("out/seg/") and made.isascii()


def test_planes_are_those_that_volumes_are_cut_in() -> None:
    assert placing.PLANES == volumes.PLANES
