"""Panels of compound figures: what is cut, what is kept whole, and which letters are told."""

import re

import numpy as np
import pytest
from compound import COMPOUND, SINGLE, STYLES, make
from PIL import Image

pytest.importorskip("rapidocr")
pytest.importorskip("onnxruntime")

from transforms.experts import panels
from transforms.pictures.gutters import Page, parts
from transforms.pictures.imagefile import open_image
from transforms.pictures.letters import Letter, best, gaps, sequence

FIGURE = {"article_id": "PMC1", "parent_id": None}


def found(pixels, **params):
    return list(panels.find(pixels, FIGURE, panels.Params(**params)))


def overlap(a, b):
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0, wide) * max(0, tall)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def tiles(rows, columns, gutter=12, size=120, paper=255):
    rng = np.random.default_rng(1)
    page = np.full((rows * (size + gutter) + gutter, columns * (size + gutter) + gutter, 3), paper, np.uint8)
    for row in range(rows):
        for column in range(columns):
            y, x = gutter + row * (size + gutter), gutter + column * (size + gutter)
            small = rng.integers(60, 190, (12, 12)).astype(np.uint8)
            picture = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
            page[y : y + size, x : x + size] = np.asarray(picture)[:, :, None]
    return page


def test_it_looks_at_figures_of_articles_only():
    assert panels.applies(FIGURE) is None and panels.applies({"article_id": "PMC1"}) is None
    assert "articles" in (panels.applies({"article_id": None}) or "")
    assert "articles" in (panels.applies({}) or "")
    assert "already" in (panels.applies({"article_id": "PMC1", "parent_id": "x"}) or "")


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 1), (2, 2), (3, 4)])
def test_a_grid_without_letters_is_cut_exactly(rows, columns):
    regions = found(tiles(rows, columns))
    expected = [
        (12 + column * 132, 12 + row * 132, 132 + column * 132, 132 + row * 132)
        for row in range(rows) for column in range(columns)
    ]
    assert [region.box for region in regions] == expected, "in reading order"
    assert {(region.label, region.role, region.score) for region in regions} == {("panel", "panel", None)}


def test_one_pixel_between_tiles_is_enough_and_so_is_a_black_gutter():
    assert len(found(tiles(2, 2, gutter=1))) == 4
    assert len(found(tiles(1, 3, gutter=10, paper=0))) == 3


@pytest.mark.parametrize("seed", [3, 17])
@pytest.mark.parametrize("style", ["plots", "mixed", "above", "nested"])
def test_lettered_figures_give_their_panels_and_letters(style, seed):
    made = make(seed, style)
    regions = found(made.pixels)
    assert len(regions) == len(made.panels)
    for letter, box in made.panels:
        region = max(regions, key=lambda region: overlap(region.box, box))
        assert overlap(region.box, box) > 0.75
        assert region.label in (letter, "panel")


@pytest.mark.parametrize("style", SINGLE[:2])
@pytest.mark.parametrize("seed", range(4))
def test_a_single_picture_has_no_panels(style, seed):
    assert found(make(seed, style).pixels) == []


def test_odd_pictures_are_no_trouble():
    for shape in ((1, 1), (3, 500), (500, 2, 3), (64, 64)):
        for value in (0, 128, 255):
            assert found(np.full(shape, value, np.uint8)) == []
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    assert found(noise) == []


@pytest.mark.parametrize("style", COMPOUND)
def test_panels_do_not_overlap_lie_within_and_are_always_the_same(style):
    pixels = make(23, style).pixels
    regions = found(pixels)
    assert regions == found(pixels)
    height, width = pixels.shape[:2]
    for at, region in enumerate(regions):
        x0, y0, x1, y1 = region.box
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert all(overlap(region.box, other.box) == 0 for other in regions[at + 1 :])


def test_large_figures_are_told_in_their_own_pixels():
    large = np.asarray(Image.fromarray(tiles(1, 2)).resize((2760, 1440), Image.Resampling.BICUBIC))
    regions = found(large, max_side=600)
    assert len(regions) == 2
    assert overlap(regions[1].box, (1440, 120, 2640, 1320)) > 0.95


# letters (regression: a published aligner kept the last candidate, and wrote "z" for none)


