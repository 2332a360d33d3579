"""Two minutes of the soak: builds on Ray under random kills end with the bytes of a quiet one.

The hour's form is a command: `python tests/faults/soak.py --minutes 60 --with ray,prefect,postgres,lake,s3`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).with_name("soak.py")
MINUTES = 1.0
"""Of campaigns; the quiet builds before them take as long on a machine of two cores."""


@pytest.mark.timeout(900)
def test_two_minutes_of_kills_leave_no_trace(tmp_path: Path) -> None:
    command = [sys.executable, str(SOAK), "--seed", "2026", "--minutes", str(MINUTES), "--pictures", "8",
               "--with", "ray", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["wrong"] == {} and sum(summary["kills"].values()) > 0


def test_the_soak_sees_what_is_lost(tmp_path: Path) -> None:
    """Its comparison can fail: a home that lacks a shard, and one whose bytes were changed."""
    from makehome import make_home
    from soak import Soak
    from standing import Standing

    home = make_home(tmp_path / "made")
    on = Standing(tmp_path, (), 2)
    home.rename(tmp_path / "quiet")
    quiet = on.state("quiet")
    assert quiet["wrong"] == []
    soak = Soak(on, 1)
    for name in ("same", "lost", "changed", "drafts"):
        on.copy("quiet", name)
    first = next((tmp_path / "quiet" / "shards" / "rois").rglob("*.parquet")).relative_to(tmp_path / "quiet")
    (tmp_path / "lost" / first).unlink()
    (tmp_path / "changed" / first).write_bytes((tmp_path / "quiet" / first).read_bytes()[:-1] + b"x")
    (tmp_path / "drafts" / first).with_name(".tmp-dead").touch()
    assert soak.compare("same", quiet) == []
    for name, words in {"lost": "lacking", "changed": "other", "drafts": "draft was left"}.items():
        assert any(words in line for line in soak.compare(name, quiet)), name
