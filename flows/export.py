"""An export: a selection written by an exporter, with the record that lets anyone repeat and check it.

    OUT/…              what the exporter wrote
    OUT/manifest.json  snapshot, condition, hash of the list of samples, counts, licences
    OUT/CHECKSUMS      SHA-256 of every file, as sha256sum reads them
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from catalog.selection import Row, Selection
from flows.recipe import checked
from infra.errors import ConfigError
from infra.plugins import load
from infra.storage import walk


def run_export(home: Path, where: str, format: str, out: Path, at: int | None, options: Sequence[str]) -> str:
    """Write the selection to `out`, whole or not at all; returns a line about it."""
    exporter = load("exporter", format)
    given = {key: yaml.safe_load(value) for key, _, value in (option.partition("=") for option in options)}
    params = checked(exporter.Params, given, f"exporter {format!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; name another --out, an export never mixes with what is there")
    selection = Selection(home, where, at)
    if len(selection) == 0:
        raise ConfigError(f"no sample meets {where!r} in snapshot {selection.snapshot}; nothing was written")
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        counts = exporter.write(_counted(selection), draft, params)
        record = {
            "exporter": format, "parameters": params.model_dump(mode="json"), "snapshot": selection.snapshot,
            "where": where, "samples_sha256": selection.key, "picked": len(selection), "written": counts.written,
            "without_caption": counts.without_caption, "licences": dict(sorted(counts.licences.items())),
        }
        (draft / "manifest.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        (draft / "CHECKSUMS").write_text("".join(_checksums(draft)))
        if out.exists():
            out.rmdir()
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    left = f", {counts.without_caption} left out without a caption" if counts.without_caption else ""
    unknown = counts.licences["unknown"]
    note = f"; {unknown} of them under an unknown licence: do not share those" if unknown else ""
    return f"{counts.written} of {len(selection)} samples of snapshot {selection.snapshot} in {out}{left}{note}"


def _counted(selection: Selection) -> Iterator[Row]:
    from rich.progress import track

    yield from track(selection.rows(), "exporting", total=len(selection), disable=not sys.stderr.isatty())


def _checksums(folder: Path) -> Iterator[str]:
    for path in walk(folder):
        with open(path, "rb") as file:
            yield f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder)}\n"
