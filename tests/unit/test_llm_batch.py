"""The Batch API: an outbox, batches that are submitted once, and answers that are collected whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from llmservice import Service
from pydantic import BaseModel, ConfigDict

from infra.chat import Endpoint
from infra.errors import ConfigError, ItemError, MedloomError, Terminal, Transient
from infra.llm import Client, Message, Question, RequestCache, open_batches
from infra.llmbatch import Collected
from infra.llmpool import Pool

HERE = Path(__file__).resolve()


class Caption(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str


@pytest.fixture
def service():
    with Service() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> RequestCache:
    return RequestCache(tmp_path / "llm")


def endpoint(service: Service, **settings: object) -> Endpoint:
    wanted = {"base_url": service.base_url, "model": "m", "batch": True, "price_in": 1.0, "price_out": 2.0}
    return Endpoint(**{**wanted, "attempts": 2, "timeout_s": 2, **settings})


def asked(service: Service, cache: RequestCache, count: int, **settings: object) -> list:
    """What `ask_many` gives for questions 0 … count - 1: answers, or the codes of errors."""
    with Client(endpoint(service, **settings), cache) as client:
        questions = [Question([Message("user", f"case {n}")], Caption, "local", "en") for n in range(count)]
        return [r.code if isinstance(r, ItemError) else r for r in client.ask_many(questions)]


def folders(cache: RequestCache) -> dict[str, int]:
    """Folder of the outbox -> requests in it."""
    found = {p.name.partition("-")[0]: 0 for p in cache.folder.glob("outbox/*/*") if p.is_dir()}
    for path in cache.folder.glob("outbox/*/*/*.json"):
        found[path.parent.name.partition("-")[0]] += 1
    return found


def test_the_same_build_finds_the_answers_of_a_batch_at_half_the_price(service, cache):
    assert asked(service, cache, 5) == ["LLM_PENDING"] * 5 == asked(service, cache, 5)
    assert service.asked == {} and folders(cache) == {"open": 5}
    batches = open_batches(endpoint(service), cache)
    assert batches.submit() == ["batch-0"] and batches.submit() == []
    assert asked(service, cache, 5) == ["LLM_PENDING"] * 5 and batches.submit() == []
    assert batches.collect() == Collected(waiting=5)
    service.work("batch-0", fate=lambda n, body: "twice" if n == 3 else "ok")
    assert batches.collect() == Collected(answered=5)
    answers = asked(service, cache, 5)
    assert [a.data.text.split()[4] for a in answers] == list("01234")
    assert all(a.cached and a.model == "m-2026" for a in answers)
    assert answers[0].cost_usd == pytest.approx((10 * 1 + 5 * 2) / 1e6 / 2)
    assert service.asked == {} and service.paid_twice == 0 and folders(cache) == {"open": 0}
    assert batches.collect() == Collected() and batches.submit() == []


def test_what_a_batch_does_not_answer_is_sent_again_and_the_rest_never(service, cache):
    asked(service, cache, 8)
    batches = open_batches(endpoint(service), cache)
    batches.submit()
    service.work("batch-0", "expired", lambda n, body: ["ok", "expired", "missing", "error"][n % 4])
    assert batches.collect() == Collected(answered=2, again=6)
    assert batches.submit() == ["batch-1"]
    assert len(service.files[service.batches["batch-1"]["input_file_id"]].splitlines()) == 6
    service.work("batch-1", fate=lambda n, body: "bad" if n == 0 else "ok")
    assert batches.collect() == Collected(answered=5, failed=1)
    results = asked(service, cache, 8)
    assert results.count("LLM_BAD_REQUEST") == 1 and sum(not isinstance(r, str) for r in results) == 7
    assert service.paid_twice == 0 and sum(service.paid.values()) == 7


def test_an_answer_to_mend_makes_a_request_for_the_next_batch(service, cache):
    asked(service, cache, 3)
    batches = open_batches(endpoint(service), cache)
    batches.submit()
    service.work("batch-0", fate=lambda n, body: ["broken", "german", "refusal"][n])
    batches.collect()
    assert sorted(asked(service, cache, 3)) == ["LLM_PENDING", "LLM_PENDING", "LLM_REFUSED"]
    batches.submit()
    service.work("batch-1")
    batches.collect()
    mended = [r for r in asked(service, cache, 3) if not isinstance(r, str)]
    assert len(mended) == 2 and all(a.tokens_in == 20 for a in mended) and service.paid_twice == 0


def test_a_request_that_no_batch_answers_fails_for_good(service, cache):
    asked(service, cache, 1)
    batches = open_batches(endpoint(service), cache)
    for n in range(3):
        batches.submit()
        service.batches[f"batch-{n}"]["errors"] = {"data": [{"code": "token_limit_exceeded", "message": "queue full"}]}
        service.work(f"batch-{n}", "failed", lambda n, body: "missing")
        assert batches.collect() == (Collected(again=1) if n < 2 else Collected(failed=1))
    with Client(endpoint(service), cache) as client, pytest.raises(Terminal, match=r"3 batches.*queue full"):
        client.ask([Message("user", "case 0")], Caption, "local")


def test_a_request_in_a_batch_is_not_asked_beside_it_and_one_in_the_outbox_is_taken_out(service, cache):
    asked(service, cache, 2)
    [first, second] = asked(service, cache, 2, batch=False)
    assert first.data and second.data and folders(cache) == {"open": 0}
    asked(service, cache, 3)
    batches = open_batches(endpoint(service), cache)
    batches.submit()
    assert asked(service, cache, 3, batch=False)[2] == "LLM_PENDING"
    service.work("batch-0")
    batches.collect()
    assert asked(service, cache, 3, batch=False)[2].cached and service.paid_twice == 0


def test_an_answered_request_leaves_the_outbox_and_a_forbidden_one_stays(monkeypatch, service, cache):
    asked(service, cache, 2)
    for path in cache.folder.glob("outbox/*/open/*.json"):
        path.write_bytes(path.read_bytes().replace(b'"policy":"local"', b'"policy":"approved"'))
    monkeypatch.setattr(Endpoint, "is_loopback", False)
    batches = open_batches(endpoint(service), cache)
    assert batches.submit() == [] and folders(cache) == {"open": 2}
    monkeypatch.setenv("MEDLOOM_APPROVED_ENDPOINTS", "127.0.0.1")
    assert batches.submit() == ["batch-0"]


@pytest.mark.parametrize("lost", ["/v1/files", "/v1/batches"])
def test_a_reply_lost_on_the_way_makes_no_second_batch(service, cache, lost):
    asked(service, cache, 3)
    service.lose.add(lost)
    batches = open_batches(endpoint(service), cache)
    with pytest.raises(Transient, match="LLM_UNREACHABLE"):
        batches.submit()
    for _ in range(3):  # others made meanwhile, so that ours is on a later page of the list
        service.post("/v1/batches", b'{"input_file_id": "file-0"}', {})
    named = batches.submit()
    ours = [b["id"] for b in service.batches.values() if b.get("metadata")]
    assert named == ours and len(ours) == 1 and folders(cache) == {"open": 0, "b": 3}


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[4:]
from pathlib import Path
import infra.llmbatch, infra.storage
from infra.llm import RequestCache, open_batches
from infra.chat import Endpoint

left = int(sys.argv[3])
def counted(function):
    def call(*given):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        done = function(*given)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return call
infra.storage.publish = counted(infra.storage.publish)
infra.llmbatch.os = type("os", (), {"rename": staticmethod(counted(os.rename))})
batches = open_batches(Endpoint(base_url=sys.argv[1], model="m", batch=True), RequestCache(Path(sys.argv[2])))
batches.submit()
batches.collect()
"""


