"""A small DICOMweb server for tests: QIDO-RS and WADO-RS over a list of files, and the faults of real ones."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pydicom import dcmread

TOKEN = "secret-token"
LEVELS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


@dataclass
class Archive:
    """What the server holds and how it misbehaves."""

    files: list[bytes]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    busy: dict[str, int] = field(default_factory=dict)
    """end of a path -> how often it is answered with 503 first"""
    cut: set[str] = field(default_factory=set)
    """ends of paths whose answers lack their end"""
    gone: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)
    """instances that are counted and not listed"""
    most: int = 2
    """answers a page, whatever is asked for"""

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, str, bytes]:
        self.asked.append(path)
        for end in self.busy:
            if path.endswith(end) and self.busy[end] > 0:
                self.busy[end] -= 1
                return 503, "text/plain", b""
        if any(path.endswith(end) for end in self.gone):
            return 404, "text/plain", b""
        parts = [unquote(part) for part in path.strip("/").split("/")][1:]
        wanted = dict(zip(LEVELS, parts[1::2], strict=False))
        found = [(data, ds) for data in self.files if self._matches(ds := dcmread(io.BytesIO(data)), wanted, query)]
        if len(parts) == 6:
            body = b"".join(
                b"\r\n--mark\r\nContent-Type: application/dicom\r\n\r\n" + data for data, _ in found
            ) + b"\r\n--mark--\r\n"
            body = body[: len(body) // 2] if any(path.endswith(end) for end in self.cut) else body
            return 200, 'multipart/related; type="application/dicom"; boundary=mark', body
        return self._listed(LEVELS[len(parts) // 2], [ds for _, ds in found], query)

    def _matches(self, ds: Any, wanted: dict[str, str], query: dict[str, str]) -> bool:
        filters = {name: said for name, said in query.items() if name not in ("limit", "offset")}
        return all(str(ds.get(name)) == said for name, said in {**wanted, **filters}.items())

    def _listed(self, level: str, found: list[Any], query: dict[str, str]) -> tuple[int, str, bytes]:
        entries: dict[str, Any] = {}
        for ds in found:
            uid = str(ds[level].value)
            if uid in self.hidden:
                continue
            count = sum(str(other.get(level)) == uid for other in found)
            entries.setdefault(uid, {
                **{ds[name].tag.json_key: {"vr": "UI", "Value": [str(ds[name].value)]} for name in LEVELS[:2]},
                ds[level].tag.json_key: {"vr": "UI", "Value": [uid]},
                "00080060": {"vr": "CS", "Value": [ds.Modality]}, "00201209": {"vr": "IS", "Value": [count]},
            })
        start = int(query.get("offset", 0))
        page = list(entries.values())[start : start + self.most]
        return (200, "application/dicom+json", json.dumps(page).encode()) if page else (204, "", b"")


@contextmanager
def dicomweb_server(archive: Archive) -> Iterator[Archive]:
    """Serve an archive on loopback; its `url` is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, kind, body = 401, "text/plain", b""
            else:
                parts = urlsplit(self.path)
                status, kind, body = archive.answer(parts.path, dict(parse_qsl(parts.query)))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if status == 503:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    archive.url = f"http://127.0.0.1:{server.server_port}/web"
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
