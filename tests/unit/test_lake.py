"""The catalog in a DuckLake: addresses, outages of its Postgres, and what DuckLake itself says of its rows."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import duckdb
import pytest
from lakes import address, lake_server
from makehome import make_home
from postgres import PASSWORD, Server

from catalog import catalog, lake
from catalog.builds import builds
from catalog.catalog import CatalogError, query, reader, writer
from catalog.views import TABLES
from infra.errors import ConfigError

COUNT = "SELECT count(*) AS n FROM images"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with lake_server() as running:
        yield running


@pytest.fixture(scope="module")
def made(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDLOOM_CATALOG", address(server, "lake"))
        return make_home(tmp_path_factory.mktemp("made"))


@pytest.fixture
def home(made: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDLOOM_CATALOG", address(server, "lake"))
    return made


def count(home: Path, at: int | None = None) -> int:
    return int(query(home, COUNT, at).column(0)[0].as_py())


def add(home: Path) -> int:
    last = builds(home)[-1]
    last.model_copy(update={"number": last.number + 1}).write(home)
    return last.number + 1


def test_what_is_read_is_what_ducklake_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers find their files by DuckLake's specification; rows deleted and files merged by DuckLake are seen so."""
    tables = [f"{layer}_rows" for layer in ("images", "rois", "texts", "checks")] + [
        line.split()[5] for line in TABLES.split(";") if line.strip() and " format " not in line
    ]
    for merge_from in (1000, 1):
        monkeypatch.setattr(lake, "MERGE_FROM", merge_from)
        add(home)
        with writer(home) as con:  # deletes a part of what one file holds
            con.execute("DELETE FROM validations; INSERT INTO validations BY NAME SELECT range AS build FROM range(9)")
        with writer(home) as con:
            con.execute("DELETE FROM validations WHERE build IN (2, 5)")
        with writer(home) as con:
            truth = {name: con.execute(f"SELECT * FROM {name} ORDER BY ALL").fetchall() for name in tables}
        with reader(home) as con:
            seen = {name: con.execute(f"SELECT * FROM {name} ORDER BY ALL").fetchall() for name in tables}
        assert seen == truth and len(seen["validations"]) == 7 and seen["images_rows"]
    merged = lake.Lake.at(home, os.environ["MEDLOOM_CATALOG"].removeprefix("ducklake:"))._files()
    assert len(merged["images_rows"]) == len(merged["build_units"]) == 1, "small files were merged"
    catalog.rebuild(home)


