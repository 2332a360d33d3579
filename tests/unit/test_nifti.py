"""NIfTI files: opened, placed on one grid, cut; bad ones cost themselves only."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from make_nifti import RAS, SHAPE, make, voxels

from catalog.items import Item
from catalog.schema import LAYERS
from infra.keys import pseudonym, sha256
from transforms.decoded import Decoded, IngestParams, Refused, Sample, Volume
from transforms.decoders.nifti import decode, open_scan
from transforms.scans.niftifile import read_nifti

ONE = IngestParams(slices="middle")


def hide(kind: str, name: str) -> str:
    return pseudonym(b"secret", kind, name)


def item(main: bytes, **other: Any) -> Item:
    files = {"main": main, **{role.replace("__", ":"): data for role, data in other.items() if isinstance(data, bytes)}}
    facts = {"modality": "CT", **other.get("facts", {})}
    return Item(other.get("id", "a.nii.gz"), "nifti", "a", files, patient=other.get("patient"), facts=facts)


def decoded(*items: Item, params: IngestParams = ONE) -> list[Decoded]:
    return list(decode(items, params, hide))


def only(made: list[Decoded]) -> tuple[dict[str, Any], list[Sample]]:
    volume, *samples = made
    assert isinstance(volume, Volume) and all(isinstance(s, Sample) for s in samples)
    LAYERS["volumes"].table([{**volume.row, "source": "x"}])
    return dict(volume.row), [s for s in samples if isinstance(s, Sample)]


def code(data: bytes) -> str:
    (made,) = decoded(item(data))
    assert isinstance(made, Refused) and made.item == "a.nii.gz"
    return made.error.code


def test_a_volume_and_its_slices() -> None:
    main, labels = make(), make(np.where(voxels() > 0, 3, 0).astype(np.uint8))
    facts = {"label_table": {"3": "liver"}, "anatomy": "abdomen"}
    row, (sample,) = only(decoded(item(main, labels=labels, facts=facts)))
    assert (row["shape"], row["spacing"], row["orientation"]) == ([8, 6, 5], [2.0, 2.0, 3.0], "RAS")
    assert row["affine"] == RAS.ravel().tolist() and row["sha256"] == [sha256(main)] and row["geometry_flags"] == []
    assert row["group_id"] == hide("patient", "a.nii.gz") == sample.group
    assert sample.locator == "axial:2:abdomen" and sample.content == (sha256(main),)
    assert sample.columns["volume_id"] == row["volume_id"] and sample.columns["modality"] == "CT"
    assert [(r.label, r.role) for r in sample.regions] == [("liver", "organ")]
    # RAS to the radiological view: columns from the last x (right ... to left), rows from the last y (anterior first)
    expected = voxels()[::-1, ::-1, sample.columns["slice_index"]].T > 0
    assert np.array_equal(sample.regions[0].mask, expected)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [">i2", "<i2", "u1", "i4", "f4", "f8", "i8", "u2"])
def test_versions_byte_orders_and_datatypes_read_the_same(kind: Any, packed: bool, dtype: str) -> None:
    values = voxels(np.int16) + 100
    header = kind.header_class(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    data = kind(values.astype(dtype), RAS, header).to_bytes()
    opened = read_nifti(gzip.compress(data) if packed else data)
    assert np.array_equal(opened.values()[0], values) and opened.values()[0].dtype.isnative
    assert opened.affine is not None and np.allclose(opened.affine, RAS)


def test_slope_and_intercept_are_applied_exactly_once() -> None:
    def header(h: Any) -> None:
        h["scl_slope"], h["scl_inter"] = 2, -1024

    row, _ = only(decoded(item(make(change=header))))
    assert row["rescale_applied"] is True
    assert np.array_equal(open_scan([make(change=header)]).values, voxels() * 2.0 - 1024)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_a_slope_of_nothing_is_none(slope: float) -> None:
    def header(h: Any) -> None:
        h["scl_slope"], h["scl_inter"] = slope, 7

    row, _ = only(decoded(item(make(change=header))))
    assert row["rescale_applied"] is None and np.array_equal(open_scan([make(change=header)]).values, voxels())


def test_ct_without_its_intercept_gets_no_hounsfield_window() -> None:
    row, (sample,) = only(decoded(item(make(voxels() * 0 + 1060))))
    assert row["geometry_flags"] == ["not_hounsfield"] and row["rescale_applied"] is False
    assert sample.locator.endswith(":percentile") and sample.columns["modality"] == "CT"


def test_values_that_are_no_numbers_become_the_least_and_are_counted() -> None:
    values = voxels(np.float32)
    values[0, 0, 0], values[1, 0, 0], values[2, 0, 0] = np.nan, np.inf, -np.inf
    row, _ = only(decoded(item(make(values))))
    assert json.loads(row["header"])["non_finite"] == 3
    least = values[np.isfinite(values)].min()
    assert open_scan([make(values)]).values[:3, 0, 0].tolist() == [least] * 3
    assert code(make(np.full(SHAPE, np.nan, np.float32))) == "NO_FINITE_VALUES"


def edit(**fields: Any) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        for name, value in fields.items():
            header[name] = value

    return change


def test_files_that_cannot_be_used_say_why() -> None:
    plain = make(packed=False)
    assert code(b"") == code(b"not a file") == code(gzip.compress(b"hello")) == "NOT_NIFTI"
    assert code(plain[:300]) == code(plain[:-1]) == "NIFTI_TRUNCATED"
    assert code(make()[:-5]) == code(make()[:200]) == "NIFTI_TRUNCATED", "even where all voxels are there"
    broken = bytearray(make())
    broken[len(broken) // 2] ^= 0xFF
    assert code(bytes(broken)) in ("NIFTI_CORRUPT", "NIFTI_TRUNCATED")
    for offset in (0, 348, 352.5, np.nan, np.inf):
        assert code(make(change=edit(vox_offset=offset))) == "NIFTI_CORRUPT"
    assert code(make(change=edit(vox_offset=1000))) == "NIFTI_TRUNCATED"
    assert code(make(change=edit(datatype=77))) == "NIFTI_CORRUPT"
    assert code(make(change=edit(scl_slope=1, scl_inter=np.inf))) == "NIFTI_CORRUPT"
    assert code(make(change=edit(dim=[3, 8, -6, 5, 1, 1, 1, 1]))) == "NIFTI_CORRUPT"
    assert code(make(change=edit(dim=[99, 8, 6, 5, 1, 1, 1, 1]))) == "NIFTI_CORRUPT"
    assert code(make(np.zeros((4, 4, 4, 1, 3), np.int16))) == "UNSUPPORTED_SHAPE"
    assert code(make(np.zeros(SHAPE, np.complex64))) == "UNSUPPORTED_DATATYPE"
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert code(make(rgb)) == "UNSUPPORTED_DATATYPE"


def test_a_bomb_is_not_inflated() -> None:
    plain = make(packed=False)
    assert code(gzip.compress(plain + bytes(64 << 20))) == "NIFTI_BOMB"
    assert code(make(change=edit(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]))) == "NIFTI_BOMB"
    two = gzip.compress(plain[:500]) + gzip.compress(plain[500:])
    assert np.array_equal(read_nifti(two).values()[0], voxels()), "members one after the other are one stream"


def test_errors_and_rows_hold_no_free_text() -> None:
    free = dict.fromkeys(("descrip", "aux_file", "intent_name", "db_name"), b"Doe^Jane")
    named, broken = make(change=edit(**free)), make(change=edit(**free, vox_offset=0))
    made = decoded(item(named, patient="Jane"), item(broken))
    assert [type(m) for m in made] == [Volume, Sample, Refused]
    assert "Doe" not in repr(made) and "Jane" not in repr(made)


def test_geometry_rule() -> None:
    both, flipped = RAS.copy(), RAS @ np.diag([-1, 1, 1, 1])
    both[:3, 3] = 5

    def forms(s: Any, q: Any, codes: tuple[int, int] = (2, 1), **other: Any) -> bytes:
        def change(h: Any) -> None:
            h.set_qform(RAS if q is None else q, codes[1])
            h.set_sform(s, codes[0])
            edit(**other)(h)

        return make(change=change)

    assert only(decoded(item(forms(RAS, RAS))))[0]["geometry_flags"] == []
    row, _ = only(decoded(item(forms(both, RAS))))
    assert row["geometry_flags"] == ["sform_qform_differ"] and row["affine"] == both.ravel().tolist()
    row, _ = only(decoded(item(forms(RAS, flipped, (0, 1)))))
    assert row["orientation"] == "LAS", "only the qform counts where only its code is set"
    assert code(forms(RAS, flipped)) == "GEOMETRY_AMBIGUOUS"
    flat = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for bad in (np.zeros((4, 4)), np.full((4, 4), np.nan), flat):
        assert code(forms(bad, RAS)) == "GEOMETRY_INVALID"
    assert code(forms(RAS, RAS, (0, 1), pixdim=[1, 0, 2, 3, 0, 0, 0, 0])) == "GEOMETRY_INVALID", "0 mm is not 1 mm"
    assert only(decoded(item(forms(RAS, RAS, quatern_b=np.nan))))[0]["geometry_flags"] == ["qform_invalid"]
    row, (sample,) = only(decoded(item(forms(RAS, RAS, (0, 0)))))
    assert (row["affine"], row["orientation"], row["geometry_flags"]) == (None, None, ["no_orientation"])
    assert row["spacing"] == [2.0, 2.0, 3.0] and sample.columns["pixel_spacing"] == [2.0, 2.0]
    assert sample.locator == "native:2:soft_tissue" and sample.columns["view"] is None
    row, _ = only(decoded(item(forms(RAS, RAS, xyzt_units=3))))
    assert row["spacing"] == pytest.approx([0.002, 0.002, 0.003]), "the header says microns"


def test_a_flipped_file_gives_the_same_pictures() -> None:
    flipped = make(voxels()[::-1].copy(), RAS @ np.array([[-1, 0, 0, 7], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    every = IngestParams(slices="all", planes=("axial", "coronal", "sagittal"))
    (row, ours), (other, theirs) = only(decoded(item(make()), params=every)), only(decoded(item(flipped), params=every))
    assert (row["orientation"], other["orientation"]) == ("RAS", "LAS") and row["volume_id"] != other["volume_id"]
    assert [s.pixels.tolist() for s in ours] == [s.pixels.tolist() for s in theirs]


def test_every_chosen_frame_is_a_volume() -> None:
    values = np.stack([voxels() + 10 * t for t in range(9)], axis=-1)
    labels = (np.arange(9) * np.ones((*SHAPE, 1))).astype(np.uint8)
    facts = {"modality": "MR", "channels": [f"echo {t}" for t in range(9)]}
    whole = item(make(values), labels=make(labels), facts=facts)
    made = decoded(whole, params=IngestParams(slices="middle", frames=3))
    samples = [m for m in made if isinstance(m, Sample)]
    assert [s.locator for s in samples] == [f"t:{t}/axial:2:percentile" for t in (1, 4, 7)]
    assert [[r.label for r in s.regions] for s in samples] == [["label 1"], ["label 4"], ["label 7"]]
    assert [(label.name, label.value) for label in samples[0].labels] == [("sequence", "echo 1")]
    rows = [m.row for m in made if isinstance(m, Volume)]
    assert len({row["volume_id"] for row in rows}) == 3
    places = [json.loads(row["header"]) for row in rows]
    assert [(place["frame"], place["frames"]) for place in places] == [(1, 9), (4, 9), (7, 9)]
    assert np.array_equal(open_scan([make(values)], 4).values, values[..., 4])


def test_a_frame_without_values_costs_itself() -> None:
    values = np.stack([voxels(np.float32), np.full(SHAPE, np.nan, np.float32)], axis=-1)
    made = decoded(item(make(values)))
    assert [m.locator for m in made if isinstance(m, Sample)] == ["t:0/axial:2:soft_tissue"]


def test_labels_on_another_grid() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2, 3, 2] = 1

    def flags_and_masks(labels: Any, affine: Any = RAS) -> tuple[list[str], list[Any]]:
        row, (sample,) = only(decoded(item(make(), labels=make(labels, affine))))
        return row["geometry_flags"], [np.argwhere(r.mask).tolist() for r in sample.regions]

    _, there = flags_and_masks(labels)
    assert there == [[[2, 5]]]
    nudged = RAS.copy()
    nudged[0, 3] = 1e-4
    assert flags_and_masks(labels, nudged) == ([], there)
    wide = np.pad(labels, 3)
    shifted = RAS.copy()
    shifted[:3, 3] = RAS[:3, :3] @ [-3, -3, -3]
    assert flags_and_masks(wide, shifted) == (["labels_resampled"], there)
    turned = shifted @ np.array([[-1, 0, 0, wide.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert flags_and_masks(wide[::-1].copy(), turned) == (["labels_resampled"], there)
    assert flags_and_masks(labels[:, :, :3]) == (["labels_grid_mismatch"], []), "does not cover the image"
    assert flags_and_masks(labels, shifted) == (["labels_grid_mismatch"], [])
    assert flags_and_masks(np.stack([labels] * 2, -1)) == (["labels_grid_mismatch"], [])
    assert flags_and_masks(labels + np.float32(0.5)) == (["labels_not_integers"], [])
    assert flags_and_masks(labels * 0) == ([], []), "an empty label map is no error"


def test_masks_may_overlap_and_have_a_threshold() -> None:
    tissue = np.full(SHAPE, 200, np.uint8)
    facts = {"mask_threshold": 127}
    grey, white = make(tissue), make(np.where(voxels() > 0, 128, 127).astype(np.uint8))
    elsewhere = make(np.ones((2, 2, 2), np.uint8))
    whole = item(make(), mask__grey=grey, mask__white=white, mask__tumour=elsewhere, facts=facts)
    row, (sample,) = only(decoded(whole))
    assert [(r.label, int(r.mask.sum())) for r in sample.regions if r.mask is not None] == [
        ("grey", 48), ("white", int((voxels()[:, :, 2] > 0).sum())),
    ]
    assert row["geometry_flags"] == ["labels_grid_mismatch"]
    assert json.loads(row["header"])["left_out"] == ["mask:tumour"]


def test_a_bad_file_costs_itself_only() -> None:
    made = decoded(
        item(make(), id="1"), item(make()[:99], id="2"), item(make(), labels=b"x", id="3"), item(make(), id="4")
    )
    refused = {m.item: m.error for m in made if isinstance(m, Refused)}
    assert {name: error.code for name, error in refused.items()} == {"2": "NIFTI_TRUNCATED", "3": "NOT_NIFTI"}
    assert refused["3"].message.startswith("labels: ")
    assert [m.items for m in made if isinstance(m, Volume)] == [("1",), ("4",)]
