"""The dicom connector: which files make an item, which stay together, what a listing remembers."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicomfiles import data_of, decoded, image, listed, one, read
from pydicom.uid import (
    MediaStorageDirectoryStorage,
)

from connectors import dicom as connector
from infra.errors import Dropped, Terminal, Transient
from infra.fileindex import FileIndex
from infra.keys import pseudonym
from transforms.decoded import IngestParams, Refused
from transforms.decoders import dicom

hide = partial(pseudonym, b"test")


def test_files_of_a_series_are_kept_together(tmp_path: Path) -> None:
    for series in range(6):
        for number in range(5):
            folder = tmp_path / str(number)  # a series is scattered over folders
            folder.mkdir(exist_ok=True)
            image(number, SeriesInstanceUID=f"1.2.3.{series}").save_as(folder / f"{series}", enforce_file_format=True)
    partitions = listed(tmp_path, capacity=10)
    assert len(partitions) > 2 and sum(len(p.refs) for p in partitions) == 30
    given = connector.Params(root=str(tmp_path), capacity=10)
    items = [item for p in partitions for item in connector.read(p, given)]
    runs = [group for group, _ in groupby(items, key=lambda item: item.group)]
    assert len(runs) == len(set(runs)) == 6
    assert all(item.kind == "dicom" and item.error is None and len(item.files["main"]) > 100 for item in items)
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert [p.key for p in listed(moved, capacity=10)] == [p.key for p in partitions]


def test_series_without_uid_go_by_folder_and_study(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for number in range(4):
            image(number, SeriesInstanceUID="").save_as(tmp_path / folder / str(number), enforce_file_format=True)
    assert len({item.group for item in read(tmp_path)}) == 2
    anonymous = {"SeriesInstanceUID": None, "StudyInstanceUID": None, "FrameOfReferenceUID": None}
    image(9, **anonymous).save_as(tmp_path / "9", enforce_file_format=True)
    image(8, **anonymous).save_as(tmp_path / "8", enforce_file_format=True)
    assert len({item.group for item in read(tmp_path)}) == 4


def test_the_index_spares_reading_and_holds_no_identifier(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    whose = {"SeriesInstanceUID": "1.2.987654321", "PatientName": "Doe^Jane"}
    image(1, **whose).save_as(root / "a.dcm", enforce_file_format=True)
    os.utime(root / "a.dcm", ns=(time.time_ns(), time.time_ns() - 10**11))
    with FileIndex(tmp_path / "index") as index:
        first = listed(root, index)
    content = (tmp_path / "index").read_bytes() + repr(first).encode()
    assert b"987654321" not in content and b"Doe" not in content and b"4711" not in content
    (root / "a.dcm").chmod(0)
    index = FileIndex(tmp_path / "index")
    index.ask = partial(_known_only, index, index.ask)  # type: ignore[method-assign]
    assert listed(root, index) == first


def _known_only(index: FileIndex, ask: Callable[..., Any], path: Path, name: str, fn: Callable[[Path], Any]) -> Any:
    def opened(path: Path) -> Any:
        raise AssertionError(f"{path} was opened again for {name}")

    return ask(path, name, opened)


def test_globs_choose_files(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm", "c.txt"):
        image(1).save_as(tmp_path / name, enforce_file_format=True)
    assert [item.id for item in read(tmp_path, include=["*.dcm"], exclude=["b*"])] == ["a.dcm"]
    (item,) = read(tmp_path / "a.dcm", modality="XC", anatomy="skin")
    assert item.id == "a.dcm" and item.facts == {"modality": "XC", "anatomy": "skin"}


def test_what_is_no_dicom_is_an_item_with_an_error(tmp_path: Path) -> None:
    image(1).save_as(tmp_path / "good.dcm", enforce_file_format=True)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "noise").write_bytes(b"\x08\0" + np.random.default_rng(0).bytes(500))
    directory = image(2, PixelData=None)
    directory.SOPClassUID = MediaStorageDirectoryStorage
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    bare = data_of(image(3))
    (tmp_path / "headless").write_bytes(bare[132 + 12 + int.from_bytes(bare[140:144], "little") :])
    found = {item.id: item.error for item in read(tmp_path)}
    assert found["good.dcm"] is None and found["headless"] is None
    for name in ("notes.txt", "empty", "noise"):
        assert isinstance(found[name], Terminal) and found[name].code == "NOT_DICOM"
    assert isinstance(found["DICOMDIR"], Dropped) and found["DICOMDIR"].code == "DICOMDIR"


def test_headless_files_decode_like_others() -> None:
    whole = data_of(image(3))
    bare = whole[132 + 12 + int.from_bytes(whole[140:144], "little") :]
    assert np.array_equal(one(decoded(bare)).pixels, one(decoded(whole)).pixels)
    cut = data_of(image(3))[132:]  # file meta without a preamble
    assert np.array_equal(one(decoded(cut)).pixels, one(decoded(whole)).pixels)


def test_members_of_a_zip_are_items(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"s/{number}", data_of(image(number)))
        archive.writestr("s/readme.txt", "hello")
        archive.writestr("__MACOSX/._0", "x")
    image(9).save_as(tmp_path / "9.dcm", enforce_file_format=True)
    items = read(tmp_path)
    good = [item for item in items if item.error is None]
    assert [item.id for item in good] == ["9.dcm", *(f"scan.zip!s/{n}" for n in range(4))]
    assert len({item.group for item in good}) == 1 and good[3].files["main"] == data_of(image(2))
    assert [(item.id, item.error.code) for item in items if item.error] == [("scan.zip!s/readme.txt", "NOT_DICOM")]  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["9.dcm", "scan.zip"]  # nothing was unpacked


@pytest.mark.parametrize("member", ["../../evil", "/etc/evil", "C:/evil"])
def test_an_unsafe_zip_is_refused_whole(tmp_path: Path, member: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good", data_of(image(1)))
        archive.writestr(member, data_of(image(2)))
    (item,) = read(tmp_path)
    assert item.id == "a.zip" and isinstance(item.error, Terminal) and item.error.code == "ARCHIVE_UNSAFE"


def test_empty_and_broken_zips_are_counted(tmp_path: Path) -> None:
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    found = {item.id: item.error.code for item in read(tmp_path)}  # type: ignore[union-attr]
    assert found["empty.zip"] == "ARCHIVE_EMPTY" and found["broken.zip"].startswith("ARCHIVE_")


def test_a_file_that_changed_or_went_after_listing_may_be_tried_again(tmp_path: Path) -> None:
    for name in "abc":
        image(ord(name)).save_as(tmp_path / name, enforce_file_format=True)
    partitions = listed(tmp_path)
    (tmp_path / "a").write_bytes(b"other")
    (tmp_path / "b").unlink()
    given = connector.Params(root=str(tmp_path))
    found = {item.id: item.error for p in partitions for item in connector.read(p, given)}
    assert isinstance(found["a"], Transient) and found["a"].code == "SOURCE_CHANGED"
    assert isinstance(found["b"], Transient) and found["b"].code == "SOURCE_UNREADABLE"
    assert found["c"] is None


def test_every_sample_file_is_kept_or_refused(sample_data: Path) -> None:
    items = read(sample_data / "dicom", capacity=50)
    outcome: dict[str, str] = {item.id: item.error.code for item in items if item.error}  # type: ignore[attr-defined]
    for _, run in groupby((item for item in items if item.error is None), key=lambda item: item.group):
        together = list(run)
        for made in dicom.decode(together, IngestParams(), hide):
            if isinstance(made, Refused):
                assert outcome.setdefault(made.item, made.error.code) == made.error.code
            else:
                outcome.update(dict.fromkeys(getattr(made, "items", ()), "kept"))
    assert outcome.keys() == {item.id for item in items}
    assert list(outcome.values()).count("kept") >= 80
    assert not {"PIXELS_CORRUPT", "DICOM_UNREADABLE"} & set(outcome.values())
