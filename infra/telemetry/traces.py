"""Traces: spans to an OpenTelemetry collector, on this machine or where MEDLOOM_OTLP says.

The invariant: nothing is sent unless an address is set, and beyond this machine only to an address that was set for
medloom by name (MEDLOOM_OTLP, https). A span holds names, counts and codes: no exception's words, no contents. The
provider is ours alone: no other library's spans are sent, and Prefect's do not pass through it.

    MEDLOOM_OTLP=http://127.0.0.1:4318            OTLP over HTTP; /v1/traces is added
    MEDLOOM_OTLP=https://collector.example.org    beyond this machine: only by this variable
    OTEL_EXPORTER_OTLP_ENDPOINT                   is followed on loopback alone; elsewhere it was not set for medloom
    MEDLOOM_OTLP=off                              nothing is sent

A collector that does not answer costs the build three waits of two seconds, then no more.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from infra.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

PATH = "/v1/traces"
TIMEOUT_S = 2.0
PATIENCE = 3
"""Failed sendings in a row after which no more are tried."""
_log = logging.getLogger(__name__)


def address(environment: Mapping[str, str]) -> str | None:
    """Where spans go, or None. Raises ConfigError for a MEDLOOM_OTLP that cannot be meant."""
    ours = environment.get("MEDLOOM_OTLP", "")
    general = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if ours == "off" or not (ours or general):
        return None
    if not ours:
        if is_loopback(urlsplit(str(general)).hostname or ""):
            return _whole(str(general))
        _log.warning("OTEL_EXPORTER_OTLP_ENDPOINT is beyond this machine, nothing is sent; MEDLOOM_OTLP allows it")
        return None
    parts = urlsplit(ours)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ConfigError("MEDLOOM_OTLP: not of the form http://127.0.0.1:4318 or https://HOST without a user; mend it")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ConfigError("MEDLOOM_OTLP: spans leave this machine by https only; use https://HOST or a collector here")
    return _whole(ours)


def is_loopback(host: str) -> bool:
    """localhost, 127.0.0.0/8 or ::1."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _whole(given: str) -> str:
    return given if given.rstrip("/").endswith(PATH) else given.rstrip("/") + PATH


def tracer(address: str) -> Any:
    """The provider of tracers that send to this address. Raises ConfigError where the SDK is not installed."""
    if find_spec("opentelemetry.sdk") is None or find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        raise ConfigError("traces need opentelemetry-sdk: pip install 'medloom[observe]', or unset MEDLOOM_OTLP")
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    session = requests.Session()
    session.trust_env = not is_loopback(urlsplit(address).hostname or "")  # what stays here passes no proxy
    session.max_redirects = 0  # nobody has checked where a redirect leads
    return provider(OTLPSpanExporter(endpoint=address, timeout=TIMEOUT_S, session=session))


def provider(exporter: SpanExporter) -> Any:
    """A provider of tracers whose spans go to this exporter, in batches."""
    from importlib.metadata import version

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    made = TracerProvider(resource=Resource.create({"service.name": "medloom", "service.version": version("medloom")}))
    made.add_span_processor(BatchSpanProcessor(
        _patient(exporter), schedule_delay_millis=2000, export_timeout_millis=int(1000 * TIMEOUT_S)
    ))
    return made


def _patient(exporter: SpanExporter) -> SpanExporter:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Patient(SpanExporter):
        """Stops to send to a collector that does not answer."""

        failed = 0

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            if self.failed >= PATIENCE:
                return SpanExportResult.FAILURE
            result = exporter.export(spans)
            self.failed = 0 if result is SpanExportResult.SUCCESS else self.failed + 1
            if self.failed == PATIENCE:
                _log.warning("the trace collector does not answer; this process sends no more spans")
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # each failed sending has a traceback there
    return Patient()
