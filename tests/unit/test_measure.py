"""Measures: numbers of regions whose shape and greys are known, as far as trust and window allow, and true words."""

from pathlib import Path

import numpy as np
import pytest

from catalog.schema import LAYERS
from transforms.decoded import Region
from transforms.facts import facts_of
from transforms.measure import Params, make_stage
from transforms.measures import words
from transforms.measures.pairs import Outlines
from transforms.measures.region import axes, eroded, glcm, hull_of, local_std
from transforms.regions import roi_row
from transforms.stage import Context, SampleRows

SIZE = (120, 160)


def region(mask, label="thing", role="organ", trust="boundary"):
    return roi_row("s", Region(label, role, mask=mask), mask.shape, expert="source", origin="given", trust=trust)


def block(y, x, label="thing", **how):
    mask = np.zeros(SIZE, bool)
    mask[slice(*y), slice(*x)] = True
    return region(mask, label, **how)


def disc(radius, at=(60, 80)):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return (y - at[0]) ** 2 + (x - at[1]) ** 2 <= radius**2


def stage_rows(rois, pixels=None, params=None, **image):
    """The rows that the stage writes, and the sample with them."""
    pixels = np.full(SIZE, 100, np.uint8) if pixels is None else pixels
    image = {"sample_id": "s", "width": SIZE[1], "height": SIZE[0], "modality": None, **image}
    sample = SampleRows(image, {"rois": rois})
    sample._pixels = pixels
    stage = make_stage(params or Params(), Context(Path()))
    return stage.row(sample, None)


def of(rows, roi, other=None):
    """name -> row of `measures`."""
    pair = roi["roi_id"], None if other is None else other["roi_id"]
    return {row["name"]: row for row in rows["measures"] if (row["roi_id"], row["other_roi_id"]) == pair}


def test_a_block_has_its_sides_in_pixels_and_in_mm_of_either_axis():
    roi = block((20, 40), (30, 70))
    rows = stage_rows([roi], pixel_spacing=[2.0, 0.5], volume_id="v")
    got = {name: (row["value"], row["unit"]) for name, row in of(rows, roi).items()}
    assert got["area"] == (800, "px") and got["area_mm2"] == (800.0, "mm2")
    assert (got["width"], got["height"]) == ((40, "px"), (20, "px"))
    assert (got["width_mm"], got["height_mm"]) == ((20.0, "mm"), (40.0, "mm"))
    assert got["short_axis"] == (20.0, "px") and got["short_axis_mm"] == (20.0, "mm")
    assert got["long_axis"][0] == pytest.approx(np.hypot(20, 40))
    assert got["long_axis_mm"][0] == pytest.approx(np.hypot(40, 20))
    assert of(rows, roi)["long_axis_mm"]["words"] == "about 45 by 20 mm in this slice"
    assert (got["components"][0], got["holes"][0], got["solidity"][0]) == (1, 0, 1)
    assert LAYERS["measures"].table([{"sample_id": "s", **row} for row in rows["measures"]]).num_rows > 20


def test_without_spacing_no_mm_is_told():
    rows = stage_rows([block((20, 40), (30, 70))])
    assert not [row for row in rows["measures"] if row["unit"] in ("mm", "mm2")]


def test_the_same_sample_gives_the_same_rows_and_ids_are_one_each():
    rois = [block((20, 40), (30, 70)), block((60, 80), (30, 70))]
    first, second = stage_rows(rois), stage_rows(rois)
    assert first == second
    ids = [row["measure_id"] for row in first["measures"]]
    assert len(set(ids)) == len(ids)


def test_axes_are_those_of_all_turns():
    for turn in np.linspace(0, np.pi, 7):
        y, x = np.mgrid[:200, :200] - 100.0
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        long, short, area = axes(hull_of((along / 60) ** 2 + (across / 20) ** 2 <= 1))
        assert long == pytest.approx(120, abs=2) and short == pytest.approx(40, abs=2)
        assert area == pytest.approx(np.pi * 60 * 20, rel=0.06)


