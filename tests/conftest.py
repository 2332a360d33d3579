"""Fixtures that every test may use. Nothing here starts a server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prefectserver import first_run as first_run
from prefectserver import medloom_server as medloom_server

from infra.settings import be_quiet

be_quiet()


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of real sample data that MEDLOOM_DATA names (default: ../shared/data), or a skip."""
    root = Path(os.environ.get("MEDLOOM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "SOURCES.csv").exists():
        pytest.skip("no sample data here: set MEDLOOM_DATA to its folder")
    return root
