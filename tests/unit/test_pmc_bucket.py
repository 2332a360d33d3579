"""Articles of a bucket of PMC's layout, on a real S3 server: what is listed and fetched, and what becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pmcbucket import ARTICLES, NAME, SCHEMA, Place, Version, bucket_of, md5, objects, real_article
from s3server import Proxy, Server, s3_server

from connectors.pmc import Params, read
from connectors.pmc.bucket import Kept
from connectors.pmc.index import Index, place_of
from infra.errors import ConfigError, Dropped, Terminal, Transient
from infra.keys import split_by_key
from infra.s3 import Bucket

FIRST, SECOND, THIRD = "2026-01-18T01-00Z", "2026-01-19T01-00Z", "2026-01-20T01-00Z"
WANTED = [1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
"""Articles of which something is listed by default: all but TDM and those without a licence."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def place(server: Server, proxy: Proxy, tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    name = "pmc-" + md5(request.node.name.encode())[:12]
    return Place(server, proxy, tmp_path, name)


def ids_file(tmp_path: Path, *numbers: int) -> str:
    path = tmp_path / "ids.txt"
    path.write_text("# of a search\n" + "".join(f"PMC{number}\n" for number in numbers))
    return str(path)


def metadata_of(*versions: Version) -> list[str]:
    return sorted(f"/{version.metadata_key}" for version in versions)


