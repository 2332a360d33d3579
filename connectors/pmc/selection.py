"""Which articles of the PMC bucket are wanted: by what its metadata says, and, where that is silent, by their XML.

The invariant: an article is wanted only if every rule that is set is known to hold. A licence that is not stated is
`other`, and a date of which only the year is known lies in a period only if the whole year does.

>>> unwanted({"title": "Chest CT, revisited"}, "2024", Params(root="s3://b", keywords=("ct",)))
>>> unwanted({"title": "A fact"}, "2024", Params(root="s3://b", keywords=("ct",)))
"none of the keywords stands in title, keywords and abstract"
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

from connectors.pmc.licences import licence_wanted
from connectors.pmc.params import Params

_MONTHS = {name: number for number, name in enumerate(
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1
)}
_CITED = re.compile(r"\.\s+(?P<year>[12]\d{3})(?:\s+(?P<month>[A-Z][a-z]{2})[a-z]*(?:\s+(?P<day>\d{1,2}))?)?\s*[;:.]")
"""Journal. 2024 May 17; 12(3):45-67"""


# dates


def cited_date(citation: str | None) -> str | None:
    """The date in a citation, ISO 8601 as far as it is known; None where none can be read."""
    found = _CITED.search(citation or "")
    if found is None:
        return None
    month = _MONTHS.get(found["month"] or "")
    if month is None:
        return found["year"]
    try:
        return date(int(found["year"]), month, int(found["day"] or "")).isoformat()
    except ValueError:
        return f"{found['year']}-{month:02}"


def in_period(published: str | None, params: Params) -> bool | None:
    """Whether a date, known to the year, the month or the day, lies in the wanted period; None: it cannot be told."""
    first, last = params.published_from or date.min, params.published_to or date.max
    if (first, last) == (date.min, date.max):
        return True
    if published is None:
        return None
    begin, end = _days(published)
    if end < first or begin > last:
        return False
    return True if first <= begin and end <= last else None


def _days(published: str) -> tuple[date, date]:
    """The first and the last day that a date may be."""
    year, month, day = [*map(int, published.split("-")), 0, 0][:3]
    year, last = max(year, 1), month or 12
    return date(year, month or 1, day or 1), date(year, last, day or monthrange(year, last)[1])


# what only the XML tells


def unwanted(row: Mapping[str, Any], cited: str | None, params: Params) -> str | None:
    """Why an article is not wanted, by its row of `articles` and the date of its citation; None: it is."""
    if in_period(cited, params) is None and not in_period(row.get("date"), params):
        return f"published {row.get('date') or 'on a day it does not tell'}: not known to lie in the wanted period"
    journal = row.get("journal")
    if params.journals and _plain(journal) not in map(_plain, params.journals):
        return f"of the journal {journal}, which is not among the wanted"
    kind = row.get("article_type")
    if params.article_types and _plain(kind) not in map(_plain, params.article_types):
        return f"of the type {kind}, which is not among the wanted"
    said = "\n".join(filter(None, (row.get("title"), *(row.get("keywords") or ()), row.get("abstract"))))
    if params.keywords and not any(_whole(word).search(said) for word in params.keywords):
        return "none of the keywords stands in title, keywords and abstract"
    return None


def needs_xml(cited: str | None, params: Params) -> bool:
    """Whether `unwanted` has anything to decide."""
    return bool(params.journals or params.article_types or params.keywords) or in_period(cited, params) is None


def _plain(name: str | None) -> str:
    return " ".join((name or "").casefold().split())


def _whole(word: str) -> re.Pattern[str]:
    """The word as a whole: "CT" stands in "CT," and "(CT)", not in "fact"; any white space between its parts."""
    parts = r"\s+".join(map(re.escape, word.split()))
    return re.compile(rf"(?<!\w){parts}(?!\w)", re.IGNORECASE)


# the verdict on an article version

GONE = "gone"
"""`problem` of a version whose metadata the inventory names and the bucket lacks: inventories lag behind."""


class Known(NamedTuple):
    """What is known of an article version when a listing decides on it."""

    place: bytes
    version: int
    number: int
    present: bool
    """in the inventory"""
    asked: bool
    """among `ids`"""
    read: bool
    """its metadata is at hand"""
    problem: str | None
    licence: str | None
    retracted: bool
    cited: str | None
    was: str | None
    """its licence when it was last wanted"""
    chosen: bool
    """an earlier listing wanted it"""


class Verdict(NamedTuple):
    """Whether a version is listed, and, if it is not wanted, the code and the message of its item."""

    reason: str
    listed: bool
    code: str | None = None
    message: str | None = None


def verdicts(versions: Sequence[Known], params: Params) -> Iterator[tuple[Known, Verdict]]:
    """What becomes of the versions of one article, given newest first.

    Listed is what is wanted, and what would be but is retracted, replaced or unreadable; what was wanted once stays
    listed in any case.
    """
    newest = max((known.version for known in versions if known.present), default=0)
    follows = False
    for known in versions:
        verdict = _verdict(known, newest, follows, params)
        follows = follows or verdict.listed
        yield known, verdict


def _verdict(known: Known, newest: int, follows: bool, params: Params) -> Verdict:
    once = bool(known.chosen)
    if not known.present or known.problem == GONE:
        return Verdict("removed", once, "REMOVED", "it is no longer in the bucket")
    if params.versions == "newest" and known.version < newest:
        return Verdict("superseded", once or follows, "SUPERSEDED", f"version {newest} took its place")
    if not known.asked:
        return Verdict("ids", once, "DESELECTED", "it is no longer among the ids")
    if not known.read:
        return Verdict("unreadable", True, "SOURCE_UNREADABLE", "its metadata could not be fetched; build again later")
    if known.problem is not None:
        return Verdict("unreadable", True, "METADATA_UNREADABLE", known.problem)
    if not licence_wanted(known.licence, params.licences):
        was, now = known.was or "not stated", known.licence or "not stated"
        return Verdict("licence", once, "DESELECTED", f"its licence was {was} and is {now}, which is not selected")
    if in_period(known.cited, params) is False:
        return Verdict("date", once, "DESELECTED", f"its date is {known.cited}, which is not selected")
    if known.retracted:
        return Verdict("retracted", True, "RETRACTED", "the archive says that it is retracted")
    return Verdict("wanted", True)
