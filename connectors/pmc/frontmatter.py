"""The row of an article: who it is, when and where it was published, and its text without figures and references.

The invariant: what the XML does not say stays None. A notice of retraction is not itself retracted.

>>> row_of(article, article.find("front/article-meta"), xml, Memo())[1]["date"]
'2024-05-17'
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from typing import Any

from connectors.pmc.xml import APART, Element, Memo, said, words
from infra.keys import sha256

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_NOT_PUBLISHED = re.compile(r"pmc-release|hwp-|retract|correct|submitted|received|accepted")
"""pub-date types that are not the day of publication"""
_BESIDE = re.compile(r"graph|visual|video|teaser|toc|short|summar|key|highlight|precis|web|editor|digest|lay|plain")
"""abstract-types of what comes beside the abstract proper"""
_RETRACTED = re.compile(r"\W*(retracted|withdrawn)( article)?\W*:", re.IGNORECASE)
_WHOLE = frozenset({"p", "title", "term", "disp-formula", "preformat", "code", "verse-line", "attrib", "speech"})
"""What is a paragraph of its own; anything around it only holds such"""
_LEFT_OUT = APART | {"ref-list", "label", "sec-meta", "xref", "chem-struct-wrap", "graphic"}


def row_of(article: Element, meta: Element, xml: bytes, memo: Memo) -> tuple[str | None, dict[str, Any]]:
    """The PMCID, and the row of layer `articles` without source and licence. The hash of `xml` names what has no id."""
    ids: dict[str, str] = {}
    for element in meta.findall("article-id"):
        ids.setdefault(element.get("pub-id-type", ""), words(element))
    number = ids.get("pmcid") or ids.get("pmc")
    pmcid = f"PMC{number.upper().removeprefix('PMC')}" if number else None
    doi, title = ids.get("doi") or None, said(meta.find("title-group/article-title"))
    _, dot, pmc_version = ids.get("pmcid-ver", "").partition(".")
    return pmcid, {
        "article_id": pmcid or doi or sha256(xml),
        "version": pmc_version if dot else said(meta.find(".//article-version")),
        "title": title,
        "journal": said(article.find("front/journal-meta//journal-title")),
        "date": _published(meta),
        "pmid": ids.get("pmid") or None,
        "doi": doi,
        "keywords": _distinct(meta.iterfind("kwd-group//kwd")),
        "article_type": article.get("article-type") or None,
        "subjects": _distinct(meta.iterfind("article-categories/subj-group//subject")),
        "abstract": _abstract(meta, memo),
        "body": "\n\n".join(_paragraphs(article.find("body"), memo)) or None,
        "retracted": True if _is_retracted(article, meta, title) else None,
    }


def _distinct(elements: Iterator[Element]) -> list[str]:
    return [word for word in dict.fromkeys(map(words, elements)) if word]


def _published(meta: Element) -> str | None:
    """The earliest of the most precise publication dates, ISO 8601 as far as it is known."""
    kinds = ((d, f"{d.get('pub-type', '')} {d.get('date-type', '')}") for d in meta.iterfind("pub-date"))
    dates = [_iso(element) for element, kind in kinds if not _NOT_PUBLISHED.search(kind)]
    return min((found for found in dates if found), key=lambda found: (-len(found), found), default=None)


def _iso(element: Element) -> str | None:
    parts: list[str] = element.get("iso-8601-date", "")[:10].split("-")
    if not parts[0]:
        parts = [said(element.find(name)) or "" for name in ("year", "month", "day")]
    year, month, day = [*parts, "", ""][:3]
    if month[:3].lower() in _MONTHS:
        month = str(_MONTHS.index(month[:3].lower()) + 1)
    if not re.fullmatch(r"\d{4}", year):
        return None
    if not (month.isdecimal() and 1 <= int(month) <= 12):
        return year
    try:
        return date(int(year), int(month), int(day)).isoformat()
    except ValueError:
        return f"{year}-{int(month):02}"


def _is_retracted(article: Element, meta: Element, title: str | None) -> bool:
    """JATS has no element for it: a forward link, a dated event, or the words that PubMed puts before the title.

    The notice links back ("retracted-article"), and some publishers give it the title of what it retracts.
    """
    kind = article.get("article-type", "")
    links = {e.get("related-article-type", "") for e in article.iterfind("front//related-article")}
    events = {e.get("date-type") or e.get("event-type") for e in meta.iter("pub-date", "date", "event")}
    if links & {"retraction-forward", "retracted-by"} or "retracted" in events or kind.startswith("retracted"):
        return True
    is_notice = kind.startswith(("retraction", "withdrawal")) or "retracted-article" in links
    return not is_notice and _RETRACTED.match(title or "") is not None


# text


def _abstract(meta: Element, memo: Memo) -> str | None:
    """The abstract proper, its headings in the running text; the word "Abstract" above it is none of them."""
    found = meta.findall("abstract")
    untyped = [abstract for abstract in found if not abstract.get("abstract-type")]
    proper = untyped or [abstract for abstract in found if not _BESIDE.search(abstract.get("abstract-type").lower())]
    if not proper:
        return None
    heading = proper[0].find("title")
    return " ".join(said for e in proper[0] if e is not heading for said in _paragraphs(e, memo)) or None


def _paragraphs(element: Element | None, memo: Memo) -> list[str]:
    """The headings and paragraphs of a text in order; figures, tables and references are no part of it."""
    tag = None if element is None else element.tag
    if element is None or not isinstance(tag, str) or tag in _LEFT_OUT:
        return []
    if tag in _WHOLE:
        return list(filter(None, [memo[element]]))
    found = [paragraph for child in element for paragraph in _paragraphs(child, memo)]
    only_heading = tag == "sec" and len(found) == 1 and element.find("title") is not None
    return [] if only_heading else found
