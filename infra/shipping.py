"""What travels to the nodes of a cluster, and what must be there already.

Our packages travel with the job, so that a node runs the driver's version of them. What they stand on does not: it is
installed on every node, and a node where it differs is refused, since it decides the bytes of shards. Secrets do not
travel either: what is sent with a job can be read by whoever reads the cluster's records.

>>> versions()["python"]
'3.11'
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

PACKAGES = ("flows", "connectors", "transforms", "catalog", "infra")
"""Ours: they travel with the job, whatever version a node has."""
SAME = ("ray", "pyarrow", "numpy", "pillow")
"""Packages that decide the bytes of a shard: a node with another version than the driver's is refused."""


def ours() -> list[str]:
    """The folders that travel with the job: our packages, and the record of which version they are."""
    root = Path(__file__).parents[1]
    try:
        record = Path(str(distribution("medloom").locate_file("")))
        about = sorted([*record.glob("medloom-*.dist-info"), *record.glob("medloom.egg-info")])[:1]
    except PackageNotFoundError:
        about = []
    return [str(path) for path in (*(root / name for name in PACKAGES), *about)]


def versions() -> dict[str, str]:
    """What of this process decides the bytes of shards; asked of every node."""
    return {"python": "{}.{}".format(*sys.version_info), **{name: version(name) for name in SAME}}
