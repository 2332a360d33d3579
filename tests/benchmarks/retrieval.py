"""How well retrieval finds the answers that people judged good, and how fast it is among 100,000 passages.

Quality is recall@10 and nDCG@10 on MedQuAD's test set, by words, by meaning and fused. It needs two published files,
neither of which is fetched for you:

    the judged answers   QA-TestSet-LiveQA-Med-Qrels-2479-Answers.zip of github.com/abachaa/MedQuAD
    the questions        TREC-2017-LiveQA-Medical-Test-Questions-w-summaries.xml of
                         github.com/abachaa/LiveQA_MedicalTask_TREC2017

    python tests/benchmarks/retrieval.py quality JUDGED.zip QUESTIONS.xml [--keep FOLDER] [--words 120]
    python tests/benchmarks/retrieval.py speed [--passages 100000] [--graph]

Every judged answer is searched for every question; it is read as the corpus medquad reads it, each chunk led by the
question it was written for. `--keep` keeps the embeddings for the next run, `--words` reads only the start of each
answer. Judgements: 1 incorrect, 2 related, 3 incomplete, 4 excellent. Recall counts 3 and 4 (of ten where there are
more), nDCG has the gains 0 to 3; an answer not judged for a question counts as 0. The last column resamples the
questions: how often fused search came out ahead in 10,000 draws.

Speed is the median of single queries in one run, on texts of random words and random unit vectors.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import re
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lxml import etree

from transforms.knowledge import lexical
from transforms.knowledge.base import COLUMNS, KnowledgeBase, build
from transforms.knowledge.embedding import DEFAULT_MODEL
from transforms.knowledge.ranking import Hit, Mode, Reranker

TOP = 10
CHUNKS = 200
"""Chunks fetched for a question, enough to hold the ten best answers."""
RERANKED = 20
MODES: tuple[Mode, ...] = ("lexical", "dense", "fused")


def judged(archive: Path) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Answers by id, and question number -> answer id -> judgement."""
    with zipfile.ZipFile(archive) as files:
        names = [name for name in files.namelist() if not name.startswith("__MACOSX")]
        answers = files.read(next(name for name in names if name.endswith(".csv"))).decode()
        lines = files.read(next(name for name in names if name.endswith(".txt"))).decode().splitlines()
    judgements: dict[str, dict[str, int]] = {}
    for question, judgement, answer in map(str.split, filter(None, lines)):
        judgements.setdefault(question, {})[answer] = int(judgement[0])
    return {row["AnswerID"]: row["Answer"] for row in csv.DictReader(io.StringIO(answers))}, judgements


def questions(file: Path) -> dict[str, str]:
    """Question number -> its one-sentence summary."""
    root = etree.parse(str(file), etree.XMLParser(resolve_entities=False, no_network=True)).getroot()
    found = {q.get("qid"): q.findtext("NLM-Summary") for q in root.iter("NLM-QUESTION")}
    return {number.removeprefix("TQ"): " ".join(text.split()) for number, text in found.items()}


def line(id: str, answer: str, words: int | None) -> str:
    """An answer as a line of JSONL: the question it was written for as its title, without its web address."""
    found = re.fullmatch(r"Question:(.*?)\nURL:.*?\nAnswer:(.*)", answer.strip(), re.DOTALL)
    title, text = (found[1], found[2]) if found else ("", answer)
    return json.dumps({"id": id, "title": " ".join(title.split()), "text": " ".join(text.split()[:words])})


def ndcg(ranked: Sequence[str], judgements: Mapping[str, int]) -> float:
    """Discounted gain of the first ten over the best possible."""
    gains = [judgements.get(answer, 1) - 1 for answer in ranked[:TOP]]
    best = sorted((judgement - 1 for judgement in judgements.values()), reverse=True)[:TOP]
    return _discounted(gains) / _discounted(best)


def recall(ranked: Sequence[str], judgements: Mapping[str, int]) -> float:
    """Share of the good answers, or of ten of them, that the first ten hold."""
    good = {answer for answer, judgement in judgements.items() if judgement >= 3}
    return len(good & set(ranked[:TOP])) / min(len(good), TOP)


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


def answers_of(hits: Sequence[Hit]) -> list[str]:
    """The answers that hits are chunks of, best first, each once."""
    return list(dict.fromkeys(hit.passage.id.removeprefix("textfiles:").partition("#")[0] for hit in hits))


def quality(given: argparse.Namespace) -> None:
    answers, judgements = judged(given.judged)
    asked = {number: text for number, text in questions(given.questions).items() if number in judgements}
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        texts = Path(scratch, "answers.jsonl")
        texts.write_text("\n".join(line(id, text, given.words) for id, text in answers.items()))
        start = time.perf_counter()
        corpora = [("textfiles", {"path": str(texts)})]
        base = build(corpora, folder, "medquad", given.model, query_model=given.query_model)
        seconds = time.perf_counter() - start
        print(f"{len(answers)} answers, {len(base.passages)} chunks, knowledge base in {seconds:.0f} s, {given.model}")
        print(f"{len(asked)} questions of {len(judgements)} judged")
        found: dict[str, list[list[Hit]]] = {}
        for mode in MODES:
            found[mode] = base.search(list(asked.values()), CHUNKS, mode=mode)
        if given.reranker:
            reader = Reranker(given.reranker)
            found["fused, re-read"] = [
                [*reader.order(question, hits[:RERANKED]), *hits[RERANKED:]]
                for question, hits in zip(asked.values(), found["fused"], strict=True)
            ]
    numbers = list(asked)
    for name, measure, least in ((f"recall@{TOP}", recall, 3), (f"nDCG@{TOP}", ndcg, 2)):
        counted = [at for at, number in enumerate(numbers) if max(judgements[number].values()) >= least]
        worth = {
            mode: np.array([measure(answers_of(hits[at]), judgements[numbers[at]]) for at in counted])
            for mode, hits in found.items()
        }
        print(f"\n{name}, {len(counted)} questions")
        for way, values in worth.items():
            ahead = "" if way == "fused" else _against(worth["fused"], values)
            print(f"  {way:15} {values.mean():.3f}   {ahead}")


