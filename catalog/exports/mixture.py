"""A mixture: several conditions with weights, written as one export.

A weight is how often a sample comes in one export: 2 is twice, 0.25 is a quarter of the samples once, 1.5 is all once
and half of them again. Which ones is decided by a hash of seed and sample id, so it stays as the dataset grows. A
sample belongs to the first part whose condition it meets. Repeats come in later passes over the data, not side by side,
since trainers shuffle within a window only.

    seed: 0
    parts:
      - {where: "modality = 'CT'", weight: 1}
      - {where: "modality = 'XC'", weight: 2.5}

>>> Mixture.read(Path("mix.yaml")).of(selection).rows()
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from catalog.idlists import IdLists, sha256_sorted
from catalog.selection import Row, Selection
from infra.errors import ConfigError
from infra.keys import sha256

MOST = 100
"""The largest weight."""


class Part(BaseModel):
    """Samples of one condition."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: str = Field(description="SQL condition over images")
    weight: float = Field(gt=0, le=MOST, description="how often each of them comes")


class Mixture(BaseModel):
    """Parts, the first that takes a sample counts, and the seed of what is drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, description="another seed draws other samples where weights are no whole numbers")
    parts: tuple[Part, ...] = Field(min_length=1, description="conditions with their weights")

    @classmethod
    def read(cls, path: Path) -> Mixture:
        """From a YAML file. Raises ConfigError."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError, ValidationError) as error:
            raise ConfigError(f"{path}: no mixture, mend it: {error}") from None

    def of(self, selection: Selection) -> Mixed:
        """The mixture of what a selection picks."""
        return Mixed(selection, self)

    def times(self, sample: str, weight: float) -> int:
        """How often a sample of a part comes."""
        whole = int(weight)
        drawn = int(sha256(f"{self.seed}/{sample}".encode())[:12], 16) / 16**12
        return whole + (drawn < weight - whole)


@dataclass(frozen=True)
class Mixed:
    """A mixture over one snapshot; `base` is all that any part takes."""

    whole: Selection
    mixture: Mixture

    @cached_property
    def parts(self) -> list[Selection]:
        """What each condition takes, of what the whole takes."""
        for where in (self.whole.where, *(part.where for part in self.mixture.parts)):
            len(replace(self.whole, where=where))  # raises for what is no condition alone, before it stands in brackets
        return [
            replace(self.whole, where=f"({self.whole.where}\n) AND ({part.where}\n)") for part in self.mixture.parts
        ]

    @cached_property
    def base(self) -> Selection:
        """All that any part takes."""
        either = " OR ".join(f"({part.where}\n)" for part in self.parts)
        return replace(self.whole, where=either)

    @property
    def snapshot(self) -> int:
        return self.base.snapshot

    @property
    def refused(self) -> Counter[str]:
        return self.base.refused

    @cached_property
    def passes(self) -> list[IdLists]:
        """For each pass over the data its shards, in order, with the samples taken of each."""
        passes: list[IdLists] = []
        places = [{shard: n for n, (shard, _) in enumerate(part.lists.counts)} for part in self.parts]
        for shard, _ in self.base.lists.counts:
            seen: pa.Array = pa.array([], pa.string())
            # times -> ids
            found: dict[int, list[pa.Array]] = {}
            for part, chosen, place in zip(self.mixture.parts, self.parts, places, strict=True):
                if shard not in place:
                    continue
                ids = chosen.lists[place[shard]]
                ids = ids.filter(pc.invert(pc.is_in(ids, seen)))
                seen = pa.concat_arrays([seen, ids])
                times = pa.array([self.mixture.times(i, part.weight) for i in ids.to_pylist()], pa.int32())
                for n in pc.unique(times).to_pylist():
                    found.setdefault(n, []).append(ids.filter(pc.equal(times, n)))
            for copy in range(max(found, default=0)):
                if copy == len(passes):
                    passes.append(IdLists())
                passes[copy].add(shard, pa.concat_arrays([a for n, some in found.items() if n > copy for a in some]))
        return passes

    def __len__(self) -> int:
        return sum(map(len, self.passes))

    @property
    def sha256(self) -> str:
        """SHA-256 of the sample ids, sorted, each as often as it comes, a line feed after each."""
        return sha256_sorted(self.passes)

    def rows(self, skip: int = 0) -> Iterator[Row]:
        """The samples, pass after pass, without the first so many."""
        for copy, taken in enumerate(self.passes):
            if skip < len(taken):
                yield from self.base.read(taken, skip, copy)
            skip = max(skip - len(taken), 0)
