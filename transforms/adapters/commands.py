"""Running a program of another environment on one picture: files in, files out, and limits.

The invariant: the program gets the picture, the facts on the allow-list and an environment with nothing of ours but
PATH and the GPU given to us; it runs in a folder of its own that is removed, without a shell, under limits on time,
memory and the size of a file; its children end with it. Whatever it does, this process goes on. What it prints is
logged, never kept: it may name places of this machine. It is trusted with the picture: it keeps its network.

>>> run(("python", "/opt/x/run.py", "{image}", "{out}"), pixels, image, {}, seconds=60, memory_gb=8, read=labels)
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from PIL import Image

from infra.errors import ConfigError, Terminal
from infra.settings import QUIET
from transforms.decoded import Pixels

T = TypeVar("T")
_log = logging.getLogger(__name__)

FACTS = {"modality": "modality", "anatomy": "anatomy", "view": "view", "spacing": "pixel_spacing"}
"""What a program is told of a picture -> the column of `images`. Everything else stays here."""
LARGEST = 1 << 30
"""Bytes that a file the program writes may have."""
PRINTED = 2000
"""Characters of what it printed last that are logged."""

_LIMITED = """
import os, resource, sys
memory, size = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
if memory:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
os.execv(sys.argv[3], sys.argv[4:])
"""
"""Sets the limits in the child: to do so between fork and exec (preexec_fn) may hang a process that has threads."""


def run(
    command: Sequence[str], pixels: Pixels, image: Mapping[str, Any], environment: Mapping[str, str], *,
    seconds: float, memory_gb: float | None, read: Callable[[Path], T],
) -> T:
    """What `read` makes of the folder that the program has filled.

    {image} in the command is the picture as PNG, {facts} a JSON of FACTS, {out} an empty folder. Raises ConfigError
    where there is no such program; Terminal COMMAND_TIMEOUT or COMMAND_FAILED where it does not end well.
    """
    program = program_of(command)
    with TemporaryDirectory(prefix="medloom-", ignore_cleanup_errors=True) as folder:
        room = Path(folder)
        places = {"{image}": room / "image.png", "{facts}": room / "facts.json", "{out}": room / "out"}
        places["{out}"].mkdir()
        Image.fromarray(pixels).save(places["{image}"])
        facts = {name: image.get(column) for name, column in FACTS.items()}
        places["{facts}"].write_text(json.dumps(facts, sort_keys=True), encoding="utf-8")
        arguments = [_filled(argument, places) for argument in command[1:]]
        own = {name: os.path.expandvars(value) for name, value in environment.items()}
        _ran([program, *arguments], room, {**_environment(room), **own}, seconds, memory_gb)
        return read(places["{out}"])


def program_of(command: Sequence[str]) -> str:
    """The full path of the program. Raises ConfigError where there is none."""
    name = os.path.expanduser(os.path.expandvars(command[0]))
    found = shutil.which(name)
    if found is None:
        raise ConfigError(f"{command[0]}: no such program on this machine; install it, or give its full path")
    return os.path.abspath(found)


def _filled(argument: str, places: Mapping[str, Path]) -> str:
    argument = os.path.expanduser(os.path.expandvars(argument))
    for mark, path in places.items():
        argument = argument.replace(mark, str(path))
    return argument


def _environment(room: Path) -> dict[str, str]:
    """PATH, the GPU that was given to us, and the switches that keep libraries quiet and offline."""
    ours = {name: os.environ[name] for name in ("PATH", "CUDA_VISIBLE_DEVICES") if name in os.environ}
    return {**QUIET, **ours, "HOME": str(room), "TMPDIR": str(room), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}


def _ran(command: list[str], room: Path, environment: dict[str, str], seconds: float, memory_gb: float | None) -> None:
    memory = int((memory_gb or 0) * 2**30)
    with open(room / "printed", "w+b") as printed:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LIMITED, str(memory), str(LARGEST), command[0], *command],
            cwd=room, env=environment, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # its children, too, and whatever it left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code == 0:
            return
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - PRINTED))
        _log.warning("%s printed last: %s", command[0], printed.read().decode(errors="replace"))
    if code is None:
        raise Terminal("COMMAND_TIMEOUT", f"the program did not end within {seconds:g} s; raise `seconds`")
    raise Terminal("COMMAND_FAILED", f"the program ended with {_said(code)}; what it printed last is in the log")


def _said(code: int) -> str:
    """An exit code in words."""
    try:
        return f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
