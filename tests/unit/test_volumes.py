"""Slices of volumes: hung the right way, in the right window, the right ones of them."""

from __future__ import annotations

from itertools import pairwise, permutations, product

import numpy as np
import pytest

from infra.errors import ConfigError
from transforms.decoded import IngestParams
from transforms.scans.volumes import Cut, Scan, canonical, check, choose_slices, cut, role_of, to_grey
from transforms.scans.windows import anatomy_window, choose_windows, named_window

SHAPE = (9, 7, 5)
LPS = np.diag([-2.0, -3.0, 4.0, 1.0])
ALL = IngestParams(slices="all", planes=("axial", "coronal", "sagittal"))


def scan(**other: object) -> Scan:
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) + 1
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 2, 3] = 1
    known = {
        "values": values, "affine": LPS, "modality": "MR", "anatomy": None,
        "labels": labels, "label_table": {1: "liver"},
    }
    return Scan(**(known | other))  # type: ignore[arg-type]


def turned(upright: Scan, order: tuple[int, int, int], flips: tuple[int, int, int]) -> Scan:
    """The same scan in another file: axes permuted, then flipped, the affine changed so that voxels stay in place."""
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        step[old, new] = -1 if flip else 1
        step[old, 3] = upright.values.shape[old] - 1 if flip else 0
    cuts = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    assert upright.affine is not None and upright.labels is not None
    return scan(
        values=upright.values.transpose(order)[cuts], labels=upright.labels.transpose(order)[cuts],
        affine=upright.affine @ step,
    )


def drawn(piece: Cut) -> list[object]:
    return [(region.label, region.mask.tolist()) for region in piece.regions if region.mask is not None]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_however_the_array_lies_the_slices_are_the_same(order: tuple[int, int, int]) -> None:
    expected = list(cut(scan(), ALL))
    assert len(expected) == sum(SHAPE)
    for flips in product((0, 1), repeat=3):
        lying = turned(scan(), order, flips)  # type: ignore[arg-type]
        for ours, theirs in zip(cut(lying, ALL), expected, strict=True):
            assert np.array_equal(ours.pixels, theirs.pixels)
            assert {**ours.columns, "slice_index": 0} == {**theirs.columns, "slice_index": 0}
            assert drawn(ours) == drawn(theirs)


def test_a_flipped_file_keeps_its_own_slice_numbers() -> None:
    lying = turned(scan(), (0, 1, 2), (0, 0, 1))
    assert [piece.index for piece in cut(lying, IngestParams(slices="all"))] == [4, 3, 2, 1, 0]
    piece = next(iter(cut(lying, IngestParams(slices="largest:1"))))
    assert piece.locator == "axial:1:percentile" and piece.columns["slice_index"] == 1
    assert lying.labels is not None and lying.labels[:, :, piece.index].any()


def test_oblique_scans_go_by_their_closest_axes_and_keep_their_voxels() -> None:
    angle = np.deg2rad(20)
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    straight, oblique = list(cut(scan(), ALL)), list(cut(scan(affine=tilt @ LPS), ALL))
    assert [p.pixels.tolist() for p in oblique] == [p.pixels.tolist() for p in straight]
    assert oblique[0].columns["pixel_spacing"] == pytest.approx([3.0, 2.0])
    sheared = LPS.copy()
    sheared[0, 1] = 0.5
    assert [p.pixels.tolist() for p in cut(scan(affine=sheared), ALL)] == [p.pixels.tolist() for p in straight]


