"""Garbage collection: give back the room of snapshots that nobody keeps, and of what killed workers left.

The invariant: nothing that a kept snapshot names is touched, and nothing younger than the grace: a shard whose manifest
is about to be written, a unit that a build under way counts on. Units of unfinished builds stay, they are paid work.
Builds share the lock `HOME/.builds.lock`; a collection takes it alone or does nothing, so neither waits for the other.

Killed at any point, the next collection goes on: records of builds that are given up are renamed first and removed
last; a manifest goes before its shards.

>>> collectable(home, keep=3).bytes, collect(home, keep=3).bytes
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from catalog import catalog
from catalog.builds import Build, builds
from catalog.manifest import read_manifest, scan
from infra import mirror
from infra.errors import ConfigError
from infra.lease import LeaseHeld, held, store_of
from infra.storage import locked, write_bytes

LOCK = ".builds.lock"
GRACE_S = 24 * 3600.0
GIVEN_UP = "given-up-"
"""Prefix of the record of a build whose units are being removed."""


@dataclass(frozen=True)
class Garbage:
    """What a collection would remove; paths are relative to the home."""

    builds: tuple[str, ...]
    manifests: tuple[str, ...]
    shards: tuple[str, ...]
    bytes: int


@contextmanager
def building(home: Path) -> Iterator[None]:
    """Held by every build: no collection runs meanwhile. One that runs is waited for."""
    with locked(home / LOCK, shared=True, wait_s=3600):
        yield


def _alone(home: Path) -> AbstractContextManager[object]:
    """The lock file speaks for one machine; a bucket may be built from any. Raises LeaseHeld."""
    return held(store_of(home), "", "medloom gc") if mirror.remote(home) else nullcontext()


def collectable(home: Path, keep: int | None = None, grace_s: float = GRACE_S) -> Garbage:
    """What may go: all but the newest `keep` snapshots (None: all are kept), refused builds older than a snapshot,
    units that only those name, and shards that no manifest names. Raises ConfigError for keep < 1."""
    if keep is not None and keep < 1:
        raise ConfigError("at least one snapshot is kept: give --keep 1 or more")
    known = builds(home)
    snapshots = [build for build in known if build.status == "snapshot"]
    kept = set() if not snapshots else {build.number for build in (snapshots if keep is None else snapshots[-keep:])}
    newest = max(kept, default=0)
    kept |= {build.number for build in known if build.number > newest}
    gone = [build for build in known if build.number not in kept]
    needed = {unit for build in known if build.number in kept for unit in build.units}
    ages = {file.path: file for folder in ("manifests", "shards") for file in mirror.listed(home, folder)}
    old = {path for path, file in ages.items() if file.age_s >= grace_s}
    left = [Build.model_validate_json(p.read_bytes()) for p in sorted((home / "builds").glob(f"{GIVEN_UP}*.json"))]
    units = sorted({unit for build in [*gone, *left] for unit in build.units} - needed)
    manifests = [unit for unit in units if unit in old]
    removed = set(manifests)
    standing = (entry.path for entry in scan(home) if entry.path not in removed)
    named = {shard.path for path in standing for shard in read_manifest(home, path).shards}
    shards = sorted(path for path in old if path.startswith("shards/") and path not in named)
    size = sum(ages[path].bytes for path in (*manifests, *shards))
    records = [build.path for build in gone] + [f"builds/{GIVEN_UP}{build.number:06d}.json" for build in left]
    return Garbage(tuple(records), tuple(manifests), tuple(shards), size)


def collect(home: Path, keep: int | None = None, grace_s: float = GRACE_S) -> Garbage:
    """Remove what may go and bring the catalog up to date; returns what went.

    Raises ConfigError while a build runs; nothing was removed then.
    """
    try:
        with locked(home / LOCK), _alone(home):
            garbage = collectable(home, keep, grace_s)  # in here: a build that just ended may count on old units
            seen = {shard.path for path in garbage.manifests for shard in read_manifest(home, path).shards}
            loose = [path for path in garbage.shards if path not in seen]
            mirror.discard(home, loose)  # nobody names these: on a full disk they give the room for what follows
            given_up = []
            for record in garbage.builds:
                file = home / record
                target = file if file.name.startswith(GIVEN_UP) else file.with_name(f"{GIVEN_UP}{file.name}")
                if target != file:
                    write_bytes(target, file.read_bytes())
                    mirror.discard(home, [record])
                given_up.append(target.relative_to(home).as_posix())
            if given_up:
                catalog.refresh(home)  # readers must not be shown what is about to go
            for paths in (garbage.manifests, sorted(seen & set(garbage.shards)), given_up):
                mirror.discard(home, paths)
            return garbage
    except LeaseHeld as error:
        raise ConfigError(f"nothing was removed: {error}") from None
    except TimeoutError:
        raise ConfigError(f"a build of {home} is running; nothing was removed, collect when it has ended") from None

