"""An item that takes its process with it twice is left out; the others of its partition are kept; and it stays so."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sources import make_images

from catalog.catalog import query
from flows import build as work
from flows.recipe import load_recipe
from infra.attempts import DEATHS, died, recorded
from infra.errors import Transient

ROOT = Path(__file__).parents[2]


def die_at(home: Path, items: list[str]) -> None:
    """A process that is killed with these items under way."""
    code = (
        "import os, signal, sys\nfrom contextlib import ExitStack\nfrom pathlib import Path\n"
        "from infra.attempts import recorded\n"
        "with recorded(Path(sys.argv[1]), 'unit') as attempts, ExitStack() as stack:\n"
        "    for item in sys.argv[2:]: stack.enter_context(attempts.at(item))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(home), *items], cwd=ROOT)
    assert done.returncode == -9


def test_an_item_is_given_up_after_two_deaths_and_the_record_goes_when_the_unit_is_done(tmp_path: Path) -> None:
    for _ in range(DEATHS):
        die_at(tmp_path, ["poison"])
    with recorded(tmp_path, "unit") as attempts:
        with pytest.raises(Transient, match=r"KILLED_WORKER.*died 2 times.*--retry-failed"), attempts.at("poison"):
            raise AssertionError("never tried")
        with attempts.at("good"):
            pass
        assert list((tmp_path / "cache" / "attempts").glob("unit.json"))
    assert not list((tmp_path / "cache" / "attempts").iterdir())


def test_a_process_that_was_killed_for_other_reasons_counts_for_nothing(tmp_path: Path) -> None:
    token = died.set(False)  # the runner says: the driver was killed, or the node was lost
    try:
        for _ in range(3):
            die_at(tmp_path, ["innocent"])
            with recorded(tmp_path, "unit") as attempts, attempts.at("innocent"):
                pass
    finally:
        died.reset(token)


def test_items_under_way_together_are_suspects_and_tried_alone(tmp_path: Path) -> None:
    (tmp_path / "cache" / "attempts").mkdir(parents=True)
    die_at(tmp_path, ["a", "b"])
    with recorded(tmp_path, "unit") as attempts:
        assert attempts.killed("a") is None and attempts.killed("b") is None
        together, seen = threading.Barrier(3, timeout=20), []

        def work_on(item: str) -> None:
            together.wait()
            with attempts.at(item):
                seen.append(("in", item))
                time.sleep(0.05)
                seen.append(("out", item))

        threads = [threading.Thread(target=work_on, args=(item,)) for item in ("a", "b", "c")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        for item in ("a", "b"):
            place = seen.index(("in", item))
            assert seen[place + 1] == ("out", item), f"a suspect was not alone: {seen}"


def test_an_error_that_is_no_death_leaves_no_note(tmp_path: Path) -> None:
    with pytest.raises(ValueError), recorded(tmp_path, "unit") as attempts, attempts.at("x"):
        raise ValueError
    assert not list((tmp_path / "cache" / "attempts").iterdir())


def poisoned(tmp_path: Path) -> tuple[Path, Path]:
    """A recipe over ten images, and a home."""
    make_images(tmp_path / "images", 10)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""
name: poison
sources:
  - {{name: pictures, use: images, layout: imagefolder, root: {tmp_path}/images, modality: XC, identifiers: public}}
stages:
  - {{use: quality}}
""")
    return recipe, tmp_path / "home"


def build(recipe: Path, home: Path, runner: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "poisonedbuild.py"), str(recipe), str(home), runner],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200,
    )


def only_the_poison_is_missing(recipe: Path, home: Path) -> None:
    rejects = query(home, "SELECT stage, item, code, retryable FROM rejects").to_pylist()
    (poison,) = query(home, "SELECT sample_id FROM images WHERE source_item LIKE '%image0005%'").to_pylist()
    assert rejects == [
        {"stage": "quality", "item": poison["sample_id"], "code": "KILLED_WORKER", "retryable": True}
    ]
    assert query(home, "SELECT count(DISTINCT sample_id) AS n FROM checks").to_pylist() == [{"n": 9}]
    assert work.prepare(load_recipe(recipe), home).todo == 0, "a rerun does not flip it"
    assert not list((home / "cache" / "attempts").iterdir())


def test_a_stage_that_kills_the_one_process_costs_one_sample(tmp_path: Path) -> None:
    recipe, home = poisoned(tmp_path)
    done = [build(recipe, home, "inline") for _ in range(3)]
    assert [d.returncode for d in done] == [-9, -9, 0], done[-1].stderr
    only_the_poison_is_missing(recipe, home)


def test_a_stage_that_kills_ray_workers_costs_one_sample_in_one_run(tmp_path: Path) -> None:
    recipe, home = poisoned(tmp_path)
    done = build(recipe, home, "ray")
    assert done.returncode == 0, done.stderr
    only_the_poison_is_missing(recipe, home)
