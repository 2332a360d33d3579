"""How much one flow run of many partitions adds to the Prefect database: MB, and which tables grow.

    python tests/benchmarks/prefect_size.py [--partitions 20000] [--updates 1000]

A real server and the real flow over a plan of so many partitions of three units each, whose work is to return at once;
the artifacts at the end are those of a small real dataset. Such a run is over in a minute, one in earnest takes hours
and moves its progress bar once a second: what `--updates` further moves add is measured after it, and told an hour.
The database is looked at when the server has stopped, so nothing is left in its journal.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parents[1]))
from makehome import make_home

from catalog.builds import read_build
from catalog.items import Partition
from flows.server import server
from infra.settings import be_quiet

GOAL_MB = 100.0
UNITS = 3
RECIPE = "name: small\nsources: [{{name: s, use: images, root: {root}, layout: imagefolder}}]\n"


def size(home: Path) -> float:
    """MB of the database, the journal folded in."""
    with closing(sqlite3.connect(home / "prefect" / "prefect.db")) as con:
        con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return (home / "prefect" / "prefect.db").stat().st_size / 1e6


def rows(home: Path) -> dict[str, int]:
    """table -> its rows, of tables that have some."""
    with closing(sqlite3.connect(home / "prefect" / "prefect.db")) as con:
        tables = [name for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        counts = {name: con.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables}
    return {name: count for name, count in counts.items() if count}


def flow_run(home: Path, folder: Path, partitions: int, updates: int) -> None:
    """The flow over so many partitions of no work, against the server that PREFECT_API_URL names."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactUpdate

    from flows import build as work
    from flows import flow
    from flows.plan import Chain, Plan, ingest_of
    from flows.recipe import load_recipe
    from transforms.unit import IngestUnit

    (folder / "source").mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=folder / "source"))
    ingest = ingest_of(load_recipe(recipe, ()).sources[0])

    def chain(number: int) -> Chain:
        partition = Partition("s", f"b{number:015b}", (), ())
        units = tuple(IngestUnit(ingest, partition, f"{number * UNITS + n:024x}") for n in range(UNITS))
        return Chain(partition, (), units, units)

    bars: list[UUID] = []
    shown = flow._show

    def show(client: Any, key: str, *words: Any) -> UUID:
        bars.append(shown(client, key, *words))
        return bars[-1]

    changes: Mapping[str, Any] = {
        "prepare": lambda *_: Plan(tuple(map(chain, range(partitions)))), "commit": lambda *_: read_build(home, 1),
        "_do": lambda payload, state: payload[0].key, "up_to_date": lambda *_: None,
    }
    for name, fake in changes.items():
        setattr(work, name, fake)
    flow._show = show  # type: ignore[assignment]
    flow.build(str(recipe), str(home), "inline")
    with get_client(sync_client=True) as client:
        for n in range(updates):
            client.update_artifact(bars[0], ArtifactUpdate(data=n % 100, description=f"{n} of {updates} units"))


def measure(partitions: int, updates: int) -> dict[str, Any]:
    """MB before and after, MB of the progress bar an hour, and the tables' rows."""
    with tempfile.TemporaryDirectory(prefix="medloom-prefect-") as scratch:
        folder = Path(scratch)
        home = make_home(folder)
        be_quiet()
        os.environ["PREFECT_HOME"] = str(home / "prefect")
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "WARNING"
        sizes = []
        for step in (None, (partitions, 0), (1, 0), (1, updates)):
            with server(home, ui=False) as api:
                os.environ["PREFECT_API_URL"] = api
                began = time.perf_counter()
                if step:
                    _in_child(home, folder / str(len(sizes)), *step)
                seconds = time.perf_counter() - began
                time.sleep(5)  # the server writes events in batches
            sizes.append((size(home), seconds))
        before, after, one, with_updates = (mb for mb, _ in sizes)
        moves = (with_updates - after) - 2 * (one - after)  # beside what two short runs add
        return {
            "before_mb": round(before, 2), "after_mb": round(after, 2), "flow_s": round(sizes[1][1], 1),
            "hour_of_progress_mb": round(max(moves, 0) * 3600 / max(updates, 1), 2), "rows": rows(home),
        }


def _in_child(home: Path, folder: Path, partitions: int, updates: int) -> None:
    """In a process of its own, whose end sends the last events."""
    from multiprocessing import get_context

    folder.mkdir()
    child = get_context("spawn").Process(target=flow_run, args=(home, folder, partitions, updates))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"the flow run ended with {child.exitcode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--partitions", type=int, default=20_000)
    parser.add_argument("--updates", type=int, default=1_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.partitions, args.updates)
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:16s} {value}")
    print(f"goal {GOAL_MB:g} MB{'' if found['after_mb'] < GOAL_MB else '   MISSED'}")


if __name__ == "__main__":
    main()
