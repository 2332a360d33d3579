"""A unit of work: one stage over one partition, from its inputs to its manifest.

The invariant, checked at commit: rows in = kept + dropped + failed, each row counted once, and rows written only for
samples kept. A unit that is killed leaves no manifest, so it was never done; doing it again writes the same bytes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog import shards
from catalog.items import Partition
from catalog.manifest import Entry, Manifest, find, latest, scan
from catalog.schema import LAYERS, VERSION
from infra import attempts, redact, telemetry
from infra.inflight import in_order
from infra.keys import key
from infra.settings import be_quiet
from transforms.curation.dataset import Dataset, WholeStage
from transforms.ingest import WRITES, Ingest
from transforms.stage import Outcome, Reject, Stage, Volumes, fingerprint, of_samples

SOFTWARE = ("medloom", "pyarrow", "numpy", "pillow")


@dataclass(frozen=True)
class Upstream:
    """A unit that another one reads."""

    stage: str
    key: str
    attempt: int = 0

    @property
    def name(self) -> str:
        """Its key, and the attempt where it is not the first: what the keys of units further down are made from."""
        return f"{self.key}.{self.attempt}" if self.attempt else self.key


@dataclass(frozen=True)
class IngestUnit:
    """Ingest one partition of a source."""

    work: Ingest
    partition: Partition
    key: str
    attempt: int = 0

    @property
    def stage(self) -> str:
        return self.work.name

    @property
    def writes(self) -> tuple[str, ...]:
        return WRITES

    def expected(self, home: Path) -> list[str]:
        """What must come out, one way or the other, beside what each batch names: the partition's items."""
        return list(self.work.names((entry for entry, _ in self.partition.contents), home).values())

    def outcomes(self, home: Path, state: Any) -> Iterator[tuple[list[str] | None, Outcome]]:
        for outcome in self.work.outcomes(self.partition, home):
            yield None, outcome

    def record(self, home: Path) -> dict[str, Any]:
        """What the manifest says of the work."""
        return {
            "stage_version": self.work.version, "params": self.work.settings(),
            "ingredients": self.work.ingredients(home), "inputs": (self.partition.key,),
        }


@dataclass(frozen=True)
class StageUnit:
    """One later stage over one partition, reading what earlier units of the partition wrote."""

    stage: str
    """what the recipe calls it"""
    work: Stage
    partition: Partition
    upstream: tuple[Upstream, ...]
    key: str
    attempt: int = 0
    source: Ingest | None = None
    """how the partition's items are read again, for stages that work on whole scans"""

    @property
    def writes(self) -> tuple[str, ...]:
        return self.work.writes

    def expected(self, home: Path) -> list[str]:
        """Nothing beside the samples that each batch names."""
        return []

    def outcomes(self, home: Path, state: Any) -> Iterator[tuple[list[str] | None, Outcome]]:
        inputs = [shard for entry in self.entries(home) for shard in entry.read(home).shards]
        others = {layer: shards.read(home, inputs, layer) for layer in self.work.reads if layer != "images"}
        if self.work.volumes and self.source is not None:
            rows = {row["volume_id"]: row for row in shards.read(home, inputs, "volumes").to_pylist()}
            state = Volumes(rows, partial(self.source.scan, self.partition, home))

        def done(images: pa.Table) -> tuple[list[str], Outcome]:
            ids = images["sample_id"].to_pylist()
            tables = {"images": images, **{name: of_samples(table, ids) for name, table in others.items()}}
            return ids, self.work(tables, state)

        batches = shards.batches(home, inputs, self.work.pixels)
        if self.work.concurrency > 1:  # else requests would drain where one batch ends
            yield from in_order(done, batches, threads=2, ahead=2)
        else:
            yield from map(done, batches)

    def entries(self, home: Path) -> list[Entry]:
        """The manifests of what it reads, as their names tell."""
        found = []
        for unit in self.upstream:
            entry = find(home, self.partition.source, unit.stage, self.partition.name, unit.key, unit.attempt)
            if entry is None:
                raise FileNotFoundError(f"{unit.stage} of {self.partition.place} has no manifest; run the build again")
            found.append(entry)
        return found

    def record(self, home: Path) -> dict[str, Any]:
        """What the manifest says of the work."""
        return _record(self.work, self.upstream)


