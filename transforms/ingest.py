"""Ingest: the first stage of every source, and the only one that meets raw items.

It asks the connector for a partition's items, lets the decoder of each kind turn them into samples, volumes and
articles, and makes those rows of `images`, `volumes`, `articles`, `labels`, and the given `rois` and `texts`. The
invariant: every item is kept (it became part of something) or rejected, exactly once, and nothing of an item reaches a
row before its decoder has de-identified it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from catalog.items import Item, Licences, Partition
from catalog.schema import LAYERS
from infra.errors import Dropped, ItemError
from infra.keys import key, pseudonym, sha256
from infra.plugins import load, plugins
from infra.settings import PUBLIC_KEY, pseudonym_key
from transforms.decoded import Article, Decoded, IngestParams, Refused, Sample, Volume
from transforms.imagefile import encode_png, phash, pixel_sha256, shrink
from transforms.regions import roi_row, scaled
from transforms.stage import Outcome, Reject

VERSION = "1"
WRITES = ("images", "volumes", "articles", "labels", "rois", "texts")
BATCH_BYTES = 64 << 20
BATCH_ROWS = 100


class SourceTerms(BaseModel):
    """What the recipe says of a source as a whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identifiers: Literal["private", "public"] = "private"
    """public: patient numbers are already public (published test collections), pseudonyms need no secret"""
    licence_image: str | None = None
    licence_text: str | None = None
    licence_annotation: str | None = None


@dataclass(frozen=True)
class Ingest:
    """The ingest stage of one source."""

    source: str
    connector: str
    connector_params: BaseModel
    params: IngestParams
    terms: SourceTerms
    name: str = "ingest"
    version: str = VERSION

    def ingredients(self, home: Path) -> Mapping[str, str]:
        """What decides the rows beside parameters and items: the decoders' versions and the pseudonym key's hash."""
        decoders = {f"decoder:{name}": getattr(module, "VERSION", "1") for name, module in plugins("decoder").items()}
        return {**decoders, "pseudonym": sha256(self._secret(home))[:16]}

    def settings(self) -> dict[str, Any]:
        """The parameters that decide the rows."""
        return {"ingest": self.params.model_dump(mode="json"), "terms": self.terms.model_dump(mode="json")}

    def outcomes(self, partition: Partition, home: Path) -> Iterator[Outcome]:
        """Read the partition's items and yield rows in batches of bounded size."""
        hide = partial(pseudonym, self._secret(home))
        batch = _Batch(self)
        items = load("connector", self.connector).read(partition, self.connector_params)
        for (_, kind), run in groupby(items, lambda item: (item.group, item.kind)):
            whole, refused = _readable(run)
            batch.refuse(refused)
            decode = load("decoder", kind).decode
            batch.add(whole, decode(whole, self.params, hide) if whole else ())
            if batch.full:
                yield batch.take()
        yield batch.take()

    def _secret(self, home: Path) -> bytes:
        return PUBLIC_KEY if self.terms.identifiers == "public" else pseudonym_key(home)


def _readable(run: Iterable[Item]) -> tuple[list[Item], list[Reject]]:
    whole, refused = [], []
    for item in run:
        if isinstance(item.error, ItemError):
            refused.append(Reject(item.id, item.error))
        elif item.error is not None:
            raise item.error
        else:
            whole.append(item)
    return whole, refused


