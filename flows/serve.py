"""A local Prefect server with the scheduled build: what `medloom serve` runs.

Everything listens on 127.0.0.1 only. The server's records lie in HOME/prefect; builds from the command line find it
by HOME/prefect/server.json and show up in the same UI.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infra.errors import ConfigError, MedloomError
from infra.settings import be_quiet
from infra.storage import write_bytes

START_WAIT_S = 120


def address_of(home: Path) -> str | None:
    """The API address of the server that `medloom serve` runs for this home, if it answers."""
    try:
        address = str(json.loads((home / "prefect" / "server.json").read_text())["api"])
    except FileNotFoundError:
        return None
    return address if _answers(address) else None


def serve(recipe: str, home: Path, cron: str, runner: str, changes: Sequence[str], port: int) -> None:
    """Run the server and serve the deployment until Ctrl-C. Raises ConfigError when the port is taken."""
    from flows.recipe import find_recipe, load_recipe

    loaded = load_recipe(find_recipe(recipe), changes)  # a wrong recipe must fail here, not at three in the morning
    home = home.resolve()
    with server(home, port) as api:
        os.environ["PREFECT_API_URL"] = api
        from flows.flow import build

        where = recipe if not Path(recipe).exists() else str(Path(recipe).resolve())
        print(f"Prefect UI: {api.removesuffix('/api')}   deployment: build/{loaded.name}   schedule: {cron} (UTC)")
        build.serve(
            name=loaded.name, cron=cron, limit=1, print_starting_message=False, pause_on_shutdown=False,
            parameters={"recipe": where, "home": str(home), "runner": runner, "changes": list(changes)},
        )


@contextmanager
def server(home: Path, port: int) -> Iterator[str]:
    """A Prefect server on 127.0.0.1 while the block runs; yields its API address."""
    be_quiet()
    home.mkdir(parents=True, exist_ok=True)
    api = f"http://127.0.0.1:{port}/api"
    if _answers(api):
        raise ConfigError(f"port {port} is taken by another Prefect server; choose another --port, or use that one: "
                          f"PREFECT_API_URL={api}")
    os.environ["PREFECT_HOME"] = str(home / "prefect")
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    (home / "prefect").mkdir(exist_ok=True)
    with open(home / "prefect" / "server.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + START_WAIT_S
        while not _answers(api):
            if process.poll() is not None or time.monotonic() > until:
                raise MedloomError(f"the Prefect server did not start; see {home / 'prefect' / 'server.log'}")
            time.sleep(0.3)
        write_bytes(home / "prefect" / "server.json", json.dumps({"api": api}).encode())
        yield api
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        (home / "prefect" / "server.json").unlink(missing_ok=True)


def _answers(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
