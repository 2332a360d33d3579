"""Regions: boxes, codes, places, sides and relations follow the published rules."""

from itertools import combinations

import numpy as np
import pytest

from catalog.masks import area_of, code_of, common_area, runs_of_labels
from catalog.schema import LAYERS
from infra.errors import Terminal
from transforms.decoded import Region
from transforms.regions import (
    RELATIONS,
    decode_mask,
    encode_mask,
    patient_side,
    position,
    relation,
    relations,
    roi_row,
    rows_of_labelmap,
    scaled,
    scaled_size,
)

SIZE = (40, 60)


def masked(y: slice, x: slice, label: str = "thing") -> Region:
    mask = np.zeros(SIZE, bool)
    mask[y, x] = True
    return Region(label, "organ", mask=mask)


def row(region: Region):
    return roi_row("s", region, SIZE, expert="source", origin="given", trust="boundary")


def test_a_mask_becomes_a_row_of_the_layer():
    made = row(masked(slice(10, 20), slice(5, 9)))
    assert made["box"] == [5, 10, 9, 20]
    assert made["area_fraction"] == 40 / 2400
    assert made["position"] == "middle left"
    assert decode_mask(made["mask"]).sum() == 40
    assert LAYERS["rois"].table([made]).to_pylist()[0]["mask"] == made["mask"]


def test_the_code_is_column_first_like_coco():
    mask = np.zeros((2, 3), bool)
    mask[1, 0] = mask[0, 2] = True
    code = encode_mask(mask)
    assert code["size"] == [2, 3]
    assert np.array_equal(decode_mask(code), mask)
    from pycocotools import mask as coco
    assert coco.toBbox({"size": [2, 3], "counts": code["counts"].encode()}).tolist() == [0, 0, 3, 2]


def test_a_float_box_is_widened_to_pixels_and_clipped():
    made = row(Region("nodule", "lesion", box=(-3.2, 4.5, 10.1, 99.0)))
    assert made["box"] == [0, 4, 11, 40]
    assert made["mask"] is None
    assert made["area_fraction"] == 11 * 36 / 2400


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 5, 5, 9), (70, 0, 90, 9), (-9, -9, 0, 0)])
def test_an_empty_region_is_no_row(box):
    assert row(Region("x", "organ", box=box)) is None
    assert row(Region("x", "organ", mask=np.zeros(SIZE, bool), box=(1, 1, 9, 9))) is None


def test_wrong_regions_are_refused():
    with pytest.raises(Terminal, match="BOX_NOT_FINITE"):
        row(Region("x", "organ", box=(0, 0, float("nan"), 9)))
    with pytest.raises(ValueError, match="the image is"):
        row(Region("x", "organ", mask=np.ones((3, 3), bool)))
    with pytest.raises(ValueError, match="neither"):
        row(Region("x", "organ"))


def test_ids_tell_regions_apart_and_are_stable():
    a, b = row(masked(slice(0, 9), slice(0, 9))), row(masked(slice(0, 9), slice(0, 8)))
    assert a["roi_id"] != b["roi_id"]
    assert a == row(masked(slice(0, 9), slice(0, 9)))


def test_shrinking_keeps_small_regions_and_scales_boxes():
    tiny = masked(slice(3, 4), slice(7, 8))
    shrunk = scaled(tiny, 0.1)
    assert shrunk.mask.shape == scaled_size(SIZE, 0.1) == (4, 6)
    assert shrunk.mask.sum() == 1 and shrunk.mask[0, 0]
    half = scaled(masked(slice(0, 40), slice(0, 30)), 0.5)
    assert half.mask.sum() == 20 * 15
    assert scaled(Region("x", "organ", box=(2, 4, 8, 10)), 0.5).box == (1, 2, 4, 5)
    assert not scaled(Region("x", "organ", mask=np.zeros(SIZE, bool)), 0.5).mask.any()


def test_places_and_their_ties():
    assert position(0, 0, 90, 90) == "upper left"
    assert position(45, 45, 90, 90) == "center"
    assert position(45, 89, 90, 90) == "lower center"
    assert position(30, 60, 90, 90) == "center"  # on both edges: the middle third
    assert position(29.5, 60.5, 90, 90) == "lower left"
    assert position(89, 45, 90, 90) == "middle right"


@pytest.mark.parametrize(
    ("box", "orientation", "side"),
    [
        ((0, 0, 20, 9), "LP", "right"), ((80, 0, 100, 9), "LP", "left"), ((0, 0, 20, 9), "RP", "left"),
        ((30, 0, 70, 9), "LP", "midline"), ((41, 0, 49, 9), "LP", "midline"), ((10, 0, 80, 9), "LF", "midline"),
        ((0, 0, 20, 9), "PI", None), ((0, 0, 20, 9), None, None), ((0, 0, 20, 9), "", None),
    ],
)
def test_sides_are_the_patients(box, orientation, side):
    assert patient_side(box, 100, orientation) == side


def test_a_known_midline_moves_the_sides():
    assert patient_side((40, 0, 60, 9), 100, "LP", midline=80) == "right"


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ((slice(2, 4), slice(2, 4)), (slice(0, 9), slice(0, 9)), "inside"),
        ((slice(0, 9), slice(0, 9)), (slice(2, 4), slice(2, 4)), "contains"),
        ((slice(0, 9), slice(0, 9)), (slice(0, 9), slice(5, 14)), "overlaps"),
        ((slice(0, 9), slice(0, 9)), (slice(0, 9), slice(30, 39)), "left of"),
        ((slice(0, 9), slice(30, 39)), (slice(0, 9), slice(0, 9)), "right of"),
        ((slice(0, 5), slice(0, 9)), (slice(20, 25), slice(3, 12)), "above"),
        ((slice(20, 25), slice(0, 9)), (slice(0, 5), slice(0, 9)), "below"),
    ],
)
def test_relations(a, b, word):
    assert word in RELATIONS
    assert relation(row(masked(*a)), row(masked(*b))) == word


