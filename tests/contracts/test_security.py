"""SECURITY.md claims nothing that is not there: every file and every test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()
ROOMS = "tests|infra|flows|catalog|transforms|connectors|locks"


def test_every_file_and_test_that_is_named_exists() -> None:
    named = re.findall(rf"`((?:{ROOMS})/[\w./-]+)(?:::(\w+))?`", PAGE)
    assert len(named) > 60
    for place, test in named:
        assert (ROOT / place).exists(), place
        assert not test or re.search(rf"^def {test}\(", (ROOT / place).read_text(), re.M), f"{place}::{test}"


def test_every_defence_names_a_test() -> None:
    rows = [line for line in PAGE.partition("## Boundaries")[2].splitlines() if line.startswith("| ")]
    claims = [row for row in rows if not row.startswith(("| threat", "| ---"))]
    assert len(claims) > 25 and all("::test_" in row for row in claims)
