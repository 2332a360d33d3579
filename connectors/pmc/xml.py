"""XML from strangers, read safely, and what its elements say as running text.

The invariant: the parser opens no file, no address and no DTD, and a document beyond its limits fails as a whole. Names
of characters that only a DTD could explain (&beta;) are looked up in the fixed table of HTML 5.

>>> root, replaced = parse(b"<p>10<sup>5</sup> cells, TGF-&beta;</p>")
>>> words(root), replaced
('10⁵ cells, TGF-β', True)
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from html.entities import html5
from typing import Any

from infra.errors import Terminal

Element = Any
"""lxml's element; lxml carries no types"""

XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
MATH = "{http://www.w3.org/1998/Math/MathML}"
APART = frozenset({
    "fig", "fig-group", "table-wrap", "graphic", "media", "supplementary-material", "object-id", "alt-text",
    "long-desc", f"{MATH}annotation", f"{MATH}annotation-xml",
})
"""What may stand inside a paragraph without being part of what it says."""
BLOCKS = frozenset({
    "p", "title", "label", "caption", "list", "list-item", "def-list", "def-item", "disp-formula", "disp-quote",
    "break", "sec", "table", "tr", "td", "th",
})
_ASCII = re.compile(r"[\x00-\x7f]")
_RAISED = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")
_LOWERED = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")


def parse(xml: bytes, replaced: bool = False) -> tuple[Element, bool]:
    """The root of a document, and whether named characters had to be replaced.

    Raises Terminal: XML_UNREADABLE (malformed), XML_BOMB (entities or nesting beyond the parser's limits).
    """
    from lxml import etree

    try:
        root = etree.fromstring(xml, _parser())
    except etree.XMLSyntaxError as error:
        if error.code == etree.ErrorTypes.ERR_UNDECLARED_ENTITY and not replaced:
            return parse(_named_entities_replaced(xml), True)
        if error.code in (etree.ErrorTypes.ERR_RESOURCE_LIMIT, etree.ErrorTypes.ERR_ENTITY_LOOP):
            raise Terminal("XML_BOMB", f"beyond the parser's limits ({error.msg}); leave it out") from error
        raise Terminal("XML_UNREADABLE", f"{error.msg}; fetch the article again") from error
    # with a DOCTYPE the parser takes it on trust that the DTD, which is never read, declares the entity
    if not replaced and b"<!DOCTYPE" in xml and any(entity.text[1:] in html5 for entity in root.iter(etree.Entity)):
        return parse(_named_entities_replaced(xml), True)
    return root, replaced


@cache
def _parser() -> Any:
    from lxml import etree

    return etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)


def _named_entities_replaced(xml: bytes) -> bytes:
    def numbers(match: re.Match[bytes]) -> bytes:
        name = match[1].decode()
        if name in ("amp;", "lt;", "gt;", "quot;", "apos;") or name not in html5:
            return match[0]
        return b"".join(b"&#%d;" % ord(character) for character in html5[name])

    return re.sub(rb"&([A-Za-z][A-Za-z0-9]*;)", numbers, xml)


def local(element: Element) -> str:
    """The name of an element without its namespace."""
    return str(element.tag).rpartition("}")[2]


def said(element: Element | None) -> str | None:
    """`words`, or None where there are none."""
    return None if element is None else words(element) or None


def words(element: Element) -> str:
    """What an element says as running text: one space for any white space, floats and TeX twins left out.

    Formulas lose their layout; superscripts and subscripts keep it where Unicode has the characters (10⁵, CO₂).
    """
    pieces: list[str] = []
    if isinstance(element.tag, str):
        _gather(element, pieces)
    text = "".join(pieces)
    # no white space but single spaces: nothing is printable that str.split takes for white space, except the space
    return text.strip() if text.isprintable() and "  " not in text else " ".join(text.split())


class Memo(dict[Element, str]):
    """`words` of the elements of one article, each read once however often it is asked for."""

    def __missing__(self, element: Element) -> str:
        self[element] = found = words(element)
        return found


def _gather(element: Element, pieces: list[str]) -> None:
    if text := element.text:
        pieces.append(text)
    for child in element:
        tag = child.tag
        if tag == "sup" or tag == "sub":
            inner: list[str] = []
            _gather(child, inner)
            pieces.append(_small("".join(inner).strip(), tag == "sup"))
        elif tag in BLOCKS:
            pieces.append(" ")
            _gather(child, pieces)
            pieces.append(" ")
        elif not isinstance(tag, str):  # comments say nothing, processing instructions neither
            pieces.append(child.text if tag.__name__ == "Entity" else "")
        elif tag not in APART and (tag != "tex-math" or not _is_tex_twin(child)):
            _gather(child, pieces)
        if tail := child.tail:
            pieces.append(tail)


@lru_cache(4096)
def _small(inner: str, raised: bool) -> str:
    """10⁵ must not become 105: in characters of its own, else after a ^ where it is a number, else as it is."""
    small = inner.translate(_RAISED if raised else _LOWERED)
    if not _ASCII.search(small):
        return small
    return f"^{inner}" if raised and re.match(r"[-+−–]?\d", inner) else inner


def _is_tex_twin(element: Element) -> bool:
    return element.getparent().find(f"{MATH}math") is not None
