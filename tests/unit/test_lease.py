"""Leases: one holder at a time, tokens that only grow, the dead told from the living without clocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from infra import lease
from infra.errors import ConfigError, Transient
from infra.lease import NAME, FileStore, LeaseHeld, LeaseLost, Store, held, refuse

TTL = 0.6


def record(home: Path) -> dict[str, Any]:
    return dict(json.loads((home / NAME).read_bytes()))


def write(home: Path, **change: Any) -> None:
    """The record as it stands, altered."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / NAME).exists():
        with held(FileStore(home), "chest"):
            pass
    (home / NAME).write_text(json.dumps(record(home) | change))


def elsewhere(home: Path, **change: Any) -> None:
    """A lease that a process of another machine holds."""
    there = {"held": True, "holder": "another", "kernel": "another boot", "host": "node7", "user": "anna", "pid": 4242}
    write(home, **(there | change))


def ended() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_holder_renews_and_gives_back(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with held(store, "chest", "flow run clever-otter", TTL) as one:
        first = record(tmp_path)
        assert (one.token, first["token"], first["held"], first["pid"]) == (1, 1, True, os.getpid())
        assert first["dataset"] == "chest" and first["run"] == "flow run clever-otter"
        time.sleep(TTL)
        assert record(tmp_path)["beat"] >= 2
        one.check()
        one.fence()
    assert record(tmp_path) | {"held": False, "token": 1} == record(tmp_path)
    with held(store, "chest", ttl_s=TTL) as two:
        assert two.token == 2


def test_who_holds_it_is_said_and_nothing_is_touched(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with held(store, "chest", "flow run clever-otter"):
        before = (tmp_path / NAME).read_bytes()
        for attempt in (lambda: held(store, "chest").__enter__(), lambda: refuse(store)):
            with pytest.raises(LeaseHeld, match=r"is held by .* flow run clever-otter") as told:
                attempt()
            assert str(os.getpid()) in str(told.value) and "Nothing was started" in str(told.value)
        assert (tmp_path / NAME).read_bytes() == before
    refuse(store)


def test_a_live_one_is_waited_for(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    one = held(store, "chest", ttl_s=TTL)
    one.__enter__()
    timer = threading.Timer(TTL, one.__exit__, (None, None, None))
    timer.start()
    with held(store, "chest", ttl_s=TTL, wait_s=30) as two:
        assert two.token == 2
    timer.join()


def test_a_dead_process_of_this_machine_is_seen_at_once(tmp_path: Path) -> None:
    for token, change in enumerate(({"pid": ended()}, {"pid": 1, "started": "12345"}), 2):  # gone; a number given again
        write(tmp_path, held=True, last=lease._utc(), token=token - 1, **change)
        refuse(FileStore(tmp_path))
        with held(FileStore(tmp_path), "chest", ttl_s=3600) as mine:
            assert mine.token == token


def test_a_corpse_counts_as_dead(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write(tmp_path, held=True, last=lease._utc(), pid=process.pid, started=lease._process(process.pid)[1])
    with pytest.raises(LeaseHeld):
        refuse(FileStore(tmp_path))
    process.kill()
    while lease._process(process.pid)[0] != "Z":
        time.sleep(0.01)
    refuse(FileStore(tmp_path))
    process.communicate()


def test_a_hidden_process_counts_as_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, held=True, last=lease._utc(), pid=1)
    monkeypatch.setattr(lease, "_process", lambda pid: ("", ""))  # /proc mounted with hidepid
    with pytest.raises(LeaseHeld):
        refuse(FileStore(tmp_path))


def test_elsewhere_only_a_ttl_of_silence_is_death(tmp_path: Path) -> None:
    elsewhere(tmp_path, pid=ended(), last=lease._utc())
    with pytest.raises(LeaseHeld, match="node7"), held(FileStore(tmp_path), "chest", ttl_s=TTL):
        pass
    elsewhere(tmp_path, last="2020-01-01T00:00:00+00:00")
    began = time.monotonic()
    with held(FileStore(tmp_path), "chest", ttl_s=TTL) as mine:
        assert mine.token == 2 and TTL <= time.monotonic() - began < 5 * TTL


@pytest.mark.parametrize("wrong", [-7 * 86400.0, 7 * 86400.0])
def test_a_wrong_clock_takes_no_lease_from_the_living(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    elsewhere(tmp_path, last=lease._utc())
    real, over = time.time, threading.Event()

    def beat() -> None:
        for n in range(1, 1000):
            if over.wait(TTL / 4):
                return
            (tmp_path / "draft").write_text(json.dumps(record(tmp_path) | {"beat": n}))
            os.replace(tmp_path / "draft", tmp_path / NAME)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        monkeypatch.setattr(time, "time", lambda: real() + wrong)
        with pytest.raises(LeaseHeld), held(FileStore(tmp_path), "chest", ttl_s=TTL):
            pass
    finally:
        over.set()
        thread.join()
    with held(FileStore(tmp_path), "chest", ttl_s=TTL) as mine:  # and the dead one is taken over all the same
        assert mine.token == 2


def test_a_clock_that_is_set_while_it_is_held_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    with held(FileStore(tmp_path), "chest", ttl_s=TTL) as mine:
        for step in (86400.0, -86400.0):
            monkeypatch.setattr(time, "time", lambda step=step: real() + step)
            time.sleep(TTL / 2)
            mine.check()
            mine.fence()


def test_a_lease_taken_over_is_lost_for_good(tmp_path: Path) -> None:
    with held(FileStore(tmp_path), "chest", ttl_s=TTL) as mine:
        mine.check()
        elsewhere(tmp_path, token=2)
        with pytest.raises(LeaseLost, match=r"anna on node7 .* token 2"):
            mine.fence()
        before = (tmp_path / NAME).read_bytes()
        time.sleep(TTL / 2)
        with pytest.raises(LeaseLost):
            mine.check()
    assert (tmp_path / NAME).read_bytes() == before, "what another one holds is not given back for them"


def test_the_heartbeat_alone_finds_out(tmp_path: Path) -> None:
    with held(FileStore(tmp_path), "chest", ttl_s=TTL) as mine:
        elsewhere(tmp_path, token=2)
        time.sleep(TTL / 2)
        with pytest.raises(LeaseLost):
            mine.check()


class Broken:
    """A store that can be cut off, and that may lose the answer to a swap that it made."""

    address = "s3://bucket/home"

    def __init__(self, inner: Store) -> None:
        self.inner, self.off, self.mute = inner, False, False

    def load(self) -> tuple[bytes | None, Any]:
        if self.off:
            raise Transient("SOURCE_UNREADABLE", "no answer")
        return self.inner.load()

    def swap(self, data: bytes, tag: Any) -> bool:
        if self.off:
            raise ConnectionError("no answer")
        return self.inner.swap(data, tag) and not self.mute


def test_a_store_that_cannot_be_reached_for_a_ttl_stops_the_build(tmp_path: Path) -> None:
    store = Broken(FileStore(tmp_path))
    with held(store, "chest", ttl_s=TTL) as mine:
        store.off = True
        time.sleep(TTL / 2)
        mine.check()  # a hiccup
        with pytest.raises(LeaseLost, match="cannot be asked"):
            mine.fence()
        time.sleep(TTL)
        with pytest.raises(LeaseLost, match="Nothing was committed"):
            mine.check()
        store.off = False
        mine.check()  # nobody took it meanwhile, which the swap has proved
        store.off = True
    assert record(tmp_path)["held"], "it could not be given back, and the build is none the worse"


def test_a_lost_answer_is_no_lost_lease(tmp_path: Path) -> None:
    store = Broken(FileStore(tmp_path))
    store.mute = True
    with held(store, "chest", ttl_s=TTL) as mine:
        store.mute = False
        mine.fence()
        assert mine.token == 1


def test_a_swap_needs_the_state_it_was_made_for(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    assert store.load() == (None, None) and store.swap(b"one", None) and not store.swap(b"two", None)
    _, tag = store.load()
    assert store.swap(b"two", tag) and not store.swap(b"three", tag) and store.load()[0] == b"two"


@pytest.mark.parametrize("data", ["", "{}", "[1]", '{"token": 0}', "\x00" * 99])
def test_what_is_no_record_is_told(tmp_path: Path, data: str) -> None:
    (tmp_path / NAME).write_text(data)
    with pytest.raises(ConfigError, match="if nobody builds this dataset, remove it"), held(FileStore(tmp_path), "x"):
        pass


def test_a_record_writes_nothing_to_the_terminal_but_words(tmp_path: Path) -> None:
    elsewhere(tmp_path, last=lease._utc(), run="\x1b[2J\n")
    with pytest.raises(LeaseHeld) as told:
        refuse(FileStore(tmp_path))
    assert str(told.value).isprintable()
