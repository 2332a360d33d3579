"""Articles in folders and archives of this machine: JATS XML with its figure files, listed figure by figure.

Read are folders (an .xml or .nxml with the pictures beside or below it), PMC's oa_package .tar.gz, publishers' and
preprint servers' .zip and .meca. A picture belongs to a figure because the graphic's href names it, never because of
its place. The invariant: every figure of every article is listed, with its picture or with the reason why there is
none; an article without figures, or one that cannot be read, is one entry that says so.

A record of PMC's (PMC10009416.1.json) beside the XML of the same name states a licence, and whether it is retracted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from catalog.items import Item, Partition
from connectors.archives import is_archive, members
from connectors.pmc.articles import entries, failed_item, figure_item, with_stated_licence, withdrawn
from connectors.pmc.files import Shelves
from connectors.pmc.jats import Article, parse_article
from connectors.pmc.params import Params
from infra.errors import ConfigError, ItemError, Terminal, Transient
from infra.fileindex import FileIndex
from infra.keys import key, sha256, split_by_key
from infra.storage import resolve, walk

PROBE = "pmc-2"
"""Name of this module's answers in the file index; it changes when `_outline` or the join does."""


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of at most `capacity` articles. Files that `since` knows are not opened.

    Raises ConfigError when there is nothing at the root, or no article below it.
    """
    root = resolve(params.root)
    documents = sorted(_documents(root, since), key=_newest_first)
    if not documents:
        raise ConfigError(f"{params.root}: neither JATS articles (.xml, .nxml) nor archives are there; check the path")
    for name, part in split_by_key(documents, lambda document: document["group"], params.capacity).items():
        refs = [ref for document in part for ref in _refs(document, params)]
        yield Partition(source, name, tuple(refs), tuple((ref["id"], _content(ref, params)) for ref in refs))


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition, those of an article one after the other.

    Errors: Dropped NO_FIGURES, NO_GRAPHIC, TABLE_IMAGE, LOOSE_GRAPHIC, RETRACTED; Terminal FILE_MISSING, NO_ARTICLE,
    XML_…, ARCHIVE_…; Transient SOURCE_CHANGED when a file is no longer the one that was listed, SOURCE_UNREADABLE when
    it cannot be opened.
    """
    for _, run in groupby(partition.refs, key=lambda ref: (ref["path"], ref["member"])):
        refs = list(run)
        try:
            article, load = _open(refs) if _has_article(refs[0]) else (None, None)
        except ItemError as error:
            yield from (failed_item(ref, error) for ref in refs)
            continue
        for ref in refs:
            if article is None or load is None or "code" in ref:
                yield failed_item(ref, article=article)
            elif retracted := withdrawn(article):
                yield failed_item(ref, retracted, article)
            else:
                yield _item(ref, article, load, params)


# listing: documents, and which file each href names


def _documents(root: Path, since: FileIndex) -> Iterator[dict[str, Any]]:
    """What `_refs` needs of each article: name, path, member of the archive, sha256, group, and outline or error."""
    paths = {path.name if root.is_file() else path.relative_to(root).as_posix(): path for path in walk(root)}
    articles = {name: _of_file(path, since) for name, path in paths.items() if _is_xml(name)}
    articles = {name: found for name, found in articles.items() if found.get("code") != "NOT_JATS"}
    shelves = Shelves(articles, {name: path.stat().st_size for name, path in paths.items()})
    for name, found in articles.items():
        _join(name, found, shelves, lambda file: _hash(paths[file], since))
        for graphic in _graphics(found):
            graphic["file"] = graphic["file"] and str(paths[graphic["file"]])
        if beside := paths.get(f"{name.rpartition('.')[0]}.json"):
            found["record"] = _record_of(beside, since)
        yield {"name": name, "path": str(paths[name]), "member": None, "group": found.get("id", name), **found}
    for name, path in paths.items():
        for document in _of_archive(name, path, since) if is_archive(path) else ():
            # an archive without an article that lies with an article is its supplement
            if document.get("code") != "NO_ARTICLE" or not shelves.owned(name):
                yield document


def _of_file(path: Path, since: FileIndex) -> dict[str, Any]:
    try:
        return {"sha256": since.sha256(path), **since.probe(path, PROBE, _outline)}
    except OSError as error:
        return {"sha256": "unreadable", "code": "SOURCE_UNREADABLE", "message": _advice(error)}


def _record_of(path: Path, since: FileIndex) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] | None = since.probe(path, PROBE, _record)
    except OSError:
        return None
    return answer


def _record(data: bytes) -> dict[str, Any] | None:
    """What a record of PMC's says; None for any other JSON."""
    try:
        said = json.loads(data)
    except ValueError:
        return None
    if not isinstance(said, dict) or "license_code" not in said:
        return None
    code = said["license_code"]
    return {"license_code": code if isinstance(code, str) else None, "retracted": said.get("is_retracted") is True}


def _hash(path: Path, since: FileIndex) -> str:
    try:
        return since.sha256(path)
    except OSError:
        return "unreadable"  # `read` meets the same error, and tells it


def _of_archive(name: str, path: Path, since: FileIndex) -> Iterator[dict[str, Any]]:
    try:
        whole, answer = since.sha256(path), since.probe(path, PROBE, _look_inside)
    except OSError as error:
        whole, answer = "unreadable", {"code": "SOURCE_UNREADABLE", "message": _advice(error)}
    if "code" in answer:
        yield {"name": name, "path": str(path), "member": None, "group": name, "sha256": whole, **answer}
        return
    for member, found in answer.items():
        document = name if len(answer) == 1 else f"{name}!{member}"
        yield {"name": document, "path": str(path), "member": member, "group": found.get("id", document), **found}


