"""Language models behind an OpenAI-compatible address: ask, get a validated answer, pay once.

The invariants: no row reaches an address that its source's policy does not allow; no answer is paid for twice (see
infra/llmcache.py); an API key is read from the environment and stands in no error, log or file. The one gap: a process
killed after the server answered and before the answer was written to disk, some milliseconds, will ask again.

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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import stamina
from pydantic import BaseModel, ValidationError

from infra.chat import Address, Endpoint, Message, Picture, Policy, Reply
from infra.errors import ConfigError, MedloomError, Terminal, Transient
from infra.llmcache import Found, RequestCache
from infra.settings import secret

if TYPE_CHECKING:
    import openai

__all__ = ["Address", "Answer", "Client", "Endpoint", "Message", "Picture", "Policy", "RequestCache"]

A = TypeVar("A", bound=BaseModel)

REPAIRS = 2
"""How often a model may mend an unusable answer."""

SHOWN = 300
"""Characters of a server's words that an error or a repair quotes."""


@dataclass(frozen=True)
class Answer(Generic[A]):
    """A valid answer and what it took to get it."""

    data: A
    model: str
    """id as the server answered it"""
    tokens_in: int | None
    """summed over the request and its repairs, as first billed, cached or not; None: the server does not say"""
    tokens_out: int | None
    cost_usd: float | None
    request_sha256: str
    """key of the request that this is the answer to: the last repair where there was one"""
    cached: bool
    """no request was made"""


