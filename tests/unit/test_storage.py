"""Files that are whole or absent, and addresses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.storage import TEMPORARY, draft_of, resolve, sweep, walk, write_atomic, write_bytes


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"

    def half(draft: Path) -> None:
        draft.write_bytes(b"half")
        assert not path.exists() or path.read_bytes() == b"whole"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomic(path, half)
    assert names(tmp_path) == []
    write_bytes(path, b"whole")
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, half)
    assert names(tmp_path) == ["deep/file"] and path.read_bytes() == b"whole"
    write_bytes(path, b"newer")
    assert names(tmp_path) == ["deep/file"] and path.read_bytes() == b"newer"


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(draft: Path) -> None:
        draft.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", interrupted)
    assert names(tmp_path) == []


def test_sweep_takes_only_what_dead_processes_of_this_machine_left(tmp_path: Path) -> None:
    code = "import sys, pathlib, infra.storage as s; s.draft_of(pathlib.Path(sys.argv[1])).touch()"
    for name in ("a/file", "b/c/file"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True, cwd=Path(__file__).parents[2])
    dead = names(tmp_path)
    assert len(dead) == 2 and all(Path(d).name.startswith(TEMPORARY) for d in dead)
    mine = draft_of(tmp_path / "mine-1-2")
    mine.touch()
    foreign = tmp_path / f"{TEMPORARY}00000000-{Path(dead[0]).name.split('-')[2]}-file"
    foreign.touch()
    write_bytes(tmp_path / "file", b"")
    assert sweep(tmp_path) == 2
    assert names(tmp_path) == sorted([mine.name, foreign.name, "file"])
    assert sweep(tmp_path / "nothing") == 0


def test_addresses_lead_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("MEDLOOM_TEST_ROOT", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for address in (str(tmp_path / "data"), "$MEDLOOM_TEST_ROOT/data", "~/data"):
        assert resolve(address) == tmp_path / "data"
    assert resolve("data", base=tmp_path) == tmp_path / "data"
    monkeypatch.chdir(tmp_path)
    assert resolve("data") == tmp_path / "data"
    assert resolve("pkg:pydantic/main.py").name == "main.py"
    assert resolve("pkg:pydantic").is_dir()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere/at/all", "nothing there"), ("/nowhere", "nothing there"), ("$NO_SUCH_VARIABLE/x", "nothing there"),
        ("pkg:pydantic/nowhere", "nothing there"), ("pkg:no_such_package_at_all/x", "is not installed"),
    ],
)
def test_an_address_that_leads_nowhere_says_so(tmp_path: Path, address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(address, base=tmp_path)


def test_walk_is_in_order_and_leaves_out_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a/x", ".hidden", ".git/x", "__MACOSX/x", "c", "b/.DS_Store"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    os.symlink(tmp_path / "a", tmp_path / "b" / "link")
    os.symlink(tmp_path / "nowhere", tmp_path / "b" / "dangling")
    os.mkfifo(tmp_path / "b" / "pipe")
    assert [str(p.relative_to(tmp_path)) for p in walk(tmp_path)] == ["c", "a/x", "b/1", "b/2"]
    assert list(walk(tmp_path / "c")) == [tmp_path / "c"]
    assert list(walk(tmp_path / "nowhere")) == []
