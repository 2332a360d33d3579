"""Which file an href of an article names: by its last part, with or without a picture's suffix, nearest article first.

The invariant: a picture belongs to a figure because the graphic's href names it, never because of its place or order.

>>> shelves = Shelves({"a/article.nxml": {}}, {"a/article.nxml": 9, "a/fig1.jpg": 100, "a/fig1.gif": 10})
>>> shelves.best("a/article.nxml", ["fig1"])
'a/fig1.jpg'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any
from unicodedata import normalize
from urllib.parse import unquote

WEB = (".jpg", ".jpeg", ".png", ".gif", ".webp")
PICTURES = (*WEB, ".tif", ".tiff", ".bmp", ".jp2", ".eps", ".svg", ".pdf", ".wmf", ".emf")
"""Suffixes that an href may lack or have instead; the former are taken first. Others must be named in the href."""


class Shelves:
    """The files that an article may name: those in its folder and below, as far as no other article is nearer.

    Where articles share a folder, what lies below it belongs to the article that the subfolder is named after.
    """

    def __init__(self, articles: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self._sharing = Counter(_folder(name) for name, found in articles.items() if "code" not in found)
        self._shelves: dict[tuple[str, str], list[str]] = {}
        for name in sizes:
            for known_as in _keys(name):
                self._shelves.setdefault((self._shelf(name), known_as), []).append(name)

    def owned(self, name: str) -> bool:
        """Whether the file lies in the folder of an article or below."""
        return self._shelf(name) in self._sharing

    def named(self, article: str, href: str) -> list[str]:
        """The files that an href names, with or without the suffix of a picture; only those at its path if any are."""
        folder = _folder(article)
        found = {name for known_as in _keys(href) for name in self._shelves.get((folder, known_as), ())}
        if self._sharing[folder] > 1:
            own = f"{PurePosixPath(folder, PurePosixPath(article).stem)}/"
            found = {name for name in found if _folder(name) == folder or name.startswith(own)}
        at_path = {name for name in found if f"/{bare(name)}".endswith(f"/{bare(href)}")}
        return sorted(at_path or found)

    def best(self, article: str, hrefs: Iterable[str]) -> str | None:
        """The file for a graphic that names it by any of these hrefs; the largest of the best format, or None."""
        named = [name for href in hrefs for name in self.named(article, href)]
        return min(named, key=lambda name: (_rank(name), -self.sizes[name], name), default=None)

    def _shelf(self, name: str) -> str:
        folder = _folder(name)
        while folder not in self._sharing and folder != ".":
            folder = _folder(folder)
        return folder


def _folder(name: str) -> str:
    return str(PurePosixPath(name).parent)


def bare(name: str) -> str:
    """A path in lower case without the suffix of a picture."""
    name = _plain(name)
    return name.removesuffix(suffix) if (suffix := PurePosixPath(name).suffix) in PICTURES else name


def _plain(name: str) -> str:
    """A path in lower case: percent signs decoded, slashes one way, letters composed."""
    return normalize("NFC", unquote(name)).lower().replace("\\", "/").removeprefix("./")


def _keys(name: str) -> set[str]:
    """What a file or an href is known by: the last part of its path, and that without the suffix of a picture.

    PLOS names its pictures info:doi/10.1371/journal.pone.0000217.g001, and the files pone.0000217.g001.tif. Of an
    address with a query (fig1.jpg?download=true) the part before it counts too, where it has the suffix of a picture.
    """
    name = _plain(name)
    last = {name.rpartition("/")[2]}
    if name.partition("?")[0].endswith(PICTURES):
        last.add(name.partition("?")[0].rpartition("/")[2])
    return {key.removeprefix("journal.") for one in last for key in (one, bare(one))}


def _rank(name: str) -> int:
    """Web formats first, then what becomes a PNG, then what is no raster image at all."""
    suffix = PurePosixPath(name).suffix.lower()
    return 0 if suffix in WEB else 1 + PICTURES.index(suffix) if suffix in PICTURES else 1
