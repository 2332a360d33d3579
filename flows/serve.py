"""`medloom serve`: a local Prefect server with the build as a scheduled deployment, and the reports beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flows.server import portable, recorded, server
from infra.errors import ConfigError


def serve(recipe: str, home: Path, cron: str, runner: str, changes: Sequence[str], port: int) -> None:
    """Run the server and serve the deployment until Ctrl-C; reports are served on the port after `port`.

    Raises ConfigError when the recipe or the cron line is wrong, or a port is taken.
    """
    from flows.recipe import find_recipe, load_recipe
    from flows.reports import serve_reports

    loaded = load_recipe(find_recipe(recipe), changes)  # a wrong recipe must fail here, not at three in the morning
    home = home.resolve()
    (home / "prefect").mkdir(parents=True, exist_ok=True)
    os.environ |= {"PREFECT_HOME": str(home / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    from flows.flow import build

    try:
        schedule = Cron(cron, timezone="UTC")
    except ValueError as error:
        raise ConfigError(f"--cron {cron!r} is no cron line; five fields such as '0 3 * * *' are") from error
    with serve_reports(home, port + 1) as reports, server(home, port) as api, recorded(home, api, reports):
        print(f"Prefect UI  {api.removesuffix('/api')}\nreports     {reports}\n"
              f"deployment  build/{loaded.name}, scheduled at {cron} (UTC)", flush=True)
        build.serve(
            name=loaded.name, schedule=schedule, limit=1, print_starting_message=False, pause_on_shutdown=False,
            entrypoint_type=EntrypointType.MODULE_PATH, tags=["medloom"],
            parameters={"recipe": portable(recipe), "home": str(home), "runner": runner, "changes": list(changes)},
        )
