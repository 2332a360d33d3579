"""A build over every kind of source: whole, conserved, incremental, the same bytes everywhere; run inline."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from sources import encoded, make_all, make_dicom, picture, truncate

from catalog.builds import Build, last_snapshot
from catalog.catalog import query, rebuild
from catalog.verify import manifests, problems
from flows import build as work
from flows.plan import locate
from flows.recipe import load_recipe
from infra.errors import ConfigError
from infra.runner import InlineRunner


def run(recipe: Path, home: Path, changes: tuple[str, ...] = (), retry_failed: bool = False) -> tuple[Build, list[str]]:
    """Build inline; returns the build and the units that ran, as SOURCE/PARTITION/STAGE."""
    steps = load_recipe(recipe, changes)
    plan = work.prepare(steps, home, retry_failed)
    progress = work.Progress(plan.todo)
    with InlineRunner() as runner:
        for group in work.groups(plan):
            work.run_chains(group, steps, home, runner, progress)
    ran = [f"{c.partition.source}/{c.partition.name}/{u.stage}" for c in plan.chains for u in c.todo]
    return work.commit(plan, progress, steps, home), ran


def shards(home: Path) -> dict[str, str]:
    """Path of every shard -> its hash."""
    found = {str(p.relative_to(home)): p for p in (home / "shards").rglob("*") if p.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, home) of a build that nobody may change."""
    root = tmp_path_factory.mktemp("built")
    recipe = make_all(root / "sources")
    run(recipe, root / "home")
    return recipe, root / "home"


