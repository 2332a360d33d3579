"""Get the pixels of the rows in pointers.jsonl, which lies beside this file. Needs Python 3.9 and nothing else.

    python fetch.py --from FOLDER       copies from your own copy of a source; repeat it for several
    python fetch.py --download          also fetches what has an http(s) address

A file is taken only if its SHA-256 is the one on record; it is then at pixels/NAME. Slices of a volume and panels cut
from a figure are not files of their source: they are listed in unresolved.jsonl with their geometry (volume, slice,
view, window; parent and box), and come out of `medloom build` of the recipe in your hands.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import pathlib
import sys
import urllib.request

SECONDS = 60
MOST = 1 << 30


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when every row was resolved, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="folders", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--download", action="store_true")
    asked = parser.parse_args(arguments)
    here = pathlib.Path(__file__).resolve().parent
    (here / "pixels").mkdir(exist_ok=True)
    counts: collections.Counter[str] = collections.Counter()
    with open(here / "pointers.jsonl", encoding="utf-8") as pointers, \
            open(here / "unresolved.jsonl", "w", encoding="utf-8") as unresolved:
        for line in pointers:
            row = json.loads(line)
            reason = _resolved(row, here / "pixels", [pathlib.Path(f).resolve() for f in asked.folders], asked.download)
            counts[reason or "fetched"] += 1
            if reason:
                unresolved.write(json.dumps({**row, "reason": reason}, ensure_ascii=False) + "\n")
    for reason, n in sorted(counts.items()):
        print(f"{n}: {reason}")
    return 0 if set(counts) <= {"fetched"} else 1


def _resolved(row: dict, pixels: pathlib.Path, folders: list[pathlib.Path], download: bool) -> str | None:  # type: ignore[type-arg]
    """Put the row's file in place; why that cannot be, or None."""
    if row["volume_id"]:
        return "a slice of a volume: build it with the recipe"
    if row["parent_id"]:
        return "a panel of a figure: build it with the recipe"
    for folder in folders:
        path = (folder / row["source_item"]).resolve()
        if folder in path.parents and path.is_file() and _kept(path.read_bytes(), row, pixels):
            return None
    address = row["source_uri"] or ""
    if download and address.startswith(("https://", "http://")):
        try:
            with urllib.request.urlopen(address, timeout=SECONDS) as answer:
                data = answer.read(MOST)
        except OSError as error:
            return f"{type(error).__name__} from the address"
        return None if _kept(data, row, pixels) else "what the address gives is not the file on record"
    return "no file of this name and SHA-256 in the folders given"


def _kept(data: bytes, row: dict, pixels: pathlib.Path) -> bool:  # type: ignore[type-arg]
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        return False
    kinds = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"), (b"RIFF", "webp"))
    suffix = next(suffix for magic, suffix in kinds if data.startswith(magic))
    (pixels / f"{row['name']}.{suffix}").write_bytes(data)
    return True


if __name__ == "__main__":
    sys.exit(main())
