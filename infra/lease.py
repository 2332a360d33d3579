"""Leases: one build per dataset at a time, whoever starts it and from where.

A lease is one small JSON record in the dataset's home: who holds it, a beat that a thread of the holder renews, and a
token, a number that grows by one with every holder and is never given twice. The invariant: of all who hold a token,
only the one with the highest can pass `fence`, which a build calls before it commits; and nobody is declared dead by
comparing the clocks of two machines. A contender sees a holder dead when

- the record names this very kernel and process namespace, and the process is gone (or its number is another one's
  now): at once; or
- the beat did not change for a TTL, by the contender's own steady clock.

The time of day in a record is for people; here it only says whether watching for a TTL is worth it. A record changes by
compare and swap alone: `FileStore` under a lock file, `S3Store` by conditional puts; another store needs two methods.

A holder that was stopped for longer than a TTL finds the higher token when it wakes up, and is told by LeaseLost.
Between `fence` and the write of a build's record a stop may still fall. Then two builds commit, one after the other:
both are whole, since units are named by their content, and the number of a build is itself taken by lock or
conditional put. What a lease saves is work done and paid for twice, and two builds in turn undoing one another.

>>> with held(store_of(home), "chest", run="flow run clever-otter") as lease:
...     work(tell=lambda _: lease.check())
...     commit(fence=lease.fence)
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra import mirror
from infra.errors import ConfigError, MedloomError, Terminal
from infra.s3 import Bucket, Conflict
from infra.storage import locked, write_bytes

TTL_S = 60.0
"""A holder whose beat stands still for so long has lost its lease as soon as another one wants it."""
BEATS = 4
"""Renewals in one TTL."""
NAME = "lease.json"
_LOCK_WAIT_S = 30.0
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Of Linux, the one that also counts while a laptop sleeps."""


class LeaseHeld(MedloomError):
    """Somebody else builds this dataset; nothing was started."""


class LeaseLost(MedloomError):
    """Another build holds the dataset now, or the store cannot be asked; this one may not commit."""


class Store(Protocol):
    """Where a record lies. Both methods raise OSError or a MedloomError when the store cannot be reached."""

    address: str

    def load(self) -> tuple[bytes | None, Any]:
        """The record, None where there is none, and a tag of this very state of it."""

    def swap(self, data: bytes, tag: Any) -> bool:
        """Write the record if its state is still the tag's; False when it is not."""


class FileStore:
    """HOME/lease.json, changed under the lock file beside it; on a shared file system too, where it has locks."""

    def __init__(self, home: Path) -> None:
        self.address = str(home)
        self._file, self._lock = home / NAME, home / f".{NAME}.lock"

    def load(self) -> tuple[bytes | None, Any]:
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            return None, None
        return data, data

    def swap(self, data: bytes, tag: Any) -> bool:
        with locked(self._lock, wait_s=_LOCK_WAIT_S):
            if self.load()[1] != tag:
                return False
            write_bytes(self._file, data)
            return True


class S3Store:
    """The object lease.json below a prefix. The server must honour If-None-Match and If-Match on puts."""

    def __init__(self, bucket: Bucket) -> None:
        self.address = f"s3://{bucket.name}/{bucket.prefix}".rstrip("/")
        self._bucket = bucket

    def load(self) -> tuple[bytes | None, Any]:
        try:
            return self._bucket.read(NAME)
        except Terminal as error:
            if error.code != "FILE_MISSING":
                raise
            return None, None

    def swap(self, data: bytes, tag: Any) -> bool:
        try:
            self._bucket.put(NAME, data, absent=tag is None, etag=tag)
        except Conflict:  # or our own put, whose answer was lost: whoever asks looks at the record again
            return False
        return True


def store_of(home: Path) -> Store:
    """Where a home keeps its lease: in its bucket, if it is a working copy of one (infra/mirror.py)."""
    found = mirror.remote(home)
    return S3Store(found.bucket) if found else FileStore(home)


_Text = Annotated[str, Field(max_length=300)]


