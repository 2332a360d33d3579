"""Knowledge bases of a recipe: built when the recipe's declaration is new, refreshed when somebody asks for it.

A build does not read the corpora again as long as the recipe says the same of them, so that a build with nothing to do
takes seconds; `medloom knowledge build` reads them again and embeds what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flows.recipe import Knowledge, Recipe, find_recipe, load_recipe
from infra import mirror
from infra.errors import ConfigError
from infra.keys import key
from infra.storage import write_bytes
from transforms.knowledge.base import FORMAT, build, open_base
from transforms.knowledge.embedding import DEFAULT_MODEL
from transforms.knowledge.ranking import Mode

Tell = Callable[[int, int], object]
"""(texts embedded, texts to embed)"""


def ensure_knowledge(recipe: Recipe, home: Path, progress: Tell | None = None) -> None:
    """Build the recipe's knowledge bases that are missing or declared otherwise than when they were built."""
    for declared in recipe.knowledge:
        mark = mirror.current(home / "knowledge" / f"{declared.name}.declared")
        if not mark.exists() or mark.read_text() != _declaration(declared):
            _build(declared, home, progress)


def build_all(recipe: str, home: Path, changes: Sequence[str]) -> Iterator[str]:
    """Build the knowledge bases of a recipe from its corpora as they are now; yields a line about each."""
    from rich.progress import Progress

    declared = load_recipe(find_recipe(recipe), changes).knowledge
    if not declared:
        raise ConfigError(f"{recipe} declares no `knowledge:`")
    for knowledge in declared:
        with Progress() as bars:
            bar = bars.add_task(f"embedding {knowledge.name}", total=None)
            yield _build(knowledge, home, lambda done, of: bars.update(bar, completed=done, total=of))  # noqa: B023


def search(home: Path, name: str | None, text: str, k: int, mode: Mode = "fused") -> list[dict[str, Any]]:
    """The passages that fit a text best, as rows for a table; `score` is the cosine, `words` the BM25."""
    mirror.pull(home / "knowledge")
    known = sorted(path.stem for path in (home / "knowledge").glob("*.json"))
    if name is None:
        if len(known) != 1:
            raise ConfigError(f"which knowledge base? {home} has {', '.join(known) or 'none'}; name it with --base")
        name = known[0]
    hits = open_base(home / "knowledge", name).search([text], k, mode=mode)[0]
    return [
        {"score": h.score, "words": h.words, "id": h.passage.id, "text": h.passage.text, "licence": h.passage.licence}
        for h in hits
    ]


def _build(declared: Knowledge, home: Path, progress: Tell | None) -> str:
    corpora = [(corpus.use, corpus.params) for corpus in declared.corpora]
    query_model = getattr(declared, "query_model", None)  # a recipe that names no pair has one model for both
    base = build(
        corpora, home / "knowledge", declared.name, declared.model or DEFAULT_MODEL, query_model=query_model,
        progress=progress,
    )
    write_bytes(home / "knowledge" / f"{declared.name}.declared", _declaration(declared).encode())
    return f"{declared.name}: {base.record['passages']} passages of {', '.join(base.corpora)}, version {base.key}"


def _declaration(declared: Knowledge) -> str:
    return key("knowledge", FORMAT, declared.model_dump(mode="json"))
