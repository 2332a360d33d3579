"""A stage: code that reads layers of a partition and writes layers, and keeps the books.

The invariant: every sample that goes in comes out exactly once, kept or rejected; `run_unit` checks it at commit. A
stage knows no paths of shards, no Prefect and no Ray. Most stages look at one sample at a time and are made with
`each_sample`, which keeps the books for them:

>>> def brightness(sample, state):
...     grey = sample.pixels().mean()
...     return {"checks": [{"text_id": "", "check": "brightness", "version": "1", "value": grey, "verdict": "pass"}]}
>>> stage = each_sample("brightness", "1", reads=("images",), writes=("checks",), row=brightness)

Raise `Dropped`, `Terminal` or `Transient` (infra/errors.py) for a sample that cannot be used.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import stamina
from PIL import Image
from pydantic import BaseModel, ConfigDict

from catalog.schema import LAYERS
from infra import attempts
from infra.errors import ItemError, Transient
from infra.inflight import in_order
from infra.keys import key
from transforms.decoded import Pixels


@dataclass(frozen=True)
class Resources:
    """What one running copy of a stage needs."""

    cpus: float = 1
    gpus: float = 0
    memory_gb: float | None = None


@dataclass(frozen=True)
class Reject:
    """An item or sample that did not make it, and why."""

    item: str
    error: ItemError


@dataclass(frozen=True)
class Outcome:
    """What a stage made of one batch."""

    tables: Mapping[str, pa.Table]
    kept: Sequence[str]
    rejects: Sequence[Reject] = ()
    found: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """ingest only: entry of the partition -> the items it turned out to hold, which take its place in the books"""


@dataclass(frozen=True)
class Context:
    """What of its surroundings a stage may use; none of it enters a key."""

    home: Path
    policies: Mapping[str, str] = field(default_factory=dict)
    """source -> which model endpoints its rows may reach: local, approved or any"""

    @property
    def cache(self) -> Path:
        """Folder of request caches."""
        return self.home / "cache"

    @property
    def knowledge(self) -> Path:
        """Folder of knowledge bases."""
        return self.home / "knowledge"


class NoParams(BaseModel):
    """For a stage that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(Protocol):
    """The protocol. Frozen, and small enough to be pickled to a worker."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str:
        """Moves when the output may: the only way in which changed code counts."""
        ...
    @property
    def reads(self) -> tuple[str, ...]:
        """Layers it is given, limited to the batch's samples; `images` always leads."""
        ...
    @property
    def writes(self) -> tuple[str, ...]: ...
    @property
    def params(self) -> BaseModel:
        """What a recipe may set. Fields declared with `exclude=True` do not change the output and enter no key."""
        ...
    @property
    def ingredients(self) -> Mapping[str, str]:
        """Hashes of what else decides the output: weights, prompts, a knowledge base."""
        ...
    @property
    def pixels(self) -> bool:
        """Whether it wants image bytes; without, `images` comes without its `image` column."""
        ...
    @property
    def resources(self) -> Resources: ...
    @property
    def open(self) -> Callable[[], Any] | None:
        """Loads what is costly, once per worker; None when there is nothing to load."""
        ...
    @property
    def concurrency(self) -> int:
        """How many samples may be under way at a time in one worker, for stages that wait for servers."""
        ...
    @property
    def volumes(self) -> bool:
        """Whether it works on whole scans: then its state is a `Volumes`, and it has no `open`."""
        ...
    def __call__(self, tables: Mapping[str, pa.Table], state: Any) -> Outcome: ...


@dataclass
class Volumes:
    """What opens scans again for a stage, for as long as it works on one partition."""

    rows: Mapping[str, Mapping[str, Any]]
    """volume_id -> its row of `volumes`"""
    open: Callable[[Mapping[str, Any]], Any]
    """such a row -> transforms.scans.volumes.Scan, checked by hash; raises ItemError"""
    kept: dict[str, Any] = field(default_factory=dict)
    """what the stage keeps from one batch to the next"""


def fingerprint(stage: Stage) -> str:
    """What the stage would do, as a key: name, version, parameters and ingredients."""
    params = stage.params.model_dump(mode="json")
    return key("stage", stage.name, stage.version, params, dict(stage.ingredients))


