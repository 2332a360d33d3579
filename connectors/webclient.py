"""A client of DICOMweb servers: searches and single instances, asked for again when a server is busy.

The invariant: an answer comes whole or not at all, is never larger than allowed, and no address, UID or token stands in
an error.

>>> with Client("https://pacs.example/dicom-web") as client:
...     client.search("/studies", {"limit": "10"})
[{'0020000D': {'vr': 'UI', 'Value': ['1.2.3']}}]
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from infra.errors import ConfigError, Terminal, Transient

BUSY = (408, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 30.0
"""Seconds that a server may make us wait before the next try."""
ANSWER_BYTES = 64 << 20
"""Bytes that an answer to a search may have."""
ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'


class Client:
    """Requests to one server, from any number of threads."""

    def __init__(
        self, url: str, token: str | None = None, tries: int = 4, timeout: float = 60, max_bytes: int = 2 << 30
    ) -> None:
        import httpx

        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(headers=headers, timeout=timeout, follow_redirects=False)
        self._url, self._tries, self._max_bytes = url, tries, max_bytes

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def search(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """The answers to a QIDO-RS search. Raises ConfigError (the server refuses it), Transient."""
        try:
            status, _, body = self._get(path, query, "application/dicom+json", ANSWER_BYTES)
        except Terminal as error:
            raise ConfigError(f"the DICOMweb server refuses the search ({error.code}): {error.message}") from None
        if status == 204 or not body:
            return []
        try:
            found = json.loads(body)
        except ValueError:
            raise ConfigError("the DICOMweb server does not answer a search with JSON; check `url`") from None
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise ConfigError("the DICOMweb server does not answer a search with a list; check `url`")
        return found

    def instance(self, path: str) -> bytes:
        """The file of one instance, as it is stored. Raises Terminal, Transient."""
        _, kind, body = self._get(path, {}, ANY_SYNTAX, self._max_bytes)
        parts = parts_of(body, kind)
        if len(parts) != 1:
            raise Terminal("SOURCE_UNREADABLE", f"the server answers with {len(parts)} files instead of one")
        return parts[0]

    def _get(self, path: str, query: Mapping[str, str], accept: str, most: int) -> tuple[int, str, bytes]:
        """Status, content type and body of an answer."""
        problem = wait = ""
        for attempt in range(self._tries):
            if attempt:
                time.sleep(min(LONGEST_WAIT, float(wait) if wait.isdecimal() else 0.25 * 2**attempt))
            problem, wait, answer = self._once(path, query, accept, most)
            if answer is not None:
                return answer
        raise Transient("SOURCE_UNREADABLE", f"the server did not answer {self._tries} times ({problem}); try later")

    def _once(
        self, path: str, query: Mapping[str, str], accept: str, most: int
    ) -> tuple[str, str, tuple[int, str, bytes] | None]:
        """What went wrong, how long to wait, and the answer where nothing went wrong."""
        import httpx

        try:
            with self._http.stream("GET", self._url + path, params=dict(query), headers={"Accept": accept}) as answer:
                if answer.status_code in BUSY:
                    return f"status {answer.status_code}", answer.headers.get("Retry-After", ""), None
                _check(answer.status_code)
                body = bytearray()
                for piece in answer.iter_bytes():
                    body += piece
                    if len(body) > most:
                        raise Terminal("OBJECT_TOO_LARGE", f"the answer has more than {most} bytes; raise `max_bytes`")
                return "", "", (answer.status_code, answer.headers.get("Content-Type", ""), bytes(body))
        except httpx.HTTPError as error:  # a broken or silent connection; its text quotes the address
            return type(error).__name__, "", None


def _check(status: int) -> None:
    if status in (401, 403):
        raise Terminal("ACCESS_DENIED", f"the server answers {status}; check `token_env` and its rights")
    if status in (404, 410):
        raise Terminal("SOURCE_MISSING", "the server has it no more; list the source again")
    if status not in (200, 204, 206):
        raise Terminal("SOURCE_UNREADABLE", f"the server answers {status}; check `url` and the query")


def parts_of(body: bytes, kind: str) -> list[bytes]:
    """The parts of a multipart/related answer (RFC 2046), or the body of any other.

    Raises Transient SOURCE_UNREADABLE when it is cut short, Terminal when it cannot be parted.
    """
    if not kind.lower().startswith("multipart/"):
        return [body] if body else []
    found = re.search(r'boundary="?([^";]+)"?', kind, re.IGNORECASE)
    if found is None:
        raise Terminal("SOURCE_UNREADABLE", "the answer has several parts and does not say where they end")
    mark = b"--" + found[1].strip().encode()
    whole = b"\r\n" + body
    if b"\r\n" + mark + b"--" not in whole[-len(mark) - 64 :]:
        raise Transient("SOURCE_UNREADABLE", "the answer is cut short; try again later")
    parts = []
    for piece in whole.split(b"\r\n" + mark)[1:]:
        if piece.startswith(b"--"):
            break
        _, blank, content = piece.partition(b"\r\n\r\n")
        if blank:
            parts.append(content)
    return parts