class Client:
    """Asks one endpoint; safe to share between threads. Close it, use it in `with`, or let it be collected."""

    def __init__(self, endpoint: Endpoint, cache: RequestCache) -> None:
        import openai

        self.endpoint = endpoint
        self._cache = cache
        self._secret = secret(endpoint.api_key_env) if endpoint.api_key_env else None
        if endpoint.api_key_env and not self._secret and not endpoint.is_loopback:
            name = endpoint.api_key_env
            raise ConfigError(f"{endpoint.base_url} needs a key: set {name} or {name}_FILE")
        # Nobody has checked where a redirect leads, and what is for this machine must not pass through a proxy.
        http = openai.DefaultHttpxClient(follow_redirects=False, trust_env=not endpoint.is_loopback)
        self._openai = openai.OpenAI(
            base_url=endpoint.base_url, api_key=self._secret or "none", timeout=endpoint.timeout_s, max_retries=0,
            http_client=http,
        )
        self._in_flight = threading.BoundedSemaphore(endpoint.concurrency)
        self.close = weakref.finalize(self, http.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, messages: Sequence[Message], answer: type[A], policy: Policy) -> Answer[A]:
        """An answer of the given form. Strict servers want a model with extra="forbid" and no defaults.

        Raises Terminal: ENDPOINT_FORBIDDEN (nothing was sent), LLM_REFUSED, LLM_TRUNCATED or LLM_INVALID_ANSWER (after
        two repairs), LLM_BAD_REQUEST, LLM_CACHE_UNREADABLE; Transient, after its own retries: LLM_TIMEOUT,
        LLM_UNREACHABLE, LLM_BUSY, LLM_SERVER_ERROR, LLM_BAD_RESPONSE; ConfigError where no request can succeed.
        """
        if not self.endpoint.permits(policy):
            raise Terminal(
                "ENDPOINT_FORBIDDEN", f"policy {policy!r} keeps this row from {self.endpoint.host}, nothing was sent; "
                "use a model on this machine, list the host in MEDLOOM_APPROVED_ENDPOINTS, or change the policy"
            )
        if any(message.pictures for message in messages) and not self.endpoint.sees_images:
            raise ValueError(f"pictures for {self.endpoint.model}, whose endpoint does not say sees_images")
        talk, replies, cached = list(messages), [], True
        while True:
            found = self._reply(talk, answer)
            reply = Reply.model_validate(found.reply)
            replies.append(reply)
            cached = cached and found.cached
            verdict = _judge(reply, answer)
            if not isinstance(verdict, _Unusable):
                break
            if not verdict.mendable or len(replies) > REPAIRS:
                tries = f"{len(replies)} answers" if verdict.mendable else "the answer"
                raise Terminal(verdict.code, f"{tries} of {reply.model} cannot be used; the last: {verdict.reason}")
            talk += [
                Message("assistant", verdict.said or "(nothing)"),
                Message("user", f"{verdict.reason} Answer again, with the JSON only."),
            ]
        tokens = _total(r.tokens_in for r in replies), _total(r.tokens_out for r in replies)
        return Answer(verdict, reply.model, *tokens, self.endpoint.cost(*tokens), found.request_sha256, cached)

    def _reply(self, talk: Sequence[Message], answer: type[BaseModel]) -> Found:
        endpoint, schema = self.endpoint, answer.model_json_schema()
        request = {
            "model": endpoint.model, "messages": [m.keyed() for m in talk], "schema": schema,
            "max_tokens": endpoint.max_tokens, "temperature": endpoint.temperature, "seed": endpoint.seed,
        }
        sent: dict[str, Any] = {
            "model": endpoint.model,
            "messages": [m.sent() for m in talk],
            "response_format": {
                "type": "json_schema", "json_schema": {"name": answer.__name__, "strict": True, "schema": schema},
            },
            endpoint.limit_name: endpoint.max_tokens,
        }
        sent |= {n: request[n] for n in ("temperature", "seed") if request[n] is not None}
        return self._cache.reply(request, lambda: self._patiently(sent).model_dump())

    def _patiently(self, sent: Mapping[str, Any]) -> Reply:
        """Ask until the server serves, within the attempts and the deadline; a stated Retry-After is kept."""
        deadline = time.monotonic() + self.endpoint.deadline_s

        def again(error: Exception) -> bool | float:
            if not isinstance(error, Transient):
                return False
            wait = error.retry_after
            return True if wait is None else time.monotonic() + wait < deadline and float(wait)

        for attempt in stamina.retry_context(
            on=again, attempts=self.endpoint.attempts, timeout=self.endpoint.deadline_s, wait_initial=0.5, wait_max=30
        ):
            with attempt:
                return self._once(sent)
        raise AssertionError("unreachable: the last attempt raises")

    def _once(self, sent: Mapping[str, Any]) -> Reply:
        import openai

        try:
            with self._in_flight:
                response = self._openai.chat.completions.with_raw_response.create(**sent)
        except openai.APIError as error:
            failure = self._failure(error)
        else:
            return Reply.of(response.text)
        raise failure  # out here, so that it does not carry the request, and with it the key, as its context

    def _failure(self, error: openai.APIError) -> MedloomError:
        """What an error of the library means for us; its type and status decide."""
        import openai

        where = f"{self.endpoint.model} at {self.endpoint.base_url}"
        said = self._scrubbed(f"{error.message} {error.__cause__ or ''}".strip())[:SHOWN]
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

    def _scrubbed(self, text: str) -> str:
        return text.replace(self._secret, "***") if self._secret else text


@dataclass(frozen=True)
class _Unusable:
    code: str
    reason: str
    """for the model, which is told it, and for the person who reads the reject"""
    said: str = ""
    """what of its answer the model is shown again"""
    mendable: bool = True


def _judge(reply: Reply, answer: type[A]) -> A | _Unusable:
    """The data of a reply, or what is wrong with it."""
    text = reply.content or ""
    if reply.refusal or reply.finish_reason == "content_filter":
        words = (reply.refusal or "content filter")[:SHOWN]
        return _Unusable("LLM_REFUSED", f"the model refused: {words}", mendable=False)
    if reply.finish_reason == "length":
        reason = f"Your answer was cut off after {reply.tokens_out} tokens (max_tokens). Be brief."
        return _Unusable("LLM_TRUNCATED", reason, text[:SHOWN])  # the rest is often one sentence over and over
    try:
        # Some models think aloud or fence their JSON, whatever the response format says.
        return answer.model_validate_json(text[text.find("{") : text.rfind("}") + 1])
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['msg']}" for e in error.errors()[:5]]
        return _Unusable("LLM_INVALID_ANSWER", f"Your answer is not valid. {'; '.join(faults)}.", text)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, given as seconds or as a date (RFC 9110, 10.2.3); None: absent or neither."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _total(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(n for n in known if n is not None)