def _look_inside(data: bytes) -> dict[str, Any]:
    """Outlines of the articles in an archive, by member, with the hashes of the files that their hrefs name."""
    try:
        entries = list(members(data, _is_xml))
        xmls = {entry.name: entry.data for entry in entries if entry.data is not None}
        found = {name: {"sha256": sha256(xml), **_outline(xml)} for name, xml in xmls.items()}
        articles = {name: one for name, one in found.items() if one.get("code") != "NOT_JATS"}
        if not articles:
            raise Terminal("NO_ARTICLE", f"no JATS article among its {len(entries)} files; leave the archive out")
        shelves = Shelves(articles, {entry.name: entry.size for entry in entries})
        for name, one in articles.items():
            _join(name, one, shelves, lambda file: file)
        wanted = {graphic["file"] for one in articles.values() for graphic in _graphics(one)}
        named = members(data, wanted.__contains__)
        hashes = {entry.name: sha256(entry.data) for entry in named if entry.data is not None}
    except Terminal as error:
        return {"code": error.code, "message": error.message}
    for one in articles.values():
        for graphic in _graphics(one):
            graphic["sha256"] = hashes.get(graphic["file"], "")
    return articles


def _outline(xml: bytes) -> dict[str, Any]:
    """{"id", "version", "figures": [{"key", "kind", "graphics": [{"hrefs"}]}]}, or {"code", "message"}."""
    try:
        article = parse_article(xml)
    except Terminal as error:
        return {"code": error.code, "message": error.message}
    figures = [
        {"key": figure.key, "kind": figure.kind, "graphics": [{"hrefs": list(hrefs)} for hrefs in figure.graphics]}
        for figure in article.figures
    ]
    return {"id": article.row["article_id"], "version": article.row["version"], "figures": figures}


def _is_xml(name: str) -> bool:
    return name.lower().endswith((".xml", ".nxml"))


def _newest_first(document: Mapping[str, Any]) -> tuple[str, list[int], str]:
    """Of several versions of an article the newest leads; ingest takes the row of `articles` from it."""
    numbers = re.findall(r"\d+", document.get("version") or "")
    return document["group"], [-int(number) for number in numbers] or [0], document["name"]


# listing: items


def _refs(document: Mapping[str, Any], params: Params) -> list[dict[str, Any]]:
    same = {name: document[name] for name in ("path", "member", "group")} | {"xml_sha256": document["sha256"]}
    same |= {"record": document["record"]} if document.get("record") else {}
    if "code" in document:
        return [{**same, "id": document["name"], "code": document["code"], "message": document["message"]}]
    refs = [
        {**same, "figure": figure["key"], **one}
        for figure in document["figures"] for one in entries(document["name"], figure, params)
    ]
    return refs or [{**same, "id": document["name"], "code": "NO_FIGURES", "message": "the article has no figures"}]


def _content(ref: Mapping[str, Any], params: Params) -> str:
    return key(ref["xml_sha256"], ref.get("sha256", ""), ref.get("record"), params.modality)


def _has_article(ref: Mapping[str, Any]) -> bool:
    """Whether its article could be read when it was listed, however its figure fared."""
    return "figure" in ref or ref["code"] == "NO_FIGURES"


def _join(article: str, found: dict[str, Any], shelves: Shelves, hash_of: Callable[[str], str]) -> None:
    """Give each graphic of an outline its "file", or None, and the file's "sha256"."""
    for graphic in _graphics(found):
        best = shelves.best(article, graphic["hrefs"])
        graphic |= {"file": best, "sha256": hash_of(best) if best else ""}


def _graphics(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for figure in found.get("figures", ()):
        yield from figure["graphics"]


# reading

Load = Callable[[Mapping[str, Any]], bytes]


def _open(refs: Sequence[Mapping[str, Any]]) -> tuple[Article, Load]:
    """The article of some refs, and how to get their pictures. Raises Transient."""
    path, member = Path(refs[0]["path"]), refs[0]["member"]
    data = _bytes(path)
    if member is None:
        xml, load = data, lambda ref: _bytes(Path(ref["file"]))
    else:
        wanted = {member, *(ref.get("file") for ref in refs)}
        try:
            found = {entry.name: entry.data or b"" for entry in members(data, wanted.__contains__)}
        except Terminal as error:
            raise Transient("SOURCE_CHANGED", f"the archive was whole when it was listed ({error.code})") from error
        xml, load = found.get(member, b""), lambda ref: found.get(ref["file"], b"")
    _check(xml, refs[0]["xml_sha256"])
    return _with_record(parse_article(xml), refs[0].get("record")), load


def _with_record(article: Article, record: Mapping[str, Any] | None) -> Article:
    if record is None:
        return article
    article = with_stated_licence(article, record["license_code"])
    return replace(article, row={**article.row, "retracted": article.row["retracted"] or record["retracted"]})


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Transient("SOURCE_UNREADABLE", _advice(error)) from error


def _advice(error: OSError) -> str:
    return f"{error.strerror}; check the file and its permissions, then try again"


def _check(data: bytes, digest: str) -> None:
    if sha256(data) != digest:
        raise Transient("SOURCE_CHANGED", "the file is not the one that was listed; build again")


def _item(ref: Mapping[str, Any], article: Article, load: Load, params: Params) -> Item:
    try:
        data = load(ref)
        _check(data, ref["sha256"])
    except Transient as error:
        return failed_item(ref, error, article)
    return figure_item(ref, article, data, params)
