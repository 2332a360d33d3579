"""Stage: what kind of picture each figure or panel is, as scores that queries filter by.

The invariant: nothing is dropped, and the scores of a picture come from its pixels alone. A picture that the stage
looks at gets one check for each class whose score is at least 0.01: `image_type/CLASS`, its score as value, verdict
"pass" for the best class and "fail" for the others, the classifier as version, the class's group as detail.

    - use: image_type
      which: articles
      classifier: look

    SELECT sample_id FROM checks WHERE "check" = 'image_type/ct' AND value > 0.8
    SELECT sample_id FROM checks WHERE "check" LIKE 'image_type/%' AND verdict = 'pass' AND detail = 'microscopy'

Classes and groups stand in `transforms/classifiers/classes.yaml`. A classifier is a module of `transforms/classifiers`
with NAME, VERSION, REQUIRES, Params and `open_classifier(params, context) -> Classify` (see `classes.py`), opened once
per worker. It may have `ingredients(params) -> Mapping[str, str]`, hashes of its weights and the like, and
`resources(params) -> Resources`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.keys import key
from infra.plugins import load
from transforms.classifiers.classes import FILE as CLASSES
from transforms.classifiers.classes import Classify, table
from transforms.options import checked
from transforms.stage import Context, Rows, SampleRows, Stage, each_sample

NAME = "image_type"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}
LEAST = 0.01
"""Scores below this are not written."""


class Params(BaseModel):
    """What a recipe may set for the image_type stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    which: Literal["articles", "all"] = Field(
        "articles", description="articles: figures of publications and panels cut from them; all: every sample"
    )
    classifier: str = Field("look", description="name of the classifier plug-in")
    options: Mapping[str, Any] = Field(
        default_factory=dict, exclude=True, description="the classifier's own parameters; they enter the key as the "
        "classifier declares them",
    )


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError for an unknown classifier or options that it does not take."""
    classifier = load("classifier", params.classifier)
    options = checked("classifier", classifier, params.options)
    identity = f"{classifier.NAME}@{classifier.VERSION}"
    more = getattr(classifier, "ingredients", None)
    needs = getattr(classifier, "resources", None)
    return each_sample(
        NAME, VERSION, reads=("images",), writes=("checks",), row=partial(_typed, params.which, identity),
        params=params,
        ingredients={
            "classes": key(CLASSES.read_text(encoding="utf-8")),
            "classifier": identity,
            "options": key(options.model_dump(mode="json")),
            **(more(options) if more else {}),
        },
        resources=needs(options) if needs else None,
        open=partial(classifier.open_classifier, options, context),
    )


def _typed(which: str, version: str, sample: SampleRows, classify: Classify) -> Rows:
    if which == "articles" and sample.image.get("article_id") is None:
        return {}
    # no more digits than processors agree on
    scores = {code: round(score, 4) for code, score in classify(sample.pixels()).items()}
    best = max(scores, key=lambda code: scores[code])
    return {"checks": [
        {
            "text_id": "", "check": f"image_type/{code}", "version": version, "value": score,
            "verdict": "pass" if code == best else "fail", "detail": table()[code].group,
        }
        for code, score in scores.items() if score >= LEAST
    ]}
