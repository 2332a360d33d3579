"""What the fuzzer calls: bytes in, and for each target the one promise that any bytes must leave standing.

The invariant of all: a file costs itself. It is kept, or refused with an ItemError, its rows fit their tables, and
whatever is read beside it comes out whole. Any other exception is a find.

>>> TARGETS["image"].check(b"not an image")           # nothing: it was refused, as it should be
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

from fuzz import seeds

from catalog.items import Item
from connectors.archives import members
from connectors.pmc.articles import figure_item
from connectors.pmc.jats import Article, Figure, parse_article
from connectors.pmc.params import Params
from infra.errors import ItemError
from infra.keys import pseudonym
from infra.plugins import load
from transforms.decoded import Decoded, IngestParams, Refused
from transforms.ingest import Ingest, SourceTerms, _Batch

FIGURES = 4
"""Figures of an article that are decoded: each has the same picture."""

_hide = partial(pseudonym, b"fuzz")


@dataclass(frozen=True)
class Target:
    """One thing to fuzz."""

    check: Callable[[bytes], bool]
    """whether the file was read; raises for a find"""
    seeds: Callable[[], dict[str, bytes]]
    """name -> a file to begin with"""


def ingested(items: Sequence[Item]) -> set[str]:
    """Ingest items of one group, rows and all; the ids of those that became something."""
    params = IngestParams(slices="largest:1+middle", frames=2, max_side=256, burned_in="flag")
    ingest = Ingest("fuzz", "images", Params(root="."), params, SourceTerms(identifiers="public"))
    batch = _Batch(ingest, {item.id: item.id for item in items})
    whole = batch.readable(items)
    made: list[Decoded] = list(load("decoder", items[0].kind).decode(whole, params, _hide))
    batch.add(whole, made)
    outcome = batch.take()
    refused = [one.item for one in made if isinstance(one, Refused)]
    assert sorted([*outcome.kept, *refused]) == sorted(item.id for item in items), "items lost, or kept and refused"
    return set(outcome.kept)


def dicom(data: bytes) -> bool:
    return bool(ingested([Item("fuzzed", "dicom", "g", {"main": data})]))


def series(data: bytes) -> bool:
    """A file among the slices of a scan, first and last in reading order."""
    others = [Item(name, "dicom", "g", {"main": slice_}) for name, slice_ in _slices()]
    fuzzed = Item("fuzzed", "dicom", "g", {"main": data})
    for items in ([fuzzed, *others], [*others, fuzzed]):
        kept = ingested(items)
        assert kept >= {item.id for item in others}, "a neighbour was lost"
    return "fuzzed" in kept


@cache
def _slices() -> list[tuple[str, bytes]]:
    """Five slices with room for a sixth between them."""
    return [(name, data) for name, data in seeds.slices().items() if name != "slice2"]


def nifti(data: bytes) -> bool:
    drawn = seeds.labels()["labels.nii"]
    return bool(ingested([Item("fuzzed", "nifti", "g", {"main": data, "labels": drawn, "mask:spot": drawn})]))


def labels(data: bytes) -> bool:
    main = seeds.volumes()["plain.nii"]
    facts = {"label_table": {1: "liver", 2: "tumour"}}
    item = Item("fuzzed", "nifti", "g", {"main": main, "labels": data, "mask:spot": data}, facts=facts)
    return bool(ingested([item]))


def image(data: bytes) -> bool:
    return bool(ingested([Item("fuzzed", "image", "g", {"main": data})]))


def mask(data: bytes) -> bool:
    main = seeds.images()["grey.png"]
    facts = {"classes": {"1": "one", "#ff0000": "red", "255": "white"}}
    drawn = ingested([Item("drawn", "image", "g", {"main": main, "mask:spot": data})])
    return bool(drawn | ingested([Item("classes", "image", "g", {"main": main, "classes": data}, facts=facts)]))


def archive(data: bytes) -> bool:
    try:
        for member in members(data, lambda name: True):
            assert member.data is not None and len(member.data) == member.size, "another size than declared"
            member.name.encode()
    except ItemError:
        return False
    return True


def jats(data: bytes) -> bool:
    try:
        article = parse_article(data)
    except ItemError:
        return False
    keys = [figure.key for figure in article.figures]
    assert len({*keys}) == len(keys), "two figures of one name"
    items = list(_figures(article.figures[:FIGURES], article))
    if items:
        assert ingested(items) == {item.id for item in items}
    return True


def _figures(figures: Sequence[Figure], article: Article) -> Iterator[Item]:
    for n, figure in enumerate(figures):
        ref = {"id": f"a#{n}", "group": "a", "figure": figure.key}
        yield figure_item(ref, article, seeds.images()["grey.png"], Params(root="."))


TARGETS = {
    "dicom": Target(dicom, seeds.dicoms),
    "series": Target(series, seeds.parts_of_series),
    "nifti": Target(nifti, seeds.volumes),
    "labels": Target(labels, seeds.labels),
    "image": Target(image, seeds.images),
    "mask": Target(mask, seeds.images),
    "archive": Target(archive, seeds.archives),
    "jats": Target(jats, seeds.articles),
}
