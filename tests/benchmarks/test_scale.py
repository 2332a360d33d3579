"""The figures of large datasets in a small form: what a flow run leaves with Prefect, what a refresh costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(script: str, *words: object) -> str:
    command = [sys.executable, str(HERE / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=280).stdout


@pytest.mark.long
def test_a_flow_run_of_2000_partitions_leaves_little_in_the_database() -> None:
    found = json.loads(run("prefect_size.py", "--partitions", 2000, "--updates", 0, "--json").splitlines()[-1])
    # 150 groups whatever the number of partitions: 4 MB, of which the events of task runs are most
    assert found["after_mb"] - found["before_mb"] < 10 and found["rows"]["task_run"] < 170


@pytest.mark.long
def test_a_refresh_of_500_partitions_finds_nothing_to_do(tmp_path: Path) -> None:
    said = run("refresh.py", "--folder", tmp_path, "--partitions", 500, "--rounds", 1)
    assert "nothing to do: median" in said and "to do: 3 s/" in said  # one picture changed: three units, one partition
