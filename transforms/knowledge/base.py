"""A knowledge base: the passages of some corpora with their vectors, and the search that finds them.

On disk, every file written whole:

    <name>.json             which version is current, the model's address, and what each corpus gave and lost
    <name>.rejects.jsonl    every item that did not become a passage, and why
    <name>-<key>/           passages.parquet, vectors.npy, and knowledge.json last: without it there is no version

The invariant: the key is made from the passages and the model, so equal passages and an equal model are one version,
never built twice; and a query's hits depend on the version and the query alone, not on what else is asked with it.

Search compares with every passage. At 100,000 passages that is some milliseconds a query, no more than the query's own
embedding costs; an approximate index would save little, and what it finds depends on how it was grown.

>>> base = build([("hpo", {"under": ["HP:0002088"]})], home / "knowledge", "lungs")
>>> base.search(["cavity in the lung"], k=1)[0][0].passage.id
'hpo:HP:0025044'
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from infra.errors import ConfigError
from infra.keys import canonical, key, sha256
from infra.storage import resolve, write_atomic, write_bytes
from transforms.knowledge.embedding import DEFAULT_MODEL, Device, Embedder, Progress, Vectors
from transforms.knowledge.passages import Corpus, Passage, counts, read_corpora

FORMAT = 1
DECIMALS = 4
"""Scores are rounded to this many decimals, far above the error of single precision."""
QUERY_BLOCK = 64
"""Queries in one matrix product: bounds memory, changes nothing else."""
MAKE = "make it with: medloom knowledge build RECIPE"

COLUMNS = pa.schema([
    pa.field("id", pa.string(), nullable=False),
    pa.field("text", pa.string(), nullable=False),
    pa.field("title", pa.string()),
    pa.field("corpus", pa.string(), nullable=False),
    pa.field("licence", pa.string()),
])


@dataclass(frozen=True)
class Hit:
    """A passage found; `score` is its cosine similarity to the query, -1 to 1."""

    passage: Passage
    score: float


@dataclass(frozen=True)
class KnowledgeBase:
    """One version of a knowledge base. Passages, vectors and model are loaded when they are first used."""

    name: str
    key: str
    path: Path
    embedder: Embedder
    record: Mapping[str, Any]
    """what knowledge.json holds: the version"""
    report: Mapping[str, Any]
    """what <name>.json holds: the last build"""

    @property
    def corpora(self) -> Sequence[str]:
        """Names of the corpora it has passages of."""
        names: list[str] = self.record["corpora"]
        return names

    @cached_property
    def passages(self) -> Sequence[Passage]:
        """All passages, in the order of the vectors."""
        return [Passage(**row) for row in pq.read_table(self.path / "passages.parquet").to_pylist()]

    @cached_property
    def vectors(self) -> Vectors:
        """Unit vectors, (passages, dimension) float32, mapped from disk so that processes share them."""
        vectors: Vectors = np.load(self.path / "vectors.npy", mmap_mode="r", allow_pickle=False)
        return vectors

    def search(self, queries: Sequence[str], k: int, corpora: Iterable[str] | None = None) -> list[list[Hit]]:
        """The k best passages for each query, best first, equal scores in the order of passage ids.

        `corpora` limits the search to some corpora; ConfigError where one is unknown.
        """
        allowed = self._allowed(corpora)
        asked = self.embedder.embed(queries)
        found = []
        for start in range(0, len(asked), QUERY_BLOCK):
            block = asked[start : start + QUERY_BLOCK]
            rough = np.where(allowed, block @ self.vectors.T, -np.inf)
            found += [self._best(query, row, k) for query, row in zip(block, rough, strict=True)]
        return found

    def _best(self, query: Vectors, rough: npt.NDArray[np.floating[Any]], k: int) -> list[Hit]:
        """The k best, given rough scores (-inf: not wanted).

        The last bits of a matrix product move with its size and the machine. So it only picks the candidates, and the
        score that counts is a sum of doubles, one row at a time.
        """
        k = min(k, len(rough))
        least = np.partition(rough, -k)[-k] - 2 * 10.0**-DECIMALS
        rows = np.flatnonzero((rough >= least) & np.isfinite(rough))
        scores = (self.vectors[rows].astype(np.float64) * query.astype(np.float64)).sum(axis=1).round(DECIMALS)
        hits = [Hit(self.passages[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
        return sorted(hits, key=lambda hit: (-hit.score, hit.passage.id))[:k]

    def _allowed(self, corpora: Iterable[str] | None) -> npt.NDArray[np.bool_]:
        wanted = set(self.corpora if corpora is None else corpora)
        if unknown := sorted(wanted - set(self.corpora)):
            raise ConfigError(
                f"the knowledge base {self.name!r} has no corpus {', '.join(unknown)}, only {', '.join(self.corpora)}"
            )
        return np.isin(self._corpus_of, sorted(wanted))

    @cached_property
    def _corpus_of(self) -> npt.NDArray[np.str_]:
        return np.array([passage.corpus for passage in self.passages])


def build(
    corpora: Sequence[tuple[str, Mapping[str, Any] | BaseModel]],
    folder: Path,
    name: str,
    model: str = DEFAULT_MODEL,
    *,
    base: Path | None = None,
    device: Device = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> KnowledgeBase:
    """Read corpora, given as (plug-in, its parameters), embed what is new, and make that the current version of `name`.

    `base` is where relative addresses start. `threads` (default: one a core) changes the speed alone. A text that some
    knowledge base in `folder` holds, made with the same model, is not embedded again. Raises ConfigError for a
    parameter, an address or a model that cannot work.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise ConfigError(f"knowledge base {name!r}: a name is made of letters, digits, _ and -")
    address = model if model.startswith("pkg:") else str(resolve(model, base).absolute())
    embedder = Embedder(address, device=device, threads=threads or os.cpu_count() or 1)
    read = read_corpora(corpora, base)
    passages = [passage for corpus in read for passage in corpus.passages]
    if not passages:
        rejects = [f"{r.item}: {r.error}" for corpus in read for r in corpus.rejects]
        raise ConfigError(f"knowledge base {name!r}: no corpus gave a passage, {len(rejects)} rejects: {rejects[:3]}")
    contents = sha256(b"\n".join(canonical(asdict(passage)) for passage in passages))
    version = key("knowledge", FORMAT, contents, embedder.fingerprint)
    if not (folder / f"{name}-{version}" / "knowledge.json").exists():
        _write_version(folder / f"{name}-{version}", passages, embedder, progress)
    _write_report(folder, name, read, {"name": name, "key": version, "model": address, "device": device})
    return open_base(folder, name)


