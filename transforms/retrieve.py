"""Retrieval: the passages of a knowledge base that bear on what is known about a sample.

Each distinct thing known is one query: the labels that are present and the regions that were found; where that leaves
nothing, the modality and anatomy. The invariant: a sample's passages depend on its own rows and the knowledge base
alone. A sample that nothing is known about gets no passages; that is normal, not a reject.

    - use: retrieve
      knowledge: imaging
      k: 4
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import ConfigError
from transforms.knowledge.base import Hit, KnowledgeBase, open_base
from transforms.knowledge.embedding import REQUIRES as REQUIRES
from transforms.stage import Context, Rows, SampleRows, Stage, each_sample
from transforms.vocabulary import modality, phrase

NAME = "retrieve"
VERSION = "1"

NOT_A_FINDING = frozenset({"", "normal", "no finding", "none", "unknown", "other"})
"""Labels that say nothing a passage could explain."""
PLACES = frozenset({"body", "region", "panel"})
"""Roles of regions that are a place in the picture, not a thing shown."""


class Params(BaseModel):
    """What is searched, and how much is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    knowledge: str = Field(description="name of the knowledge base")
    k: int = Field(4, ge=1, description="at most so many passages a sample")
    min_score: float = Field(0.3, ge=-1, le=1, description="cosine similarity below which a passage is left out")
    corpora: tuple[str, ...] | None = Field(None, description="search these corpora only; null: all")
    ask: tuple[Literal["labels", "rois", "anatomy"], ...] = Field(
        ("labels", "rois", "anatomy"), description="what is asked for; anatomy (with modality) only where the rest is "
        "empty: it finds what may occur there, not what the picture shows",
    )


@dataclass
class Searcher:
    """An open knowledge base that answers a query once."""

    base: KnowledgeBase
    params: Params
    answers: dict[str, list[Hit]] = field(default_factory=dict)

    def hits(self, query: str) -> list[Hit]:
        """The k best passages for a query that reach the least score."""
        if query not in self.answers:
            found = self.base.search([query], self.params.k, self.params.corpora)[0]
            self.answers[query] = [hit for hit in found if hit.score >= self.params.min_score]
        return self.answers[query]


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError when there is no such knowledge base, or it lacks a corpus."""
    base = open_base(context.knowledge, params.knowledge)
    if unknown := sorted(set(params.corpora or ()) - set(base.corpora)):
        raise ConfigError(
            f"retrieve: the knowledge base {base.name!r} has no corpus {', '.join(unknown)}, "
            f"only {', '.join(base.corpora)}"
        )
    return each_sample(
        NAME, VERSION, reads=("images", "labels", "rois"), writes=("passages",), row=passages_of, params=params,
        ingredients={"knowledge": base.key}, pixels=False, open=partial(_open, context.knowledge, params, base.key),
    )


def _open(folder: Path, params: Params, key: str) -> Searcher:
    return Searcher(open_base(folder, params.knowledge, key), params)


def passages_of(sample: SampleRows, searcher: Searcher) -> Rows:
    """Rows of `passages`: the hits of all queries, each passage once with its best score."""
    best: dict[str, tuple[Hit, str]] = {}
    for query in queries(sample, searcher.params.ask):
        for hit in searcher.hits(query):
            known = best.get(hit.passage.id)
            if known is None or hit.score > known[0].score:
                best[hit.passage.id] = (hit, query)
    ranked = sorted(best.values(), key=lambda found: (-found[0].score, found[0].passage.id))
    return {"passages": [_row(rank, *found) for rank, found in enumerate(ranked[: searcher.params.k], 1)]}


def queries(sample: SampleRows, ask: Sequence[str]) -> list[str]:
    """What to ask for a sample, in the order of its labels and regions, each once; case does not count."""
    things = []
    if "labels" in ask:
        things += [label["name"] for label in sample.rows("labels") if label["value"] == "present"]
    if "rois" in ask:
        things += [roi["label"] for roi in sample.rows("rois") if roi["role"] not in PLACES]
    asked = [query for query in (phrase(thing).casefold() for thing in things) if query not in NOT_A_FINDING]
    if not asked and "anatomy" in ask and sample.image.get("anatomy"):
        how = modality(sample.image.get("modality"))
        asked = [f"{how.image if how else 'image'} of {phrase(sample.image['anatomy'])}".casefold()]
    return list(dict.fromkeys(asked))


def _row(rank: int, hit: Hit, query: str) -> Mapping[str, Any]:
    passage = hit.passage
    return {
        "rank": rank, "passage_id": passage.id, "corpus": passage.corpus, "text": passage.text, "query": query,
        "score": hit.score, "licence": passage.licence,
    }
