"""Resident memory of the processes below this one while something runs, from /proc.

>>> with Watch() as watch:
...     run_chains(chains, recipe, home, runner, progress, watch.tell(home))
>>> watch.peak(0, 1000)
(231.4, 460.2, 310.0)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from catalog.manifest import read_manifest
from flows.build import Progress

WORKERS = ("ray::IDLE", "ray::_call_task", "ray::_Worker")
"""What Ray calls its worker processes; its agents are no workers."""
EVERY = 0.1
"""Seconds between two looks."""
PAGE = os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Looks at Ray's workers below this process, and at this process, in a thread."""

    def __init__(self) -> None:
        self._images = 0
        self._looks: list[tuple[int, list[int], int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def tell(self, home: Path) -> Callable[[Progress], None]:
        """What a build in `home` may call after each unit, so that looks are counted by images done."""

        def told(progress: Progress) -> None:
            self._images += read_manifest(home, progress.manifests[-1]).kept

        return told

    def peak(self, since: float, until: float) -> tuple[float, float, float]:
        """MB of the largest worker, of all workers together (shared pages counted for each), and of this process."""
        looks = [look for look in self._looks if since <= look[0] < until] or self._looks[-1:]
        largest = max(max(workers, default=0) for _, workers, _ in looks)
        return largest / 1e6, max(sum(workers) for _, workers, _ in looks) / 1e6, max(own for *_, own in looks) / 1e6

    def _look(self) -> None:
        while not self._stop.wait(EVERY):
            workers = [_resident(pid) for pid in _below(os.getpid()) if _title(pid).startswith(WORKERS)]
            self._looks.append((self._images, workers, _resident(os.getpid())))


def _below(top: int) -> set[int]:
    """Process ids of everything that descends from a process."""
    parents = {int(p.name): _parent(p) for p in Path("/proc").iterdir() if p.name.isdigit()}
    found, new = set[int](), {top}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new}
        found |= new
    return found


def _parent(process: Path) -> int:
    text = _read(process / "stat")
    return int(text.rpartition(")")[2].split()[1]) if text else 0


def _title(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/cmdline"))


def _resident(pid: int) -> int:
    """Bytes; 0 when the process has just ended."""
    text = _read(Path(f"/proc/{pid}/statm"))
    return int(text.split()[1]) * PAGE if text else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the process ended meanwhile
        return ""
