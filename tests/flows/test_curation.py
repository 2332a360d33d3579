"""Curation over a whole dataset: leaks of other people's datasets, planted and found; run inline."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scenes import scene
from test_build import run, shards

from catalog.catalog import query
from flows import build as work
from flows.recipe import load_recipe
from infra.errors import ConfigError
from infra.runner import InlineRunner
from transforms.decoded import Pixels

RECIPE = """name: curated
sources:
  - {name: first, use: images, layout: imagefolder, root: a, identifiers: public, capacity: 4,
     patient_pattern: '(patient\\d+)'}
  - {name: second, use: images, layout: imagefolder, root: b, identifiers: public,
     patient_pattern: '(patient\\d+)'}
stages:
  - use: quality
  - use: duplicates
    prefer: [first]
    neighbours: 3
  - use: contamination
    sets: [{name: vqa-rad, root: rad}]
    neighbours: 3
  - use: splits
    shares: {train: 0.6, test: 0.4}
"""
PROOF = """SELECT count(*) AS n FROM (SELECT group_id FROM images JOIN checks USING (sample_id)
  WHERE "check" = 'split/main' GROUP BY group_id HAVING count(DISTINCT detail) > 1)"""


def save(path: Path, pixels: Pixels, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)


def make(root: Path) -> Path:
    """Two sources with a copy, a changed copy, slices of one patient, a mask, and a benchmark's picture planted."""
    for number in range(4):
        save(root / "a" / "x" / f"patient{number}_1.png", scene(number))
        save(root / "a" / "x" / f"patient{number}_2.png", scene(100 + number))
        save(root / "b" / "x" / f"patient{50 + number}_1.png", scene(50 + number))
    save(root / "b" / "x" / "patient70_1.png", scene(0))
    save(root / "b" / "x" / "patient71_1.jpg", np.pad(scene(1)[6:150, 10:], 11, constant_values=255), quality=70)
    save(root / "b" / "x" / "patient72_1.png", np.where(scene(3) > 140, 255, 0).astype(np.uint8))
    save(root / "b" / "x" / "patient73_1.png", scene(200))
    save(root / "b" / "x" / "patient74_1.png", np.pad(scene(201), 9))
    save(root / "rad" / "synpic1.png", scene(200))
    save(root / "rad" / "synpic2.jpg", scene(201), quality=60)
    save(root / "rad" / "synpic3.png", scene(202))
    (root / "recipe.yaml").write_text(RECIPE)
    return root / "recipe.yaml"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("curated")
    recipe = make(root / "sources")
    _, ran = run(recipe, root / "home")
    assert ran[-3:] == ["dataset/all/duplicates", "dataset/all/contamination", "dataset/all/splits"]
    return recipe, root / "home"


