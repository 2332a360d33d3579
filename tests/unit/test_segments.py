"""Segmentations and structure sets: outlines land where they were drawn, and say only what may be said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dicomfiles import codes, concept, decoded, frame_of, image, read, samples, segmentation, structure_set, volumes
from pydicom.dataset import Dataset

from transforms.decoded import IngestParams, Region
from transforms.scans.names import named
from transforms.scans.segments import filled

PLANES = IngestParams(slices="all", planes=("axial", "coronal", "sagittal"))
RNG = np.random.default_rng(7)


def slices(count: int = 5, rows: int = 7, columns: int = 9, **elements: Any) -> list[Dataset]:
    shape = (rows, columns)
    return [image(n, RNG.integers(-500, 900, shape, np.int16), **elements) for n in range(count)]


def regions(made: Any) -> dict[str, list[Region]]:
    """locator -> regions."""
    return {s.locator.rsplit(":", 1)[0]: list(s.regions) for s in samples(made)}


def mask_of(region: Region) -> npt.NDArray[np.bool_]:
    assert region.mask is not None
    return region.mask


def test_a_segmentation_lies_on_its_slices_in_each_plane() -> None:
    masks = RNG.random((5, 7, 9)) > 0.5  # 63 pixels: frames that do not begin at a byte
    of = slices()
    made = decoded(*of, segmentation(of, masks), params=PLANES)
    found = regions(made)
    (row,) = volumes(made)
    assert row["items"] == ["0", "1", "2", "3", "4"] and all("5" in s.items for s in samples(made))
    upright = masks[::-1]  # frames lie from the feet up, pictures from the head down
    for z in range(5):
        (region,) = found[f"axial:{z}"]
        assert np.array_equal(mask_of(region), masks[z])
        assert (region.label, region.role, region.ontology_id) == ("Liver", "organ", "SCT:10200004")
    for y in range(7):
        assert np.array_equal(mask_of(found[f"coronal:{y}"][0]), upright[:, y, :])
    for x in range(9):
        assert np.array_equal(mask_of(found[f"sagittal:{x}"][0]), upright[:, :, x])


def test_frames_are_matched_by_place_when_they_name_no_image() -> None:
    of, masks = slices(), RNG.random((2, 7, 9)) > 0.5
    drawn = segmentation([of[3], of[1]], masks)
    for frame in drawn.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    found = regions(decoded(drawn, *of))
    assert [len(found[f"axial:{z}"]) for z in range(5)] == [0, 1, 0, 1, 0]
    assert np.array_equal(mask_of(found["axial:3"][0]), masks[0])


def test_a_finer_grid_in_the_same_plane_is_taken_by_nearest_neighbour() -> None:
    of = slices()
    coarse = RNG.random((5, 7, 9)) > 0.5
    fine = coarse.repeat(2, axis=1).repeat(2, axis=2)
    drawn = segmentation(of, fine, Rows=14, Columns=18)
    shared = drawn.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.35, 0.25]
    for frame, source in zip(drawn.PerFrameFunctionalGroupsSequence, of, strict=True):
        x, y, z = source.ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [x - 0.125, y - 0.175, z]
    found = regions(decoded(*of, drawn))
    assert all(np.array_equal(mask_of(found[f"axial:{z}"][0]), coarse[z]) for z in range(5) if coarse[z].any())


def test_a_mirrored_frame_is_turned_to_its_slice() -> None:
    of, masks = slices(), RNG.random((5, 7, 9)) > 0.5
    drawn = segmentation(of, masks[:, :, ::-1])
    drawn.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
    for frame, source in zip(drawn.PerFrameFunctionalGroupsSequence, of, strict=True):
        x, y, z = source.ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [x + 8 * 0.5, y, z]
    found = regions(decoded(*of, drawn))
    assert all(np.array_equal(mask_of(found[f"axial:{z}"][0]), masks[z]) for z in range(5))


def test_fractions_count_from_half_on_and_label_maps_hold_several_segments() -> None:
    of = slices()
    stored = RNG.integers(0, 101, (5, 7, 9), np.uint8)
    bytes_of = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": stored.tobytes() + b"\0"}
    fractions = segmentation(of, SegmentationType="FRACTIONAL", MaximumFractionalValue=100, **bytes_of)
    found = regions(decoded(*of, fractions))
    assert all(np.array_equal(mask_of(found[f"axial:{z}"][0]), stored[z] >= 50) for z in range(5))
    numbers = (stored % 3).astype(np.uint8)
    labels = segmentation(
        of, **{**bytes_of, "PixelData": numbers.tobytes() + b"\0"}, SegmentationType="LABELMAP",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.66.7",
    )
    second = Dataset()
    second.SegmentNumber, second.SegmentLabel = 2, "lung_nodule"
    labels.SegmentSequence.append(second)
    found = regions(decoded(*of, labels))
    assert [(r.label, r.role) for r in found["axial:0"]] == [("Liver", "organ"), ("lung nodule", "lesion")]
    assert np.array_equal(mask_of(found["axial:2"][1]), numbers[2] == 2)


def test_names_pass_only_when_every_word_is_known() -> None:
    assert named("Lt Kidney_2", frozenset()) == "Lt Kidney 2"
    assert named("BrainStem", frozenset()) == "Brain Stem" and named("PTV 60", frozenset()) == "PTV 60"
    for stated in ("Doe Jane", "Kidney of Doe", "Liver 4711", "ROI-1", "", "Segment 3", "liver\0Smith", "x" * 65):
        assert named(stated, frozenset()) is None
    assert named("Liver", frozenset({"liver"})) is None  # a patient may be called so


def test_what_a_segment_is_called() -> None:
    of = slices()

    def first(**elements: Any) -> tuple[str, str, str | None]:
        drawn = segmentation(of)
        for keyword, element in elements.items():
            setattr(drawn.SegmentSequence[0], keyword, element)
        region = regions(decoded(*of, drawn))["axial:0"][0]
        return region.label, region.role, region.ontology_id

    lesion = [concept("M-01000", "SRT", "Morphologically Altered Structure")]
    assert first(SegmentLabel="Jane Doe") == ("Liver", "organ", "SCT:10200004")
    kidney = {"SegmentLabel": "Segment 1", "SegmentedPropertyTypeCodeSequence": [concept("T-71000", "SRT", "Doe")]}
    assert first(**kidney) == ("Kidney", "organ", "SCT:64033007")
    private = [concept("4711", "99DOE", "Jane Doe")]
    assert first(SegmentLabel="Doe", SegmentedPropertyTypeCodeSequence=private) == ("region", "organ", None)
    assert first(SegmentedPropertyCategoryCodeSequence=lesion)[1] == "lesion"


def test_a_structure_set_is_filled_by_pixel_centres() -> None:
    of = slices()  # the centre of pixel (row, column) is at x = -10 + 0.5 column, y = -20 + 0.7 row
    square = [[-9.2, -19.4], [-7.8, -19.4], [-7.8, -17.5], [-9.2, -17.5]]
    drawn = structure_set(of, {"Liver": [(1, square)], "Jane Doe": [(1, square), (2, square)]})
    seen = Dataset()
    seen.ReferencedROINumber, seen.RTROIInterpretedType = 2, "GTV"
    drawn.RTROIObservationsSequence = [seen]
    found = regions(decoded(*of, drawn))
    assert [(r.label, r.role) for r in found["axial:1"]] == [("Liver", "organ"), ("region", "lesion")]
    assert [(r.label, r.role) for r in found["axial:2"]] == [("region", "lesion")] and not found["axial:3"]
    expected = np.zeros((7, 9), bool)
    expected[1:4, 2:5] = True
    assert np.array_equal(mask_of(found["axial:1"][0]), expected)


def test_filling_agrees_with_shapely() -> None:
    import shapely

    rows, columns = np.mgrid[:40, :50]
    for _ in range(20):
        angles = np.sort(RNG.uniform(0, 2 * np.pi, 30))
        reach = RNG.uniform(4, 24, 30)[:, None]
        ring = np.column_stack([20 + 0.9 * np.sin(angles), 25 + np.cos(angles)]) + reach * np.column_stack(
            [np.sin(angles), np.cos(angles)]
        )
        polygon = shapely.Polygon(ring)
        assert np.array_equal(filled([ring], (40, 50)), shapely.contains_xy(polygon, rows, columns))


def test_holes_by_exclusive_or_and_by_keyhole() -> None:
    def box(low: float, high: float) -> npt.NDArray[np.float64]:
        return np.array([[low, low], [low, high], [high, high], [high, low]])

    ring = np.zeros((12, 12), bool)
    ring[2:10, 2:10] = True
    ring[5:7, 5:7] = False
    outer, inner = box(1.5, 9.5), box(4.5, 6.5)
    assert np.array_equal(filled([outer, inner], (12, 12)), ring)
    keyhole = np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])
    assert np.array_equal(filled([keyhole], (12, 12)), ring)
    left, right = np.array([[0, 0], [0, 3], [3, 3], [3, 0]]), np.array([[0, 3], [0, 6], [3, 6], [3, 3]])
    halves = [filled([half.astype(float)], (8, 8)) for half in (left, right)]
    assert not (halves[0] & halves[1]).any() and (halves[0] | halves[1]).sum() == 18  # neighbours share no pixel
    assert not filled([box(-1e9, -5e8)], (8, 8)).any() and filled([box(-1e9, 1e9)], (8, 8)).all()


def test_what_points_nowhere_costs_itself() -> None:
    of, elsewhere = slices(), [image(n + 50, FrameOfReferenceUID="1.2.99") for n in range(3)]
    lost = segmentation(elsewhere, np.ones((3, 6, 8), bool))
    square = [[-9.2, -19.4], [-7.8, -19.4], [-7.8, -17.5]]
    off = structure_set(elsewhere, {"Liver": [(0, square)]})
    for contour in off.ROIContourSequence[0].ContourSequence:
        contour.ContourData = [-9, -19, 1.1, -8, -19, 1.1, -8, -18, 1.1]  # between two slices
    empty = structure_set(of, {"Liver": []})
    short = segmentation(of, PixelData=b"\0\0")
    made = decoded(*of, lost, off, empty, short)
    assert codes(made) == {
        "5": "REFERENCE_MISSING", "6": "REFERENCE_MISSING", "7": "NO_OUTLINES", "8": "SEGMENTS_UNREADABLE",
    }
    assert len(volumes(made)) == 1 and not any(s.regions for s in samples(made))
    assert codes(decoded(segmentation(of))) == {"0": "REFERENCE_MISSING"}


def test_an_empty_mask_is_an_answer() -> None:
    of = slices()
    made = decoded(*of, segmentation(of, np.zeros((5, 7, 9), bool)))
    assert codes(made) == {} and not any(s.regions for s in samples(made))


def test_single_images_without_a_place_are_outlined_too() -> None:
    flat = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None, "Modality": "DX"}
    of = slices(1, **flat)
    drawn = segmentation([image(0)], np.ones((1, 7, 9), bool))
    for groups in (drawn.SharedFunctionalGroupsSequence, drawn.PerFrameFunctionalGroupsSequence):
        for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence"):
            if keyword in groups[0]:
                delattr(groups[0], keyword)
    (sample,) = samples(decoded(*of, drawn))
    assert sample.items == ("0", "1") and mask_of(sample.regions[0]).all()


def test_the_largest_structure_decides_which_slices_are_cut() -> None:
    of, masks = slices(), np.zeros((5, 7, 9), bool)
    masks[1, :2], masks[3, :5] = True, True
    (sample,) = samples(decoded(*of, segmentation(of, masks), params=IngestParams(slices="largest:1")))
    assert sample.columns["slice_index"] == 3


def test_overlapping_segments_are_kept_apart() -> None:
    of = slices()
    drawn = segmentation(of, np.ones((2, 7, 9), bool))
    drawn.PerFrameFunctionalGroupsSequence = [frame_of(of[0], 1), frame_of(of[0], 2)]
    second = Dataset()
    second.SegmentNumber, second.SegmentLabel = 2, "Spleen"
    drawn.SegmentSequence.append(second)
    assert [r.label for r in regions(decoded(*of, drawn))["axial:0"]] == ["Liver", "Spleen"]


def test_real_structure_sets(sample_data: Path) -> None:
    items = read(sample_data / "dicom" / "rt_utils" / "mock_data")
    names = [item.id for item in items]
    assert len({item.group for item in items if item.id != "non_existent_reference_rt.dcm"}) == 1
    made = decoded(*[item.files["main"] for item in items if item.group == items[names.index("rt.dcm")].group])
    assert codes(made) == {}
    shown = {s.items[0]: [int(mask_of(r).sum()) for r in s.regions] for s in samples(made)}
    assert sorted(map(len, shown.values())) == [4, 5]  # four structures of one set on both slices, one of the other
    alone = items[names.index("non_existent_reference_rt.dcm")]
    assert codes(decoded(alone.files["main"])) == {"0": "REFERENCE_MISSING"}