@pytest.mark.parametrize("phase, moment", [
    *(("submit", moment) for moment in (3, 6, 8)), *(("collect", moment) for moment in (2, 4, 5)),
])
def test_killed_at_any_write_and_done_again(service, cache, phase, moment):
    """Before (odd) or after (even) each move and note: to submit 2 + 2 of them, to collect an answer, a note, a move.
    """
    asked(service, cache, 2)
    if phase == "collect":
        open_batches(endpoint(service), cache).submit()
        service.work("batch-0", fate=lambda n, body: ["ok", "error"][n])
    places = [str(HERE.parents[2]), str(HERE.parents[1])]
    command = [sys.executable, "-c", KILLED, service.base_url, str(cache.folder), str(moment), *places]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    batches = open_batches(endpoint(service), cache)
    for _ in range(3):
        batches.submit()
        for name, batch in list(service.batches.items()):
            if batch["status"] == "in_progress":
                service.work(name)
        batches.collect()
    assert all(not isinstance(r, str) for r in asked(service, cache, 2)) and service.paid_twice == 0
    assert sum(service.paid.values()) == 2 and folders(cache).get("b", 0) == 0
    assert os.listdir(cache.folder / "outbox" / endpoint(service).id / "open") == []


def test_large_outboxes_are_cut_into_batches(monkeypatch, service, cache):
    monkeypatch.setattr("infra.llmbatch.MOST", 3)
    asked(service, cache, 7)
    assert len(open_batches(endpoint(service), cache).submit()) == 3
    assert sorted(len(f.splitlines()) for f in service.files.values()) == [1, 3, 3]


def test_a_server_without_batches_says_so_and_a_pool_has_none(cache, service):
    asked(service, cache, 1)
    service.post = lambda *_: (404, {"error": {"message": "Not Found", "code": None}})
    with pytest.raises(ConfigError, match="cannot serve"):
        open_batches(endpoint(service), cache).submit()
    with pytest.raises(MedloomError, match="not to a pool"):
        Pool([endpoint(service)], cache)
