"""A home in a bucket: the same bytes as a folder's, seen from any machine, whatever the store does meanwhile.

A machine is a working folder of its own (MEDLOOM_WORK).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3server import KEY, SECRET, Server, s3_server
from sources import make_images
from test_build import run, shards
from typer.testing import CliRunner

from catalog import catalog, decisions
from catalog.gc import collect, collectable, drop_copies
from catalog.verify import manifests, problems
from flows.cli import app
from infra import mirror
from infra.errors import ConfigError, Terminal
from infra.s3 import Bucket
from infra.settings import pseudonym_key
from infra.storage import file_sha256

RECIPE = """
name: pictures
sources:
  - {{name: pictures, use: images, layout: imagefolder, root: "{root}", modality: XC, identifiers: public, capacity: 5}}
stages:
  - {{use: measure}}
  - {{use: caption}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def machine(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with credentials, whose working copies lie in a folder of the test's."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MEDLOOM_WORK", str(tmp_path / "machine-1"))
    return monkeypatch


def bucket(server: Server, name: str) -> str:
    server.put(name, {})
    return f"s3://{name}/dataset"


def objects(server: Server, address: str) -> dict[str, str]:
    """Key below the address -> hash."""
    name, _, prefix = address.removeprefix("s3://").partition("/")
    pages = server.client.get_paginator("list_objects_v2").paginate(Bucket=name, Prefix=f"{prefix}/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    bodies = {key: server.client.get_object(Bucket=name, Key=key)["Body"].read() for key in keys}
    return {key.removeprefix(f"{prefix}/"): hashlib.sha256(body).hexdigest() for key, body in bodies.items()}


def recipe_in(folder: Path, root: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(root=root))
    return path


def test_a_build_in_a_bucket_has_the_bytes_of_one_in_a_folder_and_any_machine_reads_it(
    server: Server, machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = recipe_in(tmp_path, str(make_images(tmp_path / "images", 12)))
    run(recipe, tmp_path / "home")
    address = bucket(server, "build")
    here = mirror.home_of(address)
    run(recipe, here)
    there = objects(server, address)
    assert {k: v for k, v in there.items() if k.startswith("shards/")} == shards(tmp_path / "home") == shards(here)
    assert {k.partition("/")[0] for k in there} >= {"builds", "manifests", "reports", "catalog.ro.duckdb"}
    assert not [k for k in there if "secret" in k or ".tmp-" in k]

    machine.setenv("MEDLOOM_WORK", str(tmp_path / "machine-2"))
    elsewhere = mirror.home_of(address)
    assert elsewhere != here and mirror.address_of(elsewhere) == address
    counts = "SELECT count(*) AS n, count(DISTINCT sample_id) AS ids FROM texts"
    assert catalog.query(elsewhere, counts).to_pylist() == catalog.query(tmp_path / "home", counts).to_pylist()
    assert not (elsewhere / "shards").exists(), "a question needs no shard"
    build, ran = run(recipe, elsewhere)
    assert (build.number, ran) == (1, []), "what another machine built is built"
    assert not [line for unit in manifests(elsewhere) for line in problems(elsewhere, unit)]

    shutil.rmtree(here)
    machine.setenv("MEDLOOM_WORK", str(tmp_path / "machine-1"))
    make_images(tmp_path / "images", 14)
    build, ran = run(recipe, mirror.home_of(address))
    assert build.number == 2 and ran, "a machine that lost its copy goes on from the bucket"
    assert catalog.query(elsewhere, "SELECT count(*) AS n FROM images").to_pylist() == [{"n": 14}]
    assert catalog.query(elsewhere, "SELECT count(*) AS n FROM images", at=1).to_pylist() == [{"n": 12}]


def test_garbage_goes_from_the_bucket_and_nothing_that_a_snapshot_names(
    server: Server, machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = recipe_in(tmp_path, str(make_images(tmp_path / "images", 6)))
    address = bucket(server, "garbage")
    home = mirror.home_of(address)
    run(recipe, home)
    orphan = "shards/images/pictures/all-000000000000000000000000.parquet"
    server.put("garbage", {f"dataset/{orphan}": b"left by a worker that died"})
    before = objects(server, address)
    make_images(tmp_path / "images", 7)
    run(recipe, home)
    garbage = collect(home, keep=1, grace_s=0)
    after = objects(server, address)
    assert orphan in garbage.shards and orphan not in after
    assert not set(garbage.shards) & set(after) and not set(garbage.manifests) & set(after)
    assert {k for k in after if k.startswith("builds/")} == {"builds/000002.json"}
    went = {"builds/000001.json", *garbage.shards, *garbage.manifests, *garbage.reports}
    assert {k for k in set(before) - set(after) if not k.startswith("segments/")} == went & set(before)
    assert not [line for unit in manifests(home) for line in problems(home, unit)]


def test_uploads_that_never_ended_are_aborted_once_they_are_old(
    server: Server, machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = bucket(server, "uploads")
    home = mirror.home_of(address)
    for key in ("dataset/shards/images/pictures/a.parquet", "dataset/manifests/b.json", "elsewhere/c"):
        begun = server.client.create_multipart_upload(Bucket="uploads", Key=key)
        server.client.upload_part(
            Bucket="uploads", Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=b"left by a process that died"
        )
    assert collect(home, grace_s=3600).uploads == () and len(server.uploads("uploads")) == 3
    told = CliRunner().invoke(app, ["catalog", "gc", "--home", address, "--grace", "0"]).stdout
    assert "would remove 2 uploads that never ended" in told and len(server.uploads("uploads")) == 3
    garbage = collect(home, grace_s=0)
    assert sorted(upload.key for upload in garbage.uploads) == ["manifests/b.json", "shards/images/pictures/a.parquet"]
    assert server.uploads("uploads") == ["elsewhere/c"], "what is not of this home is nobody's business"
    mirror.abort(home, garbage.uploads)  # somebody else was faster
    machine.setattr(Bucket, "uploads", refused)
    assert collectable(home, grace_s=0).uploads == (), "a server that does not tell of them stops nothing"


def refused(_: Bucket) -> None:
    raise Terminal("ACCESS_DENIED", "not allowed")


def test_copies_that_nobody_used_go_only_where_the_bucket_has_the_same_bytes(
    server: Server, machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = bucket(server, "copies")
    home = mirror.home_of(address)
    hashed: list[str] = []
    with machine.context() as patch:
        patch.setattr(mirror, "file_sha256", lambda path: hashed.append(path.name) or file_sha256(path))
        run(recipe_in(tmp_path, str(make_images(tmp_path / "images", 6))), home)
    before, kept = shards(home), Bucket.at(address, anonymous=False)
    assert {name: head.sha256 for name in before if (head := kept.head(name))} == before
    assert hashed and not [name for name in hashed if name.endswith(".parquet")], "a shard is hashed once, when written"
    changed, lost, young, *rest = sorted(before)
    for name in before:
        os.utime(home / name, (0, 0) if name != young else None)
    data = bytearray((home / changed).read_bytes())
    data[len(data) // 2] ^= 1
    (home / changed).write_bytes(bytes(data))
    os.utime(home / changed, (0, 0))
    server.remove("copies", f"dataset/{lost}")
    gc = ["catalog", "gc", "--home", address, "--copies", "1"]
    assert f"would remove {len(rest) + 1} copies on this machine" in CliRunner().invoke(app, gc).stdout
    assert all((home / name).exists() for name in before)
    assert f"removed {len(rest)} copies on this machine" in CliRunner().invoke(app, [*gc, "--yes"]).stdout
    assert rest and set(shards(home)) == {changed, lost, young}
    server.put("copies", {f"dataset/{lost}": (home / lost).read_bytes()})
    (home / changed).unlink()
    assert not [line for unit in manifests(home) for line in problems(home, unit)], "what is asked for is fetched again"
    assert shards(home) == before
    with pytest.raises(ConfigError, match="no copy of a bucket"):
        drop_copies(tmp_path / "home", 0)


def test_reviewers_on_two_machines_lose_no_decision(
    server: Server, machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = bucket(server, "review")
    machine.setenv("MEDLOOM_DEID_KEY", "the same everywhere")
    homes = [mirror.home_of(address)]
    machine.setenv("MEDLOOM_WORK", str(tmp_path / "machine-2"))
    homes.append(mirror.home_of(address))
    for turn in range(4):
        home = homes[turn % 2]
        said = decisions.Decision(
            reviewer=decisions.reviewer(home, f"reader {turn % 2}"), sample_id="s", about=f"text:{turn}",
            seen="0" * 24, verdict="accept",
        )
        assert decisions.decide(home, said) == turn + 1
    assert decisions.read(homes[0]) == decisions.read(homes[1]) and decisions.count(homes[0]) == 4
    decisions.withdraw(homes[0], [2, 4])
    for home in homes:
        assert [d.about for d in decisions.read(home)] == ["text:0", "text:2"]
    assert decisions.decide(homes[1], said) == 5, "no number is given twice"


def test_a_source_in_a_bucket_is_read_and_followed(
    server: Server, machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = make_images(tmp_path / "images", 6)
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.png"))}
    server.put("source", {f"set/{name}": data for name, data in files.items()})
    recipe = recipe_in(tmp_path, "s3://source/set")
    run(recipe, tmp_path / "home")
    assert catalog.query(tmp_path / "home", "SELECT count(*) AS n FROM images").to_pylist() == [{"n": 6}]
    names = sorted(files)
    server.put("source", {f"set/{names[0]}": files[names[1]][:-1] + b"\x82", "set/healthy/more.png": files[names[2]]})
    server.remove("source", f"set/{names[3]}")
    run(recipe, tmp_path / "home")
    found = catalog.query(tmp_path / "home", "SELECT source_item FROM images ORDER BY 1").column(0).to_pylist()
    assert names[3] not in found and "healthy/more.png" in found
    with pytest.raises(ConfigError, match="nothing there"):
        mirror.source("s3://source/nothing-here")


def test_a_working_copy_holds_no_secret_of_its_own(
    server: Server, machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = mirror.home_of(bucket(server, "secrets"))
    machine.delenv("MEDLOOM_DEID_KEY", raising=False)
    with pytest.raises(ConfigError, match="MEDLOOM_DEID_KEY"):
        pseudonym_key(home)


def test_an_address_that_is_none_leaves_nothing(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        mirror.home_of("s3://Big_Name")
    assert not (tmp_path / "machine-1").exists()
    assert mirror.home_of("folder") == Path("folder") and mirror.remote(tmp_path) is None
