"""The configuration of a MONAI bundle, read as data.

The invariant: what comes out are numbers, words, lists and tables; a reference (@name) is followed to such, and every
expression ($...) and every class that is not on the caller's list is refused with its name. Nothing is imported by a
name that a file gives.

>>> Plain("x", {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96]}}).call(
...     "inferer", "monai.inferers", frozenset({"SlidingWindowInferer"}))
('SlidingWindowInferer', {'roi_size': [96, 96, 96]})
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from infra.errors import ConfigError

DEEPEST = 20
"""Steps of references and of nesting that are followed."""
_REFERENCE = re.compile(r"\$?@([\w]+(?:(?:::|#)\w+)*)")
_OURS = frozenset({"device", "network", "predictor"})
"""Names that stand for what we place ourselves."""


def refuse(address: str, what: str, said: Any) -> NoReturn:
    """Raises ConfigError for what is not run."""
    raise ConfigError(
        f"{address}: {what} says {said!r:.120}, which is not among what may be run here; nothing of it was run. Where "
        "you trust the bundle, run it by the expert command, in an environment of its own"
    )


@dataclass(frozen=True)
class Plain:
    """A configuration and the address to name in errors."""

    address: str
    config: Mapping[str, Any]

    def call(self, entry: str, package: str, allowed: frozenset[str]) -> tuple[str, dict[str, Any]]:
        """(class, arguments) of an entry whose `_target_` is one of `allowed` in `package`."""
        said = self.config.get(entry)
        if not isinstance(said, dict):
            raise ConfigError(f"{self.address}: its configuration has no {entry} with a _target_")
        return self.checked(said, package, allowed, entry)

    def checked(
        self, said: Mapping[str, Any], package: str, allowed: frozenset[str], where: str
    ) -> tuple[str, dict[str, Any]]:
        """(class, arguments) of an object. Raises ConfigError for a class or an argument that is not plain."""
        target = said.get("_target_")
        name = target.removeprefix(f"{package}.") if isinstance(target, str) else ""
        if name not in allowed:
            refuse(self.address, f"{where}._target_", target)
        arguments = {
            key: self.value(value, f"{where}.{key}")
            for key, value in said.items()
            if not key.startswith("_") and not (isinstance(value, str) and _leaf(value) in _OURS)
        }
        return name, arguments

    def value(self, said: Any, where: str, depth: int = 0) -> Any:
        """A value with its references followed."""
        if depth > DEEPEST:
            raise ConfigError(f"{self.address}: {where} refers to itself, or is nested too deep")
        if isinstance(said, dict):
            if "_target_" in said:
                refuse(self.address, where, said["_target_"])
            return {key: self.value(value, f"{where}.{key}", depth + 1) for key, value in said.items()}
        if isinstance(said, list):
            return [self.value(value, where, depth + 1) for value in said]
        if isinstance(said, str) and said[:1] in ("$", "@", "%"):
            return self.value(self.referred(said), where, depth + 1)
        return said

    def referred(self, said: str) -> Any:
        """What a reference names. Raises ConfigError for an expression, or a name that is not there."""
        match = _REFERENCE.fullmatch(said)
        if match is None:
            refuse(self.address, "an expression", said)
        found: Any = self.config
        for part in re.split(r"::|#", match[1]):
            try:
                found = found[int(part)] if isinstance(found, list) else found[part]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise ConfigError(f"{self.address}: {said} refers to what is not there") from error
        return found


def _leaf(said: str) -> str | None:
    """The name that a reference consists of."""
    match = _REFERENCE.fullmatch(said)
    return match[1] if match else None
