"""The state of one process: what is on, the span that is open, and the numbers; and the calls that others make.

The invariant: while nothing is on there is no state, and every call returns at once.

>>> with span("unit", stage="caption"):
...     count("llm_tokens", 10, direction="in")
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, Self

from infra import redact
from infra.errors import ConfigError, ItemError
from infra.keys import sha256
from infra.telemetry import logs, traces
from infra.telemetry.series import Endpoint, Series

LONG = 200
"""Letters of the longest attribute."""
SAID = frozenset({"build", "unit"})
"""Spans that the log tells at INFO; others at DEBUG."""
PLACES = ("source", "partition")
"""Attributes that are hidden where they are of a private source."""
_log = logging.getLogger("infra.telemetry")


@dataclass(frozen=True)
class Carried:
    """What a worker needs to take part: travels in a step's payload."""

    traces: str | None
    metrics: bool
    private: frozenset[str]
    parent: str | None = None
    """the span that the worker's are part of, as W3C traceparent"""
    secrets: frozenset[str] = frozenset()
    """names of variables that hold secrets (infra/redact.py): never the values"""
    on: bool = True
    """False: only logs without secrets are asked for"""


@dataclass
class _State:
    """This process, while telemetry is on."""

    carried: Carried
    series: Series = field(default_factory=Series)
    unit: Series | None = None
    """what the unit under way counted"""
    root: Any = None
    """the span that spans of threads without one are part of"""
    provider: Any = None
    tracer: Any = None
    endpoint: Endpoint | None = None


_state: _State | None = None
_lock = threading.Lock()
_current: ContextVar[Any] = ContextVar("medloom_span", default=None)


class Nothing:
    """A span while telemetry is off."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        return None

    def set(self, **facts: object) -> None:
        """Nothing."""


_NOTHING = Nothing()


class Span:
    """Something that takes time; `set` says more of it. Use it in `with`."""

    __slots__ = ("_before", "_facts", "_name", "_outcome", "_span", "_started", "_state")

    def __init__(self, state: _State, name: str, facts: Mapping[str, object]) -> None:
        self._state, self._name, self._outcome = state, name, "ok"
        self._facts = _hidden(facts, state.carried.private)
        self._span: Any = None

    def set(self, **facts: object) -> None:
        """Say more of it; what is None is left out."""
        self._facts |= _hidden(facts, self._state.carried.private)

    def __enter__(self) -> Self:
        if self._state.tracer is not None:
            parent = _current.get() or self._state.root
            self._span = self._state.tracer.start_span(self._name, context=_context_of(parent))
            self._before = _current.set(self._span)
        self._started = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        seconds = time.perf_counter() - self._started
        if error is not None:
            self._outcome = outcome_of(error)
            self._facts["outcome"] = self._outcome
        self._ended(seconds)
        if self._span is not None:
            for name, value in self._facts.items():
                self._span.set_attribute(f"medloom.{name}", value)
            if error is not None:
                from opentelemetry.trace import StatusCode

                self._span.set_status(StatusCode.ERROR, self._outcome)  # its words may quote an item
            self._span.end()
            _current.reset(self._before)
        level = logging.INFO if self._name in SAID else logging.DEBUG
        if _log.isEnabledFor(level):
            _log.log(level, self._name, extra={"facts": {**self._facts, "seconds": round(seconds, 6), **self._ids()}})

    @property
    def otel(self) -> Any:
        """The span of OpenTelemetry, or None."""
        return self._span

    def _ended(self, seconds: float) -> None:
        """For those who count as well."""

    def _ids(self) -> dict[str, str]:
        """The ids by which a line of the log is found in the trace."""
        if self._span is None:
            return {}
        context = self._span.get_span_context()
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


class _Timed(Span):
    """A span that is counted by outcome, and whose seconds are."""

    __slots__ = ("_labels",)

    def __init__(self, state: _State, name: str, labels: Mapping[str, object]) -> None:
        super().__init__(state, name, labels)
        self._labels = dict(self._facts)

    def _ended(self, seconds: float) -> None:
        if self._state.carried.metrics:
            series = self._state.unit or self._state.series
            series.add(self._name, 1, {**self._labels, "outcome": self._outcome})
            series.observe(f"{self._name}_seconds", seconds, self._labels)


def outcome_of(error: BaseException) -> str:
    """How an error is counted: by its code, or its type; never by its words."""
    return error.code if isinstance(error, ItemError) else type(error).__name__


def on() -> bool:
    """Whether this process counts, traces or logs."""
    return _state is not None


def span(name: str, /, **facts: object) -> Span | Nothing:
    """Something that takes time, to be used in `with`: a span in the trace and a line in the log."""
    state = _state
    return _NOTHING if state is None else Span(state, name, facts)


def timed(name: str, /, **labels: object) -> Span | Nothing:
    """A span that is counted as well: NAME by labels and outcome, NAME_seconds by labels. Few values a label."""
    state = _state
    return _NOTHING if state is None else _Timed(state, name, labels)


def count(name: str, value: float | None = 1, /, **labels: object) -> None:
    """Add to a counter; None, which is unknown, adds nothing."""
    state = _state
    if state is None or value is None or not state.carried.metrics:
        return
    (state.unit or state.series).add(name, value, _hidden(labels, state.carried.private))


def observe(name: str, value: float, /, **labels: object) -> None:
    """Add to a histogram of seconds."""
    state = _state
    if state is None or not state.carried.metrics:
        return
    (state.unit or state.series).observe(name, value, _hidden(labels, state.carried.private))


def gauge(name: str, value: float, /, **labels: object) -> None:
    """Set a number of this process that is no sum; only the driver's are shown."""
    state = _state
    if state is not None and state.carried.metrics:
        state.series.set(name, value, _hidden(labels, state.carried.private))


