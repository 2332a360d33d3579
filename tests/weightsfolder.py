"""Weights as experts find them: a folder of files, and the table's entry that names them by hash."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from infra import weights
from infra.keys import sha256
from infra.weights import File, Weights


def named_so(monkeypatch: pytest.MonkeyPatch, root: Path, *names: str) -> Mapping[str, Weights]:
    """Make the folders `names` of `root`, as they are now, all the weights there are."""

    def entry(name: str) -> Weights:
        files = (path for path in sorted((root / name).iterdir()))
        return Weights(name, "made by a test", "MIT", True, tuple(
            File(p.name, f"https://example.org/{p.name}", sha256(p.read_bytes()), p.stat().st_size) for p in files
        ))

    table = {name: entry(name) for name in names}
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(root))
    monkeypatch.setattr(weights, "table", lambda: table)
    return table
