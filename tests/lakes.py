"""Addresses of catalogs for tests: the file beside the shards, and new lakes on one real Postgres server.

The invariant: every call of `new` is a catalog that nobody else uses.

>>> with addresses("lake") as new:
...     monkeypatch.setenv("MEDLOOM_CATALOG", new())
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from postgres import PASSWORD, USER, Server, postgres

KINDS = ("file", "lake")


@contextmanager
def addresses(kind: str) -> Iterator[Callable[[], str]]:
    """What makes a new address of MEDLOOM_CATALOG of this kind; skips where Postgres or the extensions are missing."""
    if kind == "file":
        yield lambda: "duckdb:"
        return
    with lake_server() as server:
        numbers = itertools.count(1)
        yield lambda: address(server, f"lake{next(numbers)}")


@contextmanager
def lake_server() -> Iterator[Server]:
    """Postgres, with its password where libpq looks for it. Its folder is not pytest's, which other sessions close."""
    import pytest

    pytest.importorskip("duckdb_extension_ducklake", reason="pip install 'medloom[lake]'")
    pytest.importorskip("duckdb_extension_postgres_scanner", reason="pip install 'medloom[lake]'")
    before = os.environ.get("PGPASSWORD")
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder, postgres(Path(folder) / "postgres") as server:
        os.environ["PGPASSWORD"] = PASSWORD
        try:
            yield server
        finally:
            os.environ.pop("PGPASSWORD")
            if before is not None:
                os.environ["PGPASSWORD"] = before


def address(server: Server, database: str) -> str:
    """Of a lake in this database, which is made where it is missing."""
    server.url(database)
    return f"ducklake:postgres:host=127.0.0.1 port={server.port} dbname={database} user={USER}"