def open_base(folder: Path, name: str, version: str | None = None) -> KnowledgeBase:
    """The current version of a knowledge base, or the one with that key.

    Raises ConfigError when there is none, or when the model is no longer the one that it was made with.
    """
    if not (folder / f"{name}.json").exists():
        raise ConfigError(f"there is no knowledge base {name!r} in {folder}; {MAKE}")
    report = _json(folder / f"{name}.json")
    version = version or str(report["key"])
    path = folder / f"{name}-{version}"
    if not (path / "knowledge.json").exists():
        raise ConfigError(f"version {version} of the knowledge base {name!r} is gone from {folder}; {MAKE}")
    record = _json(path / "knowledge.json")
    embedder = Embedder(report["model"], device=report["device"])
    if embedder.fingerprint != record["embedder"]:
        raise ConfigError(
            f"the model {embedder.address} is not the one that the knowledge base {name!r} was made with; "
            f"put that one back, or use the new one: {MAKE}"
        )
    return KnowledgeBase(name, version, path, embedder, record, report)


def _write_version(path: Path, passages: Sequence[Passage], embedder: Embedder, progress: Progress | None) -> None:
    texts = [passage.text for passage in passages]
    known = _known_vectors(path.parent, embedder.fingerprint, set(texts))
    new = sorted(set(texts) - known.keys())
    known.update(zip(new, embedder.embed(new, progress), strict=True))
    vectors = np.stack([known[text] for text in texts])
    table = pa.Table.from_pylist([asdict(passage) for passage in passages], schema=COLUMNS)
    record = {
        "format": FORMAT,
        "passages": len(passages),
        "corpora": sorted({passage.corpus for passage in passages}),
        "dimension": vectors.shape[1],
        "embedder": embedder.fingerprint,
        "weights_sha256": embedder.weights_sha256,
        "texts_longer_than_model_reads": embedder.too_long(texts),
    }
    write_atomic(path / "passages.parquet", partial(pq.write_table, table, compression="zstd"))
    write_atomic(path / "vectors.npy", partial(_save, vectors))
    _write_json(path / "knowledge.json", record)


def _known_vectors(folder: Path, fingerprint: str, texts: set[str]) -> dict[str, Vectors]:
    """Vectors of those texts that a version in the folder already holds, made with the same model."""
    found: dict[str, Vectors] = {}
    for record in sorted(folder.glob("*/knowledge.json")):
        if _json(record)["embedder"] == fingerprint:
            vectors = np.load(record.with_name("vectors.npy"), mmap_mode="r", allow_pickle=False)
            old = pq.read_table(record.with_name("passages.parquet"), columns=["text"])["text"].to_pylist()
            found.update((text, vectors[row]) for row, text in enumerate(old) if text in texts)
    return found


def _write_report(folder: Path, name: str, read: Sequence[Corpus], head: Mapping[str, Any]) -> None:
    lines = [
        canonical({
            "corpus": corpus.use, "item": reject.item, "outcome": reject.error.outcome, "code": reject.error.code,
            "message": reject.error.message,
        })
        for corpus in read
        for reject in corpus.rejects
    ]
    write_bytes(folder / f"{name}.rejects.jsonl", b"".join(line + b"\n" for line in lines))
    _write_json(folder / f"{name}.json", {**head, "corpora": [counts(corpus) for corpus in read]})


def _save(vectors: Vectors, draft: Path) -> None:
    with open(draft, "wb") as file:  # given a name, numpy would add .npy to it
        np.save(file, vectors, allow_pickle=False)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_bytes(path, json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
