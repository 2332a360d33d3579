"""The Prefect server: a local one on loopback, found again by the builds of its home, or one that others reach.

The invariants: a server listens on 127.0.0.1, elsewhere only where it asks for an auth string; and one that a process
started never outlives it, however it ended. The server's records lie in HOME/prefect; builds from the command line find
it by HOME/prefect/server.json and show up in the same UI.

    medloom server --host 0.0.0.0     refused, unless PREFECT_SERVER_API_AUTH_STRING (or …_FILE) is set
"""

from __future__ import annotations

import base64
import ipaddress
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from infra.errors import ConfigError, MedloomError
from infra.settings import be_quiet, secret
from infra.storage import write_bytes

START_WAIT_S = 120
STOP_WAIT_S = 10
RECORD = "prefect/server.json"
SECRETS = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_DATABASE_PASSWORD")
"""Secrets of Prefect that may stand in a file, which NAME_FILE names."""


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


def read_secrets() -> None:
    """Put the secrets of Prefect that lie in files into this process's environment, and let clients know its own."""
    for name in SECRETS:
        if value := secret(name):
            os.environ.setdefault(name, value)
    if given := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", given)


def may_listen(host: str, auth: str = "PREFECT_SERVER_API_AUTH_STRING") -> None:
    """Raises ConfigError for an address that other machines reach, unless the variable `auth` holds an auth string."""
    try:
        local = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback
    except ValueError:
        local = False  # a name may mean any address
    if not local and ":" not in os.environ.get(auth, ""):
        raise ConfigError(
            f"whoever reaches {host} could see and do everything, since nobody is asked who they are: set "
            f"{auth}=USER:PASSWORD (or {auth}_FILE), or listen on 127.0.0.1"
        )


@contextmanager
def server(home: Path, port: int = 0, ui: bool = True) -> Iterator[str]:
    """A Prefect server on 127.0.0.1 while the block runs; yields its API address. Port 0 takes a free one."""
    be_quiet()
    read_secrets()
    port = _free(port)
    api, folder = f"http://127.0.0.1:{port}/api", home.resolve() / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **{name: value for name, value in settings(os.environ, port).items() if name != "PREFECT_API_URL"},
        "PREFECT_HOME": str(folder), "PREFECT_SERVER_UI_ENABLED": str(ui).lower(), "PREFECT_SERVER_UI_API_URL": api,
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),  # the installed package may be read-only
    }
    words = ("server", "start", "--host", "127.0.0.1", "--port", str(port))
    with child(words, folder / "server.log", environment) as process:
        until = time.monotonic() + START_WAIT_S
        while not answers(api):
            if process.poll() is not None or time.monotonic() > until:
                raise MedloomError(f"the Prefect server did not start; see {folder / 'server.log'}")
            time.sleep(0.2)
        yield api


@contextmanager
def child(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command of Prefect's as a process of its own, which ends with the block and with this process."""
    command = [sys.executable, "-P", "-m", "flows.server", *words]
    with open(log, "ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(api: str) -> bool:
    """Whether a Prefect server answers at this API address. Raises ConfigError when it wants another auth string."""
    given = base64.b64encode(os.environ.get("PREFECT_API_AUTH_STRING", "").encode()).decode()
    request = urllib.request.Request(f"{api}/admin/version", headers={"Authorization": f"Basic {given}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise ConfigError(
                f"the Prefect server at {api} asks who you are: set PREFECT_API_AUTH_STRING (or …_FILE)"
            ) from None
        return False
    except (urllib.error.URLError, OSError):
        return False


def run_server(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the UI and the API.")] = 4200,
) -> None:
    """Run a Prefect server that deployments and workers of any machine share; its database is what Prefect's says."""
    be_quiet()
    read_secrets()
    may_listen(host)
    become("server", "start", "--host", host, "--port", str(port), environment=settings(os.environ, port))


def settings(environment: Mapping[str, str], port: int) -> dict[str, str]:
    """An environment with the settings of a server of ours; what it sets already stands.

    Pages of other sites are kept from the API, which Prefect opens to all of them; and who holds a concurrency slot is
    kept in PREFECT_HOME, not in memory: a server that was started again would never give back the slots of the dead.
    """
    return {
        "PREFECT_UI_URL": f"http://127.0.0.1:{port}",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port},http://localhost:{port}",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        **environment,
    }


def become(*words: str, environment: Mapping[str, str]) -> NoReturn:
    """Replace this process by a command of Prefect's."""
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-P", "-m", "prefect", *words], dict(environment))


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
    while os.read(0, 4096):  # not by sys.stdin: a thread that waits in it stops the interpreter's end
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_WAIT_S)
    os._exit(1)


if __name__ == "__main__":  # the server process: Prefect's own command line
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from infra.telemetry import logs

    logs.set_up()
    from prefect.cli import app

    app()
