"""What shares a home in test_together.py, each until it is killed: build, read or collect.

    python tests/faults/together.py build HOME RECIPE CHANGE
    python tests/faults/together.py read HOME
    python tests/faults/together.py collect HOME
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path

from catalog.catalog import published, query
from catalog.gc import building, collect
from flows.build import Progress, commit, prepare, run_chains, up_to_date
from flows.recipe import load_recipe
from infra.errors import ConfigError
from infra.lease import LeaseHeld, held, store_of
from infra.runner import open_runner


def build(home: Path, recipe: str, change: str) -> None:
    """As the flow does, without Prefect: plan, run, commit, under the lock that builds share."""
    loaded = load_recipe(Path(recipe), [change])
    with suppress(LeaseHeld), building(home), held(store_of(home), loaded.name, change) as lease:
        plan = prepare(loaded, home, False)
        if up_to_date(plan, home):
            return
        progress = Progress(plan.todo)
        with open_runner("inline") as runner:
            run_chains(plan.chains, loaded, home, runner, progress, lambda _: lease.check())
        commit(plan, progress, loaded, home, lease.fence)


def read(home: Path) -> None:
    """A snapshot's rows are all there, in the catalog and on disk."""
    if not published(home):
        return  # its first build is not committed yet
    (row,) = query(home, "SELECT count(*) AS images, count(DISTINCT shard) AS shards, any_value(shard) AS shard "
                   "FROM images").to_pylist()
    texts = query(home, "SELECT count(DISTINCT sample_id) AS n FROM texts").to_pylist()[0]["n"]
    assert row["images"] == 30 and texts == 30, (row, texts)
    print("read", flush=True)


def collect_once(home: Path) -> None:
    try:
        gone = collect(home, keep=1, grace_s=0)
    except ConfigError:
        return  # a build runs
    print("collected", len(gone.shards), flush=True)


if __name__ == "__main__":
    what, place, *rest = sys.argv[1:]
    work = {"build": build, "read": read, "collect": collect_once}[what]
    while True:
        work(Path(place), *rest)
        time.sleep(0.05)
