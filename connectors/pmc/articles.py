"""What the figures of an article become: one item a picture, with its caption, mentions, licences and article.

The invariant: every figure is at least one entry, with its picture or with the reason why there is none. An entry is
one picture of one figure: ARTICLE#FIGURE, and ARTICLE#FIGURE/HREF where a figure has several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from catalog.items import Item, Licences, Text
from connectors.pmc.jats import Article, Figure
from infra.errors import Dropped, ItemError, Terminal, Transient

DROPPED = ("NO_FIGURES", "NO_GRAPHIC", "TABLE_IMAGE")


class Params(BaseModel):
    """Where the articles are, and which of their figures are wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="folder or archive, or pkg:PACKAGE/PATH; ~ and $VARIABLES are expanded")
    capacity: int = Field(20, ge=1, description="articles a partition; versions of one article are never divided")
    tables_as_images: bool = Field(True, description="take images of tables too; false: they are dropped, and counted")
    modality: str | None = Field(None, description="says the modality of every figure, where all have the same")


def entries(article: str, figure: Mapping[str, Any], params: Params) -> Iterator[dict[str, Any]]:
    """The entries of a figure of an outline (see `local`), whose graphics have "file" and "sha256".

    Yields {"id", "file", "sha256"}, or {"id", "code", "message"} where there is no picture: NO_GRAPHIC, TABLE_IMAGE,
    FILE_MISSING.
    """
    name, graphics = f"{article}#{figure['key']}", figure["graphics"]
    if not graphics:
        yield {"id": name, "code": "NO_GRAPHIC", "message": "the figure has no graphic: a video, or text only"}
    for number, graphic in enumerate(graphics, 1):
        hrefs = graphic["hrefs"]
        stems = [PurePosixPath(other["hrefs"][0]).stem for other in graphics]
        stem = stems[number - 1] if stems.count(stems[number - 1]) == 1 else str(number)
        one = {"id": name if len(graphics) == 1 else f"{name}/{stem}"}
        if figure["kind"] == "table-wrap" and not params.tables_as_images:
            yield {**one, "code": "TABLE_IMAGE", "message": "an image of a table; tables_as_images is off"}
        elif graphic["file"] is None:
            looked = f"no file {' or '.join(hrefs)}, with this or another suffix of a picture, beside the XML or below"
            yield {**one, "code": "FILE_MISSING", "message": f"{looked}; fetch the article's files"}
        else:
            yield {**one, "file": graphic["file"], "sha256": graphic["sha256"]}


def figure_item(ref: Mapping[str, Any], article: Article, data: bytes, params: Params) -> Item:
    """The item of an entry: `ref` has "id", "group", "figure", and the picture is at hand."""
    figure = next(figure for figure in article.figures if figure.key == ref["figure"])
    address = f"https://pmc.ncbi.nlm.nih.gov/articles/{article.pmcid}" if article.pmcid else None
    doi = article.row["doi"]
    facts = {
        "article": article.row,
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
    captions = (Text("original_caption", caption, figure.language),) if caption else ()
    return captions + tuple(Text("mention", mention, figure.language) for mention in figure.mentions)


def _licences(figure: Figure, article: Article) -> Licences | None:
    """What the XML says; None where it says nothing at all, so that the recipe may."""
    evidence = "; ".join(dict.fromkeys(filter(None, (figure.licence.evidence, article.licence.evidence))))
    return Licences(figure.licence.code, article.licence.code, None, evidence) if evidence else None


def failed_item(ref: Mapping[str, Any], error: ItemError | None = None) -> Item:
    """The item of an entry that has no picture: what went wrong, or what its "code" says."""
    return Item(ref["id"], "figure", ref["group"], {}, patient=ref["group"], error=error or _listed_error(ref))


def _listed_error(ref: Mapping[str, Any]) -> ItemError:
    if ref["code"] == "SOURCE_UNREADABLE":
        return Transient(ref["code"], ref["message"])
    return (Dropped if ref["code"] in DROPPED else Terminal)(ref["code"], ref["message"])
