"""Recipes: read, changed, checked, and wrong ones refused with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.recipe import find_recipe, load_recipe
from infra.errors import ConfigError

GOOD = """
name: small
vars: {DATA: null}
ingest: {max_side: 512}
sources:
  - {name: scans, use: dicom, root: pkg:pydicom/data/test_files, identifiers: public, ingest: {frames: 3}}
  - {name: more, use: images, root: "${DATA}/more", layout: imagefolder}
stages:
  - {use: ground}
  - {use: caption, captioner: template}
"""


def recipe(tmp_path: Path, text: str = GOOD) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def test_a_recipe_is_read_whole(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path))
    (scans,) = loaded.sources
    assert (scans.ingest.max_side, scans.ingest.frames, scans.terms.identifiers) == (512, 3, "public")
    assert [stage.name for stage in loaded.stages] == ["ground", "caption"]
    assert loaded.resolved()["stages"][1]["params"]["captioner"] == "template"


def test_a_source_without_its_variable_is_left_out_and_said(tmp_path: Path) -> None:
    assert load_recipe(recipe(tmp_path)).left_out == ("more: DATA not set (--set vars.DATA=…)",)
    (tmp_path / "more").mkdir()
    both = load_recipe(recipe(tmp_path), [f"vars.DATA={tmp_path}"])
    assert [s.name for s in both.sources] == ["scans", "more"] and both.left_out == ()


def test_set_changes_a_named_entry(tmp_path: Path) -> None:
    changed = load_recipe(recipe(tmp_path), ["sources.scans.policy=any", "checks.max_failed=0.1"])
    assert changed.sources[0].policy == "any" and changed.checks.max_failed == 0.1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("identifiers: public", "identifers: public", "unknown key 'identifers' .did you mean 'identifiers'"),
        ("use: ground", "use: grund", "no stage 'grund' .did you mean 'ground'"),
        ("captioner: template", "captoner: template", "unknown key 'captoner' .did you mean 'captioner'"),
        ("{frames: 3}", "{frame: 3}", "ingest.frame: unknown key .did you mean 'frames'"),
        ("name: small", "name: small\nsource: x", "source: unknown key .did you mean 'sources'"),
        ("use: dicom", "use: dicomm", "no connector 'dicomm' .did you mean 'dicom'"),
        ("{use: ground}", "{use: ground}\n  - {use: ground}", "'ground' stands twice"),
        ("name: small", "name: [", "is not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_right_word(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe(tmp_path, GOOD.replace(old, new)))


def test_set_with_a_wrong_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no 'scan' .did you mean 'scans'"):
        load_recipe(recipe(tmp_path), ["sources.scan.policy=any"])
    with pytest.raises(ConfigError, match="key=value"):
        load_recipe(recipe(tmp_path), ["nonsense"])


def test_a_missing_recipe_lists_the_bundled_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        find_recipe("dmo")