def test_discs_are_round_bars_are_elongated_rings_are_neither():
    bar = block((50, 58), (20, 120))
    ring = region(disc(30) & ~disc(24))
    told = {
        name: of(stage_rows([roi]), roi)["roundness"]["words"]
        for name, roi in (("disc", region(disc(25))), ("bar", bar), ("ring", ring), ("dot", region(disc(2))))
    }
    assert told == {"disc": "roughly round", "bar": "elongated", "ring": None, "dot": None}
    assert of(stage_rows([ring]), ring)["holes"]["value"] == 1


def test_parts_are_counted():
    mask = disc(8, (30, 30)) | disc(8, (80, 120)) | disc(8, (80, 40))
    roi = region(mask)
    got = of(stage_rows([roi], pixel_spacing=[1, 1]), roi)
    assert (got["components"]["value"], got["components"]["words"]) == (3, "in 3 separate parts")
    assert "across all its parts" in got["long_axis_mm"]["words"]


def test_what_the_image_cuts_off_is_at_least_so_large():
    roi = block((0, 40), (30, 70))
    assert of(stage_rows([roi], pixel_spacing=[1, 1]), roi)["long_axis_mm"]["words"].startswith("at least 57 by 40 mm")


def test_a_size_below_the_pixels_is_not_told():
    roi = block((50, 52), (30, 70))
    assert of(stage_rows([roi], pixel_spacing=[3, 3]), roi)["long_axis_mm"]["words"] is None


def test_trust_bounds_what_is_measured():
    rois = [block((20, 40), (30, 70), trust="box"), block((60, 80), (30, 70), trust="presence")]
    rows = stage_rows(rois, pixel_spacing=[1, 2])
    assert {name: row["value"] for name, row in of(rows, rois[0]).items()} == {
        "box_width": 40, "box_height": 20, "box_width_mm": 80, "box_height_mm": 20,
    }
    assert of(rows, rois[0])["box_width_mm"]["words"] == "within a box of about 80 by 20 mm"
    assert of(rows, rois[1]) == {} and of(rows, *rois) == {}
    assert rows["checks"][0]["detail"].startswith("by outline 0, by box 1, by presence (not measured) 1")


def test_mm_at_the_detector_are_no_words():
    roi = block((20, 40), (30, 70))
    got = of(stage_rows([roi], pixel_spacing=[1, 1], modality="DX"), roi)
    assert got["long_axis_mm"]["value"] > 40 and got["long_axis_mm"]["words"] is None


def test_grey_of_a_ct_is_told_in_hounsfield_units():
    roi, pixels = block((20, 40), (30, 70)), np.full(SIZE, 51, np.uint8)
    pixels[20:40, 30:50] = 153
    pixels[20:40, 30] = 102
    got = of(stage_rows([roi], pixels, modality="CT", window=[-100.0, 155.0]), roi)
    assert {n: got[n]["value"] for n in ("min", "max", "median")} == {"min": -49, "max": 53, "median": -49}
    assert got["mean"]["unit"] == got["std"]["unit"] == "HU"
    assert got["mean"]["value"] == pytest.approx(pixels[20:40, 30:70].mean() - 100)
    assert got["median"]["words"] == "a median of about -49 HU"
    assert (got["clipped_low"]["value"], got["clipped_high"]["value"]) == (0, 0)
    assert of(stage_rows([roi], pixels, modality="MR", window=[0.0, 900.0]), roi)["median"]["unit"] == "grey"


