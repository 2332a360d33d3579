"""A knowledge base: the passages of some corpora with their vectors and their words, and the search that finds them.

On disk, every file written whole:

    <name>.json             which version is current, the model's address, and what each corpus gave and lost
    <name>.rejects.jsonl    every item that did not become a passage, and why
    <name>-<key>/           passages.parquet, vectors.npy, lexical.*, and knowledge.json last: without it there is no
                            version

The invariant: the key is made from the passages, the models and the rules for words, so equal ones are one version,
never built twice; and a query's hits depend on the version and the query alone, not on what else is asked with it.

Search compares with every passage, by vectors and by words, and fuses the rankings (ranking.py); a passage whose title
is the query, but for left and right, stands first in a ranking of its own. A title's words count twice. The vectors are
multiplied by numpy: at 100,000 passages faiss's flat index took twice as long for a single query (measured by
tests/benchmarks/retrieval.py on two busy cores), and what an approximate index finds depends on how it was grown.

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

from infra import mirror
from infra.errors import ConfigError
from infra.keys import canonical, key, sha256
from infra.storage import resolve, write_atomic, write_bytes
from transforms.knowledge import lexical
from transforms.knowledge.embedding import DEFAULT_MODEL, Device, Embedder, Progress, Vectors
from transforms.knowledge.lexical import LexicalIndex, Scores
from transforms.knowledge.passages import Corpus, Passage, counts, read_corpora
from transforms.knowledge.ranking import DECIMALS, DEPTH, Hit, Mode, fused

FORMAT = 2
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
class KnowledgeBase:
    """One version of a knowledge base. Passages, vectors and model are loaded when they are first used."""

    name: str
    key: str
    path: Path
    embedder: Embedder
    """what queries are embedded with: the passages' own model, or the other one of a pair"""
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

    @cached_property
    def lexical(self) -> LexicalIndex:
        """The words of all passages, mapped from disk."""
        return lexical.load(self.path)

    def search(
        self, queries: Sequence[str], k: int, corpora: Iterable[str] | None = None, mode: Mode = "fused"
    ) -> list[list[Hit]]:
        """The k best passages for each query, best first.

        `corpora` limits the search to some corpora; ConfigError where one is unknown. A lexical search finds only
        passages that share a word with the query. Up to `DEPTH` hits, a smaller k gives the first of a larger one.
        """
        allowed = self._allowed(corpora)
        depth = k if mode == "dense" else max(k, DEPTH)
        found = []
        asked = self.embedder.embed(queries, query=True)
        for start in range(0, len(asked), QUERY_BLOCK):
            block = asked[start : start + QUERY_BLOCK]
            rough = np.where(allowed, block @ self.vectors.T, -np.inf) if mode != "lexical" else block
            for query, vector, row in zip(queries[start : start + QUERY_BLOCK], block, rough, strict=True):
                words = self.lexical.scores(query)
                rankings = []
                if mode != "lexical":
                    rankings.append(self._by_meaning(vector, row, depth))
                if mode != "dense":
                    rankings.append(self._by_words(np.where(allowed, words, 0), depth))
                if mode == "fused":
                    rankings.append([row for row in self._by_name.get(_name(query), ()) if allowed[row]])
                found.append(self._hits(fused(rankings)[:k], vector, words))
        return found

    def _by_meaning(self, vector: Vectors, rough: npt.NDArray[np.floating[Any]], k: int) -> list[int]:
        """The rows of the k best by cosine, given rough scores (-inf: not wanted).

        The last bits of a matrix product move with its size and the machine. So it only picks the candidates, and the
        score that counts is a sum of doubles, one row at a time.
        """
        k = min(k, len(rough))
        least = np.partition(rough, -k)[-k] - 2 * 10.0**-DECIMALS
        rows = np.flatnonzero((rough >= least) & np.isfinite(rough))
        return self._ranked(rows, self._cosines(vector, rows), k)

    def _by_words(self, words: Scores, k: int) -> list[int]:
        """The rows of the k best by BM25, of those that have a word of the query."""
        k = min(k, len(words))
        least = np.partition(words, -k)[-k] - 2 * 10.0**-DECIMALS
        rows = np.flatnonzero((words >= least) & (words > 0))
        return self._ranked(rows, words[rows].astype(np.float64).round(DECIMALS), k)

    @cached_property
    def _by_name(self) -> Mapping[tuple[str, ...], Sequence[int]]:
        """Name -> the rows of the passages that have it as their title, in the order of their ids."""
        rows: dict[tuple[str, ...], list[int]] = {}
        for row in sorted(range(len(self.passages)), key=lambda row: self.passages[row].id):
            if name := _name(self.passages[row].title or ""):
                rows.setdefault(name, []).append(row)
        return rows

    def _ranked(self, rows: npt.NDArray[np.intp], scores: npt.NDArray[np.float64], k: int) -> list[int]:
        pairs = zip(rows.tolist(), scores.tolist(), strict=True)
        return [row for row, _ in sorted(pairs, key=lambda pair: (-pair[1], self.passages[pair[0]].id))[:k]]

    def _cosines(self, vector: Vectors, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        exact: npt.NDArray[np.float64] = np.asarray(self.vectors[rows], np.float64) * vector.astype(np.float64)
        return np.asarray(exact.sum(axis=1).round(DECIMALS))

    def _hits(self, ranking: Sequence[int], vector: Vectors, words: Scores) -> list[Hit]:
        rows = np.asarray(ranking, np.intp)
        shared = words[rows].astype(np.float64).round(DECIMALS).tolist()
        pairs = zip(ranking, self._cosines(vector, rows).tolist(), shared, strict=True)
        return [Hit(self.passages[row], score, held) for row, score, held in pairs]

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


def _name(text: str) -> tuple[str, ...]:
    """The words of a name, without the side."""
    return tuple(word for word in lexical.words(text) if word not in ("left", "right"))


def build(
    corpora: Sequence[tuple[str, Mapping[str, Any] | BaseModel]],
    folder: Path,
    name: str,
    model: str = DEFAULT_MODEL,
    *,
    query_model: str | None = None,
    base: Path | None = None,
    device: Device = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> KnowledgeBase:
    """Read corpora, given as (plug-in, its parameters), embed what is new, and make that the current version of `name`.

    `query_model` embeds the queries where model and it are a pair (MedCPT); None: `model` does both.
    `base` is where relative addresses start. `threads` (default: one a core) changes the speed alone. A text that some
    knowledge base in `folder` holds, made with the same model, is not embedded again. Raises ConfigError for a
    parameter, an address or a model that cannot work.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise ConfigError(f"knowledge base {name!r}: a name is made of letters, digits, _ and -")
    address, asking = _address(model, base), _address(query_model or model, base)
    embedder = Embedder(address, device=device, threads=threads or os.cpu_count() or 1)
    asker = Embedder(asking, device=device)
    if asking != address and asker.dimension != embedder.dimension:
        raise ConfigError(
            f"knowledge base {name!r}: vectors of {query_model} have {asker.dimension} numbers, those of {model} "
            f"{embedder.dimension}; name two models that were trained as a pair"
        )
    read = read_corpora(corpora, base)
    passages = [passage for corpus in read for passage in corpus.passages]
    if not passages:
        rejects = [f"{r.item}: {r.error}" for corpus in read for r in corpus.rejects]
        raise ConfigError(f"knowledge base {name!r}: no corpus gave a passage, {len(rejects)} rejects: {rejects[:3]}")
    contents = sha256(b"\n".join(canonical(asdict(passage)) for passage in passages))
    version = key("knowledge", FORMAT, contents, embedder.fingerprint, asker.fingerprint, lexical.fingerprint())
    if not (folder / f"{name}-{version}" / "knowledge.json").exists():
        _write_version(folder / f"{name}-{version}", passages, embedder, asker, progress)
    head = {"name": name, "key": version, "model": address, "query_model": asking, "device": device}
    _write_report(folder, name, read, head)
    return open_base(folder, name)


def open_base(folder: Path, name: str, version: str | None = None) -> KnowledgeBase:
    """The current version of a knowledge base, or the one with that key.

    Raises ConfigError when there is none, or when the model is no longer the one that it was made with.
    """
    if not mirror.current(folder / f"{name}.json").exists():
        raise ConfigError(f"there is no knowledge base {name!r} in {folder}; {MAKE}")
    report = _json(folder / f"{name}.json")
    version = version or str(report["key"])
    path = folder / f"{name}-{version}"
    mirror.pull(path)
    if not (path / "knowledge.json").exists():
        raise ConfigError(f"version {version} of the knowledge base {name!r} is gone from {folder}; {MAKE}")
    record = _json(path / "knowledge.json")
    if record["format"] != FORMAT:
        raise ConfigError(f"the knowledge base {name!r} was made by another version of medloom; {MAKE}")
    asker = Embedder(report["query_model"], device=report["device"])
    if asker.fingerprint != record["asker"]:
        raise ConfigError(
            f"the model {asker.address} is not the one that the knowledge base {name!r} was made with; "
            f"put that one back, or use the new one: {MAKE}"
        )
    return KnowledgeBase(name, version, path, asker, record, report)


def _address(model: str, base: Path | None) -> str:
    return model if model.startswith("pkg:") else str(resolve(model, base).absolute())


def _write_version(
    path: Path, passages: Sequence[Passage], embedder: Embedder, asker: Embedder, progress: Progress | None
) -> None:
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
        "asker": asker.fingerprint,
        "weights_sha256": embedder.weights_sha256,
        "texts_longer_than_model_reads": embedder.too_long(texts),
    }
    write_atomic(path / "passages.parquet", partial(pq.write_table, table, compression="zstd"))
    write_atomic(path / "vectors.npy", partial(_save, vectors))
    lexical.save(lexical.build([f"{passage.title or ''}\n{passage.text}" for passage in passages]), path)
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
