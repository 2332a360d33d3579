"""The kinds of picture, in words: one table (`classes.yaml`) for all classifiers.

The invariant: a classifier gives scores to classes of this table only, so that one query means the same whatever
classifier ran.

>>> table()["ct"].name, table()["ct"].group
('computed tomography', 'clinical imaging')
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from transforms.decoded import Pixels

FILE = Path(__file__).with_name("classes.yaml")

Classify = Callable[[Pixels], Mapping[str, float]]
"""An open classifier: a picture -> class -> score. Scores are 0 to 1 and sum to 1 but for rounding; classes that
it does not know are left out. The same picture gives the same scores."""


@dataclass(frozen=True)
class PictureClass:
    """A kind of picture; see classes.yaml for the fields."""

    code: str
    name: str
    group: str
    prompts: tuple[str, ...]


@cache
def table() -> Mapping[str, PictureClass]:
    """code -> class, as in classes.yaml."""
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {code: PictureClass(code, e["name"], e["group"], tuple(e["prompts"])) for code, e in entries.items()}