def test_rows_and_columns_grow_as_radiologists_hang_pictures() -> None:
    upright = canonical(scan())
    assert upright.orientation == "LPS"
    axial, coronal, sagittal = (
        next(iter(cut(scan(), IngestParams(slices="all", planes=(plane,))))) for plane in ALL.planes
    )
    assert axial.pixels.shape == (7, 9) and axial.columns["orientation"] == "LP"
    assert coronal.pixels.shape == (5, 9) and coronal.columns["orientation"] == "LI"
    assert sagittal.pixels.shape == (5, 7) and sagittal.columns["orientation"] == "PI"
    assert axial.columns["pixel_spacing"] == [3.0, 2.0] and axial.columns["view"] == "axial"
    assert coronal.columns["pixel_spacing"] == [4.0, 2.0] and sagittal.columns["pixel_spacing"] == [4.0, 3.0]
    head = scan(values=np.where(np.arange(5) == 4, 100, 1) * np.ones(SHAPE, np.int16), labels=None)
    assert np.all(next(iter(cut(head, IngestParams(slices="all", planes=("coronal",))))).pixels[0] == 255), "head is up"


def test_canonical_leaves_every_voxel_where_it_was() -> None:
    lying = turned(scan(), (2, 0, 1), (1, 0, 1))
    upright = canonical(lying)
    assert upright.affine is not None and np.allclose(upright.affine, LPS)
    assert np.array_equal(upright.values, scan().values)
    assert upright.spacing == (2.0, 3.0, 4.0)


def test_without_an_affine_nothing_is_invented() -> None:
    piece = next(iter(cut(scan(affine=None), ALL)))
    assert piece.locator == "native:0:percentile"
    assert (piece.columns["view"], piece.columns["orientation"], piece.columns["pixel_spacing"]) == (None, None, None)
    assert len(list(cut(scan(affine=None), ALL))) == SHAPE[2], "once, not once a plane"


def test_the_same_value_gives_the_same_grey_on_every_slice() -> None:
    values = np.full(SHAPE, -1000, np.float32)
    values[:, :, 2:] = 3000
    values[0, 0, :] = 40
    hounsfield = scan(values=values, modality="CT", labels=None)
    pieces = list(cut(hounsfield, IngestParams(slices="all", windows=("soft_tissue",))))
    assert {int(piece.pixels[0, 0]) for piece in pieces} == {128}
    brain = list(cut(scan(values=values, modality="MR", labels=None), IngestParams(slices="all")))
    assert len({int(piece.pixels[0, 0]) for piece in brain}) == 1


def test_grey_is_linear_clipped_and_rounded_half_up() -> None:
    values = np.array([[-1e9, -160, 40, 240, 1e9]])
    assert to_grey(values, named_window("soft_tissue")).tolist() == [[0, 0, 128, 255, 255]]
    assert to_grey(values, named_window("soft_tissue"), inverted=True).tolist() == [[255, 255, 128, 0, 0]]
    assert to_grey(np.array([[0, 1, 2]], np.uint8), (1, 1)).tolist() == [[0, 0, 255]]


def test_one_sample_for_each_named_window_of_ct() -> None:
    pieces = list(cut(scan(modality="CT"), IngestParams(slices="middle", windows=("lung", "bone"))))
    assert [piece.locator for piece in pieces] == ["axial:2:lung", "axial:2:bone"]
    assert [piece.columns["window"] for piece in pieces] == [[-1350.0, 150.0], [-770.0, 1730.0]]


def test_which_window_is_chosen() -> None:
    values = np.array([0, 0, 10, 20])
    own = (1.0, 2.0)
    assert choose_windows(values, "CT", "upper abdomen", own, ()) == {"abdomen": (-140.0, 260.0)}
    assert choose_windows(values, "CT", "knee", own, ()) == {"own": own}
    assert choose_windows(values, "CT", None, None, ()) == {"soft_tissue": (-160.0, 240.0)}
    assert choose_windows(values, "MR", "liver", own, ("lung",)) == {"own": own}
    assert choose_windows(values, "MR", None, None, ("lung",))["percentile"] == pytest.approx((10.05, 19.95))
    assert choose_windows(np.zeros(4), None, None, None, ()) == {"percentile": (0.0, 0.0)}
    assert anatomy_window("Head and Neck") == "soft_tissue" and anatomy_window("HEAD") == "brain"