class Record(BaseModel):
    """What a store holds; fields that a newer version may add are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    token: Annotated[int, Field(ge=1)]
    held: bool
    """False: given back; the token stays, so that the next one is higher"""
    dataset: _Text
    holder: _Text
    """drawn by chance for each lease"""
    beat: int
    host: _Text
    kernel: _Text
    """boot id and process namespace: where `pid` means what it says; empty where the system has none"""
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    started: _Text
    """when the process began, in the kernel's ticks: a number may be given again"""
    user: _Text
    run: _Text
    """what started it"""
    since: _Text
    """UTC, for people, as `last` is"""
    last: _Text

    @property
    def sign(self) -> tuple[str, int]:
        """What changes while the holder lives."""
        return self.holder, self.beat

    @property
    def who(self) -> str:
        """user, host, process and what started it, in words."""
        words = f"{self.user} on {self.host} (process {self.pid}{f', {self.run}' if self.run else ''})"
        return "".join(c if c.isprintable() else "?" for c in words)


class Lease:
    """A lease that this process holds. Threads may share it."""

    def __init__(self, store: Store, record: Record, ttl_s: float, began: float) -> None:
        self._store, self._record, self._ttl_s = store, record, ttl_s
        self._renewed = began
        self._problem: LeaseLost | None = None
        self._mutex = threading.Lock()

    @property
    def token(self) -> int:
        return self._record.token

    def check(self) -> None:
        """Costs nothing while the lease is fresh. Raises LeaseLost when it is lost, or was not renewed for a TTL and
        cannot be renewed now."""
        if self._problem:
            raise self._problem
        if _now() - self._renewed >= self._ttl_s:
            self.fence()

    def fence(self) -> None:
        """Renew now: nobody has a higher token at this moment. Raises LeaseLost."""
        with self._mutex:
            if self._problem:
                raise self._problem
            try:
                self._renew(held=True)
            except LeaseLost as error:
                self._problem = error
                raise
            except (OSError, MedloomError) as error:
                raise LeaseLost(
                    f"whether {self._store.address} is still ours cannot be asked: {error}. Nothing was committed; "
                    "what units wrote stays, and the same command goes on from there"
                ) from error

    def _renew(self, held: bool) -> None:
        """Raises LeaseLost, OSError, MedloomError."""
        for _ in range(2):  # a swap may have been made although its answer was lost
            began = _now()
            data, tag = self._store.load()
            there = _parse(data, self._store)
            if there is None or (there.token, there.holder) != (self._record.token, self._record.holder):
                raise LeaseLost(self._taken(there))
            self._record = there.model_copy(update={"beat": there.beat + 1, "last": _utc(), "held": held})
            if self._store.swap(_dump(self._record), tag):
                self._renewed = began
                return
        raise LeaseLost(self._taken(None))

    def _taken(self, there: Record | None) -> str:
        now = f"taken over by {there.who} with token {there.token}" if there else "removed or changed by somebody else"
        return (
            f"the lease of {self._store.address} (token {self._record.token}) was {now}: this process did not renew it "
            f"for {self._ttl_s:g} s. Nothing was committed; what units wrote stays and counts for the other build"
        )

    def _beat(self, over: threading.Event) -> None:
        """Until it is over or lost. What cannot be reached is tried again; `check` says when that took too long."""
        while not over.wait(self._ttl_s / BEATS) and not self._problem:
            with suppress(LeaseLost):
                self.fence()

    def _give_back(self) -> None:
        """At best: where the store cannot be reached, the next one waits for a TTL."""
        with self._mutex, suppress(OSError, MedloomError):
            self._renew(held=False)


