"""The ids that the stage `caption` will give to the rows of a captioner: what a row needs to name one before it.

The invariant: the rule is that of transforms/caption.py (several texts of a kind on the same regions are numbered);
tests run the stage and hold the two together.

>>> naming = Naming(facts.sample_id)
>>> answer["evidence"] = [f"text:{naming.name(question)}"]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from infra.keys import key


class Naming:
    """Names the rows of one sample. Every row must be named, in the order in which the captioner returns them."""

    def __init__(self, sample_id: str) -> None:
        self._sample = sample_id
        self._seen: Counter[str] = Counter()

    def name(self, row: Mapping[str, Any]) -> str:
        """The id of the next row, by its kind, regions, generator and language."""
        other = [row["language"]] if row["language"] != "en" else []
        plain = key(self._sample, row["kind"], list(row["roi_ids"]), row["generator"], *other)
        times = self._seen[plain]
        self._seen[plain] += 1
        return key(plain, times) if times else plain
