"""Telemetry: off it costs nothing, on it tells the truth once, and in no case does it decide or betray anything."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import threading
import time
import timeit
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from llmservice import Service
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict

from infra import telemetry
from infra.errors import ConfigError, Terminal, Transient
from infra.llm import Client, Endpoint, Message, Question, RequestCache
from infra.telemetry import logs, series, state, traces

SECRET = "sk-planted-4711-never-to-be-seen"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("MEDLOOM_LOG", "MEDLOOM_LOG_FILE", "MEDLOOM_METRICS", "MEDLOOM_METRICS_PORT", "MEDLOOM_OTLP",
                 "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    make = logging.getLogRecordFactory()
    yield
    telemetry.end()
    logs.set_up({})
    logging.setLogRecordFactory(make)


@pytest.fixture
def spans() -> Any:
    """What is sent, kept in memory by the SDK's own exporter."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    telemetry.begin(["hospital"], {"MEDLOOM_METRICS": "1"})
    exporter = sdk.InMemorySpanExporter()
    mine = state.current()
    assert mine is not None
    mine.provider = traces.provider(exporter)
    mine.tracer = mine.provider.get_tracer("medloom")

    def ended() -> dict[str, Any]:
        telemetry.state.flush()
        return {span.name: span for span in exporter.get_finished_spans()}

    return ended


def numbers(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples of Prometheus's text format as its own parser reads them."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }


def shown(home: Path) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    path = telemetry.write(home)
    assert path == home / "reports" / "metrics.prom"
    return numbers(path.read_text())


def test_while_off_a_call_costs_under_a_microsecond() -> None:
    def entered() -> None:
        with telemetry.span("unit", stage="a", source="b"):
            pass

    def counted() -> None:
        telemetry.count("rows", 3, stage="a", source="b")

    assert not telemetry.on()
    for call in (entered, counted):  # the best of many short ones: others are at work on this machine
        assert min(timeit.repeat(call, number=200, repeat=300)) / 200 < 1e-6


def test_while_off_nothing_is_written_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom infra import telemetry\n"
        "assert not telemetry.begin() and telemetry.carried() is None\n"
        "with telemetry.unit('a', 'b', 'c'), telemetry.timed('x'): telemetry.count('y')\n"
        "assert telemetry.taken() == {} and telemetry.write(Path(sys.argv[1])) is None\n"
        "print([m for m in ('opentelemetry', 'prometheus_client', 'requests') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, "[]", "") and not list(tmp_path.iterdir())


def test_spans_nest_across_threads_and_name_no_contents(spans: Any) -> None:
    def ask(number: int) -> None:
        with telemetry.timed("llm_request", model="m") as attempt:
            attempt.set(tokens_in=number, unknown=None)

    with telemetry.span("build", recipe="demo"), telemetry.unit("caption", "ct", "all"):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(ask, range(3)))
        with pytest.raises(Terminal), telemetry.span("storage", operation="GetObject"):
            raise Terminal("FILE_MISSING", f"patient Ada Lovelace, {SECRET}")
    found = spans()
    unit = found["unit"]
    assert unit.parent.span_id == found["build"].context.span_id
    assert found["llm_request"].parent.span_id == found["storage"].parent.span_id == unit.context.span_id
    assert dict(unit.attributes) == {
        "medloom.stage": "caption", "medloom.source": "ct", "medloom.partition": "all"
    }
    lost = found["storage"]
    assert lost.status.description == lost.attributes["medloom.outcome"] == "FILE_MISSING" and not lost.events
    assert SECRET not in lost.to_json() and "Ada" not in lost.to_json()
    assert "medloom.unknown" not in found["llm_request"].attributes


def test_a_private_source_has_a_pseudonym_everywhere(spans: Any, tmp_path: Path) -> None:
    logs.set_up({"MEDLOOM_LOG_FILE": str(tmp_path / "log")})
    with telemetry.unit("ingest", "hospital", "ward-7"):
        telemetry.count("rows", 1, source="hospital")
    telemetry.committed(_Manifest(source="hospital", telemetry={"warnings": ["infra.x: odd"]}))
    telemetry.write(tmp_path)
    everything = spans()["unit"].to_json() + (tmp_path / "log").read_text() + (tmp_path / series_file()).read_text()
    assert "hospital" not in everything and "ward-7" not in everything and "private-" in everything


