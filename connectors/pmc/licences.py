"""Licences of articles and figures: read from JATS, and compared with what the archive's own record says.

The invariant: a licence is only what is stated. Silence and contradiction both stay None, and unknown is not open.

>>> read_licence(meta)
Licence(code='CC-BY-4.0', evidence='license_ref: creativecommons.org/licenses/by/4.0', silent=False)
>>> compared(read_licence(meta), "CC BY")
Compared(licence=Licence(code='CC-BY-4.0', …), stated='CC-BY', agrees=True)
>>> licence_wanted("CC BY-NC", ("commercial",)), licence_wanted("CC BY", ("commercial",))
(False, True)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from catalog.licences import demands
from connectors.pmc.xml import XLINK_HREF, Element, words


@dataclass(frozen=True)
class Licence:
    """A licence as an SPDX-like code, and the element and words it was read from; None: it is not stated."""

    code: str | None
    evidence: str | None
    silent: bool = False
    """nothing speaks of a licence: at most there is a copyright notice that reserves nothing"""


class Compared(NamedTuple):
    """An article's licence beside that of its archive's record."""

    licence: Licence
    """the article's; the record's where the article is silent; unknown where they differ"""
    stated: str | None
    """what the record says, as an SPDX-like code"""
    agrees: bool | None
    """None: one of them says nothing that can be compared"""


_URL = re.compile(
    r"creativecommons\.org/+(?:licenses/+(?P<kind>by[a-z-]*)|publicdomain/+(?P<free>zero|mark))"
    r"(?:/+(?P<version>\d\.\d))?(?:/+(?P<port>[a-z]{2,3})\b)?", re.IGNORECASE,
)
_GAP = r"[\s\-‐‑–—/,(]*"
_PHRASE = re.compile(
    rf"(?:creative\s+commons|\bCC){_GAP}(?:licen[cs]e{_GAP})?(?:(?P<zero>(?:zero|0)\b)|(?:attribution|by)\b"
    rf"(?P<kind>(?:{_GAP}(?:non{_GAP}commercial|nc|no{_GAP}deriv\w*|nd|share{_GAP}alike|sa)\b)*)"
    rf"(?:{_GAP}(?:licen[cs]e|international|unported|generic|version))*{_GAP}(?P<version>\d\.\d)?)", re.IGNORECASE,
)
_RESERVED = re.compile("rights reserved|permission", re.IGNORECASE)


def read_licence(holder: Element) -> Licence:
    """The licence that an `article-meta` or `permissions` element states.

    Addresses and words are both read. Where they contradict each other the licence is unknown, with both as evidence,
    except for a CC0 in the running text: publishers waive rights in data there, not in the article.
    """
    licences = list(holder.iter("license"))
    stated = [*_urls("license_ref", (words(e) for e in holder.iter("{*}license_ref", "license_ref")))]
    addresses = [e.get(XLINK_HREF, "") for e in licences]
    stated += _urls("license/@xlink:href", addresses)
    links = [e.get(XLINK_HREF, "") for licence in licences for e in licence.iter("ext-link", "uri")]
    prose = [words(e) for e in licences]
    copyrights = [words(e) for e in holder.iter("copyright-statement")]
    told = [*_urls("license", links + prose), *_phrases("license", prose)]
    told += [*_urls("copyright-statement", copyrights), *_phrases("copyright-statement", copyrights)]
    if any(code != "CC0-1.0" for code, _ in stated + told):
        told = [(code, evidence) for code, evidence in told if not code.startswith("CC0")]
    found = stated + told
    if not found:
        unclear = next((said for said in prose + addresses + copyrights if said), None)
        silent = not any(prose + addresses) and not any(map(_RESERVED.search, copyrights))
        return Licence(None, unclear and f"no known licence is named in: {unclear[:200]}", silent)
    if len({family(code) for code, _ in found}) > 1:
        return Licence(None, "contradictory: " + "; ".join(dict.fromkeys(evidence for _, evidence in found)))
    return Licence(*next((one for one in found if re.search(r"\d\.\d", one[0])), found[0]))


TEXT_MINING = "LicenseRef-PMC-TDM"
"""PMC's code TDM: text mining and fair use only, never open."""


