"""The compose file: what it may never hold, and that a real validator accepts it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "deploy"
COMPOSE = FOLDER / "compose.yaml"
STACK: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
SECRET = re.compile(r"(?i)(password|passwd|secret|token|auth_string|_key)$")


@pytest.mark.parametrize("name", STACK["services"])
def test_a_service_is_closed_watched_and_pinned(name: str) -> None:
    service = STACK["services"][name]
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in service.get("ports", ()))
    assert service["healthcheck"]["test"] and service["restart"] == "unless-stopped"
    assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", service["image"]), service["image"]
    assert not {"privileged", "network_mode", "pid", "env_file"} & set(service)
    for key, value in service.get("environment", {}).items():
        assert not SECRET.search(key), f"{key} stands in the file"
        if key.endswith("_FILE") and SECRET.search(key.removesuffix("_FILE")):
            assert value.removeprefix("/run/secrets/") in service["secrets"]
    for other in service.get("depends_on", {}).values():
        assert other == {"condition": "service_healthy"}


def test_secrets_are_files_outside_and_no_address_has_a_password() -> None:
    assert all(re.fullmatch(r"\$\{MEDLOOM_SECRETS:-\./secrets\}/\w+(\.json)?", s["file"])
               for s in STACK["secrets"].values())
    assert not re.search(r"://[^/\s]*:[^/\s]*@", COMPOSE.read_text())
    assert {"PREFECT_SERVER_API_AUTH_STRING_FILE"} < set(STACK["services"]["prefect"]["environment"])
    example = (FOLDER / "compose.env.example").read_text()
    named = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    assert named == set(re.findall(r"(?m)^(\w+)=", example))


def test_the_image_is_pinned_and_runs_as_nobody_in_particular() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    (base,) = [line for line in lines if line.startswith("FROM ")]
    assert re.fullmatch(r"FROM python:3\.\d+\.\d+-[\w-]+", base)
    assert any(line.startswith("USER ") and not line.startswith("USER root") for line in lines)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (torch,) = [need for need in extras["embed"] if need.startswith("torch==")]
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 4 and torch in installs[1] and installs[3].endswith("--no-build-isolation . \\")
    assert all("--require-hashes" in installs[n] for n in (0, 2))


def test_a_real_validator_accepts_it(tmp_path: Path) -> None:
    """`docker compose`, or Debian's docker-compose; both parse without a daemon."""
    validator = _validator()
    if validator is None:
        pytest.skip("nothing here parses compose files: apt-get install docker-compose")
    checked = subprocess.run([*validator, "-f", COMPOSE, "config"], capture_output=True, text=True, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert set(yaml.safe_load(checked.stdout)["services"]) == set(STACK["services"])
    broken = tmp_path / "compose.yaml"
    broken.write_text(COMPOSE.read_text().replace("healthcheck:", "healthcheek:", 1))
    assert subprocess.run([*validator, "-f", broken, "config"], capture_output=True).returncode != 0


def _validator() -> list[str] | None:
    if found := shutil.which("docker"):
        known = subprocess.run([found, "compose", "version"], capture_output=True)
        if known.returncode == 0:
            return [found, "compose"]
    return [found] if (found := shutil.which("docker-compose")) else None
