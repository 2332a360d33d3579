"""Cases 49, 51 and 52: builds that meet, holders that die or are stopped, clocks that are wrong. Real processes, over a
folder and over a real S3 server: at no time may two commit, and the dead are not waited for longer than a TTL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from s3server import KEY, SECRET, Server, s3_server

from infra.lease import NAME, FileStore, S3Store, Store, held
from infra.s3 import Bucket

ROOT = Path(__file__).parents[2]
LONG, SHORT = 3600.0, 1.5
ROUNDS = {"folder": 50, "remote": 20}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
BUILDER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from infra import lease
from infra.lease import FileStore, LeaseHeld, LeaseLost, S3Store, held
from infra.s3 import Bucket
place, ttl, shift, elsewhere, out = sys.argv[2], *map(float, sys.argv[3:6]), sys.argv[6]
if place.startswith("s3://"):
    store = S3Store(Bucket.at(place, sys.argv[7], anonymous=False))
else:
    store = FileStore(Path(place))
real = time.time
time.time = lambda: real() + shift
if elsewhere:
    lease._kernel = lambda: f"another boot {elsewhere}"
store.load()  # the first request loads boto3
print("ready", flush=True)
for line in sys.stdin:
    try:
        with held(store, "chest", "a test", ttl) as mine:
            print("holds", mine.token, flush=True)
            for line in sys.stdin:
                if line == "give back\\n":
                    break
                try:
                    mine.check()
                    mine.fence()
                    with open(out, "a") as file:
                        file.write(f"{mine.token}\\n")
                    print("committed", flush=True)
                except LeaseLost as error:
                    print("lost", error, flush=True)
        print("gave back", flush=True)
    except LeaseHeld as error:
        print("refused", error, flush=True)
        sys.stdin.readline()
        print("gave back", flush=True)
"""
"""`go`: hold or be refused; then `commit` any number of times; `give back`."""