def series_file() -> str:
    from infra.telemetry.units import TEXTFILE

    return TEXTFILE


@dataclass(frozen=True)
class _Shard:
    bytes: int = 1000


@dataclass(frozen=True)
class _Manifest:
    source: str = "ct"
    stage: str = "caption"
    kept: int = 7
    dropped: int = 2
    failed: int = 1
    quarantined: bool = False
    seconds: float = 1.5
    shards: tuple[_Shard, ...] = (_Shard(), _Shard())
    telemetry: dict[str, Any] = field(default_factory=dict)


def test_what_a_unit_counts_is_counted_once_in_one_process_and_in_two(tmp_path: Path) -> None:
    telemetry.begin([], {"MEDLOOM_METRICS": "1"})
    telemetry.count("llm_cached", 5, model="m")
    with telemetry.unit("caption", "ct", "all"):
        telemetry.count("llm_cached", 2, model="m")
        here = telemetry.taken()
    assert here == {"counts": {"llm_cached?model=m": 2.0}}
    telemetry.committed(_Manifest(telemetry=json.loads(json.dumps(here))))
    worker = (
        "import json, pickle, sys\nfrom infra import telemetry\n"
        "telemetry.resume(pickle.loads(bytes.fromhex(sys.argv[1])))\n"
        "with telemetry.unit('caption', 'ct', 'all'):\n"
        "    telemetry.count('llm_cached', 3, model='m & n')\n    telemetry.observe('llm_request_seconds', 0.2)\n"
        "    print(json.dumps(telemetry.taken()))"
    )
    command = [sys.executable, "-c", worker, pickle.dumps(telemetry.carried()).hex()]
    there = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    telemetry.committed(_Manifest(telemetry=there, quarantined=True))
    told = shown(tmp_path)
    assert told["medloom_llm_cached_total", (("model", "m"),)] == 7
    assert told["medloom_llm_cached_total", (("model", "m & n"),)] == 3
    where = (("source", "ct"), ("stage", "caption"))
    assert told["medloom_units_total", where] == 2 and told["medloom_quarantined_total", where] == 1
    rows = {o: told["medloom_rows_total", (("outcome", o), *where)] for o in ("kept", "dropped", "failed")}
    assert rows == {"kept": 14, "dropped": 4, "failed": 2}
    assert told["medloom_shard_bytes_total", where] == 4000
    assert told["medloom_unit_seconds_sum", (("stage", "caption"),)] == 3.0
    assert told["medloom_llm_request_seconds_bucket", (("le", "0.1"),)] == 0
    assert told["medloom_llm_request_seconds_bucket", (("le", "0.25"),)] == 1
    assert told["medloom_llm_request_seconds_bucket", (("le", "+Inf"),)] == 1


def test_what_a_unit_counted_that_did_not_commit_stays_in_its_process(tmp_path: Path) -> None:
    telemetry.begin([], {"MEDLOOM_METRICS": "1"})
    with pytest.raises(RuntimeError), telemetry.unit("caption", "ct", "all"):
        telemetry.count("llm_retries", 2)
        raise RuntimeError("a bug")
    assert shown(tmp_path)["medloom_llm_retries_total", ()] == 2


def test_the_endpoint_is_on_loopback_and_is_scraped(tmp_path: Path) -> None:
    assert telemetry.begin([], {"MEDLOOM_METRICS_PORT": "0"})
    telemetry.count("llm_tokens", 10, model='a"b\\c\nd', direction="in")
    telemetry.gauge("snapshot_number", 3)
    port = telemetry.endpoint_port()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        told = numbers(answer.read().decode())
    assert told["medloom_llm_tokens_total", (("direction", "in"), ("model", 'a"b\\c\nd'))] == 10
    assert told["medloom_snapshot_number", ()] == 3
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert f"0100007F:{port:04X}" in listening and f"00000000:{port:04X}" not in listening
    state.current().endpoint.close()  # type: ignore[union-attr]
    other = series.Endpoint(series.Series(), 0)
    try:
        telemetry.end()
        assert telemetry.begin([], {"MEDLOOM_METRICS_PORT": str(other.port)})  # taken: the build goes on
        assert telemetry.endpoint_port() is None
    finally:
        other.close()


