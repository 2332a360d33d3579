"""JATS XML, the format of PubMed Central, preprint servers and publishers: an article's row, figures and licence.

The invariant: every `<fig>` of the document, however it is nested, becomes exactly one Figure, with or without an id, a
caption or a graphic. The parser opens no file, no address and no DTD, and what the XML does not say stays None.

>>> article = parse_article(path.read_bytes())
>>> article.row["article_id"], [(figure.key, figure.graphics, len(figure.mentions)) for figure in article.figures]
('PMC12419688', [('koaf197-F1', (('koaf197f1',),), 2)])

Elements are those of ANSI/NISO Z39.96 (JATS 1.3); older NLM DTDs differ little. Formulas lose their layout in running
text; superscripts and subscripts keep it where Unicode has the characters (10⁵, CO₂).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from html.entities import html5
from typing import Any

from infra.errors import Terminal
from infra.keys import sha256

Element = Any
"""lxml's element; lxml carries no types"""

XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
MATH = "{http://www.w3.org/1998/Math/MathML}"
OWNERS = frozenset({
    "fig", "fig-group", "table-wrap", "caption", "table", "disp-formula", "inline-formula", "supplementary-material",
    "boxed-text",
})
"""A graphic belongs to the nearest of these around it: those in captions, table cells and formulas are no figures."""
APART = frozenset({
    "fig", "fig-group", "table-wrap", "supplementary-material", "media", "object-id", "alt-text", "long-desc",
    f"{MATH}annotation", f"{MATH}annotation-xml",
})
"""What may stand inside a paragraph without being part of what it says."""
BLOCKS = frozenset({
    "p", "title", "label", "caption", "list", "list-item", "def-list", "def-item", "disp-formula", "disp-quote",
    "break", "sec", "table", "tr", "td", "th",
})
_RAISED = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")
_LOWERED = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_NOT_PUBLISHED = re.compile(r"pmc-release|hwp-|retract|correct|submitted|received|accepted")
"""pub-date types that are not the day of publication"""


@dataclass(frozen=True)
class Licence:
    """A licence as an SPDX-like code, and the element and words it was read from; None: the XML does not say it."""

    code: str | None
    evidence: str | None


@dataclass(frozen=True)
class Figure:
    """One figure, or one table that has an image of itself."""

    key: str
    """its name in the article, unique: the id, else kind and place (fig-3)"""
    id: str | None
    kind: str
    """fig, table-wrap, or fig-group for a group that has graphics of its own"""
    label: str | None
    title: str | None
    caption: str | None
    """the caption's paragraphs without its title; those of the fig-group where the figure has none"""
    graphics: tuple[tuple[str, ...], ...]
    """one entry a picture, in order: its hrefs; several where `<alternatives>` offers it in several forms"""
    mentions: tuple[str, ...]
    """paragraphs that refer to it by xref, each once, in order"""
    language: str
    in_subarticle: bool
    """it stands in a review, response or translation that comes with the article"""
    licence: Licence
    """of the figure itself where it says so, else the article's"""


@dataclass(frozen=True)
class Article:
    """What an article's XML says."""

    row: Mapping[str, Any]
    """of layer `articles`, without `source`"""
    pmcid: str | None
    figures: tuple[Figure, ...]
    """figures in the order of the document, tables with an image among them"""
    licence: Licence
    flags: tuple[str, ...]
    """what was mended: entities_replaced"""


def parse_article(xml: bytes) -> Article:
    """Read one article.

    Raises Terminal: XML_UNREADABLE (malformed), XML_BOMB (entities or nesting beyond the parser's limits), NOT_JATS,
    XML_ARTICLE_SET (several articles in one document).
    """
    root, flags = _parse(xml)
    article = _article_of(root)
    meta = article.find("front/article-meta")
    meta = article.makeelement("article-meta") if meta is None else meta
    licence = read_licence(meta)
    pmcid, row = _row(article, meta, sha256(xml))
    row |= {"licence": licence.code, "licence_evidence": licence.evidence}
    return Article(row, pmcid, tuple(_figures(article, licence)), licence, flags)


# reading the XML


def _parse(xml: bytes, flags: tuple[str, ...] = ()) -> tuple[Element, tuple[str, ...]]:
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(xml, parser)
    except etree.XMLSyntaxError as error:
        if error.code == etree.ErrorTypes.ERR_UNDECLARED_ENTITY and not flags:
            return _parse(_named_entities_replaced(xml), ("entities_replaced",))
        if error.code in (etree.ErrorTypes.ERR_RESOURCE_LIMIT, etree.ErrorTypes.ERR_ENTITY_LOOP):
            raise Terminal("XML_BOMB", f"beyond the parser's limits ({error.msg}); leave it out") from error
        raise Terminal("XML_UNREADABLE", f"{error.msg}; fetch the article again") from error
    # with a DOCTYPE the parser takes it on trust that the DTD, which is never read, declares the entity
    if not flags and any(entity.text[1:] in html5 for entity in root.iter(etree.Entity)):
        return _parse(_named_entities_replaced(xml), ("entities_replaced",))
    return root, flags


