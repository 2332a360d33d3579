"""DICOMweb: search, retrieve, paging, and servers that are busy, cut answers short or lose files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dicomfiles import data_of, decoded, image, samples, segmentation, volumes
from dicomservers import TOKEN, Archive, dicomweb_server

from catalog.items import Item
from connectors import dicomweb
from connectors.webclient import parts_of
from infra.errors import ConfigError, Terminal, Transient
from infra.fileindex import FileIndex


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    monkeypatch.setenv("TOKEN_OF_TEST", TOKEN)
    slices = [image(n, Modality="MR") for n in range(5)]
    other = [image(n + 20, SeriesInstanceUID="1.2.9", PatientID="4712", StudyInstanceUID="1.7") for n in range(3)]
    files = [data_of(one) for one in (*slices, *other, segmentation(slices))]
    with dicomweb_server(Archive(files)) as served:
        yield served


def fetched(archive: Archive, **params: object) -> list[Item]:
    given = dicomweb.Params(url=archive.url, token_env="TOKEN_OF_TEST", **params)  # type: ignore[arg-type]
    found = dicomweb.list_partitions("s", given, FileIndex(None))
    return [item for partition in found for item in dicomweb.read(partition, given)]


def test_everything_comes_in_groups_and_byte_for_byte(archive: Archive) -> None:
    items = fetched(archive)
    assert sorted(item.files["main"] for item in items) == sorted(archive.files)
    groups = [item.group for item in items]
    assert len(set(groups)) == 2 and groups == sorted(groups)
    scan = [item.files["main"] for item in items if item.group == max(set(groups), key=groups.count)]
    made = decoded(*scan)
    assert len(volumes(made)) == 1 and [r.label for r in samples(made)[0].regions] == ["Liver"]


def test_queries_choose(archive: Archive) -> None:
    assert len(fetched(archive, query={"PatientID": "4712"})) == 3
    assert len(fetched(archive, series_query={"Modality": "MR"})) == 5
    assert not [path for path in archive.asked if "/instances/" in path and path.endswith("seg")]


def test_partitions_are_the_same_each_time_and_split(archive: Archive) -> None:
    params = dicomweb.Params(url=archive.url, token_env="TOKEN_OF_TEST", capacity=3)
    first, second = (list(dicomweb.list_partitions("s", params, FileIndex(None))) for _ in range(2))
    assert len(first) == 2 and [p.key for p in first] == [p.key for p in second]


def test_a_busy_server_is_asked_again_and_not_for_ever(archive: Archive) -> None:
    archive.busy = {"1.2.3.2": 2}
    assert all(item.error is None for item in fetched(archive, tries=3))
    archive.busy = {"1.2.3.2": 10**6}
    (failed,) = [item for item in fetched(archive, tries=2) if item.error]
    assert isinstance(failed.error, Transient) and failed.error.code == "SOURCE_UNREADABLE"
    assert archive.url not in str(failed.error) and "1.2.3" not in str(failed.error)


def test_lost_cut_and_unlisted_instances_cost_themselves(archive: Archive) -> None:
    archive.gone, archive.cut, archive.hidden = {"1.2.3.1"}, {"1.2.3.2"}, {"1.2.3.3"}
    items = fetched(archive, tries=1)
    found = {item.id.rpartition("/")[2]: item.error for item in items if item.error}
    assert {name: error.code for name, error in found.items()} == {  # type: ignore[attr-defined]
        "1.2.3.1": "SOURCE_MISSING", "1.2.3.2": "SOURCE_UNREADABLE", "rest": "SERIES_INCOMPLETE",
    }
    assert isinstance(found["1.2.3.2"], Transient) and isinstance(found["1.2.3.1"], Terminal)
    assert len([item for item in items if item.error is None]) == 6


def test_limits_and_refusals(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {item.error.code for item in fetched(archive, max_bytes=300) if item.error}  # type: ignore[attr-defined]
    assert errors == {"OBJECT_TOO_LARGE"}
    monkeypatch.setenv("TOKEN_OF_TEST", "wrong")
    with pytest.raises(ConfigError, match="ACCESS_DENIED"):
        fetched(archive)
    monkeypatch.delenv("TOKEN_OF_TEST")
    with pytest.raises(ConfigError, match="TOKEN_OF_TEST"):
        fetched(archive)


def test_real_files_over_dicomweb(archive: Archive, sample_data: Path) -> None:
    folder = sample_data / "dicom" / "rt_utils" / "mock_data"
    archive.files = [(folder / name).read_bytes() for name in ("ct_1.dcm", "ct_2.dcm", "rt.dcm")]
    made = decoded(*[item.files["main"] for item in fetched(archive)])
    assert sorted(len(sample.regions) for sample in samples(made)) == [0, 1]


def test_parts_of_an_answer() -> None:
    kind = 'multipart/related; type="application/dicom"; boundary="a b"'
    body = b"--a b\r\nContent-Type: application/dicom\r\n\r\none\r\n--a\r\n--a b\r\n\r\ntwo\r\n--a b--\r\n"
    assert parts_of(body, kind) == [b"one\r\n--a", b"two"]
    assert parts_of(b"plain", "application/dicom") == [b"plain"]
    with pytest.raises(Transient):
        parts_of(body[:-10], kind)
    with pytest.raises(Terminal):
        parts_of(body, "multipart/related")
