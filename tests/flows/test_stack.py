"""The whole stack of the compose file, each service from its package, on loopback: from a deployment to a snapshot.

Commands, environments and health checks are the file's own; only what a container would give them is replaced: names
of hosts, ports, and the folders of volumes and secrets.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import postgres
import pytest
import s3server
import yaml
from imagefolders import put
from prefectserver import AUTH, Server, clean_environment, listening, medloom, started, tree, wait_for

STACK: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[2] / "infra" / "deploy" / "compose.yaml").read_text()
)["services"]
RECIPE = """
name: tiny
sources:
  - {{name: photos, use: images, layout: imagefolder, root: {root}, modality: XC, identifiers: public}}
stages:
  - {{use: caption}}
"""


@dataclass
class Stack:
    """The services that run, and how what the compose file says reads here."""

    root: Path
    places: dict[str, str]
    words: dict[str, str]

    def here(self, value: str) -> str:
        """A value of the file, on this machine."""
        if value in self.words:
            return self.words[value]
        for there, place in self.places.items():
            value = value.replace(there, place)
        return value

    def environment(self, service: str) -> dict[str, str]:
        return {name: self.here(value) for name, value in STACK[service]["environment"].items()}

    @contextmanager
    def service(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A service of our own image: its command, until its health check passes and to the end of the block."""
        program, *words = STACK[name]["command"]
        assert program == "medloom"
        log = self.root / f"{name}.log"
        environment = clean_environment() | self.environment(name)
        with started(log, environment, *map(self.here, words)) as process:
            _, python, *check = STACK[name]["healthcheck"]["test"]
            assert python == "python"

            def well() -> bool:
                assert process.poll() is None, log.read_text()
                asked = subprocess.run([sys.executable, *map(self.here, check)], capture_output=True)
                return asked.returncode == 0

            wait_for(f"{name} is well", 150, well)
            yield process


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Server]]:
    root = tmp_path_factory.mktemp("stack")
    secrets = root / "secrets"
    secrets.mkdir()
    (secrets / "prefect_auth").write_text(AUTH)
    (secrets / "postgres_password").write_text(postgres.PASSWORD)
    (secrets / "s3_credentials").write_text(
        f"[default]\naws_access_key_id = {s3server.KEY}\naws_secret_access_key = {s3server.SECRET}\n"
    )
    ui, reports, health = map(str, s3server.free_ports(3))
    with ExitStack() as running:
        database = running.enter_context(postgres.postgres(root / "postgres"))
        assert STACK["postgres"]["environment"]["POSTGRES_USER"] == postgres.USER
        database.url(STACK["postgres"]["environment"]["POSTGRES_DB"])
        bucket = running.enter_context(s3server.s3_server(root / "s3"))
        places = {
            "/run/secrets/": f"{secrets}/", "/state": str(root / "state"), "/copies": str(root / "copies"),
            "${MEDLOOM_HOME:-": "", "dataset}": "dataset", "http://s3:8333": bucket.endpoint,
            "http://127.0.0.1:8333": bucket.endpoint, "prefect:4200": f"127.0.0.1:{ui}", "0.0.0.0": "127.0.0.1",
            ":4200": f":{ui}", ":4201": f":{reports}", " 4201": f" {reports}", ":8080": f":{health}",
        }
        words = {"postgres": "127.0.0.1", "5432": str(database.port), "4200": ui, "4201": reports, "8080": health}
        made = Stack(root, places, words)
        urllib.request.urlopen(made.here(STACK["s3"]["healthcheck"]["test"][-1]), timeout=10).close()
        prefect = running.enter_context(made.service("prefect"))
        running.enter_context(made.service("worker"))
        running.enter_context(made.service("reports"))
        for number in range(3):
            put(root / "pictures" / "kind" / f"{number}.png", number)
        (root / "recipe.yaml").write_text(RECIPE.format(root=root / "pictures"))
        api, links = f"http://127.0.0.1:{ui}/api", f"http://127.0.0.1:{reports}"
        yield made, Server(api, links, root, root / "recipe.yaml", prefect, AUTH)


def test_a_deployment_of_the_stack_makes_a_snapshot_in_the_bucket(
    stack: tuple[Stack, Server], tmp_path: Path
) -> None:
    made, server = stack
    environment = made.environment("worker")
    bucket = [sys.executable, "-c", "import boto3; boto3.client('s3').create_bucket(Bucket='medloom')"]
    subprocess.run(bucket, env=clean_environment() | environment, check=True)  # as COMPOSE.md says
    words = ["deploy", server.recipe, "--runner", "inline", "--cron", "0 3 * * *"]
    deployed = medloom(*words, **environment)
    assert deployed.returncode == 0, deployed.stderr
    assert server.deployment()["parameters"]["home"] == "s3://medloom/dataset"
    run = server.run()
    assert server.ended(run, 150) == ("COMPLETED", ""), server.log(run)

    words = ["sql", "SELECT count(*) AS n, count(caption) AS captions FROM samples", "--format", "csv"]
    elsewhere = environment | {"MEDLOOM_WORK": str(tmp_path / "another machine's")}
    asked = medloom(*words, **elsewhere)
    assert asked.stdout.split() == ["n,captions", "3,3"], asked.stderr
    held = s3server.Server(environment["AWS_ENDPOINT_URL_S3"]).client.list_objects_v2(Bucket="medloom")["Contents"]
    assert {"dataset/builds/000001.json", "dataset/catalog.ro.duckdb"} <= {found["Key"] for found in held}
    link = server.artifacts(run)["report"]["data"].partition("](")[2].partition(")")[0]
    assert link.startswith(server.reports)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(link)
    request = urllib.request.Request(link, headers=basic(AUTH))
    with urllib.request.urlopen(request) as page:
        assert b"tiny" in page.read()


def test_the_server_asks_who_is_there_and_keeps_its_records_in_postgres(stack: tuple[Stack, Server]) -> None:
    made, server = stack
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server.api}/admin/version")
    assert not list((made.root / "state").rglob("*.db"))
    found = subprocess.run(
        ["grep", "-rl", "--include=*.log", "-e", AUTH, "-e", postgres.PASSWORD, "-e", s3server.SECRET, made.root],
        capture_output=True, text=True,
    )
    assert found.stdout == ""
    assert all(address.startswith("127.0.0.1:") for address in listening(tree(os.getpid())))


def basic(auth: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(auth.encode()).decode()}"}
