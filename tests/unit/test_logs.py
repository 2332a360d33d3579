"""Logs: lines that machines or people read, from several processes, without secrets whoever writes them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import telemetry
from infra.telemetry import logs

SECRET = "sk-planted-4711-never-to-be-seen"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    make = logging.getLogRecordFactory()
    yield
    telemetry.end()
    logs.set_up({})
    logging.setLogRecordFactory(make)


def test_logs_are_lines_of_json_without_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.begin([], {"MEDLOOM_LOG": "json", "MEDLOOM_LOG_FILE": str(tmp_path / "a" / "log")})
    log = logging.getLogger("connectors.pmc.bucket")
    with telemetry.span("unit", stage="caption"):
        log.info("asked with %s", SECRET, extra={"facts": {"key": SECRET, "n": 2}})
    try:
        raise ValueError(f"bug {SECRET}") from KeyError(SECRET)
    except ValueError:
        log.exception("it failed")
    telemetry.count("x")
    lines = [json.loads(line) for line in (tmp_path / "a" / "log").read_text().splitlines()]
    assert [line["message"] for line in lines] == ["asked with ***", "unit", "it failed"]
    assert lines[0]["key"] == "***" and lines[0]["n"] == 2 and lines[1]["stage"] == "caption"
    assert lines[1]["seconds"] >= 0 and lines[0]["time"].endswith("Z") and lines[0]["level"] == "INFO"
    assert "ValueError: bug ***" in lines[2]["exception"] and "KeyError" in lines[2]["exception"]
    said = capsys.readouterr()
    assert [json.loads(line) for line in said.err.splitlines()] == lines and said.out == ""
    assert (tmp_path / "a" / "log").stat().st_mode & 0o777 == 0o600


def test_other_libraries_records_hold_no_secrets_either(caplog: pytest.LogCaptureFixture) -> None:
    logs.set_up({})
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("urllib3").debug("GET %s", f"http://ada:lovelace@host/?key={SECRET}")
        logging.getLogger("x").debug("wrong arguments %s %s", "one") if sys.flags.dev_mode else None
    assert caplog.messages == ["GET http://***@host/?key=***"]


def test_text_logs_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.begin([], {"MEDLOOM_LOG": "text"})
    logging.getLogger("flows.x").warning("low disk", extra={"facts": {"free_gb": 2}})
    logging.getLogger("somebody.else").warning("noise")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING flows.x: low disk free_gb=2")


def test_many_processes_write_whole_lines_to_one_file(tmp_path: Path) -> None:
    code = (
        "import logging, sys\nfrom infra.telemetry import logs\n"
        "logs.set_up({'MEDLOOM_LOG_FILE': sys.argv[1]})\n"
        "for n in range(200): logging.getLogger('infra.x').info('w' * 300, extra={'facts': {'n': n}})"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(line["n"] for line in lines) == sorted(3 * list(range(200)))
