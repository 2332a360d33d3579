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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from catalog.exports import Counts
from infra.storage import write_bytes

FILE = ".progress.json"


def begun(out: Path) -> tuple[dict[str, int], Counts]:
    """Name -> samples of the files that are whole, in order, and the counts of the rows they came from."""
    if not (out / FILE).exists():
        return {}, Counts()
    said = json.loads((out / FILE).read_bytes())
    counts: dict[str, Any] = {name: n if name == "written" else Counter(n) for name, n in said["counts"].items()}
    return said["files"], Counts(**counts)


@contextmanager
def counted(out: Path, name: str, files: dict[str, int], counts: Counts) -> Iterator[Path]:
    """A path to write a file of samples to; when the block ends well the file gets its name and is on record."""
    draft, before = out / f"{name}.unfinished", counts.written
    draft.parent.mkdir(parents=True, exist_ok=True)
    yield draft
    os.replace(draft, out / name)
    files[name] = counts.written - before
    write_bytes(out / FILE, json.dumps({"files": files, "counts": vars(counts)}).encode())
