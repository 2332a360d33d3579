"""Retrieval: the passages of a knowledge base that bear on what is known about a sample.

Each distinct thing known is one query: the labels that are present and the regions that were found; where that leaves
nothing, the modality and anatomy. The invariant: a sample's passages depend on its own rows and the knowledge base
alone. A sample that nothing is known about gets no passages; that is normal, not a reject.

    - use: retrieve
      knowledge: imaging
      k: 4
      routes:                                       # the first that fits a query says where it is searched
        - {name: slides, modality: [SM], corpora: [pathology]}
        - {name: cells, ontology: [CL, GO], corpora: [cl]}

How a query's passages are chosen: both rankings fused (`mode`), those below `min_score` left out, the first ones
re-read by a cross-encoder where one is named (`reranker`), those that fall more than `drop` below the query's best left
out, and at most `k` kept. Of several queries, the firsts come before the seconds. `score` is the cosine similarity of
query and passage in every mode; the order is `rank`. `query` is the query, and @NAME where the route NAME limited it.

Passages are untrusted text: they carry their corpus and id, and who writes captions must treat them as quotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import ConfigError
from transforms.knowledge import embedding, lexical
from transforms.knowledge.base import KnowledgeBase, open_base
from transforms.knowledge.ranking import DEPTH, Hit, Mode, Reranker, near_the_best
from transforms.stage import Context, Rows, SampleRows, Stage, each_sample
from transforms.vocabulary import modality, phrase

NAME = "retrieve"
VERSION = "2"
REQUIRES: Mapping[str, str] = {**embedding.REQUIRES, **lexical.REQUIRES}

NOT_A_FINDING = frozenset({"", "normal", "no finding", "none", "unknown", "other"})
"""Labels that say nothing a passage could explain."""
PLACES = frozenset({"body", "region", "panel"})
"""Roles of regions that are a place in the picture, not a thing shown."""


class Route(BaseModel):
    """Where the queries of some samples are searched. All conditions that are given must hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w-]+$", description="stands behind the query: a passage says why it was found")
    modality: tuple[str, ...] = Field((), description="the sample's modality is one of these codes")
    anatomy: tuple[str, ...] = Field((), description="the sample's anatomy is one of these words")
    ontology: tuple[str, ...] = Field(
        (), description="the label or region asked for is a term of one of these ontologies, by prefix: HP, CL, UBERON"
    )
    corpora: tuple[str, ...] = Field(min_length=1, description="the corpora searched")

    def fits(self, sample: SampleRows, query: Query) -> bool:
        """Whether it is for this query of this sample; what the sample does not say fits no condition."""
        return (
            (not self.modality or sample.image.get("modality") in self.modality)
            and (not self.anatomy or _word(sample.image.get("anatomy")) in map(_word, self.anatomy))
            and (not self.ontology or query.ontology in self.ontology)
        )


