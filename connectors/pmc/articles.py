"""What the figures of an article become: one item a picture, with its caption, mentions, licences and article.

The invariant: every figure is at least one entry, with its picture or with the reason why there is none. An entry is
one picture of one figure: ARTICLE#FIGURE, and ARTICLE#FIGURE/HREF where a figure has several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from catalog.items import Item, Licences, Text
from connectors.pmc.jats import Article, Figure
from connectors.pmc.licences import compared
from connectors.pmc.params import Params
from infra.errors import Dropped, ItemError, Terminal, Transient

DROPPED = ("NO_FIGURES", "NO_GRAPHIC", "TABLE_IMAGE", "LOOSE_GRAPHIC")


def entries(article: str, figure: Mapping[str, Any], params: Params) -> Iterator[dict[str, Any]]:
    """The entries of a figure of an outline (see `local`), whose graphics have "file" and "sha256".

    Yields {"id", "file", "sha256"}, or {"id", "code", "message"} where there is no picture: NO_GRAPHIC, TABLE_IMAGE,
    LOOSE_GRAPHIC, FILE_MISSING.
    """
    name, graphics = f"{article}#{figure['key']}", figure["graphics"]
    if not graphics:
        yield {"id": name, "code": "NO_GRAPHIC", "message": "the figure has no graphic: a video, or text only"}
    stems = [PurePosixPath(graphic["hrefs"][0]).stem for graphic in graphics]
    for number, graphic in enumerate(graphics):
        hrefs, stem = graphic["hrefs"], stems[number] if len({*stems}) == len(stems) else number + 1
        one = {"id": name if len(graphics) == 1 else f"{name}/{stem}"}
        if figure["kind"] == "table-wrap" and not params.tables_as_images:
            yield {**one, "code": "TABLE_IMAGE", "message": "an image of a table; tables_as_images is off"}
        elif figure["kind"] == "loose":
            message = "a picture outside any figure, without a caption: an equation, a structure or an ornament"
            yield {**one, "code": "LOOSE_GRAPHIC", "message": message}
        elif graphic["file"] is None:
            looked = f"no file {' or '.join(hrefs)}, with this or another suffix of a picture, beside the XML or below"
            yield {**one, "code": "FILE_MISSING", "message": f"{looked}; fetch the article's files"}
        else:
            yield {**one, "file": graphic["file"], "sha256": graphic["sha256"]}


def with_stated_licence(article: Article, code: str | None) -> Article:
    """The article beside the licence that its archive's record states: "CC BY", "CC0", "TDM", or None for nothing.

    Where both state one and they differ, the licence is unknown; where the XML is silent, the record's counts. So it is
    for the figures too, but not for those that have permissions of their own.
    """
    licence, stated, agrees = compared(article.licence, code)
    row = {
        **article.row, "licence": licence.code, "licence_evidence": licence.evidence, "licence_stated": stated,
        "licence_agrees": agrees,
    }
    figures = tuple(
        replace(figure, licence=licence) if figure.licence == article.licence else figure for figure in article.figures
    )
    return replace(article, row=row, figures=figures, licence=licence)


def figure_item(ref: Mapping[str, Any], article: Article, data: bytes, params: Params) -> Item:
    """The item of an entry: `ref` has "id", "group", "figure", and the picture is at hand."""
    figure = next(figure for figure in article.figures if figure.key == ref["figure"])
    address = f"https://pmc.ncbi.nlm.nih.gov/articles/{article.pmcid}" if article.pmcid else None
    doi = article.row["doi"]
    facts = {
        "article": article.row,
        "article_id": article.row["article_id"],
        "source_uri": address or (f"https://doi.org/{doi}" if doi else None),
        "source_version": article.row["version"],
        "figure_label": figure.label,
        "modality": params.modality,
    }
    return Item(
        ref["id"], "figure", ref["group"], {"main": data}, patient=ref["group"], texts=_texts(figure),
        licences=_licences(figure, article), facts={name: fact for name, fact in facts.items() if fact is not None},
    )


def _texts(figure: Figure) -> tuple[Text, ...]:
    caption = " ".join(filter(None, (figure.title, figure.caption)))
    said = [("original_caption", caption), ("group_caption", figure.group_caption)]
    said += [("mention", mention) for mention in figure.mentions]
    return tuple(Text(kind, text, figure.language) for kind, text in said if text)


def _licences(figure: Figure, article: Article) -> Licences | None:
    """What the XML says; None where it says nothing at all, so that the recipe may."""
    evidence = "; ".join(dict.fromkeys(filter(None, (figure.licence.evidence, article.licence.evidence))))
    return Licences(figure.licence.code, article.licence.code, None, evidence) if evidence else None


def withdrawn(article: Article) -> Dropped | None:
    """Why none of its figures may be used, where it is retracted; its row of `articles` is kept, and says so."""
    if article.row["retracted"]:
        return Dropped("RETRACTED", "the article says of itself, or its archive of it, that it is retracted")
    return None


def failed_item(ref: Mapping[str, Any], error: ItemError | None = None, article: Article | None = None) -> Item:
    """The item of an entry that has no picture: what went wrong, or what its "code" says; with the article if known."""
    facts = {} if article is None else {"article": article.row}
    wrong = error or _listed_error(ref)
    return Item(ref["id"], "figure", ref["group"], {}, patient=ref["group"], facts=facts, error=wrong)


def _listed_error(ref: Mapping[str, Any]) -> ItemError:
    if ref["code"] == "SOURCE_UNREADABLE":
        return Transient(ref["code"], ref["message"])
    return (Dropped if ref["code"] in DROPPED else Terminal)(ref["code"], ref["message"])
