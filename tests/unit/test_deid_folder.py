"""`medloom deid`: a folder in, a folder out, every file accounted for, nothing said that identifies."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import typer
from planted import document, leaks, planted
from pydicom import dcmread
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from flows.deidentify import deid, deidentify_folder, keyed_name
from infra.errors import ConfigError
from transforms.deid.mapping import read
from transforms.deid.profile import Profile

KEY = b"test"
MODIFIED = Profile.of("modified_dates")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two files of a Doe, and what else lies about in such folders."""
    folder = tmp_path / "Doejohn Mary"
    (folder / "19620304").mkdir(parents=True)
    (folder / "19620304" / "a.dcm").write_bytes(planted(0))
    (folder / "19620304" / "b").write_bytes(planted(1))
    (folder / "19620304" / "cut.dcm").write_bytes(planted(1)[:-500])
    (folder / "report.pdf.dcm").write_bytes(document())
    (folder / "notes.txt").write_text("Doejohn " * 40)
    return folder


def everything(out: Path) -> bytes:
    files = [path for path in out.rglob("*") if path.is_file()]
    return b"".join(path.read_bytes() + str(path.relative_to(out)).encode() for path in files)


def test_a_folder_goes_through_and_every_file_is_accounted_for(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    totals = deidentify_folder(source, out, KEY, MODIFIED)
    assert (totals.written, totals.quarantined, totals.left_out) == (2, 1, 2)
    assert leaks(everything(out)) == []
    rejects = [json.loads(line) for line in (out / "report" / "rejects.jsonl").read_text().splitlines()]
    assert sorted(r["code"] for r in rejects) == ["DICOM_TRUNCATED", "DOCUMENT", "NOT_DICOM"]
    written = sorted(path for path in (out / "files").rglob("*") if path.is_file())
    assert [dcmread(path).PatientIdentityRemoved for path in written] == ["YES", "YES"]
    assert keyed_name(Path("19620304/b"), KEY) in [path.relative_to(out / "files").as_posix() for path in written]
    assert all(not path.stat().st_mode & 0o111 for path in written)
    lines = [json.loads(line) for line in (out / "report" / "actions.jsonl").read_text().splitlines()]
    assert [line["actions"]["00100010 pseudonym"] for line in lines] == [1, 1] or all(
        line["actions"]["00100010 pseudonym"] >= 1 for line in lines
    )
    assert "00100010,PatientName,pseudonym," in (out / "report" / "actions.csv").read_text()


def test_again_is_the_same_and_nothing_is_written_over(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    deidentify_folder(source, out, KEY, MODIFIED)
    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    times = {path: path.stat().st_mtime_ns for path in (out / "files").rglob("*")}
    target = out / "files" / keyed_name(Path("19620304/a.dcm"), KEY)
    assert deidentify_folder(source, out, KEY, MODIFIED).written == 2
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == first
    assert {path: path.stat().st_mtime_ns for path in (out / "files").rglob("*")} == times
    target.write_bytes(b"somebody else's")
    assert deidentify_folder(source, out, KEY, MODIFIED).quarantined == 2
    assert target.read_bytes() == b"somebody else's"
    target.unlink()  # as a kill would leave it
    (target.parent / f".tmp-{'0' * 8}-1-x").write_bytes(b"half")
    assert deidentify_folder(source, out, KEY, MODIFIED).written == 2
    assert target.read_bytes() == first[target]


def test_another_key_or_profile_does_not_mix(source: Path, tmp_path: Path) -> None:
    deidentify_folder(source, tmp_path / "out", KEY, MODIFIED)
    for key, profile in ((b"other", MODIFIED), (KEY, Profile())):
        with pytest.raises(ConfigError):
            deidentify_folder(source, tmp_path / "out", key, profile)
    for out in (source, source / "out", tmp_path):
        with pytest.raises(ConfigError):
            deidentify_folder(source, out, KEY, MODIFIED)
    with pytest.raises(ConfigError):
        deidentify_folder(tmp_path / "nowhere", tmp_path / "new", KEY, MODIFIED)


def test_mappings_are_private_and_elsewhere(source: Path, tmp_path: Path) -> None:
    out, private = tmp_path / "out", tmp_path / "private"
    deidentify_folder(source, out, KEY, MODIFIED, mapping=private)
    patients, uids = read(private / "patient_mapping.csv"), read(private / "uid_mapping.csv")
    made = dcmread(out / "files" / keyed_name(Path("19620304/b"), KEY))
    assert patients["987654320001"] == made.PatientID and uids["1.2.3.98765.1.1"] == made.SOPInstanceUID
    assert stat.S_IMODE((private / "uid_mapping.csv").stat().st_mode) == 0o600
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    with pytest.raises(ConfigError):
        deidentify_folder(source, out, KEY, MODIFIED, mapping=out / "private")


def test_case_29_the_public_profile_refuses_a_head(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(40):
        slice_of = dcmread(get_testdata_file("CT_small.dcm"))
        slice_of.BodyPartExamined, slice_of.SOPInstanceUID = "HEAD", f"1.2.3.{n}"
        slice_of.PixelSpacing, slice_of.ImagePositionPatient = [2, 2], [0, 0, 3.0 * n]
        slice_of.save_as(folder / f"{n}.dcm")
    totals = deidentify_folder(folder, tmp_path / "public", KEY, MODIFIED, public=True)
    assert (totals.written, totals.quarantined) == (0, 40)
    rejects = (tmp_path / "public" / "report" / "rejects.jsonl").read_text()
    assert rejects.count("FACE_POSSIBLE") == 40
    assert deidentify_folder(folder, tmp_path / "private", KEY, MODIFIED).written == 40
    made = dcmread(tmp_path / "private" / "files" / keyed_name(Path("0.dcm"), KEY))
    assert made.RecognizableVisualFeatures == "YES"
    done = deidentify_folder(folder, tmp_path / "defaced", KEY, MODIFIED, public=True, defaced=True)
    assert done.written == 40


def test_case_28_a_capture_is_quarantined_by_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    capture = dcmread(get_testdata_file("CT_small.dcm"))
    capture.ConversionType = "WSD"
    capture.save_as(folder / "capture.dcm")
    app = typer.Typer()
    app.command()(deid)
    told = CliRunner().invoke(app, [str(folder), "--out", str(tmp_path / "out"), "--home", str(tmp_path / "home")])
    assert told.exit_code == 1 and "0 files written, 1 quarantined" in told.output
    assert "TEXT_POSSIBLE" in (tmp_path / "out" / "report" / "rejects.jsonl").read_text()
    (folder / "capture.dcm").unlink()
    dcmread(get_testdata_file("MR_small.dcm")).save_as(folder / "mr.dcm")
    options = ["--option", "modified_dates", "--option", "retain_patient"]
    args = [str(folder), "--out", str(tmp_path / "out2"), "--home", str(tmp_path / "home"), *options]
    assert CliRunner().invoke(app, args).exit_code == 0
