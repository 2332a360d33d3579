"""An export to a bucket: written to a folder of ours, checked against its CHECKSUMS, sent file by file, manifest last.

The invariant: where `manifest.json` is under the prefix, all else that CHECKSUMS names is there whole. What an
interrupted run left is gone on with by the same command: files on disk are not written again, objects that have their
SHA-256 on record are not sent again. A prefix that holds anything else is refused: an export never mixes with what is
there. Credentials and the address of a server that is not AWS are those of boto3's environment (AWS_ENDPOINT_URL).

>>> send(folder, Bucket.at("s3://team/ct-2026", anonymous=False))
Sent(files=12, bytes=80123456, there=0)
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from infra.errors import ConfigError, MedloomError, Transient
from infra.keys import key
from infra.s3 import Bucket
from infra.storage import file_sha256, locked

MANIFEST, CHECKSUMS = "manifest.json", "CHECKSUMS"
AT_ONCE = 8
"""Files that are sent at a time."""
TRIES = 4
"""How often a file is sent whose upload fails for a reason that may pass, beside what boto3 tries by itself."""


class DamagedExport(MedloomError):
    """A file of an export is not what its CHECKSUMS says."""


@dataclass(frozen=True)
class Sent:
    """What was sent."""

    files: int
    bytes: int
    there: int
    """files that were there already"""


def export_to(home: Path, address: str, write: Callable[[Path], str]) -> str:
    """Write an export with `write`, to a folder of this home that outlives a kill, and send it; a line about both.

    Raises ConfigError when the address is none, or the prefix holds something else; what `write` and the bucket raise.
    """
    bucket = Bucket.at(address, anonymous=False)
    waiting = home / "cache" / "exports" / key(bucket.endpoint, bucket.name, bucket.prefix)
    waiting.mkdir(parents=True, exist_ok=True)
    try:
        with locked(waiting / ".lock"):
            said = write(waiting / "export")
            sent = send(waiting / "export", bucket)
            shutil.rmtree(waiting)
    except TimeoutError:
        raise ConfigError(f"another export to {address} is running; wait for it, or name another --out") from None
    there = f", {sent.there} were there already" if sent.there else ""
    return f"{said.replace(str(waiting / 'export'), address)}; {sent.files} files sent, {sent.bytes} bytes{there}"


def send(folder: Path, bucket: Bucket, pause_s: float = 1.0) -> Sent:
    """Send the files of a whole export under its prefix, the manifest last."""
    lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    known[CHECKSUMS] = hashlib.sha256((folder / CHECKSUMS).read_bytes()).hexdigest()
    if strange := next((name for name in bucket.list() if name not in known), None):
        raise ConfigError(
            f"s3://{bucket.name}/{bucket.prefix} holds {strange}, which is not of this export; name an empty --out"
        )
    whole = bucket.head(MANIFEST)
    if whole is not None and whole.sha256 != known[MANIFEST]:
        raise ConfigError(f"s3://{bucket.name}/{bucket.prefix} holds another export; name an empty --out")

    def one(name: str) -> tuple[int, int]:
        return _send(folder / name, bucket, name, known[name], pause_s)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            done = list(pool.map(one, sorted(set(known) - {MANIFEST})))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    done.append(one(MANIFEST))
    sent = [size for size, was_there in done if not was_there]
    return Sent(len(sent), sum(sent), len(done) - len(sent))


def _send(path: Path, bucket: Bucket, name: str, digest: str, pause_s: float) -> tuple[int, int]:
    """(bytes, 1 when it was there already) of a file."""
    size = path.stat().st_size
    if file_sha256(path) != digest:
        raise DamagedExport(
            f"{path} is not what {CHECKSUMS} says; check the disk, remove {path.parents[0]} and export again"
        )
    there = bucket.head(name)
    if there is not None and (there.size, there.sha256) == (size, digest):
        return size, 1
    for attempt in range(TRIES):
        try:
            bucket.upload(name, path, digest)
            break
        except Transient:
            if attempt + 1 == TRIES:
                raise
            time.sleep(pause_s * 2**attempt)
    return size, 0
