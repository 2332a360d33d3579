"""Attempts: which item a unit was at when the process under it died, and what that makes of the item.

A unit writes down the item it is about to work on. When its process is killed (by the kernel for want of memory, by a
fault in a decoder), the next attempt finds that note and counts a death for the item; after `DEATHS` deaths the item is
no longer tried: it becomes a reject, and all others of its partition are kept. The invariant: an item is given up only
for processes that died while it alone was under way, and never for a driver or a node that was lost, where there is a
driver to tell the difference (see `died`).

    HOME/cache/attempts/UNIT.at      the items under way; gone when the unit ended, however it ended
    HOME/cache/attempts/UNIT.json    item -> deaths; gone when the unit has its rows

>>> with recorded(home, "all-0f3a") as attempts, at("sample-1"):
...     work_that_may_kill_the_process()
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Condition

from infra.errors import Transient
from infra.storage import write_bytes

DEATHS = 2
"""How many processes an item may take with it before it is given up."""

died: ContextVar[bool | None] = ContextVar("died", default=None)
"""Set by the runner for the step that it runs: whether the process of the attempt before died over it, alone, while the
driver and the node lived. None where nobody can tell (one process for all): then a note left behind counts."""


class Attempts:
    """The record of one unit. Safe for threads: items may be under way side by side."""

    def __init__(self, folder: Path, unit: str) -> None:
        self._at, self._ledger = folder / f"{unit}.at", folder / f"{unit}.json"
        self._deaths: dict[str, int] = json.loads(self._ledger.read_bytes()) if self._ledger.exists() else {}
        self._under_way: set[str] = set()
        self._turn = Condition()
        self._alone, self._doubtful = False, 0
        self._file: int | None = None
        self._count(self._left())

    def killed(self, item: str) -> Transient | None:
        """Why this item is not to be tried any more, or None."""
        times = self._deaths.get(item, 0)
        if times < DEATHS:
            return None
        return Transient(
            "KILLED_WORKER",
            f"the process died {times} times over this item alone, so it was left out: look whether it is damaged or "
            "too large for the memory; after a change, --retry-failed tries it again",
        )

    @contextmanager
    def at(self, item: str) -> Iterator[None]:
        """Note that this item is under way. Raises Transient KILLED_WORKER when it is to be given up.

        An item under suspicion waits until it is the only one under way, so that a death is its own.
        """
        if error := self.killed(item):
            raise error
        alone = item in self._deaths
        with self._turn:
            self._doubtful += alone
            self._turn.wait_for(lambda: not self._alone and not (self._under_way if alone else self._doubtful))
            self._doubtful -= alone
            self._alone = alone
            self._under_way.add(item)
            self._write()
        try:
            yield
        finally:
            with self._turn:
                self._under_way.discard(item)
                self._alone = self._alone and not alone
                self._write()
                self._turn.notify_all()

    def close(self, done: bool) -> None:
        """The process lives; with `done` the unit has its rows, and there is nothing left to remember."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._at.unlink(missing_ok=True)
        if done:
            self._ledger.unlink(missing_ok=True)

    def _left(self) -> list[str]:
        try:
            line = self._at.read_bytes().partition(b"\n")[0]
        except FileNotFoundError:
            return []
        self._at.unlink(missing_ok=True)  # a process that outlives its node may still hold it
        return list(json.loads(line)) if line else []

    def _count(self, left: list[str]) -> None:
        if not left or died.get() is False:
            return
        for item in left:
            self._deaths[item] = self._deaths.get(item, 0) + 1 if len(left) == 1 else max(1, self._deaths.get(item, 0))
        write_bytes(self._ledger, json.dumps(self._deaths, sort_keys=True).encode())

    def _write(self) -> None:
        """No sync: a killed process leaves what it wrote to the kernel, and a lost machine counts for nothing."""
        if self._file is None:
            self._at.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._at, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        line = json.dumps(sorted(self._under_way)).encode() + b"\n"
        os.pwrite(self._file, line, 0)


_current: Attempts | None = None


@contextmanager
def recorded(home: Path, unit: str) -> Iterator[Attempts]:
    """Keep the record of a unit while this block runs; a process works on one unit at a time."""
    global _current
    before, own = _current, Attempts(home / "cache" / "attempts", unit)
    _current, done = own, False
    try:
        yield own
        done = True
    finally:
        _current = before
        own.close(done)


@contextmanager
def at(item: str) -> Iterator[None]:
    """As `Attempts.at`, of the unit that this process works on; nothing where no record is kept."""
    if _current is None:
        yield
    else:
        with _current.at(item):
            yield


def killed(item: str) -> Transient | None:
    """As `Attempts.killed`, of the unit that this process works on."""
    return _current.killed(item) if _current else None
