"""Verify a dataset: every shard has the bytes its manifest says, and no row vanished on the way.

It trusts nothing but what it reads again: shard bytes are rehashed, rows counted, and for every unit of the snapshot
rows in = kept + dropped + failed, with as many rows in `rejects` as were dropped or failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from catalog.builds import last_snapshot
from catalog.catalog import CatalogError
from catalog.manifest import Manifest, read_manifest
from catalog.shards import rehash


def manifests(home: Path) -> list[Manifest]:
    """The manifests of the newest snapshot. Raises CatalogError when there is none."""
    snapshot = last_snapshot(home)
    if snapshot is None:
        raise CatalogError(f"{home} has no snapshot yet: run `medloom build RECIPE --home {home}`")
    return [read_manifest(home, path) for path in snapshot.units]


def problems(home: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with one unit and its shards, in words."""
    where = f"{manifest.source}/{manifest.partition} {manifest.stage}"
    if manifest.rows_in != manifest.kept + manifest.dropped + manifest.failed:
        yield (
            f"{where}: {manifest.rows_in} rows in, but {manifest.kept} kept, {manifest.dropped} dropped, "
            f"{manifest.failed} failed; the manifest was edited, or the stage has a bug"
        )
    rejected = sum(shard.rows for shard in manifest.shards if shard.layer == "rejects")
    if rejected != manifest.dropped + manifest.failed:
        yield f"{where}: {manifest.dropped + manifest.failed} rows rejected, {rejected} rows in its rejects"
    for shard in manifest.shards:
        if wrong := rehash(home, shard):
            yield f"{shard.path}: {wrong}; remove {manifest.path} and build again"
