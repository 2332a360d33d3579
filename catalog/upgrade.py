"""What this medloom would do with a home that another version left: said without touching it.

The invariant: nothing is written, nothing is locked. The files are the truth and are never migrated: an index of an
older form is made again from them, columns that older shards lack read as null, and work is done again only where a
stage's version or the schema entered its key. What a newer medloom wrote is refused, not guessed at.

>>> outlook(home)
['catalog.duckdb: format 2, this medloom writes 3: it would be made again', '3 builds, 2 snapshots', …]
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from catalog.builds import builds
from catalog.index import FILE, IndexFile, index_of
from catalog.manifest import read_manifest, scan
from catalog.schema import VERSION
from catalog.views import FORMAT


def outlook(home: Path) -> list[str]:
    """What `medloom catalog rebuild` finds and would do, a line a fact. Raises ConfigError for records of a newer one.

    Every manifest is opened: of a large dataset that takes a minute.
    """
    known = builds(home)
    named = {unit for build in known for unit in build.units}
    found = {entry.path: read_manifest(home, entry.path) for entry in scan(home)}
    schemas = Counter(manifest.schema_version for manifest in found.values())
    older = sum(count for version, count in schemas.items() if version < VERSION)
    shards = [shard for manifest in found.values() for shard in manifest.shards]
    said = [
        _index(home),
        f"{len(known)} builds, {sum(build.status == 'snapshot' for build in known)} snapshots: all would be indexed",
        f"{len(shards)} shards with {sum(shard.rows for shard in shards)} rows stay as they are",
    ]
    if older:
        said.append(
            f"{older} of {len(found)} manifests are of an older schema than {VERSION}: their rows are read with nulls "
            "where columns are new, and the next build does that work again"
        )
    if lost := sorted(named - set(found)):
        said.append(f"{len(lost)} manifests that builds name are missing, such as {lost[0]}: a rebuild would fail")
    return said


def _index(home: Path) -> str:
    """What is there for an index, and what would become of it."""
    import duckdb

    if not isinstance(index_of(home), IndexFile):
        return "the lake that MEDLOOM_CATALOG names would be made again"
    path = home / FILE
    if not path.exists():
        return f"{path.name}: none here, it would be made"
    try:
        with duckdb.connect(str(path), read_only=True) as con:
            row = con.execute("SELECT number FROM format").fetchone()
    except duckdb.Error as error:
        return f"{path.name}: cannot be read ({str(error).splitlines()[0]}): it would be made again"
    number = row[0] if row else None
    if number == FORMAT:
        return f"{path.name}: format {FORMAT}, as this medloom writes it: it would be made again, the same"
    if number is not None and number > FORMAT:
        return f"{path.name}: format {number}, of a newer medloom than this one ({FORMAT}): update this one"
    return f"{path.name}: format {number}, this medloom writes {FORMAT}: it would be made again"