def compared(own: Licence, code: str | None, field: str = "license_code") -> Compared:
    """An article's licence beside the `code` that its archive's record states: "CC BY", "CC0", "TDM", or None.

    Families are compared: a version that the record lacks is no conflict.
    """
    stated = _stated(code)
    evidence = f"metadata: {field} {code}"
    if stated is None:
        return Compared(own, None, None)
    if own.silent:
        return Compared(Licence(stated, "; ".join(filter(None, (evidence, own.evidence)))), stated, None)
    if own.code is None:
        return Compared(Licence(None, f"{own.evidence}; {evidence}"), stated, None)
    if family(own.code) == family(stated):
        return Compared(own, stated, True)
    return Compared(Licence(None, f"contradictory: {own.evidence}; {evidence}"), stated, False)


def _stated(code: str | None) -> str | None:
    code = (code or "").strip()
    if code.upper() in ("", "NONE", "NO-CC CODE"):
        return None
    if code.upper() == "TDM":
        return TEXT_MINING
    known = [found for found, _ in (*_urls("", [code]), *_phrases("", [code]))]
    return known[0] if known else "LicenseRef-PMC-" + re.sub(r"[^A-Za-z0-9.]+", "-", code).strip("-")


def _urls(where: str, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    for match in (match for text in texts for match in _URL.finditer(text)):
        free, kind, port = match["free"], match["kind"], match["port"]
        if free:
            code = "CC0-1.0" if free.lower() == "zero" else "PUBLIC-DOMAIN"
        else:
            code = "-".join(filter(None, ("CC", kind.strip("-").upper(), match["version"], (port or "").upper())))
        yield code, f"{where}: {match[0]}"


def _phrases(where: str, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    for match in (match for text in texts for match in _PHRASE.finditer(text)):
        if match["zero"]:
            yield "CC0-1.0", f"{where}: {match[0]}"
            continue
        kind = re.sub(r"[\W_]", "", match["kind"].lower())
        kind = kind.replace("noncommercial", "nc").replace("sharealike", "sa")
        terms = [term for term, sign in (("NC", "nc"), ("ND", "n(?:d|oderiv)"), ("SA", "sa")) if re.search(sign, kind)]
        yield "-".join(filter(None, ("CC-BY", *terms, match["version"]))), f"{where}: {match[0].rstrip(' ,(')}"


# classes, by the codes that PMC's metadata states

MINED = "TDM"
"""PMC's code for author manuscripts that may be mined and not published: never part of a class."""


def family(code: str) -> str:
    """A licence code without its version: "CC BY-NC 4.0", "cc-by-nc" and "CC-BY-NC-4.0" are all CC-BY-NC."""
    return re.sub(r"-\d\.\d.*", "", re.sub(r"[\s_]+", "-", code.strip().upper()))


def licence_class(code: str | None) -> str:
    """commercial, noncommercial, other (none stated, or not a Creative Commons one), or TDM."""
    name = family(code or "")
    if name in (MINED, "CC0"):
        return MINED if name == MINED else "commercial"
    asked = demands(name)
    if asked is None:
        return "other"
    return "noncommercial" if "NC" in asked else "commercial"


def licence_wanted(code: str | None, wanted: Iterable[str]) -> bool:
    """Whether a stated licence is of one of the classes, or of the family of one of the codes."""
    return licence_class(code) in wanted or family(code or "") in map(family, wanted)


def check_licences(wanted: Iterable[str]) -> None:
    """Raises ValueError for what is neither a class nor a code."""
    for name in wanted:
        if name not in ("commercial", "noncommercial", "other") and licence_class(name) == "other":
            raise ValueError(
                f"licences: {name!r} is neither commercial, noncommercial, other, nor a code such as CC0, CC-BY-NC, TDM"
            )