def test_relations_use_masks_where_boxes_would_mislead():
    ring = np.zeros(SIZE, bool)
    ring[0:30, 0:30] = True
    ring[5:25, 5:25] = False
    core = masked(slice(10, 20), slice(10, 20))
    around = row(Region("ring", "organ", mask=ring))
    assert relation(row(core), around) is None
    box = row(Region("mark", "lesion", box=(1, 1, 4, 4)))
    assert relation(box, around) == "inside"


def by_pycocotools(mask):
    from pycocotools import mask as coco

    return {"size": list(mask.shape), "counts": coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()}


def random_masks():
    """Speckle and blocks of every density, empty, full, one pixel, one row, one column, and runs longer than 2^15."""
    rng = np.random.default_rng(7)
    for number in range(400):
        height, width = rng.integers(1, 40, 2)
        mask = rng.random((height, width)) < rng.random()
        yield np.kron(mask, np.ones((5, 7), bool)) if number % 3 == 0 else mask
    for size in ((1, 1), (1, 9), (9, 1), (400, 300)):
        yield np.zeros(size, bool)
        yield np.ones(size, bool)
        for place in ((0, 0), (-1, -1), (0, -1), (-1, 0)):
            one = np.zeros(size, bool)
            one[place] = True
            yield one
            yield ~one


def test_codes_are_those_of_pycocotools_byte_for_byte():
    for mask in random_masks():
        code = encode_mask(mask)
        assert code == by_pycocotools(mask)
        assert np.array_equal(decode_mask(code), mask)
        assert area_of(code_of(code)) == mask.sum()
        assert encode_mask(np.asfortranarray(mask)) == code


def test_a_mask_can_be_decoded_in_a_box():
    for mask in random_masks():
        height, width = mask.shape
        for x0, y0, x1, y1 in ((0, 0, width, height), (width // 3, height // 3, width, height), (0, 0, 1, height)):
            cut = decode_mask(encode_mask(mask), (x0, y0, x1, y1))
            assert np.array_equal(cut, mask[y0:y1, x0:x1]) and cut.flags.c_contiguous


def test_broken_codes_are_refused():
    for counts in ("", "P"):
        with pytest.raises(ValueError, match="run-length"):
            decode_mask({"size": [2, 2], "counts": counts})
    with pytest.raises(ValueError, match="of 9 pixels"):
        decode_mask({"size": [2, 2], "counts": encode_mask(np.ones((3, 3), bool))["counts"]})


def test_common_area_is_that_of_the_masks():
    rng = np.random.default_rng(3)
    for _ in range(50):
        a, b = (rng.random((20, 30)) < rng.random() for _ in range(2))
        assert common_area(code_of(encode_mask(a)), code_of(encode_mask(b))) == (a & b).sum()


def random_label_maps():
    rng = np.random.default_rng(11)
    for dtype in (np.uint8, np.int16, np.int32, np.int64):
        for number in range(40):
            labels = rng.integers(0, 6, rng.integers(1, 30, 2)).astype(dtype)
            yield np.kron(labels, np.ones((4, 3), dtype)) if number % 2 else labels
        yield np.zeros((5, 7), dtype)
        yield np.full((5, 7), 3, dtype)
        lone = np.zeros((5, 7), dtype)
        lone[2, 6] = 5
        yield lone


def test_rows_of_a_label_map_are_those_of_its_masks():
    names = {1: Region("liver", "organ", ontology_id="UBERON:0002107"), 3: Region("cyst", "lesion", score=0.5),
             4: Region("liver", "organ"), 5: Region("spleen", "organ"), 99: Region("absent", "organ")}
    how = {"expert": "e@1", "origin": "predicted", "trust": "box", "weights_sha256": "w"}
    made = 0
    for labels in random_label_maps():
        single = [
            roi_row("s", Region(r.label, r.role, labels == v, None, r.ontology_id, r.score), labels.shape, **how)
            for v, r in names.items()
        ]
        found = rows_of_labelmap("s", labels, names, **how)
        assert found == [row for row in single if row is not None]
        assert LAYERS["rois"].table(found).num_rows == len(found)
        made += len(found)
    assert made > 400


def test_values_that_nobody_names_are_background():
    labels = np.array([[0, 1], [2, 2]])
    assert rows_of_labelmap("s", labels, {}, expert="e", origin="predicted", trust="box") == []
    values, runs = runs_of_labels(labels, [2, 7])
    assert (values, runs.areas(), runs.boxes()) == ([2], [2], [[0, 1, 2, 2]])


def test_relations_of_many_are_those_of_each_pair():
    rng = np.random.default_rng(5)
    rows = []
    for number in range(14):
        (y, x), (h, w) = rng.integers(0, 30, 2), rng.integers(2, 20, 2)
        rows.append(row(masked(slice(y, y + h), slice(x, x + w), f"region {number}")))
    rows.append(row(Region("box", "lesion", box=(3, 3, 20, 20))))
    rows.append(row(Region("box", "lesion", box=(5, 5, 9, 9))))
    told = [(i, j, relation(rows[i], rows[j])) for i, j in combinations(range(len(rows)), 2)]
    assert relations(rows) == [found for found in told if found[2]]
    assert {word for _, _, word in relations(rows)} == set(RELATIONS) - {"touching"}