def test_what_the_window_clips_is_a_bound_and_no_value():
    roi, pixels = block((20, 40), (30, 70)), np.full(SIZE, 100, np.uint8)
    pixels[20:40, 30:60] = 255
    got = of(stage_rows([roi], pixels, modality="CT", window=[-160.0, 240.0]), roi)
    assert got["clipped_high"]["value"] == 75
    assert not {"median", "max", "mean", "std", "contrast_hu"} & set(got)
    assert got["median_at_least"]["value"] == pytest.approx(240 - 200 / 255)
    assert got["median_at_least"]["words"] == "a median of at least 239 HU"
    assert got["mean_at_least"]["value"] < 0.75 * 240 + 0.25 * (100 * 400 / 255 - 160)
    pixels[20:40, 60:70] = 0
    got = of(stage_rows([roi], pixels, modality="CT", window=[-160.0, 240.0]), roi)
    assert "min_at_most" in got and not [name for name in got if name.startswith("mean")]


def test_brightness_is_against_the_ring():
    pixels = np.full(SIZE, 100, np.uint8)
    for grey, said in ((150, "brighter than its"), (60, "darker than its"), (104, "about as bright as its")):
        pixels[disc(15)] = grey
        roi = region(disc(15))
        row = of(stage_rows([roi], pixels), roi)["contrast"]
        assert (row["value"], row["words"]) == (grey - 100, f"{said} surroundings")
    mixed = np.where(np.indices(SIZE)[1] % 2, 240, 20).astype(np.uint8)
    mixed[disc(15)] = 28
    roi = region(disc(15))
    assert of(stage_rows([roi], mixed), roi)["contrast"]["words"] is None


def test_texture_words_come_from_the_spread_inside():
    rng, roi = np.random.default_rng(1), region(disc(20))
    told = {}
    for spread in (4, 20, 45):
        pixels = np.clip(rng.normal(128, spread, SIZE), 1, 254).astype(np.uint8)
        row = of(stage_rows([roi], pixels), roi)["texture"]
        assert row["value"] == pytest.approx(spread, rel=0.15)
        told[spread] = row["words"]
    assert told == {4: "homogeneous", 20: None, 45: "heterogeneous"}
    assert of(stage_rows([roi], np.full(SIZE, 255, np.uint8)), roi)["texture"]["words"] is None
    dim = np.clip(rng.normal(12, 4, SIZE), 1, 254).astype(np.uint8)
    assert of(stage_rows([roi], dim), roi)["texture"]["words"] is None
    small = region(disc(3))
    assert "texture" not in of(stage_rows([small]), small)


def test_co_occurrence_and_local_spread_are_those_of_the_definition():
    rng = np.random.default_rng(2)
    levels, inner = rng.integers(0, 32, (12, 14)).astype(np.uint8), eroded(rng.random((12, 14)) < 0.93)
    matrix = np.zeros((32, 32))
    for y, x in np.argwhere(inner):
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            if 0 <= y + dy < 12 and 0 <= x + dx < 14 and inner[y + dy, x + dx]:
                matrix[levels[y, x], levels[y + dy, x + dx]] += 1
    matrix /= matrix.sum()
    square = (np.arange(32)[:, None] - np.arange(32)) ** 2
    assert glcm(levels, inner) == pytest.approx(((matrix * square).sum(), (matrix / (1 + square)).sum()))
    around = [levels[y - 1 : y + 2, x - 1 : x + 2].var() for y, x in np.argwhere(inner)]
    assert local_std(levels, inner) == pytest.approx(np.sqrt(np.mean(around)))


def test_distances_are_those_of_the_pixel_squares():
    rng = np.random.default_rng(9)
    for _ in range(30):
        a, b = np.zeros((2, 30, 40), bool)
        for mask, x in ((a, 0), (b, 20)):
            mask[:, x : x + 17] = rng.random((30, 17)) < 0.02
            mask[rng.integers(30), x + rng.integers(17)] = True
        apart = np.argwhere(a)[:, None] - np.argwhere(b)[None]
        gap = np.maximum(np.abs(apart) - 1, 0)
        one, two = region(a), region(b)
        assert Outlines().gap(one, two) == pytest.approx(np.hypot(gap[..., 0], gap[..., 1]).min())
        scaled = np.hypot(3 * gap[..., 0], 0.5 * gap[..., 1]).min()
        assert Outlines().gap(one, two, (3.0, 0.5)) == pytest.approx(scaled)


