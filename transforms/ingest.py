"""Ingest: the first stage of every source, and the only one that meets raw items.

It asks the connector for a partition's items, lets the decoder of each kind turn them into samples, volumes and
articles, and makes those rows of `images`, `volumes`, `articles`, `labels`, and the given `rois` and `texts`. The
invariant: every item is kept (it became part of something) or rejected, exactly once, and nothing of an item reaches a
row before its decoder has de-identified it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from catalog.items import Item, Label, Licences, Partition, Text
from catalog.schema import LAYERS
from infra import attempts
from infra.errors import ItemError
from infra.keys import key, pseudonym, sha256
from infra.plugins import load, plugins
from infra.settings import PUBLIC_KEY, pseudonym_key
from transforms.decoded import Article, Decoded, IngestParams, Pseudonym, Refused, Sample, Volume
from transforms.pictures.imagefile import encode_png, phash, pixel_sha256, shrink
from transforms.regions import roi_row, scaled
from transforms.scans.references import uids_in_public
from transforms.scans.reopen import reopen
from transforms.scans.volumes import Scan
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
    labels: Mapping[str, str] = {}
    """facts about every sample of the source, name -> value, such as the task it was made for"""


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
        """What decides the rows beside parameters and items: our code's versions, and the pseudonym key's hash."""
        decoders = {f"decoder:{name}": module.VERSION for name, module in plugins("decoder").items()}
        connector = f"{self.connector}@{load('connector', self.connector).VERSION}"
        return {**decoders, "connector": connector, "pseudonym": sha256(self._secret(home))[:16]}

    def settings(self) -> dict[str, Any]:
        """The parameters that decide the rows."""
        return {"ingest": self.params.model_dump(mode="json"), "terms": self.terms.model_dump(mode="json")}

    def names(self, items: Iterable[str], home: Path) -> dict[str, str]:
        """Item id -> what rows call it: file names may hold a patient's, so private ones are pseudonyms too."""
        if self.terms.identifiers == "public":
            return {item: item for item in items}
        secret = self._secret(home)
        return {item: pseudonym(secret, "item", item) for item in items}

    def outcomes(self, partition: Partition, home: Path) -> Iterator[Outcome]:
        """Read the partition's items and yield rows in batches of bounded size."""
        hide = self._stand_ins(self._secret(home))
        burned_in = self.params.burned_in or ("flag" if self.terms.identifiers == "public" else "clean")
        params = self.params.model_copy(update={"burned_in": burned_in})
        batch = _Batch(self, self.names((entry for entry, _ in partition.contents), home))
        for (_, kind), run in groupby(self._read(partition, batch), lambda item: (item.group, item.kind)):
            together = list(run)
            batch.names.update(self.names((item.id for item in together if item.inside is not None), home))
            whole = batch.readable(together)
            decode, first = load("decoder", kind).decode, f"decode {batch.names[together[0].id]}"
            if error := attempts.killed(first):
                batch.rejects.extend(Reject(item.id, error) for item in whole)
            else:
                with attempts.at(first):
                    batch.add(whole, decode(whole, params, hide) if whole else ())
            if batch.full:
                yield batch.take()
        yield batch.take()

    def _read(self, partition: Partition, batch: _Batch) -> Iterator[Item]:
        """The partition's items, without the entries that killed whoever read them before: those are rejects."""
        entries, left = [entry for entry, _ in partition.contents], []
        for place, entry in enumerate(entries):
            if error := attempts.killed(f"read {batch.names[entry]}"):
                batch.rejects.append(Reject(entry, error))
            else:
                left.append(place)
        part = partition if len(left) == len(entries) else _only(partition, left)
        following = dict(zip((entries[n] for n in left), (entries[n] for n in left[1:]), strict=False))
        items = iter(load("connector", self.connector).read(part, self.connector_params))
        at = entries[left[0]] if left else None
        while True:
            with attempts.at(f"read {batch.names[at]}") if at else nullcontext():
                item = next(items, None)
            if item is None:
                return
            at = item.inside or following.get(item.id)
            yield item

    def scan(self, partition: Partition, home: Path, row: Mapping[str, Any]) -> Scan:
        """The scan of a row of `volumes` of a partition, from the source's own files. Raises ItemError."""
        names = self.names((entry for entry, _ in partition.contents), home)
        wanted = set(row["items"])
        chosen = [n for n, (entry, _) in enumerate(partition.contents) if names[entry] in wanted]
        part = _only(partition, chosen)
        found = {names[item.id]: item for item in load("connector", self.connector).read(part, self.connector_params)}
        for item in found.values():
            if item.error is not None:
                raise item.error
        files = [
            item.files[role] for name in row["items"] if (item := found.get(name)) for role in ("header:main", "main")
            if role in item.files
        ]
        return replace(reopen(row, files), anatomy=next(iter(found.values())).facts.get("anatomy") if found else None)

    def _stand_ins(self, secret: bytes) -> Pseudonym:
        """Of the kind "uid" what others' files have in a UID's place, of all others a pseudonym."""
        public = uids_in_public(None if self.terms.identifiers == "public" else secret)
        return lambda kind, identifier: (
            public(identifier) if kind == "uid" else pseudonym(secret, kind, identifier)
        )

    def _secret(self, home: Path) -> bytes:
        return PUBLIC_KEY if self.terms.identifiers == "public" else pseudonym_key(home)


