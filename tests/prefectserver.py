"""`medloom serve` as tests meet it: one real command a test session, its API by plain HTTP, its process tree by /proc.

The deployment is scheduled for every minute until a test pauses it. A secret is planted in the environment: no record
may hold it. `shared` is the other form: `medloom server`, which asks for an auth string, and workers beside it.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from s3server import free_ports
from sources import make_all

from flows.server import served

SECRET = "sk-planted-0815-never-to-be-seen"
AUTH = "medloom:planted-auth-string"
MEDLOOM = (sys.executable, "-c", "from flows.cli import main; main()")
DONE = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class Server:
    """A running `medloom serve`, or `medloom server` with an auth string."""

    api: str
    reports: str
    home: Path
    recipe: Path
    process: subprocess.Popen[bytes]
    auth: str = ""

    @property
    def ui(self) -> str:
        return self.api.removesuffix("/api")

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """A request to the API; a body makes it a POST."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.auth:
            headers["Authorization"] = f"Basic {base64.b64encode(self.auth.encode()).decode()}"
        request = urllib.request.Request(f"{self.api}/{path}", data, headers, method=method)
        for _ in range(10):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:  # SQLite is locked, on a machine with much else to do
                if error.code != 503:
                    raise
                time.sleep(2)
        raise TimeoutError(path)

    def runs(self, **only: Any) -> list[dict[str, Any]]:
        """Flow runs, oldest first, whose fields have these values."""
        found = self.call("flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC"})
        return [run for run in found if all(run[name] == value for name, value in only.items())]

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        """Artifacts of a flow run by key."""
        found = self.call("artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}, "sort": "CREATED_DESC"})
        return {artifact["key"]: artifact for artifact in found}

    def log(self, run: str) -> list[str]:
        """Messages of a flow run."""
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        return [line["message"] for line in self.call("logs/filter", wanted)]

    def run(self, parameters: dict[str, Any] | None = None) -> str:
        """What the run button of the UI does; returns the flow run."""
        wanted = {"parameters": parameters or {}, "state": {"type": "SCHEDULED"}}
        return str(self.call(f"deployments/{self.deployment()['id']}/create_flow_run", wanted)["id"])

    def state(self, run: str) -> tuple[str, str]:
        """Type and message of a run's state."""
        state = self.call(f"flow_runs/{run}")["state"]
        return state["type"], state["message"] or ""

    def ended(self, run: str, seconds: float = 120) -> tuple[str, str]:
        """The state of a run when it has ended."""
        wait_for(f"the run {run} has ended", seconds, lambda: self.state(run)[0] in DONE)
        return self.state(run)

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to use it."""
        return {"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": self.auth}

    def deployment(self) -> dict[str, Any]:
        """The one deployment."""
        (found,) = self.call("deployments/filter", {})
        return dict(found)

    def cancel(self, run: str) -> None:
        """What the cancel button of the UI does."""
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self.call(f"flow_runs/{run}/set_state", {"state": state, "force": False})


def wait_for(what: str, seconds: float, ask: Callable[[], Any]) -> Any:
    """Ask until the answer is true, and return it; fail when that takes longer than `seconds`."""
    until = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > until:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.3)
    return answer


def medloom(*words: object, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a medloom command with the planted secret in its environment."""
    env = clean_environment() | environment
    return subprocess.run([*MEDLOOM, *map(str, words)], env=env, capture_output=True, text=True, timeout=timeout)


def clean_environment() -> dict[str, str]:
    """The environment of a user who has set nothing of Prefect's, and has a key of a model endpoint."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | {"OPENAI_API_KEY": SECRET}


def tree(root: int) -> set[int]:
    """A process and all that descend from it."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {root}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def command(pid: int) -> str:
    """The command line of a process; empty when it is gone or a zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def environment_of(pid: int) -> str:
    """The environment that a process was started with; empty when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return ""


def processes() -> set[int]:
    """All processes."""
    return {int(path.name) for path in Path("/proc").glob("[0-9]*")}


def listening(pids: set[int]) -> set[str]:
    """Addresses at which these processes listen, as IP:PORT."""
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            inodes |= {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, _, port = fields[1].partition(":")
                words = [bytes.fromhex(address[i:i + 8])[::-1] for i in range(0, len(address), 8)]
                ip = ".".join(map(str, words[0])) if len(words) == 1 else b"".join(words).hex()
                found.add(f"{ip}:{int(port, 16)}")
    return found


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    """`medloom serve` over generated sources, built every minute; stopped by Ctrl-C, and it must leave no process."""
    recipe, home = make_all(root / "sources"), root / "home"
    port, _ = free_ports(2)  # the reports take the next one
    words = ["serve", recipe, "--home", home, "--cron", "* * * * *", "--runner", "inline", "--port", port]
    with open(root / "serve.log", "wb") as log:
        process = subprocess.Popen(
            [*MEDLOOM, *map(str, words)], env=clean_environment(), stdout=log, stderr=log, start_new_session=True
        )
    with process:
        try:
            def ready() -> Any:
                assert process.poll() is None, (root / "serve.log").read_text()
                return served(home)

            found = wait_for("medloom serve is up", 150, ready)
            running = Server(found["api"], found["reports"], home, recipe, process)
            wait_for("the deployment is known", 60, lambda: running.call("deployments/filter", {}))
            yield running
        finally:
            family = tree(process.pid)
            process.send_signal(signal.SIGINT)
            process.wait(60)
        wait_for("its processes have ended", 30, lambda: not any(map(command, family)))
        assert "Traceback" not in (root / "serve.log").read_text(), (root / "serve.log").read_text()


@contextmanager
def shared(root: Path, **environment: str) -> Iterator[Server]:
    """`medloom server` that asks for an auth string, its records below `root`; nothing is deployed."""
    (port,), folder = free_ports(1), root / "server"
    folder.mkdir(parents=True)
    env = clean_environment() | {
        "PREFECT_HOME": str(folder), "PREFECT_SERVER_API_AUTH_STRING": AUTH, "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_DEPLOYMENT_CONCURRENCY_SLOT_WAIT_SECONDS": "3", **environment,
    }
    with started(root / "server.log", env, "server", "--port", port) as process:
        server = Server(f"http://127.0.0.1:{port}/api", "", root / "home", root / "recipe.yaml", process, AUTH)

        def answers() -> Any:
            assert process.poll() is None, (root / "server.log").read_text()
            with suppress(OSError):
                return server.call("admin/version")

        wait_for("medloom server is up", 150, answers)
        yield server


@contextmanager
def working(server: Server, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`medloom worker` beside a server, killed at the end with all that it runs."""
    env = clean_environment() | server.environment | {"PREFECT_HOME": str(log.parent / "worker")} | environment
    with started(log, env, "worker", "--name", "tests") as process:
        yield process


@contextmanager
def started(log: Path, env: dict[str, str], *words: object) -> Iterator[subprocess.Popen[bytes]]:
    """A medloom command in the background; at the end it and its descendants are killed."""
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [*MEDLOOM, *map(str, words)], env=env, stdout=file, stderr=file, start_new_session=True
        )
    with process:
        try:
            yield process
        finally:
            kill_all(process.pid)


def kill_all(root: int) -> None:
    """SIGKILL of a process and of all that descend from it, parents first: nobody is left to tell of the others."""
    for pid in sorted(tree(root)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


_stack = ExitStack()
_started: list[Server] = []


@pytest.fixture(scope="session")
def medloom_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of this test session, whichever folders' conftest.py import this fixture."""
    if not _started:
        _started.append(_stack.enter_context(serving(tmp_path_factory.mktemp("served"))))
    yield _started[0]
    _stack.close()


@pytest.fixture(scope="session")
def first_run(medloom_server: Server) -> dict[str, Any]:
    """The first flow run that the schedule started, completed."""

    def completed() -> list[dict[str, Any]]:
        # a run that was due while one ran is left out, and cancelled
        ended = [run for run in medloom_server.runs(auto_scheduled=True) if run["state_type"] in DONE - {"CANCELLED"}]
        assert all(run["state_type"] == "COMPLETED" for run in ended), (ended, medloom_server.log(ended[0]["id"]))
        return ended

    return dict(wait_for("a scheduled run is complete", 200, completed)[0])
