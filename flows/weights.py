"""`medloom weights`: what weights experts may use, which of them are here, and how they get here.

The invariant: only `fetch` writes, and only when it is asked for.

    medloom weights list
    medloom weights fetch lwnet-vessels
    medloom weights fetch all --from /media/usb      where there is no network
    medloom weights check
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.show import show
from infra import weights
from infra.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Weights of expert models; nothing is fetched by itself.")


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="Name of the weights, or all.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="Copy them from this folder, matched by hash, instead of the network.")
    ] = None,
) -> None:
    """Fetch the weights NAME over https, or take them from a folder."""
    for each in weights.table() if name == "all" else [name]:
        written = weights.fetch(each, source)
        typer.echo(f"{each}: {len(written)} files written to {weights.named(each).folder}" if written else
                   f"{each}: all files are here")


@app.command("list")
def list_(format: Annotated[str, typer.Option(help="table, json or csv.")] = "table") -> None:
    """All weights that experts may use, with licences, and whether they are here."""
    show(
        [
            {
                "name": name, "here": weights.missing(name) is None, "kB": round(entry.bytes / 1000),
                "licence": entry.licence, "commercial": entry.commercial, "what": entry.what,
            }
            for name, entry in weights.table().items()
        ],
        format,
    )


@app.command("check")
def check() -> None:
    """Hash all weights that are here again. Fails when a file is another than the table names."""
    wrong = 0
    for name, entry in weights.table().items():
        problems = weights.check(name) if entry.folder.exists() else []
        wrong += bool(problems)
        state = "; ".join(problems) or "whole" if entry.folder.exists() else "not here"
        typer.echo(f"{name}: {state}")
    if wrong:
        raise ConfigError(f"{wrong} of the weights are not whole; `medloom weights fetch NAME` gets them again")
