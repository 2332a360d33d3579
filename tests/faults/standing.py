"""What a soak stands on: servers that are killed and come back with what they had, sources, and homes to compare.

The invariant: everything that was started here ends with the `with` block; nothing else is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
for _place in (ROOT, ROOT / "tests"):
    if str(_place) not in sys.path:
        sys.path.insert(0, str(_place))

from prefectserver import clean_environment, tree  # noqa: E402
from s3server import KEY, SECRET, free_ports, s3_server  # noqa: E402
from sources import RECIPE, make_articles, make_dicom, make_images, make_nifti  # noqa: E402

from catalog.catalog import query, rebuild  # noqa: E402
from catalog.schema import LAYERS  # noqa: E402
from catalog.verify import manifests, problems  # noqa: E402
from infra import mirror  # noqa: E402
from infra.keys import sha256  # noqa: E402
from infra.storage import TEMPORARY  # noqa: E402

NAMES = {"worker": ("ray::",), "raylet": ("raylet",)}
"""What is killed below the driver -> how the command lines of its processes begin."""
IDLE = "ray::IDLE"
"""A worker that does nothing: no victim."""
BUCKET = "soak"
WHOLE_STAGES = "  - {use: quality}\n  - {use: duplicates}\n  - {use: splits}\n"


def victims(driver: int, target: str) -> list[int]:
    """The driver itself, Ray's workers under it (running a unit, or holding an opened stage), or the raylet."""
    if target == "driver":
        return [driver]
    found = []
    for pid in sorted(tree(driver) - {driver}):
        with suppress(OSError):
            program = Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0].rpartition("/")[2]
            if program.startswith(NAMES[target]) and not program.startswith(IDLE):
                found.append(pid)
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that still runs, and all below it."""
    if process.poll() is not None:
        return
    for pid in tree(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """This process sees these variables and no others while the block runs."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class PrefectServer:
    """A Prefect server that can be killed and started again with what it had."""

    def __init__(self, folder: Path, database: str | None) -> None:
        (self.port,) = free_ports(1)
        self.api = f"http://127.0.0.1:{self.port}/api"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        self._environment = clean_environment() | {
            "PREFECT_HOME": str(folder), "PREFECT_SERVER_UI_ENABLED": "false", "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        } | ({"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {})

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment, start_new_session=True, cwd=self._folder
            )
        until = time.monotonic() + 120
        while not self.answers():
            if time.monotonic() > until or self._process.poll() is not None:
                raise RuntimeError(f"the Prefect server did not start; see {self._folder / 'log'}")
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.api}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Standing:
    """Servers, sources and homes of one soak, below one folder."""

    def __init__(self, folder: Path, parts: Sequence[str], pictures: int) -> None:
        self.folder, self.parts = folder, parts
        self.servers: dict[str, Any] = {}
        """name -> what has kill() and start()"""
        self.recipes = self._make_sources(pictures)
        self._environment = {"PYTHONPATH": str(ROOT)}
        self._stack = ExitStack()

    def __enter__(self) -> Standing:
        database = None
        if "postgres" in self.parts:
            from postgres import PASSWORD, postgres

            self.servers["postgres"] = made = self._stack.enter_context(postgres(self.folder / "postgres"))
            database = made.url("prefect", "postgresql+asyncpg")
            self._environment["PGPASSWORD"] = PASSWORD
        if "s3" in self.parts:
            self.servers["s3"] = made = self._stack.enter_context(s3_server(self.folder / "s3"))
            made.put(BUCKET, {})
            self._environment |= {
                "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL_S3": made.endpoint, "MEDLOOM_WORK": str(self.folder / "work"),
            }
        if "prefect" in self.parts:
            self.servers["prefect"] = made = PrefectServer(self.folder / "prefect", database)
            self._stack.callback(made.kill)
            made.start()
            self._environment |= {"PREFECT_API_URL": made.api, "PREFECT_HOME": str(self.folder / "client")}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make_sources(self, pictures: int) -> Mapping[str, Path]:
        """Two recipes of one dataset: all sources, and a smaller one that is there before."""
        root = self.folder / "sources"
        make_images(root / "images", pictures, size=96)
        make_dicom(root / "dicom", slices=4)
        make_nifti(root / "nifti", count=1)
        make_articles(root / "pmc", count=2)
        whole, small = root / "whole.yaml", root / "small.yaml"
        whole.write_text(RECIPE.format(root=root) + WHOLE_STAGES)
        lines = whole.read_text().splitlines(keepends=True)
        small.write_text("".join(line for line in lines if "use: dicom" not in line and "use: nifti" not in line))
        return {"whole": whole, "small": small}

    def environment(self, home: str) -> dict[str, str]:
        """What a command for this home sees."""
        found = clean_environment() | self._environment
        if "lake" in self.parts:
            server = self.servers["postgres"]
            name = home.replace("-", "_")
            server.url(name)
            found["MEDLOOM_CATALOG"] = f"ducklake:postgres:host=127.0.0.1 port={server.port} user=medloom dbname={name}"
        return found

    def address(self, home: str) -> str:
        return f"s3://{BUCKET}/{home}" if "s3" in self.parts else str(self.folder / home)

    def forget(self) -> None:
        """Throw the working copies of homes in a bucket away, as another machine has none."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)

    def _keys(self, home: str) -> Iterator[str]:
        pages = self.servers["s3"].client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=BUCKET, Prefix=f"{home}/"):
            yield from (entry["Key"] for entry in page.get("Contents", ()))

    def shards(self, home: str) -> dict[str, str]:
        """Path -> hash, of all that lies below shards/; drafts as well."""
        if "s3" in self.parts:
            client = self.servers["s3"].client
            keys = [key for key in self._keys(home) if key.startswith(f"{home}/shards/")]
            bodies = {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}
            return {key.removeprefix(f"{home}/"): sha256(body) for key, body in bodies.items()}
        root = self.folder / home
        return {str(p.relative_to(root)): sha256(p.read_bytes()) for p in (root / "shards").rglob("*") if p.is_file()}

    def state(self, home: str) -> dict[str, Any]:
        """All that must be equal: shards by hash, manifests without seconds, answers; and what is wrong by itself.

        A home in a bucket is looked at as from another machine.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as work, _environment(
            self.environment(home) | {"MEDLOOM_WORK": work}
        ):
            folder = mirror.home_of(self.address(home))
            units = manifests(folder)
            found: dict[str, Any] = {
                "shards": self.shards(home),
                "manifests": {unit.path: {**json.loads(unit.model_dump_json()), "seconds": 0} for unit in units},
                "answers": self._answers(folder),
                "wrong": [line for unit in units for line in problems(folder, unit)],
            }
            found["wrong"] += [f"a draft was left: {name}" for name in found["shards"] if TEMPORARY in name]
            if "s3" in self.parts and (left := self.servers["s3"].uploads(BUCKET)):
                found["uploads"] = left  # a killed process cannot abort what it began
            if not found["wrong"]:
                rebuild(folder)
                if self._answers(folder) != found["answers"]:
                    found["wrong"].append("a rebuilt catalog answers otherwise")
            return found

    def _answers(self, folder: Path) -> dict[str, Any]:
        """Layer -> its rows, counted and hashed together; the funnel; samples that stand twice."""
        found: dict[str, Any] = {}
        for layer in LAYERS:
            columns = "* EXCLUDE (shard)" if layer == "images" else "*"
            sql = f"SELECT count(*) AS rows, bit_xor(hash(l)) AS hash FROM (SELECT {columns} FROM {layer}) l"
            found[layer] = query(folder, sql).to_pylist()
        found["funnel"] = query(folder, "SELECT * FROM funnel ORDER BY ALL").to_pylist()
        found["twice"] = query(folder, "SELECT count(*) - count(DISTINCT sample_id) AS n FROM images").to_pylist()
        return found

    def copy(self, home: str, to: str) -> None:
        if "s3" not in self.parts:
            shutil.copytree(self.folder / home, self.folder / to, symlinks=True)
            return
        for key in self._keys(home):
            source = {"Bucket": BUCKET, "Key": key}
            name = f"{to}/{key.removeprefix(home)[1:]}"
            self.servers["s3"].client.copy_object(Bucket=BUCKET, Key=name, CopySource=source)

    def remove(self, home: str) -> None:
        shutil.rmtree(self.folder / home, ignore_errors=True)
        if "s3" in self.parts:
            for key in self._keys(home):
                self.servers["s3"].client.delete_object(Bucket=BUCKET, Key=key)
