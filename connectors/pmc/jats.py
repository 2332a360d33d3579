"""JATS XML, the format of PubMed Central, preprint servers and publishers: an article's row, figures and licence.

The invariant: every `<fig>` of the document, however it is nested, becomes exactly one Figure, with or without an id, a
caption or a graphic. The parser opens no file, no address and no DTD, and what the XML does not say stays None.

>>> article = parse_article(path.read_bytes())
>>> article.row["article_id"], [(figure.key, figure.graphics, len(figure.mentions)) for figure in article.figures]
('PMC12419688', [('koaf197-F1', (('koaf197f1',),), 2)])

Elements are those of ANSI/NISO Z39.96 (JATS 1.3); older NLM DTDs differ little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from connectors.pmc.files import PICTURES, bare
from connectors.pmc.frontmatter import row_of
from connectors.pmc.licences import Licence, read_licence
from connectors.pmc.mentions import mentions
from connectors.pmc.xml import XLINK_HREF, XML_LANG, Element, Memo, local, parse, said, words
from infra.errors import Terminal

OWNERS = frozenset({
    "fig", "fig-group", "table-wrap", "caption", "table", "disp-formula", "inline-formula", "supplementary-material",
})
"""A picture belongs to the nearest of these around it: those in captions, table cells and formulas are no figures."""
TEXT = frozenset({"body", "back", "floats-group", "abstract", "trans-abstract"})
"""Where a picture without an owner counts; elsewhere it is a logo or a portrait."""
_NUMBERED = ("fig", "fig-group", "table-wrap")
_MARKED = (*_NUMBERED, "chem-struct-wrap", "alternatives", "graphic", "media", "xref")


@dataclass(frozen=True)
class Figure:
    """One figure, or another picture that stands in the text."""

    key: str
    """its name in the article, unique: the id, else kind and place (fig-3)"""
    id: str | None
    kind: str
    """fig; table-wrap for a table that has an image of itself; fig-group for a group that has graphics of its own;
    graphic for a picture outside these that has a caption or is a graphical abstract; loose for one that has neither:
    an equation, a structure, an ornament"""
    label: str | None
    title: str | None
    caption: str | None
    """the caption's paragraphs without its title; those of the fig-group where the figure has none"""
    group_caption: str | None
    """what the fig-group says of all its figures, where this one has a caption of its own"""
    graphics: tuple[tuple[str, ...], ...]
    """one entry a picture, in order: its hrefs; several where it is offered in several forms"""
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
    root, replaced = parse(xml)
    article = _article_of(root)
    meta = article.find("front/article-meta")
    meta = article.makeelement("article-meta") if meta is None else meta
    licence, memo = read_licence(meta), Memo()
    pmcid, row = row_of(article, meta, xml, memo)
    row |= {"licence": licence.code, "licence_evidence": licence.evidence}
    row |= {"licence_stated": None, "licence_agrees": None}
    flags = ("entities_replaced",) if replaced else ()
    return Article(row, pmcid, tuple(_figures(article, licence, memo)), licence, flags)


def _article_of(root: Element) -> Element:
    """The one article of a document, its elements freed of a default namespace (OAI-PMH has one)."""
    found = [root] if local(root) == "article" else [e for e in root.iter("{*}article")]
    if len(found) > 1:
        raise Terminal("XML_ARTICLE_SET", f"holds {len(found)} articles; give each a file of its own")
    if found and (space := found[0].tag.rpartition("}")[0]):
        for element in found[0].iter(f"{space}}}*"):
            element.tag = local(element)
    if not found or all(found[0].find(part) is None for part in ("front", "body", "floats-group")):
        raise Terminal("NOT_JATS", f"XML with the root <{local(root)}> is not a JATS article")
    return found[0]


# figures


def _figures(article: Element, licence: Licence, memo: Memo) -> Iterator[Figure]:
    marked = list(article.iter(*_MARKED))  # the tree is walked once: that is what takes the time
    by_id: dict[str, list[Element]] = {}
    for element in marked:
        if element.tag in _NUMBERED and element.get("id"):
            by_id.setdefault(element.get("id"), []).append(element)
    referring = mentions((element for element in marked if element.tag == "xref"), by_id)
    for one in _floats(marked):
        group = next(one.element.iterancestors("fig-group"), None)
        inside = set(one.element.iter("p"))
        paragraphs = dict.fromkeys((*referring.get(one.element, ()), *referring.get(group, ())))
        told = (memo[paragraph] for paragraph in paragraphs if paragraph not in inside)
        yield _figure(one, group, tuple(dict.fromkeys(filter(None, told))), licence)


