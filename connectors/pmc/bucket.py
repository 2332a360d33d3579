"""Articles of PMC's cloud bucket, or of one of its layout, by the article version.

    PMC10009416.1/                      PMCID.VERSION
      PMC10009416.1.xml                 JATS
      NPR2-43-85-g001.jpg               named by an href of the XML
    metadata/PMC10009416.1.json         licence, retraction, and the address of every object with its MD5
    inventory-reports/…/metadata/2026-01-18T01-00Z/manifest.json

The layout is that of https://pmc.ncbi.nlm.nih.gov/tools/cloud. The invariant: an entry's content is the MD5s of its
objects and what the metadata says of it, so a partition changes when, and only when, its rows may; what an earlier
listing had and this one lacks stays an entry, which tells what became of it. An object counts only with the MD5 that
the metadata gives.

>>> params = Params(root="s3://pmc-oa-opendata", ids="brain_mri.txt", licences=("commercial",))
>>> for partition in list_partitions("pmc", params, index):
...     for item in read(partition, params):
...         print(item.inside, item.id, item.error)
PMC10009416.1 PMC10009416.1#f1 None
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from catalog.items import Item, Partition
from connectors.pmc.articles import entries, failed_item, figure_item, with_stated_licence, withdrawn
from connectors.pmc.files import Shelves
from connectors.pmc.index import Index, Listed
from connectors.pmc.inventory import Files
from connectors.pmc.jats import Article, parse_article
from connectors.pmc.params import Params
from connectors.pmc.selection import needs_xml, unwanted
from infra.errors import ConfigError, Dropped, ItemError, Terminal, Transient
from infra.fileindex import FileIndex
from infra.keys import key, sha256
from infra.s3 import Bucket
from infra.storage import draft_of

T = TypeVar("T")
R = TypeVar("R")
Load = Callable[[str, str | None], bytes]
"""Key and MD5 of an object -> its bytes; raises ItemError"""

log = logging.getLogger(__name__)
ERRORS: Mapping[str, type[ItemError]] = {"METADATA_UNREADABLE": Terminal, "SOURCE_UNREADABLE": Transient}
"""What an entry that is not wanted is told as; others are Dropped."""
RULES = {"published_from", "published_to", "journals", "article_types", "keywords"}


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of at most `capacity` article versions. Of what `since` knows only what changed is fetched.

    Raises ConfigError when the bucket cannot be read, has no inventory, or nothing of it is wanted.
    """
    bucket, kept = _bucket(params), str(since.folder("pmc-objects"))
    try:
        with Index(since.folder("pmc-buckets"), bucket) as index:
            inventory = index.follow(params.inventory)
            fetched = index.fetch(params, params.in_flight)
            counts = index.choose(source, params)
            told = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items())) or "no article"
            log.info("%s: inventory %s, %d metadata fetched; versions: %s", source, inventory, fetched, told)
            empty = True
            for name, versions in index.leaves(params.capacity):
                empty = False
                contents = tuple((version.entry, _content(version, params)) for version in versions)
                yield Partition(source, name, tuple(_ref(version, kept) for version in versions), contents)
            if empty:
                raise ConfigError(f"{params.root}: no article is wanted ({told}); check licences, dates and ids")
    except ItemError as error:
        raise ConfigError(f"{params.root} cannot be listed: {error.message}") from error


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition, article by article; each is `inside` its entry, or is the entry.

    Errors of an article: Dropped RETRACTED, SUPERSEDED, REMOVED, DESELECTED, NOT_SELECTED, NO_FIGURES; Terminal NO_XML,
    FILE_MISSING, METADATA_UNREADABLE, XML_…, NOT_JATS; Transient CHECKSUM, SOURCE_UNREADABLE. Of a figure: Dropped
    NO_GRAPHIC, TABLE_IMAGE, LOOSE_GRAPHIC; Terminal FILE_MISSING, OBJECT_TOO_LARGE; Transient as of an article.
    """
    pool = ThreadPoolExecutor(params.in_flight)
    try:
        load = _loader(partition, params)
        xmls = _in_order(pool, lambda ref: _xml(ref, load), partition.refs, params.in_flight)
        for ref, xml in zip(partition.refs, xmls, strict=True):
            yield from _items(ref, xml, pool, load, params)
    finally:
        pool.shutdown(cancel_futures=True)


def _bucket(params: Params) -> Bucket:
    return Bucket.at(
        params.root, params.endpoint, anonymous=params.anonymous, in_flight=params.in_flight,
        per_second=params.requests_per_second,
    )


# entries


def _ref(version: Listed, kept: str) -> dict[str, Any]:
    same = {"id": version.entry, "group": version.article}
    if version.code is not None or version.files is None:
        return {**same, "code": version.code, "message": version.message}
    files = base64.b85encode(version.files).decode()
    return {**same, "licence": version.licence, "cited": version.cited, "files": files, "kept": kept}


def _content(version: Listed, params: Params) -> str:
    if version.code is not None or version.files is None:
        return key(version.code, version.message)
    files = Files.unpacked(version.files)
    rules = None
    if needs_xml(version.cited, params):
        rules = [version.cited, params.model_dump(mode="json", include=RULES)]
    return key(files.xml, files.media, version.licence, params.tables_as_images, params.modality, rules)


# articles and their figures


def _xml(ref: Mapping[str, Any], load: Load) -> bytes | ItemError:
    if "code" in ref:
        return ERRORS.get(ref["code"], Dropped)(ref["code"], ref["message"])
    xml = _files(ref).xml
    if xml is None:
        return Terminal("NO_XML", "the archive has no XML of it, only text or a PDF; nothing tells its figures")
    return _tried(load, *xml)


def _files(ref: Mapping[str, Any]) -> Files:
    return Files.unpacked(base64.b85decode(ref["files"]))


def _tried(load: Load, name: str, md5: str | None) -> bytes | ItemError:
    try:
        return load(name, md5)
    except ItemError as error:
        return error


def _items(
    ref: Mapping[str, Any], xml: bytes | ItemError, pool: ThreadPoolExecutor, load: Load, params: Params
) -> Iterator[Item]:
    try:
        article = _article(ref, xml, params)
    except ItemError as error:
        yield failed_item(ref, error)
        return
    if retracted := withdrawn(article):
        yield failed_item(ref, retracted, article)
        return
    figures, media = list(_figures(ref, article, params)), _files(ref).media
    if not figures:
        yield failed_item(ref, Dropped("NO_FIGURES", "the article has no figures"), article)

    def fetched(figure: Mapping[str, Any]) -> bytes | ItemError | None:
        return _tried(load, figure["file"], media[figure["file"]]) if "file" in figure else None

    for figure, data in zip(figures, _in_order(pool, fetched, figures, params.in_flight), strict=True):
        if isinstance(data, bytes):
            item = figure_item({**figure, "sha256": sha256(data)}, article, data, params)
        else:
            item = failed_item(figure, data, article)
        yield replace(item, inside=ref["id"])


def _article(ref: Mapping[str, Any], xml: bytes | ItemError, params: Params) -> Article:
    """The article as the archive states it. Raises ItemError, Dropped NOT_SELECTED where its XML does not fit."""
    if isinstance(xml, ItemError):
        raise xml
    article = parse_article(xml)
    if reason := unwanted(article.row, ref["cited"], params):
        raise Dropped("NOT_SELECTED", reason)
    article = with_stated_licence(article, ref["licence"])
    row = {
        **article.row, "article_id": ref["group"], "version": ref["id"].rpartition(".")[2],
        "retracted": article.row["retracted"] or False,
    }
    return replace(article, row=row, pmcid=ref["group"])


def _figures(ref: Mapping[str, Any], article: Article, params: Params) -> Iterator[dict[str, Any]]:
    """What `entries` says of each picture of the article, with the figure it belongs to."""
    files = _files(ref)
    here = files.xml[0] if files.xml else ""
    shelves = Shelves({here: {}}, dict.fromkeys(files.media, 0))
    for figure in article.figures:
        graphics = [{"hrefs": hrefs, "file": shelves.best(here, hrefs), "sha256": ""} for hrefs in figure.graphics]
        outline = {"key": figure.key, "kind": figure.kind, "graphics": graphics}
        for one in entries(ref["id"], outline, params):
            yield {**one, "group": ref["group"], "figure": figure.key}


def _in_order(pool: ThreadPoolExecutor, fn: Callable[[T], R], things: Iterable[T], ahead: int) -> Iterator[R]:
    """`map` that keeps at most `ahead` results waiting, and calls for nothing before the first is asked for."""
    waiting: deque[Future[R]] = deque()
    for thing in things:
        waiting.append(pool.submit(fn, thing))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


# objects that were fetched before


def _loader(partition: Partition, params: Params) -> Load:
    bucket = _bucket(params)
    folder = next((ref["kept"] for ref in partition.refs if "kept" in ref), None)
    kept = None
    if folder is not None and params.cache_gb and os.path.isdir(folder):
        kept = _kept(Path(folder), int(params.cache_gb * 1e9))

    def load(name: str, md5: str | None) -> bytes:
        data = kept.get(md5) if kept and md5 else None
        if data is None:
            data = bucket.get(name, md5)
            if kept and md5:
                kept.put(md5, data)
        return data

    return load


class Kept:
    """Objects in a folder, named by the MD5 of their bytes; beyond a limit those longest not used are thrown away.

    Processes share a folder; each corrects what it believes of the folder's size when it throws away. One that is
    damaged is not given, and one that cannot be written is fetched again.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._lock = threading.Lock()
        self._bytes = sum(size for _, size, _ in self._found())

    def get(self, md5: str) -> bytes | None:
        path = self._path(md5)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data if hashlib.md5(data, usedforsecurity=False).hexdigest() == md5.lower() else None

    def put(self, md5: str, data: bytes) -> None:
        path = self._path(md5)
        with self._lock:  # two threads may bring one object
            with suppress(OSError):
                draft = draft_of(path)
                draft.write_bytes(data)
                os.replace(draft, path)  # not synced: `get` checks what it reads
                self._bytes += len(data)
            if self._bytes > self._limit:
                self._throw_away()

    def _path(self, md5: str) -> Path:
        return self._folder / md5[:2].lower() / md5.lower()

    def _found(self) -> list[tuple[int, int, str]]:
        """When each file was used last, its size and its path."""
        found = []
        for folder, _, names in os.walk(self._folder):
            for name in names:
                with suppress(FileNotFoundError):  # another process threw it away
                    stat = os.stat(path := os.path.join(folder, name))
                    found.append((stat.st_mtime_ns, stat.st_size, path))
        return sorted(found)

    def _throw_away(self) -> None:
        """Down to nine tenths of the limit, so that it is not done for every object."""
        found = self._found()
        self._bytes = sum(size for _, size, _ in found)
        for _, size, path in found:
            if self._bytes <= self._limit * 0.9:
                break
            Path(path).unlink(missing_ok=True)
            self._bytes -= size


@cache
def _kept(folder: Path, limit: int) -> Kept:
    return Kept(folder, limit)
