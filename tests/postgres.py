"""A real Postgres server on loopback, from the system's packages, with its data in a fresh folder.

>>> with postgres(tmp_path / "postgres") as server:
...     server.url("lake")        # makes the database
'postgresql://medloom:…@127.0.0.1:40123/lake'
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from s3server import free_ports

USER, PASSWORD = "medloom", "planted-postgres-password"
PATIENCE = 60.0


@dataclass
class Server:
    """A server that runs, or that `kill` stopped and `start` may start again."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "medloom", driver: str = "postgresql") -> str:
        """The address of a database, which is made where it is missing."""
        made = self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, database)
        if made.returncode and b"already exists" not in made.stderr:
            raise RuntimeError(made.stderr.decode())
        return f"{driver}://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        with open(self.folder.parent / f"{self.folder.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                [*_as_server(), str(_tool("postgres")), "-D", str(self.folder), "-p", str(self.port),
                 "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}"],
                stdout=log, stderr=log, start_new_session=True, cwd="/",
            )
        until = time.monotonic() + PATIENCE
        while self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port)).returncode:
            if self.process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"Postgres did not start: {Path(log.name).read_text()[-2000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL of all its processes, as a power cut would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            (self.folder / "postmaster.pid").unlink(missing_ok=True)
            self.process = None

    def _run(self, tool: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        environment = os.environ | {"PGPASSWORD": PASSWORD, "LC_ALL": "C"}
        return subprocess.run([_tool(tool), *arguments], capture_output=True, env=environment, check=False)


@contextmanager
def postgres(folder: Path) -> Iterator[Server]:
    """Start Postgres with its data in a fresh folder, or skip where it is not installed."""
    if not _tool("initdb").exists():
        pytest.skip("no Postgres here: apt-get install postgresql")
    folder.mkdir(parents=True)
    password = folder.parent / f"{folder.name}.password"
    password.write_text(PASSWORD)
    if os.geteuid() == 0:  # Postgres refuses to run as root
        owner = pwd.getpwnam("postgres")
        for path in (folder, password):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        for above in folder.parents:
            if above.stat().st_uid == 0 and above.stat().st_mode & 0o011 != 0o011:
                above.chmod(above.stat().st_mode | 0o011)
    made = subprocess.run(
        [*_as_server(), _tool("initdb"), "-D", folder, "-U", USER, f"--pwfile={password}", "-A", "scram-sha-256",
         "--no-locale", "-E", "UTF8"],
        capture_output=True, check=False, cwd="/",
    )
    if made.returncode:
        pytest.fail(f"initdb: {made.stderr.decode()[-2000:]}")
    server = Server(folder, free_ports(1)[0])
    server.start()
    try:
        yield server
    finally:
        server.kill()


def _tool(name: str) -> Path:
    """A program of the newest Postgres installed; Debian keeps most of them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    return found[-1] if found else Path(shutil.which(name) or name)


def _as_server() -> Sequence[str]:
    """What runs a program as the user that Postgres may run as."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