@dataclass
class _Batch:
    """Rows being gathered. `seen` and `articles` outlive a batch: they show what the partition holds twice."""

    ingest: Ingest
    seen: dict[str, str] = field(default_factory=dict)
    articles: set[str] = field(default_factory=set)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    bytes: int = 0

    @property
    def full(self) -> bool:
        return self.bytes > BATCH_BYTES or len(self.rows.get("images", ())) >= BATCH_ROWS

    def refuse(self, rejects: Iterable[Reject]) -> None:
        self.rejects.extend(rejects)

    def add(self, items: list[Item], decoded: Iterable[Decoded]) -> None:
        """Take what a decoder made of a group of items."""
        kept: dict[str, None] = {}
        refused: dict[str, ItemError] = {}
        for made in decoded:
            match made:
                case Refused(item, error):
                    refused[item] = error
                case Article(row):
                    if row["article_id"] not in self.articles:
                        self.articles.add(row["article_id"])
                        self._put("articles", {**row, "source": self.ingest.source})
                case Volume(of, row):
                    if first := self._twice(f"volume:{row['volume_id']}", of[0]):
                        refused.update({item: first for item in of})
                        continue
                    self._put("volumes", {**row, "source": self.ingest.source, **self._licences(None)})
                    kept.update(dict.fromkeys(of))
                case Sample():
                    if first := self._twice(sample_id(self.ingest.source, made), made.items[0]):
                        refused.update({item: first for item in made.items})
                        continue
                    self._sample(made)
                    kept.update(dict.fromkeys(made.items))
        self.kept.extend(kept)
        self.rejects.extend(Reject(item, error) for item, error in refused.items() if item not in kept)

    def take(self) -> Outcome:
        tables = {layer: LAYERS[layer].table(rows) for layer, rows in self.rows.items()}
        outcome = Outcome(tables, self.kept, self.rejects)
        self.rows, self.kept, self.rejects, self.bytes = {}, [], [], 0
        return outcome

    def _put(self, layer: str, row: dict[str, Any]) -> None:
        self.rows.setdefault(layer, []).append(row)

    def _twice(self, made: str, item: str) -> Dropped | None:
        first = self.seen.setdefault(made, item)
        if first == item:
            return None
        return Dropped("DUPLICATE_ITEM", f"same bytes as {first}, which was kept; nothing to do")

    def _licences(self, own: Licences | None) -> dict[str, Any]:
        if own is not None:
            return {
                "licence_image": own.image, "licence_text": own.text, "licence_annotation": own.annotation,
                "licence_evidence": own.evidence,
            }
        terms = self.ingest.terms
        stated = {n: getattr(terms, n) for n in ("licence_image", "licence_text", "licence_annotation")}
        return {**stated, "licence_evidence": "recipe" if any(stated.values()) else None}

    def _sample(self, sample: Sample) -> None:
        source, made = self.ingest.source, sample_id(self.ingest.source, sample)
        pixels, scale = shrink(sample.pixels, self.ingest.params.max_side)
        encoded = sample.encoded if sample.encoded is not None and scale == 1 else encode_png(pixels)
        columns = dict(sample.columns)
        if spacing := columns.get("pixel_spacing"):
            columns["pixel_spacing"] = [mm / scale for mm in spacing]
        height, width = pixels.shape[:2]
        licences = self._licences(sample.licences)
        self._put("images", {
            **columns, **licences, "sample_id": made, "source": source, "source_item": sample.items[0],
            "image": {"bytes": encoded, "path": f"{made}.{_suffix(encoded)}"}, "width": width, "height": height,
            "group_id": sample.group or made, "sha256": sha256(encoded), "pixel_sha256": pixel_sha256(pixels),
            "phash": phash(pixels),
        })
        self.bytes += len(encoded)
        for label in sample.labels:
            self._put("labels", {
                "sample_id": made, "label_id": key(made, label.name, label.origin, label.value), "name": label.name,
                "value": label.value, "ontology_id": label.ontology_id, "origin": label.origin,
            })
        for region in sample.regions:
            trust = "box" if region.mask is None else "boundary"
            region = region if scale == 1 else scaled(region, scale)
            row = roi_row(made, region, (height, width), expert="source", origin="given", trust=trust)
            if row is not None:
                self._put("rois", row)
        for text in sample.texts:
            self._put("texts", {
                "sample_id": made, "text_id": key(made, text.kind, text.text, "source"), "roi_ids": [],
                "kind": text.kind, "language": text.language, "text": text.text, "evidence": [],
                "generator": "source", "licence": licences["licence_text"],
            })


def sample_id(source: str, sample: Sample) -> str:
    """Hash of the source's name, the bytes and the place within them.

    The name of the source is part of it, so that the same picture in two sources is two samples, each with what its
    source says; `sha256` and `pixel_sha256` tell that they are one picture.
    """
    return key("sample", source, list(sample.content), sample.locator)


def _suffix(encoded: bytes) -> str:
    if encoded.startswith(b"\xff\xd8"):
        return "jpg"
    if encoded.startswith(b"RIFF"):
        return "webp"
    return "gif" if encoded.startswith(b"GIF8") else "png"
