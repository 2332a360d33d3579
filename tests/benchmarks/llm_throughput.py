"""How much of the throughput that a server's latency and the concurrency allow the model client reaches.

    python tests/benchmarks/llm_throughput.py [LATENCY_S] [CONCURRENCY] [QUESTIONS]

A service in a process of its own answers each request after LATENCY (0.25 s unless told). The most that can be reached
is CONCURRENCY / LATENCY answers a second. Four ways are measured, the median of three runs of each, on an empty request
cache: `ask` in a loop; `ask_many`; a row stage over batches of 100 samples with 2 x CONCURRENCY in flight, one batch
after the other; the same with two batches begun at once (the client's own limit holds for both). One line of JSON each.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pyarrow as pa  # noqa: E402
from pydantic import BaseModel, ConfigDict  # noqa: E402

from catalog.schema import LAYERS  # noqa: E402
from infra.inflight import in_order  # noqa: E402
from infra.llm import Client, Endpoint, Message, Question, RequestCache  # noqa: E402
from transforms.stage import each_sample  # noqa: E402

BATCH = 100
"""Samples in a row group of `images`."""


class Caption(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str


def row(sample, client):
    answer = client.ask([Message("user", sample.id)], Caption, "local")
    return {"checks": [
        {"text_id": "", "check": "c", "version": "1", "value": float(answer.tokens_in), "verdict": "pass"}
    ]}


def batches(count: int) -> Iterator[dict[str, pa.Table]]:
    schema = LAYERS["images"].schema
    for begin in range(0, count, BATCH):
        rows = [f"s{n}" for n in range(begin, min(count, begin + BATCH))]
        yield {"images": pa.table({n: rows if n == "sample_id" else [None] * len(rows) for n in schema.names})}


def ways(concurrency: int, count: int) -> dict[str, Callable[[Client], int]]:
    stage = each_sample(
        "s", "1", reads=("images",), writes=("checks",), row=row, pixels=False, concurrency=2 * concurrency
    )

    def loop(client: Client) -> int:
        few = count // concurrency
        return sum(bool(client.ask([Message("user", f"q{n}")], Caption, "local")) for n in range(few))

    def ask_many(client: Client) -> int:
        asked = (Question([Message("user", f"q{n}")], Caption, "local") for n in range(count))
        return sum(bool(answer.data) for answer in client.ask_many(asked))

    def staged(threads: int) -> Callable[[Client], int]:
        return lambda client: sum(
            len(o.kept) for o in in_order(lambda tables: stage(tables, client), batches(count), threads, ahead=threads)
        )

    return {"loop": loop, "ask_many": ask_many, "stage": staged(1), "stage, two batches": staged(2)}


def main(latency: float = 0.25, concurrency: int = 16, count: int = 400) -> None:
    command = [sys.executable, str(ROOT / "tests" / "llmservice.py"), str(latency)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        base_url = server.stdout.readline().strip()
        for name, way in ways(concurrency, count).items():
            rates = []
            for _ in range(3):
                with tempfile.TemporaryDirectory() as home:
                    endpoint = Endpoint(base_url=base_url, model="m", concurrency=concurrency)
                    with Client(endpoint, RequestCache(Path(home))) as client:
                        client.ask([Message("user", "warm up")], Caption, "local")
                        begun = time.perf_counter()
                        done = way(client)
                        rates.append(done / (time.perf_counter() - begun))
            most, rate = concurrency / latency, statistics.median(rates)
            told = {"way": name, "answers_per_s": round(rate, 1), "most": most, "ratio": round(rate / most, 3)}
            print(json.dumps({**told, "spread": [round(r, 1) for r in sorted(rates)]}), flush=True)
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((float, int, int), sys.argv[1:], strict=False)))