@dataclass(frozen=True)
class Part:
    """What a unit over the whole dataset reads of one partition."""

    source: str
    partition: str
    read: tuple[Upstream, ...]
    chain: tuple[Upstream, ...]
    """all units of the partition in order: one that was quarantined ends the chain, and excuses those after it"""


WHOLE = Partition("dataset", "all", (), ())
"""Where the units over the whole dataset stand in the catalog."""


@dataclass(frozen=True)
class WholeUnit:
    """One stage over the whole dataset, after the units of all partitions have ended."""

    stage: str
    """what the recipe calls it"""
    work: WholeStage
    parts: tuple[Part, ...]
    upstream: tuple[Upstream, ...]
    """what enters its key"""
    key: str
    attempt: int = 0
    partition: Partition = WHOLE

    @property
    def writes(self) -> tuple[str, ...]:
        return self.work.writes

    def expected(self, home: Path) -> list[str]:
        """Nothing beside the samples of the one batch."""
        return []

    def outcomes(self, home: Path, state: Any) -> Iterator[tuple[list[str] | None, Outcome]]:
        read = [shard for entry in self.entries(home) for shard in entry.read(home).shards]
        dataset = Dataset(home, tuple(shard for shard in read if shard.layer in ("images", *self.work.reads)))
        yield dataset.ids, self.work({}, dataset)

    def entries(self, home: Path) -> list[Entry]:
        """The manifests of what it reads, without those of quarantined units and of units after such."""
        known = latest(scan(home))
        found = []
        for part in self.parts:
            chain = [known.get(unit.key) for unit in part.chain]
            cut = any(entry is not None and entry.quarantined for entry in chain)
            for unit in part.read:
                entry = known.get(unit.key)
                if entry is not None and entry.attempt == unit.attempt and not entry.quarantined:
                    found.append(entry)
                elif not cut:
                    raise FileNotFoundError(
                        f"{unit.stage} of {part.source}/{part.partition} has no manifest; run the build again"
                    )
        return found

    def record(self, home: Path) -> dict[str, Any]:
        """What the manifest says of the work."""
        return _record(self.work, self.upstream)


def _record(work: Stage, upstream: Sequence[Upstream]) -> dict[str, Any]:
    return {
        "stage_version": work.version, "params": work.params.model_dump(mode="json"),
        "ingredients": dict(work.ingredients), "inputs": tuple(unit.name for unit in upstream),
    }


def ingest_key(work: Ingest, partition: Partition, home: Path) -> str:
    """The key of an ingest unit: the partition's contents and everything that decides the rows."""
    return key("ingest", work.version, partition.key, work.settings(), dict(work.ingredients(home)), VERSION)


def stage_key(work: Stage, upstream: Sequence[Upstream]) -> str:
    """The key of a stage's unit: the keys of what it is made from and the stage's fingerprint."""
    return key("unit", [u.name for u in upstream], fingerprint(work), VERSION)


Unit = IngestUnit | StageUnit | WholeUnit


class BookkeepingError(Exception):
    """A stage lost or doubled rows: a bug in the stage, never in the data."""


def run_unit(unit: Unit, home: Path, max_failed: float, state: Any) -> Manifest:
    """Do the work and commit it. `max_failed` is the share of failed rows above which the unit is quarantined.

    Raises whatever bug the stage has; then nothing was committed.
    """
    be_quiet()
    started, partition = time.monotonic(), unit.partition
    name = f"{partition.name}-{unit.key}" + (f".{unit.attempt}" if unit.attempt else "")
    books = _Books(unit, home)
    with telemetry.unit(unit.stage, partition.source, partition.name), ExitStack() as stack:
        stack.enter_context(attempts.recorded(home, name))
        writers = {
            layer: stack.enter_context(shards.ShardWriter(home, layer, partition.source, name))
            for layer in (*unit.writes, "rejects")
        }
        small: dict[str, list[pa.Table]] = {}
        for expected, outcome in unit.outcomes(home, state):
            books.add(expected, outcome)
            for layer, table in outcome.tables.items():
                if layer == "images":
                    writers[layer].write(table)
                else:
                    small.setdefault(layer, []).append(table)
        rejects = books.rejected()
        small["rejects"] = [LAYERS["rejects"].table(rejects)]
        for layer, tables in small.items():
            writers[layer].write(pa.concat_tables(tables))
        closed = {writer.move: shard for writer in writers.values() if (shard := writer.close())}
        told = telemetry.taken()
        outcomes = Counter(row["outcome"] for row in rejects)
        manifest = Manifest(
            key=unit.key, source=partition.source, partition=partition.name, stage=unit.stage,
            schema_version=VERSION, attempt=unit.attempt,
            rows_in=len(books.kept) + len(rejects), kept=len(books.kept), dropped=outcomes["dropped"],
            failed=outcomes["failed"], retryable=sum(row["retryable"] for row in rejects),
            quarantined=outcomes["failed"] > max_failed * (len(books.kept) + len(rejects)),
            shards=tuple(closed.values()), software=_software(),
            seconds=round(time.monotonic() - started, 3), telemetry=told, **unit.record(home),
        )
        manifest.write(home, list(closed))
    return manifest


