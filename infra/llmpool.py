"""Several endpoints that serve the same model, as one: each request goes to the least busy one that may see its row.

The invariants: a row reaches only the members that its policy permits; the key of a request does not depend on the
member that answers, and is the key that a single `Client` of the first member would use, so a pool can grow, shrink or
become one server and pays for nothing again. Members may call the model by different names: listing them together
declares them equals, and each row still records the model id as its server gave it.

A member that fails three times in a row, is silent, or asks for patience is set aside (a circuit breaker), for as long
as it asks, else for 1 s, doubled each time up to a minute; then one request probes it. A member that refuses the key or
does not know the model is left out for good; when no member is left, that is the error.

>>> with Pool([here, there], RequestCache(home / "cache" / "llm")) as pool:
...     pool.ask(messages, Caption, policy="approved").model
'local'
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Self

from infra import telemetry
from infra.chat import Endpoint, Reply
from infra.errors import ConfigError, ItemError, Transient
from infra.llm import SERVED, Client
from infra.llmcache import RequestCache
from infra.llmtalk import Asked, Asker

TRIP = 3
"""Failures in a row after which a member is set aside."""
AT_ONCE = ("LLM_UNREACHABLE", "LLM_TIMEOUT")
"""Failures after which it is set aside at once: the next request would most likely share the fate, and the wait."""
LONGEST = 60.0
"""Seconds for which a member is set aside at most, unless it asks for more."""
HOP = 0.5
"""Seconds that a request waits for a member's token buckets before it goes to another member."""
ALIKE = ("max_tokens", "temperature", "seed", "sees_images")
"""What must be the same for all members: it decides the answer."""


class _Member:
    """One endpoint of a pool and how it fares. Everything here is guarded by the pool's lock."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.endpoint = client.endpoint
        self.in_flight = 0
        self.failures = 0
        """in a row"""
        self.trips = 0
        self.until = 0.0
        """monotonic time before which it is set aside; 0: it is not"""
        self.out: ConfigError | None = None

    def ready(self, now: float) -> bool:
        if self.out or self.in_flight >= self.endpoint.concurrency:
            return False
        return not self.until or (now >= self.until and self.in_flight == 0)  # a probe goes alone

    def set_aside(self, error: Transient) -> None:
        self.failures += 1
        now = time.monotonic()
        if error.retry_after is not None:
            self.until = max(self.until, now + error.retry_after)
        elif now < self.until:
            pass  # asked before it was set aside, and known since
        elif self.until or self.failures >= TRIP or error.code in AT_ONCE:
            self.until = now + min(LONGEST, 2.0**self.trips)
            self.trips += 1

    def serves(self) -> None:
        self.failures, self.trips = 0, 0
        if time.monotonic() >= self.until:  # an answer to what was asked before says nothing about the patience due
            self.until = 0.0


class Pool(Asker):
    """Asks the members of a pool; safe to share between threads. Close it, or use it in `with`.

    Raises ConfigError for members that differ in what decides an answer, that want a batch, or lack their key.
    """

    def __init__(self, endpoints: Sequence[Endpoint], cache: RequestCache) -> None:
        if not endpoints:
            raise ConfigError("a pool needs at least one endpoint")
        for name in ALIKE:
            if len(values := {getattr(e, name) for e in endpoints}) > 1:
                raise ConfigError(f"the endpoints of a pool differ in {name} ({values}); give them the same")
        if any(e.batch for e in endpoints):
            raise ConfigError("a batch goes to one endpoint, not to a pool; unset batch, or name one endpoint")
        super().__init__(endpoints, cache)
        self._members = [_Member(Client(endpoint, cache)) for endpoint in endpoints]
        self._change = threading.Condition()

    def close(self) -> None:
        """Close the connections of all members."""
        for member in self._members:
            member.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answered(self, asked: Asked) -> Reply:
        """Ask one member after another until one serves, within the attempts and the deadline."""
        deadline = time.monotonic() + max(endpoint.deadline_s for endpoint in asked.among)
        attempts = max(endpoint.attempts for endpoint in asked.among) * len(asked.among)
        served: Counter[str] = Counter()
        tried: Counter[str] = Counter()
        failed, last = 0, None
        while True:
            member = self._taken(asked, tried, deadline, last)
            where = member.endpoint.id
            tried[where] += 1
            patience = HOP if len(asked.among) > 1 else deadline - time.monotonic()
            try:
                reply = member.client.once(asked, served[where], patience)
            except Transient as error:
                failed, last = failed + (error.retry_after is None), error  # waiting as told is not a failure
                served[where] += error.code in SERVED
                self._returned(member, error)
                if failed >= attempts:
                    raise
                telemetry.count("llm_retries", **member.client.labels)
            except ConfigError as error:
                self._returned(member, error)
            except BaseException:
                self._returned(member, None)  # the request's fault, or ours
                raise
            else:
                self._returned(member, reply)
                return reply

    def _taken(self, asked: Asked, tried: Counter[str], deadline: float, last: Transient | None) -> _Member:
        """Of the members that may see the request, and are least tried with it, the least busy, once there is one; a
        probe that is due goes first."""
        among = {endpoint.id for endpoint in asked.among}
        permitted = [member for member in self._members if member.endpoint.id in among]
        with self._change:
            while True:
                now = time.monotonic()
                left = [member for member in permitted if not member.out]
                if not left:
                    raise next(member.out for member in permitted if member.out)
                if ready := [member for member in left if member.ready(now)]:
                    member = min(ready, key=lambda m: (
                        tried[m.endpoint.id], not m.until, m.in_flight / m.endpoint.concurrency
                    ))
                    member.in_flight += 1
                    return member
                soonest = min(max(now, member.until) for member in left)
                if soonest >= deadline:
                    raise last or Transient(
                        "LLM_BUSY", f"no endpoint of {asked.among[0].model} can be asked for {soonest - now:.0f} s; "
                        "raise deadline_s or add an endpoint", soonest - now
                    )
                self._change.wait(max(0.001, min(soonest, deadline) - now) if soonest > now else deadline - now)

    def _returned(self, member: _Member, came: Reply | ItemError | ConfigError | None) -> None:
        with self._change:
            member.in_flight -= 1
            if isinstance(came, Reply):
                member.serves()
            elif isinstance(came, Transient):
                member.set_aside(came)
            elif isinstance(came, ConfigError):
                member.out = came
            self._change.notify_all()