@contextmanager
def held(store: Store, dataset: str, run: str = "", ttl_s: float = TTL_S, wait_s: float = 0) -> Iterator[Lease]:
    """Hold a dataset's lease. `run` says what started this, in words.

    Raises LeaseHeld, at once when the holder gave a sign of life within a TTL, after a TTL of watching at the most
    when its record looks older; with wait_s, a live holder is waited for so long.
    """
    lease = _acquire(store, dataset, run, ttl_s, wait_s)
    over = threading.Event()
    beat = threading.Thread(target=lease._beat, args=(over,), name="lease", daemon=True)
    beat.start()
    try:
        yield lease
    finally:
        over.set()
        beat.join()
        lease._give_back()


def refuse(store: Store, ttl_s: float = TTL_S) -> None:
    """Raises LeaseHeld when somebody certainly works on the dataset; to say so before anything costly is started."""
    record = _parse(store.load()[0], store)
    if record and record.held and not _gone(record) and _looks_recent(record, ttl_s):
        raise LeaseHeld(_held_by(record, store, ttl_s))


def _acquire(store: Store, dataset: str, run: str, ttl_s: float, wait_s: float) -> Lease:
    holder, until = secrets.token_hex(8), _now() + wait_s
    seen: tuple[str, int] | None = None
    since, alive = 0.0, False
    while True:
        began = _now()
        data, tag = store.load()
        there = _parse(data, store)
        if there is None or not there.held or _gone(there) or (seen == there.sign and began - since >= ttl_s):
            mine = _record(there.token + 1 if there else 1, holder, dataset, run)
            if store.swap(_dump(mine), tag) or _parse(store.load()[0], store) == mine:
                return Lease(store, mine, ttl_s, began)
            continue  # somebody was quicker
        if seen != there.sign:
            alive = seen is not None or _looks_recent(there, ttl_s)
            seen, since = there.sign, _now()
        if alive and _now() >= until:
            raise LeaseHeld(_held_by(there, store, ttl_s))
        time.sleep(min(ttl_s / 20, 1.0))


def _record(token: int, holder: str, dataset: str, run: str) -> Record:
    now = _utc()
    return Record(
        token=token, held=True, dataset=dataset[:300], holder=holder, beat=0, host=socket.gethostname()[:300],
        kernel=_kernel(), pid=os.getpid(), started=_process(os.getpid())[1], user=_user(), run=run[:300],
        since=now, last=now,
    )


def _parse(data: bytes | None, store: Store) -> Record | None:
    try:
        return None if data is None else Record.model_validate_json(data)
    except ValidationError:
        raise ConfigError(
            f"{store.address}/{NAME} is no lease that this version can read; if nobody builds this dataset, remove it"
        ) from None


def _dump(record: Record) -> bytes:
    return record.model_dump_json(indent=1).encode() + b"\n"


def _held_by(record: Record, store: Store, ttl_s: float) -> str:
    return (
        f"{store.address} is held by {record.who} since {record.since}, last sign of life {record.last}. "
        "Nothing was started: run this again when that has ended, or stop it there first. Should that machine be gone, "
        f"its lease ends {ttl_s:g} s after its last sign of life"
    )


def _gone(record: Record) -> bool:
    """Whether the holder was a process of this very kernel that is no more. Of others nothing is known: False."""
    here = _kernel()
    if not here or record.kernel != here:
        return False
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's; /proc may hide it
        pass
    state, started = _process(record.pid)
    return state in ("Z", "X") or (started != record.started and bool(started))


def _looks_recent(record: Record, ttl_s: float) -> bool:
    """By the clocks of two machines, so good for nothing but to save the watching."""
    try:
        return abs(time.time() - datetime.fromisoformat(record.last).timestamp()) < ttl_s
    except ValueError:
        return False


def _process(pid: int) -> tuple[str, str]:
    """State of a process of this machine and when it began, in the kernel's ticks (proc(5)); empty when hidden."""
    try:
        state, *fields = Path(f"/proc/{pid:d}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return "", ""
    return state, fields[18]


def _kernel() -> str:
    """The boot id and the process namespace of this process: two containers of one machine share the first alone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()[:300]
    except (OSError, KeyError):  # a number without a name, as containers have it
        return str(os.getuid())


def _utc() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")


def _now() -> float:
    return time.clock_gettime(_CLOCK)
