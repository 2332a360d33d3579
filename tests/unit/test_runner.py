"""Both runners keep the same promises: every step once, chains in order, errors stop their chain alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigError
from infra.runner import InlineRunner, Last, RayRunner, Runner, Step, open_runner


@pytest.fixture(autouse=True, scope="module")
def travel() -> None:
    """Workers cannot import this file: its functions travel by value."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(params=["inline", "ray"], scope="module")
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    with InlineRunner() if request.param == "inline" else RayRunner(cpus=2) as running:
        yield running


def log(payload: tuple[str, str], state: Any) -> str:
    with open(payload[0], "a") as file:
        file.write(payload[1] + "\n")
    return payload[1]


def fail(payload: Any, state: Any) -> None:
    raise payload


def remember(payload: Any, state: list[int]) -> tuple[int, int]:
    state.append(1)
    return os.getpid(), len(state)


def test_every_step_ends_once_and_chains_keep_their_order(runner: Runner, tmp_path: Path) -> None:
    file = str(tmp_path / "log")
    chains = [[Step(f"{c}{s}", log, (file, f"{c}{s}")) for s in range(3)] for c in "abcde"]
    done = list(runner.run(chains))
    lines = Path(file).read_text().split()
    assert sorted(lines) == sorted(d.value for d in done) == sorted(s.id for chain in chains for s in chain)
    assert all([line for line in lines if line[0] == c] == [f"{c}0", f"{c}1", f"{c}2"] for c in "abcde")


def test_a_step_that_wants_more_memory_than_there_is_runs_all_the_same(runner: Runner) -> None:
    done = list(runner.run([[Step("large", _echo, 1, memory_gb=100_000)], [Step("small", _echo, 2)]]))
    assert sorted(d.value for d in done) == [1, 2]


def test_a_gpu_that_is_not_there_is_missed_at_once(runner: Runner) -> None:
    if isinstance(runner, InlineRunner):
        pytest.skip("the inline runner takes no count of GPUs")
    with pytest.raises(ConfigError, match="asks for 64 GPUs"):
        list(runner.run([[Step("model", _echo, 1, gpus=64)]]))


def test_a_bug_stops_its_chain_and_no_other(runner: Runner) -> None:
    chains = [[Step("bad", fail, ValueError("oops")), Step("never", fail, None)], [Step("good", _echo, 1)]]
    done = {d.step.id: d for d in runner.run(chains)}
    assert set(done) == {"bad", "good"}
    assert "ValueError: oops" in (done["bad"].error or "") and done["good"].value == 1


def _echo(payload: Any, state: Any) -> Any:
    return payload


def stop(payload: Any, state: Any) -> Last:
    return Last(payload)


def test_a_last_step_ends_its_chain_and_says_what_is_skipped(runner: Runner) -> None:
    (done,) = runner.run([[Step("enough", stop, 7), Step("a", _echo, 1), Step("b", _echo, 2)]])
    assert (done.value, done.error, done.skipped) == (7, None, 2)


def test_an_error_of_ours_that_ends_the_run_is_marked(runner: Runner) -> None:
    (done,) = runner.run([[Step("x", fail, ConfigError("no key"))]])
    assert isinstance(done.fatal, ConfigError) and str(done.fatal) == "no key"


def test_what_a_pool_opened_is_kept(runner: Runner) -> None:
    steps = [[Step(f"s{i}", remember, None, pool="p", open=list)] for i in range(6)]
    counts: dict[int, int] = {}
    for done in runner.run(steps):
        pid, count = done.value
        counts[pid] = max(count, counts.get(pid, 0))
    assert sum(counts.values()) == 6 and len(counts) <= 2


def test_an_unknown_runner_is_named() -> None:
    with pytest.raises(ConfigError, match="inline, ray, auto"):
        open_runner("spark")


def below(process: int) -> set[int]:
    """This process and all that it started, and those started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    found, queue = set(), [process]
    while queue:
        found.add(queue[-1])
        queue += children.get(queue.pop(), [])
    return found


def listening(processes: set[int]) -> list[tuple[str, str]]:
    """(address in hex, program) of every TCP port that these processes listen on."""
    sockets = set()
    for process in processes:
        try:
            for handle in Path(f"/proc/{process}/fd").iterdir():
                sockets.add((os.readlink(handle), Path(f"/proc/{process}/comm").read_text().strip()))
        except (FileNotFoundError, ProcessLookupError):
            continue
    programs = dict(sockets)
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in programs:
                found.append((fields[1].partition(":")[0], programs[f"socket:[{fields[9]}]"]))
    return found


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same written as IPv6, and ::1, as the kernel's tables write them."""


def test_a_local_cluster_listens_on_loopback_only(runner: Runner) -> None:
    if isinstance(runner, InlineRunner):
        pytest.skip("it listens nowhere")
    if not Path("/proc/net/tcp").exists():
        pytest.skip("no /proc/net here")
    list(runner.run([[Step("actor", _echo, 1, pool="ports", open=list), Step("task", _echo, 1)]]))
    ports = listening(below(os.getpid()))
    assert {"gcs_server", "raylet"} <= {program for _, program in ports}, ports
    assert [port for port in ports if port[0] not in LOOPBACK] == []


def test_a_cluster_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=token"), RayRunner("auto"):
        raise AssertionError("not reached")