def test_labels_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "LIMIT", 3)
    kept = series.Series()
    for number in range(9):
        kept.add("x", 1, {"item": number})
    assert sum(kept.snapshot().values()) == 9 and len(kept.snapshot()) == 4


@dataclass
class Collector:
    """An OpenTelemetry collector on loopback: OTLP over HTTP, spans as protobuf."""

    status: int = 200
    spans: list[Any] = field(default_factory=list)
    requests: int = 0

    def __enter__(self) -> Self:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.requests += 1
                got = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                if self.path == "/v1/traces" and collector.status == 200:
                    for resource in got.resource_spans:
                        for scope in resource.scope_spans:
                            collector.spans += scope.spans
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


WORKER = (
    "import pickle, sys\nfrom infra import telemetry\ntelemetry.resume(pickle.loads(bytes.fromhex(sys.argv[1])))\n"
    "with telemetry.unit('caption', 'ct', 'all'), telemetry.timed('llm_request', model='m'): pass\n"
    "import os; os._exit(9)"  # as a killed worker: what ended was sent
)


def test_a_collector_gets_one_trace_from_driver_and_worker() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with Collector() as collector:
        telemetry.begin([], {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address})
        with telemetry.span("build", recipe="demo"):
            command = [sys.executable, "-c", WORKER, pickle.dumps(telemetry.carried()).hex()]
            assert subprocess.run(command, cwd=ROOT).returncode == 9
        telemetry.end()
        found = {span.name: span for span in collector.spans}
    assert set(found) == {"build", "unit", "llm_request"}
    assert len({span.trace_id for span in found.values()}) == 1
    assert found["unit"].parent_span_id == found["build"].span_id
    assert found["llm_request"].parent_span_id == found["unit"].span_id


@pytest.mark.parametrize("status", [503, 302])
def test_a_collector_that_fails_stops_nothing_and_is_left_alone(status: int) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    started = time.monotonic()
    with Collector(status) as collector:
        telemetry.begin([], {"MEDLOOM_OTLP": collector.address})
        for _ in range(traces.PATIENCE + 2):
            with telemetry.unit("caption", "ct", "all"):
                pass
        asked = collector.requests
        with telemetry.unit("caption", "ct", "all"):
            pass
        telemetry.end()
        assert collector.requests == asked and not collector.spans
    assert time.monotonic() - started < 4 * traces.PATIENCE * traces.TIMEOUT_S


