"""Rankings of passages: two fused into one, re-read by a cross-encoder, cut where they stop being about the query.

The invariant: a ranking depends on the query and the passages alone; equal values come in the order of passage ids, and
when fused in the order of the first ranking. A hit's `score` is the cosine similarity of query and passage whatever
ranked it, so that a threshold means the same thing everywhere: fusion and re-reading decide the order, never the score.

Fusion is by reciprocal rank: a passage gets 1 / (60 + rank) from each ranking that has it among its first hundred
(Cormack, Clarke and Buettcher, SIGIR 2009; the 60 is theirs). Nothing in it was fitted to our data.

>>> fused([["a", "b", "c"], ["c", "d"]])[:2]
['c', 'a']
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from infra.errors import ConfigError
from infra.keys import key
from infra.settings import be_quiet
from infra.storage import resolve
from transforms.knowledge import modelfolder
from transforms.knowledge.embedding import Device
from transforms.knowledge.passages import Passage

Mode = Literal["fused", "dense", "lexical"]
"""dense: by cosine; lexical: by BM25; fused: by both rankings"""
K = 60
"""The constant of reciprocal rank fusion."""
DEPTH = 100
"""How much of either ranking is fused, or more where more hits are asked for."""
DECIMALS = 4
"""Scores are rounded to this many decimals, far above the error of single precision."""

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Hit:
    """A passage found."""

    passage: Passage
    score: float
    """cosine similarity of query and passage, -1 to 1"""
    words: float = 0.0
    """BM25 of the words that query and passage share; 0: none, or nobody looked"""


def fused(rankings: Iterable[Sequence[T]]) -> list[T]:
    """Everything in the rankings, best first; equals in the order in which the first rankings have them.

    Sums of fractions, so that no rounding decides a place.
    """
    total: dict[T, Fraction] = {}
    for ranking in rankings:
        for rank, one in enumerate(ranking, 1):
            total[one] = total.get(one, Fraction(0)) + Fraction(1, K + rank)
    return sorted(total, key=total.__getitem__, reverse=True)  # a stable sort


def near_the_best(hits: Sequence[Hit], least: int, drop: float | None) -> list[Hit]:
    """The hits without those whose score lies more than `drop` below the best; the first `least` stay in any case."""
    if drop is None or not hits:
        return list(hits)
    floor = round(max(hit.score for hit in hits) - drop, DECIMALS)
    return [hit for place, hit in enumerate(hits) if place < least or hit.score >= floor]


@dataclass(frozen=True)
class Reranker:
    """A cross-encoder by address: reads a query and a passage together, which finds more and costs a pass each."""

    address: str
    base: Path | None = None
    device: Device = "cpu"

    @cached_property
    def folder(self) -> Path:
        """The model's folder. Raises ConfigError when it is no model that could be loaded safely."""
        folder = resolve(self.address, self.base)
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{self.address}: no config.json in it, so it is not a cross-encoder")
        return modelfolder.checked(folder, self.address)

    @cached_property
    def fingerprint(self) -> str:
        """Key of all that decides a score: weights, tokenizer, configuration and device."""
        modelfolder.weights_sha256(self.folder, self.address)  # says so where there are none
        return key("reranker", self.device, modelfolder.contents_key(self.folder))

    def order(self, query: str, hits: Sequence[Hit]) -> list[Hit]:
        """The hits, best first by the cross-encoder; equals in the order of passage ids. Scores stay as they are."""
        model = self._model
        with modelfolder.one_thread_an_operation():  # pair by pair: a batch pads, which moves the last bits
            pairs = [[(query, hit.passage.text)] for hit in hits]
            worth = [round(float(model.predict(pair, show_progress_bar=False)[0]), DECIMALS) for pair in pairs]
        ranked = sorted(zip(worth, hits, strict=True), key=lambda pair: (-pair[0], pair[1].passage.id))
        return [hit for _, hit in ranked]

    @cached_property
    def _model(self) -> Any:
        be_quiet()
        import torch
        from sentence_transformers import CrossEncoder
        from transformers.utils import logging

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device cuda: torch sees no GPU here; install a CUDA build of torch, or use device cpu")
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model = CrossEncoder(
            str(self.folder), device=self.device, local_files_only=True, trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        if model.num_labels != 1:
            raise ConfigError(f"{self.address}: gives {model.num_labels} numbers a pair, not one; name a reranker")
        return model.eval()
