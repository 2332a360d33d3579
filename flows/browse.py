"""`medloom browse`: a local web page to look at a dataset and to review it.

The invariants: it listens on 127.0.0.1 only; nothing is told to who does not know the address, which holds a random
token that ends with the process (other users of this machine can reach the port); a request must name this server as
its Host, so no other site reaches it by a name of its own that points here; and what is posted must come from a page of
this server, as JSON.

>>> with serve_pages(Dataset(home), 0) as address:
...     urlopen(address)
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hmac import compare_digest
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl

from catalog.browse.pages import BODY_BYTES, Dataset, Request, Response, respond
from catalog.decisions import REVIEWER
from infra.errors import ConfigError

COOKIE = "medloom_reviewer"
IDLE_S = 30
"""A connection that says nothing for so long is closed."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, data: Dataset) -> None:
        self.data = data
        self.token = secrets.token_urlsafe(24)
        super().__init__(("127.0.0.1", port), _Pages)

    @property
    def hosts(self) -> tuple[str, ...]:
        return f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"


class _Pages(BaseHTTPRequestHandler):
    server_version, sys_version = "medloom", ""
    timeout = IDLE_S

    server: _Server

    def do_GET(self) -> None:
        if request := self._request(None):
            self._answer(respond(self.server.data, request))

    def do_POST(self) -> None:
        host, length = self.headers.get("Host"), self.headers.get("Content-Length", "")
        if self.headers.get("Origin") != f"http://{host}":
            self._refuse(HTTPStatus.FORBIDDEN, "Only a page of this server may ask that.")
        elif self.headers.get("Content-Type") != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "JSON is expected.")
        elif not length.isdecimal() or int(length) > BODY_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "That is too long.")
        elif request := self._request(b""):
            body = self.rfile.read(int(length))
            self._answer(respond(self.server.data, Request(request.page, request.params, request.reviewer, body)))

    def _request(self, body: bytes | None) -> Request | None:
        """The request, if it names this server and its token; else it is refused."""
        path, _, question = self.path.partition("?")  # urlsplit raises on some of what a stranger may send
        _, token, page = (*path.split("/", 2), "", "")[:3]
        if self.headers.get("Host") not in self.server.hosts:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "Not this server.")
        elif not compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "Open the address that medloom browse printed.")
        elif path.count("/") < 2:
            self._answer(Response(HTTPStatus.FOUND, "text/plain", b""), (("Location", f"/{token}/"),))
        else:
            params = dict(parse_qsl(question, keep_blank_values=True, errors="replace"))
            return Request(page, params, self._reviewer(), body)
        return None

    def _reviewer(self) -> str | None:
        try:
            kept = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            return None
        return kept.value if kept and REVIEWER.fullmatch(kept.value) else None

    def _refuse(self, status: HTTPStatus, words: str) -> None:
        self.close_connection = True
        self._answer(Response(status, "text/plain; charset=utf-8", words.encode()))

    def _answer(self, response: Response, more: tuple[tuple[str, str], ...] = ()) -> None:
        self.send_response(response.status)
        for name, value in (
            ("Content-Type", response.kind), ("Content-Length", str(len(response.body))),
            ("Content-Security-Policy", response.csp), ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "same-origin"), ("X-Frame-Options", "DENY"),
            ("Cross-Origin-Opener-Policy", "same-origin"), ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "private, max-age=600" if response.keep else "no-store"), *more,
        ):
            self.send_header(name, value)
        if response.reviewer:
            self.send_header(
                "Set-Cookie", f"{COOKIE}={response.reviewer}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Strict"
            )
        self.end_headers()
        self.wfile.write(response.body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a log would hold the token."""


@contextmanager
def serve_pages(data: Dataset, port: int) -> Iterator[str]:
    """Serve the pages on 127.0.0.1 while the block runs; yields the address. Port 0 takes a free one.

    Raises ConfigError on a taken port.
    """
    try:
        server = _Server(port, data)
    except OSError as error:
        raise ConfigError(f"port {port} cannot be used: {error.strerror}; choose another --port") from error
    with server:
        threading.Thread(target=server.serve_forever, name="browse", daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/{server.token}/"
        finally:
            server.shutdown()


def browse(home: Path, port: int, read_only: bool) -> None:
    """Serve until Ctrl-C. Raises CatalogError for a home without a snapshot, ConfigError on a taken port."""
    from catalog.selection import Selection

    number = Selection(home).snapshot
    with serve_pages(Dataset(home.resolve(), read_only), port) as address:
        print(f"snapshot {number} of {home}{', read-only' if read_only else ''}\n{address}\n"
              "The address is the key: who has it may look, and decide. Ctrl-C ends.", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print()
