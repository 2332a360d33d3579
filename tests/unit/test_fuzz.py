"""Fuzzing in small: some hundred inputs for every target, always the same ones, and every find of the past again.

More: python tests/fuzz/run.py TARGET --runs 100000 --seed 7
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicomfiles import decoded, image, samples, volumes
from fuzz import run
from fuzz.mutate import changed
from fuzz.targets import TARGETS

HERE = Path(run.__file__).parent
CASES = sorted(path for path in (HERE / "cases").glob("*/*"))
RUNS = {
    "dicom": 200, "series": 25, "nifti": 250, "labels": 200, "image": 1000, "mask": 500, "archive": 2000, "jats": 800,
}


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_read(target: str) -> None:
    seeds = TARGETS[target].seeds()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = [name for name, data in seeds.items() if TARGETS[target].check(data)]
    assert len(read) > len(seeds) / 2, f"only {read} are read: fuzzing would not get far"


@pytest.mark.parametrize("target", TARGETS)
def test_any_bytes_are_read_or_refused(target: str, tmp_path: Path) -> None:
    arguments = [target, "--runs", str(RUNS[target]), "--seed", "1", "--keep", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(HERE / "run.py"), *arguments], cwd=HERE.parents[1], capture_output=True, text=True,
        errors="replace", env={**os.environ, "PYTHONHASHSEED": "0"}, timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{RUNS[target]} inputs in" in done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_finds_stay_mended(case: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TARGETS[case.parent.name].check(case.read_bytes())


def test_slices_with_a_palette_are_pictures_and_no_scan() -> None:
    grey = (np.arange(256, dtype=np.uint16) * 257).tobytes()
    tables: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{colour}PaletteColorLookupTableData"] = grey
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    made = decoded(*(image(n, pixels, PhotometricInterpretation="PALETTE COLOR", **tables) for n in range(5)))
    assert [one.pixels.shape for one in samples(made)] == [(6, 8, 3)] * 5 and not volumes(made)


def test_changes_are_the_same_for_the_same_seed() -> None:
    for target in TARGETS.values():
        for data in target.seeds().values():
            one, other = (changed(data, random.Random(5), run.MOST_BYTES) for _ in range(2))
            assert one == other and len(one) <= run.MOST_BYTES