def read(text, score, x=0, y=0, **more):
    return Letter(text, (x, y, x + 10, y + 14), score, **more)


def test_of_three_candidates_with_falling_score_the_first_wins():
    candidates = [read("A", 0.9), read("B", 0.6), read("C", 0.55)]
    assert best(candidates, 0.5) is candidates[0]
    assert best(candidates[::-1], 0.5) is candidates[0]


def test_no_letter_is_none_and_never_one_made_up():
    assert best([], 0.5) is None
    assert best([Letter(None, (0, 0, 9, 9)), read("A", 0.4)], 0.5) is None
    unlettered = make(5, "unlabelled")
    assert {region.label for region in found(unlettered.pixels)} == {"panel"}


def test_letters_count_only_as_a_sequence():
    a, b, c, z = read("A", 0.9), read("B", 0.9, 100), read("c", 0.9, 200), read("Z", 1, 300)
    assert [letter.text for letter in sequence([z, c, a, b], 0.5)] == ["A", "B", "C"], "the case is that of the others"
    assert sequence([a], 0.5) == [] and sequence([b, c], 0.5) == [], "one alone, or none at the start"
    stray = read("B", 0.99, 0, 500)
    assert sequence([read("A", 0.9, 0, 600), read("B", 0.8, 90, 600), stray], 0.5)[1].score == 0.8, "B is not before A"


def test_letters_of_another_height_are_not_of_the_sequence():
    small = Letter("B", (50, 0, 53, 5), 0.99)
    assert sequence([read("A", 0.9), small], 0.5) == []


def test_numbers_need_brackets_or_a_picture_each():
    bare = [read("1", 0.9), read("2", 0.9, 100)]
    assert sequence(bare, 0.5) == []
    assert len(sequence(bare, 0.5, numbers=True)) == 2
    assert len(sequence([read("1", 0.9, bracketed=True), read("2", 0.9, 100, bracketed=True)], 0.5)) == 2


def test_a_letter_may_be_missing_where_there_are_pictures_enough():
    three = [read("A", 0.9), read("B", 0.9, 100), read("D", 0.9, 300)]
    assert [letter.text for letter in sequence(three, 0.5)] == ["A", "B"]
    assert [letter.text for letter in sequence(three, 0.5, pictures=4)] == ["A", "B", "D"]
    assert gaps(three) and not gaps(three[:2])


# gutters


def test_an_axis_is_no_gutter_and_a_cut_parts_its_box():
    page = np.full((100, 200), 255, np.uint8)
    page[20:80, 20:80] = page[20:80, 120:180] = 90
    gutter = Page(page).cuts((20, 20, 180, 80), 1)
    assert [(cut.start, cut.stop, cut.kind) for cut in gutter] == [(80, 120, "gutter")]
    assert parts((20, 20, 180, 80), gutter[0]) == ((20, 20, 80, 80), (120, 20, 180, 80))
    page[50, 80:120] = 0
    assert Page(page).cuts((20, 20, 180, 80), 1) == []


# the generator, and real figures


@pytest.mark.parametrize("style", STYLES)
def test_the_generator_knows_its_own_figures(style):
    made = make(4, style)
    again = make(4, style)
    assert np.array_equal(made.pixels, again.pixels) and made.caption == again.caption
    height, width = made.pixels.shape[:2]
    assert all(0 <= b[0] < b[2] <= width and 0 <= b[1] < b[3] <= height for _, b in made.panels)
    assert (len(made.panels) > 1) == (style in COMPOUND)
    letters = {letter for letter, _ in made.panels if letter}
    assert letters <= set(made.parts) or not letters
    assert all(re.match(r"\S.* shows .*\S$", made.caption[start:end]) for start, end in made.parts.values())


def test_real_figures(sample_data):
    folder = sample_data / "pmc" / "article_dirs" / "elife-46793-v1"
    if not folder.is_dir():
        pytest.skip("the sample data has no such article")
    pixels = {name: open_image((folder / name).read_bytes()).pixels for name in ("fig1.jpg", "fig9-figsupp2.jpg")}
    assert found(pixels["fig1.jpg"]) == [], "a drawing without panels, though it says Gene A and Gene B"
    assert "".join(region.label for region in found(pixels["fig9-figsupp2.jpg"])) == "AEIBFJCGKDHL"
