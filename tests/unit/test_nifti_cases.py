"""Bad and hard volume files, case by case: the numbers are those of the list of cases that every pipeline meets.

    32 affine NaN, zero, flat             below; test_nifti.py: test_geometry_rule; test_volume_files.py: NRRD, MGZ
       qform and sform differ             below; test_nifti.py: test_geometry_rule
       flips, orientation stored          test_nifti.py: test_a_flipped_file_gives_the_same_pictures
    33 NaN and infinite voxels            test_nifti.py: test_values_that_are_no_numbers_become_the_least_and_are_…
       int64, float64, complex, RGB       below; test_volume_files.py: test_long_integers_stay_exact
       4-D labels                         below; test_nifti.py: test_every_chosen_frame_is_a_volume
       slope 0                            test_nifti.py: test_a_slope_of_nothing_is_none
    34 truncated, bombs, vox_offset       test_nifti.py: test_files_that_cannot_be_used_say_why,
                                          test_a_bomb_is_not_inflated; test_volume_files.py: …_that_cannot_be_used
    35 mask on another grid               test_nifti.py: test_labels_on_another_grid
       labels outside the declared set    below
       empty mask                         below; test_nifti_layouts.py: test_nnunet_channels_regions_and_ignored_labels

Bugs of other people's pipelines, numbered as in our list of them:

    5 HU rescaled again (CT-CLIP)         below; test_nifti.py: test_slope_and_intercept_are_applied_exactly_once
    6 window stretched slice by slice     below; test_volumes.py: test_the_same_value_gives_the_same_grey_on_every_…;
      (BiomedParse)                       MONOCHROME1, no slope: test_dicom.py: test_windows_and_polarity
    7 orientation and spacing lost (M3D)  below; test_volumes.py: test_however_the_array_lies_the_slices_are_the_same
    8 box in another frame than its mask  below; shares of 0 to 1: test_exports.py:
      (MedReasoner)                       test_llava_training_reads_every_turn
    9 zero, one, many regions             below; test_experts.py: test_ground_keeps_all_instances_and_books_every_sample
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dicomfiles
import nibabel as nib
import numpy as np
import pytest
from make_nifti import RAS, SHAPE, make, voxels
from test_nifti import code, decoded, edit, item, only

from infra.errors import ItemError, Terminal
from transforms.decoded import IngestParams, Refused, Volume
from transforms.decoders.nifti import open_scan
from transforms.regions import roi_row, scaled
from transforms.scans.reopen import reopen
from transforms.scans.windows import named_window

ALL = IngestParams(slices="all", planes=("axial", "coronal", "sagittal"))


def posed(values: Any, sform: Any, qform: Any) -> bytes:
    def change(header: Any) -> None:
        header.set_qform(qform, 1)
        header.set_sform(sform, 2)

    return make(values, change=change)


def test_case_32_forms_that_differ_are_flagged_and_a_flip_between_them_is_refused() -> None:
    angle = np.deg2rad(15)
    tilted = RAS.copy()
    tilted[:2, :2] = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    row, _ = only(decoded(item(posed(voxels(), tilted, RAS))))
    assert row["geometry_flags"] == ["sform_qform_differ"] and row["affine"] == pytest.approx(tilted.ravel().tolist())
    for axis in range(3):
        flip = np.eye(4)
        flip[axis, axis] = -1
        assert code(posed(voxels(), RAS @ flip, RAS)) == "GEOMETRY_AMBIGUOUS"
    assert code(posed(voxels(), RAS[:, [1, 0, 2, 3]], RAS)) == "GEOMETRY_AMBIGUOUS", "axes swapped"


@pytest.mark.parametrize("affine", [np.full((4, 4), np.nan), np.zeros((4, 4)), np.diag([1.0, 1, 0, 1])])
def test_case_32_a_label_map_without_a_place_costs_its_item(affine: Any) -> None:
    bad = make(change=lambda header: header.set_sform(affine, 1))
    (refused,) = decoded(item(make(), labels=bad))
    assert isinstance(refused, Refused) and refused.error.code == "GEOMETRY_INVALID"
    assert refused.error.message.startswith("labels:")


def test_case_33_datatypes_that_are_no_scans_are_refused_and_wide_ones_stay_exact() -> None:
    for dtype in (np.complex64, np.complex128, [("R", "u1"), ("G", "u1"), ("B", "u1")]):
        assert code(make(np.zeros(SHAPE, dtype))) == "UNSUPPORTED_DATATYPE"
    wide = nib.Nifti1Image(voxels(np.int64), RAS, dtype=np.int64).to_bytes()
    for data in (wide, make(voxels(np.float64)), make(voxels(np.int32))):
        row, (sample,) = only(decoded(item(data)))
        assert row["geometry_flags"] == [] and sample.pixels.max() > 0


def test_case_33_a_label_map_of_several_frames_needs_as_many_of_the_scan() -> None:
    frames = np.stack([(voxels() > 0).astype(np.uint8)] * 3, axis=-1)
    row, (sample,) = only(decoded(item(make(), labels=make(frames))))
    assert row["geometry_flags"] == ["labels_grid_mismatch"] and sample.regions == ()
    assert json.loads(row["header"])["left_out"] == ["labels"]


def test_case_35_labels_outside_the_declared_set_are_kept_under_their_number_and_flagged() -> None:
    labels = (voxels() > 0).astype(np.uint8)
    labels[0, 0, 2], labels[1, 0, 2] = 7, 9
    facts = {"label_table": {"0": "background", "1": "liver"}}
    row, (sample,) = only(decoded(item(make(), labels=make(labels), facts=facts)))
    assert row["geometry_flags"] == ["labels_undeclared"] and json.loads(row["header"])["labels_undeclared"] == [7, 9]
    assert {r.label for r in sample.regions} == {"liver", "label 7", "label 9"}
    row, _ = only(decoded(item(make(), labels=make(labels))))
    assert row["geometry_flags"] == [], "without a table nothing is declared"


def test_case_35_and_bug_9_no_region_is_an_answer_and_many_are_all_kept() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    row, (sample,) = only(decoded(item(make(), labels=make(labels), mask__tumour=make(labels))))
    assert row["geometry_flags"] == [] and sample.regions == ()
    labels[:, 0, 2] = np.arange(8)
    _, (sample,) = only(decoded(item(make(), labels=make(labels))))
    assert [r.label for r in sample.regions] == [f"label {n}" for n in range(1, 8)]


def hounsfield() -> Any:
    """Air around a body of soft tissue, with some bone."""
    values = np.full((10, 10, 10), -1000, np.int16)
    values[2:8, 2:8, 2:8], values[4, 4, 4] = 50, 1200
    return values


def test_bug_5_what_is_hu_already_is_not_shown_as_hu_again() -> None:
    right = make(hounsfield() + 1024, change=edit(scl_slope=1, scl_inter=-1024))
    row, (sample,) = only(decoded(item(right)))
    assert row["geometry_flags"] == [] and row["rescale_applied"] and sample.locator.endswith(":soft_tissue")
    assert np.array_equal(open_scan([right]).values, hounsfield()), "once"
    twice = make(hounsfield(), change=edit(scl_slope=1, scl_inter=-1024))
    row, (sample,) = only(decoded(item(twice)))
    assert row["geometry_flags"] == ["not_hounsfield"] and row["rescale_applied"] is False
    assert sample.locator.endswith(":percentile")
    never = make(hounsfield() + 1024)
    assert only(decoded(item(never)))[0]["geometry_flags"] == ["not_hounsfield"]
    assert only(decoded(item(make(hounsfield()))))[0]["geometry_flags"] == []


def test_bug_6_a_value_has_one_grey_whatever_else_is_on_the_slice() -> None:
    values = hounsfield()
    values[:, :, 5] = np.maximum(values[:, :, 5], 50)
    values[0, 0, 5] = 3000
    _, samples = only(decoded(item(make(values)), params=IngestParams(slices="all", windows=("soft_tissue",))))
    lower, upper = named_window("soft_tissue")
    expected = int(255 * (50 - lower) / (upper - lower) + 0.5)
    assert {int(s.pixels[6, 6]) for s in samples if 2 <= s.columns["slice_index"] < 8} == {expected}
    assert all(s.columns["window"] == [lower, upper] for s in samples)


def test_bug_7_however_a_scan_lies_slices_and_spacing_are_the_same() -> None:
    _, straight = only(decoded(item(make()), params=ALL))
    for order, flips in (((0, 1, 2), (1, 0, 0)), ((2, 0, 1), (0, 1, 1)), ((1, 0, 2), (0, 0, 0))):
        step = np.zeros((4, 4))
        step[3, 3] = 1
        for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
            step[old, new], step[old, 3] = (-1, SHAPE[old] - 1) if flip else (1, 0)
        lying = voxels().transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
        _, samples = only(decoded(item(make(lying.copy(), RAS @ step)), params=ALL))
        assert [s.pixels.tolist() for s in samples] == [s.pixels.tolist() for s in straight]
        assert [s.columns["pixel_spacing"] for s in samples] == [s.columns["pixel_spacing"] for s in straight]
    assert {tuple(s.columns["pixel_spacing"]) for s in straight} == {(2.0, 2.0), (3.0, 2.0)}, "never made square"
    assert {s.pixels.shape for s in straight} == {(6, 8), (5, 8), (5, 6)}, "no pixel is made up"


def test_bug_8_the_box_of_a_mask_is_the_box_of_the_stored_picture() -> None:
    labels = np.zeros((40, 30, 5), np.uint8)
    labels[8:20, 10:22, 2] = 1
    _, (sample,) = only(decoded(item(make(np.zeros(labels.shape, np.int16)), labels=make(labels))))
    (region,), (height, width) = sample.regions, sample.pixels.shape
    full = roi_row("s", region, (height, width), expert="source", origin="given", trust="boundary")
    smaller = (height // 2, width // 2)
    half = roi_row("s", scaled(region, 0.5), smaller, expert="source", origin="given", trust="boundary")
    assert full and half and full["box"] == [20, 8, 32, 20], "flipped along with the picture"
    shares = [np.array(row["box"]) / [w, h, w, h] for row, w, h in ((full, 40, 30), (half, 20, 15))]
    assert np.allclose(*shares) and full["area_fraction"] == pytest.approx(half["area_fraction"])


def row_of(*files: bytes) -> dict[str, Any]:
    header = {"header__main": files[0]} if len(files) > 1 else {}
    return only(decoded(item(files[-1], **header)))[0]


def test_a_volume_stays_a_volume(tmp_path: Path) -> None:
    data = make(hounsfield() + 1024, change=edit(scl_slope=1, scl_inter=-1024))
    scan = reopen(row_of(data), [data])
    assert np.array_equal(scan.values, hounsfield()) and scan.modality == "CT" and scan.spacing == (2.0, 2.0, 3.0)
    nib.save(nib.Nifti1Pair(voxels(), RAS), tmp_path / "a.img")
    pair = [(tmp_path / name).read_bytes() for name in ("a.hdr", "a.img")]
    assert np.array_equal(reopen(row_of(*pair), pair).values, voxels())
    frames = make(np.stack([voxels(), voxels() * 2, voxels() * 3], axis=-1))
    rows = [m.row for m in decoded(item(frames)) if isinstance(m, Volume)]
    assert [int(reopen(row, [frames]).values.max()) for row in rows] == [139, 278, 417]
    for wrong in ([make()], [], [data, data]):
        with pytest.raises(Terminal) as met:
            reopen(row_of(data), wrong)
        assert met.value.code == "VOLUME_CHANGED"
    with pytest.raises(ItemError):
        reopen({**row_of(data), "shape": [1, 2, 3]}, [data])


def test_a_volume_of_dicom_files_stays_one() -> None:
    slices = [dicomfiles.data_of(dicomfiles.image(n)) for n in (2, 0, 3, 1)]
    (row,) = dicomfiles.volumes(dicomfiles.decoded(*slices))
    files = [slices[int(name)] for name in row["items"]]
    scan = reopen(row, files)
    assert scan.values.shape == tuple(row["shape"]) and scan.affine is not None
    assert scan.affine.ravel().tolist() == row["affine"]
    with pytest.raises(Terminal, match="order"):
        reopen(row, files[::-1])