def test_pairs_are_told_apart_touching_and_common():
    big, near = block((20, 60), (20, 60), "big"), block((30, 50), (60, 70), "near")
    far, over = block((30, 50), (90, 100), "far"), block((50, 70), (30, 40), "over")
    rows = stage_rows([big, near, far, over], pixel_spacing=[1, 2])
    touching, gap, common = of(rows, near, big), of(rows, far, big), of(rows, over, big)
    assert (touching["distance"]["value"], touching["distance"]["words"]) == (0, "touching")
    assert (gap["distance"]["value"], gap["distance_mm"]["value"]) == (30, 60)
    assert gap["distance_mm"]["words"] == "about 60 mm apart"
    assert (common["common"]["value"], common["distance"]["words"]) == (50, None)


def test_neighbours_are_the_nearest_and_what_is_left_out_is_said():
    cells = [block((10, 16), (x, x + 6), "cell", role="cell") for x in (5, 15, 40, 52, 90, 130)]
    rows = stage_rows(cells, params=Params(neighbours=1))
    number = {cell["roi_id"]: at for at, cell in enumerate(cells)}
    pairs = {
        frozenset((number[r["roi_id"]], number[r["other_roi_id"]])) for r in rows["measures"] if r["other_roi_id"]
    }
    assert pairs == {frozenset(pair) for pair in ((0, 1), (2, 3), (3, 4), (4, 5))}
    assert rows["checks"][0]["verdict"] == "pass"
    few = stage_rows(cells, params=Params(neighbours_among=4))["checks"][0]
    assert few["verdict"] == "unknown" and "the 2 smallest regions" in few["detail"]
    assert not [r for r in stage_rows(cells, params=Params(neighbours=0))["measures"] if r["other_roi_id"]]


def test_related_pairs_have_distances_in_the_facts():
    rois = [block((20, 60), (20, 60), "liver"), block((20, 60), (90, 120), "spleen"), block((70, 80), (20, 30), "dot")]
    rows = stage_rows(rois, pixel_spacing=[1, 1])
    image = {"sample_id": "s", "width": SIZE[1], "height": SIZE[0], "pixel_spacing": [1, 1]}
    facts = facts_of(SampleRows(image, {
        "rois": rois, "labels": [], "measures": rows["measures"], "passages": [], "texts": []
    }))
    told = {(facts.region(r.a).label, facts.region(r.b).label): r.distance for r in facts.relations}
    assert told[("spleen", "liver")] == "about 30 mm apart" and told[("dot", "liver")] == "about 10 mm apart"
    assert facts.regions[0].size == "about 57 by 40 mm" and facts.regions[0].shape is None


def test_no_regions_are_no_rows_and_a_colour_picture_is_seen_as_grey():
    assert stage_rows([]) == {}
    roi = block((20, 40), (30, 70))
    colour = np.zeros((*SIZE, 3), np.uint8)
    colour[..., 1] = 200
    assert of(stage_rows([roi], colour), roi)["median"]["value"] == 117


@pytest.mark.parametrize(
    ("said", "words_"),
    [
        (words.size(34.4, 20.6, pixel=0.7, cut_off=False, parts=1, where=""), "about 34 by 21 mm"),
        (words.size(8.44, 3.2, pixel=0.5, cut_off=True, parts=1, where=""), "at least 8.4 by 3.2 mm"),
        (words.size(0.012, 0.006, pixel=0.0005, cut_off=False, parts=1, where=""), "about 12 by 6.0 µm"),
        (words.area(11123, 900, cut_off=False, where=""), "an area of about 111 cm²"),
        (words.area(52, 90, cut_off=False, where=""), "an area of about 52 mm²"),
        (words.hounsfield(57.2, 1.6, None), "a median of about 57 HU"),
        (words.hounsfield(238.4, 7.8, "at least"), "a median of at least 230 HU"),
        (words.apart_pixels(1.0), "about 1 pixel apart"),
    ],
)
def test_words(said, words_):
    assert said == words_
