"""What is going on: spans, counts and times, from every process of a build. Off unless the environment says otherwise.

    MEDLOOM_METRICS=1          count; HOME/reports/metrics.prom is written when a build ends
    MEDLOOM_METRICS_PORT=9464  also show the counts on 127.0.0.1 while a build runs
    MEDLOOM_OTLP=…             send spans to an OpenTelemetry collector (infra/telemetry/traces.py)
    MEDLOOM_LOG=json|text      write what happens as lines (infra/telemetry/logs.py)

The invariants: telemetry decides nothing: a build has the same bytes with and without it, and goes on when a collector
is gone or a port is taken. Nothing of an item leaves: attributes are names, counts and codes, and a private source has
a pseudonym. A call costs under a microsecond while off (tests/unit/test_telemetry.py measures it).

>>> with span("unit", stage="caption", source="ct") as seen:      # one line in the log, one span in the trace
...     with timed("llm_request", model="local") as attempt:      # and a count by outcome, and a histogram of seconds
...         attempt.set(tokens_in=10)
...     count("llm_tokens", 10, model="local", direction="in")

Driver: `build` round it all, `carried` into each step's payload, `committed` for each manifest. Worker: `resume`
with what was carried, `unit` round the work, `taken` into its manifest. What a unit counted before it was killed, or
stopped on a bug, on a worker is lost: it committed nothing.
"""

from infra.telemetry.state import (
    Carried,
    Span,
    begin,
    carried,
    count,
    end,
    endpoint_port,
    gauge,
    observe,
    on,
    outcome_of,
    resume,
    span,
    timed,
)
from infra.telemetry.storage import watch
from infra.telemetry.units import build, committed, taken, unit, write

__all__ = [
    "Carried", "Span", "begin", "build", "carried", "committed", "count", "end", "endpoint_port", "gauge", "observe",
    "on", "outcome_of", "resume", "span", "taken", "timed", "unit", "watch", "write",
]
