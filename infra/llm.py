"""Language models behind an OpenAI-compatible address: ask, get a validated answer, pay once.

The invariants: those of infra/llmtalk.py (policy, outbound scan) and infra/llmcache.py (no answer is paid for twice);
an API key is read from the environment and stands in no error, log or file, also where a server repeats it. The one
gap: a process killed after the server answered and before the answer was written to disk, some milliseconds, will ask
again. It does so with the Idempotency-Key it used before, as a retry after silence does: a server or gateway that
honours the header closes the gap, for others it stays. Several endpoints: infra/llmpool.py. At half the price:
infra/llmbatch.py.

>>> class Caption(BaseModel):
...     text: str
>>> endpoint = Endpoint(base_url="http://127.0.0.1:9014/v1", model="local")
>>> with Client(endpoint, RequestCache(home / "cache" / "llm")) as client:
...     client.ask([Message("user", "Caption: CT, chest, axial.")], Caption, policy="local").data.text
'An axial CT image of the chest.'
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

import stamina

from infra import redact, telemetry
from infra.buckets import Bucket
from infra.chat import Address, Endpoint, Message, Picture, Policy, Reply
from infra.errors import ConfigError, MedloomError, Terminal, Transient
from infra.llmbatch import URL, Batch, Batches
from infra.llmcache import RequestCache
from infra.llmtalk import SHOWN, Answer, Asked, Asker, Question
from infra.settings import secret

if TYPE_CHECKING:
    import openai

__all__ = [
    "Address", "Answer", "Client", "Endpoint", "Message", "Picture", "Policy", "Question", "RequestCache",
    "open_batches",
]

T = TypeVar("T")

SERVED = ("LLM_BUSY", "LLM_SERVER_ERROR", "LLM_BAD_RESPONSE")
"""Failures in which the server had its say: the next attempt is a new one to it. After silence it is the same one."""
PICTURE_TOKENS = 1000
"""What a picture is taken for before the server has counted: some models bill a fifth, some three times as much."""
LETTERS_A_TOKEN = 4


class Client(Asker):
    """Asks one endpoint; safe to share between threads. Close it, use it in `with`, or let it be collected."""

    def __init__(self, endpoint: Endpoint, cache: RequestCache) -> None:
        import openai

        super().__init__([endpoint], cache)
        self.endpoint = endpoint
        self._secret = secret(endpoint.api_key_env) if endpoint.api_key_env else None
        if endpoint.api_key_env and not self._secret and not endpoint.is_loopback:
            name = endpoint.api_key_env
            raise ConfigError(f"{endpoint.base_url} needs a key: set {name} or {name}_FILE")
        redact.know(self._secret)  # a recipe may call its variable what it likes
        # Nobody has checked where a redirect leads, and what is for this machine must not pass through a proxy.
        http = openai.DefaultHttpxClient(follow_redirects=False, trust_env=not endpoint.is_loopback)
        self._openai = openai.OpenAI(
            base_url=endpoint.base_url, api_key=self._secret or "none", timeout=endpoint.timeout_s, max_retries=0,
            http_client=http,
        )
        self._in_flight = threading.BoundedSemaphore(endpoint.concurrency)
        limits = {"requests": endpoint.requests_per_minute, "tokens": endpoint.tokens_per_minute}
        self._buckets = {
            unit: Bucket(cache.folder / "buckets", f"{unit} of {endpoint.model} at {endpoint.base_url}", limit)
            for unit, limit in limits.items() if limit is not None
        }
        self.close = weakref.finalize(self, http.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answered(self, asked: Asked) -> Reply:
        """Ask until the server serves, within the attempts and the deadline; a stated Retry-After is kept."""
        deadline = time.monotonic() + self.endpoint.deadline_s
        served = 0

        def again(error: Exception) -> bool | float:
            nonlocal served
            if not isinstance(error, Transient):
                return False
            served += error.code in SERVED
            wait = error.retry_after
            return True if wait is None else time.monotonic() + wait < deadline and float(wait)

        for attempt in stamina.retry_context(
            on=again, attempts=self.endpoint.attempts, timeout=self.endpoint.deadline_s, wait_initial=0.5, wait_max=30
        ):
            with attempt:
                if attempt.num > 1:
                    telemetry.count("llm_retries", **self.labels)
                return self.once(asked, served, deadline - time.monotonic())
        raise AssertionError("unreachable: the last attempt raises")

    def once(self, asked: Asked, served: int, patience: float) -> Reply:
        """One attempt at a request. `served` attempts before it were answered, with an error; `patience` is how many
        seconds it may wait for the token buckets. Raises as `ask` does for what the server does."""
        body = self.endpoint.body(asked.messages, asked.answer)
        with self._in_flight:
            guess = self._admitted(asked, patience)
            with redact.leaving(), telemetry.timed("llm_request", **self.labels) as attempt:
                reply = self._once({**body, "extra_headers": {"Idempotency-Key": f"{asked.sha256}-{served}"}})
                attempt.set(tokens_in=reply.tokens_in, tokens_out=reply.tokens_out, request=asked.sha256[:16])
        self._billed(reply)
        if "tokens" in self._buckets and reply.tokens_in is not None and reply.tokens_out is not None:
            self._buckets["tokens"].give_back(guess - reply.tokens_in - reply.tokens_out)
        return reply.model_copy(update={"endpoint": self.endpoint.id})

    def _once(self, sent: Mapping[str, Any]) -> Reply:
        create = self._openai.chat.completions.with_raw_response.create
        return Reply.of(redact.known(self.spoken(lambda: create(**sent).text)))

    @property
    def labels(self) -> dict[str, str]:
        """What its numbers are counted by: no address, and nothing of a request."""
        return {"endpoint": self.endpoint.host, "model": self.endpoint.model}

    def _billed(self, reply: Reply) -> None:
        """Count what a reply cost."""
        telemetry.count("llm_tokens", reply.tokens_in, direction="in", **self.labels)
        telemetry.count("llm_tokens", reply.tokens_out, direction="out", **self.labels)
        telemetry.count("llm_cost_usd", self.endpoint.cost(reply.tokens_in, reply.tokens_out), **self.labels)

    def _admitted(self, asked: Asked, patience: float) -> float:
        """Wait until the limits let the request through; returns the tokens it was taken for."""
        letters = sum(len(message.text) for message in asked.messages)
        pictures = sum(len(message.pictures) for message in asked.messages)
        guess = letters / LETTERS_A_TOKEN + pictures * PICTURE_TOKENS + self.endpoint.max_tokens
        waits = [bucket.take(guess if unit == "tokens" else 1, patience) for unit, bucket in self._buckets.items()]
        time.sleep(max(waits, default=0))
        return guess

    def spoken(self, call: Callable[[], T]) -> T:
        """What a call of the library returns; its errors become ours."""
        import openai

        try:
            return call()
        except openai.APIError as error:
            failure = self._failure(error)
        raise failure  # out here, so that it does not carry the request, and with it the key, as its context

    def _failure(self, error: openai.APIError) -> MedloomError:
        """What an error of the library means for us; its type and status decide."""
        import openai

        where = f"{self.endpoint.model} at {self.endpoint.base_url}"
        said = redact.text(f"{error.message} {error.__cause__ or ''}".strip())[:SHOWN]
        if isinstance(error, openai.APITimeoutError):
            return Transient("LLM_TIMEOUT", f"{where} said nothing for {self.endpoint.timeout_s:g} s; raise timeout_s")
        if not isinstance(error, openai.APIStatusError):
            return Transient("LLM_UNREACHABLE", f"{where}: {said}; is the server up?")
        if error.status_code in (401, 403):
            key = self.endpoint.api_key_env or "api_key_env, which is not set"
            return ConfigError(f"{where} refuses the key ({error.status_code}); check {key}. It says: {said}")
        if error.status_code == 404 or error.code == "insufficient_quota":
            return ConfigError(f"{where} cannot serve: {said}; check base_url, model and the account")
        if error.status_code == 429:
            return Transient("LLM_BUSY", f"{where}: {said}", _retry_after(error.response.headers))
        if error.status_code in (408, 409) or error.status_code >= 500:
            return Transient("LLM_SERVER_ERROR", f"{where}: {said}", _retry_after(error.response.headers))
        return Terminal("LLM_BAD_REQUEST", f"{where} ({error.status_code}): {said}")



def open_batches(endpoint: Endpoint, cache: RequestCache) -> Batches:
    """The batches of an endpoint. Raises ConfigError for a missing key."""
    return Batches(endpoint, cache, _Files(Client(endpoint, cache)))


class _Files:
    """The files and batches of an endpoint: infra.llmbatch.BatchApi, with our errors."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._openai = client._openai

    def upload(self, name: str, lines: bytes) -> str:
        """Uploaded twice, a file costs nothing."""
        files = self._openai.files
        file = (f"medloom-{name}.jsonl", lines)
        return self._client.spoken(lambda: files.create(file=file, purpose="batch").id)

    def create(self, name: str, file: str) -> Batch:
        batches = self._openai.batches
        made = self._client.spoken(lambda: batches.create(
            input_file_id=file, endpoint=URL, completion_window="24h", metadata={"medloom": name},
            extra_headers={"Idempotency-Key": name},
        ))
        return _batch(made)

    def find(self, name: str) -> Batch | None:
        batches = self._openai.batches

        def found() -> Batch | None:
            known = (b for b in batches.list(limit=100) if (b.metadata or {}).get("medloom") == name)
            batch = next(known, None)
            return None if batch is None else _batch(batch)

        return self._client.spoken(found)

    def retrieve(self, batch: str) -> Batch:
        return _batch(self._client.spoken(lambda: self._openai.batches.retrieve(batch)))

    def content(self, file: str) -> str:
        return self._client.spoken(lambda: self._openai.files.content(file).text)


def _batch(batch: Any) -> Batch:
    faults = (batch.errors.data or []) if batch.errors else []
    said = "; ".join(f"{fault.code}: {fault.message}" for fault in faults[:3])
    files = tuple(file for file in (batch.output_file_id, batch.error_file_id) if file)
    return Batch(batch.id, batch.status, files, said)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, given as seconds or as a date (RFC 9110, 10.2.3); None: absent or neither."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
