"""Checks of a build: what is planted is found, counted and named, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from makehome import Rows, make_home

from catalog import catalog, checks
from catalog.builds import Validation, builds
from infra.errors import ConfigError

ROOT = Path(__file__).parents[2]


def validate(home: Path, warn_only: Sequence[str] = ()) -> tuple[Validation, ...]:
    with catalog.writer(home) as con:
        return checks.validate(con, home, builds(home)[-1], warn_only)


def not_met(results: Sequence[Validation]) -> dict[tuple[str, str], int]:
    return {(v.layer, v.expectation): v.unexpected for v in results if not v.success}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Validation, ...]]:
    home = make_home(tmp_path_factory.mktemp("sound"))
    return home, validate(home)


def test_a_sound_build_meets_everything(sound: tuple[Path, tuple[Validation, ...]]) -> None:
    results = sound[1]
    assert [(v.layer, v.expectation) for v in results] == [(e.layer, e.words) for e in checks.expectations()]
    assert not_met(results) == {}
    assert {v.layer for v in results} == {
        "funnel", "images", "volumes", "labels", "rois", "measures", "passages", "texts", "checks",
    }


def test_data_docs_stand_alone(sound: tuple[Path, tuple[Validation, ...]]) -> None:
    folder = sound[0] / "reports/000001/data-docs"
    pages = list(folder.rglob("*.html"))
    assert len(pages) == 1 + 9 + 9  # the index, a validation and a suite for each layer
    for page in pages:
        text = page.read_text()
        assert "Content-Security-Policy" in text and "<script" not in text
        assert not [tag for tag in text.split("<") if tag.startswith(("link", "img")) and "http" in tag]
    assert (folder / "index.html").read_text().count("<li>") == 9
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 1_000_000


def break_everything(rows: Rows) -> None:
    images, rois, texts = rows["images"], rows["rois"], rows["texts"]
    images.append(dict(images[0]))
    images[1].update(group_id=" ", modality="telepathy")
    images[2].update(width=0, sha256="ABC", licence_image=None)
    images[3].update(volume_id="nowhere")
    rows["volumes"][1].update(affine=None)
    for layer in ("labels", "passages", "checks"):
        rows[layer].append({**rows[layer][0], "sample_id": "stranger"})
    rois[8].update(box=[-1, 0, 5, 5])
    rois[10].update(box=[0, 0, 0, 5], area_fraction=1.5)
    rois[0]["mask"] = {**rois[0]["mask"], "size": [5, 5]}
    texts[0].update(text=" \n", licence=None)
    texts[1].update(evidence=[])
    texts[2].update(roi_ids=["gone", rois[0]["roi_id"]])
    texts[3].update(text="word " * 257)


def test_each_planted_fault_is_found(tmp_path: Path) -> None:
    home = make_home(tmp_path, break_everything)
    results = validate(home)
    assert not_met(results) == {
        ("images", "sample_id is unique"): 1,
        ("images", "group_id is given"): 1,
        ("images", "modality is in the vocabulary or unknown"): 1,
        ("images", "width and height are positive"): 1,
        ("images", "sha256 and pixel_sha256 are 64 hex digits"): 1,
        ("images", "the licence of the image is known"): 1,
        ("images", "every slice of a volume has its volume row"): 1,
        ("volumes", "an affine is there where the spacing is"): 1,
        ("labels", "every sample_id is in images"): 1,
        ("passages", "every sample_id is in images"): 1,
        ("checks", "every sample_id is in images"): 1,
        # one was planted; the image whose width was made 0 holds its two no more
        ("rois", "the box lies inside the image"): 3,
        ("rois", "the box is not empty"): 1,
        ("rois", "area_fraction lies between 0 and 1"): 1,
        # one was planted on the image that stands there twice; that of the image without width
        ("rois", "the mask has the size of the image"): 3,
        ("texts", "the text is not empty"): 1,
        ("texts", "the licence of the text is known"): 1,
        ("texts", "a generated text names its evidence"): 1,
        ("texts", "every region a text speaks of is in rois"): 1,
        ("texts", "a caption has at least 3 words"): 1,
        ("texts", "a caption has at most 256 words, trainers cut longer ones"): 1,
    }
    detail = next(v.detail for v in results if v.expectation == "modality is in the vocabulary or unknown")
    assert detail.startswith("1 of 13 rows (7.7%), such as telepathy of ")


def test_rows_that_vanish_are_critical(tmp_path: Path) -> None:
    results = validate(make_home(tmp_path, counts={"kept": 3, "failed": 1}))
    missing = [v for v in results if not v.success]
    assert [(v.expectation, v.critical, v.unexpected) for v in missing] == [
        ("every unit balances, rows in = kept + dropped + failed", True, 2)
    ]
    assert "photos/all/ingest, scans/all/ingest" in missing[0].detail
    lost = {"rows_in": 9, "kept": 8, "failed": 1}
    unlisted = validate(make_home(tmp_path / "unlisted", lambda rows: rows["rejects"].clear(), counts=lost))
    assert not_met(unlisted) == {("funnel", "every row that was dropped or failed is listed in rejects"): 2}


def test_quarantine_and_empty_sources_warn(tmp_path: Path) -> None:
    results = validate(make_home(tmp_path, quarantined=("photos",)))
    assert not_met(results) == {
        ("funnel", "no unit is quarantined"): 2, ("images", "every source of the recipe gave samples"): 1,
    }
    assert not any(v.critical for v in results if not v.success)


def test_a_snapshot_without_samples_is_refused(tmp_path: Path) -> None:
    def empty(rows: Rows) -> None:
        for layer in rows:
            rows[layer].clear()

    results = validate(make_home(tmp_path, empty))
    critical = [v.expectation for v in results if v.critical and not v.success]
    assert critical == ["the snapshot holds at least one sample"]
    assert next(v for v in results if v.expectation.startswith("every source")).unexpected == 2


def test_warn_only_takes_the_power_to_refuse(tmp_path: Path) -> None:
    plant: Callable[[Rows], object] = lambda rows: rows["rois"][0].update(box=[-1, 0, 5, 5])  # noqa: E731
    home = make_home(tmp_path, plant)
    found = next(v for v in validate(home, ["the box lies inside the image"]) if not v.success)
    assert (found.expectation, found.critical, found.unexpected) == ("the box lies inside the image", False, 1)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    checks.require_known(["sample_id is unique"])
    with pytest.raises(ConfigError, match=r"'sample_id unique' \(did you mean 'sample_id is unique'\?\)"):
        checks.require_known(["sample_id unique"])


def test_a_source_with_a_quote_in_its_name_is_data(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    build = builds(home)[-1].model_copy(update={"recipe": {"sources": [{"name": "it's"}, {"name": "scans"}]}})
    with catalog.writer(home) as con:
        results = checks.validate(con, home, build, ())
    assert next(v.detail for v in results if not v.success) == "1 of 2 rows (50.0%), such as it's"


def test_the_same_modalities_as_the_vocabulary() -> None:
    ours = yaml.safe_load(checks.FILE.read_text())["modalities"]
    assert ours == list(yaml.safe_load((ROOT / "transforms" / "vocabulary.yaml").read_text())["modalities"])


def test_importing_checks_is_cheap() -> None:
    heavy = {"great_expectations", "pandas", "jinja2", "duckdb"}
    code = f"import sys, catalog.checks, catalog.report, catalog.sheet; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
