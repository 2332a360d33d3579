"""The doctor: every answer of every check, and real faults planted in a real home that it must find."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from makehome import make_home
from typer.testing import CliRunner
from weightsfolder import named_so

from catalog import views
from catalog.schema import VERSION
from flows import doctor as ask
from flows.doctor import Access, Address, Clocks, Disk, Finding, Formats, Left, Listening, Named
from flows.doctor_facts import gather
from flows.openports import listening
from infra.storage import _HOST

NOW = 1.79e9
SECRET = "planted-pa55word-never-to-be-seen"
LOCAL = Address("caption", "http://127.0.0.1:9014/v1", True, True)
FAR = Address("caption", "https://models.example.org/v1", False, None, "MODEL_KEY", True)
DISK = Disk(500 << 30, 1000 << 30, 10**7, 2 * 10**7, 10 << 30, 1000)
HOME = Access("home", True, True)
PORT = Listening("Prefect", 7, "127.0.0.1:4200", True, False)


def levels(found: Iterable[Finding]) -> list[str]:
    made = list(found)
    assert all(one.do for one in made if one.level != "ok"), "a fault says what to do"
    return [one.level for one in made]


@pytest.mark.parametrize(("found", "said"), [
    (ask.python((3, 11, 2), ">=3.11"), ["ok"]),
    (ask.python((3, 10, 9), ">=3.11"), ["problem"]),
    (ask.versions({"ray>=2.60": ("ray", "2.61"), "duckdb==1.5.5": ("duckdb", "1.5.5")}), ["ok"]),
    (ask.versions({"duckdb==1.5.5": ("duckdb", "1.4.0")}), ["problem"]),
    (ask.versions({"duckdb==1.5.5": ("duckdb", None)}), ["problem"]),
    (ask.versions({"fastapi<0.151": ("fastapi", "0.151.0")}), ["problem"]),
    (ask.recipe(None), []),
    (ask.recipe("caption: unknown key"), ["problem"]),
    (ask.plugins([Named("caption", "llm")]), ["ok"]),
    (ask.plugins([Named("caption", "llm", "needs openai: pip install openai"), Named("a", "b")]), ["problem"]),
    (ask.weights([Named("ground", "lwnet-vessels")]), ["ok"]),
    (ask.weights([Named("ground", "lwnet-vessels", "model.onnx: has the hash 0, not 1")]), ["problem"]),
    (ask.endpoints([LOCAL, FAR]), ["ok", "ok"]),
    (ask.endpoints([replace(LOCAL, reached=False)]), ["problem"]),
    (ask.endpoints([replace(FAR, key_set=False)]), ["problem"]),
    (ask.endpoints([replace(LOCAL, key="OPENAI_API_KEY")]), ["ok"]),
    (ask.services([replace(LOCAL, place="postgres"), FAR]), ["ok", "ok"]),
    (ask.services([replace(LOCAL, reached=False)]), ["problem"]),
    (ask.disk(DISK), ["ok"]),
    (ask.disk(replace(DISK, left=None)), ["ok"]),
    (ask.disk(replace(DISK, left=300 << 30)), ["warning"]),
    (ask.disk(replace(DISK, left=600 << 30)), ["problem"]),
    (ask.disk(replace(DISK, free=20 << 30, left=0)), ["warning"]),
    (ask.disk(replace(DISK, free=1 << 29, left=0)), ["problem"]),
    (ask.inodes(DISK), ["ok"]),
    (ask.inodes(replace(DISK, files_free=None)), []),
    (ask.inodes(replace(DISK, files_free=10**5)), ["warning"]),
    (ask.inodes(replace(DISK, files_free=2000, files_left=3000)), ["problem"]),
    (ask.access(HOME), ["ok"]),
    (ask.access(replace(HOME, exists=False)), ["ok"]),
    (ask.access(replace(HOME, writable=False)), ["problem"]),
    (ask.access(replace(HOME, others_may_read=True)), ["ok"]),
    (ask.access(replace(HOME, private=("ward",))), ["ok"]),
    (ask.access(replace(HOME, others_may_read=True, private=("ward",))), ["ok", "problem"]),
    (ask.access(replace(HOME, open_secrets=("home/secrets/deid.key",))), ["ok", "problem"]),
    (ask.ports([]), ["ok"]),
    (ask.ports([PORT]), ["ok"]),
    (ask.ports([PORT, replace(PORT, address="0.0.0.0:4200", loopback=False)]), ["problem"]),
    (ask.ports([replace(PORT, address="0.0.0.0:4200", loopback=False, guarded=True)]), ["warning"]),
    (ask.clock(Clocks(NOW, NOW - 5, NOW)), ["ok"]),
    (ask.clock(Clocks(NOW)), ["ok"]),
    (ask.clock(Clocks(0.0)), ["problem"]),
    (ask.clock(Clocks(NOW, NOW + 3600, NOW)), ["problem"]),
    (ask.clock(Clocks(NOW, None, NOW - 3600)), ["warning"]),
    (ask.left(Left()), []),
    (ask.left(Left(drafts=2)), ["ok"]),
    (ask.left(Left(foreign=2, lease="ada on node7 (process 4)")), ["warning", "warning"]),
    (ask.formats(Formats(2, 2, 2, 2, 1)), ["ok"]),
    (ask.formats(Formats(2, 2)), ["ok"]),
    (ask.formats(Formats(2, 2, 3, 2, 1)), ["problem"]),
    (ask.formats(Formats(2, 2, 2, 3, 1)), ["problem"]),
    (ask.formats(Formats(2, 2, 2, 1, 1)), ["warning"]),
    (ask.formats(Formats(2, 2, 1, 2, 1)), ["warning"]),
    (ask.formats(Formats(2, 2, 2, 2, 4, indexed=False)), ["warning"]),
    (ask.telemetry(None), []),
    (ask.telemetry("MEDLOOM_LOG='x' means nothing"), ["problem"]),
])
def test_every_answer_of_every_check(found: Iterable[Finding], said: list[str]) -> None:
    assert levels(found) == said


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MEDLOOM_CATALOG", "MEDLOOM_OTLP", "OTEL_EXPORTER_OTLP_ENDPOINT", "AWS_ENDPOINT_URL",
                 "AWS_ENDPOINT_URL_S3", "PREFECT_SERVER_DATABASE_CONNECTION_URL", "MEDLOOM_LOG", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return make_home(tmp_path)


def findings(home: Path, check: str, recipe: Path | None = None, **how: Any) -> list[Finding]:
    found = ask.judged(gather(home, None if recipe is None else str(recipe), **how))
    return [one for one in found if one.check == check]


def one(home: Path, check: str, recipe: Path | None = None, **how: Any) -> Finding:
    (found,) = findings(home, check, recipe, **how)
    return found


def test_a_sound_home_has_no_problem_and_nothing_in_it_changes(home: Path) -> None:
    home.chmod(0o700)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    found = [one for one in ask.judged(gather(home)) if one.check != "ports"]  # others test on this machine
    assert {one.level for one in found if one.check != "disk"} == {"ok"}
    assert one(home, "catalog").what == "snapshot 1"
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_a_home_that_is_not_there_yet_is_no_fault(tmp_path: Path) -> None:
    assert one(tmp_path / "a" / "b", "home").level == one(tmp_path / "a" / "b", "catalog").level == "ok"
    assert not (tmp_path / "a").exists()


def test_private_sources_may_not_be_read_by_all() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        if not all(above.stat().st_mode & stat.S_IXOTH for above in Path(folder).resolve().parents):
            pytest.skip("the folder for temporary files is closed to others")
        home = make_home(Path(folder))
        home.chmod(0o755)
        assert one(home, "home").level == "ok"
        Path(folder).chmod(0o755)
        assert "private sources (2)" in findings(home, "home")[-1].what
        home.chmod(0o750)
        assert one(home, "home").level == "ok"


def test_secrets_that_others_may_read_are_found(home: Path) -> None:
    (home / "secrets").mkdir()
    (home / "secrets" / "deid.key").write_text("x")
    (home / "secrets" / "deid.key").chmod(0o644)
    assert one(home, "secrets").do == f"chmod 600 {home / 'secrets' / 'deid.key'}"
    (home / "secrets" / "deid.key").chmod(0o600)
    assert not findings(home, "secrets")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_home_that_is_read_only_is_found(home: Path) -> None:
    home.chmod(0o500)
    try:
        assert one(home, "home").level == "problem"
    finally:
        home.chmod(0o700)


def test_an_index_of_another_time_is_found(home: Path) -> None:
    import duckdb

    for number, level in ((views.FORMAT + 1, "problem"), (views.FORMAT - 1, "warning")):
        with duckdb.connect(str(home / "catalog.ro.duckdb")) as con:
            con.execute(f"UPDATE format SET number = {number}")
        assert one(home, "catalog").level == level
    (home / "catalog.ro.duckdb").write_bytes(b"no database")
    assert one(home, "catalog").level == "warning"


def test_layers_of_a_newer_schema_are_found(home: Path) -> None:
    path = next((home / "manifests").rglob("*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": VERSION + 1}))
    assert one(home, "catalog").level == "problem"


def test_a_snapshot_that_readers_do_not_see_is_found(home: Path) -> None:
    record = json.loads((home / "builds" / "000001.json").read_text())
    (home / "builds" / "000002.json").write_text(json.dumps({**record, "number": 2}))
    assert one(home, "catalog").what.startswith("snapshot 2 is not in the index")


def test_a_build_from_the_future_speaks_against_the_clock(home: Path) -> None:
    record = json.loads((home / "builds" / "000001.json").read_text())
    ahead = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 7200))
    (home / "builds" / "000001.json").write_text(json.dumps({**record, "created_at": ahead}))
    assert one(home, "clock").level == "problem"


def test_what_dead_processes_left_is_found(home: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (home / "shards" / f".tmp-{_HOST}-{gone.pid}-x.parquet").touch()
    (home / "shards" / f".tmp-{_HOST}-{os.getpid()}-y.parquet").touch()
    old = home / f".tmp-elsewhere-1-{gone.pid}"
    old.touch()
    os.utime(old, (0, 0))
    foreign, mine = findings(home, "drafts")
    assert (foreign.level, mine.level) == ("warning", "ok") and mine.what.startswith("1 unfinished")
    record = {"held": True, "host": socket.gethostname(), "pid": gone.pid, "user": "ada"}
    (home / "lease.json").write_text(json.dumps(record))
    assert one(home, "lease").level == "warning"
    (home / "lease.json").write_text(json.dumps({**record, "pid": os.getpid()}))
    assert not findings(home, "lease")


RECIPE = """
name: small
sources:
  - {name: photos, use: images, layout: imagefolder, root: pictures, identifiers: public}
