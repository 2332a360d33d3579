"""`medloom serve`: a local Prefect server, the build as a scheduled deployment, a worker that runs it, and the reports.

All that `medloom server`, `medloom deploy` and `medloom worker` do apart, on one machine and with one command. The
invariant: when it ends, however it ends, the server and the worker end with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flows.deploy import POOL, Wanted, checked, make_deployment, worker_environment, worker_words
from flows.server import child, recorded, server
from infra.errors import MedloomError


def serve(recipe: str, home: Path, cron: str, runner: str, changes: Sequence[str], port: int) -> None:
    """Run the server, and the builds of the deployment, until Ctrl-C; reports are served on the port after `port`.

    Raises ConfigError when the recipe or the cron line is wrong, or a port is taken.
    """
    from flows.reports import serve_reports

    home = home.resolve()
    folder = home / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"PREFECT_HOME": str(folder), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    wanted = Wanted(recipe, home, cron, runner, changes)
    checked(wanted)  # before a server is started for nothing
    with serve_reports(home, port + 1) as reports, server(home, port) as api:
        made = make_deployment(wanted)
        log = folder / "worker.log"
        with child(worker_words(POOL), log, worker_environment(os.environ)) as worker, recorded(home, api, reports):
            print(f"Prefect UI  {api.removesuffix('/api')}\nreports     {reports}\n{made}", flush=True)
            try:
                ended = worker.wait()
            except KeyboardInterrupt:
                return
    raise MedloomError(f"the worker ended with code {ended}; see {log}")
