"""Manifests: the record that a unit of work was done, written last. Readers trust manifests only.

A unit is one stage over one partition. Its manifest names the shards it wrote with their hashes, and counts the rows:

    rows_in = kept + dropped + failed

The file's name alone tells a planner what it needs (`Entry.parse`), so planning opens no manifest:

    manifests/SOURCE/STAGE/PARTITION-KEY.ATTEMPT[q][r].json      q: quarantined, r: has rejects worth a retry
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from infra import mirror
from infra.errors import ConfigError
from infra.storage import draft_of, publish_all

Record = TypeVar("Record", bound=BaseModel)


class Shard(BaseModel):
    """One Parquet file: one layer of one partition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    path: str
    """relative to the home"""
    rows: int
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What one unit read, did and wrote."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    source: str
    partition: str
    stage: str
    stage_version: str
    params: Mapping[str, Any]
    ingredients: Mapping[str, str]
    inputs: tuple[str, ...]
    """keys of the units it read, or the content key of the source's partition"""
    schema_version: int
    attempt: int = 0
    rows_in: int
    kept: int
    dropped: int
    failed: int
    retryable: int
    """how many of the rejects may succeed if tried again"""
    quarantined: bool
    """too large a share failed: written for inspection, listed in no snapshot, read by no later stage"""
    shards: tuple[Shard, ...]
    software: Mapping[str, str]
    seconds: float
    """wall time; manifests may tell time, shards never do"""
    telemetry: Mapping[str, Any] = {}
    """what the unit counted and warned of (infra/telemetry/units.py), where telemetry is on or there was a warning"""

    @property
    def path(self) -> str:
        """Where it lies, relative to the home."""
        flags = ("q" if self.quarantined else "") + ("r" if self.retryable else "")
        return f"manifests/{self.source}/{self.stage}/{self.partition}-{self.key}.{self.attempt}{flags}.json"

    def write(self, home: Path, shards: Sequence[tuple[Path, Path]] = ()) -> None:
        """Write it, after these closed shards (draft, place) have been moved into place and are on the disk."""
        path = home / self.path
        draft = draft_of(path)
        try:
            draft.write_bytes(self.model_dump_json(indent=1).encode() + b"\n")
            publish_all(shards, (draft, path), {home / shard.path: shard.sha256 for shard in self.shards})
        finally:
            draft.unlink(missing_ok=True)


@dataclass(frozen=True)
class Entry:
    """A manifest as its file name tells it."""

    path: str
    source: str
    stage: str
    partition: str
    key: str
    attempt: int
    quarantined: bool
    retryable: bool

    _NAME = re.compile(r"(?P<partition>.+)-(?P<key>[0-9a-f]{24})\.(?P<attempt>\d+)(?P<q>q?)(?P<r>r?)\.json")

    @classmethod
    def parse(cls, path: str) -> Entry | None:
        """From a path relative to the home; None when it is not a manifest's."""
        _, source, stage, name = path.split("/")
        found = cls._NAME.fullmatch(name)
        if found is None:
            return None
        return cls(
            path, source, stage, found["partition"], found["key"], int(found["attempt"]),
            bool(found["q"]), bool(found["r"]),
        )

    def read(self, home: Path) -> Manifest:
        return read_manifest(home, self.path)


def read_manifest(home: Path, path: str) -> Manifest:
    """Open a manifest; a path that leads out of the home is refused, its own or that of a shard it names."""
    root = os.path.realpath(home)
    made = parsed(Manifest, path, mirror.local(Path(_inside(root, path))).read_bytes())
    for shard in made.shards:
        _inside(root, shard.path)
    return made


def _inside(root: str, path: str) -> str:
    """The real file; in strings, since a home has millions of manifests."""
    file = os.path.realpath(os.path.join(root, path))
    if not file.startswith(os.path.join(root, "")):
        raise ConfigError(f"{path}: leads out of the dataset's home; the record that names it is not ours")
    return file


def parsed(kind: type[Record], path: str, written: bytes) -> Record:
    """A record as it was written. Raises ConfigError when a newer medloom wrote it, or it is damaged."""
    try:
        return kind.model_validate_json(written)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            why = f"it was written by a newer medloom ({first['loc'][0]} is not known here): update this one"
        else:
            why = f"it is damaged ({first['msg']}): restore it, or remove it and build again"
        raise ConfigError(f"{path}: {why}") from None


def scan(home: Path, source: str | None = None) -> Iterator[Entry]:
    """All manifests in a home, or those of one source, in no order."""
    root = home / "manifests"
    mirror.pull(root / source if source else root)
    for folder in (root / source,) if source else _folders(root):
        for stage in _folders(folder):
            for name in os.listdir(stage):
                if entry := Entry.parse(f"manifests/{folder.name}/{stage.name}/{name}"):
                    yield entry


def latest(entries: Iterator[Entry]) -> dict[str, Entry]:
    """key -> its newest attempt."""
    newest: dict[str, Entry] = {}
    for entry in entries:
        if entry.key not in newest or newest[entry.key].attempt < entry.attempt:
            newest[entry.key] = entry
    return newest


def find(home: Path, source: str, stage: str, partition: str, key: str, attempt: int) -> Entry | None:
    """The manifest of one attempt at one unit, or None when it was not done. Its folder, maybe large, is not read."""
    for flags in ("", "r", "q", "qr"):
        path = f"manifests/{source}/{stage}/{partition}-{key}.{attempt}{flags}.json"
        if mirror.local(home / path).exists():
            return Entry.parse(path)
    return None


def _folders(root: Path) -> list[Path]:
    return [Path(f.path) for f in os.scandir(root) if f.is_dir()] if root.is_dir() else []