def labelled(**areas: int) -> Scan:
    """Labels along z: name_at=number of voxels, e.g. liver_2=5; the body fills slices 2 to 17 of 20."""
    values, labels = np.zeros((6, 6, 20), np.int16), np.zeros((6, 6, 20), np.uint8)
    values[:, :, 2:18] = np.arange(1, 37).reshape(6, 6, 1) + 50
    names = sorted({name.rpartition("_")[0] for name in areas})
    for name, area in areas.items():
        kind, _, at = name.rpartition("_")
        labels[..., int(at)].flat[:area] = names.index(kind) + 1  # type: ignore[index]
    return Scan(values, LPS, "MR", None, labels=labels, label_table=dict(enumerate(names, 1)))


def test_which_slices_are_chosen() -> None:
    body = labelled(liver_5=3, liver_6=9, liver_7=8, liver_12=4)
    assert choose_slices(body, 2, "largest:1") == [6]
    assert choose_slices(body, 2, "largest:2") == [6, 7], "4 labelled slices: a gap of 4 // 4"
    assert choose_slices(body, 2, "largest:9") == [5, 6, 7, 12], "never more than are labelled"
    assert choose_slices(body, 2, "stride:0.25") == [4, 8, 12, 16]
    assert choose_slices(body, 2, "stride:1") == choose_slices(body, 2, "middle") == [10]
    assert choose_slices(body, 2, "largest:1+stride:0.5+middle") == [6, 10, 14]
    assert choose_slices(body, 2, "all") == list(range(20))
    assert choose_slices(labelled(), 2, "largest:3") == [], "without labels there is no largest"
    assert choose_slices(scan(values=np.zeros(SHAPE)), 2, "middle") == [2], "all background: the whole extent"


def test_slices_lie_apart_and_as_many_as_asked_for() -> None:
    body = labelled(**{f"liver_{at}": 30 - at for at in range(2, 18)})
    for count in range(1, 17):
        chosen = choose_slices(body, 2, f"largest:{count}")
        assert len(chosen) == count
        assert all(b - a >= 16 // (2 * count) for a, b in pairwise(chosen))


def test_lesions_decide_where_there_are_any() -> None:
    assert choose_slices(labelled(liver_4=20, tumour_9=2), 2, "largest:1") == [9]


@pytest.mark.parametrize("name, role", [
    ("liver", "organ"), ("liver tumor", "lesion"), ("kidney_cyst_left", "lesion"), ("Edema", "lesion"),
    ("lung_nodules", "lesion"), ("body", "body"), ("stent", "device"), ("brainstem", "organ"), ("massa", "organ"),
])
def test_the_role_is_read_from_the_name(name: str, role: str) -> None:
    assert role_of(name) == role


def test_regions_of_labels_and_masks() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 0, 2], labels[1, 0, 2], labels[2, 0, 2], labels[5, 5, 0] = 1, 2, 9, 1
    everywhere = np.ones(SHAPE, bool)
    masks = {"body": everywhere, "none": ~everywhere}
    whole = scan(labels=labels, label_table={1: "liver", 2: "background"}, masks=masks)
    (piece,) = cut(whole, IngestParams(slices="middle"))
    assert [(r.label, r.role, int(r.mask.sum())) for r in piece.regions] == [
        ("liver", "organ", 1), ("label 9", "organ", 1), ("body", "body", 63),
    ]
    assert piece.regions[0].mask.shape == piece.pixels.shape and piece.regions[0].mask[0, 0]


@pytest.mark.parametrize("wrong, word", [
    (IngestParams(windows=("lungs",)), "did you mean 'lung'"),
    (IngestParams(planes=("axal",)), "did you mean 'axial'"),
    *((IngestParams(slices=rule), "no slice rule") for rule in ("largest", "largest:0", "stride:0", "stride:2", "")),
])
def test_what_does_not_exist_is_said_before_anything_runs(wrong: IngestParams, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        check(wrong)
    with pytest.raises(ConfigError, match=word):
        list(cut(scan(modality="CT"), wrong))
