"""Archives: members as they are, and every way in which an archive may be hostile or damaged."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from connectors.archives import Limits, Member, is_archive, members
from infra.errors import Terminal

FILES = {"PMC1/a.nxml": b"<article/>", "PMC1/a-g001.jpg": b"\xff\xd8" + bytes(range(256)) * 9}


def tar(files: dict[str, bytes], mode: str = "w:gz", *extra: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def code(data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(Terminal) as caught:
        list(members(data, lambda name: True, limits))
    return caught.value.code


@pytest.mark.parametrize("pack", [tar, zipped, lambda files: tar(files, "w")], ids=["tar.gz", "zip", "tar"])
def test_all_members_are_there_and_only_wanted_ones_are_read(pack: Callable[[dict[str, bytes]], bytes]) -> None:
    found = list(members(pack({**FILES, "./b.txt": b"x"}), lambda name: name.endswith("nxml")))
    assert found == [
        Member("PMC1/a.nxml", 10, b"<article/>"), Member("PMC1/a-g001.jpg", 2306), Member("b.txt", 1),
    ]
    everything = {m.name: m.data for m in members(pack(FILES), lambda name: True)}
    assert everything == FILES


def test_names_of_archives() -> None:
    assert all(is_archive(Path(name)) for name in ("a.tar.gz", "a.TGZ", "a.zip", "a.meca"))
    assert not any(is_archive(Path(name)) for name in ("a.gz", "zip", "a.zip.part"))


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "C:x", "a\\..\\x"])
@pytest.mark.parametrize("pack", [tar, zipped])
def test_a_name_outside_the_archive_condemns_it(name: str, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    assert code(pack({**FILES, name: b"x"})) == "ARCHIVE_UNSAFE"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_condemn_a_tar(kind: bytes) -> None:
    info = tarfile.TarInfo("PMC1/b.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    assert code(tar(FILES, "w:gz", info)) == "ARCHIVE_UNSAFE"


def test_a_link_condemns_a_zip() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("b.jpg")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert code(out.getvalue()) == "ARCHIVE_UNSAFE"


def test_a_name_given_twice_condemns_it() -> None:
    assert code(tar({"a.jpg": b"1", "./a.jpg": b"2"})) == "ARCHIVE_UNSAFE"


@pytest.mark.parametrize("pack", [tar, zipped])
def test_bombs_are_refused_by_each_limit(pack: Callable[[dict[str, bytes]], bytes]) -> None:
    zeros = pack({"zeros": bytes(5 << 20)})
    assert code(zeros, Limits(total=1 << 20)) == "ARCHIVE_BOMB"
    assert code(zeros, Limits(free=1 << 20)) == "ARCHIVE_BOMB"
    assert code(pack({str(n): b"" for n in range(9)}), Limits(members=8)) == "ARCHIVE_BOMB"
    assert [m.size for m in members(zeros, lambda name: False)] == [5 << 20], "small enough to be honest"


def test_a_bomb_after_the_end_of_the_tar_is_refused() -> None:
    assert code(gzip.compress(tar(FILES, "w") + bytes(5 << 20)), Limits(free=1 << 20)) == "ARCHIVE_BOMB"


@pytest.mark.parametrize("kept", [0, 1, 15, 300, -9, -1])
def test_a_truncated_gzip_says_so(kept: int) -> None:
    assert code(tar({**FILES, "b": bytes(range(256)) * 40})[:kept]) == "ARCHIVE_TRUNCATED"


@pytest.mark.parametrize("kept", [700, 1024, 1600])
def test_a_truncated_tar_says_so(kept: int) -> None:
    whole = tar(FILES, "w")
    assert code(whole[:kept]) == "ARCHIVE_TRUNCATED"
    assert code(gzip.compress(whole[:kept])) == "ARCHIVE_TRUNCATED", "truncated before it was packed"


@pytest.mark.parametrize("kept", [100, -10, -60])
def test_a_truncated_zip_says_so(kept: int) -> None:
    assert code(zipped(FILES)[:kept]) == "ARCHIVE_TRUNCATED"


def test_damage_is_told() -> None:
    damaged = bytearray(tar(FILES, "w"))
    damaged[1024 + 150] ^= 1  # the second header's checksum: tarfile alone would take it for the end
    assert code(bytes(damaged)) == "ARCHIVE_UNREADABLE"
    damaged = bytearray(tar(FILES))
    damaged[-6] ^= 1  # the CRC of the gzip
    assert code(bytes(damaged)) == "ARCHIVE_UNREADABLE"
    damaged = bytearray(zipped(FILES))
    damaged[45] ^= 1
    assert code(bytes(damaged)) == "ARCHIVE_UNREADABLE"
    assert code(b"this is no archive" * 99) == "ARCHIVE_UNREADABLE"


def test_real_archives(sample_data: Path) -> None:
    for path in sorted((sample_data / "pmc").rglob("*")):
        if is_archive(path):
            found = list(members(path.read_bytes(), lambda name: name.endswith("xml")))
            assert any(m.data and b"<article" in m.data for m in found), path