def _only(partition: Partition, places: Sequence[int]) -> Partition:
    """A partition with these entries of another."""
    return replace(
        partition, refs=tuple(partition.refs[n] for n in places), contents=tuple(partition.contents[n] for n in places)
    )


@dataclass
class _Batch:
    """Rows being gathered. `articles` outlives a batch: an article has one row, however many batches it spans."""

    ingest: Ingest
    names: dict[str, str]
    articles: set[str] = field(default_factory=set)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    found: dict[str, list[str]] = field(default_factory=dict)
    bytes: int = 0

    @property
    def full(self) -> bool:
        return self.bytes > BATCH_BYTES or len(self.rows.get("images", ())) >= BATCH_ROWS

    def readable(self, items: Iterable[Item]) -> list[Item]:
        """The items that have files. The others are rejects, but what they say of their article is kept."""
        whole = []
        for item in items:
            if item.inside is not None:
                self.found.setdefault(self.names[item.inside], []).append(self.names[item.id])
            if "article" in item.facts:
                self._article(item.facts["article"])
            if item.error is None:
                whole.append(item)
            elif isinstance(item.error, ItemError):
                self.rejects.append(Reject(item.id, item.error))
            else:
                raise item.error
        return whole

    def add(self, items: list[Item], decoded: Iterable[Decoded]) -> None:
        """Take what a decoder made of a group of items."""
        kept: dict[str, None] = {}
        refused: dict[str, ItemError] = {}
        for made in decoded:
            match made:
                case Refused(item, error):
                    refused[item] = error
                case Article(row):
                    self._article(row)
                case Volume(of, row):
                    self._put("volumes", {
                        **row, **self._licences(None), "source": self.ingest.source,
                        "volume_id": self._volume_id(items[0].group, row["volume_id"]),
                        "items": [self.names[item] for item in of],
                    })
                    kept.update(dict.fromkeys(of))
                case Sample():
                    self._sample(made, items[0].group)
                    kept.update(dict.fromkeys(made.items))
        self.kept.extend(kept)
        self.rejects.extend(Reject(item, error) for item, error in refused.items() if item not in kept)

    def take(self) -> Outcome:
        tables = {layer: LAYERS[layer].table(rows) for layer, rows in self.rows.items()}
        kept = [self.names[item] for item in self.kept]
        outcome = Outcome(tables, kept, [self._shown(reject) for reject in self.rejects], self.found)
        self.rows, self.kept, self.rejects, self.found, self.bytes = {}, [], [], {}, 0
        return outcome

    def _shown(self, reject: Reject) -> Reject:
        """The reject under the name that rows use; messages may name items too."""
        error, words = reject.error, reject.error.message
        for item, name in self.names.items():
            if item != name:
                words = words.replace(item, name)
        return Reject(self.names[reject.item], type(error)(error.code, words))

    def _put(self, layer: str, row: dict[str, Any]) -> None:
        self.rows.setdefault(layer, []).append(row)

    def _article(self, row: Mapping[str, Any]) -> None:
        if row["article_id"] not in self.articles:
            self.articles.add(row["article_id"])
            self._put("articles", {**row, "source": self.ingest.source})

    def _volume_id(self, group: str, of_bytes: str) -> str:
        """Equal volumes of two series or items are two volumes, as equal pictures are two samples."""
        return key("volume", self.ingest.source, group, of_bytes)

    def _licences(self, own: Licences | None) -> dict[str, Any]:
        """What the item says, else what the recipe says of the source; an item's silence on its image is 'unknown'."""
        terms = self.ingest.terms
        stated = {
            "licence_image": own.image if own else terms.licence_image,
            "licence_text": (own and own.text) or terms.licence_text,
            "licence_annotation": (own and own.annotation) or terms.licence_annotation,
        }
        evidence = own.evidence if own else "recipe"
        return {**stated, "licence_evidence": evidence if own or any(stated.values()) else None}

    def _sample(self, sample: Sample, group: str) -> None:
        source, made = self.ingest.source, sample_id(self.ingest.source, sample)
        pixels, scale = shrink(sample.pixels, self.ingest.params.max_side)
        encoded = sample.encoded if sample.encoded is not None and scale == 1 else encode_png(pixels)
        columns = dict(sample.columns)
        if spacing := columns.get("pixel_spacing"):
            columns["pixel_spacing"] = [mm / scale for mm in spacing]
        if volume := columns.get("volume_id"):
            columns["volume_id"] = self._volume_id(group, volume)
        height, width = pixels.shape[:2]
        licences = self._licences(sample.licences)
        self._put("images", {
            **columns, **licences, "sample_id": made, "source": source, "source_item": self.names[sample.items[0]],
            "image": {"bytes": encoded, "path": f"{made}.{_suffix(encoded)}"}, "width": width, "height": height,
            "group_id": sample.group or made, "sha256": sha256(encoded), "pixel_sha256": pixel_sha256(pixels),
            "phash": phash(pixels),
        })
        self.bytes += len(encoded)
        stated = (Label(name, value, "recipe") for name, value in self.ingest.terms.labels.items())
        for label in (*sample.labels, *stated):
            self._put("labels", {
                "sample_id": made, "label_id": key(made, label.name, label.origin, label.value), "name": label.name,
                "value": label.value, "ontology_id": label.ontology_id, "origin": label.origin,
            })
        for region in sample.regions:
            trust = "box" if region.mask is None else "boundary"
            region = region if scale == 1 else scaled(region, scale)
            expert = f"source:{region.rater}" if region.rater else "source"
            row = roi_row(made, region, (height, width), expert=expert, origin="given", trust=trust)
            if row is not None:
                self._put("rois", row)
        for text in sample.texts:
            self._put("texts", {
                "sample_id": made, "text_id": _text_id(made, text), "roi_ids": [], "kind": text.kind,
                "language": text.language, "text": text.text,
                "evidence": [f"text:{_text_id(made, text.about)}"] if text.about else [],
                "generator": "source", "licence": licences["licence_text"],
            })


def _text_id(sample: str, text: Text) -> str:
    """Equal answers to two questions are two texts."""
    return key(sample, text.kind, text.text, "source", *([_text_id(sample, text.about)] if text.about else []))


def sample_id(source: str, sample: Sample) -> str:
    """Hash of the source's name, the item, its bytes and the place within them.

    The item is part of it, so that a picture that a source holds twice, under two patients or two classes, is two
    samples, each with what is said about it there; `sha256` and `pixel_sha256` tell that they are one picture.
    """
    return key("sample", source, sample.items[0], list(sample.content), sample.locator)


def _suffix(encoded: bytes) -> str:
    if encoded.startswith(b"\xff\xd8"):
        return "jpg"
    if encoded.startswith(b"RIFF"):
        return "webp"
    return "gif" if encoded.startswith(b"GIF8") else "png"
