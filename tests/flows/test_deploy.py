"""Deployments as code: schedules, pools, limits, automations, secrets as blocks, and what a worker makes of them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from imagefolders import put
from prefectserver import AUTH, Server, environment_of, medloom, processes, shared, wait_for, working

from flows import automations
from flows.deploy import Wanted, _limits, _pairs, checked, make_deployment, refuse_secrets
from flows.server import may_listen, read_secrets
from infra.errors import ConfigError

VALUE = "planted-block-value-1234"
RECIPE = """
name: tiny
sources:
  - {{name: photos, use: images, layout: imagefolder, root: {root}, modality: XC, identifiers: public}}
stages:
  - {{use: caption}}
"""


def write_recipe(root: Path, pictures: int = 2) -> Path:
    """A recipe over a few small pictures."""
    for number in range(pictures):
        put(root / "pictures" / "kind" / f"{number}.png", number)
    (root / "tiny.yaml").write_text(RECIPE.format(root=root / "pictures"))
    return root / "tiny.yaml"


@pytest.mark.parametrize("change", [
    "stages.caption.options.api_key=abc", "vars.token=abc", "stages.caption.options.base_url=https://me:pw@host/v1",
    f"vars.a=sk-{'x' * 20}", "vars.deid=planted-in-environment",
])
def test_a_secret_in_a_parameter_is_refused_unsaid(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOOM_DEID_KEY", "planted-in-environment")
    monkeypatch.setenv("SOME_API_KEY", "planted-in-environment")
    with pytest.raises(ConfigError, match="looks like a secret") as refused:
        refuse_secrets([change])
    assert change.partition("=")[2] not in str(refused.value)


def test_other_parameters_are_no_secrets() -> None:
    refuse_secrets(["stages.caption.options.api_key_env=MY_KEY", "stages.caption.options.max_tokens=100",
                    "stages.caption.options.base_url=http://127.0.0.1:8000/v1", "vars.root=/data/key"])


@pytest.mark.parametrize(("wrong", "says"), [
    ({"cron": "every day"}, "no cron line"), ({"overlap": "both"}, "none of cancel-new, enqueue"),
    ({"dead_after_s": 20}, "heartbeats are 30 s apart"), ({"recipe": "nowhere"}, "no recipe"),
    ({"changes": ["vars.password=x"]}, "looks like a secret"),
])
def test_a_wrong_deployment_is_refused_before_a_server_is_asked(
    wrong: dict[str, Any], says: str, tmp_path: Path
) -> None:
    right = {"recipe": str(write_recipe(tmp_path)), "home": tmp_path, "cron": "0 3 * * *"}
    assert checked(Wanted(**right))[0] == "tiny"
    with pytest.raises(ConfigError, match=says):
        checked(Wanted(**(right | wrong)))


def test_limits_and_secrets_have_a_form() -> None:
    assert _limits(["llm=2", "ncbi=1"]) == {"llm": 2, "ncbi": 1}
    for words in (["llm"], ["llm=none"], ["llm=0"], ["=3"]):
        with pytest.raises(ConfigError):
            _limits(words)
    with pytest.raises(ConfigError, match="VARIABLE=BLOCK is the form"):
        _pairs(["OPENAI_API_KEY"], "--secret VARIABLE=BLOCK")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_no_server_listens_elsewhere_unless_it_asks_who_is_there(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    for here in ("127.0.0.1", "localhost", "::1"):
        may_listen(here)
    with pytest.raises(ConfigError, match="PREFECT_SERVER_API_AUTH_STRING"):
        may_listen(host)
    refused = medloom("server", "--host", host, "--port", "1")
    assert refused.returncode == 2 and "nobody is asked" in refused.stderr and "Traceback" not in refused.stderr
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", AUTH)
    may_listen(host)


def test_prefects_secrets_may_stand_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "auth").write_text(f"{AUTH}\n")
    for name in ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING_FILE", str(tmp_path / "auth"))
    read_secrets()
    assert os.environ["PREFECT_SERVER_API_AUTH_STRING"] == os.environ["PREFECT_API_AUTH_STRING"] == AUTH


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("shared")
    write_recipe(root)
    (root / "tiny.yaml").rename(root / "recipe.yaml")
    with shared(root) as running, working(running, root / "worker.log"):
        yield running


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a receiver of webhooks, and what it was told."""
    heard: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{receiver.server_port}/hook", heard
        receiver.shutdown()


