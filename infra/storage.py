"""Files that are either whole or absent, and addresses that say where data lies.

`write_atomic` is the only way medloom makes a file that a reader may trust: temporary name, fsync, rename, fsync of the
folder. An address is a path, or `pkg:PACKAGE/PATH` for data that ships inside an installed package.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType

from infra.errors import ConfigError
from infra.keys import sha256

TEMPORARY = ".tmp-"
"""Prefix of unfinished files; readers skip it and `sweep` removes what a killed process left."""
SYNCS = 8
"""Files waited for at once."""
_HOST = sha256(socket.gethostname().encode())[:8]


def write_atomic(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a temporary file beside `path`, then move it into place; on any error nothing is left."""
    draft = draft_of(path)
    try:
        fill(draft)
        publish(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def draft_of(path: Path) -> Path:
    """The temporary name beside `path` under which this process may write it; its folder is made."""
    _make(path.parent)
    return path.with_name(f"{TEMPORARY}{_HOST}-{os.getpid()}-{path.name}")


def _make(folder: Path) -> None:
    """Make a folder and those above it, each named on the disk before anything lies in it."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def publish(draft: Path, path: Path) -> None:
    """Move a finished draft to its name so that the move survives a power cut.

    Of a home in a bucket it goes there first. Raises Transient when the bucket stays out of reach.
    """
    from infra import mirror

    _sync(draft)
    mirror.send(draft, path)
    os.replace(draft, path)
    _sync(path.parent)


def publish_all(
    drafts: Sequence[tuple[Path, Path]], last: tuple[Path, Path], sha256: Mapping[Path, str] = MappingProxyType({})
) -> None:
    """Move finished drafts to their names, and then the last one, which vouches for the others.

    Files are on the disk before they have their names, and those before the last one has its own; they are waited for
    at once: a file system commits many syncs in the time of one. The move of the last is on the disk after `settle`
    of its folder; a power cut before that takes it back, and with it all that it vouched for. `sha256` is known of some
    of their names. Raises Transient when a bucket stays out of reach.
    """
    from infra import mirror

    settle(last[0], *(draft for draft, _ in drafts))
    for draft, path in drafts:
        mirror.send(draft, path, sha256.get(path))
        os.replace(draft, path)
    settle(*dict.fromkeys(path.parent for _, path in drafts))
    mirror.send(*last)
    os.replace(*last)


def settle(*paths: Path) -> None:
    """Wait until files, and what was moved in folders, are on the disk."""
    list(_pool(os.getpid()).map(_sync, paths))


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads that wait for the disk; a forked process has none of its parent's."""
    return ThreadPoolExecutor(SYNCS, f"sync-{process}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """`write_atomic` for bytes at hand."""
    write_atomic(path, lambda draft: draft.write_bytes(data))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file of any size, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, *, shared: bool = False, wait_s: float = 0) -> Iterator[None]:
    """Hold a lock file, alone or with others who share it; the kernel gives it back however its holder ends.

    Raises TimeoutError when others still hold it after so many seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + wait_s
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise TimeoutError(f"{path} is held by another process") from None
                time.sleep(0.02)
        yield


def sweep(folder: Path) -> int:
    """Remove drafts that dead processes of this machine left; returns how many. Those of others are not ours."""
    swept = 0
    for path in folder.rglob(f"{TEMPORARY}{_HOST}-*"):
        process = path.name.removeprefix(f"{TEMPORARY}{_HOST}-").partition("-")[0]
        if not Path(f"/proc/{process}").exists():
            path.unlink(missing_ok=True)
            swept += 1
    return swept


def resolve(address: str, base: Path | None = None) -> Path:
    """The local folder or file of an address; a relative path is taken from `base` (the recipe's folder).

    Of s3://BUCKET/PREFIX it is a copy on this machine, as the bucket was when it was last listed.
    """
    if address.startswith("s3://"):
        from infra import mirror

        return mirror.source(address)
    if address.startswith("pkg:"):
        package, _, inner = address.removeprefix("pkg:").partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"{address}: the package {package!r} is not installed; install it or change the address")
        path = Path(next(iter(spec.submodule_search_locations))) / inner
    else:
        path = Path(os.path.expandvars(address)).expanduser()
        path = path if path.is_absolute() else (base or Path.cwd()) / path
    if not path.exists():
        raise ConfigError(f"{address}: nothing there ({path}); check the path in the recipe")
    return path


def walk(root: Path) -> Iterator[Path]:
    """All regular files under a folder in a fixed order, hidden ones left out, links to folders not followed."""
    if root.is_file():
        yield root
        return
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if not n.startswith((".", "__MACOSX")))
        for name in sorted(files):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file():
                yield path
