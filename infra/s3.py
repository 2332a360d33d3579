"""Objects of an S3 bucket: each comes and goes whole and checked, or not at all.

The invariant: what `get` returns and `download` writes has the length that the server named and the MD5 that the caller
asked for; anything else is fetched again from scratch, and is an error in the end. What `put` and `upload` send carries
a checksum that the server checks; an upload in parts that fails is aborted, nothing of it stays. Requests are unsigned
unless the caller says otherwise, so no credentials are looked for. Messages name bucket and key, never credentials.

>>> bucket = Bucket.at("s3://pmc-oa-opendata")
>>> list(bucket.list("PMC11370360.", delimiter="/"))
['PMC11370360.1/']
>>> bucket.get("PMC11370360.1/PMC11370360.1.xml", md5="0a3c…")
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

from infra import telemetry
from infra.errors import ConfigError, ItemError, MedloomError, Terminal, Transient
from infra.keys import sha256
from infra.pieces import Pieces


class Conflict(MedloomError):
    """A conditional write found another object than the one it was to replace, or one where none was to be."""


TRIES = 3
"""How often an object that comes incomplete or altered is fetched from scratch."""
PIECE = 1 << 20
PART = 16 << 20
"""Files larger than this are sent in parts of this size, in bytes."""
MAX_BYTES = 128 << 20
"""What `get` takes into memory unless it is told otherwise."""
_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([^?#]*))?")
_MISSING = ("NoSuchKey", "NoSuchUpload", "404", "NotFound")
_DENIED = ("AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled")
_CHANGED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_EXPIRED = ("ExpiredToken", "RequestExpired", "TokenRefreshRequired")
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Head:
    """What the server says of an object."""

    size: int
    etag: str
    sha256: str | None
    """of its bytes, where `upload` wrote it"""


@dataclass(frozen=True)
class Stat:
    """An object as a listing tells of it."""

    key: str
    size: int
    etag: str
    written: datetime


@dataclass(frozen=True)
class Begun:
    """An upload in parts that was neither completed nor aborted; its parts are paid for."""

    key: str
    id: str
    begun: datetime


@dataclass(frozen=True)
class Bucket:
    """A bucket, or what lies below a prefix of it; keys are relative to the prefix."""

    name: str
    prefix: str = ""
    endpoint: str | None = None
    """address of the server; None: AWS"""
    anonymous: bool = True
    """unsigned requests; False: with the credentials that boto3 finds in the environment"""
    in_flight: int = 16
    """connections kept open, which is how many threads may use it at once"""
    per_second: float | None = None
    """requests a second that this process sends at most, retries among them"""
    attempts: int = 5
    """how often one request is sent when the server is busy, fails or does not answer, with growing pauses"""

    @classmethod
    def at(cls, address: str, endpoint: str | None = None, **how: Any) -> Bucket:
        """The bucket of an address s3://BUCKET/PREFIX. Raises ConfigError."""
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise ConfigError(f"{address}: not an address of the form s3://BUCKET or s3://BUCKET/PREFIX; mend it")
        if endpoint is not None and not re.fullmatch(r"https?://[^@?#\s]+", endpoint):
            raise ConfigError("endpoint: not of the form https://HOST:PORT, without a user; mend it")
        prefix = (found[2] or "").strip("/")
        return cls(found[1], f"{prefix}/" if prefix else "", endpoint, **how)

    def list(self, prefix: str = "", delimiter: str = "") -> Iterator[str]:
        """Keys that begin with a prefix, in order; with a delimiter, what follows it is folded into one KEY/.

        Raises as `get` does.
        """
        for page in self._pages(prefix, delimiter):
            names = [entry["Key"] for entry in page.get("Contents", ())]
            names += [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
            yield from (name.removeprefix(self.prefix) for name in sorted(names))

    def stat(self, prefix: str = "") -> Iterator[Stat]:
        """What there is under keys that begin with a prefix, in order. Raises as `get` does."""
        for page in self._pages(prefix):
            for entry in page.get("Contents", ()):
                yield Stat(entry["Key"].removeprefix(self.prefix), entry["Size"], entry["ETag"], entry["LastModified"])

    def _pages(self, prefix: str, delimiter: str = "") -> Iterator[Any]:
        asked = {"Bucket": self.name, "Prefix": self.prefix + prefix, "Delimiter": delimiter}
        with self._errors(prefix):
            yield from self._client().get_paginator("list_objects_v2").paginate(**asked)

    def get(self, key: str, md5: str | None = None, max_bytes: int = MAX_BYTES) -> bytes:
        """The bytes of an object.

        Raises Terminal FILE_MISSING, ACCESS_DENIED, OBJECT_TOO_LARGE; Transient CHECKSUM when it came incomplete or
        altered in every one of TRIES, SOURCE_UNREADABLE when the server is busy, fails or does not answer; ConfigError
        when there is no such bucket.
        """
        sink = io.BytesIO()
        self._receive(key, sink, md5, max_bytes)
        return sink.getvalue()

    def download(self, key: str, path: Path, md5: str | None = None) -> None:
        """Write an object of any size to a file, in pieces. Raises as `get` does, and then leaves no file."""
        try:
            with open(path, "w+b") as sink:
                self._receive(key, sink, md5, None)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def read(self, key: str) -> tuple[bytes, str]:
        """The bytes of a small object and its ETag, which `put` takes. Raises as `get` does."""
        sink = io.BytesIO()
        etag = self._receive(key, sink, None, MAX_BYTES)
        return sink.getvalue(), etag

    def head(self, key: str) -> Head | None:
        """What there is under a key, or None. Raises as `get` does."""
        try:
            with self._errors(key):
                answer = self._client().head_object(Bucket=self.name, Key=self.prefix + key)
        except Terminal as error:
            if error.code == "FILE_MISSING":
                return None
            raise
        return Head(answer["ContentLength"], answer["ETag"], answer.get("Metadata", {}).get("sha256"))

    def open(self, key: str) -> Pieces:
        """An object as a file that fetches what is read of it. Raises as `get` does."""
        there = self.head(key)
        if there is None:
            raise Terminal("FILE_MISSING", f"{self._named(key)} is not in the bucket")
        return Pieces(lambda start, length: self.piece(key, start, length), there.size)

    def piece(self, key: str, start: int, length: int) -> bytes:
        """So many bytes of an object from a place on. Raises as `get` does."""
        if length <= 0:
            return b""
        sink = io.BytesIO()
        self._receive(key, sink, None, MAX_BYTES, Range=f"bytes={start}-{start + length - 1}")
        return sink.getvalue()

    def put(self, key: str, data: bytes, *, absent: bool = False, etag: str | None = None) -> str:
        """Write a small object; returns its ETag. With `absent` only where there is none, with `etag` only over that.

        Raises Conflict when a condition does not hold, else as `get` does; a write whose answer was lost and that was
        sent again counts as one.
        """
        condition: dict[str, str] = {"IfNoneMatch": "*"} if absent else {"IfMatch": etag} if etag else {}
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        try:
            with self._errors(key):
                answer = self._client().put_object(
                    Bucket=self.name, Key=self.prefix + key, Body=data, ContentMD5=digest, **condition
                )
                return str(answer["ETag"])
        except Conflict:
            there = self.head(key)
            if there and there.size == len(data):
                stands, tag = self.read(key)
                if stands == data:
                    return tag
            raise

    def upload(self, key: str, path: Path, sha256: str | None = None) -> None:
        """Write a file of any size, in parts where it is large, and see that all of it arrived. Raises as `get` does.

        `sha256` is kept beside the object for `head`.
        """
        from boto3.exceptions import S3UploadFailedError
        from boto3.s3.transfer import TransferConfig
        from botocore.exceptions import ClientError

        how = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)
        extra = {"Metadata": {"sha256": sha256}} if sha256 else {}
        with self._errors(key):
            try:
                self._client().upload_file(str(path), self.name, self.prefix + key, ExtraArgs=extra, Config=how)
            except S3UploadFailedError as error:  # boto3 wraps what the server answered
                if isinstance(error.__context__, ClientError):
                    raise error.__context__ from None
                raise Transient("STORE_UNREACHABLE", f"{self._named(key)}: the upload failed; {_LATER}") from error
        there, size = self.head(key), path.stat().st_size
        if there is None or there.size != size:
            came = "nothing" if there is None else f"{there.size} bytes"
            raise Transient("CHECKSUM", f"{self._named(key)}: {came} of {size} bytes arrived; {_LATER}")

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error. Raises as `get` does."""
        for some in _batched(keys, 1000):
            names = [{"Key": self.prefix + key} for key in some]
            with self._errors(some[0]):
                answer = self._client().delete_objects(Bucket=self.name, Delete={"Objects": names, "Quiet": True})
            for error in answer.get("Errors", ()):
                raise self._error(error["Key"].removeprefix(self.prefix), error["Code"])

    def uploads(self) -> Iterator[Begun]:
        """Uploads in parts that are under way, or were left by processes that died. Raises as `get` does."""
        asked = {"Bucket": self.name, "Prefix": self.prefix}
        with self._errors(""):
            for page in self._client().get_paginator("list_multipart_uploads").paginate(**asked):
                for entry in page.get("Uploads", ()):
                    yield Begun(entry["Key"].removeprefix(self.prefix), entry["UploadId"], entry["Initiated"])

    def abort(self, upload: Begun) -> None:
        """Remove what came of an upload; one that has ended meanwhile is no error. Raises as `get` does."""
        try:
            with self._errors(upload.key):
                asked = {"Bucket": self.name, "Key": self.prefix + upload.key, "UploadId": upload.id}
                self._client().abort_multipart_upload(**asked)
        except Terminal as error:
            if error.code != "FILE_MISSING":
                raise

    def _receive(self, key: str, sink: IO[bytes], md5: str | None, max_bytes: int | None, **asked: str) -> str:
        problem: ItemError | None = None
        for attempt in range(TRIES):
            time.sleep(0.2 * attempt)
            sink.seek(0)
            sink.truncate()
            with self._errors(key):
                answer = self._client().get_object(Bucket=self.name, Key=self.prefix + key, **asked)
            problem = self._copied(key, answer, sink, md5, max_bytes)
            if problem is None:
                return str(answer.get("ETag", ""))
        raise problem or AssertionError("unreachable")

    def _copied(
        self, key: str, answer: Any, sink: IO[bytes], md5: str | None, max_bytes: int | None
    ) -> Transient | None:
        """Copy an answer's body; what is wrong with what came, or None. Raises Terminal OBJECT_TOO_LARGE."""
        from botocore.exceptions import BotoCoreError

        named, came, digest = answer.get("ContentLength"), 0, hashlib.md5(usedforsecurity=False)
        with answer["Body"] as body:
            while True:
                if max_bytes is not None and max(named or 0, came) > max_bytes:
                    raise Terminal("OBJECT_TOO_LARGE", f"{self._named(key)} has more than {max_bytes >> 20} MiB")
                try:
                    piece = body.read(PIECE)
                except BotoCoreError:  # the connection broke, or nothing came any more
                    return Transient("CHECKSUM", f"{self._named(key)}: {came} of {named} bytes came; {_LATER}")
                if not piece:
                    break
                came += len(piece)
                digest.update(piece)
                sink.write(piece)
        if named is not None and came != named:
            return Transient("CHECKSUM", f"{self._named(key)}: {came} of {named} bytes came; {_LATER}")
        if md5 is not None and digest.hexdigest() != md5.lower():
            came_as = f"MD5 {digest.hexdigest()}, not {md5}"
            return Transient("CHECKSUM", f"{self._named(key)} has the {came_as}, {TRIES} times; {_LATER}")
        return None

    def _client(self) -> Any:
        with _LOCK:  # so that all threads of a process share one connection pool and one pace
            who = None if self.anonymous else _identity()
            return _client(self.endpoint, who, self.in_flight, self.per_second, self.attempts)

    def _named(self, key: str) -> str:
        return f"s3://{self.name}/{self.prefix}{key}"

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """boto3's errors as ours; the type and the server's code decide, never the text."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        try:
            yield
        except ClientError as error:
            raise self._error(key, str(error.response.get("Error", {}).get("Code", "unknown"))) from error
        except NoCredentialsError as error:
            raise ConfigError(f"{self._named('')}: no credentials are set; set them, or read anonymously") from error
        except BotoCoreError as error:
            what = type(error).__name__
            raise Transient("SOURCE_UNREADABLE", f"{self._named(key)}: no answer ({what}); {_LATER}") from error

    def _error(self, key: str, code: str) -> Exception:
        if code in _MISSING:
            return Terminal("FILE_MISSING", f"{self._named(key)} is not in the bucket")
        if code == "NoSuchBucket":
            return ConfigError(f"s3://{self.name}: there is no such bucket; check the address and the endpoint")
        if code in _DENIED:
            advice = "set `anonymous: false` and credentials" if self.anonymous else "check the credentials"
            return Terminal("ACCESS_DENIED", f"{self._named(key)}: not allowed ({code}); {advice}")
        if code in _CHANGED:
            return Conflict(f"{self._named(key)}: somebody else wrote it meanwhile ({code})")
        advice = "renew the credentials and try again" if code in _EXPIRED else _LATER
        return Transient("SOURCE_UNREADABLE", f"{self._named(key)}: the server answered {code}; {advice}")


_LATER = "try again later"


def _batched(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    """As itertools.batched of Python 3.12."""
    left = iter(keys)
    while some := list(islice(left, size)):
        yield some


def _identity() -> str:
    """Moves when the credentials in the environment do, so that renewed ones are used."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3")
    return sha256("\0".join(os.environ.get(name, "") for name in names).encode())


@cache
def _client(endpoint: str | None, who: str | None, in_flight: int, per_second: float | None, attempts: int) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        signature_version=UNSIGNED if who is None else None,
        retries={"mode": "adaptive", "total_max_attempts": attempts},
        connect_timeout=10, read_timeout=60, max_pool_connections=in_flight,
        response_checksum_validation="when_required",  # MD5 and length are checked here
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    client = boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
    telemetry.watch(client)
    if per_second is not None:
        client.meta.events.register("before-send.s3", _paced(per_second))
    return client


def _paced(per_second: float) -> Callable[..., None]:
    """Waits until the next request may be sent."""
    lock, due = threading.Lock(), [0.0]

    def wait(**_: Any) -> None:
        with lock:
            now = time.monotonic()
            at = max(now, due[0])
            due[0] = at + 1 / per_second
        time.sleep(at - now)

    return wait
