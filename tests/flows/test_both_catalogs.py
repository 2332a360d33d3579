"""What people look, export and clean up with says the same over a DuckDB file and over a DuckLake on Postgres."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from lakes import KINDS, addresses
from makehome import make_home
from typer.testing import CliRunner

from catalog import catalog, decisions
from catalog.browse.pages import Dataset, Request, respond
from catalog.builds import builds
from flows.cli import app
from infra.keys import key

GONE, STAYS = key("sample", "CT", 0), key("sample", "XC", 0)
"""A sample that the second snapshot lacks, and one that both hold."""
T = TypeVar("T")


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, str]]]:
    """kind -> a dataset of two snapshots and the address of its catalog; the files are the same."""
    folder = tmp_path_factory.mktemp("both")
    with addresses("file") as file, addresses("lake") as lake:
        found = {"file": (folder / "file" / "home", file()), "lake": (folder / "lake" / "home", lake())}
        with at_address(found["file"][1]):
            home = make_home(folder / "file")
            (first,) = builds(home)
            photos = tuple(unit for unit in first.units if "/photos/" in unit)
            first.model_copy(update={"number": 2, "units": photos}).write(home)
            for sample in (GONE, STAYS):
                decisions.decide(home, decisions.Decision(
                    reviewer="r-00000001", sample_id=sample, about="text:t", seen="0" * 24, verdict="accept",
                ))
            catalog.refresh(home)
        shutil.copytree(home, found["lake"][0], ignore=shutil.ignore_patterns("catalog.*", "segments", ".*"))
        with at_address(found["lake"][1]):
            catalog.rebuild(found["lake"][0])
        yield found


@contextmanager
def at_address(address: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDLOOM_CATALOG", address)
        yield


def over_both(homes: dict[str, tuple[Path, str]], ask: Callable[[Path], T]) -> T:
    """The answer of both, which is one."""
    answers = []
    for kind in KINDS:
        home, address = homes[kind]
        with at_address(address):
            answers.append(ask(home))
    assert answers[0] == answers[1]
    return answers[0]


def said(*command: str) -> Callable[[Path], str]:
    """What a command prints, without the place of the home."""
    def run(home: Path) -> str:
        done = CliRunner().invoke(app, [*command, "--home", str(home)])
        assert done.exit_code == 0, done.output
        return done.stdout.replace(str(home.parent), "")

    return run


def test_each_catalog_is_where_its_address_says(homes: dict[str, tuple[Path, str]]) -> None:
    assert (homes["file"][0] / catalog.FILE).exists() and not (homes["file"][0] / "lake").exists()
    assert (homes["lake"][0] / "lake").is_dir() and not (homes["lake"][0] / catalog.FILE).exists()


@pytest.mark.parametrize(("format", "where", "samples"), [
    ("webdataset", "modality = 'CT' AND NOT (licence_image IS NULL)", 4),
    ("huggingface", "sample_id IN (SELECT sample_id FROM rois WHERE label = 'lesion')", 12),
])
def test_an_export_has_the_same_bytes(
    homes: dict[str, tuple[Path, str]], tmp_path: Path, format: str, where: str, samples: int
) -> None:
    def files(home: Path) -> dict[str, str]:
        out = tmp_path / home.parent.name
        told = said("export", "--format", format, "--at", "1", "--where", where, "--out", str(out))(home)
        assert told.startswith(f"{samples} of {samples} samples of snapshot 1"), told
        found = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}

    assert len(over_both(homes, files)) > 3


@pytest.mark.parametrize("command", [
    ("funnel",), ("card", "--at", "1"), ("verify",), ("catalog", "diff"), ("catalog", "lineage", STAYS),
    ("catalog", "lineage", key("text", GONE, "region"), "--at", "1"),
    ("sql", "SELECT * FROM samples ORDER BY sample_id", "--format", "json"),
], ids=" ".join)
def test_a_command_says_the_same(homes: dict[str, tuple[Path, str]], command: tuple[str, ...]) -> None:
    assert over_both(homes, said(*command)).strip()


@pytest.mark.parametrize(("page", "params", "words"), [
    ("", {"where": "modality = 'XC'"}, "4 samples"), ("sample", {"id": STAYS}, "The lesion lies in the middle left."),
    ("table", {"q": "SELECT * FROM texts ORDER BY text_id"}, "12 rows"), ("review", {}, ""), ("card", {}, "small"),
    ("", {"where": "EXISTS (FROM read_text('/etc/passwd'))"}, "read_text() is not for questions"),
])
def test_a_page_shows_the_same(
    homes: dict[str, tuple[Path, str]], page: str, params: dict[str, str], words: str
) -> None:
    def shown(home: Path) -> tuple[int, str]:
        response = respond(Dataset(home), Request(page, params))
        return response.status, response.body.decode()

    status, body = over_both(homes, shown)
    assert status == (400 if "passwd" in str(params) else 200)
    assert words in re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", body))


def test_what_was_withdrawn_goes_with_its_last_snapshot(homes: dict[str, tuple[Path, str]], tmp_path: Path) -> None:
    """The last test: it changes both."""
    gc = said("catalog", "gc", "--keep", "1", "--grace", "0", "--yes")
    assert "removed 1 decisions about samples that no snapshot holds any more (1)" in over_both(homes, gc)
    assert over_both(homes, lambda home: [d.sample_id for d in decisions.read(home)]) == [STAYS]

    def left(home: Path) -> tuple[list[tuple[str, ...]], bool, set[str]]:
        with catalog.reader(home) as con:
            of = con.execute("SELECT DISTINCT source, sample_id = ? FROM images ORDER BY ALL", [GONE]).fetchall()
            rows = [con.execute(f"FROM {layer}_rows SELECT count(*) WHERE sample_id = ?", [GONE]).fetchone()
                    for layer in ("images", "texts", "checks")]
        files = {os.path.relpath(p, home) for name in ("shards", "manifests") for p in (home / name).rglob("*.*")}
        return of, rows == [(0,)] * 3, files

    of, gone, files = over_both(homes, left)
    assert of == [("photos", False)] and gone and files and not any("scans" in name for name in files)