class SampleRows:
    """One sample as a row stage sees it: its row of `images`, and its rows of the other layers it reads."""

    def __init__(self, image: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self.image = image
        self._rows = rows
        self._pixels: Pixels | None = None

    @property
    def id(self) -> str:
        return str(self.image["sample_id"])

    def rows(self, layer: str) -> Sequence[Mapping[str, Any]]:
        """Its rows of a layer that the stage reads (KeyError otherwise), in the order they were written."""
        return self._rows[layer]

    def pixels(self) -> Pixels:
        """The stored image, decoded once: (height, width) or (height, width, 3), uint8, not to be written to."""
        if self._pixels is None:
            with Image.open(io.BytesIO(self.image["image"]["bytes"])) as image:
                self._pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
            self._pixels.flags.writeable = False
        return self._pixels


Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""layer -> rows to write; `sample_id` is filled in"""


@dataclass(frozen=True)
class RowStage:
    """A function of one sample, lifted to a stage. Make it with `each_sample`."""

    name: str
    version: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    row: Callable[[SampleRows, Any], Rows]
    params: BaseModel
    ingredients: Mapping[str, str]
    pixels: bool
    resources: Resources
    open: Callable[[], Any] | None
    attempts: int
    volumes: bool = False
    concurrency: int = 1

    def __call__(self, tables: Mapping[str, pa.Table], state: Any) -> Outcome:
        others = {layer: _by_sample(tables[layer]) for layer in self.reads if layer != "images"}
        made: dict[str, list[dict[str, Any]]] = {layer: [] for layer in self.writes}
        kept, rejects = [], []
        samples = (
            SampleRows(image, {name: rows.get(image["sample_id"], []) for name, rows in others.items()})
            for image in tables["images"].to_pylist()
        )
        work = partial(self._rows_or_error, state=state)
        alone = self.concurrency == 1
        for sample_id, rows in map(work, samples) if alone else in_order(work, samples, self.concurrency):
            if isinstance(rows, ItemError):
                rejects.append(Reject(sample_id, rows))
                continue
            for layer, new in rows.items():
                made[layer].extend({"sample_id": sample_id, **r} for r in new)
            kept.append(sample_id)
        return Outcome({name: LAYERS[name].table(rows) for name, rows in made.items()}, kept, rejects)

    def _rows_or_error(self, sample: SampleRows, state: Any) -> tuple[str, Rows | ItemError]:
        try:
            with attempts.at(sample.id):
                return sample.id, self._retried(sample, state)
        except ItemError as error:
            return sample.id, error

    def _retried(self, sample: SampleRows, state: Any) -> Rows:
        for attempt in stamina.retry_context(on=Transient, attempts=self.attempts, timeout=None):
            with attempt:
                return self.row(sample, state)
        raise AssertionError("unreachable: the last attempt raises")


def each_sample(
    name: str,
    version: str,
    *,
    reads: tuple[str, ...],
    writes: tuple[str, ...],
    row: Callable[[SampleRows, Any], Rows],
    params: BaseModel | None = None,
    ingredients: Mapping[str, str] | None = None,
    pixels: bool = True,
    resources: Resources | None = None,
    open: Callable[[], Any] | None = None,
    attempts: int = 3,
    volumes: bool = False,
    concurrency: int = 1,
) -> Stage:
    """Lift `row(sample, state)` to a stage. `state` is what `open` returned, a `Volumes`, or None.

    `concurrency` samples are worked on at once, in threads, for a row that waits for a server; the row and its state
    must bear that. Rows and rejects are written in the order of the samples all the same.
    """
    return RowStage(
        name, version, reads, writes, row, params or NoParams(), ingredients or {}, pixels,
        resources or Resources(), open, attempts, volumes, concurrency,
    )


def _by_sample(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        found.setdefault(row["sample_id"], []).append(row)
    return found


def of_samples(table: pa.Table, sample_ids: Iterable[str]) -> pa.Table:
    """The rows of a table that belong to these samples."""
    return table.filter(pc.is_in(table["sample_id"], pa.array(list(sample_ids), pa.string())))
