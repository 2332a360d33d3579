"""Calls that may crash or explode, in a child process with a limit on memory and on time.

The invariant: a bad file costs itself. A codec that segfaults, a stream that unpacks to gigabytes or runs for ever ends
the child, never this process; the next call starts another one. A file is blamed only when a fresh child ends on it
too. The child is kept between calls, so a call costs what its bytes cost to carry.

>>> limited(decompress, stream, seconds=60)
array([[…
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any, ParamSpec, TypeVar

from infra.errors import ItemError

P = ParamSpec("P")
T = TypeVar("T")

MEMORY = 3 << 30
"""Bytes of address space that a child may have."""
SECONDS = 120
"""Time that one call may take, if it says nothing else."""


class Ended(Exception):
    """The child ended on a call. `how`: "crashed", "memory" or "time"."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


def limited(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function of a module says, called in the child; its arguments and its answer are pickled.

    Raises the ItemError that it raises; Ended when it takes too long or too much memory, and with anything else.
    """
    with _LOCK:
        child = _child()
        try:
            return child.call(function, args, kwargs)  # type: ignore[no-any-return]
        except Ended as ended:
            if child.calls == 1 or ended.how == "time":
                raise
        return _child().call(function, args, kwargs)  # type: ignore[no-any-return]


class _Child:
    """A process that answers calls one after the other, and ends when this one does."""

    def __init__(self) -> None:
        ours, theirs = Pipe()
        quiet = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import _serve; _serve({theirs.fileno()}, {MEMORY})"],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # codecs print what they think of a file
                env={**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
        self._line = ours
        self.calls = 0
        self.owner = os.getpid()

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.calls += 1
        try:
            self._line.send((function, args, kwargs, SECONDS))
            kind, answer = self._line.recv()
        except (EOFError, OSError):
            raise Ended("time" if self.close() == -signal.SIGALRM else "crashed") from None
        except BaseException:  # interrupted between call and answer: the next call must not get this one's
            self.close()
            raise
        if kind == "memory":
            self.close()
            raise Ended("memory")
        if kind == "raised":
            raise answer
        return answer

    def close(self) -> int:
        """End the child; how it ended."""
        global _CHILD
        _CHILD = None
        self._line.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(1)
        self._process.kill()
        return self._process.wait()


_LOCK = threading.Lock()
_CHILD: _Child | None = None


def _child() -> _Child:
    global _CHILD
    if _CHILD is None or _CHILD.owner != os.getpid():  # a fork must not talk on its parent's line
        _CHILD = _Child()
    return _CHILD


def _serve(handle: int, memory: int) -> None:
    """The child: answer calls until the line is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    line = Connection(handle)
    while True:
        try:
            function, args, kwargs, seconds = line.recv()
        except EOFError:
            return
        signal.alarm(seconds)
        answer = _answer(function, args, kwargs)
        signal.alarm(0)
        line.send_bytes(answer)


def _answer(function: Callable[..., Any], args: Any, kwargs: Any) -> bytes:
    """What the parent reads. Any other error ends this process: whatever raised it may have left it in disorder."""
    try:
        return pickle.dumps(("said", function(*args, **kwargs)), pickle.HIGHEST_PROTOCOL)
    except ItemError as error:
        return pickle.dumps(("raised", error))
    except MemoryError:
        return pickle.dumps(("memory", None))
