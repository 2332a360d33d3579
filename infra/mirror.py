"""Homes and sources in an object store: `s3://BUCKET/PREFIX` wherever a folder is named.

All code works on a local folder. That of a home in a bucket is a working copy: what others may rely on is written under
a temporary name, verified, sent to the bucket, and only then given its name; what is not at hand is fetched. The
invariant: a trusted file of the working copy is in the bucket, whole and checked, and since manifests are written last,
a bucket never names what it does not hold. A working copy may be thrown away at any time.

    WORK/homes/<name>/.remote.json     which bucket the working copy is of
    WORK/sources/<name>/               a copy of a source, as the bucket was when it was last listed

WORK is MEDLOOM_WORK, by default ~/.cache/medloom; it must be the same path on all machines of a cluster. Credentials
and the server's address are boto3's own: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL_S3 and so on.

>>> home = home_of("s3://lab/chest")
>>> local(home / "shards/images/nih/000-ab12.parquet", sha256="…")   # fetched unless it is at hand
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import stamina

from infra import keys
from infra.errors import ConfigError, Terminal, Transient
from infra.pieces import Pieces
from infra.s3 import Begun, Bucket
from infra.storage import draft_of, file_sha256

NOTE = ".remote.json"
PATIENCE_S = 120.0
"""How long a store that does not answer is waited for, beyond the retries of single requests."""
SHARED = re.compile(
    r"(shards|manifests|builds|reports|decisions|knowledge|segments|lake)/.+|catalog\.ro\.duckdb|cache/llm/[0-9a-f]{2}/.+\.json"
)
"""What of a home others rely on; all else is this machine's own, secrets above all."""
THREADS = 16
_known: dict[Path, Bucket] = {}

T = TypeVar("T")


@dataclass(frozen=True)
class Remote:
    """A working copy and what it is a copy of."""

    home: Path
    bucket: Bucket

    def key(self, path: Path) -> str:
        return Path(os.path.abspath(path)).relative_to(self.home).as_posix()


def home_of(address: str | Path) -> Path:
    """The folder to work in for a home: itself, or for s3://BUCKET/PREFIX its working copy, made where it is missing.

    Raises ConfigError for an address that is none.
    """
    text = str(address)
    if not text.startswith("s3:/"):
        return Path(text)
    text = f"s3://{text.removeprefix('s3:').strip('/')}"
    Bucket.at(text)  # a wrong address must not leave a folder
    home = work() / "homes" / _slug(text)
    home.mkdir(parents=True, exist_ok=True)
    if not (home / NOTE).exists():
        (home / NOTE).write_text(json.dumps({"address": text}))
    _roots.update(dict.fromkeys(_homes(os.environ.get("MEDLOOM_WORK"))))
    return home


def address_of(home: Path) -> str:
    """What names a home to a process elsewhere: its bucket's address, or its absolute path."""
    found = remote(home)
    return f"s3://{found.bucket.name}/{found.bucket.prefix}".rstrip("/") if found else str(home.resolve())


def work() -> Path:
    """Folder of working copies."""
    return Path(os.environ.get("MEDLOOM_WORK") or Path.home() / ".cache" / "medloom").absolute()


def remote(path: Path) -> Remote | None:
    """The store behind a home or a file of it; None for a home that is a folder and no more."""
    text = os.path.abspath(path)
    _roots.update(dict.fromkeys(_homes(os.environ.get("MEDLOOM_WORK"))))
    for root in _roots:
        if text.startswith(root):
            home = Path(root, text[len(root) :].partition(os.sep)[0])
            if home not in _known:
                try:
                    address = json.loads((home / NOTE).read_text())["address"]
                except FileNotFoundError:
                    return None
                _known[home] = Bucket.at(address, anonymous=False, in_flight=THREADS)
            return Remote(home, _known[home])
    return None


_roots: dict[str, None] = {}
"""What paths of working copies have begun with in this process."""


@cache
def _homes(_: str | None) -> tuple[str, ...]:
    """What the paths of working copies begin with, as they are named and as they lie."""
    homes = work() / "homes"
    return f"{homes}{os.sep}", f"{homes.resolve()}{os.sep}"


