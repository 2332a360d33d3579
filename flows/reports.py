"""Reports over HTTP: a page of the Prefect UI may not open files of this machine, but it may link to this server.

The invariant: it listens on 127.0.0.1 only, answers nothing but GET and HEAD below HOME/reports, and only when it was
addressed by its own name, so that no page of another site can read a report through the visitor's browser.

>>> with serve_reports(home, 4201) as address:
...     urlopen(f"{address}/000001/index.html")
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from infra.errors import ConfigError


class _Reports(SimpleHTTPRequestHandler):
    server_version, sys_version = "medloom", ""

    server: ThreadingHTTPServer

    def send_head(self) -> Any:
        root, path = Path(self.directory).resolve(), Path(self.translate_path(self.path)).resolve()
        port = self.server.server_port
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            self.send_error(421, "Not this server")
        elif not path.is_relative_to(root):  # a symbolic link that leads out of the reports
            self.send_error(404)
        else:
            return super().send_head()
        return None

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the console belongs to the builds."""


@contextmanager
def serve_reports(home: Path, port: int) -> Iterator[str]:
    """Serve HOME/reports on 127.0.0.1 while the block runs; yields the address. Raises ConfigError on a taken port."""
    folder = home / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Reports, directory=str(folder)))
    except OSError as error:
        why = f"the reports cannot be served on port {port}: {error.strerror}; choose another --port"
        raise ConfigError(why) from error
    with server:
        threading.Thread(target=server.serve_forever, name="reports", daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
