"""The articles of a dataset that medloom built (its layer `articles`): abstracts and bodies, as passages.

The dataset is another one, which has a snapshot: knowledge bases are made before a build reads its own sources. Its
shards are read through the snapshot's manifests, as all readers do. Each passage has its article's licence; retracted
articles are left out, and so are those whose licence is not among `only_licences`.

    corpora: [{use: articles, path: ../lung-papers, parts: [abstract], only_licences: [CC-BY-4.0, CC0-1.0]}]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from catalog import shards
from catalog.builds import Build, builds
from catalog.manifest import read_manifest
from infra.errors import ConfigError, Dropped
from infra.storage import resolve
from transforms.decoded import Refused
from transforms.knowledge.passages import ChunkParams, Passage, chunked

NAME = "articles"
REQUIRES: Mapping[str, str] = {}
COLUMNS = ("article_id", "source", "version", "title", "abstract", "body", "licence", "retracted")


class Params(ChunkParams):
    """Which dataset, and which of its articles."""

    path: str = Field(description="address of the dataset's home")
    corpus: str = Field(NAME, pattern=r"^[\w.-]+$", description="name of the corpus, first part of each passage id")
    snapshot: int | None = Field(None, ge=1, description="number of the snapshot; null: the newest when it is read")
    sources: tuple[str, ...] | None = Field(None, min_length=1, description="articles of these sources; null: all")
    parts: tuple[Literal["abstract", "body"], ...] = Field(
        ("abstract", "body"), min_length=1, description="what is read of an article"
    )
    only_licences: tuple[str, ...] | None = Field(
        None, min_length=1, description="leave out articles with another licence or none; null: take all"
    )


def read(params: Params, base: Path | None = None) -> Iterator[Passage | Refused]:
    """Passages in the order of the manifests, e.g. articles:PMC13900.1/abstract, articles:PMC13900.1/body#4.

    The version is part of the id, because a new version may say something else.
    """
    home = resolve(params.path, base)
    for path in sorted(_snapshot(home, params.snapshot).units):
        unit = read_manifest(home, path)
        if unit.quarantined or (params.sources is not None and unit.source not in params.sources):
            continue
        for article in shards.read(home, unit.shards, "articles", COLUMNS).to_pylist():
            yield from _passages(article, params)


def release(params: Params, base: Path | None = None) -> str:
    """The dataset's name and the number of its snapshot."""
    build = _snapshot(resolve(params.path, base), params.snapshot)
    return f"{build.name}, snapshot {build.number}"


def _snapshot(home: Path, number: int | None) -> Build:
    found = [build for build in builds(home) if build.status == "snapshot" and number in (None, build.number)]
    if not found:
        which = "snapshot" if number is None else f"snapshot {number}"
        raise ConfigError(f"{home} has no {which}; name a dataset's home that was built: medloom build RECIPE --home")
    return found[-1]


def _passages(article: Mapping[str, Any], params: Params) -> Iterator[Passage | Refused]:
    id, licence = article["article_id"], article["licence"]
    if article["retracted"]:
        yield Refused(id, Dropped("RETRACTED", "the article was retracted"))
        return
    if params.only_licences is not None and licence not in params.only_licences:
        yield Refused(id, Dropped("LICENCE", f"its licence is {licence or 'unknown'}, which is not asked for"))
        return
    title = " ".join((article["title"] or "").split())
    texts = {part: text for part in params.parts if (text := (article[part] or "").strip())}
    if not texts:
        yield Refused(id, Dropped("NO_TEXT", f"the article has no {' or '.join(params.parts)}"))
    for part, text in texts.items():
        name = f"{params.corpus}:{id}{'.' + article['version'] if article['version'] else ''}/{part}"
        yield from chunked(
            Passage(name, text, title or None, params.corpus, licence), params.words, params.overlap, lead=title
        )
