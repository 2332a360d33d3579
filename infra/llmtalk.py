"""The conversation that leads to a valid answer: who may see it, is it known already, is it of use, can it be mended.

The invariants: no row reaches an address that its source's policy does not allow, and no text that is plainly an
identifier leaves this machine; a reply is kept before it is judged, so an unusable one is not paid for again either.

Where a request is sent is left to those who can send: `infra.llm.Client` to one endpoint, `infra.llmpool.Pool` to the
least busy of several. Both are an `Asker`.

>>> for result in asker.ask_many(Question(messages, Caption, "local") for messages in conversations):
...     print(result.code if isinstance(result, ItemError) else result.data.text)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from infra import telemetry
from infra.chat import Endpoint, Message, Policy, Reply
from infra.errors import ItemError, Terminal, Transient
from infra.inflight import in_order
from infra.language import other_language
from infra.llmbatch import Outbox
from infra.llmcache import Found, RequestCache
from infra.outbound import identifiers

A = TypeVar("A", bound=BaseModel)

REPAIRS = 2
"""How often a model may mend an unusable answer."""

SHOWN = 300
"""Characters of a server's words that an error or a repair quotes."""

SPARE = 2
"""Threads for each request in flight: while one waits for its server another writes its answer to disk."""


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
    """at the prices of the endpoints that answered, as given now; None where a price or a count is unknown"""
    request_sha256: str
    """key of the request that this is the answer to: the last repair where there was one"""
    cached: bool
    """no request was made"""

    @property
    def bill(self) -> dict[str, Any]:
        """What it cost, by columns of the layer `texts`."""
        return {"tokens_in": self.tokens_in, "tokens_out": self.tokens_out, "cost_usd": self.cost_usd}


@dataclass(frozen=True)
class Question(Generic[A]):
    """What is asked, the form of its answer, and what holds for both."""

    messages: Sequence[Message]
    answer: type[A]
    """strict servers want a model with extra="forbid" and no defaults"""
    policy: Policy
    language: str | None = None
    """ISO 639-1 code of the language that the answer's prose must be in; None: any. The prompt has to ask for it."""
    private: Collection[str] = field(default=(), repr=False)
    """values known to be identifying, such as names in the source's headers: text that has one does not leave"""


