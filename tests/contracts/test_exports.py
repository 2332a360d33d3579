"""What holds for every exporter: same bytes, safe names, whole or absent."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from exporthome import files, made_home, noise, row  # noqa: F401
from pydantic import BaseModel

from catalog.catalog import query
from catalog.exports import Counts
from catalog.selection import Row
from flows.export import run_export
from infra.disk import DiskFull
from infra.errors import ConfigError
from infra.keys import sha256
from infra.plugins import plugins

uses_webdataset = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves tars open


# of slices of DICOM series alone, in test_exports_dicom.py
ANY_PICTURE = sorted(set(plugins("exporter")) - {"dicom_seg"})


@pytest.mark.parametrize("format", [name for name in ANY_PICTURE if name != "lance"])  # which names files at random
def test_exporting_twice_gives_the_same_bytes(home: Path, tmp_path: Path, format: str) -> None:
    first, second = tmp_path / "a", tmp_path / "deep" / "b"
    run_export(home, "width > 10", format, first, None, [], licences="all")
    shutil.copytree(home, tmp_path / "moved")
    run_export(tmp_path / "moved", "width > 10", format, second, 1, [], licences="all")
    assert files(first) == files(second)
    listed = [line.split("  ", 1) for line in (first / "CHECKSUMS").read_text().splitlines()]
    hashes = {name: sha256(data) for name, data in files(first).items() if name != "CHECKSUMS"}
    assert hashes == {name: digest for digest, name in listed}
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "CHECKSUMS"], cwd=first, check=True)
    record = json.loads((first / "manifest.json").read_text())
    ids = sorted(r["sample_id"] for r in query(home, "SELECT sample_id FROM images WHERE width > 10").to_pylist())
    assert record["samples_sha256"] == hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()
    assert record["picked"] == record["written"] + sum(record["left_out"].values()) == len(ids)
    assert record["licences"]["unknown"] == 1 and sum(record["licences"].values()) == record["written"]


@uses_webdataset
@pytest.mark.parametrize("format", ANY_PICTURE)
@pytest.mark.parametrize("sample", ["../../escape", "/etc/escape", "a.b", "a/b", "C:\\x", "..", "", "a\nb", "é" * 300])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, format: str, sample: str) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    exporter = plugins("exporter")[format]
    wanted = {"channels": "rgb"} if format == "nnunet" else {}
    rows = [row(sample, noise(1), "../../a./../../b"), row("fine", noise(2))]
    counts = exporter.write(rows, out, exporter.Params(**wanted))
    assert counts.written == 2
    assert {p.relative_to(tmp_path).parts[:2] for p in tmp_path.rglob("*") if p.is_file()} == {("deep", "out")}
    if format == "webdataset":
        import webdataset as wds

        seen = [s for s in wds.WebDataset(str(out / "00000.tar"), shardshuffle=False)]
        assert len(seen) == 2 and all(re.fullmatch(r"[\w-]+", s["__key__"]) for s in seen)
        assert json.loads(seen[0]["json"])["sample_id"] == sample


@pytest.mark.parametrize("where", ["modality = 'nothing'", "false"])
def test_an_empty_selection_writes_nothing(home: Path, tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError, match="no sample meets"):
        run_export(home, where, "webdataset", tmp_path / "out", None, [], licences="all")
    assert list(tmp_path.iterdir()) == []


def test_a_selection_without_any_caption_writes_nothing(home: Path, tmp_path: Path) -> None:
    where = "sample_id NOT IN (SELECT sample_id FROM texts)"
    for format in ("webdataset", "llava"):
        with pytest.raises(ConfigError, match="left out: no caption"):
            run_export(home, where, format, tmp_path / "out", None, [], licences="all")
    assert list(tmp_path.iterdir()) == []
    assert run_export(home, where, "huggingface", tmp_path / "out", None, []).startswith("1 of 1 ")


def test_what_is_there_is_never_touched(home: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(ConfigError, match="is not empty"):
            run_export(home, "true", "llava", tmp_path / name, None, [], licences="all")
    assert files(tmp_path) == {"full/mine": b"mine", "file": b"mine"}
    (tmp_path / "empty").mkdir()
    run_export(home, "true", "llava", tmp_path / "empty", None, [], licences="all")
    assert (tmp_path / "empty" / "llava.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["shard_mbb=3"], "shard_mb"), (["shard_mb=0"], "greater"), (["shard_mb"], "key=value"),
        (["caption=[a"], "not YAML"),
    ],
)
def test_a_wrong_option_is_named(home: Path, tmp_path: Path, options: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_export(home, "true", "webdataset", tmp_path / "out", None, options)
    assert list(tmp_path.iterdir()) == []


class Broken:
    """An exporter that stops half-way or loses rows."""

    NAME = "broken"
    REQUIRES: Mapping[str, str] = {}
    Params = type("Params", (BaseModel,), {})

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def write(self, rows: Iterator[Row], out: Path, params: BaseModel) -> Counts:
        counts = Counts()
        for number, one in enumerate(rows):
            (out / one.name).write_bytes(b"half")
            if number == 3 and self.fails:
                raise OSError(28, "No space left on device")
            counts.written = 4
        return counts


@pytest.mark.parametrize(("fails", "error"), [(True, DiskFull), (False, RuntimeError)])
def test_an_exporter_that_fails_or_loses_rows_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool, error: type[Exception]
) -> None:
    monkeypatch.setattr("flows.export.load", lambda kind, name: Broken(fails))
    with pytest.raises(error):
        run_export(home, "true", "broken", tmp_path / "out", None, [], licences="all")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_goes_and_a_live_one_is_left_alone(home: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.unfinished"
    (left / "images").mkdir(parents=True)
    (left / "images" / "half.png").write_bytes(b"half")
    handle = os.open(left, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="another export is writing"):
        run_export(home, "true", "webdataset", tmp_path / "out", None, [], licences="all")
    assert (left / "images" / "half.png").exists()
    os.close(handle)
    run_export(home, "true", "webdataset", tmp_path / "out", None, [], licences="all")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "00000.tar", "sizes.json", "manifest.json", "CHECKSUMS", "ATTRIBUTIONS", "KNOWN_ISSUES.json",
    }
    assert not left.exists()
