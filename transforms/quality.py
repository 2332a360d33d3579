"""Stage: how usable each sample is, as numbers that queries filter by; and what is known to be wrong with it.

The invariant: nothing is dropped, and the numbers of a sample come from its own pixels and regions.

    - use: quality
      known_issues: issues.csv      # item,issue: what a source or a user found; by source_item, sample_id or SHA-256

Rows of `checks`, one each a sample (transforms/curation/quality.py says what they mean):

    quality/sharpness, quality/contrast, quality/border   a value, verdict pass: whoever asks sets the threshold
    quality/grey_levels   fail at 3 or less: a mask or a drawing handed out as a picture
    quality/text_area     share under regions of role `text`; no row where no stage or source marked any: not known
    known_issue           fail, the issue as detail; only where one is listed
    signature/views       hashes of the picture and its parts, for the stages duplicates and contamination

    SELECT * FROM images WHERE sample_id NOT IN
      (SELECT sample_id FROM checks WHERE ("check" = 'quality/grey_levels' OR "check" = 'known_issue')
       AND verdict = 'fail')
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import ConfigError
from infra.keys import key
from infra.storage import resolve
from transforms.curation.pairs import SIGNATURE, written
from transforms.curation.quality import MASK_LEVELS, covered, numbers
from transforms.stage import Context, Rows, SampleRows, Stage, each_sample

NAME = "quality"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}


class Params(BaseModel):
    """What a recipe may set for the quality stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    known_issues: str | None = Field(
        None, exclude=True, description="CSV with the columns item and issue; its contents enter the key"
    )
    signatures: bool = Field(True, description="write the hashes that duplicates and contamination look by")


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError for a list of issues that is not one."""
    issues = _issues(params.known_issues) if params.known_issues else {}
    return each_sample(
        NAME, VERSION, reads=("images", "rois"), writes=("checks",), row=partial(_judged, params.signatures, issues),
        params=params, ingredients={"known_issues": key(sorted(issues.items()))} if issues else {},
    )


def _issues(place: str) -> dict[str, str]:
    """Item -> its issues, joined."""
    path = resolve(place)
    if not path.is_file():
        raise ConfigError(f"known_issues: there is no file {path}")
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not {"item", "issue"} <= set(reader.fieldnames or ()):
            raise ConfigError(f"known_issues: {path} lacks the columns item and issue; it has {reader.fieldnames}")
        found: dict[str, list[str]] = {}
        for row in reader:
            found.setdefault(row["item"].strip(), []).append(row["issue"].strip())
    return {item: "; ".join(sorted(set(issues))) for item, issues in found.items()}


def _judged(signatures: bool, issues: Mapping[str, str], sample: SampleRows, state: None) -> Rows:
    image = sample.image
    found = asdict(numbers(sample.pixels()))
    mask = found["grey_levels"] <= MASK_LEVELS
    checks = [
        _check(f"quality/{name}", float(value), "fail" if name == "grey_levels" and mask else "pass")
        for name, value in found.items()
    ]
    if words := [roi["box"] for roi in sample.rows("rois") if roi["role"] == "text"]:
        checks.append(_check("quality/text_area", covered(words, image["width"], image["height"]), "pass"))
    named = [issues[image[name]] for name in ("source_item", "sample_id", "sha256") if image.get(name) in issues]
    if named:
        checks.append(_check("known_issue", None, "fail", "; ".join(dict.fromkeys(named))))
    if signatures:
        checks.append(_check(SIGNATURE, None, "pass", written(sample.pixels())))
    return {"checks": checks}


def _check(name: str, value: float | None, verdict: str, detail: str | None = None) -> dict[str, Any]:
    return {"text_id": "", "check": name, "version": VERSION, "value": value, "verdict": verdict, "detail": detail}