def test_a_whole_bucket_becomes_items_each_with_its_outcome(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.publish(ARTICLES, FIRST)
    with caplog.at_level("INFO"):
        codes = place.codes()
    assert "20 metadata fetched; versions: licence 2, retracted 1, superseded 2, unreadable 1, wanted 16" in caplog.text
    assert codes == {
        **{f"PMC{n}.1#f{f}": "" for n in (1, 5, 7, 9, 13, 14, 17, 18, 19, 20) for f in (1, 2)},
        "PMC2.10#f1": "", "PMC2.10#f2": "", "PMC2.9": "SUPERSEDED", "PMC2.1": "SUPERSEDED", "PMC3.1": "RETRACTED",
        "PMC6.1#f1": "", "PMC6.1#f2": "CHECKSUM", "PMC10.1": "NO_XML", "PMC11.1#f1": "", "PMC11.1#f2": "FILE_MISSING",
        "PMC12.1": "NO_FIGURES", "PMC15.1": "METADATA_UNREADABLE", "PMC16.1": "XML_UNREADABLE",
    }
    items = {item.id: item for item in place.items()}
    versions = {version.entry: version for version in ARTICLES}
    for name, item in items.items():
        entry, _, figure = name.partition("#f")
        assert item.inside == (entry if figure else None) and item.group == item.patient == entry.partition(".")[0]
        if item.error is None:
            version = versions[entry]
            assert item.files["main"] == version.pictures[f"ex-{version.number}-g{figure}.jpg"]
    first = items["PMC1.1#f1"]
    assert [text.text for text in first.texts] == ["Caption 1 of PMC1.1.", "See Figure 1."]
    row = first.facts["article"]
    assert (row["article_id"], row["version"], row["retracted"], row["licence"]) == ("PMC1", "1", False, "CC-BY-4.0")
    assert items["PMC2.10#f1"].facts["source_version"] == "10"
    conflict = items["PMC9.1#f1"]
    assert conflict.licences is not None and conflict.licences.image is None
    assert conflict.facts["article"]["licence_agrees"] is False and row["licence_agrees"] is True
    kinds = {type(item.error) for item in items.values() if item.id in ("PMC2.9", "PMC3.1", "PMC12.1")}
    assert kinds == {Dropped}
    assert isinstance(items["PMC6.1#f2"].error, Transient) and isinstance(items["PMC11.1#f2"].error, Terminal)
    assert "version 10" in str(items["PMC2.9"].error)


def test_entries_are_article_versions_and_say_nothing_of_this_machine(place: Place, tmp_path: Path) -> None:
    place.publish(ARTICLES, FIRST)
    one = place.listed(capacity=5)
    place.home = tmp_path / "elsewhere"
    place.home.mkdir()
    other = place.listed(capacity=5)
    assert [p.key for p in one] == [p.key for p in other] and len(one) > 3
    for partition in one:
        entries = [entry for entry, _ in partition.contents]
        assert entries == [ref["id"] for ref in partition.refs]
        assert str(tmp_path) not in str(partition.contents)
        items = list(read(partition, place.params(capacity=5)))
        assert list(dict.fromkeys(item.inside or item.id for item in items)) == entries
    assert {entry for p in one for entry, _ in p.contents} >= {f"PMC{n}.1" for n in WANTED}
    things = [(int(ref["group"][3:]), ref["id"]) for p in one for ref in p.refs]
    split = split_by_key(things, lambda thing: f"PMC{thing[0]}", 5)
    assert {p.name: [ref["id"] for ref in p.refs] for p in one} == {
        name: [entry for _, entry in leaf] for name, leaf in split.items()
    }


def test_a_second_listing_and_a_second_reading_fetch_nothing(place: Place) -> None:
    place.publish(ARTICLES, FIRST)
    first = place.listed()
    newest = [v for v in ARTICLES if (v.number, v.version) not in ((2, 1), (2, 9))]
    fetched = [path.removeprefix(f"/{place.name}") for path in place.proxy.taken()]
    assert [path for path in fetched if path.startswith("/metadata/")] == metadata_of(*newest)
    assert place.listed() == first and place.proxy.taken() == []
    place.codes()
    assert place.proxy.taken() != []
    place.codes()
    # what is not there or is wrong is asked for again, nothing else
    assert set(place.proxy.taken()) == {
        f"/{place.name}/PMC6.1/ex-6-g2.jpg", f"/{place.name}/PMC11.1/ex-11-g2.jpg",
    }
    assert place.proxy.most <= 4


def test_a_new_inventory_costs_what_changed_and_tells_what_became_of_the_rest(place: Place) -> None:
    place.publish(ARTICLES, FIRST)
    before = {p.name: p for p in place.listed(capacity=1)}
    place.codes(capacity=1)
    place.proxy.taken()
    after: dict[int, Version] = {v.number: v for v in ARTICLES if v.number not in (2, 5)}
    changed, new = replace(after[1], seed=1), Version(30)
    retracted, relicensed = replace(after[19], retracted=True), replace(after[20], licence="CC BY-ND")
    closed, newer = replace(after[17], licence=None), Version(18, 2)
    news = (changed, new, retracted, relicensed, closed, newer)
    same = [v for v in ARTICLES if v.number not in (1, 5, 17, 19, 20)]
    place.publish([*same, *news], SECOND)
    listing = {p.name: p for p in place.listed(capacity=1)}
    asked = [path.removeprefix(f"/{place.name}") for path in place.proxy.taken()]
    assert [path for path in asked if path.startswith("/metadata/")] == metadata_of(*news)
    keys = {p.key for p in before.values()}
    rebuilt = {ref["id"] for p in listing.values() if p.key not in keys for ref in p.refs}
    assert rebuilt == {"PMC1.1", "PMC5.1", "PMC30.1", "PMC17.1", "PMC18.1", "PMC18.2", "PMC19.1", "PMC20.1"}
    codes = place.codes(capacity=1)
    assert {n: codes[n] for n in codes if n.split("#")[0] in rebuilt} == {
        "PMC1.1#f1": "", "PMC1.1#f2": "", "PMC30.1#f1": "", "PMC30.1#f2": "", "PMC5.1": "REMOVED",
        "PMC17.1": "DESELECTED", "PMC18.1": "SUPERSEDED", "PMC18.2#f1": "", "PMC18.2#f2": "", "PMC19.1": "RETRACTED",
        "PMC20.1#f1": "", "PMC20.1#f2": "",
    }
    pictures = {path.removeprefix(f"/{place.name}/") for path in place.proxy.taken()}
    wrong = {"PMC6.1/ex-6-g2.jpg", "PMC11.1/ex-11-g2.jpg"}
    # the pictures of a relicensed article are known by their MD5, and so is an XML that did not change
    own = {key for v in (changed, new, newer) for key in objects(v) if key.endswith((".jpg", ".xml"))}
    assert pictures - wrong == own - {"PMC1.1/PMC1.1.xml"} | {"PMC20.1/PMC20.1.xml"}
    told = {item.id: str(item.error) for item in place.items(capacity=1)}
    assert told["PMC17.1"] == "DESELECTED: its licence was CC0 and is not stated, which is not selected"
    # the day after nothing happens: what became of them is still told, and nothing changes
    place.publish([*same, *news], THIRD)
    assert [p.key for p in place.listed(capacity=1)] == [p.key for p in listing.values()]
    assert [path for path in place.proxy.taken() if "/metadata/PMC" in path] == []
    # an older inventory may be asked for by name, and what it has again is wanted again
    again = place.codes(capacity=1, inventory=FIRST)
    assert again["PMC5.1#f1"] == ""  # gone from the bucket, but all of it was kept
    assert again["PMC30.1"] == "REMOVED"
    with pytest.raises(ConfigError, match=rf"no inventory 2020-01-01T00-00Z.*{THIRD}"):
        place.listed(inventory="2020-01-01T00-00Z")


def test_licences_versions_dates_and_ids_are_decided_before_anything_is_fetched(place: Place, tmp_path: Path) -> None:
    place.publish(ARTICLES, FIRST)
    everything = ("commercial", "noncommercial", "other", "TDM")

    def entries(**more: Any) -> set[str]:
        return {entry for partition in place.listed(**more) for entry, _ in partition.contents}

    unreadable = {"PMC15.1"}
    assert entries(licences=("noncommercial",)) == {"PMC7.1"} | unreadable
    assert entries(licences=("TDM",)) == {"PMC4.1"} | unreadable
    assert entries(licences=("other",)) == {"PMC8.1"} | unreadable
    assert entries(licences=("CC0", "CC-BY-NC-4.0")) == {"PMC7.1", "PMC17.1"} | unreadable
    assert entries(licences=everything) == {v.entry for v in ARTICLES}
    assert entries(published_to="2023-12-31") == {"PMC17.1"} | unreadable
    assert "PMC18.1" in entries(published_from="2024-02-01") and "PMC17.1" not in entries(published_from="2024-02-01")
    place.proxy.taken()
    place.home = tmp_path / "fresh"
    place.home.mkdir()
    picked = {"ids": ids_file(tmp_path, 2, 7, 999), "versions": "all"}
    assert entries(**picked) == {"PMC2.1", "PMC2.9", "PMC2.10", "PMC7.1"}
    metadata = [path for path in place.proxy.taken() if "/metadata/PMC" in path]
    assert len(metadata) == 4
    order = [ref["id"] for partition in place.listed(**picked) for ref in partition.refs if ref["group"] == "PMC2"]
    assert order == ["PMC2.10", "PMC2.9", "PMC2.1"]
    (tmp_path / "ids.txt").write_text("7\n")
    gone = {item.id: str(item.error) for item in place.items(**picked) if item.error}
    assert gone == {f"PMC2.{v}": "DESELECTED: it is no longer among the ids" for v in (1, 9, 10)}
    (tmp_path / "ids.txt").write_text("PMC7\nsome words\n")
    with pytest.raises(ConfigError, match="line 2: 'some words'"):
        place.listed(**picked)


def test_what_only_the_xml_tells_is_decided_before_a_picture_is_fetched(place: Place, tmp_path: Path) -> None:
    place.publish(ARTICLES, FIRST)
    ids = ids_file(tmp_path, 1, 13, 14, 18)
    chosen = {
        "keywords": {"keywords": ("CT", "mri")}, "article_types": {"article_types": ("Case-Report",)},
        "journals": {"journals": ("facts",)}, "dates": {"published_from": "2024-03-01"},
    }
    codes = {name: place.codes(ids=ids, **how) for name, how in chosen.items()}
    kept = {name: sorted(item for item, code in found.items() if not code) for name, found in codes.items()}
    assert kept == {
        "keywords": ["PMC1.1#f1", "PMC1.1#f2", "PMC13.1#f1", "PMC13.1#f2"],
        "article_types": ["PMC13.1#f1", "PMC13.1#f2"], "journals": ["PMC14.1#f1", "PMC14.1#f2"],
        "dates": [f"PMC{n}.1#f{f}" for n in (1, 13, 14, 18) for f in (1, 2)],  # of PMC18 only the XML knows the month
    }
    place.proxy.taken()
    place.home = tmp_path / "fresh"
    place.home.mkdir()
    items = place.items(ids=ids, keywords=("none of these",))
    assert [path for path in place.proxy.taken() if path.endswith(".jpg")] == []
    assert {item.id for item in items} == {"PMC1.1", "PMC13.1", "PMC14.1", "PMC18.1"}
    for item in items:
        assert isinstance(item.error, Dropped) and item.error.code == "NOT_SELECTED" and "keywords" in str(item.error)
    plain, filtered = place.listed(ids=ids), place.listed(ids=ids, keywords=("CT",))
    assert [p.name for p in plain] == [p.name for p in filtered] and plain[0].key != filtered[0].key


def test_manuscripts_for_text_mining_have_no_pictures_and_no_open_licence(place: Place) -> None:
    place.publish([Version(4, licence="TDM", media=False)], FIRST)
    items = place.items(licences=("TDM",))
    assert [(item.id, getattr(item.error, "code", "")) for item in items] == [
        ("PMC4.1#f1", "FILE_MISSING"), ("PMC4.1#f2", "FILE_MISSING"),
    ]
    assert all(item.inside == "PMC4.1" for item in items)
    with pytest.raises(ConfigError, match=r"no article is wanted [(]licence 1[)]"):
        place.listed()


def test_columns_are_read_from_the_manifest_and_files_are_checked(place: Place) -> None:
    place.publish(ARTICLES, FIRST, columns=("ETag", "IsLatest", *SCHEMA[:3]))
    assert len({entry for p in place.listed() for entry, _ in p.contents}) == len(WANTED) + 2
    broken = {k: v for k, v in bucket_of(ARTICLES[:3], SECOND).items() if k.startswith("inventory-reports/")}
    data = next(key for key in broken if key.endswith(".gz"))
    place.server.put(place.name, {**broken, data: broken[data][:-9]})
    with pytest.raises(ConfigError, match=r"cannot be listed.*MD5"):
        place.listed()
    place.server.put(place.name, bucket_of([], SECOND))
    with pytest.raises(ConfigError, match="names no metadata"):
        place.listed()
    place.server.put(place.name, bucket_of([], SECOND, columns=("Bucket", "Size")))
    with pytest.raises(ConfigError, match="are no columns"):
        place.listed()
    assert len({entry for p in place.listed(inventory=FIRST) for entry, _ in p.contents}) == len(WANTED) + 2


def test_a_listing_killed_in_the_middle_fetches_only_the_rest(place: Place, tmp_path: Path) -> None:
    place.publish(ARTICLES, FIRST)
    reached, release, seen = threading.Event(), threading.Event(), []

    def stall(path: str) -> str | None:
        if "/metadata/PMC" in path:
            seen.append(path)
            if len(seen) > 12:
                reached.set()
                release.wait(60)
        return None

    place.proxy.fault = stall
    code = (
        "import sys; from pathlib import Path\nimport connectors.pmc.index as index\n"
        "from connectors.pmc import Params, list_partitions\nfrom infra.fileindex import FileIndex\nindex.BATCH = 5\n"
        f"list(list_partitions('pmc', Params(root='s3://{place.name}', endpoint=sys.argv[1], in_flight=4), "
        "FileIndex(Path(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", code, place.proxy.endpoint, str(tmp_path / "files.sqlite")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    assert reached.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    release.set()
    place.proxy.fault = lambda path: None
    place.proxy.taken()
    listing = place.listed()
    fetched = [path for path in place.proxy.taken() if "/metadata/PMC" in path]
    assert len(fetched) == len({v.number for v in ARTICLES}) - 10  # two batches of five were kept
    place.home = tmp_path / "fresh"
    place.home.mkdir()
    assert [p.key for p in place.listed()] == [p.key for p in listing]


def test_a_reading_killed_in_the_middle_fetches_only_the_rest(place: Place) -> None:
    place.publish(ARTICLES, FIRST)
    (partition,) = place.listed(capacity=100)
    items = read(partition, place.params())
    for _ in range(10):
        next(items)
    items.close()  # type: ignore[attr-defined]
    first = place.proxy.taken()
    whole = list(read(partition, place.params()))
    missing = {f"/{place.name}/PMC6.1/ex-6-g2.jpg", f"/{place.name}/PMC11.1/ex-11-g2.jpg"}
    assert set(place.proxy.taken()) & set(first) <= missing
    again = list(read(partition, place.params(cache_gb=0)))
    told = [[(item.id, item.files, item.facts, str(item.error)) for item in items] for items in (again, whole)]
    assert told[0] == told[1]


def test_metadata_that_cannot_be_fetched_costs_its_article_and_is_tried_again(place: Place) -> None:
    place.publish(ARTICLES[:6], FIRST)
    place.proxy.fault = lambda path: "cut" if path.endswith("metadata/PMC1.1.json") else None
    items = {item.id: item for item in place.items()}
    assert isinstance(items["PMC1.1"].error, Transient) and items["PMC1.1"].error.code == "SOURCE_UNREADABLE"
    assert items["PMC2.10#f1"].error is None
    place.proxy.fault = lambda path: None
    assert place.codes()["PMC1.1#f1"] == ""


def test_a_lost_or_damaged_memory_costs_time_only(place: Place, tmp_path: Path) -> None:
    place.publish(ARTICLES, FIRST)
    keys = [p.key for p in place.listed()]
    (index,) = (tmp_path / "pmc-buckets").glob("*.sqlite")
    index.write_bytes(b"no database" * 1000)
    assert [p.key for p in place.listed()] == keys


def test_what_was_fetched_is_kept_within_its_limit_and_checked(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 50_000)
    things = [bytes([n]) * 10_000 for n in range(12)]
    for n, data in enumerate(things):
        kept.put(md5(data), data)
        os.utime(tmp_path / md5(data)[:2] / md5(data), (n, n))
        kept.get(md5(things[0]))  # used all the time
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) <= 50_000
    assert kept.get(md5(things[0])) == things[0] and kept.get(md5(things[11])) == things[11]
    assert kept.get(md5(things[1])) is None
    path = tmp_path / md5(things[0])[:2] / md5(things[0])
    path.write_bytes(b"altered")
    assert kept.get(md5(things[0])) is None


def test_a_wrong_root_is_the_users_mistake(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        place.listed()
    place.server.put(place.name, {"readme.txt": b""})
    with pytest.raises(ConfigError, match="no inventory with a manifest"):
        place.listed()
    with pytest.raises(ValueError, match="only for a root s3://BUCKET"):
        Params(root=str(tmp_path), keywords=("CT",))
    with pytest.raises(ValueError, match="'open' is neither commercial"):
        Params(root="s3://pmc-oa-opendata", licences=("open",))


def test_leaves_are_those_of_split_by_key(tmp_path: Path) -> None:
    """For many more articles than a bucket of a test holds."""
    with Index(tmp_path, Bucket(NAME)) as index:
        index._selection = "s"
        versions = [(n, v) for n in range(1, 2001) for v in range(1, 2 + n % 3)]
        rows = [("s", place_of(n), v, n, "REMOVED", "", None, 1) for n, v in versions]
        index._db.executemany("INSERT INTO listed VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        for capacity in (1, 20, 5000):
            things = sorted((f"PMC{row[3]}", -row[2]) for row in rows)
            expected = split_by_key(things, lambda thing: thing[0], capacity)
            found = {name: [(one.article, -one.version) for one in leaf] for name, leaf in index.leaves(capacity)}
            assert found == expected


def test_real_articles_come_as_they_are(place: Place, sample_data: Path) -> None:
    folder = sample_data / "pmc/article_dirs"
    versions = [real_article(folder / name, 100 + n) for n, name in enumerate(("ijm-00202", "plosone-0091296"))]
    place.publish(versions, FIRST)
    items = place.items(licences=("commercial",))
    pictures = [item for item in items if item.error is None]
    assert len(pictures) >= 8 and {item.inside for item in pictures} == {v.entry for v in versions}
    assert {item.facts["article_id"] for item in pictures} == {"PMC100", "PMC101"}  # of which their XML says nothing
    names = {data: name for version in versions for name, data in version.pictures.items()}
    assert all(item.files["main"] in names for item in pictures)
