"""Reports over HTTP: a page of the Prefect UI may not open files of this machine, but it may link to this server.

The invariant: it listens on 127.0.0.1, elsewhere only where it asks for the auth string of the Prefect server; it
answers nothing but GET and HEAD below HOME/reports, and only when it was addressed by its own name, so that no page of
another site can read a report through the visitor's browser.

>>> with serve_reports(home, 4201) as address:
...     urlopen(f"{address}/000001/index.html")
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hmac import compare_digest
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.options import Home
from flows.server import may_listen, read_secrets
from infra.errors import ConfigError


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    password: str | None = None
    """user:password that a visitor must give"""


class _Reports(SimpleHTTPRequestHandler):
    server_version, sys_version = "medloom", ""

    server: _Server

    def send_head(self) -> Any:
        root, path = Path(self.directory).resolve(), Path(self.translate_path(self.path)).resolve()
        port = self.server.server_port
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            self.send_error(421, "Not this server")
        elif not self._known():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="medloom reports"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif not path.is_relative_to(root):  # a symbolic link that leads out of the reports
            self.send_error(404)
        else:
            return super().send_head()
        return None

    def _known(self) -> bool:
        if self.server.password is None:
            return True
        wanted = f"Basic {base64.b64encode(self.server.password.encode()).decode()}"
        return compare_digest(self.headers.get("Authorization", "").encode(), wanted.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the console belongs to the builds."""


@contextmanager
def serve_reports(home: Path, port: int, host: str = "127.0.0.1", password: str | None = None) -> Iterator[str]:
    """Serve HOME/reports while the block runs; yields the address. Raises ConfigError on a taken port."""
    folder = home / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        server = _Server((host, port), partial(_Reports, directory=str(folder)))
    except OSError as error:
        why = f"the reports cannot be served on port {port}: {error.strerror}; choose another --port"
        raise ConfigError(why) from error
    server.password = password
    with server:
        threading.Thread(target=server.serve_forever, name="reports", daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def reports(
    home: Home,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the reports.")] = 4201,
) -> None:
    """Serve the reports of a dataset until Ctrl-C, as `medloom serve` does too; the UI of Prefect links to them."""
    read_secrets()
    may_listen(host, "PREFECT_API_AUTH_STRING")
    with serve_reports(home, port, host, os.environ.get("PREFECT_API_AUTH_STRING")) as address:
        typer.echo(f"reports     {address}")
        threading.Event().wait()
