"""Counters: numbers by name and labels, that travel from workers in manifests and are shown in Prometheus's format.

The invariant: a number is counted once. What a unit counts on a worker is taken out of that process, kept in the unit's
manifest, and added to the driver's sums when the unit ends; nothing else travels. A number has at most LIMIT
combinations of labels; more are summed under `…`, so that no label can fill the memory.

>>> series = Series()
>>> series.add("llm_requests", 1, {"outcome": "ok"})
>>> series.taken()
{'llm_requests?outcome=ok': 1.0}
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

PREFIX = "medloom_"
BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper edges of the histograms, in seconds."""
LIMIT = 2000
BUCKET, SUM = "#bucket", "#sum"
"""Ends of the names that a histogram is kept under: the count in one bucket, and the sum of what was observed."""
HELP = {
    "units": "units committed",
    "rows": "rows that units kept, dropped or failed",
    "unit_seconds": "wall time of a unit",
    "shard_bytes": "bytes of the shards that units wrote",
    "quarantined": "units quarantined: too large a share of their rows failed",
    "llm_request": "attempts at a request to a model, by how they ended",
    "llm_request_seconds": "time that an attempt at a model took",
    "llm_retries": "attempts that followed a failed one",
    "llm_tokens": "tokens billed, by direction",
    "llm_cost_usd": "US dollars billed, where prices are known",
    "llm_cached": "answers that were at hand: no request was made",
    "llm_repairs": "answers sent back to be mended, by what was wrong",
    "llm_withheld": "requests that were not sent, by reason",
    "storage": "calls of an object store, by how they ended",
    "storage_seconds": "time that a call of an object store took",
    "storage_bytes": "bytes moved, by direction",
    "storage_retries": "attempts of the object store's client that followed a failed one",
    "build_seconds": "wall time of a build",
    "build": "builds, by how they ended",
}
"""What the numbers mean; others are shown without a word."""
GAUGES = {
    "snapshot_number": "number of the newest snapshot",
    "build_units": "units of the newest build: run, stood already, skipped",
    "build_ended_at": "when the newest build ended, seconds since 1970",
}
"""Numbers that are set, not summed."""

Labels = tuple[tuple[str, str], ...]


class Series:
    """Numbers of one process; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, Labels], float] = {}
        self._kinds: Counter[str] = Counter()

    def add(self, name: str, value: float, labels: Mapping[str, object]) -> None:
        """Add to a counter."""
        self._add(name, value, tuple(sorted((k, str(v)) for k, v in labels.items())))

    def observe(self, name: str, value: float, labels: Mapping[str, object]) -> None:
        """Add an observation to a histogram."""
        place = bisect_left(BUCKETS, value)
        edge = f"{BUCKETS[place]:g}" if place < len(BUCKETS) else "+Inf"
        self.add(name + BUCKET, 1, {**labels, "le": edge})
        self.add(name + SUM, value, labels)

    def set(self, name: str, value: float, labels: Mapping[str, object]) -> None:
        """Set a gauge."""
        with self._lock:
            self._values[name, tuple(sorted((k, str(v)) for k, v in labels.items()))] = value

    def taken(self) -> dict[str, float]:
        """All numbers, which are then gone from here; in a form that JSON keeps."""
        with self._lock:
            values, self._values = self._values, {}
            self._kinds.clear()
        return {_named(name, labels): round(value, 6) for (name, labels), value in sorted(values.items())}

    def given(self, numbers: Mapping[str, float]) -> None:
        """Add numbers that were taken elsewhere."""
        for key, value in numbers.items():
            name, _, query = key.partition("?")
            self._add(name, float(value), tuple(parse_qsl(query, keep_blank_values=True)))

    def snapshot(self) -> dict[tuple[str, Labels], float]:
        """The numbers as they stand."""
        with self._lock:
            return dict(self._values)

    def _add(self, name: str, value: float, labels: Labels) -> None:
        with self._lock:
            key = (name, labels)
            if key not in self._values:
                if self._kinds[name] >= LIMIT:
                    key = (name, tuple((k, v if k == "le" else "…") for k, v in labels))
                self._kinds[name] += 1
            self._values[key] = self._values.get(key, 0.0) + value


def _named(name: str, labels: Labels) -> str:
    return f"{name}?{urlencode(labels)}" if labels else name


class Shown:
    """The numbers as a collector of prometheus_client."""

    def __init__(self, series: Series) -> None:
        self._series = series

    def collect(self) -> Iterator[Any]:
        """Families of metrics, by name."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        families: dict[str, dict[Labels, float]] = {}
        for (name, labels), value in self._series.snapshot().items():
            families.setdefault(name, {})[labels] = value
        for name in sorted(families):
            if name.endswith(BUCKET):
                own = name.removesuffix(BUCKET)
                histogram = HistogramMetricFamily(PREFIX + own, HELP.get(own, own), labels=_labels(families[name]))
                for labels, (buckets, total) in _histograms(families[name], families.get(own + SUM, {})).items():
                    histogram.add_metric([v for _, v in labels], buckets, total)
                yield histogram
            elif not name.endswith(SUM):
                family = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
                made = family(PREFIX + name, {**HELP, **GAUGES}.get(name, name), labels=_labels(families[name]))
                for labels, value in sorted(families[name].items()):
                    made.add_metric([v for _, v in labels], value)
                yield made


def _labels(family: Mapping[Labels, float]) -> list[str]:
    return [name for name, _ in next(iter(family)) if name != "le"]


def _histograms(
    counts: Mapping[Labels, float], sums: Mapping[Labels, float]
) -> dict[Labels, tuple[list[tuple[str, float]], float]]:
    """labels -> cumulative buckets and sum, as Prometheus wants them."""
    by_labels: dict[Labels, dict[str, float]] = {}
    for labels, value in sorted(counts.items()):
        edge = dict(labels)["le"]
        by_labels.setdefault(tuple(pair for pair in labels if pair[0] != "le"), {})[edge] = value
    shown = {}
    for labels, found in by_labels.items():
        buckets, total = [], 0.0
        for edge in (*(f"{b:g}" for b in BUCKETS), "+Inf"):
            total += found.get(edge, 0.0)
            buckets.append((edge, total))
        shown[labels] = (buckets, sums.get(labels, 0.0))
    return shown


def exposition(series: Series) -> bytes:
    """The numbers in Prometheus's text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Shown(series))
    return generate_latest(registry)


class Endpoint:
    """An HTTP endpoint on 127.0.0.1 that shows the numbers; close it."""

    def __init__(self, series: Series, port: int) -> None:
        """Raises OSError when the port is taken; 0 takes a free one."""
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Shown(series))
        self._server, self._thread = start_http_server(port, addr="127.0.0.1", registry=registry)
        self.port = int(self._server.server_port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def write(series: Series, path: Path) -> None:
    """The numbers as a file for the textfile collector of Prometheus's node exporter; whole or absent."""
    from infra.storage import write_bytes

    write_bytes(path, exposition(series))
