"""Case 58: secrets planted in the environment appear nowhere: in no home, log or traceback, at Prefect, nor at Ray.

One Prefect server, three builds of one home. The model's server repeats the key it was given in every way it can: in
errors, in pages that are no answer, in refusals, in answers that are of no use and in those that are. The object store
denies, and repeats the headers. A stage of another package puts the key into a reject, a warning, and a bug's message.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from prefectserver import MEDLOOM
from sources import make_images

from flows.server import server

ROOT = Path(__file__).parents[2]
PLANTED = {
    "GOLD_MODEL": "gold-planted-llm-0815-Aq9zZ",  # what the recipe calls it: no name says that it is a key
    "OPENAI_API_KEY": "sk-planted-0815-Bq8yY",
    "AWS_ACCESS_KEY_ID": "PLANTEDAWSID0815XY",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret=0815/Zz",
    "AWS_SESSION_TOKEN": "planted-session-0815//Yx==",
    "MEDLOOM_DEID_KEY": "planted-pseudonym-0815-Cc",
    "PGPASSWORD": "planted pa55:w@rd-0815",
    "MEDLOOM_WEBHOOK_URL": "https://hooks.example.org/services/planted-0815/Dd7",
    "SITE_TOKEN": "planted-site-token-0815",
}
LEAKY = '''
import logging, os
from pydantic import BaseModel, ConfigDict, Field
from infra.errors import Terminal
from transforms.stage import each_sample

NAME, VERSION, REQUIRES = "leaky", "1", {}


class Params(BaseModel):
    """Leaks."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    how: str = Field("reject", description="reject or bug")


def leak(how, sample, state):
    key, site = os.environ["GOLD_MODEL"], os.environ["SITE_TOKEN"]
    if how == "bug":
        raise RuntimeError(f"401 for {key} and {site} at postgresql://ada:lovelace-0815@db/x") from ValueError(key)
    logging.getLogger("transforms.leaky").warning("asked with %s", site)
    if sample.image["source_item"].endswith("0.png"):
        raise Terminal("LEAKY", f"the server refused {site}")
    return {}


def make_stage(params, context):
    from functools import partial
    return each_sample(NAME, VERSION, reads=("images",), writes=("checks",), row=partial(leak, params.how),
                       params=params)
