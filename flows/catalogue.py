"""`medloom catalog`: what changed between snapshots, where a row comes from, and care of the files."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from typing import Annotated

import typer

from flows.options import Home
from flows.show import show

app = typer.Typer(no_args_is_help=True, help="Snapshots of a dataset: changes, lineage, and care of the files.")

Format = Annotated[str, typer.Option(help="table, json or csv.")]


@app.command()
def rebuild(
    home: Home,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is there and what would become of it.")] = (
        False
    ),
) -> None:
    """Make the index again from builds, manifests and shards alone: after damage, or after an upgrade."""
    if dry_run:
        from catalog.upgrade import outlook

        for line in outlook(home):
            typer.echo(line)
        return
    from catalog.catalog import rebuild as run

    run(home)
    typer.echo(f"the catalog of {home} made again")


@app.command()
def diff(
    home: Home,
    before: Annotated[int | None, typer.Option("--from", help="Snapshot; default: the one before --to.")] = None,
    after: Annotated[int | None, typer.Option("--to", help="Snapshot; default: the newest.")] = None,
    format: Format = "table",
) -> None:
    """What was added, removed and changed between two snapshots, by layer and source, and why."""
    from catalog.diff import both, changes

    first, second = both(home, before, after)
    show([asdict(change) for change in changes(home, first, second)], format)


@app.command()
def lineage(
    id: Annotated[str, typer.Argument(help="Id of a text, region, label, passage, measure or sample.")],
    home: Home,
    at: Annotated[int | None, typer.Option(help="Snapshot; default: the newest.")] = None,
    format: Format = "table",
) -> None:
    """From a row back to the evidence it rests on, the units that made it, and the bytes of its source."""
    from catalog.lineage import lineage as run

    steps = [asdict(step) for step in run(home, id, at)]
    if format == "table":
        steps = [{**step, "what": "  " * step.pop("depth") + step["what"]} for step in steps]
    show(steps, format)


@app.command()
def gc(
    home: Home,
    keep: Annotated[int | None, typer.Option(help="Keep so many of the newest snapshots; default: all.")] = None,
    grace: Annotated[float, typer.Option(help="Hours for which files are left alone.")] = 24,
    copies: Annotated[
        float | None,
        typer.Option(metavar="DAYS", help="Of a home in a bucket: also drop copies of shards unused here for so long."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, only say what would go.")] = False,
) -> None:
    """Give back the room of snapshots that are not kept and of what killed workers left; never what one names.

    With the last snapshot that holds a sample goes what reviewers decided about it.
    """
    from catalog.gc import collect, collectable, drop_copies

    dropped = []
    if copies is not None:
        files, size = drop_copies(home, datetime.timedelta(days=copies).total_seconds(), dry_run=not yes)
        dropped.append(f"{files} copies on this machine, {size / 1e6:.1f} MB, which the bucket keeps")
    garbage = (collect if yes else collectable)(home, keep, datetime.timedelta(hours=grace).total_seconds())
    what = [
        f"{len(garbage.builds)} builds, {len(garbage.manifests)} manifests, {len(garbage.shards)} shards, "
        f"{len(garbage.reports)} files of reports, {garbage.bytes / 1e6:.1f} MB"
    ]
    if garbage.decisions:
        numbers = ", ".join(map(str, garbage.decisions))
        what.append(f"{len(garbage.decisions)} decisions about samples that no snapshot holds any more ({numbers})")
    if garbage.uploads:
        what.append(f"{len(garbage.uploads)} uploads that never ended")
    for line in what + dropped:
        typer.echo(f"removed {line}" if yes else f"would remove {line}; --yes does it")