class Builder:
    """A process that builds; it says what became of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self._ready = process, False

    def ready(self) -> None:
        """Wait until it has started."""
        if not self._ready:
            self._ready = True
            assert self.hear() == "ready"

    def tell(self, word: str) -> None:
        self.ready()
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"it ended: {self.process.wait()}"
        return line.strip()

    def ask(self, word: str) -> str:
        self.tell(word)
        return self.hear()

    def kill(self) -> None:
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.communicate()


class Place:
    """A home and how builds are started on it."""

    def __init__(self, store: Store, address: str, endpoint: str, folder: Path) -> None:
        self.store, self.address, self.endpoint, self.out = store, address, endpoint, folder / "committed"
        self.running: list[Builder] = []

    def builder(self, ttl: float = LONG, *, shift: float = 0, elsewhere: int = 0) -> Builder:
        """`shift`: its clock is so many seconds wrong; `elsewhere`: it runs on the so-manieth other machine."""
        words = [self.address, str(ttl), str(shift), str(elsewhere), str(self.out), self.endpoint]
        self.running.append(Builder(subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(ROOT), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=ROOT, env={**os.environ, **CREDENTIALS},
        )))
        return self.running[-1]

    def end(self) -> None:
        for builder in self.running:
            builder.kill()

    def committed(self) -> list[int]:
        return [int(line) for line in self.out.read_text().split()] if self.out.exists() else []

    def change(self, **fields: object) -> None:
        """The record as it stands, altered."""
        data, tag = self.store.load()
        assert data and self.store.swap(json.dumps(json.loads(data) | fields).encode(), tag)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Place]:
    made = Place(FileStore(tmp_path / "home"), str(tmp_path / "home"), "", tmp_path)
    yield made
    made.end()


@pytest.fixture
def remote(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    server.put("homes", {})
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    address = f"s3://homes/{tmp_path.name}"
    bucket = Bucket.at(address, server.endpoint, anonymous=False)
    made = Place(S3Store(bucket), address, server.endpoint, tmp_path)
    yield made
    made.end()


@pytest.fixture(params=["folder", "remote"])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def test_the_second_is_told_who_builds(place: Place) -> None:
    one, two, far = place.builder(), place.builder(), place.builder(elsewhere=2)
    assert one.ask("go") == "holds 1"
    for other in (two, far):
        told = other.ask("go")
        assert told.startswith("refused") and f"process {one.process.pid}, a test" in told and place.address in told
        other.ask("give back")
    assert one.ask("commit") == "committed" and one.ask("give back") == "gave back"
    assert far.ask("go") == "holds 2"


def test_who_was_killed_is_not_waited_for_on_the_same_machine(folder: Place) -> None:
    one = folder.builder()
    assert one.ask("go") == "holds 1"
    one.kill()
    assert folder.builder().ask("go") == "holds 2"  # although a TTL is an hour


def test_from_another_machine_the_dead_are_waited_for_a_ttl(place: Place) -> None:
    ttl = 2 * SHORT
    one, far = place.builder(ttl), place.builder(ttl, elsewhere=2)
    far.ready()
    assert one.ask("go") == "holds 1"
    one.kill()
    assert far.ask("go").startswith("refused")  # a moment ago it lived
    far.ask("give back")
    place.change(last="2020-01-01T00:00:00+00:00")
    began = time.monotonic()
    assert far.ask("go") == "holds 2"
    assert time.monotonic() - began >= ttl, "it looked on itself, for as long"


def test_who_was_stopped_for_longer_than_a_ttl_may_not_commit(place: Place) -> None:
    one, far = place.builder(SHORT), place.builder(SHORT, elsewhere=2)
    assert one.ask("go") == "holds 1" and one.ask("commit") == "committed"
    one.process.send_signal(signal.SIGSTOP)
    time.sleep(SHORT + 1)
    assert far.ask("go") == "holds 2"
    one.process.send_signal(signal.SIGCONT)
    assert one.ask("commit").startswith("lost") and far.ask("commit") == "committed"
    one.ask("give back")
    assert one.ask("go").startswith("refused"), "its giving back took nothing from the other"
    assert far.ask("commit") == "committed" and place.committed() == [1, 2, 2]


def test_who_was_stopped_and_missed_by_nobody_goes_on(folder: Place) -> None:
    one = folder.builder(SHORT)
    assert one.ask("go") == "holds 1"
    one.process.send_signal(signal.SIGSTOP)
    time.sleep(2 * SHORT)
    one.process.send_signal(signal.SIGCONT)
    assert one.ask("commit") == "committed"


@pytest.mark.parametrize("shift", [-40 * 86400.0, 3600.0], ids=["behind", "ahead"])
def test_a_wrong_clock_takes_nothing_from_the_living(folder: Place, shift: float) -> None:
    one, wrong = folder.builder(SHORT), folder.builder(SHORT, shift=shift, elsewhere=2)
    assert one.ask("go") == "holds 1"
    assert wrong.ask("go").startswith("refused") and one.ask("commit") == "committed"
    wrong.ask("give back")
    one.kill()
    assert wrong.ask("go") == "holds 2"  # and no wrong clock keeps it from the dead's


def test_of_two_who_take_over_from_the_dead_exactly_one_wins(place: Place, request: pytest.FixtureRequest) -> None:
    pair = [place.builder(), place.builder()]
    with held(place.store, "chest"):
        pass
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for token in range(2, 2 + ROUNDS[request.node.callspec.params["place"]]):
        place.change(held=True, pid=gone.pid)
        for builder in pair:
            builder.tell("go")
        heard = sorted(builder.hear() for builder in pair)
        assert heard[0] == f"holds {token}" and heard[1].startswith("refused"), heard
        for builder in pair:
            assert builder.ask("give back") == "gave back"


def test_a_folder_holds_nothing_but_the_record_afterwards(tmp_path: Path) -> None:
    with held(FileStore(tmp_path), "chest"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{NAME}.lock", NAME]
