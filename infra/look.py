"""What folders look like, as one hash: whether anything in them may have changed since somebody looked last.

The invariant: as long as two looks are equal, every file below the roots has the name, size, times of change and inode
that it had, as `walk` of infra/storage.py finds files: hidden ones left out, links to folders not followed. A look at
files of which one changed less than two seconds before is not `settled`: it may change again without its time moving
(git calls such an entry racy), so nothing is to be remembered by it. No name is kept, only the hash.

>>> before = look([root])
>>> look([root]).hash == before.hash
True
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path

RACY_SECONDS = 2.0
_STAMP = attrgetter("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_mode")
_SKIPPED = (".", "__MACOSX")
_MASK = 0x7FFF_FFFF_FFFF_FFFF


@dataclass(frozen=True)
class Look:
    """What was seen."""

    hash: str
    files: int
    settled: bool
    """whether the newest change is old enough to be sure that a further one would show"""


def look(roots: Sequence[Path]) -> Look:
    """Look at files, and at all files below folders. A root that is not there is part of what is seen.

    Costs about 10 µs a file that the page cache knows, of them 5 in the system's own `stat`.
    """
    began, digest = time.time(), hashlib.blake2b(digest_size=16)
    files, newest = 0, 0
    for number, root in enumerate(roots):
        digest.update(b"root %d" % number)
        for folder, names, stamps in _folders(root):
            digest.update("\0".join((f"\n{folder}", *names)).encode(errors="surrogateescape"))
            digest.update(array("q", chain.from_iterable(stamps)).tobytes())
            files += len(names)
            newest = max(newest, *(max(stamp[1], stamp[2]) for stamp in stamps))
    return Look(digest.hexdigest(), files, began - newest / 1e9 >= RACY_SECONDS)


def _folders(root: Path) -> Iterator[tuple[str, list[str], list[tuple[int, ...]]]]:
    """(path below the root, names of its files, their stamps) of every folder that holds any, in a fixed order."""
    if root.is_file():
        yield "", [""], [_stamp(root.stat())]
        return
    waiting = [""]
    while waiting:
        below = waiting.pop()
        names, stamps, folders = [], [], []
        try:
            entries = sorted(os.scandir(root / below), key=attrgetter("name"))
        except OSError as error:  # it went, or may not be read: os.walk passes over it too, but the look is another one
            yield below, [type(error).__name__], [(error.errno or 0, 0, 0, 0, 0)]
            continue
        for entry in entries:
            name = entry.name
            if entry.is_dir():
                if not name.startswith(_SKIPPED) and not entry.is_symlink():
                    folders.append(f"{below}/{name}" if below else name)
            elif name[0] != ".":
                try:
                    found = entry.stat()
                except OSError:  # a link that leads nowhere
                    continue
                if stat.S_ISREG(found.st_mode):
                    names.append(name)
                    stamps.append(_stamp(found))
        waiting.extend(reversed(folders))
        if names:
            yield below, names, stamps


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    size, changed, status, inode, mode = _STAMP(found)
    return size, changed, status, inode & _MASK, mode  # inodes of some network file systems use all 64 bits
