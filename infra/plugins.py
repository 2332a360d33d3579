"""Plug-ins: a module in its folder, or an entry point of another package, is all it takes.

A plug-in is a module that defines

    NAME      what recipes call it
    REQUIRES  import name -> what to install (may be empty)
    Params    a pydantic model of what a recipe may set

and what its kind asks for (see `KINDS`). It may define `available() -> str | None`, the reason why it cannot run here.
A module of the folder without a NAME is not a plug-in. Importing a plug-in module must be cheap: heavy imports belong
where they are used.

>>> load("connector", "dicom").NAME
'dicom'
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Protocol

from pydantic import BaseModel

from infra.errors import ConfigError

KINDS: Mapping[str, tuple[str, str]] = {
    "connector": ("connectors", "list_partitions"),
    "decoder": ("transforms.decoders", "decode"),
    "stage": ("transforms", "make_stage"),
    "expert": ("transforms.experts", "find"),
    "volume_expert": ("transforms.experts", "segment"),
    "classifier": ("transforms.classifiers", "open_classifier"),
    "captioner": ("transforms.captioners", "open_captioner"),
    "corpus": ("transforms.corpora", "read"),
    "exporter": ("catalog.exports", "write"),
}
"""kind -> (the folder its plug-ins lie in, the callable that makes a module one)"""


class Plugin(Protocol):
    """What every plug-in module has."""

    NAME: str
    REQUIRES: Mapping[str, str]
    Params: type[BaseModel]


@dataclass(frozen=True)
class Listed:
    """A plug-in as `medloom plugins` shows it."""

    kind: str
    name: str
    module: str
    summary: str
    reason: str | None
    """Why it cannot run here and what to do, or None."""


def _modules(kind: str) -> Iterator[Any]:
    folder, callable_name = KINDS[kind]
    package = importlib.import_module(folder)
    for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        module = importlib.import_module(f"{folder}.{found.name}")
        if hasattr(module, "NAME") and hasattr(module, callable_name):
            yield module
    for entry in sorted(importlib.metadata.entry_points(group=f"medloom.{kind}"), key=lambda e: e.name):
        yield entry.load()


@cache
def plugins(kind: str) -> Mapping[str, Any]:
    """All plug-ins of a kind by name. Raises ConfigError when two claim one name."""
    found: dict[str, Any] = {}
    for module in _modules(kind):
        if module.NAME in found:
            raise ConfigError(
                f"two {kind} plug-ins are called {module.NAME!r}: {found[module.NAME].__name__} and "
                f"{module.__name__}; rename one of them"
            )
        found[module.NAME] = module
    return found


def why_unavailable(module: Any) -> str | None:
    """Why a plug-in cannot run here and what to install, or None when it can."""
    missing = [pip for name, pip in module.REQUIRES.items() if importlib.util.find_spec(name) is None]
    if missing:
        return f"needs {', '.join(missing)}: pip install {' '.join(missing)}"
    check = getattr(module, "available", None)
    return check() if check else None


def load(kind: str, name: str) -> Any:
    """The plug-in module of that kind and name. Raises ConfigError when there is none, or it cannot run here."""
    known = plugins(kind)
    if name not in known:
        raise ConfigError(f"there is no {kind} {name!r}{nearest(name, known)}; `medloom plugins` lists them")
    if reason := why_unavailable(known[name]):
        raise ConfigError(f"the {kind} {name!r} cannot run here: {reason}")
    return known[name]


def listed() -> Iterator[Listed]:
    """Every plug-in of every kind, available or not."""
    for kind in KINDS:
        for name, module in plugins(kind).items():
            summary = (module.__doc__ or "").strip().split("\n")[0]
            yield Listed(kind, name, module.__name__, summary, why_unavailable(module))


def nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """' (did you mean …?)' for a word that is close to a known one, else ''."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
