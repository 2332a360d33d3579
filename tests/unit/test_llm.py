"""The model client: policy, cache, structured answers, repairs, retries; against faults made to order."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import threading
import time
import traceback
from email.utils import formatdate
from pathlib import Path

import pytest
from llmserver import Broken, FaultServer, chat
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from s3server import free_ports

from infra.errors import ConfigError, MedloomError, Terminal, Transient
from infra.llm import Client, Endpoint, Message, Picture, RequestCache

KEY = "sk-planted-3f9a17c2"
ASK = [Message("user", "Caption: CT, chest, axial.")]
GOOD = chat('{"text": "An axial CT image of the chest."}')


class Caption(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str


@pytest.fixture
def server():
    with FaultServer() as stub:
        yield stub


@pytest.fixture
def cache(tmp_path: Path) -> RequestCache:
    return RequestCache(tmp_path / "llm")


def endpoint(server: FaultServer, **settings: object) -> Endpoint:
    return Endpoint(**{"base_url": server.base_url, "model": "m", "attempts": 3, "timeout_s": 5, **settings})


def ask(server: FaultServer, cache: RequestCache, policy: str = "local", **settings: object):
    with Client(endpoint(server, **settings), cache) as client:
        return client.ask(ASK, Caption, policy)


def failure(server: FaultServer, cache: RequestCache, **settings: object) -> MedloomError:
    with pytest.raises(MedloomError) as caught:
        ask(server, cache, **settings)
    return caught.value


def test_an_answer_is_validated_billed_and_kept(server, cache):
    server.replies = [GOOD]
    first = ask(server, cache, price_in=2.0, price_out=8.0)
    assert first.data == Caption(text="An axial CT image of the chest.")
    assert (first.model, first.tokens_in, first.tokens_out, first.cached) == ("stub-1", 10, 5, False)
    assert first.cost_usd == pytest.approx((10 * 2 + 5 * 8) / 1e6)
    kept = json.loads(cache.path(first.request_sha256).read_bytes())
    assert kept["reply"]["content"] == '{"text": "An axial CT image of the chest."}'
    assert kept["reply"]["fingerprint"] == "fp"
    assert [p.name for p in cache.folder.rglob("*") if p.is_file()] == [f"{first.request_sha256}.json"]

    again = ask(server, cache, price_in=2.0, price_out=8.0)
    assert again.cached and again.data == first.data and again.cost_usd == first.cost_usd
    assert len(server.requests) == 1


def test_the_request_carries_the_strict_schema_and_the_sampling(server, cache):
    server.replies = [GOOD]
    ask(server, cache, temperature=None, seed=7, max_tokens=99, limit_name="max_completion_tokens")
    sent = server.requests[0]
    assert sent["response_format"]["json_schema"] == {
        "name": "Caption", "strict": True, "schema": Caption.model_json_schema(),
    }
    assert (sent["seed"], sent["max_completion_tokens"]) == (7, 99)
    assert "temperature" not in sent and "max_tokens" not in sent


def test_the_key_is_the_request_not_the_address(server, cache):
    server.replies = [GOOD]
    ask(server, cache)
    with FaultServer(replies=[GOOD]) as elsewhere:
        assert ask(elsewhere, cache, timeout_s=9, attempts=1, limit_name="max_completion_tokens").cached
        assert elsewhere.requests == []
    for change in ({"model": "n"}, {"temperature": 0.5}, {"seed": 1}, {"max_tokens": 7}):
        assert not ask(server, cache, **change).cached
    assert len(server.requests) == 5


def test_pictures_are_sent_whole_and_keyed_by_their_pixels(server, cache):
    server.replies = [GOOD]
    grey, other = (Picture.of(Image.new("L", (4, 4), value)) for value in (10, 11))
    recoded = Picture(grey.png + b"\0", grey.sha256)
    with Client(endpoint(server, sees_images=True), cache) as client:
        answers = [
            client.ask([Message("user", "Look.", (p,))], Caption, "local") for p in (grey, recoded, other)
        ]
    assert [a.cached for a in answers] == [False, True, False]
    assert server.requests[0]["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert "base64" not in cache.path(answers[0].request_sha256).read_text()
    with Client(endpoint(server), cache) as client, pytest.raises(ValueError, match="sees_images"):
        client.ask([Message("user", "Look.", (grey,))], Caption, "local")


@pytest.mark.parametrize("url, policy, approved, permitted", [
    ("http://127.0.0.1:1/v1", "local", "", True),
    ("http://127.8.8.8/v1", "local", "", True),
    ("http://[::1]:1/v1", "local", "", True),
    ("http://LOCALHOST/v1", "local", "", True),
    ("http://127.0.0.1.example.org/v1", "any", "", True),
    ("http://127.0.0.1.example.org/v1", "local", "", False),
    ("https://models.example.org/v1", "local", "models.example.org", False),
    ("https://models.example.org/v1", "approved", "", False),
    ("https://models.example.org/v1", "approved", "a.example.org, Models.Example.ORG", True),
    ("https://evil-models.example.org/v1", "approved", "models.example.org", False),
    ("https://models.example.org/v1", "any", "", True),
    ("http://10.0.0.1/v1", "local", "", False),
    ("http://localhost.evil.org/v1", "approved", "", False),
    ("https://models.example.org/v1", "approvd", "models.example.org", False),
])
def test_a_policy_says_which_hosts_a_row_may_reach(monkeypatch, url, policy, approved, permitted):
    monkeypatch.setenv("MEDLOOM_APPROVED_ENDPOINTS", approved)
    assert Endpoint(base_url=url, model="m").permits(policy) is permitted


def test_a_forbidden_endpoint_gets_no_call_and_no_cached_answer(monkeypatch, server, cache):
    server.replies = [GOOD]
    monkeypatch.setattr(Endpoint, "is_loopback", False)  # so that the stub stands for a host elsewhere
    ask(server, cache, policy="any")
    for policy in ("local", "approved"):
        with pytest.raises(Terminal, match=r"ENDPOINT_FORBIDDEN.*nothing was sent"):
            ask(server, cache, policy=policy)
    monkeypatch.setenv("MEDLOOM_APPROVED_ENDPOINTS", "127.0.0.1")
    assert ask(server, cache, policy="approved", seed=1).data
    assert len(server.requests) == 2


def test_a_redirect_is_not_followed(server, cache):
    with FaultServer(replies=[GOOD]) as elsewhere:
        server.replies = [Broken(307, location=f"{elsewhere.base_url}/chat/completions")]
        assert failure(server, cache).code == "LLM_BAD_REQUEST"
        assert elsewhere.requests == []


def test_a_proxy_of_the_environment_is_not_used_on_loopback(monkeypatch, server, cache):
    server.replies = [GOOD]
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_ports(1)[0]}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert ask(server, cache).data


@pytest.mark.parametrize("url", ["ftp://h/v1", "h:80", "http://u:p@h/v1", "http://h/v1?key=1"])
def test_an_address_is_plain(url):
    with pytest.raises(ValidationError):
        Endpoint(base_url=url, model="m")


def test_broken_json_is_mended_twice_at_most_and_all_tries_are_billed(server, cache):
    server.replies = [chat("{oops"), chat('{"texts": "x"}'), chat('```json\n{"text": "third"}\n```')]
    answer = ask(server, cache)
    assert (answer.data.text, answer.tokens_in, answer.tokens_out) == ("third", 30, 15)
    repair = server.requests[2]["messages"]
    assert [m["role"] for m in repair] == ["user", "assistant", "user", "assistant", "user"]
    assert repair[1]["content"] == "{oops" and "text: Field required" in repair[4]["content"]
    assert ask(server, cache).cached and len(server.requests) == 3


@pytest.mark.parametrize("reply, code, calls", [
    (chat("{oops"), "LLM_INVALID_ANSWER", 3),
    (chat(""), "LLM_INVALID_ANSWER", 3),
    (chat(None), "LLM_INVALID_ANSWER", 3),
    (chat("}{"), "LLM_INVALID_ANSWER", 3),
    (chat('{"text": "\ud83d"'), "LLM_INVALID_ANSWER", 3),
    (chat('{"text": "cut o', finish="length"), "LLM_TRUNCATED", 3),
    (chat(None, refusal="I cannot help with that."), "LLM_REFUSED", 1),
    (chat('{"text": "half"}', finish="content_filter"), "LLM_REFUSED", 1),
])
def test_an_unusable_answer_is_terminal_and_never_paid_again(server, cache, reply, code, calls):
    server.replies = [reply]
    for _ in range(2):
        error = failure(server, cache)
        assert isinstance(error, Terminal) and error.code == code and "stub-1" in error.message
        assert len(server.requests) == calls
        assert len(list(cache.folder.rglob("*.json"))) == calls


def test_a_busy_server_is_given_the_time_it_asks_for(server, cache):
    server.replies = [Broken(429, retry_after="1"), GOOD]
    begun = time.monotonic()
    assert ask(server, cache).data
    assert 1 <= time.monotonic() - begun < 10
    assert len(server.requests) == 2


@pytest.mark.parametrize("dated", [False, True])
def test_a_wait_beyond_the_deadline_is_handed_on_at_once(server, cache, dated):
    server.replies = [Broken(429, retry_after=formatdate(time.time() + 3600, usegmt=True) if dated else "3600")]
    error = failure(server, cache, deadline_s=30)
    assert isinstance(error, Transient) and error.code == "LLM_BUSY"
    assert error.retry_after == pytest.approx(3600, abs=10)
    assert len(server.requests) == 1


@pytest.mark.parametrize("first", [
    Broken(500), Broken(503), Broken(408), Broken(409), Broken(529), Broken(500, retry_after="soon"),
    Broken(body="<html>gateway</html>"), Broken(body='{"error": "200 with no answer"}'), Broken(body="[]"),
    Broken(cut=True), Broken(hang=0.01), Broken(hang=3),
], ids=str)
def test_a_server_that_fails_once_is_asked_again(server, cache, first):
    server.replies = [first, GOOD]
    assert ask(server, cache, timeout_s=0.5).data
    assert len(server.requests) == 2
    assert len(list(cache.folder.rglob("*.json"))) == 1


@pytest.mark.parametrize("fault, code", [
    (Broken(500), "LLM_SERVER_ERROR"), (Broken(hang=3), "LLM_TIMEOUT"), (Broken(429), "LLM_BUSY"),
    (Broken(body="<html>"), "LLM_BAD_RESPONSE"), (Broken(cut=True), "LLM_UNREACHABLE"),
])
def test_a_server_that_keeps_failing_is_transient_and_nothing_is_kept(server, cache, fault, code):
    server.replies = [fault]
    error = failure(server, cache, attempts=2, timeout_s=0.3)
    assert isinstance(error, Transient) and error.code == code
    assert len(server.requests) == 2 and not list(cache.folder.rglob("*.json"))
    server.replies = [GOOD]
    assert not ask(server, cache).cached


def test_a_refused_connection_is_transient(cache):
    lost = Endpoint(base_url=f"http://127.0.0.1:{free_ports(1)[0]}/v1", model="m", attempts=2)
    with Client(lost, cache) as client, pytest.raises(Transient, match=r"LLM_UNREACHABLE.*refused"):
        client.ask(ASK, Caption, "local")


@pytest.mark.parametrize("reply", [
    Broken(401), Broken(403), Broken(404, body='{"error": {"message": "The model m does not exist"}}'),
    Broken(429, body='{"error": {"message": "no money", "code": "insufficient_quota"}}'),
], ids=["401", "403", "404", "quota"])
def test_what_no_request_can_mend_stops_the_run(server, cache, reply):
    server.replies = [reply]
    assert isinstance(failure(server, cache), ConfigError)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_bad_request_is_terminal(server, cache, status):
    server.replies = [Broken(status)]
    error = failure(server, cache)
    assert isinstance(error, Terminal) and error.code == "LLM_BAD_REQUEST" and len(server.requests) == 1


def test_the_model_that_answered_is_recorded_not_the_one_asked_for(server, cache):
    server.replies = [chat('{"text": "x"}', model="other-7b-2026")]
    assert ask(server, cache, model="m").model == "other-7b-2026"


def test_a_key_elsewhere_must_be_set(monkeypatch, cache):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="set NO_SUCH_KEY or NO_SUCH_KEY_FILE"):
        Client(Endpoint(base_url="https://models.example.org/v1", model="m", api_key_env="NO_SUCH_KEY"), cache)


def test_a_planted_key_is_sent_and_stands_nowhere_else(monkeypatch, caplog, server, cache):
    monkeypatch.setenv("PLANTED", KEY)
    caplog.set_level(logging.DEBUG)
    echo = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}", "code": None}})
    said = []
    for reply in (Broken(401, body=echo), Broken(400, body=echo), Broken(500, body=echo), Broken(429, body=echo)):
        server.replies = [reply]
        error = failure(server, cache, api_key_env="PLANTED", attempts=2)
        said += ["".join(traceback.format_exception(error)), repr(error), str(error.__context__), str(vars(error))]
        assert KEY.encode() not in pickle.dumps(error)
    server.replies = [GOOD]
    ask(server, cache, api_key_env="PLANTED")
    assert server.headers[-1]["authorization"] == f"Bearer {KEY}"
    assert "***" in "".join(said) and KEY not in "".join(said)
    assert "chat/completions" in caplog.text and KEY not in caplog.text
    assert all(KEY.encode() not in path.read_bytes() for path in cache.folder.rglob("*") if path.is_file())


def test_equal_requests_at_the_same_instant_are_asked_once(server, cache):
    server.replies = [GOOD]
    answers = []
    with Client(endpoint(server), cache) as client:
        threads = [
            threading.Thread(target=lambda: answers.append(client.ask(ASK, Caption, "local"))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 8 and sorted(a.cached for a in answers) == [False] + [True] * 7
    assert len(server.requests) == 1
    assert not list(cache.folder.rglob("*.lock"))


def test_a_damaged_cache_file_is_an_error_and_not_a_second_bill(server, cache):
    server.replies = [GOOD]
    path = cache.path(ask(server, cache).request_sha256)
    path.write_bytes(path.read_bytes()[:40])
    assert failure(server, cache).code == "LLM_CACHE_UNREADABLE"
    assert len(server.requests) == 1


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[4:]
from pathlib import Path
import infra.llmcache
from infra.llm import Client, Endpoint, RequestCache
from test_llm import ASK, Caption

write, moment = infra.llmcache.write_bytes, sys.argv[3]
def die(path, data):
    if moment == "after":
        write(path, data)
    os.kill(os.getpid(), signal.SIGKILL)
infra.llmcache.write_bytes = die
with Client(Endpoint(base_url=sys.argv[1], model="m"), RequestCache(Path(sys.argv[2]))) as client:
    client.ask(ASK, Caption, "local")
"""


@pytest.mark.parametrize("moment, calls", [("after", 1), ("before", 2)])
def test_killed_between_the_answer_and_its_use(server, cache, moment, calls):
    server.replies = [GOOD]
    here = Path(__file__).resolve()
    folders = [str(here.parents[2]), str(here.parents[1]), str(here.parent)]
    died = subprocess.run([sys.executable, "-c", KILLED, server.base_url, str(cache.folder), moment, *folders])
    assert died.returncode == -9 and len(server.requests) == 1
    assert ask(server, cache).cached is (moment == "after")
    assert len(server.requests) == calls


def test_a_client_left_open_is_closed_when_collected(server, cache):
    server.replies = [GOOD]
    client = Client(endpoint(server), cache)
    client.ask(ASK, Caption, "local")
    close = client.close
    del client
    assert not close.alive