def send(draft: Path, path: Path, sha256: str | None = None) -> None:
    """Put a finished draft under the key of `path`, where that is shared with others; else nothing is to do.

    `sha256` is its hash where that is known already.
    """
    found = remote(path)
    if found and SHARED.fullmatch(key := found.key(path)):
        digest = sha256 or file_sha256(draft)
        _patiently(lambda: found.bucket.upload(key, draft, digest))


def share(path: Path) -> None:
    """Send a file that was written in place and never changes, unless the bucket has it."""
    found = remote(path)
    if found and _patiently(lambda: found.bucket.head(found.key(path))) is None:
        send(path, path)


def push(folder: Path) -> None:
    """Make a folder of the bucket what it is here; of files that never change, written in place."""
    if found := remote(folder):
        here = {found.key(path): path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}
        there = _patiently(lambda: set(found.bucket.list(f"{found.key(folder)}/")))
        for key in sorted(here.keys() - there):
            send(here[key], here[key])
        _patiently(lambda: found.bucket.remove(sorted(there - here.keys())))


def send_new(data: bytes, path: Path) -> None:
    """The same for a record that must not replace one that somebody else wrote. Raises infra.s3.Conflict."""
    if found := remote(path):
        _patiently(lambda: found.bucket.put(found.key(path), data, absent=True))


def local(path: Path, sha256: str | None = None) -> Path:
    """A file that never changes, fetched where it is not at hand; the path as it is where there is none at all.

    Raises Transient when it does not come whole.
    """
    if not path.exists() and (found := remote(path)) and SHARED.fullmatch(found.key(path)):
        _fetch(found.bucket, found.key(path), path, sha256)
    return path


def current(path: Path) -> Path:
    """A file that is replaced in time, in its newest state."""
    if found := remote(path):
        head = _patiently(lambda: found.bucket.head(found.key(path)))
        if head and not (path.exists() and file_sha256(path) == head.sha256):
            _fetch(found.bucket, found.key(path), path, head.sha256)
    return path


def opened(path: Path) -> Path | Pieces:
    """What to read a few columns of a large file from: the file at hand, or pieces of its object as they are wanted."""
    if path.exists() or not (found := remote(path)):
        return path
    return found.bucket.open(found.key(path))


def pull(folder: Path) -> None:
    """Make a folder of a home what it is in the store: what is new is fetched, what is gone is removed."""
    if not (found := remote(folder)):
        return
    there = _patiently(lambda: set(found.bucket.list(f"{found.key(folder)}/")))
    here = {found.key(path) for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}
    missing = sorted(there - here)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda key: _fetch(found.bucket, key, found.home / key), missing))
    for key in here - there:
        (found.home / key).unlink(missing_ok=True)


@dataclass(frozen=True)
class Listed:
    """A file of a home, at hand or not."""

    path: str
    """relative to the home"""
    bytes: int
    age_s: float
    """seconds since it was written"""


def listed(home: Path, folder: str) -> Iterator[Listed]:
    """Every file below a folder of a home, in the order of their paths, drafts left out."""
    now = time.time()
    if found := remote(home):
        for entry in found.bucket.stat(f"{folder}/"):
            yield Listed(entry.key, entry.size, now - entry.written.timestamp())
        return
    for path in sorted((home / folder).rglob("*")):
        with suppress(FileNotFoundError):  # one that somebody removes meanwhile
            if path.is_file() and not path.name.startswith("."):
                yield Listed(path.relative_to(home).as_posix(), path.stat().st_size, now - path.stat().st_mtime)


def discard(home: Path, paths: Sequence[str]) -> None:
    """Remove files of a home, named relative to it, here and in the store."""
    if found := remote(home):
        _patiently(lambda: found.bucket.remove(paths))
    for path in paths:
        (home / path).unlink(missing_ok=True)


def unfinished(home: Path, age_s: float) -> list[Begun]:
    """Uploads to a home's bucket that began so many seconds ago or earlier and have not ended: their processes died.

    A server that does not tell of them, or may not, is no reason to stop: that is warned of.
    """
    if not (found := remote(home)):
        return []
    now = time.time()
    try:
        return [upload for upload in found.bucket.uploads() if now - upload.begun.timestamp() >= age_s]
    except (Terminal, Transient) as error:
        logging.getLogger(__name__).warning("uploads that never ended stay, they cannot be listed: %s", error)
        return []


