"""Which identifier became which: the one thing that undoes de-identification, so it is written only when asked for.

The invariant: the files lie outside what is handed out, in a folder that only its owner may enter (0700), readable by
nobody else (0600).

>>> write_mappings(Path("/private/study"), out, uids, patients)   # uid_mapping.csv, patient_mapping.csv: id_old,id_new

How to score a tool with MIDI-B (data: 10.7937/cf2p-aw56; script: github.com/CBIIT/MIDI_validation_script, which wants
Python 3.8 and an environment of its own):
1. fetch the collection "MIDI-B-Synthetic-Validation" or "-Test" and its answer key (a SQLite file);
2. `medloom deid MIDI_SRC --out MIDI_OUT --mapping /private/midi --option modified_dates --option retain_patient
   --option retain_device --option clean_descriptors` (its answers follow the curation of TCIA, which keeps those);
3. in the script's config.json set input_data_path to MIDI_OUT, uid_mapping_file and patid_mapping_file to the two files
   written here, and the answer key; then `python run_validation.py config.json`, and `run_reports.py` for the table.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

from infra.errors import ConfigError
from infra.storage import write_atomic

NAMES = ("uid_mapping.csv", "patient_mapping.csv")


def check_folder(folder: Path, out: Path) -> None:
    """Raise ConfigError where the folder lies inside what is handed out, or holds it."""
    private, given = folder.resolve(), out.resolve()
    if private.is_relative_to(given) or given.is_relative_to(private):
        raise ConfigError(f"{folder} and {out} lie within each other; keep the mapping where the output never goes")


def write_mappings(folder: Path, out: Path, uids: Mapping[str, str], patients: Mapping[str, str]) -> None:
    """Write both files; pairs that are there already stay."""
    check_folder(folder, out)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(folder, 0o700)
    for name, pairs in zip(NAMES, (uids, patients), strict=True):
        write_atomic(folder / name, lambda draft, n=name, p=pairs: _write(draft, {**read(folder / n), **p}))  # type: ignore[misc]


def read(path: Path) -> dict[str, str]:
    """The pairs of a mapping file; {} where there is none."""
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {row["id_old"]: row["id_new"] for row in csv.DictReader(file)}


def _write(path: Path, pairs: Mapping[str, str]) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id_old", "id_new"])
    rows.writerows(sorted(pairs.items()))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text.getvalue())
