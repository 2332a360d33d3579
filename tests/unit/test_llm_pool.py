"""Several endpoints as one, limits shared by processes, and many questions in flight."""

from __future__ import annotations

import multiprocessing
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from llmservice import Service
from pydantic import BaseModel, ConfigDict

from infra.buckets import Bucket
from infra.chat import Endpoint
from infra.errors import ConfigError, ItemError, Terminal, Transient
from infra.llm import Client, Message, Question, RequestCache
from infra.llmpool import Pool


class Caption(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str


@pytest.fixture
def cache(tmp_path: Path) -> RequestCache:
    return RequestCache(tmp_path / "llm")


@pytest.fixture
def two():
    with ExitStack() as stack:
        yield [stack.enter_context(Service(idempotent=False)) for _ in range(2)]


def endpoint(service: Service, **settings: object) -> Endpoint:
    return Endpoint(**{"base_url": service.base_url, "model": "m", "attempts": 3, "timeout_s": 1, **settings})


def questions(count: int, policy: str = "local") -> list[Question[Caption]]:
    return [Question([Message("user", f"case {n}")], Caption, policy) for n in range(count)]


def asked(services: list[Service], cache: RequestCache, count: int, policy: str = "local", **settings: object) -> list:
    with Pool([endpoint(s, **settings) for s in services], cache) as pool:
        return list(pool.ask_many(questions(count, policy)))


def test_work_is_shared_and_answers_are_in_order(two, cache):
    for service in two:
        service.latency = 0.05
    answers = asked(two, cache, 40, concurrency=4)
    assert [a.data.text.split()[4] for a in answers] == [str(n) for n in range(40)]
    assert all(15 <= sum(s.paid.values()) <= 25 and s.most_at_once == 4 for s in two)


def test_the_key_does_not_depend_on_who_answers(two, cache):
    first = asked(two, cache, 6)
    with Client(endpoint(two[1]), cache) as alone:
        assert [a.request_sha256 for a in alone.ask_many(questions(6))] == [a.request_sha256 for a in first]
    renamed = [endpoint(two[0]), endpoint(two[1], model="org/m-bf16")]
    with Pool(renamed, cache) as pool:
        assert all(a.cached for a in pool.ask_many(questions(6)))
    assert sum(sum(s.paid.values()) for s in two) == 6


def test_members_of_other_names_and_prices_are_billed_as_their_own(two, cache):
    members = [
        endpoint(two[0], concurrency=1, price_in=0, price_out=0),
        endpoint(two[1], concurrency=1, price_in=100, price_out=0, model="big"),
    ]
    for service in two:
        service.latency = 0.1
    with Pool(members, cache) as pool:
        answers = list(pool.ask_many(questions(4)))
        assert {(a.model, a.cost_usd) for a in answers} == {("m-2026", 0.0), ("big-2026", 0.001)}
        assert [a.cost_usd for a in pool.ask_many(questions(4))] == [a.cost_usd for a in answers]
    with Pool([members[0], endpoint(two[0], base_url=two[0].base_url + "/", price_in=1, price_out=1)], cache) as others:
        assert None in {a.cost_usd for a in others.ask_many(questions(4))}  # billed by one that nobody lists any more


@pytest.mark.parametrize("fault, seconds", [("error", 4), ("hang", 4), ("cut", 4)])
def test_a_member_that_fails_is_set_aside_and_its_rows_are_not_lost(two, cache, fault, seconds):
    two[0].plan = lambda text, nth: fault
    begun = time.monotonic()
    answers = asked(two, cache, 30, timeout_s=0.3)
    assert all(not isinstance(a, ItemError) for a in answers) and time.monotonic() - begun < seconds
    assert sum(two[0].asked.values()) <= 12 and sum(two[1].paid.values()) == 30


def test_a_member_that_recovers_is_taken_back(two, cache):
    sick = True
    two[0].plan = lambda text, nth: "error" if sick else "ok"
    two[0].latency = two[1].latency = 0.02
    with Pool([endpoint(s) for s in two], cache) as pool:
        list(pool.ask_many(questions(20)))
        sick = False
        time.sleep(1.1)
        list(pool.ask_many(questions(60)[20:]))
    assert sum(two[0].paid.values()) > 10


def test_a_member_is_given_the_time_it_asks_for_while_others_go_on(two, cache):
    two[0].plan = lambda text, nth: "busy"
    two[0].retry_after = "30"
    begun = time.monotonic()
    assert all(not isinstance(a, ItemError) for a in asked(two, cache, 20))
    assert time.monotonic() - begun < 5 and sum(two[0].asked.values()) <= 4


def test_all_busy_beyond_the_deadline_is_transient(two, cache):
    for service in two:
        service.plan, service.retry_after = (lambda text, nth: "busy"), "30"
    [error] = asked(two, cache, 1, deadline_s=5)
    assert isinstance(error, Transient) and error.code == "LLM_BUSY"


def test_a_row_reaches_only_the_members_its_policy_permits(monkeypatch, two, cache):
    here = two[0].base_url
    monkeypatch.setattr(Endpoint, "is_loopback", property(lambda self: self.base_url == here))
    answers = asked(two, cache, 12, "local")
    assert len(answers) == 12 and two[1].asked == {}
    two[0].plan = lambda text, nth: "error"
    with Pool([endpoint(s, attempts=1) for s in two], cache) as pool, pytest.raises(Transient):
        pool.ask([Message("user", "private")], Caption, "local")
    assert two[1].asked == {}
    with Pool([endpoint(s, attempts=1) for s in two], cache) as pool:
        assert pool.ask([Message("user", "public")], Caption, "any").data and two[1].asked == {"public": 1}
        with pytest.raises(Transient):  # an identifier keeps a row on this machine whatever its policy
            pool.ask([Message("user", "public, MRN: 00451877")], Caption, "any")
    assert two[1].asked == {"public": 1}


def test_a_member_with_a_wrong_key_is_left_out_and_two_stop_the_run(two, cache):
    two[0].post = lambda *_: (401, {"error": {"message": "no", "code": None}})
    assert all(not isinstance(a, ItemError) for a in asked(two, cache, 8))
    two[1].post = two[0].post
    with pytest.raises(ConfigError, match="refuses the key"):
        asked(two, RequestCache(cache.folder / "new"), 8)


@pytest.mark.parametrize("change", [{"max_tokens": 9}, {"temperature": None}, {"seed": 1}, {"sees_images": True}])
def test_members_must_be_alike(two, cache, change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        Pool([endpoint(two[0]), endpoint(two[1], **change)], cache)


def test_many_questions_keep_the_client_busy_and_no_more(cache):
    with Service(latency=0.05) as service, Client(endpoint(service, concurrency=6), cache) as client:
        results = client.ask_many(questions(60))
        begun = time.monotonic()
        assert len(list(results)) == 60
        assert service.most_at_once == 6 and time.monotonic() - begun < 60 * 0.05 / 2


def test_an_error_costs_its_own_question_only(cache):
    with Service(plan=lambda text, nth: "refusal" if text.endswith("3") else "ok") as service:
        results = asked([service], cache, 10)
    assert [n for n, r in enumerate(results) if isinstance(r, ItemError)] == [3]
    assert isinstance(results[3], Terminal) and results[3].code == "LLM_REFUSED"


def take_for(folder: Path, seconds: float, taken) -> None:
    bucket, until = Bucket(folder, "b", per_minute=1200, burst=0.5), time.monotonic() + seconds
    while True:
        wait = bucket.take(1)
        if time.monotonic() + wait > until:
            return
        time.sleep(wait)
        with taken.get_lock():
            taken.value += 1


def test_processes_keep_a_limit_together(tmp_path):
    """20 a second and half a second's worth at once: in 2 s 50, whether one asks or three, one of them killed."""
    spawn = multiprocessing.get_context("fork")
    taken = spawn.Value("i", 0)
    workers = [spawn.Process(target=take_for, args=(tmp_path, 2.0, taken)) for _ in range(3)]
    for worker in workers:
        worker.start()
    time.sleep(0.7)
    workers[0].kill()
    for worker in workers:
        worker.join()
    assert 38 <= taken.value <= 51
    assert len(list(tmp_path.iterdir())) == 1


def test_a_bucket_says_how_long_it_is_empty_and_takes_back(tmp_path):
    bucket = Bucket(tmp_path, "b", per_minute=60, burst=2)
    assert [round(bucket.take(1)) for _ in range(4)] == [0, 0, 1, 2]
    with pytest.raises(Transient, match=r"LLM_BUSY.*60 a minute") as caught:
        bucket.take(1, patience=1)
    assert caught.value.retry_after == pytest.approx(3, abs=0.2)
    bucket.give_back(3)
    assert round(bucket.take(1)) == 0
    assert Bucket(tmp_path, "big", per_minute=60, burst=2).take(500) == 0  # let through when full, owed afterwards
    assert Bucket(tmp_path, "big", per_minute=60, burst=2).take(1) == pytest.approx(499, abs=1)


def test_a_client_keeps_to_requests_and_tokens_a_minute(cache):
    before = threading.active_count()
    with Service() as service:
        with Client(endpoint(service, requests_per_minute=60, concurrency=8), cache) as client:
            begun = time.monotonic()
            list(client.ask_many(questions(12)))  # one a second after the first ten
            assert 1.5 < time.monotonic() - begun < 10
        limited = endpoint(service, tokens_per_minute=600, max_tokens=80, deadline_s=20, seed=1, concurrency=1)
        with Client(limited, cache) as client:
            results = list(client.ask_many(questions(3)))  # each is taken for 80 and more, billed 15: corrected after
        assert not [r for r in results if isinstance(r, ItemError)]
        refused = endpoint(service, tokens_per_minute=60, max_tokens=80, deadline_s=5, seed=2)
        with Client(refused, cache) as client:
            codes = [getattr(r, "code", "ok") for r in client.ask_many(questions(8))]
        assert set(codes) == {"LLM_BUSY", "ok"}
    assert threading.active_count() < before + 10
