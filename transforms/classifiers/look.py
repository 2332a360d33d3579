"""Classifier: kinds of picture from how they look: hand-made features, a logistic regression, no model to fetch.

The invariant: it gives scores to the classes of `look.yaml` alone, the ones there were real pictures to learn from. It
cannot say nuclear, endoscopy, fundus, electron_microscopy or other: such a picture gets the class it resembles most.
`features.py` has the features; the coefficients are made by `tests/benchmarks/imagetype.py --write`.

Measured on 663 real pictures, each of a whole source (patient, article, collection) that its fold had not seen: the
class is right for 70 %, the group (clinical imaging, microscopy, plots and charts …) for 92 %; 90 % of the classes are
right where the score is 0.8 or more, which holds for 40 % of the pictures. Good at: plot, ultrasound, light_microscopy,
ct (recall 0.87 to 0.94). Weak at: mr against ct (mr 0.66), gel (0.44, from three articles), photo (five pictures, none
clinical) and xray (0.29: most are of one collection, and without it two radiographs are left to learn from). A compound
figure gets a mixed answer, and a dark one is often called a gel: cut figures into panels first.

>>> classify = open_classifier(Params(), context)
>>> max((scores := classify(pixels)), key=scores.get)
'plot'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict

from infra.keys import key
from transforms.classifiers.classes import Classify
from transforms.classifiers.features import features, names
from transforms.decoded import Pixels
from transforms.stage import Context

NAME = "look"
VERSION = "1"
REQUIRES: Mapping[str, str] = {"scipy": "scipy"}
FILE = Path(__file__).with_name("look.yaml")
DIGITS = 4
"""Decimals of a score: more would only tell processors apart."""


class Params(BaseModel):
    """There is nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def ingredients(params: Params) -> Mapping[str, str]:
    """The hash of the coefficients."""
    return {"coefficients": key(FILE.read_text(encoding="utf-8"))}


def open_classifier(params: Params, context: Context) -> Classify:
    """Reads the coefficients; the classifier takes about 25 ms a picture on one core."""
    return _coefficients().scores


@dataclass(frozen=True)
class Coefficients:
    """A multinomial logistic regression on standard scores of features, which are clipped first."""

    classes: tuple[str, ...]
    clip: float
    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    """(classes, features)"""
    bias: npt.NDArray[np.float64]

    def scores(self, pixels: Pixels) -> Mapping[str, float]:
        """Class -> score, 0 to 1, summing to 1 but for rounding."""
        standard = np.clip((features(pixels) - self.mean) / self.scale, -self.clip, self.clip)
        logits = self.weights @ standard + self.bias
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        return {code: round(float(share), DIGITS) for code, share in zip(self.classes, shares, strict=True)}


@cache
def _coefficients() -> Coefficients:
    stored: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    if tuple(stored["features"]) != names():
        raise ValueError(f"{FILE.name} was made for other features; run tests/benchmarks/imagetype.py --write")
    arrays = {name: np.array(stored[name]) for name in ("mean", "scale", "weights", "bias")}
    return Coefficients(tuple(stored["classes"]), float(stored["clip"]), **arrays)