def _named_entities_replaced(xml: bytes) -> bytes:
    def numbers(match: re.Match[bytes]) -> bytes:
        name = match[1].decode()
        if name in ("amp;", "lt;", "gt;", "quot;", "apos;") or name not in html5:
            return match[0]
        return b"".join(b"&#%d;" % ord(character) for character in html5[name])

    return re.sub(rb"&([A-Za-z][A-Za-z0-9]*;)", numbers, xml)


def _article_of(root: Element) -> Element:
    """The one article of a document, its elements freed of a default namespace (OAI-PMH has one)."""
    found = [root] if _local(root) == "article" else [e for e in root.iter("{*}article")]
    if len(found) > 1:
        raise Terminal("XML_ARTICLE_SET", f"holds {len(found)} articles; give each a file of its own")
    if found and (space := found[0].tag.rpartition("}")[0]):
        for element in found[0].iter(f"{space}}}*"):
            element.tag = _local(element)
    if not found or all(found[0].find(part) is None for part in ("front", "body", "floats-group")):
        raise Terminal("NOT_JATS", f"XML with the root <{_local(root)}> is not a JATS article")
    return found[0]


def _local(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def words(element: Element) -> str:
    """What an element says as running text: one space for any white space, floats and TeX twins left out."""
    return " ".join("".join(_pieces(element, top=True)).split())


def _pieces(element: Element, top: bool = False) -> Iterator[str]:
    from lxml import etree

    tag = element.tag
    if tag is etree.Entity:
        yield element.text
    elif isinstance(tag, str) and (top or not (tag in APART or _is_tex_twin(element))):
        inner = element.text or ""
        for child in element:
            inner += "".join(_pieces(child)) + (child.tail or "")
        if tag in ("sup", "sub"):
            inner = _small(inner.strip(), tag == "sup")
        yield f" {inner} " if tag in BLOCKS else inner


def _small(inner: str, raised: bool) -> str:
    """10⁵ must not become 105: in characters of its own, else after a ^ where it is a number, else as it is."""
    small = inner.translate(_RAISED if raised else _LOWERED)
    if not any(character.isascii() for character in small):
        return small
    return f"^{inner}" if raised and re.match(r"[-+−–]?\d", inner) else inner


def _is_tex_twin(element: Element) -> bool:
    return element.tag == "tex-math" and element.getparent().find(f"{MATH}math") is not None


def _said(element: Element | None) -> str | None:
    return None if element is None else words(element) or None


# the article


def _row(article: Element, meta: Element, digest: str) -> tuple[str | None, dict[str, Any]]:
    ids: dict[str, str] = {}
    for element in meta.findall("article-id"):
        ids.setdefault(element.get("pub-id-type", ""), words(element))
    number = ids.get("pmcid") or ids.get("pmc")
    pmcid = f"PMC{number.upper().removeprefix('PMC')}" if number else None
    doi, title = ids.get("doi") or None, _said(meta.find("title-group/article-title"))
    _, dot, pmc_version = ids.get("pmcid-ver", "").partition(".")
    keywords = (words(keyword) for keyword in meta.iterfind("kwd-group//kwd"))
    return pmcid, {
        "article_id": pmcid or doi or digest,
        "version": pmc_version if dot else _said(meta.find(".//article-version")),
        "title": title,
        "journal": _said(article.find("front/journal-meta//journal-title")),
        "date": _published(meta),
        "pmid": ids.get("pmid") or None,
        "doi": doi,
        "keywords": [word for word in dict.fromkeys(keywords) if word],
        "retracted": True if _is_retracted(article, meta, title) else None,
    }


def _published(meta: Element) -> str | None:
    """The earliest of the most precise publication dates, ISO 8601 as far as it is known."""
    kinds = ((d, f"{d.get('pub-type', '')} {d.get('date-type', '')}") for d in meta.iterfind("pub-date"))
    dates = [_iso(element) for element, kind in kinds if not _NOT_PUBLISHED.search(kind)]
    return min((found for found in dates if found), key=lambda found: (-len(found), found), default=None)


def _iso(element: Element) -> str | None:
    parts: list[str] = element.get("iso-8601-date", "")[:10].split("-")
    if not parts[0]:
        parts = [_said(element.find(name)) or "" for name in ("year", "month", "day")]
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
    """JATS has no element for it: a forward link, a dated event, or the words that PubMed puts before the title."""
    links = (e.get("related-article-type", "") for e in article.iterfind("front//related-article"))
    events = (e.get("date-type", "") for e in meta.iter("pub-date", "date"))
    return (
        any(link in ("retraction-forward", "retracted-by") for link in links)
        or "retracted" in events
        or re.match(r"\W*(retracted|withdrawn)( article)?\W*:", title or "", re.IGNORECASE) is not None
    )


# figures


def _figures(article: Element, licence: Licence) -> Iterator[Figure]:
    mentions = _mentions(article)
    keys: set[str] = set()
    place: dict[str, int] = {}
    for element in article.iter("fig", "fig-group", "table-wrap"):
        graphics = _graphics(element)
        if element.tag != "fig" and not graphics:
            continue
        place[element.tag] = place.get(element.tag, 0) + 1
        own, key = element.get("id") or None, f"{element.tag}-{place[element.tag]}"
        key = own if own and own not in keys else key
        keys.add(key)
        yield _figure(element, key, own, graphics, mentions, licence)


def _figure(
    element: Element, key: str, own: str | None, graphics: tuple[tuple[str, ...], ...],
    mentions: Mapping[str, Mapping[Element, str]], licence: Licence,
) -> Figure:
    group = next(element.iterancestors("fig-group"), None)
    group = element.makeelement("fig-group") if group is None else group
    captions = element.findall("caption") or group.findall("caption")
    title = " ".join(words(part) for caption in captions for part in caption.findall("title"))
    body = " ".join(words(part) for caption in captions for part in caption if _local(part) != "title")
    referred = {**mentions.get(own or "", {}), **mentions.get(group.get("id", ""), {})}
    inside = set(element.iter("p"))
    permissions = element.find("permissions")
    languages = (e.get(XML_LANG) for e in (element, *element.iterancestors()))
    return Figure(
        key=key,
        id=own,
        kind=element.tag,
        label=_said(element.find("label")) or _said(group.find("label")),
        title=" ".join(title.split()) or None,
        caption=" ".join(body.split()) or None,
        graphics=graphics,
        mentions=tuple(dict.fromkeys(said for paragraph, said in referred.items() if said and paragraph not in inside)),
        language=next((language[:2].lower() for language in languages if language), "en"),  # "en" is the DTD's default
        in_subarticle=any(_local(e) in ("sub-article", "response") for e in element.iterancestors()),
        licence=licence if permissions is None else read_licence(permissions),
    )


def _graphics(element: Element) -> tuple[tuple[str, ...], ...]:
    pictures: dict[Element, list[str]] = {}
    for graphic in element.iter("graphic"):
        href = (graphic.get(XLINK_HREF) or graphic.get("href") or "").strip()
        if href and next(e for e in graphic.iterancestors() if e.tag in OWNERS) is element:
            parent = graphic.getparent()
            pictures.setdefault(parent if parent.tag == "alternatives" else graphic, []).append(href)
    return tuple(tuple(dict.fromkeys(hrefs)) for hrefs in pictures.values())


def _mentions(article: Element) -> Mapping[str, Mapping[Element, str]]:
    """id -> the paragraphs with an xref to it, in the order of the document, and what they say."""
    found: dict[str, dict[Element, str]] = {}
    for xref in article.iter("xref"):
        paragraph = next(xref.iterancestors("p"), None)
        for target in xref.get("rid", "").split() if paragraph is not None else ():
            found.setdefault(target, {}).setdefault(paragraph, "")
    return {target: {p: words(p) for p in paragraphs} for target, paragraphs in found.items()}


# licences

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


def read_licence(holder: Element) -> Licence:
    """The licence that an `article-meta` or `permissions` element states.

    Addresses and words are both read. Where they contradict each other the licence is unknown, with both as evidence,
    except for a CC0 in the running text: publishers waive rights in data there, not in the article.
    """
    licences = list(holder.iter("license"))
    stated = [*_urls("license_ref", (words(e) for e in holder.iter("{*}license_ref", "license_ref")))]
    stated += _urls("license/@xlink:href", (e.get(XLINK_HREF, "") for e in licences))
    links = [e.get(XLINK_HREF, "") for licence in licences for e in licence.iter("ext-link", "uri")]
    prose = [words(e) for e in licences]
    copyrights = [words(e) for e in holder.iter("copyright-statement")]
    told = [*_urls("license", links + prose), *_phrases("license", prose)]
    told += [*_urls("copyright-statement", copyrights), *_phrases("copyright-statement", copyrights)]
    if any(code != "CC0-1.0" for code, _ in stated + told):
        told = [(code, evidence) for code, evidence in told if not code.startswith("CC0")]
    found = stated + told
    if not found:
        unclear = next((said for said in prose + copyrights if said), None)
        return Licence(None, unclear and f"no known licence is named in: {unclear[:200]}")
    if len({_family(code) for code, _ in found}) > 1:
        return Licence(None, "contradictory: " + "; ".join(dict.fromkeys(evidence for _, evidence in found)))
    return Licence(*next((one for one in found if re.search(r"\d\.\d", one[0])), found[0]))


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


def _family(code: str) -> str:
    return re.sub(r"-\d\.\d.*", "", code)
