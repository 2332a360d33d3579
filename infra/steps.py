"""Steps, chains of steps, and how they end: what runners take and give; and the runner that needs nothing else.

The invariant: every step of a chain ends in exactly one `Done`, until one fails or says it is the last.

>>> with InlineRunner() as runner:
...     [done.value for done in runner.run([[Step("a", lambda x, _: x + 1, 1)]])]
[2]
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from infra import redact
from infra.attempts import died
from infra.errors import MedloomError


@dataclass(frozen=True)
class Step:
    """One thing to run."""

    id: str
    call: Callable[[Any, Any], Any]
    payload: Any
    pool: str | None = None
    """steps of one pool run on workers that called `open` once and keep what it returned"""
    open: Callable[[], Any] | None = None
    cpus: float = 1
    gpus: float = 0
    memory_gb: float | None = None

    @property
    def shape(self) -> tuple[str | None, float, float, float]:
        """What it needs to run: steps of one shape wait for the same thing."""
        own = (self.pool or self.id) if self.open else None
        return own, self.cpus, self.gpus, self.memory_gb or 0.0


@dataclass(frozen=True)
class Last:
    """What a step returns to end its chain without an error."""

    value: Any


@dataclass(frozen=True)
class Done:
    """How a step ended: with a value, or with an error that stopped its chain."""

    step: Step
    value: Any = None
    error: str | None = None
    """the traceback of a bug, or the story of a process that died again and again"""
    fatal: MedloomError | None = None
    """an error of ours that says the whole run cannot work (ConfigError)"""
    skipped: int = 0
    """steps of the chain that will not run, since this one failed or was the last"""

    @classmethod
    def of(cls, step: Step, rest: Sequence[Step], value: Any, error: str | None, fatal: MedloomError | None) -> Done:
        """From what a step returned."""
        last = isinstance(value, Last)
        error = None if error is None else redact.text(error)  # Ray's own stories quote what a worker said
        return cls(step, value.value if last else value, error, fatal, len(rest) if last or error else 0)


class Runner(Protocol):
    """Runs chains; used as a context manager."""

    def __enter__(self) -> Runner: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...
    def run(self, chains: Iterable[Sequence[Step]]) -> Iterator[Done]:
        """Run all chains and yield each step as it ends, in no order. Chains are pulled as there is room."""
        ...


Ended = tuple[Any, str | None, MedloomError | None]
"""value, error and fatal of a Done: what travels back from a worker, without the payload"""


def call_step(step: Step, state: Any, after_a_death: bool | None = None) -> Ended:
    before = died.set(after_a_death)
    try:
        return step.call(step.payload, state), None, None
    except MedloomError as error:  # the disk, the store or the recipe: it concerns the whole run
        redact.scrub(error)
        return None, redact.text(str(error)), error
    except Exception:  # noqa: BLE001 - a bug in a step must be reported with its traceback, wherever it ran
        return None, redact.text(traceback.format_exc()), None
    finally:
        died.reset(before)


class InlineRunner:
    """One step after the other in this process: for tests and for debugging."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}

    def __enter__(self) -> InlineRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._states.clear()

    def run(self, chains: Iterable[Sequence[Step]]) -> Iterator[Done]:
        for chain in chains:
            for place, step in enumerate(chain, 1):
                done = Done.of(step, chain[place:], *call_step(step, self._state(step)))
                yield done
                if done.skipped:
                    break

    def _state(self, step: Step) -> Any:
        if step.pool is None or step.open is None:
            return None
        if step.pool not in self._states:
            self._states[step.pool] = step.open()
        return self._states[step.pool]
