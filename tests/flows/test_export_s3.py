"""Exports to a bucket of a real server, through a line that breaks, and killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from makehome import make_home
from s3server import KEY, SECRET, Proxy, Server, s3_server

from flows import sending
from flows.export import run_export
from infra.errors import ConfigError, Transient
from infra.plugins import plugins, why_unavailable
from infra.s3 import Bucket

OPTIONS = {"huggingface": ["shard_mb=1"], "coco": ["empty=true"], "yolo": ["empty=true"]}
FORMATS = sorted(n for n, m in plugins("exporter").items() if why_unavailable(m) is None and n != "dicom_seg")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        server.put("exports", {"other/file": b"x"})
        yield server


@pytest.fixture(autouse=True)
def credentials(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("home"))


def objects(server: Server, prefix: str) -> dict[str, bytes]:
    bucket = Bucket.at(f"s3://exports/{prefix}", server.endpoint, anonymous=False)
    return {name: bucket.get(name) for name in bucket.list()}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_in_the_bucket_is_what_a_folder_gets(server: Server, home: Path, tmp_path: Path, format: str) -> None:
    options = OPTIONS.get(format, [])
    said = run_export(home, "true", format, f"s3://exports/{format}/", None, options, licences="all")
    run_export(home, "true", format, tmp_path / "out", None, options, licences="all")
    sent, straight = objects(server, format), files(tmp_path / "out")
    if format == "lance":  # its files have random names
        assert len(sent) == len(straight) and sent["manifest.json"] == straight["manifest.json"]
        import lance

        data = lance.dataset(f"s3://exports/{format}/data.lance", storage_options={
            "endpoint": server.endpoint, "allow_http": "true", "region": "us-east-1",
            "access_key_id": KEY, "secret_access_key": SECRET,
        })
        assert data.to_table().equals(lance.dataset(str(tmp_path / "out" / "data.lance")).to_table())
    else:
        assert sent == straight
    assert f"s3://exports/{format}/" in said and str(home) not in said and f"{len(sent)} files sent" in said
    assert not list((home / "cache" / "exports").iterdir())


def test_a_prefix_that_holds_something_else_is_refused(server: Server, home: Path) -> None:
    with pytest.raises(ConfigError, match="holds file"):
        run_export(home, "true", "webdataset", "s3://exports/other", None, [])
    run_export(home, "true", "webdataset", "s3://exports/taken", None, [])
    before = objects(server, "taken")
    with pytest.raises(ConfigError, match="another export"):
        run_export(home, "modality = 'CT'", "webdataset", "s3://exports/taken", None, [])
    assert objects(server, "taken") == before
    said = run_export(home, "true", "webdataset", "s3://exports/taken", None, [])
    assert "0 files sent" in said and objects(server, "taken") == before


@pytest.mark.parametrize("fault", ["busy", "broken", "cut", "hang up"])
def test_a_line_that_breaks_is_tried_again(
    server: Server, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    run_export(home, "true", "webdataset", tmp_path / "out", None, [])
    seen: dict[str, int] = {}

    def breaks(method: str, path: str, asked: str) -> str | None:
        seen[path] = seen.get(path, 0) + (method == "PUT")
        return fault if method == "PUT" and seen[path] == 1 else None

    with Proxy(server.endpoint) as proxy:
        proxy.breaks = breaks
        bucket = Bucket.at(f"s3://exports/{fault.replace(' ', '-')}", proxy.endpoint, anonymous=False)
        sent = sending.send(tmp_path / "out", bucket, pause_s=0.01)
        assert proxy.broken[fault] >= sent.files > 4
    assert objects(server, fault.replace(" ", "-")) == files(tmp_path / "out")


def test_no_manifest_before_all_is_there_and_a_rerun_sends_the_rest(
    server: Server, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_export(home, "true", "coco", tmp_path / "out", None, ["empty=true"])
    monkeypatch.setattr(sending, "TRIES", 1)
    with Proxy(server.endpoint) as proxy:
        bucket = Bucket.at("s3://exports/half", proxy.endpoint, anonymous=False, attempts=1)
        proxy.breaks = lambda method, path, _: "denied" if method == "PUT" and path.endswith("s.json") else None
        with pytest.raises(Exception, match="not allowed"):
            sending.send(tmp_path / "out", bucket, pause_s=0.01)
        half = objects(server, "half")
        assert "manifest.json" not in half and half.items() < files(tmp_path / "out").items()
        proxy.breaks = lambda method, path, _: "broken" if method == "PUT" else None
        with pytest.raises(Transient):
            sending.send(tmp_path / "out", bucket, pause_s=0.01)
        proxy.breaks = None
        sent = sending.send(tmp_path / "out", bucket)
        assert sent.there == len(half) and sent.files + sent.there == len(files(tmp_path / "out"))
    assert objects(server, "half") == files(tmp_path / "out")


def test_a_damaged_file_is_not_sent(home: Path, tmp_path: Path) -> None:
    run_export(home, "true", "webdataset", tmp_path / "out", None, [])
    (tmp_path / "out" / "sizes.json").write_text("{}")
    with pytest.raises(sending.DamagedExport, match=r"sizes\.json"):
        sending.send(tmp_path / "out", Bucket.at("s3://exports/damaged", anonymous=False))


KILLED = """
import os, signal, sys
from pathlib import Path
from flows.export import run_export
from infra.s3 import Bucket
send, calls = Bucket.upload, [0]
def dying(self, *args, **named):
    calls[0] += 1
    if calls[0] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    send(self, *args, **named)
Bucket.upload = dying
run_export(Path(sys.argv[1]), "true", "coco", "s3://exports/killed", None, ["empty=true"])
"""


def test_a_killed_upload_is_gone_on_with(server: Server, home: Path, tmp_path: Path) -> None:
    script = [sys.executable, "-c", KILLED, str(home)]
    env: dict[str, Any] = os.environ | {"PYTHONPATH": os.getcwd()}
    assert subprocess.run(script, env=env).returncode == -signal.SIGKILL
    there = objects(server, "killed")
    assert "manifest.json" not in there
    said = run_export(home, "true", "coco", "s3://exports/killed", None, ["empty=true"])
    assert "written before" in said and (not there or f"{len(there)} were there already" in said)
    run_export(home, "true", "coco", tmp_path / "out", None, ["empty=true"])
    assert objects(server, "killed") == files(tmp_path / "out")