@pytest.mark.parametrize(("environment", "goes"), [
    ({}, None),
    ({"MEDLOOM_OTLP": "http://127.0.0.1:4318"}, "http://127.0.0.1:4318/v1/traces"),
    ({"MEDLOOM_OTLP": "https://collector.example.org/v1/traces"}, "https://collector.example.org/v1/traces"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318/"}, "http://localhost:4318/v1/traces"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.example.org"}, None),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318/", "MEDLOOM_OTLP": "off"}, None),
])
def test_spans_go_where_medloom_was_told_to_send_them(environment: dict[str, str], goes: str | None) -> None:
    assert traces.address(environment) == goes


@pytest.mark.parametrize("environment", [
    {"MEDLOOM_OTLP": "http://collector.example.org"}, {"MEDLOOM_OTLP": "collector:4318"},
    {"MEDLOOM_OTLP": "https://ada:lovelace@collector.example.org"}, {"MEDLOOM_METRICS_PORT": "many"},
    {"MEDLOOM_LOG": "yaml"}, {"MEDLOOM_LOG": "json", "MEDLOOM_LOG_LEVEL": "loud"},
])
def test_a_switch_that_means_nothing_is_an_error_before_any_work(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        telemetry.begin([], environment)
    assert "lovelace" not in str(caught.value) and not telemetry.on()


def test_what_a_worker_warned_of_reaches_the_driver(caplog: pytest.LogCaptureFixture) -> None:
    with telemetry.unit("ground", "ct", "all"):
        for _ in range(3):
            logging.getLogger("transforms.adapters").warning("slow model")
        for number in range(2 * logs.CAP):
            logging.getLogger("transforms.x").warning("odd %d %s", number, "x" * 1000)
        logging.getLogger("pydicom").warning("a header's value")
        told = telemetry.taken()
    assert told["warnings"][0] == "transforms.adapters: slow model (3 times)"
    assert len(told["warnings"]) == logs.CAP + 1 and max(map(len, told["warnings"])) <= logs.LETTERS
    assert "header" not in json.dumps(told)
    with caplog.at_level(logging.WARNING):
        telemetry.committed(_Manifest(telemetry=told))
    assert "caption over ct: transforms.adapters: slow model (3 times)" in caplog.messages


class Caption(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str


def test_requests_to_a_model_are_counted_as_the_service_saw_them(tmp_path: Path) -> None:
    plans = {"case 0": "busy", "case 1": "broken", "case 2": "ok", "case 3": "garbage"}
    telemetry.begin([], {"MEDLOOM_METRICS": "1"})
    with Service(lambda text, nth: plans[text] if nth == 0 else "ok", retry_after="0") as service:
        endpoint = Endpoint(base_url=service.base_url, model="m", price_in=1.0, price_out=2.0, attempts=3)
        with Client(endpoint, RequestCache(tmp_path / "cache")) as client:
            for _ in range(2):
                asked = [Question([Message("user", text)], Caption, "local") for text in plans]
                assert [r.data.text[:5] for r in client.ask_many(asked)] == ["The i"] * 4  # type: ignore[union-attr]
    told = shown(tmp_path)
    who = (("endpoint", "127.0.0.1"), ("model", "m"))
    by_outcome = {o: told.get(("medloom_llm_request_total", (*who, ("outcome", o))), 0) for o in (
        "ok", "LLM_BUSY", "LLM_BAD_RESPONSE")}
    assert by_outcome == {"ok": 5, "LLM_BUSY": 1, "LLM_BAD_RESPONSE": 1}
    assert sum(by_outcome.values()) == sum(service.asked.values())
    assert told["medloom_llm_retries_total", who] == 2
    assert told["medloom_llm_request_seconds_count", who] == 7
    assert told["medloom_llm_tokens_total", (("direction", "in"), *who)] == 50
    assert told["medloom_llm_cost_usd_total", who] == pytest.approx(5 * (10 * 1 + 5 * 2) / 1e6)
    assert told["medloom_llm_repairs_total", (("code", "LLM_INVALID_ANSWER"),)] == 1
    assert told["medloom_llm_cached_total", (("model", "m"),)] == 5


def test_what_may_not_leave_is_counted_and_a_key_of_ours_is_among_it(tmp_path: Path) -> None:
    telemetry.begin([], {"MEDLOOM_METRICS": "1"})
    endpoint = Endpoint(base_url="https://models.example.org/v1", model="m", api_key_env="OPENAI_API_KEY")
    with Client(endpoint, RequestCache(tmp_path / "cache")) as client:
        for text, policy in (("x", "local"), (f"the key is {SECRET}", "any")):
            with pytest.raises(Terminal) as caught:
                client.ask([Message("user", text)], Caption, policy)  # type: ignore[arg-type]
            assert SECRET not in str(caught.value)
    told = shown(tmp_path)
    assert told["medloom_llm_withheld_total", (("why", "policy"),)] == 1
    assert told["medloom_llm_withheld_total", (("why", "secret"),)] == 1


def test_errors_are_counted_by_code_never_by_words() -> None:
    assert telemetry.outcome_of(Transient("LLM_BUSY", "patient Ada")) == "LLM_BUSY"
    assert telemetry.outcome_of(ValueError("patient Ada")) == "ValueError"
