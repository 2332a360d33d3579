"""The local Prefect server: started on loopback, found again by the builds of its home.

The invariants: everything listens on 127.0.0.1 only, and a server never outlives the process that started it, however
that one ended. The server's records lie in HOME/prefect; builds from the command line find it by
HOME/prefect/server.json and show up in the same UI.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.errors import ConfigError, MedloomError
from infra.settings import be_quiet
from infra.storage import write_bytes

START_WAIT_S = 120
STOP_WAIT_S = 10
RECORD = "prefect/server.json"


def portable(recipe: str) -> str:
    """The recipe as a process started elsewhere finds it: a bundled recipe's name, or an absolute path."""
    return str(Path(recipe).resolve()) if Path(recipe).exists() else recipe


def served(home: Path) -> Mapping[str, str]:
    """The addresses `api` and `reports` of the `medloom serve` that runs for this home; empty when none does."""
    try:
        record: dict[str, str] = json.loads((home / RECORD).read_text())
        with suppress(PermissionError):  # another user's, and alive
            os.kill(int(record.pop("pid")), 0)  # what a killed process left must not lead to another home's server
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return record if answers(record["api"]) else {}


@contextmanager
def recorded(home: Path, api: str, reports: str) -> Iterator[None]:
    """Let the builds of this home find the server while the block runs."""
    write_bytes(home / RECORD, json.dumps({"api": api, "reports": reports, "pid": str(os.getpid())}).encode())
    try:
        yield
    finally:
        (home / RECORD).unlink(missing_ok=True)


@contextmanager
def server(home: Path, port: int = 0, ui: bool = True) -> Iterator[str]:
    """A Prefect server on 127.0.0.1 while the block runs; yields its API address. Port 0 takes a free one."""
    be_quiet()
    port = _free(port)
    api, folder = f"http://127.0.0.1:{port}/api", home.resolve() / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"},
        "PREFECT_HOME": str(folder), "PREFECT_SERVER_UI_ENABLED": str(ui).lower(), "PREFECT_SERVER_UI_API_URL": api,
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),  # the installed package may be read-only
    }
    prefect = [sys.executable, "-P", "-m", "flows.server"]
    command = [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    with process:
        try:
            until = time.monotonic() + START_WAIT_S
            while not answers(api):
                if process.poll() is not None or time.monotonic() > until:
                    raise MedloomError(f"the Prefect server did not start; see {folder / 'server.log'}")
                time.sleep(0.2)
            yield api
        finally:
            process.terminate()
            try:
                process.wait(STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(api: str) -> bool:
    """Whether a Prefect server answers at this API address."""
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"port {port} is taken; choose another --port, or use the server that runs there by "
                              f"PREFECT_API_URL=http://127.0.0.1:{port}/api if it is Prefect's") from error
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """Wait until the pipe from the parent closes, as it does however the parent ends, and stop this process."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_WAIT_S)
    os._exit(1)


if __name__ == "__main__":  # the server process: Prefect's own command line
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from prefect.cli import app

    app()
