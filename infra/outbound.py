"""The outbound scan: text that is about to leave this machine is looked through for identifiers of people.

The invariant: what is found is named by its kind, never repeated: not in the error, not in a log. This is the last of
several nets (headers are de-identified before anything is written); it stops what is plainly an identifier and cannot
know a bare name. The patterns are data: infra/outbound.yaml. A key or password that this process holds counts as one
too (`secret`; infra/redact.py).

False alarms, measured on text without patients' identifiers: none in 160 reports (596 sections) of the Open-i chest
X-ray set, whose own are blanked, and none in 5,972 English questions of SLAKE; in 1,247 paragraphs of PMC articles 2,
both e-mail addresses of authors. How many identifiers of real reports it finds cannot be measured on such data.

>>> identifiers("Call 555-010-4477. MRN: 00451877.")
('phone', 'record_number')
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from infra.redact import holds

PATTERNS = Path(__file__).with_name("outbound.yaml")
Outbound = Literal["plain", "strict", "off"]
"""How texts are scanned: for plain identifiers; also titles with names, full dates and long numbers; not at all."""


@cache
def _patterns(strictness: Outbound) -> Mapping[str, re.Pattern[str]]:
    data = yaml.safe_load(PATTERNS.read_text(encoding="utf-8"))
    listed = {**data["plain"], **(data["strict"] if strictness == "strict" else {})}
    return {kind: re.compile(listed[kind].replace("\n", ""), re.IGNORECASE) for kind in sorted(listed)}


def identifiers(text: str, strictness: Outbound = "plain", private: Iterable[str] = ()) -> tuple[str, ...]:
    """The kinds of identifiers in a text, in alphabetical order; none: ().

    `private` are values that the caller knows to be identifying (names, numbers of a source's own headers); they are
    looked for as whole words, letter case ignored, in any order of a DICOM name's parts, and come back as "private".
    """
    if strictness == "off":
        return ()
    found = [kind for kind, pattern in _patterns(strictness).items() if pattern.search(text)]
    found += ["private"] * _named(text, private) + ["secret"] * holds(text)
    return tuple(sorted(found))


def _named(text: str, private: Iterable[str]) -> bool:
    words = re.findall(r"\w+", text.casefold())
    joined = f" {' '.join(words)} "
    for value in private:
        parts = re.findall(r"\w+", value.casefold())
        together = f" {' '.join(parts)} ", f" {' '.join(reversed(parts))} "
        if parts and len("".join(parts)) > 2 and any(form in joined for form in together):
            return True
    return False
