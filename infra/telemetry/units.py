"""The books of a unit: what it counts and warns of on a worker, kept in its manifest, and added up by the driver.

The invariant: what a unit counted is in its manifest or in the sums of the process that ran it, never in both.

>>> with unit("caption", "ct", "all"):
...     count("llm_cached")
...     told = taken()
>>> told
{'counts': {'llm_cached': 1.0}}
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from infra import redact
from infra.telemetry import logs, state
from infra.telemetry.series import Series
from infra.telemetry.series import write as write_series
from infra.telemetry.state import count, observe, span

TEXTFILE = "reports/metrics.prom"
_log = logging.getLogger("medloom.units")  # none of ours: what was warned of once must not be gathered again
_warnings: logs.Warnings | None = None


@contextmanager
def build(
    home: Path, recipe: str, private: Collection[str] = (), params: Any = ()
) -> Iterator[state.Span | state.Nothing]:
    """Round a build, in the process that drives it: turns on what the environment asks for, and writes the counts when
    it ends, well or not. `private` are the sources whose names are hidden, `params` what names variables with secrets
    (infra.redact.named_in), a recipe. Raises ConfigError as `begin` does."""
    redact.also(redact.named_in(params))
    state.begin(private)
    try:
        with state.timed("build", recipe=recipe) as seen:
            yield seen
    finally:
        state.gauge("build_ended_at", time.time())
        state.flush()
        try:
            write(home)
        except OSError as error:  # a full disk has stopped the build already, or will stop the next one
            _log.warning("no counts were written: %s", error.strerror)


@contextmanager
def unit(stage: str, source: str, partition: str) -> Iterator[state.Span | state.Nothing]:
    """Round one unit's work, on whichever process: its span, and the books of what it counts and warns of.

    One at a time in a process. What is on its way to the collector is sent before the block ends.
    """
    global _warnings
    _warnings, mine = logs.Warnings(), state.current()
    root = None if mine is None else mine.root
    if mine is not None:
        mine.unit = Series()
    try:
        with span("unit", stage=stage, source=source, partition=partition) as seen:
            if mine is not None and isinstance(seen, state.Span):
                mine.root = seen.otel or root
            yield seen
    finally:
        _warnings.detach()
        if mine is not None:
            left, mine.unit, mine.root = mine.unit, None, root
            if left is not None:
                mine.series.given(left.taken())  # of a unit that was not committed
            state.flush()


def taken() -> dict[str, Any]:
    """What the unit under way counted and warned of, for its manifest: {} where there is nothing to say."""
    mine = state.current()
    counts = mine.unit.taken() if mine is not None and mine.unit is not None else {}
    said = _warnings.taken() if _warnings is not None else []
    return {**({"counts": counts} if counts else {}), **({"warnings": said} if said else {})}


class _Shard(Protocol):
    @property
    def bytes(self) -> int: ...


class Committed(Protocol):
    """What is read of a manifest (catalog.manifest.Manifest)."""

    @property
    def source(self) -> str: ...
    @property
    def stage(self) -> str: ...
    @property
    def kept(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def quarantined(self) -> bool: ...
    @property
    def seconds(self) -> float: ...
    @property
    def shards(self) -> Sequence[_Shard]: ...


def committed(manifest: Committed) -> list[str]:
    """Add a unit that ended to the driver's counts; logs what it warned of, and returns it."""
    told: Mapping[str, Any] = getattr(manifest, "telemetry", {})
    mine = state.current()
    if mine is not None and mine.carried.metrics:
        where = {"stage": manifest.stage, "source": manifest.source}
        mine.series.given(told.get("counts", {}))
        count("units", 1, **where)
        for outcome in ("kept", "dropped", "failed"):
            count("rows", getattr(manifest, outcome), **where, outcome=outcome)
        observe("unit_seconds", manifest.seconds, stage=manifest.stage)
        count("shard_bytes", sum(shard.bytes for shard in manifest.shards), **where)
        if manifest.quarantined:
            count("quarantined", 1, **where)
    said = [str(words) for words in told.get("warnings", ())]
    for words in said:
        _log.warning("%s over %s: %s", manifest.stage, state.shown(manifest.source), words)
    return said


def write(home: Path) -> Path | None:
    """Write the counts to HOME/reports/metrics.prom, whole or not at all; None where nothing is counted."""
    mine = state.current()
    if mine is None or not mine.carried.metrics:
        return None
    path = home / TEXTFILE
    write_series(mine.series, path)
    return path
