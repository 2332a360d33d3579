"""The benchmark of the chain in a small form: both sides show the same pixels; speed and memory are not absurd."""

from __future__ import annotations

from pathlib import Path

import pytest
from chain import memory, speed


@pytest.mark.long
def test_chain_shows_the_pixels_of_the_bare_pool_and_keeps_up(tmp_path: Path) -> None:
    ratio = speed(tmp_path, images=200, side=512, syntaxes=["plain", "rle", "plain", "j2k"], rounds=3)
    assert ratio > 0.4  # the goal needs 2,000 images and a quiet machine; this catches what halves the speed


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    assert memory(tmp_path, images=2000, side=256, syntaxes=["plain", "rle"]) < 1.15