stages:
  - use: ground
    experts: [wnet]
  - use: caption
    captioner: llm
    options: {base_url: "%s", model: m}
  - use: verify
"""


def written(home: Path, base_url: str) -> Path:
    (home.parent / "pictures").mkdir(exist_ok=True)
    path = home.parent / "recipe.yaml"
    path.write_text(RECIPE % base_url)
    return path


def test_what_a_recipe_needs_is_looked_at(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    for name in ("lwnet-vessels", "lwnet-artery-vein"):
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "w.onnx").write_bytes(name.encode())
    named_so(monkeypatch, tmp_path / "weights", "lwnet-vessels", "lwnet-artery-vein")
    with socket.create_server(("127.0.0.1", 0)) as server:
        recipe = written(home, f"http://127.0.0.1:{server.getsockname()[1]}/v1")
        assert one(home, "endpoint caption", recipe).level == "ok"
        assert {f.level for f in findings(home, "weights", recipe)} == {"ok"}
    assert one(home, "endpoint caption", recipe).level == "problem"
    (tmp_path / "weights" / "lwnet-vessels" / "w.onnx").write_bytes(b"LWNET-VESSELS")
    assert [f.level for f in findings(home, "weights", recipe)].count("problem") == 1
    far = written(home, "https://models.example.org/v1")
    assert one(home, "endpoint caption", far).level == "problem"  # no key
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert "not tried" in one(home, "endpoint caption", far).what
    missing = one(home, "recipe", tmp_path / "none.yaml")
    assert missing.level == "problem" and "no recipe" in missing.what


def test_what_is_left_to_write_is_taken_from_what_units_wrote(home: Path) -> None:
    recipe = written(home, "http://127.0.0.1:9/v1")
    for path in (home / "manifests" / "photos" / "caption").glob("*.json"):
        path.unlink()
    captions = [json.loads(p.read_text()) for p in (home / "manifests" / "scans" / "caption").glob("*.json")]
    size = sum(shard["bytes"] for manifest in captions for shard in manifest["shards"])
    assert gather(home, str(recipe)).disk.left == size > 0
    assert gather(home).disk.left is None


def test_addresses_are_tried_on_this_machine_and_shown_without_passwords(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"postgresql+asyncpg://p:{SECRET}@127.0.0.1:{port}/p")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        monkeypatch.setenv("MEDLOOM_OTLP", "https://collector.example.org")
        assert one(home, "postgres").what == f"postgresql+asyncpg://127.0.0.1:{port} answers"
    assert one(home, "postgres").level == one(home, "s3").level == "problem"
    assert "not tried" in one(home, "collector").what
    monkeypatch.setenv("MEDLOOM_CATALOG", f"ducklake:postgres:host=127.0.0.1 port=9 password={SECRET}")
    assert SECRET not in json.dumps([f.what + f.do for f in ask.judged(gather(home))])


def test_a_switch_of_telemetry_that_means_nothing_is_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOOM_LOG", "loud")
    assert one(home, "telemetry").level == "problem"


@pytest.mark.parametrize(("host", "loopback", "environment"), [
    ("127.0.0.1", True, {}), ("0.0.0.0", False, {}), ("::", False, {}), ("::1", True, {}),
    ("0.0.0.0", False, {"PREFECT_SERVER_API_AUTH_STRING": "a:b"}),
])
def test_ports_of_ours_are_found_in_the_kernels_tables(host: str, loopback: bool, environment: dict[str, str]) -> None:
    code = (
        "import socket, sys\n"
        "family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET\n"
        "server = socket.create_server((sys.argv[1], 0), family=family)\n"
        "print(server.getsockname()[1], flush=True)\nsys.stdin.read()"
    )
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    process = subprocess.Popen(
        [sys.executable, "-c", code, host, "flows.server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )
    with process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            pytest.skip(f"nothing can listen on {host} here")
        (found,) = listening(only={process.pid, os.getpid()})
        assert process.stdin is not None
        process.stdin.close()
    assert found == Listening("Prefect", process.pid, f"{host}:{port}", loopback, bool(environment))


def test_the_command_says_it_in_words_and_in_json_and_ends_with_1_for_a_problem(home: Path) -> None:
    app = typer.Typer()
    app.command()(ask.doctor)
    home.chmod(0o700)
    (home / "secrets").mkdir()
    (home / "secrets" / "deid.key").write_text(SECRET)
    (home / "secrets" / "deid.key").chmod(0o604)
    ran = CliRunner().invoke(app, ["--home", str(home)])
    assert ran.exit_code == 1 and f"chmod 600 {home}" in ran.output and "problem   secrets" in ran.output
    told = CliRunner().invoke(app, ["--home", str(home), "--format", "json"])
    assert told.exit_code == 1 and {"check", "level", "what", "do"} == set(json.loads(told.output)[0])
    assert SECRET not in ran.output + told.output