def abort(home: Path, uploads: Iterable[Begun]) -> None:
    """Give back the room of unfinished uploads."""
    if found := remote(home):
        for upload in uploads:
            _patiently(partial(found.bucket.abort, upload))


def spare(home: Path, folder: str, age_s: float) -> list[Listed]:
    """This machine's copies of files below a folder of a home that the bucket holds too, and that nobody read or wrote
    for so many seconds, as far as the file system tells (most note reading once a day, some never)."""
    if not (found := remote(home)):
        return []
    now, old = time.time(), []
    for path in sorted((home / folder).rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            seen = path.stat()
            if (age := now - max(seen.st_atime, seen.st_mtime)) >= age_s:
                old.append(Listed(found.key(path), seen.st_size, age))
    with ThreadPoolExecutor(THREADS) as pool:
        heads = pool.map(lambda file: _patiently(lambda: found.bucket.head(file.path)), old)
        return [file for file, head in zip(old, heads, strict=True) if head and head.sha256 and head.size == file.bytes]


def evict(home: Path, files: Iterable[Listed]) -> list[Listed]:
    """Remove those of these copies whose very bytes the bucket holds; returns them. `local` fetches them again."""
    gone = []
    if found := remote(home):
        for file in files:
            path = home / file.path
            head = _patiently(partial(found.bucket.head, file.path))
            if head and path.is_file() and head.sha256 == file_sha256(path):
                path.unlink()
                gone.append(file)
    return gone


def source(address: str, refresh: bool = False) -> Path:
    """The local copy of a source or a corpus at s3://BUCKET/PREFIX; `refresh` brings it up to date with the bucket.

    Objects that changed are fetched again, those that are gone are removed. Without credentials in the environment it
    is read anonymously.
    """
    folder = work() / "sources" / _slug(address)
    done = folder / ".complete"
    if done.exists() and not refresh:
        return folder
    signed = bool(os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_PROFILE"))
    bucket = Bucket.at(address, anonymous=not signed, in_flight=THREADS)
    seen: dict[str, str] = json.loads(done.read_text()) if done.exists() else {}
    listing = _patiently(lambda: list(bucket.stat()))
    there = {entry.key: entry.etag for entry in listing if not entry.key.endswith("/") and _inside(folder, entry.key)}
    if not there:
        raise ConfigError(f"{address}: nothing there; check the address in the recipe")
    changed = [key for key in sorted(there) if seen.get(key) != there[key] or not (folder / key).exists()]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda key: _fetch(bucket, key, folder / key), changed))
    for key in seen.keys() - there.keys():
        (folder / key).unlink(missing_ok=True)
    draft = draft_of(done)
    draft.write_text(json.dumps(there))
    draft.replace(done)
    return folder


def refresh_sources(addresses: Iterable[str]) -> None:
    """Bring the copies of sources up to date; what is no address of a bucket is left alone."""
    for address in addresses:
        if address.startswith("s3://"):
            source(address, refresh=True)


def _fetch(bucket: Bucket, key: str, path: Path, sha256: str | None = None) -> None:
    draft = draft_of(path)
    try:
        _patiently(lambda: bucket.download(key, draft))
        if sha256 and file_sha256(draft) != sha256:
            raise Transient("CHECKSUM", f"s3://{bucket.name}/{bucket.prefix}{key}: its bytes are not those on record")
        os.replace(draft, path)
    except Terminal as error:
        if error.code != "FILE_MISSING":
            raise
    finally:
        draft.unlink(missing_ok=True)


def _patiently(call: Callable[[], T]) -> T:
    """A call of the store, again and with growing pauses while it may pass."""
    for attempt in stamina.retry_context(on=Transient, attempts=None, timeout=PATIENCE_S, wait_max=15):
        with attempt:
            return call()
    raise AssertionError("unreachable: the last attempt raises")


def _slug(address: str) -> str:
    """A folder's name for an address: one that people can read, and that no other address has."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", address.removeprefix("s3://")).strip("-.")
    return f"{words[-60:]}-{keys.key('address', address)[:10]}"


def _inside(folder: Path, key: str) -> bool:
    return (folder / key).resolve().is_relative_to(folder.resolve())
