"""The command line, `medloom`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.batches import app as batch_app
from flows.catalogue import app as catalog_app
from flows.deidentify import deid
from flows.deploy import deploy, worker
from flows.doctor import doctor
from flows.options import Changes, Home, RecipeName, RunnerName
from flows.reports import reports
from flows.sbom import sbom
from flows.server import run_server
from flows.show import show
from flows.simulate import simulate_command
from flows.weights import app as weights_app
from infra import redact
from infra.errors import MedloomError
from infra.settings import be_quiet
from infra.telemetry import logs

app = typer.Typer(
    name="medloom", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Build medical image-text datasets in the open: sources in, grounded and checked captions out.",
)
knowledge_app = typer.Typer(no_args_is_help=True, help="Knowledge bases that captions are retrieved from.")
app.add_typer(batch_app, name="batch")
app.add_typer(catalog_app, name="catalog")
app.add_typer(knowledge_app, name="knowledge")
app.add_typer(weights_app, name="weights")


@app.command()
def build(
    recipe: RecipeName,
    home: Home,
    set: Changes = [],  # noqa: B006
    runner: RunnerName = "ray",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try items again whose failure may pass.")
    ] = False,
) -> None:
    """Build what RECIPE describes and the dataset lacks, and record a snapshot."""
    from flows.run import run_build

    typer.echo(run_build(recipe, home, runner, set, retry_failed))


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT; layers are tables by their names.")],
    home: Home,
    format: Annotated[str, typer.Option(help="table, json or csv.")] = "table",
    at: Annotated[int | None, typer.Option(help="Snapshot to ask; default: the newest.")] = None,
    seconds: Annotated[float, typer.Option(help="How long the answer may take.")] = 600,
) -> None:
    """Ask the catalog: layers, and the views samples, funnel, costs, licences and missing."""
    from catalog.catalog import query as ask

    show(ask(home, query, at, seconds).to_pylist(), format)


@app.command()
def funnel(home: Home, format: Annotated[str, typer.Option(help="table, json or csv.")] = "table") -> None:
    """What became of every row: in = kept + dropped + failed, by source and stage, and why the rest was rejected."""
    from catalog.catalog import query as ask

    show(ask(home, "SELECT * FROM funnel").to_pylist(), format)
    if format == "table":
        why = "SELECT source, stage, outcome, code, count(*) AS n FROM rejects GROUP BY ALL"
        show(ask(home, f"{why} ORDER BY source, n DESC, code").to_pylist(), format)


@app.command()
def export(
    home: Home,
    out: Annotated[str, typer.Option(help="Folder or s3://BUCKET/PREFIX to write to; nothing may be there yet.")],
    where: Annotated[str, typer.Option(help="SQL condition over images, such as \"modality = 'CT'\".")] = "true",
    format: Annotated[str, typer.Option("--format", help="An exporter; `medloom plugins` lists them.")] = "webdataset",
    at: Annotated[int | None, typer.Option(help="Snapshot to export; default: the newest.")] = None,
    option: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="A parameter of the exporter.")] = [],  # noqa: B006
    licences: Annotated[
        str, typer.Option(help="Which rows may be written: open, research (and NC, ND), all, or codes with commas.")
    ] = "open",
    pixels: Annotated[str, typer.Option(help="all, open (pointers for the others) or none (pointers only).")] = "all",
    mixture: Annotated[Path | None, typer.Option(help="YAML file of conditions with weights.")] = None,
) -> None:
    """Write the rows that a condition picks in a training format."""
    from flows.export import run_export

    target = out if out.startswith("s3://") else Path(out)
    typer.echo(run_export(home, where, format, target, at, option, licences=licences, pixels=pixels, mixture=mixture))


@app.command()
def browse(
    home: Home,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    read_only: Annotated[bool, typer.Option("--read-only", help="Nobody can decide anything.")] = False,
) -> None:
    """Look at the dataset in a browser, and review it; decisions become rows in the next build."""
    from flows.browse import browse as run

    run(home, port, read_only)


@app.command()
def card(home: Home, at: Annotated[int | None, typer.Option(help="Snapshot; default: the newest.")] = None) -> None:
    """The data card of a snapshot, as markdown."""
    from catalog.datacard import card_markdown

    typer.echo(card_markdown(home, at))


@app.command()
def verify(home: Home) -> None:
    """Rehash every shard of the newest snapshot and check that no row vanished."""
    from rich.progress import track

    from catalog import verify as check

    units = check.manifests(home)
    seen = track(units, "verifying", disable=not sys.stderr.isatty())
    wrong = [line for unit in seen for line in check.problems(home, unit)]
    for line in wrong:
        typer.echo(line, err=True)
    shards = sum(len(unit.shards) for unit in units)
    typer.echo(f"{len(units)} units, {shards} shards: {f'{len(wrong)} problems' if wrong else 'all as recorded'}")
    raise typer.Exit(1 if wrong else 0)


@app.command()
def locate(
    recipe: RecipeName,
    item: Annotated[str, typer.Argument(help="What `source_item` or `rejects.item` says.")],
    home: Home,
    set: Changes = [],  # noqa: B006
) -> None:
    """Find the file behind an item of RECIPE, also of a private source, where rows hold a pseudonym of its name."""
    from flows.plan import locate as find

    for line in find(recipe, item, home, set):
        typer.echo(line)


@app.command()
def plugins(format: Annotated[str, typer.Option(help="table, json or csv.")] = "table") -> None:
    """List plug-ins of every kind, and why one cannot run here."""
    from infra.plugins import listed

    rows = [{"kind": p.kind, "name": p.name, "runs here": p.reason or "yes", "what": p.summary} for p in listed()]
    show(rows, format)


@knowledge_app.command("build")
def knowledge_build(recipe: RecipeName, home: Home, set: Changes = []) -> None:  # noqa: B006
    """Build the knowledge bases that RECIPE declares; passages embedded before are not embedded again."""
    from flows.knowledge import build_all

    for line in build_all(recipe, home, set):
        typer.echo(line)


@knowledge_app.command("search")
def knowledge_search(
    text: Annotated[str, typer.Argument(help="What to look for.")],
    home: Home,
    base: Annotated[str | None, typer.Option(help="Knowledge base; needed when the dataset has several.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many passages.")] = 5,
    format: Annotated[str, typer.Option(help="table, json or csv.")] = "table",
) -> None:
    """Search a knowledge base."""
    from flows.knowledge import search

    show(search(home, base, text, k), format)


@app.command()
def serve(
    recipe: RecipeName,
    home: Home,
    cron: Annotated[str, typer.Option(help="When to build, as a cron line in UTC.")] = "0 3 * * *",
    runner: RunnerName = "ray",
    set: Changes = [],  # noqa: B006
    port: Annotated[int, typer.Option(help="Port of the Prefect UI and API on 127.0.0.1.")] = 4200,
) -> None:
    """Start a local Prefect server with RECIPE's build as a scheduled deployment; Ctrl-C stops both."""
    from flows.serve import serve as run

    run(recipe, home, cron, runner, set, port)


app.command("deid")(deid)
for command in (deploy, worker, reports, doctor, sbom):
    app.command()(command)
app.command("server")(run_server)
app.command("simulate")(simulate_command)


@app.command()
def demo(
    home: Home,
    data: Annotated[Path | None, typer.Option(help="Folder of sample data to build from as well.")] = None,
    runner: RunnerName = "ray",
) -> None:
    """Build the demo dataset from scans that ship inside installed packages, and show what came out."""
    from flows.demo import run_demo

    run_demo(home, data, runner)


def main() -> None:
    """Entry point: errors of ours are one message and exit code 2, never a traceback."""
    be_quiet()
    try:
        logs.set_up()
        with redact.leaving():
            app()
    except MedloomError as error:
        typer.echo(f"medloom: {error}", err=True)
        sys.exit(2)