def test_while_postgres_is_down_open_readers_work_and_the_rest_waits_a_bounded_time(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reader(home) as notebook:
        server.kill()
        try:
            assert notebook.execute(COUNT).fetchone() == (12,)
            monkeypatch.setattr(lake, "PATIENCE_S", 0.5)
            for ask in (lambda: count(home), lambda: catalog.refresh(home)):
                start = time.monotonic()
                with pytest.raises(CatalogError, match=r"has not answered for 0\.5 s; start it") as caught:
                    ask()
                assert time.monotonic() - start < 10 and PASSWORD not in str(caught.value)
            monkeypatch.setattr(lake, "PATIENCE_S", 60)
            late = threading.Timer(0.5, server.start)
            late.start()
            assert count(home) == 12, "one that comes back is waited for"
            late.join()
        finally:
            if server.process is None:
                server.start()


def test_postgres_that_dies_in_a_commit_costs_the_commit_only(home: Path, server: Server) -> None:
    number = add(home)
    with pytest.raises(CatalogError, match="went away during a commit") as caught, writer(home) as con:
        assert con.execute("SELECT max(number) FROM builds").fetchone() == (number,)
        server.kill()
    server.start()
    assert PASSWORD not in str(caught.value) and number not in catalog.published(home)
    with pytest.raises(CatalogError, match="went away during a commit"), writer(home) as con:
        server.kill()
        con.execute("DELETE FROM builds")
        con.execute("SELECT count(*) FROM builds").fetchone()
    server.start()
    catalog.refresh(home)
    assert number in catalog.published(home) and count(home) == 12


def test_one_writer_at_a_time_by_the_lock_in_postgres_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines share no lock file."""
    monkeypatch.setattr(lake, "alone", lambda home: nullcontext())
    inside: list[str] = []
    errors: list[BaseException] = []

    def commit(name: str) -> None:
        try:
            with writer(home):
                inside.append(name)
                time.sleep(0.3)
                inside.append(name)
        except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
            errors.append(error)

    threads = [threading.Thread(target=commit, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == [] and inside in (["a", "a", "b", "b"], ["b", "b", "a", "a"])
    monkeypatch.setattr(lake, "LOCK_WAIT_S", 0.2)
    with writer(home):
        late = threading.Thread(target=commit, args=("c",))
        late.start()
        late.join(timeout=60)
    assert len(errors) == 1 and "another build is committing" in str(errors[0])


def test_a_lake_belongs_to_one_home_which_may_move(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(home, other, ignore=shutil.ignore_patterns("lake"))
    with pytest.raises(ConfigError, match="belongs to another home"):
        catalog.refresh(other)
    assert count(home) == 12
    moved = tmp_path / "moved"
    shutil.copytree(home, moved)
    assert count(moved) == 12
    catalog.refresh(moved)
    assert count(moved) == count(home) == 12


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("ducklake:", "after ducklake: comes"), ("ducklake:mysql:db", "after ducklake: comes"),
        ("ducklake:postgres:host=h password=planted", "nothing secret"),
        ("ducklake:postgres:postgresql://u:planted@h/d", "nothing secret"),
    ],
)
def test_addresses_that_are_none_or_tell_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, words: str
) -> None:
    monkeypatch.setenv("MEDLOOM_CATALOG", given)
    with pytest.raises(ConfigError, match=words) as caught:
        query(tmp_path, COUNT)
    assert "planted" not in str(caught.value)


def test_a_wrong_password_or_database_is_told_at_once(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.monotonic()
    monkeypatch.setenv("MEDLOOM_CATALOG", address(server, "lake").replace("dbname=lake", "dbname=nowhere"))
    with pytest.raises(ConfigError, match="nowhere"):
        count(home)
    monkeypatch.setenv("MEDLOOM_CATALOG", address(server, "lake"))
    monkeypatch.setenv("PGPASSWORD", "planted-wrong")
    for ask in (lambda: count(home), lambda: catalog.refresh(home)):
        with pytest.raises(ConfigError, match="does not let us in") as caught:
            ask()
        assert "planted" not in str(caught.value)
    assert time.monotonic() - start < 15


def test_without_the_extensions_it_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake._INSTANCES.clear()
    monkeypatch.setattr(duckdb, "__version__", "9.9.9")
    with pytest.raises(ConfigError, match=r"duckdb-extension-postgres-scanner==9\.9\.9.*medloom\[lake\]"):
        count(home)


def test_a_lake_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("duckdb_extension_ducklake", reason="pip install 'medloom[lake]'")
    file = tmp_path / "it's one.ducklake"
    monkeypatch.setenv("MEDLOOM_CATALOG", f"ducklake:{file}")
    home = make_home(tmp_path)
    with reader(home) as old:
        number = add(home)
        catalog.refresh(home)
        assert old.execute("SELECT count(*) FROM builds").fetchone() == (1,)
    assert catalog.published(home) == {1, number} and count(home) == count(home, 1) == 12
    with writer(home):
        assert count(home) == 12, "a reader does not wait for a writer"
    file.write_bytes(b"no database" * 1000)
    monkeypatch.setattr(lake, "PATIENCE_S", 0.3)
    with pytest.raises(CatalogError, match=r"has not answered for 0\.3 s"):
        catalog.refresh(home)
    assert count(home) == 12
    catalog.rebuild(home)
    assert count(home) == 12 and not (home / "catalog.duckdb").exists()
