"""Memory of listing and reading a bucket of PMC's layout: an inventory of a million rows, of which a few are wanted.

    python tests/benchmarks/pmc_memory.py --rows 1000000 --articles 1000 10000

A small server makes every object of article N from N when it is asked for, so nothing has to be filled. Each number of
articles is listed and read by a process of its own, in a fresh home, then listed once more; the table says how long
that took, and the most memory that the process had held by then.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

HERE = Path(__file__).parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

DATE = "2026-01-18T01-00Z"
PARTS = 8
FIGURES = 4
PICTURES = 32
"""Different pictures; an article has some of them."""
LIST = """<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>"""


# the server, in a process of its own


@cache
def jpeg(number: int) -> bytes:
    from sources import encoded, picture

    return encoded(picture(number, 256, 3), "JPEG")


@lru_cache(1000)
def article(number: int) -> dict[str, bytes]:
    """The objects of an article, by key."""
    import pmcbucket

    class Cheap(pmcbucket.Version):
        @property
        def pictures(self) -> dict[str, bytes]:
            return {f"ex-{number}-g{n}.jpg": jpeg((number + n) % PICTURES) for n in range(1, FIGURES + 1)}

    return pmcbucket.objects(Cheap(number, figures=FIGURES))


def inventory(rows: int) -> dict[str, bytes]:
    from pmcbucket import inventory, md5

    named = ((f"metadata/PMC{n}.1.json", md5(str(n).encode())) for n in range(1, rows + 1))
    return inventory(named, DATE, parts=PARTS)


def serve(rows: int) -> None:
    """Print the port, and serve until killed."""
    reports = inventory(rows)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            key = address.path.lstrip("/").partition("/")[2]
            data = self._listed(parse_qs(address.query)) if "list-type" in address.query else self._object(key)
            self.send_response(200 if data is not None else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def _object(self, key: str) -> bytes | None:
            if key in reports:
                return reports[key]
            number = key.removeprefix("metadata/").removeprefix("PMC").partition(".")[0]
            return article(int(number)).get(key)

        def _listed(self, query: dict[str, list[str]]) -> bytes:
            prefix = query.get("prefix", [""])[0]
            names = sorted(key for key in reports if key.startswith(prefix))
            inner = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in names)
            if "delimiter" in query:
                folders = sorted({prefix + key.removeprefix(prefix).partition("/")[0] + "/" for key in names})
                inner = "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in folders)
            return LIST.format(inner).encode()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


@contextmanager
def served(rows: int) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(rows)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


# the measured process


def measure(endpoint: str, ids: str, home: Path) -> dict[str, float]:
    """List, read everything, list again; what it took. Peaks are of the whole process, in MB."""
    from connectors.pmc import Params, list_partitions, read
    from infra.fileindex import FileIndex

    params = Params(
        root="s3://pmc-oa-opendata", endpoint=endpoint, ids=ids, requests_per_second=100_000, in_flight=8, cache_gb=0.05
    )
    told: dict[str, float] = {"imports_mb": peak()}
    with FileIndex(home / "files.sqlite") as since:
        began = time.monotonic()
        partitions = list_partitions("pmc", params, since)
        first = next(partitions)
        told |= {"listing_s": time.monotonic() - began, "listing_mb": peak()}
        began, outcomes = time.monotonic(), Counter[str]()
        for partition in chain([first], partitions):
            outcomes.update(outcome(item) for item in read(partition, params))
        told |= {"reading_s": time.monotonic() - began, "reading_mb": peak(), **outcomes}
        began = time.monotonic()
        told["partitions"] = sum(1 for _ in list_partitions("pmc", params, since))
        told["again_s"] = time.monotonic() - began
    return told


def outcome(item: Any) -> str:
    return "pictures" if item.error is None else str(item.error.code)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def measured(endpoint: str, rows: int, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder, "ids.txt")
        ids.write_text("".join(f"PMC{1 + n * rows // count}\n" for n in range(count)))
        command = [sys.executable, __file__, "--measure", endpoint, str(ids), folder]
        told: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--articles", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
    elif args.measure:
        endpoint, ids, home = args.measure
        print(json.dumps(measure(endpoint, ids, Path(home))))
    else:
        columns = (
            "imports_mb", "listing_mb", "reading_mb", "listing_s", "reading_s", "again_s", "partitions", "pictures"
        )
        print(f"{'rows':>9} {'articles':>9}", *(f"{name:>10}" for name in columns))
        with served(args.rows) as endpoint:
            for count in args.articles:
                told = measured(endpoint, args.rows, count)
                print(f"{args.rows:>9} {count:>9}", *(f"{told.get(name, 0):>10.0f}" for name in columns), flush=True)


if __name__ == "__main__":
    main()