def make_block(server: Server, kind: str, name: str, data: dict[str, Any]) -> None:
    """What the UI does under Blocks."""
    type_id = server.call(f"block_types/slug/{kind}")["id"]
    (schema, *_) = server.call("block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [type_id]}}})
    server.call("block_documents/", {
        "name": name, "data": data, "block_schema_id": schema["id"], "block_type_id": type_id,
    })


def deploy(server: Server, *words: object) -> str:
    made = medloom("deploy", server.recipe, "--home", server.home, "--runner", "inline", *words, **server.environment)
    assert made.returncode == 0, made.stderr
    return made.stdout


def records(server: Server) -> dict[str, Any]:
    """What deploying makes."""
    return {
        "deployments": server.call("deployments/filter", {}), "pools": server.call("work_pools/filter", {}),
        "automations": server.call("automations/filter", {}),
        "limits": server.call("v2/concurrency_limits/filter", {}),
    }


@pytest.fixture(scope="module")
def deployed(server: Server, told: tuple[str, list[dict[str, Any]]]) -> Server:
    make_block(server, "secret", "model-key", {"value": VALUE})
    make_block(server, "webhook", "ops", {"url": told[0], "method": "POST", "allow_private_urls": True})
    words = ("--cron", "0 3 * * *", "--limit", "llm=2", "--limit", "images=1", "--notify", "webhook/ops",
             "--secret", "OPENAI_API_KEY=model-key")
    assert "build/tiny in the pool medloom" in deploy(server, *words)
    before = records(server)
    deploy(server, *words)
    after = records(server)
    for kind, found in before.items():
        assert [one["id"] for one in after[kind]] == [one["id"] for one in found], kind
    assert [one["updated"] for one in after["automations"]] == [one["updated"] for one in before["automations"]]
    return server


def test_a_deployment_is_code(deployed: Server) -> None:
    made = deployed.deployment()
    (schedule,) = made["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 3 * * *", "UTC")
    assert made["tags"] == ["medloom"] and made["work_pool_name"] == "medloom" and made["enforce_parameter_schema"]
    assert made["global_concurrency_limit"]["limit"] == 1
    assert made["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert made["parameters"] == {
        "recipe": str(deployed.recipe), "home": str(deployed.home), "runner": "inline", "changes": [],
    }
    runner = made["parameter_openapi_schema"]["properties"]["runner"]
    assert runner["anyOf"][0]["enum"] == ["ray", "inline", "auto"] and runner["anyOf"][1]["pattern"] == "^ray://.+"
    (pool,) = deployed.call("work_pools/filter", {})
    assert pool["type"] == "process"
    limits = {limit["name"]: limit["limit"] for limit in records(deployed)["limits"]}
    assert limits.items() >= {"llm": 2, "images": 1}.items()
    assert {one["name"] for one in records(deployed)["automations"]} == {"build/tiny: dead runs", "build/tiny: trouble"}


@pytest.mark.parametrize(("wrong", "says"), [
    ({"secrets": {"OPENAI_API_KEY": "nobody"}}, "no block 'secret/nobody'"), ({"notify": "webhook/nobody"}, "no block"),
    ({"home": Path("elsewhere")}, "give a recipe another"), ({"pool": "boxes"}, "of type 'docker'"),
])
def test_what_cannot_be_deployed_changes_nothing(deployed: Server, wrong: dict[str, Any], says: str) -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    if not deployed.call("work_pools/filter", {"work_pools": {"name": {"any_": ["boxes"]}}}):
        deployed.call("work_pools/", {"name": "boxes", "type": "docker"})
    before = deployed.deployment()
    right = {"recipe": str(deployed.recipe), "home": deployed.home, "cron": "0 4 * * *", "limits": {"llm": 9}}
    with (
        temporary_settings({PREFECT_API_URL: deployed.api, PREFECT_API_AUTH_STRING: AUTH}),
        pytest.raises(ConfigError, match=says),
    ):
        make_deployment(Wanted(**(right | wrong)))
    assert deployed.deployment()["updated"] == before["updated"]
    assert {limit["limit"] for limit in records(deployed)["limits"] if limit["name"] == "llm"} == {2}


def test_who_does_not_know_the_auth_string_is_told(server: Server) -> None:
    for auth in ("", "medloom:wrong"):
        refused = medloom("deploy", server.recipe, "--home", server.home, PREFECT_API_URL=server.api,
                          PREFECT_API_AUTH_STRING=auth)
        assert refused.returncode == 2 and "PREFECT_API_AUTH_STRING" in refused.stderr, refused.stderr


def test_a_secret_block_is_in_the_environment_of_the_run_and_nowhere_else(deployed: Server) -> None:
    run = deployed.run()
    worker = wait_for("there is a worker", 60, lambda: deployed.call("work_pools/medloom/workers/filter", {}))
    assert worker[0]["status"] == "ONLINE"

    def engine() -> str:
        found = [told for told in map(environment_of, processes()) if f"PREFECT__FLOW_RUN_ID={run}\0" in told]
        return found[0] if found else ""

    environment = wait_for("the run has a process", 90, engine)
    assert f"OPENAI_API_KEY={VALUE}\0" in environment and "PREFECT_FLOWS_HEARTBEAT_FREQUENCY=60\0" in environment
    assert deployed.ended(run) == ("COMPLETED", "")
    shown = deployed.artifacts(run)
    assert set(shown) == {"progress", "dashboard", "funnel", "rejects", "contact-sheet", "review-sheet", "report"}
    everything = json.dumps([
        records(deployed), deployed.call("flow_runs/filter", {}), shown, deployed.call("logs/filter", {}),
        deployed.call("task_runs/filter", {}), deployed.call("events/filter", {"limit": 50}),
        deployed.call("block_documents/filter", {}),
    ])
    assert VALUE not in everything and "prefect.blocks.secret.model-key" in everything
    for path in deployed.recipe.parent.rglob("*"):
        assert not path.is_file() or VALUE.encode() not in path.read_bytes(), path


def test_the_dashboard_says_what_the_build_did(deployed: Server) -> None:
    completed = deployed.runs(state_type="COMPLETED")[0]["id"]
    board = deployed.artifacts(completed)["dashboard"]["data"]
    titles = ("Funnel", "Cost, by stage and model", "Throughput, by stage", "Disagreement of experts", "Rejects")
    for title in titles:
        assert f"## {title}" in board
    assert board.startswith("**2** samples · ") and "/000001/index.html#rejects" in board
    assert "| caption | 1 | 2 |" in board
    assert any("waiting for a slot of images" in line for line in deployed.log(completed))


def test_trouble_is_told_by_webhook(deployed: Server, told: tuple[str, list[dict[str, Any]]]) -> None:
    run = deployed.run({"changes": ["stages.caption.options.api_key=asked-for-in-the-form"]})
    kind, message = deployed.ended(run)
    assert kind == "FAILED" and "looks like a secret" in message and "asked-for" not in message
    heard = wait_for("the webhook was called", 60, lambda: [one for one in told[1] if one["flow_run_id"] == run])
    assert heard[0]["deployment"] == "tiny" and heard[0]["state"] == "Failed" and run in heard[0]["text"]
    assert "asked-for" not in json.dumps(told[1])


def test_beats_are_three_times_as_often_as_needed() -> None:
    assert [automations.beat(seconds) for seconds in (40, 90, 180, 600)] == [30, 30, 60, 200]