@cache
def _software() -> dict[str, str]:
    """What rows may depend on beside our own code; asked once, since each answer parses a file."""
    return {name: version(name) for name in SOFTWARE}


class _Books:
    """Counts every row once. For ingest all items of the partition are expected, for a stage each batch's samples."""

    def __init__(self, unit: Unit, home: Path) -> None:
        self._unit = unit
        self._open = set(unit.expected(home))
        self._found: set[str] = set()
        self._rejects: list[Reject] = []
        self.kept: list[str] = []

    def add(self, expected: Sequence[str] | None, outcome: Outcome) -> None:
        self._open.update(expected or ())
        for entry, items in outcome.found.items():
            self._replace(entry, items)
        out = [*outcome.kept, *(r.item for r in outcome.rejects)]
        twice = [item for item, times in Counter(out).items() if times > 1]
        strange = set(out) - self._open
        if twice or strange:
            raise BookkeepingError(f"{self._where}: counted twice {twice[:3]}, never put in {sorted(strange)[:3]}")
        self._open.difference_update(out)
        if expected is not None:
            self._check_rows(outcome.tables, set(outcome.kept))
        self.kept.extend(outcome.kept)
        self._rejects.extend(outcome.rejects)

    def _replace(self, entry: str, items: Sequence[str]) -> None:
        """An entry of the partition gives way to the items found in it."""
        if entry not in self._open and entry not in self._found:
            raise BookkeepingError(f"{self._where}: items were found in {entry}, which was never put in")
        again = [item for item, times in Counter(items).items() if times > 1 or item in self._found | self._open]
        if again:
            raise BookkeepingError(f"{self._where}: found twice {again[:3]}")
        self._open.discard(entry)
        self._open.update(items)
        self._found.update([entry, *items])

    def rejected(self) -> list[dict[str, Any]]:
        """The rows of `rejects`; raises when something went in and never came out."""
        if self._open:
            raise BookkeepingError(f"{self._where}: {len(self._open)} rows never came out, such as {min(self._open)}")
        return [
            {
                "item": reject.item, "source": self._unit.partition.source, "partition": self._unit.partition.name,
                "stage": self._unit.stage, "outcome": reject.error.outcome, "code": reject.error.code,
                "message": redact.text(reject.error.message)[:500], "retryable": reject.error.retryable,
                "attempt": self._unit.attempt,
            }
            for reject in self._rejects
        ]

    def _check_rows(self, tables: Mapping[str, pa.Table], kept: set[str]) -> None:
        """Rows belong to samples that were kept, or that were cut from those."""
        if "images" in tables:
            cut, parents = (tables["images"][name].to_pylist() for name in ("sample_id", "parent_id"))
            if loose := set(parents) - kept:
                raise BookkeepingError(f"{self._where} wrote images that were cut from no sample it kept: {loose}")
            kept = kept | set(cut)
        for layer, table in tables.items():
            if layer not in self._unit.writes:
                raise BookkeepingError(f"{self._where} wrote {layer}, which it does not declare in `writes`")
            if loose := set(table["sample_id"].to_pylist()) - kept:
                raise BookkeepingError(f"{self._where} wrote {layer} rows for samples it did not keep: {min(loose)}")

    @property
    def _where(self) -> str:
        return f"{type(self._unit.work).__name__} over {self._unit.partition.place}"
