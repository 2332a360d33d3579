"""Cases 55, 56, 57 and 60: questions that want more than answers, a home made by somebody else, listeners, and words
that want to be code. What each file of ours promises is tested beside it; here is the outcome as a whole."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pyarrow.parquet as pq
import pytest
from makehome import make_home
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from catalog import catalog, gc, report
from catalog.browse.pages import Dataset
from catalog.builds import builds, last_snapshot
from catalog.catalog import query
from catalog.datacard import card_markdown
from catalog.manifest import Manifest, read_manifest
from catalog.selection import Selection
from catalog.verify import manifests, problems
from flows.browse import serve_pages
from flows.cli import app
from flows.export import run_export
from flows.reports import serve_reports
from flows.server import may_listen
from flows.show import show
from infra.errors import ConfigError, MedloomError

SECRET = "the-hospital's-own"
HOSTILE = "<img src=x onerror=alert(1)>](javascript:alert(2)) | `=1+1` </script><script>alert(3)</script>"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("access"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return make_home(tmp_path)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside the home that nobody may be shown."""
    file = tmp_path / "secret.csv"
    file.write_text(f"sample_id,shard\n{SECRET},x\n")
    return file


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- 55: questions


@pytest.mark.parametrize(
    "words",
    [
        "SELECT * FROM read_csv('{secret}')", "SELECT * FROM '{secret}'", "COPY images TO '{out}'",
        "ATTACH '{out}' AS x", "INSTALL httpfs", "SELECT 1; DROP VIEW images", "SET lock_configuration = false",
        "SELECT * FROM query('COPY images TO ''{out}''')",
        "SELECT * FROM images WHERE sample_id IN (FROM read_text('{secret}'))",
    ],
)
def test_a_question_reads_and_writes_nothing_but_the_catalog(home: Path, secret: Path, words: str) -> None:
    before, out = files(home), secret.with_name("out")
    sql = words.format(secret=secret, out=out)
    told = CliRunner().invoke(app, ["sql", sql, "--home", str(home)])
    assert isinstance(told.exception, MedloomError) and SECRET not in told.output + str(told.exception)
    for where in (f"sample_id IN (SELECT sample_id FROM ({sql}))", f"true; {sql}", f"true) UNION ({sql}"):
        with pytest.raises(MedloomError) as refused:
            run_export(home, where, "huggingface", out, None, [])
        assert SECRET not in str(refused.value)
    assert not out.exists() and files(home) == before


def test_a_huge_join_ends_with_its_time_and_memory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOOM_SQL_MEMORY", "200MB")
    huge = "images a, images b, images c, images d, images e, images f, images g, images h, images i"
    with pytest.raises(MedloomError, match=r"no answer within 0\.3 s"):
        query(home, f"SELECT count(*) FROM {huge} WHERE hash(a.sample_id, i.sample_id) = 1", seconds=0.3)
    with pytest.raises(MedloomError, match="emory"):
        query(home, f"SELECT list(a.sample_id || i.sample_id) FROM {huge}", seconds=60)


# --- 56: a home that somebody else made


def test_a_file_that_no_manifest_names_is_never_opened(own: Path) -> None:
    whole = query(own, "SELECT * FROM images ORDER BY ALL").to_pylist()
    for path in list((own / "shards").rglob("*.parquet")):
        (path.parent / "evil-000000000000000000000000.parquet").write_bytes(b"PAR1" + b"\xff" * 64 + b"PAR1")
    (own / "segments").mkdir(exist_ok=True)
    (own / "segments" / "rows_999999.duckdb").write_bytes(b"\xff" * 9999)
    catalog.rebuild(own)
    assert query(own, "SELECT * FROM images ORDER BY ALL").to_pylist() == whole
    assert len(list(Selection(own).rows())) == len(whole)


def test_an_altered_shard_is_named(own: Path) -> None:
    shard = own / next(s.path for unit in manifests(own) for s in unit.shards if s.layer == "images")
    pq.write_table(pq.read_table(shard).slice(0, 1), shard)
    told = [line for unit in manifests(own) for line in problems(own, unit)]
    assert len(told) == 1 and str(shard.relative_to(own)) in told[0]
    assert CliRunner().invoke(app, ["verify", "--home", str(own)]).exit_code == 1
    shard.write_bytes(b"PAR1" + b"\xff" * 64 + b"PAR1")
    with pytest.raises(MedloomError):
        list(Selection(own).rows())


@pytest.mark.parametrize("file", [catalog.PUBLISHED, catalog.FILE])
def test_a_crafted_catalog_shows_no_file(own: Path, secret: Path, file: str) -> None:
    with duckdb.connect(str(own / file)) as con:
        con.execute(f"CREATE OR REPLACE VIEW images AS SELECT * FROM read_csv('{secret}')")
        con.execute(f"CREATE MACRO steal() AS TABLE SELECT * FROM read_text('{secret}')")
        con.execute(f"CREATE MACRO lower(a) AS (SELECT content FROM read_text('{secret}'))")
    if file == catalog.FILE:
        catalog.refresh(own)
    for sql in ("SELECT * FROM images", "SELECT * FROM steal()", "SELECT lower('a')"):
        try:
            answer = str(query(own, sql).to_pylist())
        except MedloomError as error:
            answer = str(error)
        assert SECRET not in answer
    catalog.rebuild(own)
    assert query(own, "SELECT count(*) AS n FROM images").to_pylist() == [{"n": 12}]


def test_a_crafted_catalog_shows_no_file_to_its_writer_either(own: Path, secret: Path) -> None:
    with duckdb.connect(str(own / catalog.FILE)) as con:
        con.execute(f"CREATE OR REPLACE VIEW images AS SELECT * FROM read_csv('{secret}')")
    with catalog.writer(own) as con, pytest.raises(duckdb.Error):  # a commit reads it: checks, report, data card
        con.execute("SELECT * FROM images").fetchall()


