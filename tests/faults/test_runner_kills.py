"""Workers that die: their steps are run again, a step that kills every worker costs itself, leaving stops all."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infra.runner import ATTEMPTS, RayRunner, Step


@pytest.fixture(autouse=True, scope="module")
def travel() -> None:
    """Workers cannot import this file: its functions travel by value."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


def echo(payload: Any, state: Any) -> Any:
    return payload


def die_once(marker: str, state: Any) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def die(payload: Any, state: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_its_step_run_again(tmp_path: Path) -> None:
    with RayRunner(cpus=2) as ray:
        task = Step("task", die_once, str(tmp_path / "a"))
        actor = Step("actor", die_once, str(tmp_path / "b"), pool="p", open=list)
        assert {d.step.id: d.value for d in ray.run([[task], [actor]])} == {"task": "alive", "actor": "alive"}


def test_a_step_that_kills_every_worker_is_given_up_and_costs_no_other() -> None:
    with RayRunner(cpus=2) as ray:
        done = {d.step.id: d for d in ray.run([[Step("poison", die, None)], [Step("good", echo, 1)]])}
        assert f"died {ATTEMPTS} times" in (done["poison"].error or "") and done["good"].value == 1


def test_leaving_the_block_stops_what_runs(tmp_path: Path) -> None:
    started = time.monotonic()
    with RayRunner(cpus=2) as ray:
        running = ray.run([[Step("fast", echo, 1)], [Step("slow", _sleep, str(tmp_path / "end"))]])
        assert next(running).value == 1
    time.sleep(1)
    assert time.monotonic() - started < 60 and not (tmp_path / "end").exists()


def _sleep(marker: str, state: Any) -> None:
    time.sleep(120)
    Path(marker).touch()


