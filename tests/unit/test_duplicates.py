"""Duplicates: hashes find every near pair, changed pictures are confirmed, alike pictures are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import scene

from transforms.curation.duplicates import components, look, match
from transforms.curation.hashes import VIEWS, as_bits, equalised, flat, near_pairs, nearest, trimmed
from transforms.curation.pairs import table_of, written
from transforms.decoded import Pixels
from transforms.duplicates import SAME
from transforms.pictures.imagefile import phash


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out))


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "jpeg": lambda p: jpeg(p, 40),
    "smaller": lambda p: np.asarray(Image.fromarray(p).resize((100, 100), Image.Resampling.BOX)),
    "window": lambda p: np.clip((p.astype(float) - 40) * 255 / 170, 0, 255).astype(np.uint8),
    "border": lambda p: np.pad(p, ((9, 20), (14, 5)), constant_values=255),
    "flip": lambda p: np.ascontiguousarray(p[:, ::-1]),
    "crop": lambda p: p[8:136, 16:144],
    "colour": lambda p: np.stack([p] * 3, axis=-1),
    "jpeg with a border": lambda p: jpeg(np.pad(p, 12), 60),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_found_and_confirmed(change: str) -> None:
    pictures = [scene(seed) for seed in range(8)]
    changed = CHANGES[change](pictures[3])
    others = table_of(map(written, pictures))
    found = nearest(table_of([written(changed)])[:, 0], others, 14, 8)
    scores = {near.other: match(look(changed), look(pictures[near.other]), near.view).score for near in found}
    assert scores.get(3, -1.0) >= SAME
    assert all(score < SAME for other, score in scores.items() if other != 3)


def test_pictures_that_are_alike_are_not_one() -> None:
    pictures = [scene(seed) for seed in range(5)]
    coarse = [np.asarray(Image.fromarray(p).resize((8, 8), Image.Resampling.BOX)).ravel() for p in pictures]
    assert min(np.corrcoef(a, b)[0, 1] for a, b in combinations(coarse, 2)) > 0.85, "or this proves nothing"
    assert max(match(look(a), look(b)).score for a, b in combinations(pictures, 2)) < 0.45


def test_the_score_is_symmetrical_and_says_how_they_lie() -> None:
    whole, part = look(scene(1)), look(np.ascontiguousarray(scene(1)[16:144, 20:148][:, ::-1]))
    there, back = match(part, whole), match(whole, part)
    assert there == back and there.score > 0.8 and there.mirrored and there.scale == pytest.approx(0.8, abs=0.03)


def test_different_patients_in_one_view_are_told_apart(sample_data: Path) -> None:
    """Audit 2606.10066: pictures flagged by embeddings were the same view of different patients."""
    files = sorted((sample_data / "classification" / "nih_cxr64").rglob("*.png"))
    patients = {path.name.split("_")[0]: np.asarray(Image.open(path).convert("L")) for path in files}
    pictures = list(patients.values())[:40]
    looks = [look(pixels) for pixels in pictures]
    bits = table_of(map(written, pictures))
    pairs = nearest(bits[:, 0], bits, 14, 8, apart=True)
    assert len(pairs) > 40, "hashes alone do call them near"
    assert max(match(looks[n.query], looks[n.other], n.view).score for n in pairs) < SAME


def test_every_near_pair_is_found_and_no_other() -> None:
    rng = np.random.default_rng(7)
    base = rng.integers(0, 1 << 63, 60, dtype=np.uint64)
    flips = [sum(1 << int(b) for b in rng.choice(64, size, replace=False)) for size in rng.integers(0, 20, 60)]
    changed = base ^ np.array(flips, np.uint64)
    for within in (0, 3, 7, 10, 14):
        blocks = [np.stack(block, axis=1).tolist() for block in near_pairs(changed, base, within)]
        pairs = {(q, o): d for block in blocks for q, o, d in block}
        wanted = {
            (q, o): d for q in range(60) for o in range(60)
            if (d := (int(changed[q]) ^ int(base[o])).bit_count()) <= within
        }
        assert pairs == wanted
    assert list(near_pairs(base[:0], base, 3)) == []


def test_the_nearest_are_kept_and_none_is_near_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.array([[1 << n for n in range(len(VIEWS))]] * 5, np.uint64)
    whole = nearest(bits[:, 0], bits, 4, 2, apart=True)
    assert [(n.query, n.other, n.view, n.bits) for n in whole[:3]] == [(0, 1, "whole", 0), (0, 2, "whole", 0),
                                                                      (1, 0, "whole", 0)]
    monkeypatch.setattr("transforms.curation.hashes.CHUNK", 1)
    assert nearest(bits[:, 0], bits, 4, 2, apart=True) == whole, "cutting the work small changes nothing"


def test_borders_are_trimmed_windows_cancel_and_plain_pictures_say_so() -> None:
    picture = scene(2)
    noisy = np.clip(picture + np.random.default_rng(1).normal(0, 25, picture.shape), 0, 255).astype(np.uint8)
    film = np.pad(np.pad(noisy, 20, constant_values=255), 10)
    assert np.array_equal(trimmed(film), noisy), "a border within a border"
    assert trimmed(np.zeros((40, 50), np.uint8)).shape == (40, 50)
    wide = (picture.astype(int) // 2 + 10).astype(np.uint8)
    assert np.abs(equalised(wide).astype(int) - equalised(picture)).max() <= 12
    assert flat(phash(np.zeros((40, 40), np.uint8))) and flat(phash(np.full((40, 40), 90, np.uint8)))
    assert not flat(phash(picture)) and as_bits(["f" * 16])[0] == 2**64 - 1


def test_components_take_the_smallest_member() -> None:
    assert components([("c", "b"), ("d", "c"), ("x", "y")]) == {"b": "b", "c": "b", "d": "b", "x": "x", "y": "x"}
