"""Token buckets that all processes of one machine share: so many requests, or tokens, a minute and no more.

The invariant: over any span of time, what all takers together were let through is at most `burst` seconds' worth more
than the rate allows, whichever processes they live in and however they die. A killed taker loses at most what it took.

The bucket is the generic cell rate algorithm (ITU-T I.371): one number, the time at which all that was taken will have
been earned, in a small locked file. A taker adds its cost and is told how long to wait, so takers are served in the
order in which they came and nobody polls. The number is CLOCK_MONOTONIC, which processes and containers of one Linux
machine share and which nobody sets back; the file's name holds the boot, so a restarted machine begins with a full
bucket. Several machines do not see each other: give each its part of the limit.

>>> bucket = Bucket(home / "cache" / "llm" / "buckets", "requests of local", per_minute=600)
>>> time.sleep(bucket.take(1))
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from infra.errors import Transient
from infra.keys import sha256

BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Bucket:
    """A limit of `per_minute` units, shared under `name` by whoever uses the same folder."""

    folder: Path
    name: str
    per_minute: float
    burst: float = 10
    """seconds' worth that may be taken at once by somebody who took nothing before"""

    def take(self, units: float, patience: float = float("inf")) -> float:
        """Take so many units; returns the seconds to wait before using them.

        Raises Transient LLM_BUSY, with nothing taken, where the wait would be longer than `patience` seconds. More
        than a burst's worth may be taken at once: it is let through when the bucket is full, and owed afterwards.
        """
        cost = units * 60 / self.per_minute
        with self._earned() as file:
            now = time.monotonic()
            earned = max(_number(file), now)
            wait = max(0.0, min(earned + cost - self.burst, earned) - now)
            if wait > patience:
                limit = f"{self.name}: the limit of {self.per_minute:g} a minute is used up"
                raise Transient("LLM_BUSY", f"{limit} for {wait:.0f} s; wait, or raise the limit", wait)
            _put(file, earned + cost)
        return wait

    def give_back(self, units: float) -> None:
        """Return what was taken and not used; a negative number takes what was used and not taken."""
        with self._earned() as file:
            _put(file, _number(file) - units * 60 / self.per_minute)

    @contextmanager
    def _earned(self) -> Iterator[IO[str]]:
        boot = BOOT.read_text() if BOOT.exists() else ""
        path = self.folder / f"{sha256(f'{self.name} {boot}'.encode())[:24]}.bucket"
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the kernel gives it back when its holder dies
            file.seek(0)
            yield file


def _number(file: IO[str]) -> float:
    try:
        return float(file.read())
    except ValueError:
        return 0.0  # new, hence full


def _put(file: IO[str], number: float) -> None:
    file.seek(0)
    file.write(f"{number:<32.6f}")  # always as long, so that one write replaces it and a kill leaves no half of one
    file.flush()
