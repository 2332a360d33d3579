"""An export: a selection written by an exporter, with the record that lets anyone repeat and check it.

    OUT/…              what the exporter wrote
    OUT/manifest.json  snapshot, condition, hash of the list of samples, counts, licences
    OUT/CHECKSUMS      SHA-256 of every file, as sha256sum reads them

OUT is whole or absent: all is written to a folder beside it, which takes its name in the end. The same selection and
parameters give the same bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from catalog.exports import Counts
from catalog.selection import Row, Selection
from flows.recipe import checked
from infra.errors import ConfigError
from infra.plugins import load
from infra.storage import walk


def run_export(home: Path, where: str, format: str, out: Path, at: int | None, options: Sequence[str]) -> str:
    """Write the selection to `out`, whole or not at all; returns a line about it.

    Raises ConfigError when an option or the condition is wrong, nothing is picked, or `out` is not empty.
    """
    exporter = load("exporter", format)
    params = checked(exporter.Params, dict(map(_option, options)), f"exporter {format!r}")
    selection = Selection(home, where, at)
    if len(selection) == 0:
        raise ConfigError(f"no sample meets {where!r} in snapshot {selection.snapshot}; nothing was written")
    out = out.resolve()
    with _draft_of(out) as draft:
        counts: Counts = exporter.write(_shown(selection), draft, params)
        if counts.written + counts.without_caption != len(selection):
            raise RuntimeError(
                f"the exporter {format!r} was given {len(selection)} samples and accounts for {counts.written} written "
                f"and {counts.without_caption} left out; nothing stands at {out}: this is a bug of the exporter"
            )
        if counts.written == 0:
            raise ConfigError(f"{format!r} needs captions, none of {len(selection)} samples has one; nothing written")
        record = {
            "exporter": format, "parameters": params.model_dump(mode="json"), "snapshot": selection.snapshot,
            "where": where, "samples_sha256": selection.sha256, "picked": len(selection), "written": counts.written,
            "without_caption": counts.without_caption, "licences": dict(sorted(counts.licences.items())),
        }
        (draft / "manifest.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (draft / "CHECKSUMS").write_text("".join(_checksums(draft)), encoding="utf-8")
        draft.rename(out)
    left = f", {counts.without_caption} left out without a caption" if counts.without_caption else ""
    unknown = counts.licences["unknown"]
    note = f"; {unknown} of them under an unknown licence: do not share those" if unknown else ""
    return f"{counts.written} of {len(selection)} samples of snapshot {selection.snapshot} in {out}{left}{note}"


def _option(option: str) -> tuple[str, Any]:
    name, separator, value = option.partition("=")
    if not separator:
        raise ConfigError(f"--option {option}: write key=value, such as shard_mb=500")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--option {option}: the value is not YAML: {error}") from None


@contextmanager
def _draft_of(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, gone afterwards unless it was renamed; what a killed export left goes first."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; name another --out, an export never mixes with what is there")
    draft = out.with_name(f".{out.name}.unfinished")
    draft.mkdir(parents=True, exist_ok=True)
    lock = os.open(draft, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with its process, however that ends
        except BlockingIOError:
            raise ConfigError(f"another export is writing {out}; wait for it, or name another --out") from None
        try:
            for left in draft.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    finally:
        os.close(lock)


def _shown(selection: Selection) -> Iterator[Row]:
    from rich.progress import track

    yield from track(selection.rows(), "exporting", total=len(selection), disable=not sys.stderr.isatty())


def _checksums(folder: Path) -> Iterator[str]:
    for path in walk(folder):
        with open(path, "rb") as file:
            yield f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder)}\n"
