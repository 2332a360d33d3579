"""Quality: numbers with a meaning, masks told from pictures, known issues with their words."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sources import picture

from catalog.schema import LAYERS
from infra.errors import ConfigError
from transforms.curation.hashes import VIEWS
from transforms.curation.quality import covered, numbers
from transforms.decoded import Pixels
from transforms.quality import Params, make_stage
from transforms.stage import Context, fingerprint


def checks(pixels: Pixels, rois: pa.Table | None = None, **params: Any) -> dict[str, dict[str, Any]]:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    row = {
        "sample_id": "s", "image": {"bytes": out.getvalue(), "path": "s.png"}, "width": pixels.shape[1],
        "height": pixels.shape[0], "source": "a", "source_item": "x/1.png", "group_id": "g", "sha256": "0",
        "pixel_sha256": "0",
    }
    tables = {"images": LAYERS["images"].table([row]), "rois": rois or LAYERS["rois"].table([])}
    made = make_stage(Params(**params), Context(Path()))(tables, None)
    assert made.kept == ["s"]
    return {check["check"]: check for check in made.tables["checks"].to_pylist()}


def test_a_mask_handed_out_as_a_picture_is_flagged() -> None:
    """SAM-Med2D issue 63: at most 3 grey levels."""
    mask = np.zeros((64, 64), np.uint8)
    mask[10:30, 10:40], mask[40:50, 20:30] = 255, 128
    found = checks(mask)["quality/grey_levels"]
    assert (found["value"], found["verdict"]) == (3, "fail")
    assert checks(np.stack([mask] * 3, axis=-1))["quality/grey_levels"]["verdict"] == "fail"
    assert checks(picture(1))["quality/grey_levels"]["verdict"] == "pass"


def test_numbers_follow_what_is_done_to_a_picture() -> None:
    sharp = picture(3, 128)
    blurred = np.asarray(Image.fromarray(sharp).resize((32, 32), Image.Resampling.BOX).resize((128, 128)))
    assert numbers(blurred).sharpness < numbers(sharp).sharpness / 10
    assert numbers(sharp // 2 + 60).contrast == pytest.approx(numbers(sharp).contrast / 2, abs=3)
    noise = np.random.default_rng(1).integers(0, 256, (128, 128), dtype=np.uint8)
    padded = numbers(np.pad(noise, 32, constant_values=255))
    assert padded.border == pytest.approx(1 - (128 / 192) ** 2, abs=1e-3)
    assert padded.contrast == numbers(noise).contrast, "a border is no contrast"
    one = numbers(np.zeros((1, 1), np.uint8))
    assert (one.sharpness, one.contrast, one.grey_levels, one.border) == (0, 0, 1, 0)


def test_text_area_counts_overlap_once_and_is_silent_where_nobody_looked() -> None:
    assert covered([(0, 0, 10, 10), (5, 0, 15, 10), (-3, -3, 2, 2)], 100, 10) == 0.15
    assert "quality/text_area" not in checks(picture(1))


def test_known_issues_stand_with_the_sample_and_enter_the_key(tmp_path: Path) -> None:
    listed = tmp_path / "issues.csv"
    listed.write_text("item,issue\nx/1.png,wrong label\nx/1.png,duplicated\nother.png,missing\n")
    found = checks(picture(1), known_issues=str(listed))["known_issue"]
    assert (found["verdict"], found["detail"]) == ("fail", "duplicated; wrong label")
    assert "known_issue" not in checks(picture(1))
    before = fingerprint(make_stage(Params(known_issues=str(listed)), Context(Path())))
    listed.write_text("item,issue\nx/1.png,wrong label\n")
    assert fingerprint(make_stage(Params(known_issues=str(listed)), Context(Path()))) != before
    listed.write_text("id,what\n")
    with pytest.raises(ConfigError, match="lacks the columns"):
        make_stage(Params(known_issues=str(listed)), Context(Path()))


def test_the_hashes_are_written_for_those_who_look_later() -> None:
    found = checks(picture(1))["signature/views"]["detail"].split(" ")
    assert len(found) == len(VIEWS) and all(len(code) == 16 for code in found)
    assert "signature/views" not in checks(picture(1), signatures=False)
