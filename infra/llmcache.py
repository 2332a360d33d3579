"""The request cache: what a model has answered is kept before it is used, and never asked for twice.

The invariant: a reply is on disk, whole, before anybody sees it; whether it is of any use is decided afterwards, so an
unusable reply is not paid for again either. The key is a hash of the request alone; no address and no secret enters it.

>>> cache = RequestCache(Path("home/cache/llm"))
>>> found = cache.reply({"model": "m", "messages": []}, ask=lambda: {"content": "{}"})
>>> (found.cached, cache.reply({"model": "m", "messages": []}, ask=lambda: {}).cached)
(False, True)
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import mirror
from infra.errors import Terminal
from infra.keys import canonical, sha256
from infra.storage import write_bytes


@dataclass(frozen=True)
class Found:
    """A reply, the key of its request, and whether it was there already."""

    request_sha256: str
    reply: Mapping[str, Any]
    cached: bool


@dataclass(frozen=True)
class RequestCache:
    """One JSON file a request, `<first two hex digits>/<sha256>.json`, holding the request and the reply to it."""

    folder: Path

    @staticmethod
    def key(request: Mapping[str, Any]) -> str:
        """The name that a request is kept under."""
        return sha256(canonical(request))

    def path(self, request_sha256: str) -> Path:
        return self.folder / request_sha256[:2] / f"{request_sha256}.json"

    def reply(self, request: Mapping[str, Any], ask: Callable[[], Mapping[str, Any]]) -> Found:
        """The kept reply to a request, else what `ask()` returns, once it is kept.

        Equal requests made at the same instant, by threads or by processes of one machine, are asked once: the others
        wait. Whatever `ask` raises passes through and nothing is kept. Raises Terminal (LLM_CACHE_UNREADABLE) for a
        damaged file, because asking again may cost money.
        """
        name = self.key(request)
        path = self.path(name)
        if mirror.local(path).exists():
            return Found(name, _read(path), True)
        with _turn(path.with_suffix(".lock")) as lock:
            if path.exists():
                return Found(name, _read(path), True)
            reply = ask()
            write_bytes(path, canonical({"request": request, "reply": reply}))
            lock.unlink()  # those who still wait on it will find the reply
        return Found(name, reply, False)

    def put(self, request: Mapping[str, Any], reply: Mapping[str, Any]) -> bool:
        """Keep a reply that came by another way; False where one is there already, which stands."""
        return not self.reply(request, lambda: reply).cached


@contextmanager
def _turn(lock: Path) -> Iterator[Path]:
    """Hold the file's lock; the kernel gives it back when its holder dies, so it is never stale."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield lock


def _read(path: Path) -> Mapping[str, Any]:
    try:
        reply = json.loads(path.read_bytes())["reply"]
    except (ValueError, KeyError, TypeError):
        raise Terminal(
            "LLM_CACHE_UNREADABLE", f"{path.name} in the request cache is damaged; remove it to ask and pay again"
        ) from None
    return dict(reply)
