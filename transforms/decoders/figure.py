"""Figures of articles: each picture as it is, with its caption, the paragraphs that mention it, and its article's row.

The invariant: all figures of one article have one group, so that no split can tear them apart, and the row of the
article comes once. A figure with several panels stays one sample; nothing is cut here.

Items have the file "main", and may have the fact "article", a row of `articles` without `source`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from catalog.items import Item, Label
from infra.errors import ItemError, Terminal
from transforms.decoded import Article, Decoded, IngestParams, Pseudonym, Refused, Sample
from transforms.pictures.imagefile import open_image

NAME = "figure"
VERSION = "2"
REQUIRES: dict[str, str] = {}
Params = IngestParams
COLUMNS = ("article_id", "source_uri", "source_version", "modality", "anatomy", "view")
"""Columns of `images` that an item may state."""


def decode(items: Sequence[Item], params: IngestParams, pseudonym: Pseudonym) -> Iterator[Decoded]:
    """The article of the group, then one sample an item. Refusals have the codes of `open_image`, and NO_IMAGE."""
    article = next((item.facts["article"] for item in items if "article" in item.facts), None)
    if article is not None:
        yield Article(article)
    for item in items:
        try:
            yield _sample(item, pseudonym)
        except ItemError as error:
            yield Refused(item.id, error)


def _sample(item: Item, pseudonym: Pseudonym) -> Sample:
    if "main" not in item.files:
        raise Terminal("NO_IMAGE", f"the item has the files {sorted(item.files)} but no 'main'; mend its connector")
    opened = open_image(item.files["main"])
    columns: dict[str, Any] = {name: item.facts[name] for name in COLUMNS if name in item.facts}
    # a PNG may have been a JPEG before: only a yes is certain
    columns |= {"window": opened.window, "lossy": opened.lossy or None}
    return Sample(
        items=(item.id,),
        content=(item.sha256(),),
        locator="frame:0" if opened.frames > 1 else "",
        pixels=opened.pixels,
        encoded=opened.encoded,
        group=None if item.patient is None else pseudonym("article", item.patient),
        columns=columns,
        labels=tuple(dict.fromkeys((*item.labels, *_labels(item.facts)))),
        texts=tuple(dict.fromkeys(item.texts)),
        licences=item.licences,
    )


def _labels(facts: Mapping[str, Any]) -> Iterator[Label]:
    """Which figure it is: "Fig. 2" tells mentions of its panels from those of another's."""
    if "figure_label" in facts:
        yield Label("figure label", facts["figure_label"], "jats")
