"""Case 48: a home in a bucket whose server fails, stutters, cuts lines and lets credentials expire.

A real S3 server behind a proxy that breaks requests, reading and writing alike, by a seed. Outcome: faults that pass
are waited out and the bucket holds the bytes of a build on a quiet disk; faults that stay end the build with one
message, nothing half visible; uploads in parts that failed are aborted.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3server import KEY, SECRET, Proxy, Server, s3_server
from sources import make_images
from test_disk import RECIPE, build, data

from catalog import catalog
from catalog.manifest import Manifest
from catalog.verify import manifests, problems
from infra import mirror, s3
from infra.errors import MedloomError
from infra.s3 import Bucket
from infra.storage import publish

COUNT = "SELECT count(*) AS n FROM images"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def proxy(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Between this machine, whose working copies lie in a folder of the test's, and the server."""
    with Proxy(server.endpoint) as proxy:
        for name, value in {
            "AWS_ENDPOINT_URL_S3": proxy.endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1", "MEDLOOM_WORK": str(tmp_path / "work"),
        }.items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    make_images(tmp_path / "images", 8)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(root=tmp_path))
    return tmp_path / "recipe.yaml"


def objects(server: Server, bucket: str) -> dict[str, bytes]:
    """Shards, and manifests without their seconds, as they lie in the bucket."""
    found = {}
    for page in server.client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", ()):
            name = entry["Key"].removeprefix("home/")
            if name.startswith(("shards/", "manifests/")):
                found[name] = server.client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
    for name in [name for name in found if name.startswith("manifests/")]:
        manifest = Manifest.model_validate_json(found[name])
        found[name] = manifest.model_copy(update={"seconds": 0.0}).model_dump_json().encode()
    return found


def sometimes(seed: int, share: float, faults: tuple[str, ...]) -> Callable[[str, str, str], str | None]:
    draw = random.Random(seed)
    return lambda method, path, asked: draw.choice(faults) if draw.random() < share else None


@pytest.mark.timeout(240)
def test_faults_that_pass_leave_no_trace(server: Server, proxy: Proxy, recipe: Path, tmp_path: Path) -> None:
    faults = ("busy", "broken", "cut", "hang up", "expired", "slow")
    build(recipe, tmp_path / "calm")
    server.put("stutters", {})
    home = mirror.home_of("s3://stutters/home")
    proxy.breaks = sometimes(2, 0.2, faults)
    build(recipe, home)
    proxy.breaks = None
    print(dict(proxy.broken))
    assert set(proxy.broken) == set(faults), "each was met"
    assert objects(server, "stutters") == data(tmp_path / "calm")
    assert server.uploads("stutters") == []
    assert [line for unit in manifests(home) for line in problems(home, unit)] == []
    assert catalog.query(home, COUNT).to_pylist() == [{"n": 8}]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", ["denied", "broken"])
def test_faults_that_stay_end_the_build_and_it_goes_on_later(
    server: Server, proxy: Proxy, recipe: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the third object on nothing can be written: an error of ours, and the bucket names only what it holds."""
    monkeypatch.setattr(mirror, "PATIENCE_S", 1.0)
    bucket = f"stays-{fault}"
    server.put(bucket, {})
    home = mirror.home_of(f"s3://{bucket}/home")
    written = [0]

    def breaks(method: str, path: str, asked: str) -> str | None:
        written[0] += method in ("PUT", "POST")
        return fault if method in ("PUT", "POST") and written[0] > 3 else None

    proxy.breaks = breaks
    with pytest.raises(MedloomError) as said:
        build(recipe, home)
    assert "Traceback" not in str(said.value) and "bug" not in str(said.value), said.value
    assert f"s3://{bucket}/home" in str(said.value)
    held = objects(server, bucket)
    named = [m for name, m in held.items() if name.startswith("manifests/")]
    assert all(shard.path in held for m in named for shard in Manifest.model_validate_json(m).shards)
    assert not list(home.rglob(".tmp-*"))
    proxy.breaks = None
    build(recipe, home)
    build(recipe, tmp_path / "calm")
    assert objects(server, bucket) == data(tmp_path / "calm")


@pytest.mark.parametrize("fault", ["broken", "cut", "expired", "denied"])
def test_an_upload_in_parts_that_fails_is_aborted(
    server: Server, proxy: Proxy, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PATIENCE_S", 0.5)
    monkeypatch.setattr(s3, "PART", 5 << 20)
    bucket = f"parts-{fault}"
    server.put(bucket, {})
    home = mirror.home_of(f"s3://{bucket}/home")
    path, draft = home / "shards/images/large.parquet", home / "shards/images/.tmp-large"
    draft.parent.mkdir(parents=True)
    bytes_ = os.urandom(11 << 20)
    draft.write_bytes(bytes_)
    proxy.breaks = lambda method, path, asked: fault if method == "PUT" and "partNumber=2" in asked else None
    with pytest.raises(MedloomError):
        publish(draft, path)
    assert proxy.broken[fault] > 0 and not path.exists(), "what is not in the bucket has no name here"
    proxy.breaks = None
    assert server.uploads(bucket) == [] and list(Bucket.at(f"s3://{bucket}", anonymous=False).list()) == []
    publish(draft, path)
    assert server.client.get_object(Bucket=bucket, Key="home/shards/images/large.parquet")["Body"].read() == bytes_


def test_what_comes_half_or_altered_is_never_read(server: Server, proxy: Proxy, recipe: Path, tmp_path: Path) -> None:
    """A machine without a working copy reads a shard over a line that drops, then one whose bytes were changed."""
    server.put("altered", {})
    build(recipe, mirror.home_of("s3://altered/home"))
    os.environ["MEDLOOM_WORK"] = str(tmp_path / "other-machine")
    home = mirror.home_of("s3://altered/home")
    cuts = iter(["cut"] * 4)
    proxy.breaks = lambda method, path, asked: next(cuts, None) if method == "GET" and "/shards/" in path else None
    units = manifests(home)
    assert [line for unit in units for line in problems(home, unit)] == []
    assert proxy.broken["cut"] == 4
    shard = units[0].shards[0]
    (home / shard.path).unlink()
    server.put("altered", {f"home/{shard.path}": b"\0" * shard.bytes})
    assert any(shard.path in line for line in problems(home, units[0]))
