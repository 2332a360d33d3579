"""What a source holds, listed once and remembered as long as its files look the same.

A connector that names all places its listing reads (`places`) need not list them again when nothing there has changed:
the partitions' names and keys are enough to see that all is done. What stands in them, which may be millions of items,
is listed when a unit asks for it. The invariant: a remembered listing is the one that the connector would give, or it
is not used; and no name of a file is kept in the home.

    HOME/cache/listings/SOURCE.json

>>> [partition.key for partition in partitions_of(source, home, index)]     # the second time, no file is opened
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from catalog.items import Later, Partition
from flows.recipe import Source
from infra.errors import ConfigError
from infra.fileindex import FileIndex
from infra.keys import key
from infra.look import look
from infra.plugins import load
from infra.storage import write_bytes

FORMAT = 1


def partitions_of(source: Source, home: Path, index: FileIndex) -> Iterator[Partition]:
    """The partitions of a source, remembered ones without their items until somebody asks for them."""
    connector = load("connector", source.use)
    places = getattr(connector, "places", lambda _: None)(source.params)
    if places is None:
        yield from connector.list_partitions(source.name, source.params, index)
        return
    memory = home / "cache" / "listings" / f"{source.name}.json"
    seen = look(places)
    params = source.params.model_dump(mode="json")
    mark = key("listing", FORMAT, connector.NAME, connector.VERSION, _code(connector), params, seen.hash)
    if (known := _read(memory, mark)) is not None:
        again = _Again(source, home)
        for name, content, count in known:
            yield again.partition(name, content, count)
        return
    failed, listed = index.failed, []
    for partition in connector.list_partitions(source.name, source.params, index):
        listed.append([partition.name, partition.key, len(partition.contents)])
        yield partition
    if seen.settled and index.failed == failed:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(memory, json.dumps({"mark": mark, "partitions": listed}).encode())


def _read(memory: Path, mark: str) -> list[tuple[str, str, int]] | None:
    """What was listed when the source looked as it looks now, or None."""
    try:
        found = json.loads(memory.read_bytes())
        listed = [(name, content, count) for name, content, count in found["partitions"]]
        return listed if found["mark"] == mark else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # losing it costs time only
        return None


def _code(connector: Any) -> str:
    """The state of a plug-in's own package: whoever works on it must not be shown what an older one listed."""
    package = sys.modules[connector.__name__.partition(".")[0]]
    folder = Path(getattr(package, "__file__", None) or connector.__file__).parent
    files = sorted(folder.rglob("*.py"))
    return key([[path.name, found.st_size, found.st_mtime_ns] for path in files if (found := path.stat())])


@dataclass
class _Again:
    """A source that is listed again when the first of its remembered partitions is looked into."""

    source: Source
    home: Path

    def partition(self, name: str, content: str, count: int) -> Partition:
        refs: Later[Mapping[str, Any]] = Later(content, count, lambda: self._checked(name, content).refs)
        contents: Later[tuple[str, str]] = Later(content, count, lambda: self._checked(name, content).contents)
        return Partition(self.source.name, name, refs, contents)

    def _checked(self, name: str, content: str) -> Partition:
        found = self._listed.get(name)
        if found is None or found.key != content:
            raise ConfigError(f"the source {self.source.name!r} has changed since the build was planned; run it again")
        return found

    @cached_property
    def _listed(self) -> dict[str, Partition]:
        with FileIndex(self.home / "cache" / "files.sqlite") as index:
            listed = load("connector", self.source.use).list_partitions(self.source.name, self.source.params, index)
            return {partition.name: partition for partition in listed}
