"""Experts in three dimensions: a scan is opened again once, and each of its slices gets what lies on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from test_build import run

from catalog.catalog import query
from catalog.masks import decode_mask
from infra import weights
from infra.errors import Terminal
from transforms.experts import ct
from transforms.ingest import Ingest
from transforms.scans.volumes import Scan

SHAPE = (64, 56, 40)
RECIPE = """
name: scans
sources:
  - {{name: scans, use: nifti, root: {root}, modality: CT, anatomy: chest, identifiers: public{more}}}
stages:
  - {{use: ground_volumes{options}}}
"""


STATUS = "SELECT DISTINCT verdict, detail FROM checks WHERE \"check\" = 'volume_status'"


def chest() -> dict[str, npt.NDArray[np.bool_]]:
    """Where body, lungs and bone of a drawn chest are, in RAS voxels of 4 mm: the spine behind, one lung smaller."""
    x, y, z = np.indices(SHAPE)
    body = ((x - 32) / 28) ** 2 + ((y - 28) / 20) ** 2 < 1
    sides = ((20, 6), (46, 8))
    lungs = [((x - at) / wide) ** 2 + ((y - 30) / 11) ** 2 + ((z - 20) / 14) ** 2 < 1 for at, wide in sides]
    bone = ((x - 32) / 4) ** 2 + ((y - 14) / 4) ** 2 < 1
    return {"body": body, "lungs": (lungs[0] | lungs[1]) & body, "bone": bone & body}


def values() -> npt.NDArray[np.int16]:
    there = chest()
    made = np.full(SHAPE, -1000, np.int16)
    made[there["body"]] = 40
    made[there["lungs"]] = -800
    x, y, _ = np.indices(SHAPE)
    marrow = (x - 32) ** 2 + (y - 14) ** 2 < 5
    made[there["bone"]] = 700
    made[marrow] = 100
    return made


def write(root: Path, flip: tuple[int, ...] = (), **masks: npt.NDArray[Any]) -> Path:
    """The chest as NIfTI, stored with some axes the other way round."""
    import nibabel as nib

    root.mkdir(parents=True)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    for axis in flip:
        affine[axis, axis], affine[axis, 3] = -4.0, 4.0 * (SHAPE[axis] - 1)
    for name, array in {"scan": values(), **masks}.items():
        nib.save(nib.Nifti1Image(np.ascontiguousarray(np.flip(array, flip)), affine), root / f"{name}.nii.gz")
    return root


def built(tmp_path: Path, root: Path, more: str = "", options: str = "") -> Path:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=root, more=more, options=options))
    run(recipe, tmp_path / "home")
    return tmp_path / "home"


def regions(home: Path) -> Iterator[dict[str, Any]]:
    sql = "SELECT view, slice_index, i.width, i.height, r.* FROM rois r JOIN images i USING (sample_id) ORDER BY ALL"
    yield from query(home, sql).to_pylist()


def expected(view: str, index: int, label: str) -> npt.NDArray[np.bool_]:
    """A slice of the drawn chest as radiologists look at it: right of the patient to the left, feet or back below."""
    axis = {"axial": 2, "coronal": 1, "sagittal": 0}[view]
    face = np.moveaxis(chest()[label], axis, 0)[index]
    return np.flip(np.flip(face, 0).T, 0)


@pytest.mark.parametrize("flip", [(), (0,), (1, 2), (0, 1, 2)])
def test_slices_in_every_plane_carry_what_lies_on_them(tmp_path: Path, flip: tuple[int, ...]) -> None:
    more = ", ingest: {planes: [axial, coronal, sagittal], slices: 'stride:0.3'}"
    home = built(tmp_path, write(tmp_path / "in", flip), more)
    seen: dict[str, int] = {}
    for roi in regions(home):
        axis = {"axial": 2, "coronal": 1, "sagittal": 0}[roi["view"]]
        index = SHAPE[axis] - 1 - roi["slice_index"] if axis in flip else roi["slice_index"]
        mask, truth = decode_mask(roi["mask"]), expected(roi["view"], index, roi["label"])
        assert mask.shape == truth.shape
        agree = (mask & truth).sum() / max(1, (mask | truth).sum())
        assert agree > 0.7 or truth.sum() < 60, (roi["view"], index, roi["label"], agree)
        seen[roi["label"]] = seen.get(roi["label"], 0) + 1
        assert (roi["origin"], roi["expert"], roi["trust"]) == ("predicted", "ct@1", "box")
    assert set(seen) == {"body", "lungs", "bone"} and min(seen.values()) > 2
    status = query(home, STATUS).to_pylist()
    assert status == [{"verdict": "pass", "detail": "ct: found 3 structures in the scan"}]


def test_masks_lie_on_the_stored_picture_also_where_it_was_shrunk(tmp_path: Path) -> None:
    home = built(tmp_path, write(tmp_path / "in"), ", ingest: {max_side: 32, slices: middle}")
    found = list(regions(home))
    assert found
    for roi in found:
        mask = decode_mask(roi["mask"])
        assert mask.shape == (roi["height"], roi["width"]) and max(mask.shape) == 32
        truth = Image.fromarray(expected("axial", roi["slice_index"], roi["label"])).resize(mask.shape[::-1])
        agree = np.asarray(truth)
        assert (mask & agree).sum() / (mask | agree).sum() > 0.6


def test_a_scan_is_opened_once_for_all_its_slices_and_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, looked = [], []
    scan, segment = Ingest.scan, ct.segment
    monkeypatch.setattr(Ingest, "scan", lambda *args: opened.append(1) or scan(*args))
    monkeypatch.setattr(ct, "segment", lambda *args: looked.append(1) or segment(*args))
    home = built(tmp_path, write(tmp_path / "in"), ", ingest: {slices: all}")
    assert (len(opened), len(looked)) == (1, 1)
    assert query(home, "SELECT count(*) AS n FROM images").to_pylist()[0]["n"] > 20


def test_given_regions_are_preferred_and_other_modalities_are_left_alone(tmp_path: Path) -> None:
    root = write(tmp_path / "in", heart=chest()["bone"].astype(np.uint8))
    more = ", masks: {heart: heart.nii.gz}, include: [scan.nii.gz], ingest: {slices: 'largest:2'}"
    home = built(tmp_path, root, more)
    assert {roi["origin"] for roi in regions(home)} == {"given"}
    (tmp_path / "mr").mkdir()
    again = built(tmp_path / "mr", root, ", include: [scan.nii.gz]", ", options: {ct: {find: [lungs]}}")
    recipe = tmp_path / "mr" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("modality: CT", "modality: MR"))
    run(recipe, again)
    (status,) = query(again, STATUS).to_pylist()
    assert status["verdict"] == "unknown" and "looks at CT" in status["detail"] and list(regions(again)) == []


def test_a_scan_that_cannot_be_opened_costs_its_regions_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Scan:
        raise Terminal("VOLUME_CHANGED", "another file lies there now")

    monkeypatch.setattr(Ingest, "scan", broken)
    home = built(tmp_path, write(tmp_path / "in"))
    (status,) = query(home, STATUS).to_pylist()
    assert status["verdict"] == "unknown" and "VOLUME_CHANGED" in status["detail"]
    rows = query(home, "SELECT * FROM funnel WHERE stage = 'ground_volumes'").to_pylist()
    assert rows[0]["kept"] == rows[0]["rows_in"] > 0


def test_the_brain_of_a_template_agrees_with_its_own_tissue_maps(
    tmp_path: Path, sample_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(tmp_path / "weights"))
    weights.fetch("meshnet-tissue", sample_data / "weights")
    root = sample_data / "nifti" / "mni_icbm152"
    maps = {"white matter": "wm", "grey matter": "gm"}
    masks = "".join(f"{name}: mni_icbm152_{code}_tal_nlin_sym_09a_converted.nii.gz, " for name, code in maps.items())
    more = f', include: ["mni_icbm152_t1_*"], masks: {{{masks}}}, mask_threshold: 127, ingest: {{slices: "stride:0.3"}}'
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        RECIPE.format(root=root, more=more, options=", experts: [brain], prefer_given: false")
        .replace("modality: CT, anatomy: chest", "modality: MR, anatomy: brain")
    )
    run(recipe, tmp_path / "home")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for roi in regions(tmp_path / "home"):
        found.setdefault((roi["sample_id"], roi["label"]), {})[roi["origin"]] = decode_mask(roi["mask"])
    assert {label for _, label in found} == set(maps)
    for label in maps:
        pairs = [both for (_, name), both in found.items() if name == label and len(both) == 2]
        shared = sum(int((both["given"] & both["predicted"]).sum()) for both in pairs)
        dice = 2 * shared / sum(int(mask.sum()) for both in pairs for mask in both.values())
        assert len(pairs) >= 2 and dice > 0.65, (label, dice)
