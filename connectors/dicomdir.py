"""DICOMDIR: the files that a DICOM medium says it holds.

The invariant: a record leads to a file below the folder of its DICOMDIR, or nowhere. Parts of paths are matched as
names of entries there, in any case, and never joined unseen (CVE-2026-32711).

>>> for record in records(Path("/media/cd/DICOMDIR")):
...     print(record.name, record.path)
IMAGES/IM0001 /media/cd/images/im0001
IMAGES/IM0002 None
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from connectors.dicomfiles import UNREADABLE
from infra.errors import Terminal

MAX_BYTES = 64 << 20
"""A table of contents that is larger is not read: it would list a million files."""


@dataclass(frozen=True)
class Record:
    """A file that a DICOMDIR names."""

    name: str
    """path below its folder, as it is written there"""
    path: Path | None
    """the file; None: it is missing, or the name is unsafe"""
    unsafe: bool = False
    """the name would lead elsewhere"""


def records(path: Path) -> Iterator[Record]:
    """The files that a DICOMDIR names, each once. Raises Terminal DICOMDIR_UNREADABLE, OSError."""
    seen: dict[str, Record] = {}
    for parts in _file_ids(path):
        unsafe = any(part in ("", ".", "..") or any(c in part for c in "/\\:\0") for part in parts)
        found = None if unsafe else _entry(path.parent, parts)
        outside = found is not None and not found.resolve().is_relative_to(path.parent.resolve())
        name = "/".join(parts)
        seen.setdefault(name, Record(name, None if outside else found, unsafe or outside))
    yield from seen.values()


def _file_ids(path: Path) -> list[tuple[str, ...]]:
    from pydicom import dcmread

    log = logging.getLogger("pydicom")
    before, log.disabled = log.disabled, True  # pydicom's warnings quote the header
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            entries = dcmread(path, force=True).get("DirectoryRecordSequence") or ()
            stated = [entry.get("ReferencedFileID") for entry in entries]
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        what = type(error).__name__
        raise Terminal("DICOMDIR_UNREADABLE", f"the table of contents is damaged ({what}); delete it") from None
    finally:
        log.disabled = before
    return [(one,) if isinstance(one, str) else tuple(map(str, one)) for one in stated if one]


def _entry(folder: Path, parts: tuple[str, ...]) -> Path | None:
    """The file below a folder whose path has these parts, in any case."""
    for part in parts:
        exact = folder / part
        if not exact.exists():
            alike = [] if not folder.is_dir() else sorted(p for p in folder.iterdir() if p.name.upper() == part.upper())
            if not alike:
                return None
            exact = alike[0]
        folder = exact
    return folder if folder.is_file() else None