class _Float(NamedTuple):
    """An element that is a figure, its name, and its pictures: the elements that show it, with all their hrefs."""

    element: Element
    key: str
    pictures: Mapping[Element, Sequence[str]]


def _floats(marked: Sequence[Element]) -> Iterator[_Float]:
    owned = _pictures(element for element in marked if element.tag in ("graphic", "media"))
    elements = [element for element in marked if element.tag == "fig" or element in owned]
    taken = {element.get("id") for element in elements}
    seen: set[str] = set()
    place: dict[str, int] = {}
    for element in elements:
        place[element.tag] = place.get(element.tag, 0) + 1
        key = element.get("id") or ""
        if not key or key in seen:
            key = f"{element.tag}-{place[element.tag]}"
            while key in taken or key in seen:
                key += "_"
        seen.add(key)
        yield _Float(element, key, owned.get(element, {}))


def _pictures(graphics: Iterable[Element]) -> dict[Element, dict[Element, list[str]]]:
    """Figure -> its pictures. Forms of one picture are what `<alternatives>` holds, or names but for the suffix."""
    owned: dict[Element, dict[Element, list[str]]] = {}
    stems: dict[tuple[Element, str], Element] = {}
    for graphic in graphics:
        href = (graphic.get(XLINK_HREF) or graphic.get("href") or "").strip()
        owner = _owner(graphic) if href and (graphic.tag == "graphic" or _shows_a_picture(graphic, href)) else None
        if owner is not None:
            shown = stems.setdefault((owner, bare(href.rpartition("/")[2])), _whole(graphic))
            hrefs = owned.setdefault(owner, {}).setdefault(shown, [])
            if href not in hrefs:
                hrefs.append(href)
    return owned


def _whole(graphic: Element) -> Element:
    parent = graphic.getparent()
    return parent if parent.tag == "alternatives" else graphic


def _shows_a_picture(media: Element, href: str) -> bool:
    return media.get("mimetype") == "image" or href.lower().endswith(PICTURES)


def _owner(graphic: Element) -> Element | None:
    """What a picture is the picture of; None where it is no figure."""
    alone = _whole(graphic)
    for element in alone.iterancestors():
        if element.tag in OWNERS:
            return element if element.tag in _NUMBERED else None
        if element.tag == "chem-struct-wrap":
            alone = element
        if element.tag in TEXT:
            return alone
        if element.tag == "bio":
            return None
    return None


def _figure(one: _Float, group: Element | None, mentioned: tuple[str, ...], licence: Licence) -> Figure:
    element = one.element
    around = [element, *element.iterancestors()]
    abstracts = [e for e in around if local(e) in ("abstract", "trans-abstract") and _is_graphical(e)]
    own = _first_caption([element, *one.pictures, *(form for picture in one.pictures for form in picture), *abstracts])
    of_group = _first_caption([] if group is None else [group])
    title, caption = own or of_group or (None, None)
    labels = [said(e.find("label")) for e in (element, group, *one.pictures) if e is not None]
    permissions = element.find("permissions")
    languages = (e.get(XML_LANG) for e in around)
    return Figure(
        key=one.key,
        id=element.get("id") or None,
        kind=element.tag if element.tag in OWNERS else "graphic" if own or abstracts else "loose",
        label=next(filter(None, labels), None),
        title=title,
        caption=caption,
        group_caption=" ".join(filter(None, of_group)) if own and of_group else None,
        graphics=tuple(tuple(hrefs) for hrefs in one.pictures.values()),
        mentions=mentioned,
        language=next((language[:2].lower() for language in languages if language), "en"),  # "en" is the DTD's default
        in_subarticle=any(local(e) in ("sub-article", "response") for e in around),
        licence=licence if permissions is None else read_licence(permissions),
    )


def _is_graphical(abstract: Element) -> bool:
    return any(word in abstract.get("abstract-type", "").lower() for word in ("graph", "visual"))


def _first_caption(holders: Iterable[Element]) -> tuple[str | None, str | None] | None:
    """Title and text of the first of these that says something."""
    for holder in holders:
        title, text = _caption(holder)
        if title or text:
            return title, text
    return None


def _caption(holder: Element) -> tuple[str | None, str | None]:
    """The title and the rest of a caption; a figure without one may have paragraphs, an abstract has nothing else."""
    captions = holder.findall("caption")
    titles = [title for caption in captions for title in caption.findall("title")]
    texts = [text for caption in captions for text in caption if text.tag != "title"]
    if not captions and holder.tag in ("fig", "abstract", "trans-abstract"):
        titles, texts = holder.findall("title"), holder.findall("p")
    texts += holder.findall("legend")
    return _joined(titles), _joined(texts)


def _joined(elements: Iterable[Element]) -> str | None:
    return " ".join(filter(None, map(words, elements))) or None
