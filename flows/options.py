"""Options that many commands share, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.mirror import home_of
from infra.settings import default_home

Home = Annotated[
    Path,
    typer.Option(
        "--home", help="Folder of the dataset, or s3://BUCKET/PREFIX.", parser=home_of, metavar="HOME",
        default_factory=default_home,
    ),
]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a bundled recipe.")]
Changes = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, such as stages.caption.captioner=llm."),
]
RunnerName = Annotated[str, typer.Option("--runner", help="inline, ray, auto or ray://HOST:PORT.")]