def copied(built: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same sources and home elsewhere, free to change."""
    recipe, home = built
    shutil.copytree(recipe.parent, tmp_path / "sources")
    shutil.copytree(home, tmp_path / "home")
    text = recipe.read_text().replace(str(recipe.parent), str(tmp_path / "sources"))
    (tmp_path / "sources" / "recipe.yaml").write_text(text)
    return tmp_path / "sources" / "recipe.yaml", tmp_path / "home"


def test_every_source_gives_samples_with_texts_and_the_funnel_balances(built: tuple[Path, Path]) -> None:
    _, home = built
    rows = query(home, "SELECT * FROM funnel").to_pylist()
    assert {r["source"] for r in rows} == {"pictures", "series", "volumes", "articles"}
    assert all(r["balanced"] and r["rows_in"] == r["kept"] + r["dropped"] + r["failed"] for r in rows)
    ingest = {r["source"]: r["kept"] for r in rows if r["stage"] == "ingest"}
    assert ingest == {"pictures": 30, "series": 8, "volumes": 3, "articles": 6}
    silent = query(home, "SELECT count(*) AS n FROM images WHERE sample_id NOT IN (SELECT sample_id FROM texts)")
    assert silent.to_pylist() == [{"n": 0}]


def test_facts_labels_regions_and_evidence_are_in_sql(built: tuple[Path, Path]) -> None:
    _, home = built
    assert query(home, "SELECT count(*) AS n FROM labels WHERE name = 'sick'").to_pylist() == [{"n": 10}]
    liver = query(home, "SELECT DISTINCT role, origin, trust FROM rois WHERE label = 'liver'").to_pylist()
    assert liver == [{"role": "organ", "origin": "given", "trust": "boundary"}]
    loose = """SELECT count(*) AS n FROM (SELECT sample_id, unnest(evidence) AS e FROM texts) WHERE e LIKE 'roi:%'
               AND substr(e, 5) NOT IN (SELECT roi_id FROM rois)"""
    assert query(home, loose).to_pylist() == [{"n": 0}]
    assert query(home, "SELECT DISTINCT title FROM articles ORDER BY 1").num_rows == 3


def test_no_identifier_reached_any_file(built: tuple[Path, Path]) -> None:
    _, home = built
    for path in home.rglob("*"):
        if path.is_file():
            assert b"PLANTED-4711" not in path.read_bytes() and b"Doe^Planted" not in path.read_bytes(), path


def test_file_names_of_private_sources_stay_private_and_can_be_located(tmp_path: Path) -> None:
    make_dicom(tmp_path / "src" / "Doe_Jane")
    truncate(tmp_path / "src" / "Doe_Jane" / "slice03.dcm")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: r\nsources: [{{name: s, use: dicom, root: {tmp_path}/src}}]\n")
    run(recipe, tmp_path / "home")
    for path in (p for p in (tmp_path / "home").rglob("*") if p.is_file() and p.parent.name != "secrets"):
        assert b"Doe_Jane" not in path.read_bytes(), path
    (reject,) = query(tmp_path / "home", "SELECT item FROM rejects").to_pylist()
    (found,) = locate(str(recipe), reject["item"], tmp_path / "home", [])
    assert "Doe_Jane/slice03.dcm" in found


def test_verify_finds_nothing_and_then_the_byte_that_was_changed(built: tuple[Path, Path], tmp_path: Path) -> None:
    _, home = copied(built, tmp_path)
    assert [p for m in manifests(home) for p in problems(home, m)] == []
    shard = next((home / "shards" / "images").rglob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    (wrong,) = [p for m in manifests(home) for p in problems(home, m)]
    assert shard.name in wrong and "its bytes have changed" in wrong


def test_a_second_build_does_nothing(built: tuple[Path, Path]) -> None:
    recipe, home = built
    before = shards(home)
    same, ran = run(recipe, home)
    assert ran == [] and same.number == 1 and shards(home) == before


def test_one_more_file_builds_only_its_partition(built: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, home = copied(built, tmp_path)
    (recipe.parent / "images" / "sick" / "new.png").write_bytes(encoded(picture(4711)))
    made, ran = run(recipe, home)
    touched = {unit.rpartition("/")[0] for unit in ran}
    # a full partition is split in two; all others stand
    assert made.number == 2 and 1 <= len(touched) <= 2 and all(t.startswith("pictures/") for t in touched)
    assert query(home, "SELECT count(*) AS n FROM images WHERE source = 'pictures'").to_pylist() == [{"n": 31}]
    assert query(home, "SELECT count(*) AS n FROM images WHERE source = 'pictures'", at=1).to_pylist() == [{"n": 30}]


def test_two_homes_and_two_places_give_the_same_bytes(built: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, home = built
    shutil.copytree(recipe.parent, tmp_path / "elsewhere")
    text = recipe.read_text().replace(str(recipe.parent), str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere" / "recipe.yaml").write_text(text)
    run(tmp_path / "elsewhere" / "recipe.yaml", tmp_path / "other-home")
    assert shards(tmp_path / "other-home") == shards(home)


@pytest.mark.parametrize(
    ("victim", "source", "kept"),
    [
        ("images/sick/image0003.png", "pictures", 29),
        ("dicom/slice03.dcm", "series", 7),
        ("nifti/imagesTr/case1.nii.gz", "volumes", 2),
        ("nifti/labelsTr/case1.nii.gz", "volumes", 2),
        ("pmc/PMC1001/fig2.png", "articles", 5),
    ],
)
def test_an_unreadable_file_costs_itself(
    built: tuple[Path, Path], tmp_path: Path, victim: str, source: str, kept: int
) -> None:
    recipe, home = copied(built, tmp_path)
    truncate(recipe.parent / victim)
    run(recipe, home)
    (row,) = query(home, f"SELECT * FROM funnel WHERE stage = 'ingest' AND source = '{source}'").to_pylist()
    assert (row["kept"], row["dropped"] + row["failed"]) == (kept, 1)
    (reject,) = query(home, f"SELECT * FROM rejects WHERE source = '{source}'").to_pylist()
    assert reject["outcome"] == "failed" and reject["code"].isupper() and reject["message"]
    others = query(home, f"SELECT count(*) AS n FROM rejects WHERE source <> '{source}'").to_pylist()
    assert others == [{"n": 0}]


def test_a_partition_that_mostly_fails_is_quarantined_and_seen(built: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, home = copied(built, tmp_path)
    truncate(recipe.parent / "nifti/imagesTr/case1.nii.gz")
    made, _ = run(recipe, home)
    (row,) = query(home, "SELECT * FROM funnel WHERE stage = 'ingest' AND source = 'volumes'").to_pylist()
    assert row["quarantined"] == 1 and made.status == "snapshot"
    assert query(home, "SELECT count(*) AS n FROM rejects WHERE source = 'volumes'").to_pylist() == [{"n": 1}]


def test_the_catalog_is_made_again_from_the_files(built: tuple[Path, Path], tmp_path: Path) -> None:
    _, home = copied(built, tmp_path)
    tables = ("images", "rois", "texts", "checks", "rejects", "funnel", "validations")
    before = {t: query(home, f"SELECT * FROM {t} ORDER BY ALL") for t in tables}
    (home / "catalog.duckdb").unlink()
    (home / "catalog.ro.duckdb").unlink()
    rebuild(home)
    assert {t: query(home, f"SELECT * FROM {t} ORDER BY ALL") for t in tables} == before


def test_a_bug_in_a_stage_stops_its_partition_and_the_snapshot(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _ = built
    from transforms.experts import foreground

    monkeypatch.setattr(foreground, "find", lambda *_: 1 / 0)
    with pytest.raises(work.BuildError, match="ZeroDivisionError"):
        run(recipe, tmp_path / "home")
    assert last_snapshot(tmp_path / "home") is None
    monkeypatch.undo()
    _, ran = run(recipe, tmp_path / "home")
    assert ran and not any(unit.endswith("/ingest") for unit in ran), "what stood was not built again"


def test_a_build_that_breaks_a_critical_expectation_is_no_snapshot(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, home = copied(built, tmp_path)
    (recipe.parent / "images" / "sick" / "new.png").write_bytes(encoded(picture(4711)))
    from transforms.captioners import template

    honest = template.text_row
    monkeypatch.setattr(template, "text_row", lambda *given: {**honest(*given), "evidence": []})
    with pytest.raises(work.BuildError, match=r"build 2 is no snapshot.*evidence"):
        run(recipe, home)
    assert last_snapshot(home).number == 1
    assert query(home, "SELECT count(*) AS n FROM images WHERE source = 'pictures'").to_pylist() == [{"n": 30}]
    failed = query(home, "SELECT layer FROM validations WHERE build = 2 AND critical AND NOT success").to_pylist()
    assert failed == [{"layer": "texts"}] and (home / "reports" / "000002" / "index.html").exists()


def test_a_home_belongs_to_one_recipe(built: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, home = built
    other = tmp_path / "other.yaml"
    other.write_text(recipe.read_text().replace("name: generated", "name: other"))
    with pytest.raises(ConfigError, match="holds the dataset 'generated'"):
        run(other, home)


def test_what_failed_in_passing_is_tried_again_on_request(built: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, _ = copied(built, tmp_path)
    steps = load_recipe(recipe)
    plan = work.prepare(steps, tmp_path / "fresh")
    victim = recipe.parent / "pmc" / "PMC1001" / "fig2.png"
    whole = victim.read_bytes()
    victim.write_bytes(encoded(picture(1)))  # changes between listing and reading
    progress = work.Progress(plan.todo)
    with InlineRunner() as runner:
        for group in work.groups(plan):
            work.run_chains(group, steps, tmp_path / "fresh", runner, progress)
    victim.write_bytes(whole)
    work.commit(plan, progress, steps, tmp_path / "fresh")
    (reject,) = query(tmp_path / "fresh", "SELECT code, retryable FROM rejects").to_pylist()
    assert reject == {"code": "SOURCE_CHANGED", "retryable": True}
    assert run(recipe, tmp_path / "fresh")[1] == []
    made, ran = run(recipe, tmp_path / "fresh", retry_failed=True)
    assert made.number == 2 and len(ran) == 10
    assert query(tmp_path / "fresh", "SELECT count(*) AS n FROM rejects").to_pylist() == [{"n": 0}]
    old = json.loads((tmp_path / "fresh" / "builds" / "000001.json").read_text())
    assert query(tmp_path / "fresh", "SELECT count(*) AS n FROM rejects", at=old["number"]).to_pylist() == [{"n": 1}]