def _against(fused: Any, other: Any) -> str:
    draws = np.random.default_rng(0).integers(0, len(fused), (10_000, len(fused)))
    ahead = ((fused - other)[draws].mean(axis=1) > 0).mean()
    better, worse = int((fused > other).sum()), int((fused < other).sum())
    return f"fused is better on {better}, worse on {worse}; ahead in {ahead:.1%} of draws"


@dataclass(frozen=True)
class Given:
    """Stands for an embedding model: the vectors of queries are given."""

    vectors: Mapping[str, Any]

    def embed(self, texts: Sequence[str], query: bool = False) -> Any:
        return np.stack([self.vectors[text] for text in texts])


def speed(given: argparse.Namespace) -> None:
    import faiss
    from bm25s import BM25
    from rank_bm25 import BM25Okapi

    count, dimension, asked = given.passages, 384, 20
    chance = np.random.default_rng(0)
    rarity = 1 / np.arange(1, 30_001)
    drawn = chance.choice(30_000, (count, 60), p=rarity / rarity.sum())
    texts = [" ".join(f"w{number}x" for number in row) for row in drawn.tolist()]
    queries = [" ".join(f"w{number}x" for number in row) for row in chance.integers(50, 3000, (asked, 5)).tolist()]
    vectors = _unit(chance.standard_normal((count, dimension), np.float32))
    asking = dict(zip(queries, _unit(chance.standard_normal((asked, dimension), np.float32)), strict=True))
    made: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ids = [f"c:{number:06d}" for number in range(count)]
        none = [None] * count
        columns = {"id": ids, "text": texts, "title": none, "corpus": ["c"] * count, "licence": none}
        pq.write_table(pa.table(columns, schema=COLUMNS), folder / "passages.parquet")
        np.save(folder / "vectors.npy", vectors)
        made["ours, lexical"] = _seconds(lambda: lexical.save(lexical.build(texts), folder))
        base = KnowledgeBase("speed", "0", folder, Given(asking), {"corpora": ["c"]}, {})  # type: ignore[arg-type]
        base.search(queries[:1], TOP)  # loads all that is loaded once
        words = [lexical.words(text) for text in texts]
        library, flat = BM25(), faiss.IndexFlatIP(dimension)
        graph = faiss.IndexHNSWFlat(dimension, 32, faiss.METRIC_INNER_PRODUCT)
        made["bm25s"] = _seconds(lambda: library.index(words, show_progress=False))
        start = time.perf_counter()
        old = BM25Okapi(words)
        made["rank-bm25"] = time.perf_counter() - start
        made["faiss flat"] = _seconds(lambda: flat.add(vectors))
        if given.graph:
            made["faiss HNSW 32"] = _seconds(lambda: graph.add(vectors))
        ways: dict[str, Callable[[str], object]] = {
            "ours, lexical": lambda q: base.search([q], TOP, mode="lexical"),
            "bm25s": lambda q: library.retrieve([lexical.words(q)], k=TOP, show_progress=False),
            "rank-bm25": lambda q: np.argsort(old.get_scores(lexical.words(q)))[-TOP:],
            "ours, dense": lambda q: base.search([q], TOP, mode="dense"),
            "numpy, product alone": lambda q: np.argpartition(vectors @ asking[q], -TOP)[-TOP:],
            "faiss flat": lambda q: flat.search(asking[q][None], TOP),
            "ours, fused": lambda q: base.search([q], TOP),
        }
        if given.graph:
            ways["faiss HNSW 32"] = lambda q: graph.search(asking[q][None], TOP)
        took = {name: [_seconds(partial(way, query)) for query in queries] for name, way in ways.items()}
    print(f"{count} passages of 60 words and {dimension} numbers, {asked} queries of 5 words")
    for name, seconds in took.items():
        built = f"made in {made[name]:.1f} s" if name in made else ""
        print(f"  {name:22} {1000 * statistics.median(seconds):8.2f} ms a query   {built}")
    median = {name: statistics.median(seconds) for name, seconds in took.items()}
    print(f"rank-bm25 / ours, lexical: {median['rank-bm25'] / median['ours, lexical']:.1f}")
    print(f"faiss flat / ours, dense: {median['faiss flat'] / median['ours, dense']:.2f}")


def _unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_subparsers(required=True)
    one = which.add_parser("quality")
    one.set_defaults(run=quality)
    one.add_argument("judged", type=Path)
    one.add_argument("questions", type=Path)
    one.add_argument("--keep", type=Path)
    one.add_argument("--words", type=int)
    one.add_argument("--model", default=DEFAULT_MODEL)
    one.add_argument("--query-model")
    one.add_argument("--reranker")
    other = which.add_parser("speed")
    other.set_defaults(run=speed)
    other.add_argument("--passages", type=int, default=100_000)
    other.add_argument("--graph", action="store_true", help="faiss HNSW too, which takes a minute to make")
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