class Asker(ABC):
    """Asks one or several endpoints that serve the same model; safe to share between threads."""

    def __init__(self, endpoints: Sequence[Endpoint], cache: RequestCache) -> None:
        self.endpoints = tuple(endpoints)
        self._cache = cache
        self._outbox = Outbox(cache)

    @abstractmethod
    def _answered(self, asked: Asked) -> Reply:
        """Send a request to one of the endpoints that may see it, with all due patience."""

    @property
    def concurrency(self) -> int:
        """Requests in flight."""
        return sum(endpoint.concurrency for endpoint in self.endpoints)

    def ask(
        self, messages: Sequence[Message], answer: type[A], policy: Policy, *, language: str | None = None,
        private: Collection[str] = (),
    ) -> Answer[A]:
        """An answer to one question (see `Question`).

        Raises Terminal: ENDPOINT_FORBIDDEN or OUTBOUND_IDENTIFIER (nothing was sent), LLM_REFUSED, LLM_TRUNCATED,
        LLM_INVALID_ANSWER or LLM_WRONG_LANGUAGE (after two repairs), LLM_BAD_REQUEST, LLM_CACHE_UNREADABLE; Transient,
        after its own retries: LLM_TIMEOUT, LLM_UNREACHABLE, LLM_BUSY, LLM_SERVER_ERROR, LLM_BAD_RESPONSE; LLM_PENDING
        at once, where the answer is to come from a batch; ConfigError where no request can succeed.
        """
        return self.answer(Question(messages, answer, policy, language, private))

    def ask_many(self, questions: Iterable[Question[A]]) -> Iterator[Answer[A] | ItemError]:
        """For each question, in order, its answer or why there is none; `concurrency` requests are kept in flight.

        A ConfigError or a bug is raised; answers on their way by then are received and kept.
        """
        return in_order(self._answer_or_error, questions, SPARE * self.concurrency)

    def _answer_or_error(self, question: Question[A]) -> Answer[A] | ItemError:
        try:
            return self.answer(question)
        except ItemError as error:
            return error

    def answer(self, question: Question[A]) -> Answer[A]:
        """As `ask`."""
        talk, replies, cached = list(question.messages), [], True
        while True:
            found = self._reply(talk, question)
            reply = Reply.model_validate(found.reply)
            replies.append(reply)
            cached = cached and found.cached
            verdict = _judge(reply, question.answer, question.language)
            if not isinstance(verdict, _Unusable):
                break
            if not verdict.mendable or len(replies) > REPAIRS:
                tries = f"{len(replies)} answers" if verdict.mendable else "the answer"
                raise Terminal(verdict.code, f"{tries} of {reply.model} cannot be used; the last: {verdict.reason}")
            if not found.cached:
                telemetry.count("llm_repairs", code=verdict.code)
            talk += [
                Message("assistant", verdict.said or "(nothing)"),
                Message("user", f"{verdict.reason} Answer again, with the JSON only."),
            ]
        tokens = _total(r.tokens_in for r in replies), _total(r.tokens_out for r in replies)
        return Answer(verdict, reply.model, *tokens, self._cost(replies), found.request_sha256, cached)

    def _reply(self, talk: Sequence[Message], question: Question[Any]) -> Found:
        """The reply to a conversation so far. Its key holds nothing that depends on the endpoint that answers."""
        among = self._may_see(talk, question)
        first = self.endpoints[0]
        request = {
            "model": first.model, "messages": [m.keyed() for m in talk], "schema": question.answer.model_json_schema(),
            "max_tokens": first.max_tokens, "temperature": first.temperature, "seed": first.seed,
        }
        asked = Asked(RequestCache.key(request), request, tuple(talk), question.answer, question.policy, among)

        def ask() -> dict[str, Any]:
            if first.batch:
                self._outbox.add(first, asked.sha256, request, first.body(talk, question.answer), question.policy)
            self._outbox.withdraw(asked.sha256)
            return self._answered(asked).model_dump()

        found = self._cache.reply(request, ask)
        if found.cached:
            telemetry.count("llm_cached", model=first.model)
        return found

    def _may_see(self, talk: Sequence[Message], question: Question[Any]) -> tuple[Endpoint, ...]:
        """The endpoints that a conversation may be sent to."""
        permitted = [endpoint for endpoint in self.endpoints if endpoint.permits(question.policy)]
        if not permitted:
            telemetry.count("llm_withheld", why="policy")
            hosts = ", ".join(sorted({endpoint.host for endpoint in self.endpoints}))
            raise Terminal(
                "ENDPOINT_FORBIDDEN", f"policy {question.policy!r} keeps this row from {hosts}, nothing was sent; "
                "use a model on this machine, list the host in MEDLOOM_APPROVED_ENDPOINTS, or change the policy"
            )
        if any(message.pictures for message in talk) and not all(e.sees_images for e in permitted):
            raise ValueError(f"pictures for {permitted[0].model}, whose endpoint does not say sees_images")
        said = "\n".join(message.text for message in talk)
        found: tuple[str, ...] = ()
        among = []
        for endpoint in permitted:
            kinds = () if endpoint.is_loopback else identifiers(said, endpoint.outbound, question.private)
            found = found or kinds
            if not kinds:
                among.append(endpoint)
        if not among:
            for kind in found:
                telemetry.count("llm_withheld", why=kind)
            raise Terminal(
                "OUTBOUND_IDENTIFIER", f"the text has what looks like {', '.join(found)}, so it was not sent to "
                f"{permitted[0].host}; de-identify the source, use a model on this machine, or set outbound"
            )
        return tuple(among)

    def _cost(self, replies: Iterable[Reply]) -> float | None:
        billed: defaultdict[tuple[float, float, float], list[int]] = defaultdict(lambda: [0, 0])
        for reply in replies:
            prices = {(e.price_in, e.price_out) for e in self.endpoints if e.id == reply.endpoint}
            # An endpoint that is no longer listed had the price that all others have, or an unknown one.
            prices = prices or {(e.price_in, e.price_out) for e in self.endpoints}
            price_in, price_out = prices.pop()
            if prices or price_in is None or price_out is None or reply.tokens_in is None or reply.tokens_out is None:
                return None
            share = 1.0 if reply.discount is None else reply.discount
            bill = billed[price_in, price_out, share]
            bill[0] += reply.tokens_in
            bill[1] += reply.tokens_out
        return sum(share * (t[0] * p_in + t[1] * p_out) / 1e6 for (p_in, p_out, share), t in sorted(billed.items()))


@dataclass(frozen=True)
class Asked:
    """One request, for those who send it."""

    sha256: str
    request: dict[str, Any]
    """as the cache keeps it"""
    messages: tuple[Message, ...]
    answer: type[BaseModel]
    policy: Policy
    among: tuple[Endpoint, ...]
    """endpoints that may see it; never empty"""


@dataclass(frozen=True)
class _Unusable:
    code: str
    reason: str
    """for the model, which is told it, and for the person who reads the reject"""
    said: str = ""
    """what of its answer the model is shown again"""
    mendable: bool = True


def _judge(reply: Reply, answer: type[A], language: str | None) -> A | _Unusable:
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
        data = answer.model_validate_json(text[text.find("{") : text.rfind("}") + 1])
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['msg']}" for e in error.errors()[:5]]
        return _Unusable("LLM_INVALID_ANSWER", f"Your answer is not valid. {'; '.join(faults)}.", text)
    if language and (other := other_language(data.model_dump(mode="json"), language)):
        reason = f"Your answer is in the language {other!r}; its texts must be in {language!r} (ISO 639-1)."
        return _Unusable("LLM_WRONG_LANGUAGE", reason, text)
    return data


def _total(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(n for n in known if n is not None)


__all__ = ["Answer", "Asked", "Asker", "Question", "Transient"]