def found(home: Path, like: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(item, check) -> its row, the detail read."""
    rows = query(home, f"""SELECT source_item, c.* FROM checks c JOIN images USING (sample_id)
        WHERE "check" LIKE '{like}'""").to_pylist()
    return {(Path(row["source_item"]).stem, row["check"]): row for row in rows}


def test_the_books_of_stages_over_the_whole_balance(built: tuple[Path, Path]) -> None:
    rows = query(built[1], "SELECT * FROM funnel WHERE source = 'dataset'").to_pylist()
    assert {row["stage"] for row in rows} == {"duplicates", "contamination", "splits"}
    samples = query(built[1], "SELECT count(*) AS n FROM images").to_pylist()[0]["n"]
    assert samples == 17 and all(row["rows_in"] == row["kept"] == samples and row["balanced"] for row in rows)


def test_copies_across_sources_are_found_and_other_patients_are_not(built: tuple[Path, Path]) -> None:
    exact, near = found(built[1], "duplicate/exact"), found(built[1], "duplicate/near")
    assert {item: row["verdict"] for (item, _), row in exact.items()} == {"patient0_1": "pass", "patient70_1": "fail"}
    assert {item: row["verdict"] for (item, _), row in near.items()} == {"patient1_1": "pass", "patient71_1": "fail"}
    detail = json.loads(near["patient71_1", "duplicate/near"]["detail"])
    assert detail["across"] and detail["of"] == near["patient1_1", "duplicate/near"]["sample_id"]
    kept = query(built[1], """SELECT count(*) AS n FROM images WHERE sample_id NOT IN (SELECT sample_id FROM checks
        WHERE "check" IN ('duplicate/exact', 'duplicate/near') AND verdict = 'fail')""").to_pylist()
    assert kept == [{"n": 15}]


def test_a_planted_test_image_is_caught_by_hash_and_after_jpeg_and_border(built: tuple[Path, Path]) -> None:
    """MedTrinity issue 26; audit 2606.10066: a same view of a different patient is not removed."""
    rows = found(built[1], "contamination/%")
    levels = {item: json.loads(row["detail"]) for (item, _), row in rows.items() if row["verdict"] == "fail"}
    assert {item: (d["level"], d["of"]) for item, d in levels.items()} == {
        "patient73_1": ("bytes", "synpic1.png"), "patient74_1": ("confirmed", "synpic2.jpg"),
    }


def test_a_mask_is_told_from_a_picture(built: tuple[Path, Path]) -> None:
    rows = found(built[1], "quality/grey_levels")
    assert [item for (item, _), row in rows.items() if row["verdict"] == "fail"] == ["patient72_1"]


def test_no_group_crosses_and_copies_pull_their_patients_together(built: tuple[Path, Path]) -> None:
    """BiomedParse issue 112, Open-PMC: two pictures of one patient, and one picture under two patients, on one side."""
    assert query(built[1], PROOF).to_pylist() == [{"n": 0}]
    share = {item: row["detail"] for (item, _), row in found(built[1], "split/main").items()}
    assert share["patient0_1"] == share["patient0_2"] == share["patient70_1"]
    assert share["patient1_1"] == share["patient1_2"] == share["patient71_1"]
    assert set(share.values()) == {"train", "test"} and len(share) == 17
    sets = {item: row["detail"] for (item, _), row in found(built[1], "split/main/group").items()}
    assert sets["patient0_1"] == sets["patient70_1"] != sets["patient1_1"] == sets["patient71_1"]


def test_a_second_build_does_nothing_and_growth_moves_nobody_else(built: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = make(tmp_path / "sources")
    _, home = built
    assert run(built[0], home)[1] == []
    run(recipe, tmp_path / "home")
    assert shards(tmp_path / "home") == shards(home), "the same bytes in another place"
    before = found(tmp_path / "home", "split/main")
    save(tmp_path / "sources" / "b" / "x" / "patient90_1.png", scene(90))
    _, ran = run(recipe, tmp_path / "home")
    assert [unit.partition("/")[0] for unit in ran] == ["second", "second", "dataset", "dataset", "dataset"]
    after = found(tmp_path / "home", "split/main")
    assert len(after) == 18 and all(after[name]["detail"] == row["detail"] for name, row in before.items())


def test_partitions_do_not_decide_what_is_found(built: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = make(tmp_path / "sources")
    recipe.write_text(recipe.read_text().replace("capacity: 4", "capacity: 100"))
    run(recipe, tmp_path / "home")
    sql = """SELECT sample_id, "check", value, verdict, detail FROM checks ORDER BY ALL"""
    assert query(tmp_path / "home", sql) == query(built[1], sql)


def test_another_benchmark_runs_only_what_depends_on_it(tmp_path: Path) -> None:
    recipe = make(tmp_path / "sources")
    run(recipe, tmp_path / "home")
    save(tmp_path / "sources" / "rad" / "synpic4.png", scene(50))
    assert run(recipe, tmp_path / "home")[1] == ["dataset/all/contamination"]
    rows = found(tmp_path / "home", "contamination/%")
    assert rows["patient50_1", "contamination/vqa-rad"]["verdict"] == "fail"


def test_a_quarantined_partition_is_left_out_and_the_rest_is_curated(tmp_path: Path) -> None:
    recipe = make(tmp_path / "sources")
    for path in (tmp_path / "sources" / "b" / "x").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    run(recipe, tmp_path / "home")
    rows = query(tmp_path / "home", "SELECT stage, rows_in FROM funnel WHERE source = 'dataset'").to_pylist()
    assert {row["rows_in"] for row in rows} == {8} and len(rows) == 3
    assert run(recipe, tmp_path / "home")[1] == []


def test_after_a_bug_nothing_is_run_over_a_part_of_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make(tmp_path / "sources")
    from transforms import quality

    monkeypatch.setattr(quality, "numbers", lambda pixels: 1 / 0)
    steps = load_recipe(recipe)
    plan = work.prepare(steps, tmp_path / "home")
    progress = work.Progress(plan.todo)
    with InlineRunner() as runner:
        work.run_chains(plan.chains, steps, tmp_path / "home", runner, progress)
    assert progress.done == progress.todo and progress.skipped >= 3
    assert not (tmp_path / "home" / "manifests" / "dataset").exists()
    with pytest.raises(work.BuildError, match="ZeroDivisionError"):
        work.commit(plan, progress, steps, tmp_path / "home")


def test_a_source_may_not_take_the_name_of_the_whole(tmp_path: Path) -> None:
    recipe = make(tmp_path / "sources")
    recipe.write_text(recipe.read_text().replace("name: second", "name: dataset"))
    with pytest.raises(ConfigError, match="may not be called 'dataset'"):
        run(recipe, tmp_path / "home")


def test_plain_pictures_join_nobody(tmp_path: Path) -> None:
    recipe = make(tmp_path / "sources")
    black = io.BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(black, "PNG")
    for name in ("a/x/patient2_9.png", "a/x/patient3_9.png", "b/x/patient52_9.png"):
        (tmp_path / "sources" / name).write_bytes(black.getvalue())
    run(recipe, tmp_path / "home")
    sets = found(tmp_path / "home", "split/main/group")
    assert len({sets[f"patient{n}_9", "split/main/group"]["detail"] for n in (2, 3, 52)}) == 3
    assert sum(row["verdict"] == "fail" for row in found(tmp_path / "home", "duplicate/exact").values()) == 3


def test_a_source_that_has_a_split_keeps_it_but_for_pictures_that_stand_on_both_sides(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / "a" / ("train" if number < 4 else "test") / "x" / f"patient{number}_1.png", scene(number))
    save(tmp_path / "a" / "train" / "x" / "patient9_1.png", scene(5))  # the source's own leak: patient 5 in train
    (tmp_path / "recipe.yaml").write_text(
        "name: kept\nsources:\n  - {name: own, use: images, layout: imagefolder, root: a, identifiers: public,\n"
        "     splits: [train, test], patient_pattern: '(patient\\d+)'}\nstages:\n  - {use: duplicates}\n"
        "  - {use: splits, shares: {train: 0, test: 1}, keep: true}\n"
    )
    run(tmp_path / "recipe.yaml", tmp_path / "home")
    found = query(tmp_path / "home", "SELECT source_item, detail, value FROM images JOIN checks USING (sample_id) "
                  "WHERE \"check\" = 'split/main' ORDER BY 1").to_pylist()
    sides = {Path(row["source_item"]).stem: row["detail"] for row in found}
    assert sides == {**{f"patient{n}_1": "train" for n in range(4)}, "patient4_1": "test", "patient5_1": "test",
                     "patient9_1": "test"}
    assert {row["value"] for row in found} == {None}
