"""Objects of a bucket against a real S3 server: whole and checked, or an error that says what to do."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3server import KEY, SECRET, Proxy, Server, free_ports, s3_server

from infra.errors import ConfigError, ItemError, Terminal, Transient
from infra.s3 import PART, TRIES, Bucket, Conflict

LARGE = os.urandom(3 << 20)
OBJECTS = {"a/1.txt": b"one", "a/2.txt": b"two", "a/b/3.txt": b"three", "c.txt": b"", "large": LARGE}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        server.put("things", OBJECTS)
        yield server


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def failed(bucket: Bucket, key: str, **how: str) -> ItemError:
    with pytest.raises(ItemError) as caught:
        bucket.get(key, **how)  # type: ignore[arg-type]
    return caught.value


def test_addresses_are_parsed_or_refused() -> None:
    assert Bucket.at("s3://pmc-oa-opendata") == Bucket("pmc-oa-opendata")
    assert Bucket.at("s3://mirror/pmc/2026/") == Bucket("mirror", "pmc/2026/")
    assert Bucket.at("s3://mirror", "http://127.0.0.1:8333").endpoint == "http://127.0.0.1:8333"
    for address in ("s3://", "s3:/x", "http://x/y", "s3://Big_Name", "s3://x?y"):
        with pytest.raises(ConfigError, match="s3://BUCKET"):
            Bucket.at(address)
    with pytest.raises(ConfigError) as caught:
        Bucket.at("s3://mirror", "http://user:secret@host")
    assert "secret" not in str(caught.value)


def test_listing_and_reading_without_a_name(server: Server, tmp_path: Path) -> None:
    bucket = Bucket.at("s3://things", server.endpoint)
    assert list(bucket.list()) == sorted(OBJECTS)
    assert list(bucket.list("a/", "/")) == ["a/1.txt", "a/2.txt", "a/b/"]
    assert list(bucket.list("", "/")) == ["a/", "c.txt", "large"]
    assert list(bucket.list("nothing/")) == []
    assert {key: bucket.get(key, md5(data)) for key, data in OBJECTS.items()} == OBJECTS
    below = Bucket.at("s3://things/a", server.endpoint)
    assert list(below.list()) == ["1.txt", "2.txt", "b/3.txt"] and below.get("b/3.txt") == b"three"
    bucket.download("large", tmp_path / "large", md5(LARGE).upper())
    assert (tmp_path / "large").read_bytes() == LARGE


def test_what_cannot_be_read_says_why(server: Server, tmp_path: Path) -> None:
    bucket = Bucket.at("s3://things", server.endpoint)
    missing = failed(bucket, "a/4.txt")
    assert isinstance(missing, Terminal) and missing.code == "FILE_MISSING" and "s3://things/a/4.txt" in missing.message
    with pytest.raises(Terminal, match="OBJECT_TOO_LARGE"):
        bucket.get("large", max_bytes=1 << 20)
    with pytest.raises(Terminal, match="FILE_MISSING"):
        bucket.download("none", tmp_path / "none")
    assert not list(tmp_path.iterdir())
    with pytest.raises((ConfigError, Terminal)):  # who may not see a bucket is not told that it is missing
        list(Bucket.at("s3://no-such-bucket", server.endpoint).list())


def test_wrong_credentials_are_refused_and_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    denied = failed(Bucket.at("s3://things", server.endpoint, anonymous=False), "c.txt")
    assert isinstance(denied, Terminal) and denied.code == "ACCESS_DENIED" and "credentials" in denied.message
    assert "wrong-secret" not in str(denied)


def test_a_wrong_hash_is_tried_again_from_scratch_then_told(server: Server) -> None:
    with Proxy(server.endpoint) as proxy:
        wrong = failed(Bucket.at("s3://things", proxy.endpoint), "a/1.txt", md5=md5(b"other"))
        assert isinstance(wrong, Transient) and wrong.code == "CHECKSUM" and md5(b"one") in wrong.message
        assert proxy.taken() == ["/things/a/1.txt"] * TRIES


def test_broken_answers_are_mended_by_trying_again(server: Server) -> None:
    with Proxy(server.endpoint) as proxy:
        bucket = Bucket.at("s3://things", proxy.endpoint)
        for fault in ("cut", "busy", "hang up"):
            faults = iter([fault])
            proxy.fault = lambda path, faults=faults: next(faults, None)  # type: ignore[misc]
            assert bucket.get("large", md5(LARGE)) == LARGE, fault
            assert len(proxy.taken()) == 2
        proxy.fault = lambda path: "cut"
        cut = failed(bucket, "large")
        assert isinstance(cut, Transient) and cut.code == "CHECKSUM" and f"of {len(LARGE)} bytes" in cut.message


def test_a_server_that_stays_away_is_a_transient_failure(server: Server) -> None:
    with Proxy(server.endpoint) as proxy:
        for fault in ("busy", "hang up"):
            proxy.fault = lambda path, fault=fault: fault  # type: ignore[misc]
            away = failed(Bucket.at("s3://things", proxy.endpoint, attempts=2), "a/1.txt")
            assert isinstance(away, Transient) and away.code == "SOURCE_UNREADABLE", fault
            assert len(proxy.taken()) == 2
    nobody = Bucket.at("s3://things", f"http://127.0.0.1:{free_ports(1)[0]}", attempts=1)
    assert failed(nobody, "a/1.txt").code == "SOURCE_UNREADABLE"


def test_requests_keep_the_pace(server: Server) -> None:
    bucket = Bucket.at("s3://things", server.endpoint, per_second=20)
    began = time.monotonic()
    for _ in range(9):
        bucket.get("c.txt")
    assert time.monotonic() - began >= 8 / 20


@pytest.fixture
def writable(server: Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return Bucket.at("s3://things/written", server.endpoint, anonymous=False)


def test_what_is_written_is_there_and_a_condition_holds_or_refuses(writable: Bucket) -> None:
    assert writable.head("lease") is None
    first = writable.put("lease", b"one", absent=True)
    assert writable.read("lease") == (b"one", first)
    with pytest.raises(Conflict):
        writable.put("lease", b"two", absent=True)
    second = writable.put("lease", b"two", etag=first)
    with pytest.raises(Conflict):
        writable.put("lease", b"three", etag=first)
    assert writable.read("lease") == (b"two", second)
    assert writable.put("lease", b"two", etag=first) == second, "the answer to this very write may have been lost"
    writable.remove(["lease", "never-there"])
    assert writable.head("lease") is None


def test_files_are_sent_whole_in_parts_where_they_are_large(writable: Bucket, tmp_path: Path) -> None:
    large = os.urandom(PART + (5 << 20))
    for name, data in (("small", b"few bytes"), ("empty", b""), ("large", large)):
        (tmp_path / name).write_bytes(data)
        writable.upload(name, tmp_path / name, "ab" * 32)
        head = writable.head(name)
        assert head and (head.size, head.sha256) == (len(data), "ab" * 32)
        assert writable.get(name) == data


def test_writing_without_leave_is_refused(server: Server, tmp_path: Path) -> None:
    bucket = Bucket.at("s3://things", server.endpoint)
    (tmp_path / "file").write_bytes(b"data")
    for write in (lambda: bucket.put("x", b"data"), lambda: bucket.upload("x", tmp_path / "file")):
        with pytest.raises(Terminal, match="ACCESS_DENIED"):
            write()
    assert bucket.head("x") is None
