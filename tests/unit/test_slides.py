"""Whole-slide images as tiles: scale, place, tissue, and what is never read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagefolders import codes, items, partitions, sample, write
from pydantic import ValidationError
from slidefiles import write_slide

from infra.errors import ConfigError, ItemError
from infra.plugins import load

openslide = pytest.importorskip("openslide", reason="slides need medloom[slides]")
slides = load("connector", "slides")
LABEL = np.tile(np.array([255, 0, 0], np.uint8), (10, 10, 1))


def slide(height: int = 300, width: int = 512) -> Any:
    """White glass, with pink tissue in the left half, darker downwards."""
    pixels = np.full((height, width, 3), 245, np.uint8)
    pixels[:, : width // 2] = (200, 90, 150)
    pixels[:, : width // 2, 1] = np.linspace(60, 120, height, dtype=np.uint8)[:, None]
    return pixels


def params(root: Path, **more: Any) -> Any:
    return slides.Params(root=str(root), **{"mpp": 0.5, "tile": 64, **more})


def test_every_tile_of_the_grid_is_kept_or_dropped(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "p1" / "a.svs", slide(), label=LABEL)
    with openslide.OpenSlide(path) as opened:
        assert list(opened.associated_images) == ["label"]  # it is there, and nothing below shows it
    found = items(params(tmp_path), slides)
    # 512 x 300 at 0.25 is 256 x 150 at 0.5: 4 x 3 tiles, two columns of them tissue
    assert Counter(codes(found).values()) == {None: 6, "NO_TISSUE": 6}
    assert {item.inside for item in found.values()} == {"p1/a.svs"}
    dropped = next(item.error for item in found.values() if item.error)
    assert isinstance(dropped, ItemError) and dropped.outcome == "dropped" and "min_tissue" in dropped.message
    first = sample(found["p1/a.svs#level1:x0:y0:span128:size64"])
    assert first.pixels.shape == (64, 64, 3) and first.columns["pixel_spacing"] == [0.0005, 0.0005]
    assert first.columns["modality"] == "SM"
    last = sample(found["p1/a.svs#level1:x128:y256:span128:size64"])
    assert last.pixels.shape == (22, 64, 3)
    assert {sample(i).group for i in found.values() if not i.error} == {first.group}
    assert len({sample(i).content for i in found.values() if not i.error}) == 1
    assert all(not (sample(i).pixels == [255, 0, 0]).all(axis=2).any() for i in found.values() if not i.error)


def test_a_tile_shows_its_place_at_the_scale_asked_for(tmp_path: Path) -> None:
    y, x = np.mgrid[:256, :512]
    pixels = np.stack([x // 4 + 60, y // 2 + 60, np.full_like(x, 20)], axis=2).astype(np.uint8)
    write_slide(tmp_path / "a.svs", pixels)
    for asked, level, span, spacing in (
        ({"mpp": 0.25}, 0, 64, 0.00025), ({"magnification": 20}, 1, 128, 0.0005), ({"level": 2}, 2, 256, 0.001),
        ({"mpp": 0.75}, 1, 192, 0.00075),
    ):
        found = items(params(tmp_path, **{"mpp": None, **asked}), slides)
        made = sample(found[f"a.svs#level{level}:x{span}:y0:span{span}:size64"])
        assert made.columns["pixel_spacing"] == pytest.approx([spacing, spacing])
        truth = pixels[: min(span, 256), span : 2 * span].mean(axis=(0, 1))
        assert np.allclose(made.pixels.mean(axis=(0, 1)), truth, atol=2), asked


def test_stride_overlaps_and_no_least_tissue_keeps_all(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", slide())
    found = items(params(tmp_path, stride=32, min_tissue=0), slides)
    assert Counter(codes(found).values()) == {None: 8 * 5}
    (part,) = partitions(params(tmp_path), slides)
    (other,) = partitions(params(tmp_path, stride=32), slides)
    assert part.key != other.key


def test_one_level_is_judged_tile_by_tile(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", slide(), levels=1)
    assert Counter(codes(items(params(tmp_path), slides)).values()) == {None: 6, "NO_TISSUE": 6}


def test_bad_slides_cost_themselves_only(tmp_path: Path) -> None:
    whole = write_slide(tmp_path / "good.svs", slide()).read_bytes()
    write_slide(tmp_path / "scaleless.svs", slide(), mpp=None, power=None)
    write_slide(tmp_path / "coarse.svs", slide(), mpp=2.0)
    (tmp_path / "cut.svs").write_bytes(whole[:3000])
    write(tmp_path / "page.svs", "<html>")
    write(tmp_path / "notes.txt", "no slide")
    torn = bytearray(whole)
    at = whole.index(b"\xff\xd8", len(whole) // 3)
    torn[at : at + 40] = bytes(40)
    (tmp_path / "torn.svs").write_bytes(torn)
    found = items(params(tmp_path, min_tissue=0), slides)
    by_slide: dict[str, Counter[Any]] = {}
    for id, code in codes(found).items():
        by_slide.setdefault(id.partition("#")[0], Counter())[code] += 1
    assert by_slide["good.svs"] == {None: 12}
    assert by_slide["scaleless.svs"] == {"SCALE_UNKNOWN": 1} and by_slide["coarse.svs"] == {"SLIDE_TOO_COARSE": 1}
    assert by_slide["page.svs"] == {"NOT_SLIDE": 1} and by_slide["notes.txt"] == {"NOT_READ": 1}
    assert set(by_slide["cut.svs"]) <= {"NOT_SLIDE", "SLIDE_DAMAGED"} and sum(by_slide["cut.svs"].values()) == 1
    assert sum(by_slide["torn.svs"].values()) == 12 and by_slide["torn.svs"][None] >= 8
    assert not any(str(tmp_path) in str(item.error) for item in found.values())


def test_a_table_says_what_a_slide_is(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", slide())
    write_slide(tmp_path / "b.svs", slide())
    write(tmp_path / "t.csv", "slide,case,diagnosis\na,7,adenoma\nb,7,\ngone,8,x\n")
    found = items(params(
        tmp_path, table="t.csv", image_column="slide", patient_column="case", label_columns=("diagnosis",), capacity=1,
    ), slides)
    assert codes(found)["gone"] == "FILE_MISSING"
    kept = {id: sample(item) for id, item in found.items() if not item.error}
    assert len({made.group for made in kept.values()}) == 1
    assert {label.name for label in kept["a.svs#level1:x0:y0:span128:size64"].labels} == {"adenoma"}


def test_a_scale_is_asked_for_once(tmp_path: Path) -> None:
    for wrong in ({"mpp": None}, {"level": 1}):
        with pytest.raises(ValidationError, match="one of mpp, magnification and level"):
            params(tmp_path, **wrong)
    with pytest.raises(ConfigError, match="no slide there"):
        partitions(params(tmp_path), slides)
