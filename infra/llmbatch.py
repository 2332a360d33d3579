"""The Batch API: requests are collected in an outbox, sent as files at half the price, and their answers collected.

The invariants: what is about to be sent is on disk before it is sent; a request is in one place only, in the outbox or
in one batch, because moving a file is atomic; an answer is in the request cache before its request is forgotten. So a
process killed anywhere neither submits twice nor loses an answer. An endpoint with `batch: true` raises LLM_PENDING for
what the cache does not know; when the batch is collected, the same build finds the answers there. An answer that needs
mending makes a new request, for the next batch.

    <cache>/outbox/<endpoint>/open/<sha256>.json        to be sent: the request, its body, the row's policy
    <cache>/outbox/<endpoint>/b-<name>/<sha256>.json    in the batch of that name
    <cache>/outbox/<endpoint>/b-<name>/batch.state      {"file": id or null, "batch": id or null}
    <cache>/outbox/<endpoint>/failed/<sha256>.json      refused for good: its row gets the reason as a reject

The limits are those of the OpenAI Batch API (guide "Batch", section "Rate limits"): 50,000 requests and 200 MB a file.

>>> batches = open_batches(endpoint, cache)          # infra.llm
>>> batches.submit()
['3f0c2a…']
>>> batches.collect()
Collected(answered=2, again=0, failed=0, waiting=0)
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

from infra.chat import Endpoint, Policy, Reply
from infra.errors import ItemError, Terminal, Transient
from infra.keys import canonical, sha256
from infra.llmcache import RequestCache
from infra.storage import write_bytes

MOST = 50_000
"""Requests in a batch."""
LARGEST = 200_000_000
"""Bytes of a batch's file."""
ITEMS = "[0-9a-f]*.json"
"""Requests in a folder; not the drafts of a killed process, whose names begin with a dot."""
TRIES = 3
"""Batches that a request may be in before its failures count as final."""
URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"


@dataclass(frozen=True)
class Batch:
    """A batch as the server knows it."""

    id: str
    status: str
    """validating, failed, in_progress, finalizing, completed, expired, cancelling or cancelled"""
    files: tuple[str, ...] = ()
    """ids of the files with its output and its errors"""
    said: str = ""
    """why it failed"""

    @property
    def over(self) -> bool:
        return self.status in ("completed", "failed", "expired", "cancelled")


class BatchApi(Protocol):
    """What a server has to offer; infra.llm has the real one."""

    def upload(self, name: str, lines: bytes) -> str:
        """Id of the file."""
        ...

    def create(self, name: str, file: str) -> Batch: ...
    def find(self, name: str) -> Batch | None:
        """The batch that was created under this name, if any."""
        ...

    def retrieve(self, batch: str) -> Batch: ...
    def content(self, file: str) -> str: ...


@dataclass(frozen=True)
class Outbox:
    """The requests of a request cache that wait for a batch, or for its answers."""

    cache: RequestCache

    @property
    def folder(self) -> Path:
        return self.cache.folder / "outbox"

    def add(
        self, endpoint: Endpoint, name: str, request: Mapping[str, Any], body: Mapping[str, Any], policy: Policy
    ) -> NoReturn:
        """Put a request in the outbox, unless it is there; raises Transient LLM_PENDING, or why it failed for good."""
        home = self.folder / endpoint.id
        if (failed := home / "failed" / f"{name}.json").exists():
            raise Terminal("LLM_BAD_REQUEST", f"{json.loads(failed.read_bytes())['error']}; remove {failed} to retry")
        if not any(home.glob(f"*/{name}.json")):
            item = {"request": request, "body": body, "policy": policy, "tries": 0}
            write_bytes(home / "open" / f"{name}.json", canonical(item))
        raise Transient(
            "LLM_PENDING", f"request {name[:12]}… waits for a batch; submit and collect it, then build again"
        )

    def withdraw(self, name: str) -> None:
        """Take a request out of the outbox because it is asked now; Transient LLM_PENDING where a batch has it."""
        if not self.folder.exists():
            return
        for path in self.folder.glob(f"*/open/{name}.json"):
            path.unlink(missing_ok=True)
        if any(self.folder.glob(f"*/b-*/{name}.json")):
            raise Transient("LLM_PENDING", f"request {name[:12]}… is in a batch and will be paid there; collect it")


@dataclass(frozen=True)
class Collected:
    """What a look at the batches brought."""

    answered: int = 0
    again: int = 0
    """back in the outbox: expired, or failed in a way that may pass"""
    failed: int = 0
    """refused for good"""
    waiting: int = 0
    """in batches that are not over"""

    def __add__(self, other: Collected) -> Collected:
        mine, theirs = vars(self), vars(other)
        return Collected(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True)