def begin(private: Collection[str] = (), environment: Mapping[str, str] | None = None) -> bool:
    """Set up logs, and turn on what the environment asks for; `private` are the sources whose names are hidden.

    For the process that drives a build; called again, only the private sources change. Returns whether anything is on.
    Raises ConfigError for a switch that means nothing.
    """
    environment = os.environ if environment is None else environment
    logs.set_up(environment)
    port = environment.get("MEDLOOM_METRICS_PORT", "")
    if port and not (port.isdecimal() and int(port) < 65536):
        raise ConfigError(f"MEDLOOM_METRICS_PORT={port!r} is no port; set one such as 9464, or 0 for a free one")
    metrics = bool(port) or environment.get("MEDLOOM_METRICS", "").lower() in ("1", "on", "true", "yes")
    asked = Carried(traces.address(environment), metrics, frozenset(private))
    _turn_on(asked, logging_is_on=bool(environment.get("MEDLOOM_LOG_FILE"))
             or environment.get("MEDLOOM_LOG", "") in ("json", "text"))
    state = _state
    if state is not None and port and state.endpoint is None:
        try:
            state.endpoint = Endpoint(state.series, int(port))
        except OSError as error:  # another build shows its own there
            _log.warning("no metrics on port %s: %s", port, error.strerror or type(error).__name__)
    return state is not None


def resume(given: Carried | None) -> None:
    """Take part in what the driver began: for workers, before each unit. Logs hold no secrets from now on."""
    _logs()
    if given is None:
        return
    redact.also(given.secrets)
    if not given.on:
        return
    _turn_on(given, logging_is_on=True)
    state = _state
    if state is not None and state.tracer is not None and given.parent:
        state.root = _remote(given.parent)


@cache
def _logs() -> None:
    """Set up the logs of a worker, once."""
    logs.set_up()


def _turn_on(asked: Carried, logging_is_on: bool) -> None:
    global _state
    if not (asked.traces or asked.metrics or logging_is_on):
        return
    with _lock:
        if _state is None:
            _state = _State(asked)
        if asked.traces and _state.tracer is None:
            _state.provider = traces.tracer(asked.traces)
            _state.tracer = _state.provider.get_tracer("medloom")
        _state.carried = asked


def carried() -> Carried | None:
    """What a worker must be given to take part, with the span that is open here as the parent of its own."""
    state, secrets = _state, redact.names()
    if state is None:
        return Carried(None, False, frozenset(), None, secrets, on=False) if secrets else None
    now = _current.get() or state.root
    parent = None
    if now is not None:
        context = now.get_span_context()
        parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
    return Carried(state.carried.traces, state.carried.metrics, state.carried.private, parent, secrets)


def current() -> _State | None:
    """This process's state; None while nothing is on."""
    return _state


def flush() -> None:
    """Send the spans that have ended."""
    state = _state
    if state is not None and state.provider is not None:
        state.provider.force_flush(int(1000 * traces.TIMEOUT_S))


def end() -> None:
    """Send what is on its way, close the endpoint and turn everything off: the end of a process, or of a test."""
    global _state
    with _lock:
        state, _state = _state, None
    if state is not None:
        if state.endpoint is not None:
            state.endpoint.close()
        if state.provider is not None:
            state.provider.shutdown()


def endpoint_port() -> int | None:
    """The port on 127.0.0.1 at which this process shows its counts, or None."""
    state = _state
    return None if state is None or state.endpoint is None else state.endpoint.port


def _hidden(facts: Mapping[str, object], private: frozenset[str]) -> dict[str, Any]:
    """Facts as attributes: without secrets, capped, unknown ones left out, private sources by a pseudonym."""
    secretive = bool(private) and str(facts.get("source")) in private
    shown: dict[str, Any] = {}
    for name, value in facts.items():
        if value is None:
            continue
        if secretive and name in PLACES:
            shown[name] = _pseudonym(str(value))
        elif isinstance(value, bool | int | float):
            shown[name] = value
        else:
            shown[name] = str(value)[:LONG]
    return shown


def _pseudonym(name: str) -> str:
    return f"private-{sha256(name.encode())[:8]}"


def shown(source: str) -> str:
    """What a source is called outside the home."""
    state = _state
    return _pseudonym(source) if state is not None and source in state.carried.private else source


def _context_of(span: Any) -> Any:
    from opentelemetry import trace

    return None if span is None else trace.set_span_in_context(span)


def _remote(parent: str) -> Any:
    from opentelemetry import trace

    _, trace_id, span_id, flags = parent.split("-")
    return trace.NonRecordingSpan(trace.SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16))
    ))
