"""Licence codes: which of several binds a derived row.

The invariant: a derived row never claims more freedom than any of its parts; what is unknown, or cannot be had together
under one of the licences, is null, and null is not open.

>>> strictest(["CC0-1.0", "CC-BY-4.0", "CC-BY-NC-4.0"])
'CC-BY-NC-4.0'
>>> strictest(["CC-BY-SA-4.0", "CC-BY-NC-4.0"]), strictest(["CC-BY-4.0", None])
(None, None)
>>> class_of("CC-BY-NC-4.0"), class_of(None), Policy.of("open,LicenseRef-X").fits("LicenseRef-X")
('research', 'unknown', True)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from infra.errors import ConfigError

FREE = frozenset({"CC0-1.0", "PDDL-1.0", "PUBLIC-DOMAIN", "PUBLIC-DOMAIN-US", "UNLICENSE", "0BSD"})
"""Codes that ask for nothing."""
ATTRIBUTION = frozenset({
    "MIT", "ISC", "APACHE-2.0", "BSD-2-CLAUSE", "BSD-3-CLAUSE", "ODC-BY-1.0", "CDLA-PERMISSIVE-1.0",
    "CDLA-PERMISSIVE-2.0",
})
"""Codes that ask for their notice."""
SHARE_ALIKE = frozenset({"ODBL-1.0"})


@cache
def demands(code: str) -> frozenset[str] | None:
    """What a licence asks for: a set of BY, SA, NC, ND; None for a code that is not known here."""
    name = code.upper()
    if name in FREE:
        return frozenset()
    if name in ATTRIBUTION:
        return frozenset({"BY"})
    if name in SHARE_ALIKE:
        return frozenset({"BY", "SA"})
    parts = name.split("-")
    if parts[0] != "CC" or "BY" not in parts:
        return None
    asked = [part for part in parts[1:] if not part[:1].isdigit() and part not in _PORTS]
    return frozenset(asked) if set(asked) <= {"BY", "SA", "NC", "ND"} else None


_PORTS = frozenset({"IGO", "DE", "US", "UK", "AU", "NL", "FR", "JP"})
"""Jurisdictions of ported Creative Commons licences: they change the law that rules, not what is asked."""


def strictest(codes: Iterable[str | None]) -> str | None:
    """The one of the codes that asks for all that any of them asks for; of equals, the last in alphabetical order.

    None where a code is unknown (None, or not known here while others differ), where no single one covers the rest
    (share-alike and non-commercial: a person has to decide), and where there are no codes.
    """
    found = set(codes)
    if None in found or not found:
        return None
    known = sorted(code for code in found if code is not None)
    if len(known) == 1:
        return known[0]
    asked = {code: demands(code) for code in known}
    everything: frozenset[str] = frozenset()
    for one in asked.values():
        if one is None:
            return None
        everything |= one
    covering = [code for code, one in asked.items() if one == everything]
    return covering[-1] if covering else None


CLASSES = ("open", "research", "other", "unknown")


def class_of(code: str | None) -> str:
    """What may be done under a licence, as one word.

    open: use for any purpose, perhaps with a notice or under the same licence; research: not commercially, or not
    changed (NC, ND); other: a code whose terms are not known here; unknown: no licence is known.
    """
    if code is None:
        return "unknown"
    asked = demands(code)
    if asked is None:
        return "other"
    return "research" if asked & {"NC", "ND"} else "open"


@dataclass(frozen=True)
class Policy:
    """Which licences a use takes: words of CLASSES, each with those before it but `unknown`, or codes by name.

    `open` takes open ones, `research` open and research ones, `all` everything, the unknown too. A code such as
    LicenseRef-NIH-CXR is taken where it is named, after its terms were read.
    """

    words: tuple[str, ...] = ("all",)

    @classmethod
    def of(cls, words: str) -> Policy:
        """From words with commas between them. Raises ConfigError for an empty one."""
        parts = tuple(part.strip() for part in words.split(","))
        if not all(parts):
            raise ConfigError("--licences: write open, research or all, or codes such as open,LicenseRef-NIH-CXR")
        return cls(parts)

    @cache  # noqa: B019  a handful of codes and policies
    def fits(self, code: str | None) -> bool:
        if "all" in self.words:
            return True
        kind = class_of(code)
        return kind in self.words or (kind == "open" and "research" in self.words) or (
            code is not None and code.upper() in {word.upper() for word in self.words}
        )
