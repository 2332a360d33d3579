"""`medloom batch`: requests that captions with `batch: true` left in the outbox, sent and collected.

The cycle is build, submit, collect, build --retry-failed, until a build leaves nothing to submit: a first build finds
no answers, and rejects its rows as LLM_PENDING, which may be tried again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import typer

from flows.options import Changes, Home, RecipeName
from flows.recipe import find_recipe, load_recipe
from infra.chat import Endpoint
from infra.errors import ConfigError
from infra.plugins import load
from transforms.options import checked

app = typer.Typer(no_args_is_help=True, help="Requests to language models, collected for the Batch API.")


@app.command()
def submit(recipe: RecipeName, home: Home, set: Changes = []) -> None:  # noqa: B006
    """Send what the last build of RECIPE left to ask, at half the price; answers take up to a day."""
    from infra.llm import RequestCache, open_batches

    for endpoint in endpoints_of(recipe, set):
        sent = open_batches(endpoint, RequestCache(home / "cache" / "llm")).submit()
        typer.echo(f"{endpoint.model} at {endpoint.host}: {len(sent)} batches sent {' '.join(sent)}".rstrip())


@app.command()
def collect(recipe: RecipeName, home: Home, set: Changes = []) -> None:  # noqa: B006
    """Fetch the answers that are there; `medloom build RECIPE --retry-failed` then uses them."""
    from infra.llm import RequestCache, open_batches

    for endpoint in endpoints_of(recipe, set):
        got = open_batches(endpoint, RequestCache(home / "cache" / "llm")).collect()
        typer.echo(
            f"{endpoint.model} at {endpoint.host}: {got.answered} answered, {got.waiting} waiting, "
            f"{got.again} to be sent again, {got.failed} failed"
        )


def endpoints_of(recipe: str, changes: Sequence[str]) -> list[Endpoint]:
    """The endpoints that captions of a recipe collect for. Raises ConfigError where none does."""
    found = list(_batched(recipe, changes))
    if not found:
        raise ConfigError(f"no captions of {recipe} are collected: set batch: true in the options of an llm captioner")
    return found


def _batched(recipe: str, changes: Sequence[str]) -> Iterator[Endpoint]:
    for stage in load_recipe(find_recipe(recipe), changes).stages:
        module = load("captioner", stage.params.captioner) if stage.use == "caption" else None
        if module and hasattr(module, "endpoints"):
            endpoints = module.endpoints(checked("captioner", module, stage.params.options))
            yield from (endpoint for endpoint in endpoints if endpoint.batch)
