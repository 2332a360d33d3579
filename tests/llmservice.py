"""A paid model service on loopback that answers every question, bills it, and fails as a plan says.

What it bills is counted for each request body, so that a test can say which answers were paid for twice. It honours
Idempotency-Key where told to, and has the files and batches of the Batch API; a batch is worked on when a test says so.

>>> with Service(plan=lambda text, nth: "busy" if nth == 0 else "ok") as service:
...     service.base_url, service.paid

As a process of its own, so that it does not share an interpreter with what is measured: `python llmservice.py LATENCY`
prints its address and serves until it is killed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

GERMAN = "Das Bild zeigt die Lunge und das Herz, beide sind nicht vergrößert und ohne Befund."
CHAT = "/v1/chat/completions"


def hashed(body: Any) -> str:
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def answered(body: dict[str, Any], fault: str = "ok") -> dict[str, Any]:
    """The completion for a chat request; `fault` makes it of no use."""
    text = body["messages"][0]["content"]
    content: str | None = json.dumps({"text": f"The image of {text} shows the chest and it is normal."})
    finish, refusal = "stop", None
    if fault == "broken":
        content = '{"text": "The ima'
    elif fault == "german":
        content = json.dumps({"text": GERMAN})
    elif fault == "long":
        finish = "length"
    elif fault == "refusal":
        content, refusal = None, "I cannot help with that."
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": body["model"] + "-2026",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


@dataclass
class Service:
    """`plan(text of the first message, how often it was asked before)` names a fault: ok, busy, error, hang (says
    nothing and bills nothing), cut (bills, and the reply is lost), garbage, broken, german, long, refusal."""

    plan: Callable[[str, int], str] = lambda text, nth: "ok"
    latency: float = 0.0
    idempotent: bool = True
    hang: float = 3.0
    retry_after: str | None = None
    paid: Counter[str] = field(default_factory=Counter)
    """sha256 of a request's body -> times billed"""
    asked: Counter[str] = field(default_factory=Counter)
    """text of the first message -> times asked"""
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    lose: set[str] = field(default_factory=set)
    """paths whose next reply is lost after the work was done"""
    most_at_once: int = 0

    def __enter__(self) -> Self:
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._kept: dict[str, dict[str, Any]] = {}
        self._now = 0
        self._server = _Server(("127.0.0.1", 0), self._handler())
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

    @property
    def paid_twice(self) -> int:
        return sum(times - 1 for times in self.paid.values())

    def chat(self, body: dict[str, Any], key: str | None) -> tuple[int, Any]:
        """Status and body; None for a reply that is lost; "hang" for one that never comes."""
        text = body["messages"][0]["content"]
        with self._lock:
            if self.idempotent and key in self._kept:
                return 200, self._kept[key]
            fault = self.plan(text, self.asked[text])
            self.asked[text] += 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        self._closing.wait(self.latency)
        with self._lock:
            self._now -= 1
            if fault == "hang":
                return 0, "hang"
            if fault in ("busy", "error"):
                return (429 if fault == "busy" else 503), {"error": {"message": "to order", "code": None}}
            if fault == "garbage":
                return 200, "<html>"
            reply = answered(body, fault)
            self.paid[hashed(body)] += 1
            if key:
                self._kept[key] = reply
            return 200, None if fault == "cut" else reply

    def post(self, path: str, sent: bytes, headers: Any) -> tuple[int, Any]:
        if path == CHAT:
            return self.chat(json.loads(sent), headers.get("Idempotency-Key"))
        with self._lock:
            if path == "/v1/files":
                name = f"file-{len(self.files)}"
                self.files[name] = _part(sent, headers["content-type"])
                return 200, {"id": name, "object": "file", "bytes": 0, "created_at": 0, "filename": "x",
                             "purpose": "batch", "status": "processed"}
            if path == "/v1/batches":
                name = f"batch-{len(self.batches)}"
                self.batches[name] = {
                    **json.loads(sent), "id": name, "object": "batch", "status": "in_progress", "created_at": 0,
                    "output_file_id": None, "error_file_id": None, "errors": None,
                }
                return 200, self.batches[name]
        return 404, {"error": {"message": "no such path", "code": None}}

    def get(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        kind, name = path.split("/")[2:4] if path.count("/") > 2 else (path.split("/")[2], "")
        if kind == "files":
            return 200, self.files[name]
        if name:
            return 200, self.batches[name]
        known = sorted(self.batches.values(), key=lambda b: b["id"], reverse=True)
        if after := query.get("after"):
            known = [b for b in known if b["id"] < after[0]]
        page = known[:2]  # small, so that paging is met
        return 200, {"object": "list", "data": page, "has_more": len(known) > 2}

    def work(
        self, batch: str, status: str = "completed", fate: Callable[[int, dict[str, Any]], str] = lambda n, body: "ok"
    ) -> None:
        """Do a batch; `fate` of each request: a fault of `answered`, twice, missing, expired, bad or error."""
        state = self.batches[batch]
        lines = [json.loads(line) for line in self.files[state["input_file_id"]].splitlines()]
        out, errors = [], []
        for n, line in enumerate(lines):
            what = fate(n, line["body"])
            if what == "missing":
                continue
            told: dict[str, Any] = {"id": f"r{n}", "custom_id": line["custom_id"], "response": None, "error": None}
            if what == "expired":
                errors.append({**told, "error": {"code": "batch_expired", "message": "too late"}})
            elif what in ("bad", "error"):
                body = {"error": {"message": what}}
                errors.append({**told, "response": {"status_code": 400 if what == "bad" else 500, "body": body}})
            else:
                self.paid[hashed(line["body"])] += 1
                done = {**told, "response": {"status_code": 200, "body": answered(line["body"], what)}}
                out += [done] * (2 if what == "twice" else 1)
        for name, found in (("output_file_id", out), ("error_file_id", errors)):
            if found:
                state[name] = f"file-{len(self.files)}"
                self.files[state[name]] = "\n".join(json.dumps(line) for line in reversed(found)).encode()
        state["status"] = status

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers["content-length"]))
                self._say(*service.post(self.path, sent, self.headers))

            def do_GET(self) -> None:
                address = urlsplit(self.path)
                self._say(*service.get(address.path, parse_qs(address.query)))

            def _say(self, status: int, body: Any) -> None:
                if body == "hang":
                    service._closing.wait(service.hang)
                if body in ("hang", None) or self.path in service.lose:
                    service.lose.discard(self.path)
                    self.close_connection = True
                    return
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                head = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(data)}"]
                if status == 429 and service.retry_after:
                    head.append(f"retry-after: {service.retry_after}")
                self.wfile.write("\r\n".join([*head, "", ""]).encode() + data)

            def handle(self) -> None:
                with suppress(ConnectionError):  # the client was killed
                    super().handle()

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _part(sent: bytes, content_type: str) -> bytes:
    """The file of a multipart form."""
    boundary = b"--" + content_type.partition("boundary=")[2].encode()
    part = next(part for part in sent.split(boundary) if b'name="file"' in part)
    return part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")


if __name__ == "__main__":
    with Service(latency=float(sys.argv[1]), idempotent=False) as service:
        print(service.base_url, flush=True)
        time.sleep(3600)
