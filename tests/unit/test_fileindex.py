"""The file index: remembers what did not change, forgets what might have, survives what it meets."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from infra.fileindex import FileIndex


def old_file(path: Path, data: bytes) -> Path:
    """A file written an hour ago."""
    path.write_bytes(data)
    os.utime(path, ns=(time.time_ns(), time.time_ns() - 3600 * 10**9))
    return path


def test_known_files_are_not_opened_again(tmp_path: Path) -> None:
    files = [old_file(tmp_path / f"{n}.txt", str(n).encode()) for n in range(20)]
    calls: list[bytes] = []

    def length(data: bytes) -> dict[str, int]:
        calls.append(data)
        return {"length": len(data)}

    with FileIndex(tmp_path / "index") as index:
        first = [(index.sha256(f), index.probe(f, "length", length)) for f in files]
    assert len(calls) == 20
    again = FileIndex(tmp_path / "index")
    assert [(again.sha256(f), again.probe(f, "length", length)) for f in files] == first
    assert len(calls) == 20
    assert first[7] == (hashlib.sha256(b"7").hexdigest(), {"length": 1})


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = old_file(tmp_path / "a", b"one")
    with FileIndex(tmp_path / "index") as index:
        index.sha256(file)
    stamp = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert FileIndex(tmp_path / "index").sha256(file) == hashlib.sha256(b"two").hexdigest()
    other = old_file(tmp_path / "b", b"six")  # same size and mtime under the same name, but another inode
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    os.replace(other, file)
    assert FileIndex(tmp_path / "index").sha256(file) == hashlib.sha256(b"six").hexdigest()


def test_a_file_written_just_now_is_not_trusted(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    stamp = file.stat()
    with FileIndex(tmp_path / "index") as index:
        index.sha256(file)
        file.write_bytes(b"two")
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # a change that the stamp cannot show
        assert index.sha256(file) == hashlib.sha256(b"two").hexdigest()


def test_a_corrupt_index_is_made_again(tmp_path: Path) -> None:
    file = old_file(tmp_path / "a", b"one")
    place = tmp_path / "index"
    place.write_bytes(b"this is no database" * 1000)
    with FileIndex(place) as index:
        assert index.sha256(file) == hashlib.sha256(b"one").hexdigest()
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2])
    with FileIndex(place) as index:
        assert index.sha256(file) == hashlib.sha256(b"one").hexdigest()
    assert len(FileIndex(place)) == 1


def test_names_of_files_are_not_kept(tmp_path: Path) -> None:
    file = old_file(tmp_path / "DOE_JOHN.dcm", b"one")
    with FileIndex(tmp_path / "index") as index:
        index.sha256(file)
    assert b"DOE" not in (tmp_path / "index").read_bytes()


def test_a_killed_process_leaves_a_good_index(tmp_path: Path) -> None:
    for n in range(50):
        old_file(tmp_path / f"{n}.txt", b"x")
    code = (
        "import itertools, pathlib, sys, infra.fileindex as f; f.BATCH = 1\n"
        "folder = pathlib.Path(sys.argv[1]); index = f.FileIndex(folder / 'index'); print('go', flush=True)\n"
        "for n in itertools.count():\n"
        "    for file in folder.glob('*.txt'): index.probe(file, str(n), len)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    with FileIndex(tmp_path / "index") as index:
        assert len(index) > 0
        assert index.probe(tmp_path / "3.txt", "0", len) == 1


def test_ten_thousand_known_files_take_well_under_a_second(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    files = [old_file(folder / str(n), b"") for n in range(10_000)]
    with FileIndex(tmp_path / "index") as index:
        for file in files:
            index.sha256(file)
    began = time.process_time()
    again = FileIndex(tmp_path / "index")
    for file in files:
        again.sha256(file)
    assert time.process_time() - began < 1
    assert not again._new


def test_without_a_path_it_remembers_in_memory(tmp_path: Path) -> None:
    file = old_file(tmp_path / "a", b"one")
    index = FileIndex(None)
    assert index.probe(file, "n", len) == 3
    assert index.probe(file, "n", lambda _: 99) == 3
    index.flush()
    assert sorted(os.listdir(tmp_path)) == ["a"]
