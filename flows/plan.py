"""The plan of a build: which units every partition needs, and which of them are not done yet.

A pure function of the recipe, the sources' contents and the manifests at hand: no clock, no order of arrival. A unit
whose key has a manifest is not built again; that is resume, caching and incremental refresh in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from catalog.items import Partition
from catalog.manifest import Entry, latest, scan
from flows.listing import partitions_of
from flows.recipe import Recipe, Source, find_recipe, load_recipe
from infra.errors import ConfigError
from infra.fileindex import FileIndex
from infra.plugins import load
from transforms.curation.dataset import WholeStage
from transforms.ingest import WRITES, Ingest
from transforms.stage import Context, Stage
from transforms.unit import WHOLE, IngestUnit, Part, StageUnit, Unit, Upstream, WholeUnit, ingest_key, stage_key


@dataclass(frozen=True)
class Chain:
    """The units of one partition, in order."""

    partition: Partition
    done: tuple[Entry, ...]
    """manifests that stand already"""
    todo: tuple[Unit, ...]
    """what is left; empty when the partition is up to date, or its last manifest is quarantined"""
    units: tuple[Unit, ...] = ()
    """all of them, in order"""

    @property
    def whole(self) -> bool:
        """Whether it is the chain over the whole dataset, which begins when all others have ended."""
        return self.partition is WHOLE or self.partition == WHOLE


@dataclass(frozen=True)
class Plan:
    """What a build has to do."""

    chains: tuple[Chain, ...]

    @property
    def todo(self) -> int:
        """Units left to run."""
        return sum(len(chain.todo) for chain in self.chains)

    @property
    def done(self) -> tuple[str, ...]:
        """Paths of the manifests that stand already."""
        return tuple(entry.path for chain in self.chains for entry in chain.done)


def context_of(recipe: Recipe, home: Path) -> Context:
    """What stages may use of their surroundings."""
    return Context(home, {source.name: source.policy for source in recipe.sources})


def make_plan(recipe: Recipe, home: Path, retry_failed: bool = False) -> Plan:
    """List every source, and compare with what is done. Raises ConfigError when a source or a stage cannot work."""
    entries = latest(scan(home))
    context = context_of(recipe, home)
    made = [(c.name, load("stage", c.use).make_stage(c.params, context)) for c in recipe.stages]
    stages = [(name, stage) for name, stage in made if not isinstance(stage, WholeStage)]
    last = [(name, stage) for name, stage in made if isinstance(stage, WholeStage)]
    if last and any(source.name == WHOLE.source for source in recipe.sources):
        raise ConfigError(f"a source may not be called {WHOLE.source!r} beside {last[0][0]}; give it another name")
    with FileIndex(home / "cache" / "files.sqlite") as index:
        chains = tuple(
            _kept(partition, _units(work, partition, stages, home, entries, retry_failed), entries)
            for source in recipe.sources
            for work in (_Asked(**vars(ingest_of(source))),)
            for partition in partitions_of(source, home, index)
        )
    return Plan((*chains, _kept(WHOLE, _over_all(chains, last, entries, retry_failed), entries)) if last else chains)


def locate(recipe: str, item: str, home: Path, changes: Sequence[str]) -> Iterator[str]:
    """Where an item lies that rows call by this name: source, id, and what its connector needs to read it."""
    loaded = load_recipe(find_recipe(recipe), changes)
    found = False
    with FileIndex(home / "cache" / "files.sqlite") as index:
        for source in loaded.sources:
            work = ingest_of(source)
            for part in load("connector", source.use).list_partitions(source.name, source.params, index):
                names = work.names((own for own, _ in part.contents), home)
                for ref, (own, _) in zip(part.refs, part.contents, strict=True):
                    if names[own] == item or item.startswith(f"{own}#"):
                        found = True
                        yield f"{source.name}: {own}  ({ref.get('path') or source.params.root})"
    if not found:
        raise ConfigError(f"no item {item!r} in the sources of {recipe}; it may be of another home, or gone from there")


def ingest_of(source: Source) -> Ingest:
    """The ingest stage of a source."""
    return Ingest(source.name, source.use, source.params, source.ingest, source.terms)


@dataclass(frozen=True)
class _Asked(Ingest):
    """The ingest stage of a source while a plan is made: asked once what decides the rows, not for every partition."""

    @cached_property
    def plain(self) -> Ingest:
        return Ingest(**{field.name: getattr(self, field.name) for field in fields(Ingest)})

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return super().settings()

    @cached_property
    def _ingredients(self) -> dict[Path, Mapping[str, str]]:
        return {}

    def settings(self) -> dict[str, Any]:
        return self._settings

    def ingredients(self, home: Path) -> Mapping[str, str]:
        if home not in self._ingredients:
            self._ingredients[home] = super().ingredients(home)
        return self._ingredients[home]


def _kept(partition: Partition, units: Iterator[Unit], entries: Mapping[str, Entry]) -> Chain:
    """A chain of these units, parted into what stands and what is left."""
    done: list[Entry] = []
    todo: list[Unit] = []
    every = tuple(units)
    for unit in every:
        entry = entries.get(unit.key)
        if entry is None or entry.attempt < unit.attempt:
            todo.append(unit)
        else:
            done.append(entry)
            if entry.quarantined:
                break
    return Chain(partition, tuple(done), tuple(todo), every)


def _over_all(
    chains: Sequence[Chain], stages: Sequence[tuple[str, WholeStage]], entries: Mapping[str, Entry], retry_failed: bool
) -> Iterator[Unit]:
    """The units over the whole dataset; a later one reads the checks of an earlier one where it asks for them."""
    places = sorted(chains, key=lambda chain: chain.partition.place)
    before: list[tuple[str, tuple[str, ...], Upstream]] = []
    for name, stage in stages:
        parts = [
            Part(chain.partition.source, chain.partition.name,
                 tuple(_as_upstream(u) for u in chain.units if stage.wants(u.work.name, u.writes)),
                 tuple(map(_as_upstream, chain.units)))
            for chain in places
        ]
        earlier = tuple(upstream for own, writes, upstream in before if stage.wants(own, writes))
        parts.append(Part(WHOLE.source, WHOLE.name, earlier, tuple(upstream for _, _, upstream in before)))
        upstream = tuple(u for part in parts for u in part.read)
        key = stage_key(stage, upstream)
        entry = entries.get(key)
        attempt = 0 if entry is None else entry.attempt + (retry_failed and entry.retryable)
        yield WholeUnit(name, stage, tuple(parts), upstream, key, attempt)
        before.append((stage.name, stage.writes, Upstream(name, key, attempt)))


def _as_upstream(unit: Unit) -> Upstream:
    return Upstream(unit.stage, unit.key, unit.attempt)


def _units(
    asked: _Asked, partition: Partition, stages: Sequence[tuple[str, Stage]], home: Path,
    entries: Mapping[str, Entry], retry_failed: bool,
) -> Iterator[Unit]:
    """Every unit of the partition. A retried unit has a new attempt, and with it new keys further down."""

    def attempt(key: str) -> int:
        entry = entries.get(key)
        return 0 if entry is None else entry.attempt + (retry_failed and entry.retryable)

    work, bare = asked.plain, Partition(partition.source, partition.name, (), ())
    key = ingest_key(asked, partition, home)
    yield IngestUnit(work, partition, key, attempt(key))
    writers: dict[str, list[Upstream]] = {layer: [Upstream("ingest", key, attempt(key))] for layer in WRITES}
    for name, stage in stages:
        read = dict.fromkeys(u for layer in ("images", *stage.reads) for u in writers.get(layer, ()))
        upstream = tuple(read)
        key = stage_key(stage, upstream)
        # a worker needs no items but to open scans again
        whole, reader = (partition, work) if stage.volumes else (bare, None)
        yield StageUnit(name, stage, whole, upstream, key, attempt(key), reader)
        for layer in stage.writes:
            writers.setdefault(layer, []).append(Upstream(name, key, attempt(key)))