class Batches:
    """The batches of one endpoint. One process at a time works on them; the others wait."""

    endpoint: Endpoint
    cache: RequestCache
    api: BatchApi

    @property
    def home(self) -> Path:
        return Outbox(self.cache).folder / self.endpoint.id

    def submit(self) -> list[str]:
        """Send what is in the outbox; returns the ids of the batches made or found again.

        Raises as the server fails: then everything is as it was, or is taken up again by the next call.
        """
        with self._turn():
            for _ in self._planned():
                pass
            return [self._sent(folder) for folder in self._folders() if not _state(folder)["batch"]]

    def collect(self) -> Collected:
        """Look at every batch that was sent and take in the answers of those that are over."""
        with self._turn():
            sent = [folder for folder in self._folders() if _state(folder)["batch"]]
            return sum((self._taken_in(folder) for folder in sent), Collected())

    def _planned(self) -> Iterator[Path]:
        """Fill new batches from the outbox."""
        items = iter(sorted((self.home / "open").glob(ITEMS)))
        while chunk := self._chunk(items):
            names = [path.stem for path in chunk]
            folder = self.home / f"b-{sha256(canonical([names, [_item(path)['tries'] for path in chunk]]))[:24]}"
            folder.mkdir(exist_ok=True)
            for path in chunk:
                with suppress(FileNotFoundError):  # somebody asks it now, and took it out of the outbox
                    os.rename(path, folder / path.name)
            yield folder

    def _chunk(self, items: Iterator[Path]) -> list[Path]:
        """The next requests that fit one batch. What is answered already leaves the outbox; what a policy forbids, now
        that it is looked at again, stays in it."""
        chunk: list[Path] = []
        size = 0
        for path in items:
            if self.cache.path(path.stem).exists():
                path.unlink(missing_ok=True)
                continue
            with suppress(FileNotFoundError):
                if self.endpoint.permits(_item(path)["policy"]):
                    chunk.append(path)
                    size += path.stat().st_size
            if len(chunk) == MOST or size > LARGEST - 25_000_000:  # no request is larger than that
                break
        return chunk

    def _sent(self, folder: Path) -> str:
        """Upload and create a batch, from wherever it was left. Only creating it costs money."""
        name, file = folder.name.removeprefix("b-"), _state(folder)["file"]
        if file:  # a process may have died between the server's yes and our note of it
            batch = self.api.find(name)
        else:  # no batch can have been made of a file whose id nobody kept
            file, batch = self.api.upload(name, b"".join(_lines(folder))), None
            _keep(folder, file, None)
        batch = batch or self.api.create(name, file)
        _keep(folder, file, batch.id)
        return batch.id

    def _taken_in(self, folder: Path) -> Collected:
        batch = self.api.retrieve(str(_state(folder)["batch"]))
        if not batch.over:
            return Collected(waiting=len(list(folder.glob(ITEMS))))
        got = Collected()
        for line in (line for file in batch.files for line in self.api.content(file).splitlines()):
            got += self._line(folder, line)
        for path in sorted(folder.glob(ITEMS)):  # what no line was about: expired, cancelled, failed or forgotten
            got += self._back(path, batch.said or f"the batch is {batch.status} and says nothing of it")
        shutil.rmtree(folder)  # its note, and drafts of killed processes
        return got

    def _line(self, folder: Path, line: str) -> Collected:
        """Take in what the server says of one request. Lines come in any order, and may come twice."""
        try:
            said = json.loads(line)
            path = folder / f"{Path(str(said['custom_id'])).name}.json"
            response = said.get("response") or {}
            status, body = response.get("status_code"), response.get("body")
        except (ValueError, KeyError, TypeError, AttributeError):
            return Collected()  # the request it was about goes back to the outbox
        if not path.exists():
            return Collected()
        try:
            if status != 200:
                words = json.dumps(said.get("error") or body)[:300]
                final = isinstance(status, int) and 400 <= status < 500 and status not in (408, 409, 429)
                return self._failed(path, words) if final else self._back(path, words)
            reply = Reply.of(json.dumps(body))
        except ItemError as error:
            return self._back(path, error.message)
        told = {"endpoint": self.endpoint.id, "discount": self.endpoint.batch_discount}
        new = self.cache.put(_item(path)["request"], reply.model_copy(update=told).model_dump())
        path.unlink()
        return Collected(answered=int(new))

    def _back(self, path: Path, why: str) -> Collected:
        """Return a request to the outbox, unless it was in batches enough."""
        item = _item(path)
        if item["tries"] + 1 >= TRIES:
            return self._failed(path, f"{TRIES} batches did not answer it; the last: {why}")
        write_bytes(path, canonical({**item, "tries": item["tries"] + 1}))
        _move(path, self.home / "open")
        return Collected(again=1)

    def _failed(self, path: Path, why: str) -> Collected:
        write_bytes(path, canonical({**_item(path), "error": why}))
        _move(path, self.home / "failed")
        return Collected(failed=1)

    def _folders(self) -> Iterable[Path]:
        """Those of batches, empty ones (all their requests were answered otherwise) removed."""
        for folder in sorted(self.home.glob("b-*")):
            if any(folder.glob(ITEMS)) or (folder / "batch.state").exists():
                yield folder
            else:
                shutil.rmtree(folder)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self.home.mkdir(parents=True, exist_ok=True)
        with open(self.home / "turn", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _lines(folder: Path) -> Iterator[bytes]:
    """The batch's file: one request a line."""
    for path in sorted(folder.glob(ITEMS)):
        line = {"custom_id": path.stem, "method": "POST", "url": URL, "body": _item(path)["body"]}
        yield json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _item(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))


def _state(folder: Path) -> dict[str, str | None]:
    path = folder / "batch.state"
    return dict(json.loads(path.read_bytes())) if path.exists() else {"file": None, "batch": None}


def _keep(folder: Path, file: str, batch: str | None) -> None:
    write_bytes(folder / "batch.state", canonical({"file": file, "batch": batch}))


def _move(path: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    os.rename(path, folder / path.name)
