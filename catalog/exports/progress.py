"""How far an export came: what lets one that was killed go on after its last whole file.

The invariant: files that the record names are whole, and hold what the first `counts.seen` rows became; all else in the
folder is not trusted. An exporter that `RESUMES` begins with `begun(out)` and writes each file within `counted`. Rows
come in one order, so those seen are skipped, unread.

>>> files, counts = begun(out)
>>> with counted(out, "00000.tar", files, counts) as draft:
...     draft.write_bytes(tar)
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from catalog.exports import Counts
from infra.storage import write_bytes

FILE = ".progress.jsonl"


def begun(out: Path) -> tuple[dict[str, int], Counts]:
    """Name -> samples of the files that are whole, in order, and the counts of the rows they came from."""
    files: dict[str, int] = {}
    counts = Counts()
    for said in told(out):
        files[said["file"]] = said["samples"]
        counts = counts_of(said["counts"])
    return files, counts


@contextmanager
def counted(out: Path, name: str, files: dict[str, int], counts: Counts) -> Iterator[Path]:
    """A path to write a file of samples to; when the block ends well the file gets its name and is on record."""
    draft, before = out / f"{name}.unfinished", counts.written
    draft.parent.mkdir(parents=True, exist_ok=True)
    yield draft
    os.replace(draft, out / name)
    files[name] = counts.written - before
    tell(out, {"file": name, "samples": files[name], "counts": vars(counts)})


def before(out: Path) -> Counts:
    """The counts of the rows that need not be read again."""
    counts = Counts()
    for said in told(out):
        counts = counts_of(said["counts"])
    return counts


def told(out: Path) -> Iterator[dict[str, Any]]:
    """What was told, line by line; a last line that was cut short does not count, and goes."""
    path = out / FILE
    whole = path.read_bytes() if path.exists() else b""
    kept = whole[: whole.rfind(b"\n") + 1]
    if kept != whole:
        write_bytes(path, kept)
    yield from map(json.loads, kept.splitlines())


def tell(out: Path, said: Mapping[str, Any]) -> None:
    """Add a line to the record: a short one, however many there are."""
    with open(out / FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(said) + "\n")
        file.flush()
        os.fsync(file.fileno())


def counts_of(said: Mapping[str, Any]) -> Counts:
    """Counts as they were told."""
    counts: dict[str, Any] = {name: n if name == "written" else Counter(n) for name, n in said.items()}
    return Counts(**counts)