'''
RECIPE = """
name: leaks
sources:
  - {{name: photos, use: images, layout: imagefolder, root: {images}, identifiers: public}}
{more}stages:
  - use: leaky
    how: {how}
  - use: caption
    captioner: llm
    options: {{base_url: "{model}", model: m, api_key_env: GOLD_MODEL, attempts: 2, parts: false, repair: 0,
               timeout_s: 5, concurrency: 1}}
"""
DRIVER = """
import sys, traceback
from flows.flow import build  # as a schedule starts it: what the command line stops at once is met inside the flow
for recipe, runner in zip(sys.argv[2:], ("ray", "inline", "inline")):
    try:
        print(recipe, build(recipe, sys.argv[1], runner))
    except Exception:
        traceback.print_exc()
"""
DENIED = '  - {{name: denied, use: pmc, root: "s3://bucket/x", endpoint: "{store}", anonymous: false}}\n'


@dataclass
class Echo:
    """Repeats what it is told in confidence; keeps count of what it saw."""

    seen: Counter[str] = field(default_factory=Counter)
    auth: set[str] = field(default_factory=set)

    def chat(self, key: str) -> tuple[int, str]:
        ways = ("error", "busy", "denied", "page", "refusal", "nonsense", "answer", "answer")
        way = ways[sum(self.seen.values()) % len(ways)]
        self.seen[way] += 1
        said = f"you sent {key}"
        if way in ("error", "busy"):
            return (500 if way == "error" else 429), json.dumps({"error": {"message": said, "code": None}})
        if way == "denied":
            return 400, json.dumps({"error": {"message": said, "code": None}})
        if way == "page":
            return 200, f"<html>{key}</html>"
        content: str | None = json.dumps({"texts": [said], "global": said, "text": said})
        refusal = said if way == "refusal" else None
        message = {"role": "assistant", "content": None if refusal else content, "refusal": refusal}
        if way == "answer":
            message["content"] = json.dumps({"global_caption": f"A picture. {said}."})
        return 200, json.dumps({
            "id": "x", "object": "chat.completion", "created": 0, "model": f"m-{key}",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        })


@contextmanager
def echoing() -> Iterator[tuple[str, Echo]]:
    """The address of a server that repeats credentials: of models under /v1, and of objects elsewhere."""
    echo = Echo()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self._say(*echo.chat(self.headers["authorization"].removeprefix("Bearer ")))

        def do_GET(self) -> None:
            echo.seen["denied object"] += 1
            said = "".join(f"<{name}>{value}</{name}>" for name, value in self.headers.items())
            self._say(403, f"<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code><Message>{said} "
                           f"{PLANTED['AWS_SECRET_ACCESS_KEY']}</Message></Error>")

        def _say(self, status: int, body: str) -> None:
            echo.auth.add(self.headers.get("authorization", ""))
            self.send_response(status)
            self.send_header("content-type", "application/json" if self.command == "POST" else "application/xml")
            self.send_header("content-length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}", echo
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def install_leaky(folder: Path) -> Path:
    """A package of somebody else's with a stage as an entry point, on the path of what is started."""
    (folder / "leaky-1.0.dist-info").mkdir(parents=True)
    (folder / "leaky-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1.0\n")
    (folder / "leaky-1.0.dist-info" / "entry_points.txt").write_text("[medloom.stage]\nleaky = leaky_stage\n")
    (folder / "leaky_stage.py").write_text(LEAKY)
    return folder


def all_of_prefect(api: str) -> str:
    """What Prefect tells of everything that ran: runs, states, logs, artifacts, variables, events."""
    told = []
    for what in ("flow_runs", "task_runs", "logs", "artifacts", "variables", "deployments", "block_documents"):
        request = urllib.request.Request(f"{api}/{what}/filter", b"{}", {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            told.append(answer.read().decode())
    return "\n".join(told)


def forms(secret: str) -> set[str]:
    return {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], b64encode(secret.encode()).decode().rstrip("=")}


WANTED = [(name, form) for name, secret in PLANTED.items() for form in sorted(forms(secret))]
WANTED += [("a database's password", "lovelace-0815"), ("a cut-off key", PLANTED["GOLD_MODEL"][:14])]


def found_in(text: str) -> set[str]:
    return {name for name, form in WANTED if form in text}


def found_under(folder: Path) -> dict[str, set[str]]:
    """file -> the secrets in it, as it lies on disk, and for Parquet as its rows say."""
    found: dict[str, set[str]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            data += json.dumps(pq.read_table(path).to_pylist(), default=str)
        if names := found_in(data):
            found[str(path.relative_to(folder))] = names
    return found


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"x": [f"<{PLANTED['SITE_TOKEN']}>"] * 50}), tmp_path / "a.parquet", compression="zstd")
    (tmp_path / "b").write_text(quote(PLANTED["PGPASSWORD"], safe=""))
    assert found_under(tmp_path) == {"a.parquet": {"SITE_TOKEN"}, "b": {"PGPASSWORD"}}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "AWS_"))]:
        monkeypatch.delenv(name)
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    folders = f"{install_leaky(tmp_path / 'site')}{os.pathsep}{ROOT}"
    more = {
        "PYTHONPATH": folders, "MEDLOOM_LOG": "json", "MEDLOOM_LOG_LEVEL": "DEBUG", "MEDLOOM_METRICS": "1",
        "MEDLOOM_LOG_FILE": str(tmp_path / "home" / "log.jsonl"),
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray keeps the logs of its session; sockets lie there, so its name must be short."""
    with tempfile.TemporaryDirectory(prefix="ml-", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def test_planted_secrets_appear_nowhere(places: Path, ray_folder: Path) -> None:
    make_images(places / "images", 12)
    home = places / "home"
    with echoing() as (address, echo), server(home, ui=False) as api:
        recipes = []
        for how, more in (("reject", ""), ("bug", ""), ("reject", DENIED.format(store=address))):
            recipes.append(places / f"recipe{len(recipes)}.yaml")
            text = RECIPE.format(images=places / "images", model=f"{address}/v1", how=how, more=more)
            recipes[-1].write_text(text)
        command = [sys.executable, "-c", DRIVER, str(home), *map(str, recipes)]
        environment = {**os.environ, "PREFECT_API_URL": api, "AWS_ENDPOINT_URL_S3": address}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
        prefect = all_of_prefect(api)
    said = ran.stdout + ran.stderr

    # the faults were met, so there was something to leak
    assert ran.returncode == 0 and "recipe0.yaml snapshot 1" in ran.stdout, said
    assert "RuntimeError: 401 for *** and ***" in ran.stderr and "ACCESS_DENIED" in ran.stderr, said
    assert min(echo.seen[way] for way in ("error", "busy", "denied", "page", "refusal", "nonsense", "answer")) > 0
    assert f"Bearer {PLANTED['GOLD_MODEL']}" in echo.auth and echo.seen["denied object"] > 0
    assert any(PLANTED["AWS_ACCESS_KEY_ID"] in given for given in echo.auth)
    shards = (home / "shards" / "rejects").rglob("*.parquet")
    rejects = [row for path in shards for row in pq.read_table(path).to_pylist()]
    assert {"LEAKY", "LLM_REFUSED"} <= {row["code"] for row in rejects}
    assert any("***" in row["message"] for row in rejects if row["code"] == "LEAKY")
    assert "RuntimeError: 401 for *** and ***" in prefect and "asked with ***" in (home / "log.jsonl").read_text()

    # and nothing did
    assert found_in(said) == set()
    assert found_in(prefect) == set()
    assert found_under(home) == {}
    assert any("worker" in path.name for path in ray_folder.rglob("*")) and found_under(ray_folder) == {}


def test_words_of_an_error_on_the_command_line_hold_no_password(tmp_path: Path) -> None:
    environment = {
        **os.environ, **PLANTED, "PYTHONPATH": str(ROOT),
        "MEDLOOM_CATALOG": "ducklake:postgres:host=127.0.0.1 port=9 user=ada dbname=x password=lovelace-0815",
    }
    ran = subprocess.run([*MEDLOOM, "sql", "SELECT 1", "--home", str(tmp_path)], env=environment, capture_output=True,
                         text=True, timeout=60)
    assert ran.returncode != 0 and found_in(ran.stdout + ran.stderr) == set()


