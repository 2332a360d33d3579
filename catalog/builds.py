"""Builds: the record of one run of a recipe. A build that passes its checks is a snapshot; one that does not is kept
as refused, with the reasons. A record names manifests, manifests name shards: that chain is the whole truth.

    HOME/builds/000001.json
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from catalog.manifest import parsed
from infra import mirror
from infra.storage import write_bytes


class Validation(BaseModel):
    """The result of one expectation over one layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    expectation: str
    """what was expected, in words that stay stable across builds"""
    critical: bool
    """a critical one that fails stops the snapshot"""
    success: bool
    unexpected: int
    """how many rows do not meet it"""
    detail: str
    """observed value or examples, for a person"""


class Build(BaseModel):
    """One run of a recipe that came to its end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    status: Literal["snapshot", "refused"]
    name: str
    """the recipe's name"""
    recipe: Mapping[str, Any]
    """the recipe as it was resolved"""
    units: tuple[str, ...]
    """paths of the manifests it is made of, sorted; quarantined ones too"""
    validations: tuple[Validation, ...]
    created_at: str
    """UTC, ISO 8601"""

    @property
    def path(self) -> str:
        return f"builds/{self.number:06d}.json"

    def write(self, home: Path) -> None:
        """Record it. Raises infra.s3.Conflict when somebody else recorded a build of that number in the bucket."""
        data = self.model_dump_json(indent=1).encode() + b"\n"
        mirror.send_new(data, home / self.path)
        write_bytes(home / self.path, data)


def numbers(home: Path) -> list[int]:
    """Numbers of all builds of a home, oldest first."""
    mirror.pull(home / "builds")
    return sorted(int(path.stem) for path in (home / "builds").glob("[0-9]*.json"))


def read_build(home: Path, number: int) -> Build:
    """The record of one build; of a large dataset that is megabytes."""
    path = f"builds/{number:06d}.json"
    return parsed(Build, path, (home / path).read_bytes())


def builds(home: Path) -> list[Build]:
    """All builds of a home, oldest first."""
    return [read_build(home, number) for number in numbers(home)]


def last_snapshot(home: Path) -> Build | None:
    """The newest build that became a snapshot."""
    newest = (read_build(home, number) for number in reversed(numbers(home)))
    return next((build for build in newest if build.status == "snapshot"), None)
