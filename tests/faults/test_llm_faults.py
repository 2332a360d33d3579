"""The model client against a service with every fault, killed again and again: nothing lost, nothing paid twice.

The service bills each answer that it makes, delivered or not. It honours Idempotency-Key in one test; in the other it
does not, which shows the gap that is left: what was on its way when the process died.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from llmservice import Service
from pydantic import BaseModel, ConfigDict

from infra.errors import ItemError
from infra.llm import Client, Endpoint, Message, Question, RequestCache

ROWS = 120
FAULTS = ("busy", "error", "hang", "cut", "garbage", "broken", "german", "long", "refusal")
HERE = Path(__file__).resolve()


class Caption(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str


def plan(text: str, nth: int) -> str:
    """Every other row meets a fault the first time it is asked; a refusal stays one."""
    number = int(text.split()[1])
    fault = FAULTS[number // 2 % len(FAULTS)] if number % 2 else "ok"
    return fault if nth == 0 or fault == "refusal" else "ok"


def ask_all(base_url: str, cache: Path) -> list[str]:
    """The text of each row, or the code of its error."""
    endpoint = Endpoint(base_url=base_url, model="m", timeout_s=0.4, attempts=4, concurrency=8)
    with Client(endpoint, RequestCache(cache)) as client:
        asked = (Question([Message("user", f"case {n}")], Caption, "local", "en") for n in range(ROWS))
        return [r.code if isinstance(r, ItemError) else r.data.text for r in client.ask_many(asked)]


def check(results: list[str]) -> None:
    assert len(results) == ROWS
    refused = {n for n in range(ROWS) if plan(f"case {n}", 0) == "refusal"}
    assert {n for n, r in enumerate(results) if r == "LLM_REFUSED"} == refused
    assert all(f"case {n} " in r for n, r in enumerate(results) if n not in refused)


def test_every_fault_costs_no_row_and_no_second_payment(tmp_path):
    with Service(plan, latency=0.01, hang=2) as service:
        check(ask_all(service.base_url, tmp_path))
        paid = Counter(service.paid)
        check(ask_all(service.base_url, tmp_path))
        assert service.paid == paid and service.paid_twice == 0
        mended = sum(plan(f"case {n}", 0) in ("broken", "german", "long") for n in range(ROWS))
        assert sum(paid.values()) == ROWS + mended


@pytest.mark.parametrize("idempotent", [True, False])
def test_killed_again_and_again(tmp_path, idempotent):
    places = {**os.environ, "PYTHONPATH": f"{HERE.parents[2]}{os.pathsep}{HERE.parents[1]}"}
    with Service(plan, latency=0.05, hang=2, idempotent=idempotent) as service:
        kills = 0
        for after in (15, 50, 90):
            command = [sys.executable, str(HERE), service.base_url, str(tmp_path)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, env=places)
            deadline = time.monotonic() + 60
            while sum(service.paid.values()) < after and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
        assert kills == 3
        check(ask_all(service.base_url, tmp_path))
        cut = sum(plan(f"case {n}", 0) == "cut" for n in range(ROWS))  # billed, and the reply lost on the way
        print(f"\nidempotent {idempotent}: paid {sum(service.paid.values())}, twice {service.paid_twice}")
        assert service.paid_twice == 0 if idempotent else service.paid_twice <= cut + 8 * kills
        assert all(json.loads(path.read_bytes())["reply"] for path in tmp_path.glob("??/[0-9a-f]*.json"))


if __name__ == "__main__":
    ask_all(sys.argv[1], Path(sys.argv[2]))
