"""Logs: one setup for driver and workers, quiet by default, and without secrets whoever writes them.

The invariant: every record of this process, of ours or of a library's, is made without secrets (infra/redact.py),
before any handler sees it: Prefect's, which writes to its database, too. What ours say is facts by name; the contents
of items are no facts, and a private source's name is a pseudonym.

    MEDLOOM_LOG=json|text      lines on stderr
    MEDLOOM_LOG_FILE=PATH      lines in a file (JSON unless MEDLOOM_LOG=text), one write a line: processes share it
    MEDLOOM_LOG_LEVEL=DEBUG    also each request to a model and each call of an object store; default INFO

>>> set_up({"MEDLOOM_LOG": "json"})
>>> logging.getLogger("infra.x").info("unit", extra={"facts": {"stage": "caption", "seconds": 1.5}})
{"time": "2026-11-27T12:00:00.000Z", "level": "INFO", "logger": "infra.x", "message": "unit", "stage": "caption", …}
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra import redact
from infra.errors import ConfigError

OURS = ("flows", "connectors", "transforms", "catalog", "infra")
"""Loggers of our rooms, by their modules' names."""
RUNS = ("prefect.flow_runs", "prefect.task_runs")
"""What our flows say, which Prefect's handlers get as well."""
CAP, LETTERS = 20, 300
"""Warnings that a unit's manifest keeps, and the letters of one."""
_MINE = "medloom"


def set_up(environment: Mapping[str, str] | None = None) -> None:
    """Make records without secrets from now on, and let ours be written where the environment says; again is the same.

    Raises ConfigError for a value of MEDLOOM_LOG or MEDLOOM_LOG_LEVEL that means nothing.
    """
    environment = os.environ if environment is None else environment
    form, level = check(environment)
    file = environment.get("MEDLOOM_LOG_FILE")
    make = logging.getLogRecordFactory()
    if not isinstance(make, _CleanRecords):
        logging.setLogRecordFactory(_CleanRecords(make))
    handlers: list[logging.Handler] = []
    if form in ("json", "text"):
        handlers.append(logging.StreamHandler(sys.stderr))
    if file:
        handlers.append(_Lines(Path(file)))
    for handler in handlers:
        handler.setFormatter(_Text() if form == "text" else _Json())
    for name in (*OURS, *RUNS):
        log = logging.getLogger(name)
        for old in [h for h in log.handlers if h.get_name() == _MINE]:
            log.removeHandler(old)
            old.close()
        for handler in handlers:
            handler.set_name(_MINE)
            log.addHandler(handler)
        if name in OURS:
            log.setLevel(level if handlers else logging.NOTSET)
            log.propagate = not handlers  # Prefect has a handler of its own at the root, which would say it twice


def check(environment: Mapping[str, str]) -> tuple[str, str]:
    """Form and level that the environment asks for. Raises as `set_up` does."""
    form, level = environment.get("MEDLOOM_LOG", ""), environment.get("MEDLOOM_LOG_LEVEL", "INFO").upper()
    if form not in ("", "off", "json", "text"):
        raise ConfigError(f"MEDLOOM_LOG={form!r} means nothing; set it to json or text, or unset it")
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ConfigError(f"MEDLOOM_LOG_LEVEL={level!r} means nothing; set it to DEBUG, INFO, WARNING or ERROR")
    return form, level


class _CleanRecords:
    """A factory of records that hold no secrets."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._make(*args, **kwargs)
        try:
            said = record.getMessage()
        except (TypeError, ValueError, KeyError):
            return record  # wrong arguments: logging itself says so, with the place
        if (clean := redact.text(said)) != said:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = redact.trace(record.exc_info[1]).rstrip("\n")  # formatters take it as it is
        return record


class _Lines(logging.Handler):
    """Appends lines to a file that several processes write to; each line is one write to the end of the file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(self._file, f"{self.format(record)}\n".encode("utf-8", "replace"))
        except OSError:  # a full disk must not stop a build
            self.handleError(record)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        super().close()


def _when(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _when(record), "level": record.levelname, "logger": record.name, "message": record.getMessage(),
            "pid": record.process, **_facts(record),
        }
        if record.exc_info:
            line["exception"] = record.exc_text
        return json.dumps(line, ensure_ascii=False, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {name}={value}" for name, value in _facts(record).items())
        line = f"{_when(record)} {record.levelname:7} {record.name}: {record.getMessage()}{facts}"
        return f"{line}\n{record.exc_text}" if record.exc_info else line


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    """What `extra={"facts": …}` gave, without secrets."""
    facts: Mapping[str, Any] = getattr(record, "facts", {})
    return {name: redact.text(value)[:LETTERS] if isinstance(value, str) else value for name, value in facts.items()}


class Warnings(logging.Handler):
    """Gathers what ours warned of while a unit ran on a worker, so that its manifest can say it: capped, counted."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: dict[str, int] = {}
        for name in OURS:
            logging.getLogger(name).addHandler(self)

    def detach(self) -> None:
        """Listen no more; what was said can still be taken."""
        for name in OURS:
            logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        said = f"{record.name}: {record.getMessage()}"[:LETTERS]
        if said in self._said or len(self._said) < CAP:
            self._said[said] = self._said.get(said, 0) + 1
        else:
            self._said["…"] = self._said.get("…", 0) + 1

    def taken(self) -> list[str]:
        """What was said since the last call."""
        said, self._said = self._said, {}
        return [words if times == 1 else f"{words} ({times} times)" for words, times in said.items()]
