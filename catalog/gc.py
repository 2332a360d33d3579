"""Garbage collection: give back the room of snapshots that nobody keeps, and of what killed workers left.

The invariant: nothing that a kept snapshot names is touched, and nothing younger than the grace: a shard whose manifest
is about to be written, a unit that a build under way counts on. Units of unfinished builds stay, they are paid work.
Builds share the lock `HOME/.builds.lock`; a collection takes it alone or does nothing, so neither waits for the other.

With the last snapshot that holds a sample goes all that quotes it: its rows in the index, the reports of that snapshot,
what reviewers decided about it. So a sample that its source withdrew is gone once the snapshots before are given up.

Of a home in a bucket, uploads that nobody will end are aborted too, and this machine's copies of shards may be dropped,
each only when the bucket holds its very bytes.

Killed at any point, the next collection goes on: records of builds that are given up are renamed first and removed
last; a manifest goes before its shards.

>>> collectable(home, keep=3).bytes, collect(home, keep=3).bytes
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from catalog import catalog, decisions, segments
from catalog.builds import Build, builds
from catalog.manifest import read_manifest, scan
from catalog.views import all_rows
from infra import mirror
from infra.errors import ConfigError
from infra.lease import LeaseHeld, held, store_of
from infra.s3 import Begun
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
    reports: tuple[str, ...] = ()
    """of the snapshots that are given up"""
    decisions: tuple[int, ...] = ()
    """numbers of those about samples that no snapshot holds any more"""
    uploads: tuple[Begun, ...] = ()
    """to the home's bucket, begun and never ended"""


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
    units that only those name, and shards that no manifest names; what people decided about samples that go with them;
    uploads that nobody ends. Raises ConfigError for keep < 1."""
    if keep is not None and keep < 1:
        raise ConfigError("at least one snapshot is kept: give --keep 1 or more")
    known = builds(home)
    snapshots = [build for build in known if build.status == "snapshot"]
    kept = set() if not snapshots else {build.number for build in (snapshots if keep is None else snapshots[-keep:])}
    newest = max(kept, default=0)
    kept |= {build.number for build in known if build.number > newest}
    gone = [build for build in known if build.number not in kept]
    needed = {unit for build in known if build.number in kept for unit in build.units}
    folders = ("manifests", "shards", "reports", decisions.FOLDER)
    ages = {file.path: file for folder in folders for file in mirror.listed(home, folder)}
    old = {path for path, file in ages.items() if file.age_s >= grace_s}
    left = [Build.model_validate_json(p.read_bytes()) for p in sorted((home / "builds").glob(f"{GIVEN_UP}*.json"))]
    units = sorted({unit for build in [*gone, *left] for unit in build.units} - needed)
    manifests = [unit for unit in units if unit in old]
    removed = set(manifests)
    standing = (entry.path for entry in scan(home) if entry.path not in removed)
    named = {shard.path for path in standing for shard in read_manifest(home, path).shards}
    shards = sorted(path for path in old if path.startswith("shards/") and path not in named)
    told = tuple(f"reports/{build.number:06d}/" for build in [*gone, *left])
    reports = sorted(path for path in old if path.startswith(told))
    size = sum(ages[path].bytes for path in (*manifests, *shards, *reports))
    records = [build.path for build in gone] + [f"builds/{GIVEN_UP}{build.number:06d}.json" for build in left]
    return Garbage(
        tuple(records), tuple(manifests), tuple(shards), size, tuple(reports),
        tuple(_without_sample(home, kept, old)), tuple(mirror.unfinished(home, grace_s)),
    )


def _without_sample(home: Path, kept: set[int], old: set[str]) -> list[int]:
    """Numbers of old decisions about samples that none of the kept builds holds, not even in quarantine.

    All stay while the catalog does not know all of these builds.
    """
    made = {n: d for n, d in decisions.numbered(home).items() if f"{decisions.FOLDER}/{n:08d}.json" in old}
    if not made or not kept or not kept <= catalog.published(home):
        return []
    with catalog.reader(home) as con:
        con.register("kept", pa.table({"build": sorted(kept)}))
        con.register("decided", pa.table({"sample_id": sorted({d.sample_id for d in made.values()})}))
        rows = con.execute(f"""
            SELECT DISTINCT sample_id FROM ({all_rows("images", segments.names(con))}) JOIN decided USING (sample_id)
            WHERE shard_id IN (SELECT s.id FROM shards s JOIN build_units USING (unit) JOIN kept USING (build))
        """).fetchall()
    held = {sample for (sample,) in rows}
    return [number for number, decision in made.items() if decision.sample_id not in held]


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
            mirror.abort(home, garbage.uploads)
            decisions.withdraw(home, garbage.decisions)
            given_up = []
            for record in garbage.builds:
                file = home / record
                target = file if file.name.startswith(GIVEN_UP) else file.with_name(f"{GIVEN_UP}{file.name}")
                if target != file:
                    write_bytes(target, file.read_bytes())
                    mirror.discard(home, [record])
                given_up.append(target.relative_to(home).as_posix())
            if given_up:
                with catalog.writer(home) as con:  # readers must not be shown what is about to go
                    segments.forget(con)
            for paths in (garbage.reports, garbage.manifests, sorted(seen & set(garbage.shards)), given_up):
                mirror.discard(home, paths)
            return garbage
    except LeaseHeld as error:
        raise ConfigError(f"nothing was removed: {error}") from None
    except TimeoutError:
        raise ConfigError(f"a build of {home} is running; nothing was removed, collect when it has ended") from None


def drop_copies(home: Path, unused_s: float, dry_run: bool = False) -> tuple[int, int]:
    """Remove this machine's copies of shards of a home in a bucket that were not used for so long; (files, bytes).

    Only those whose very bytes the bucket holds: they are fetched again when they are asked for. Raises ConfigError for
    a home that is a folder and no more, and while a build runs here.
    """
    if mirror.remote(home) is None:
        raise ConfigError(f"{home} is no copy of a bucket: what lies there is all there is; leave --copies out")
    try:
        with locked(home / LOCK):
            files = mirror.spare(home, "shards", unused_s)
            files = files if dry_run else mirror.evict(home, files)
    except TimeoutError:
        raise ConfigError(f"a build of {home} is running; no copy was removed, try when it has ended") from None
    return len(files), sum(file.bytes for file in files)