def test_a_name_in_a_crafted_catalog_is_no_sql(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "x; COPY (SELECT 42) TO 'written.csv' --"
    (own / "segments").mkdir(exist_ok=True)
    duckdb.connect(str(own / "segments" / f"{name}.duckdb")).close()
    with duckdb.connect(str(own / catalog.PUBLISHED)) as con:
        con.execute("INSERT INTO segments VALUES (?, 1)", [name])
    with pytest.raises(MedloomError):
        query(own, "SELECT 1")
    assert not (tmp_path / "written.csv").exists()


def renamed(home: Path, path: str) -> None:
    """The shard of images of one unit is another file, says its manifest."""
    unit = next(unit for unit in last(home) if "/photos/ingest/" in unit)
    made = read_manifest(home, unit)
    shards = tuple(s.model_copy(update={"path": path}) if s.layer == "images" else s for s in made.shards)
    (home / unit).write_text(Manifest.model_construct(**dict(made) | {"shards": shards}).model_dump_json())


def last(home: Path) -> tuple[str, ...]:
    snapshot = last_snapshot(home)
    assert snapshot
    return snapshot.units


@pytest.mark.parametrize("how", ["relative", "absolute", "link"])
def test_a_manifest_that_leads_out_of_the_home_is_refused(own: Path, tmp_path: Path, how: str) -> None:
    inside = next(s.path for unit in manifests(own) for s in unit.shards if s.layer == "images" and "photos" in s.path)
    outside = tmp_path / "outside.parquet"
    shutil.copy(own / inside, outside)
    os.symlink(outside, own / "shards" / "link.parquet")
    renamed(own, {"relative": "../outside.parquet", "absolute": str(outside), "link": "shards/link.parquet"}[how])
    with pytest.raises(MedloomError, match="leads out of the dataset's home"):
        catalog.rebuild(own)


def test_a_build_record_makes_nobody_remove_a_file_elsewhere(own: Path) -> None:
    (first,) = builds(own)
    first.model_copy(update={"number": 2}).write(own)
    victim = own.parent / "victim.json"
    victim.write_text("{}")
    record = json.loads((own / first.path).read_text())
    (own / first.path).write_text(json.dumps(record | {"units": [*record["units"], "../victim.json", str(victim)]}))
    try:
        gc.collect(own, keep=1, grace_s=0)
    except MedloomError as error:
        assert "leads out" in str(error)
    assert victim.read_text() == "{}"


# --- 57: listeners


def port_is_closed(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return True
    return False


def test_pages_listen_on_loopback_alone(own: Path) -> None:
    for serve in (lambda: serve_pages(Dataset(own), 0), lambda: serve_reports(own, 0)):
        with serve() as address:
            place = urlsplit(address)
            assert place.hostname == "127.0.0.1" and place.port
            assert not port_is_closed("127.0.0.1", place.port)
            # another address of this same machine: what listens on 0.0.0.0 would answer there
            assert port_is_closed("127.0.0.2", place.port)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org", ""])
def test_elsewhere_only_with_a_password(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    for name in ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"PREFECT_SERVER_API_AUTH_STRING"):
        may_listen(host)
    may_listen("127.0.0.1")


# --- 60: words that want to be code


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose labels, captions, sources and ids are what an attacker of its readers would write."""

    def change(rows: dict[str, list[dict[str, Any]]]) -> None:
        for row in rows["texts"]:
            row["text"] = HOSTILE
        for row in rows["labels"]:
            row["name"] = f"../../{HOSTILE}"
        for row in rows["rois"]:
            row["label"] = f"../../{HOSTILE}"
        for row in rows["images"]:
            row["source_item"] = f"=cmd|' /C calc'!A0 {HOSTILE}"

    yield make_home(tmp_path_factory.mktemp("hostile"), change)


def rendered(markdown: str) -> str:
    """As a viewer that lets HTML and any link through would show it."""
    viewer = MarkdownIt("commonmark", {"html": True}).enable("table")
    viewer.validateLink = lambda url: True  # type: ignore[method-assign]
    return viewer.render(markdown)


def test_pages_and_cards_show_words_as_words(hostile: Path) -> None:
    made = last_snapshot(hostile)
    assert made
    with catalog.reader(hostile) as con:
        report.write(hostile, made, con)
    page = (hostile / report.path(made)).read_text()
    for text in (page, rendered(card_markdown(hostile))):
        assert "<img src=x" not in text and "<script>alert" not in text and 'href="javascript:' not in text
    assert "alert(3)" in page, "they are shown, as words"


@pytest.mark.parametrize("format", ["webdataset", "huggingface", "coco", "yolo"])
def test_an_export_stays_in_its_folder(hostile: Path, tmp_path: Path, format: str) -> None:
    out = tmp_path / "deep" / "out"
    run_export(hostile, "true", format, out, None, [], licences="all")
    assert {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()} == {("deep", "out")}
    for path in out.rglob("*.md"):
        text = rendered(path.read_text())
        assert "<img src=x" not in text and "<script>alert" not in text and 'href="javascript:' not in text, path


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_no_cell_of_a_csv_is_a_formula(capsys: pytest.CaptureFixture[str], cell: str) -> None:
    show([{"text": cell, cell: -1.5}], "csv")
    header, (text, number) = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    for told in (text, header[1]):
        assert told[0] not in "=+-@\t\r\n" and told.endswith(cell.strip())
    assert float(number) == -1.5, "a number stays one"