class Params(BaseModel):
    """What is searched, and how much is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    knowledge: str = Field(description="name of the knowledge base")
    mode: Mode = Field(
        "fused", description="dense: by meaning (embeddings); lexical: by words (BM25); fused: by both rankings"
    )
    k: int = Field(4, ge=1, description="at most so many passages a sample")
    min_k: int = Field(1, ge=0, description="so many of a query stay, however far they fall below its best")
    min_score: float = Field(0.3, ge=-1, le=1, description="cosine similarity below which a passage is left out")
    drop: float | None = Field(
        0.2, ge=0, description="cosine similarity that a passage may fall below the best of its query; null: any. The "
        "default keeps 98 of 100 good and 82 of 100 wrong passages among the first eight (MedQuAD, default model)",
    )
    corpora: tuple[str, ...] | None = Field(None, description="search these corpora where no route fits; null: all")
    routes: tuple[Route, ...] = Field((), description="where queries are searched, by modality, anatomy and ontology")
    ask: tuple[Literal["labels", "rois", "anatomy"], ...] = Field(
        ("labels", "rois", "anatomy"), description="what is asked for; anatomy (with modality) only where the rest is "
        "empty: it finds what may occur there, not what the picture shows",
    )
    reranker: str | None = Field(
        None, exclude=True, description="folder of a cross-encoder that orders a query's first passages; its contents "
        "enter the key; null: none",
    )
    rerank: int = Field(20, ge=1, description="how many passages of a query a reranker reads")


@dataclass(frozen=True)
class Query:
    """One thing asked for."""

    text: str
    ontology: str | None = None
    """prefix of the concept id of the label or region that it is"""


@dataclass
class Searcher:
    """An open knowledge base that answers a query once."""

    base: KnowledgeBase
    params: Params
    reranker: Reranker | None = None
    answers: dict[tuple[str, str | None], list[Hit]] = field(default_factory=dict)

    def hits(self, query: str, route: Route | None = None) -> list[Hit]:
        """The passages for a query, best first, at most k."""
        asked = (query, route.name if route else None)
        if asked not in self.answers:
            self.answers[asked] = self._hits(query, route.corpora if route else self.params.corpora)
        return self.answers[asked]

    def _hits(self, query: str, corpora: Sequence[str] | None) -> list[Hit]:
        wanted = self.params
        found = self.base.search([query], max(DEPTH, wanted.k), corpora, wanted.mode)[0]
        hits = [hit for hit in found if hit.score >= wanted.min_score]
        if self.reranker:
            hits = [*self.reranker.order(query, hits[: wanted.rerank]), *hits[wanted.rerank :]]
        return near_the_best(hits, wanted.min_k, wanted.drop)[: wanted.k]


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError when there is no such knowledge base or reranker, or it lacks a corpus."""
    base = open_base(context.knowledge, params.knowledge)
    named = [*(params.corpora or ()), *(corpus for route in params.routes for corpus in route.corpora)]
    if unknown := sorted(set(named) - set(base.corpora)):
        raise ConfigError(
            f"retrieve: the knowledge base {base.name!r} has no corpus {', '.join(unknown)}, "
            f"only {', '.join(base.corpora)}"
        )
    names = [route.name for route in params.routes]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"retrieve: two routes are called {min(twice)!r}; give each a name of its own")
    ingredients = {"knowledge": base.key}
    if params.reranker is not None:
        ingredients["reranker"] = Reranker(params.reranker).fingerprint
    return each_sample(
        NAME, VERSION, reads=("images", "labels", "rois"), writes=("passages",), row=passages_of, params=params,
        ingredients=ingredients, pixels=False, open=partial(_open, context.knowledge, params, base.key),
    )


def _open(folder: Path, params: Params, key: str) -> Searcher:
    reranker = None if params.reranker is None else Reranker(params.reranker)
    return Searcher(open_base(folder, params.knowledge, key), params, reranker)


def passages_of(sample: SampleRows, searcher: Searcher) -> Rows:
    """Rows of `passages`: the hits of all queries, each passage once, where it stands first."""
    best: dict[str, tuple[int, Hit, str]] = {}
    for query in queries(sample, searcher.params.ask):
        route = next((route for route in searcher.params.routes if route.fits(sample, query)), None)
        asked = f"{query.text} @{route.name}" if route else query.text
        for place, hit in enumerate(searcher.hits(query.text, route)):
            known = best.get(hit.passage.id)
            if known is None or (place, -hit.score) < (known[0], -known[1].score):
                best[hit.passage.id] = (place, hit, asked)
    ranked = sorted(best.values(), key=lambda found: (found[0], -found[1].score, found[1].passage.id))
    rows = [_row(rank, hit, asked) for rank, (_, hit, asked) in enumerate(ranked[: searcher.params.k], 1)]
    return {"passages": rows}


def queries(sample: SampleRows, ask: Sequence[str]) -> list[Query]:
    """What to ask for a sample, in the order of its labels and regions, each once; case does not count."""
    things: list[tuple[str, str | None]] = []
    if "labels" in ask:
        things += [(row["name"], row.get("ontology_id")) for row in sample.rows("labels") if row["value"] == "present"]
    if "rois" in ask:
        things += [(row["label"], row.get("ontology_id")) for row in sample.rows("rois") if row["role"] not in PLACES]
    asked: dict[str, Query] = {}
    for thing, id in things:
        if (text := _word(thing)) not in NOT_A_FINDING:
            asked.setdefault(text, Query(text, id.partition(":")[0] if id else None))
    if not asked and "anatomy" in ask and sample.image.get("anatomy"):
        how = modality(sample.image.get("modality"))
        return [Query(f"{how.image if how else 'image'} of {phrase(sample.image['anatomy'])}".casefold())]
    return list(asked.values())


def _word(thing: str | None) -> str:
    return phrase(thing).casefold() if thing else ""


def _row(rank: int, hit: Hit, query: str) -> Mapping[str, Any]:
    passage = hit.passage
    return {
        "rank": rank, "passage_id": passage.id, "corpus": passage.corpus, "text": passage.text, "query": query,
        "score": hit.score, "licence": passage.licence,
    }
