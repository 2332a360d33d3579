"""Objects of an S3 bucket: each comes whole and checked, or not at all.

The invariant: what `get` returns and `download` writes has the length that the server named and the MD5 that the caller
asked for; anything else is fetched again from scratch, and is an error in the end. Requests are unsigned unless the
caller says otherwise, so no credentials are looked for. Messages name bucket and key, never credentials.

>>> bucket = Bucket.at("s3://pmc-oa-opendata")
>>> list(bucket.list("PMC11370360.", delimiter="/"))
['PMC11370360.1/']
>>> bucket.get("PMC11370360.1/PMC11370360.1.xml", md5="0a3c…")
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from infra.errors import ConfigError, ItemError, Terminal, Transient

TRIES = 3
"""How often an object that comes incomplete or altered is fetched from scratch."""
PIECE = 1 << 20
MAX_BYTES = 128 << 20
"""What `get` takes into memory unless it is told otherwise."""
_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([^?#]*))?")
_MISSING = ("NoSuchKey", "404", "NotFound")
_DENIED = ("AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled")
_EXPIRED = ("ExpiredToken", "RequestExpired", "TokenRefreshRequired")
_LOCK = threading.Lock()


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
        asked = {"Bucket": self.name, "Prefix": self.prefix + prefix, "Delimiter": delimiter}
        with self._errors(prefix):
            for page in self._client().get_paginator("list_objects_v2").paginate(**asked):
                names = [entry["Key"] for entry in page.get("Contents", ())]
                names += [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
                yield from (name.removeprefix(self.prefix) for name in sorted(names))

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

    def _receive(self, key: str, sink: IO[bytes], md5: str | None, max_bytes: int | None) -> None:
        problem: ItemError | None = None
        for attempt in range(TRIES):
            time.sleep(0.2 * attempt)
            sink.seek(0)
            sink.truncate()
            with self._errors(key):
                answer = self._client().get_object(Bucket=self.name, Key=self.prefix + key)
            problem = self._copied(key, answer, sink, md5, max_bytes)
            if problem is None:
                return
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
            return _client(self.endpoint, self.anonymous, self.in_flight, self.per_second, self.attempts)

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
            return Terminal("ACCESS_DENIED", f"{self._named(key)} may not be read ({code}); {advice}")
        advice = "renew the credentials and try again" if code in _EXPIRED else _LATER
        return Transient("SOURCE_UNREADABLE", f"{self._named(key)}: the server answered {code}; {advice}")


_LATER = "try again later"


@cache
def _client(endpoint: str | None, anonymous: bool, in_flight: int, per_second: float | None, attempts: int) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        signature_version=UNSIGNED if anonymous else None,
        retries={"mode": "adaptive", "total_max_attempts": attempts},
        connect_timeout=10, read_timeout=60, max_pool_connections=in_flight,
        response_checksum_validation="when_required",  # MD5 and length are checked here
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    client = boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
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
