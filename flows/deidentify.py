"""`medloom deid SRC --out DIR`: a folder of DICOM files written again without who they show.

    OUT/files/<hash>/<hash>.dcm   the tree of SRC under keyed names
    OUT/report/settings.json      profile, options, and a fingerprint of the key
    OUT/report/actions.jsonl      what was done to each file; actions.csv: in all, by tag
    OUT/report/rejects.jsonl      what was not written: keyed name, outcome, code, message

The invariant: a file of OUT is whole and clean, or absent, and is never written over. The same command again (after a
kill, or with more files in SRC) goes through all of SRC, compares what is there and adds what is missing. Names, codes
and messages hold nothing of the header or of a path.

Exit status: 0 when every DICOM file was written; 1 when one was quarantined or failed, so that a script notices;
2 for a wrong command. Files that are no DICOM, DICOMDIRs and documents are left out and listed, and do not count.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.options import Home
from infra.errors import ConfigError, Dropped, ItemError, Terminal
from infra.keys import pseudonym, sha256
from infra.settings import pseudonym_key
from infra.storage import sweep, walk, write_atomic, write_bytes
from transforms.deid.engine import Deidentified, deidentify_file
from transforms.deid.faces import Geometry, Verdict, check_public, face_in, geometry_of, series_of
from transforms.deid.mapping import check_folder, write_mappings
from transforms.deid.picture import as_bytes
from transforms.deid.pixels import Area, Reader, clean_pixels, needs_look
from transforms.deid.profile import OPTIONS, Profile
from transforms.deid.report import Report
from transforms.scans.deidentify import open_dataset, text, value

LEFT_OUT = {
    "1.2.840.10008.1.3.10": ("DICOMDIR", "names files and patients and no picture; make a new one of the output"),
    "1.2.840.10008.5.1.4.1.1.104": ("DOCUMENT", "a whole document cannot be cleaned; leave it out"),
}
"""SOP class, or the beginning of several -> code and message."""


@dataclass(frozen=True)
class Totals:
    """What became of the files of a folder."""

    written: int
    quarantined: int
    """failed or quarantined"""
    left_out: int

    def __str__(self) -> str:
        return f"{self.written} files written, {self.quarantined} quarantined, {self.left_out} left out"


@dataclass(frozen=True)
class _Seen:
    series: str
    geometry: Geometry
    look: bool
    """whether the pixels may not pass unseen"""
    left_out: tuple[str, str] | None
    """code and message"""


def deid(
    src: Annotated[Path, typer.Argument(help="A folder of DICOM files, or one file.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    home: Home,
    option: Annotated[list[str], typer.Option(help=f"An option of the profile: {', '.join(OPTIONS)}.")] = [],  # noqa: B006
    public: Annotated[bool, typer.Option("--public", help="Refuse scans that could show a face.")] = False,
    defaced: Annotated[bool, typer.Option("--defaced", help="The scans were defaced before.")] = False,
    mapping: Annotated[Path | None, typer.Option(help="Private folder for the tables of old and new ids.")] = None,
) -> None:
    """Write DICOM files again without who they show, and report every action. HOME holds the key of pseudonyms."""
    totals = deidentify_folder(src, out, pseudonym_key(home), Profile.of(*option), public, defaced, mapping)
    typer.echo(f"{totals}; see {out / 'report'}")
    raise typer.Exit(1 if totals.quarantined else 0)


def deidentify_folder(
    src: Path, out: Path, key: bytes, profile: Profile, public: bool = False, defaced: bool = False,
    mapping: Path | None = None, reader: Reader | None = None,
) -> Totals:
    """Clean all of `src` into `out`. `reader` reads text in pictures; default: transforms/pictures/ocr.py.

    Raises ConfigError when the folders overlap, or `out` was begun with another profile or key.
    """
    _check(src, out, key, profile, mapping)
    root = src if src.is_dir() else src.parent
    sweep(out)
    seen = {path: kept for path in walk(src) if (kept := _first_look(path)) is not None}
    verdicts = _verdicts(seen.values())
    report, rejects = Report(), []
    outcomes: Counter[str] = Counter()
    uids: dict[str, str] = {}
    patients: dict[str, str] = {}
    for path in _shown(list(walk(src))):
        name = keyed_name(path.relative_to(root), key)
        verdict = verdicts[seen[path].series] if path in seen else Verdict("no", "")
        try:
            made, areas = _cleaned(path, seen.get(path), verdict, profile, key, public, defaced, reader or _reader())
            _put(made, out / "files" / name)
        except ItemError as error:
            outcomes[error.outcome] += 1
            rejects.append({"file": name, "outcome": error.outcome, "code": error.code, "message": error.message})
            continue
        outcomes["written"] += 1
        report.add(name, made.actions, areas, verdict.shows)
        uids |= made.uids
        patients |= made.patients
    report.write(out / "report")
    write_bytes(out / "report" / "rejects.jsonl", "".join(f"{json.dumps(line)}\n" for line in rejects).encode())
    if mapping is not None:
        write_mappings(mapping, out, uids, patients)
    return Totals(outcomes["written"], outcomes["failed"], outcomes["dropped"])


def keyed_name(path: Path, key: bytes) -> str:
    """A relative path with every part replaced by its pseudonym: 3f0c…/90a1….dcm"""
    parts = [pseudonym(key, "path", part) for part in path.parts]
    return "/".join(parts) + ".dcm"


def _check(src: Path, out: Path, key: bytes, profile: Profile, mapping: Path | None) -> None:
    if not src.exists():
        raise ConfigError(f"{src}: nothing there; check the path")
    given, wanted = src.resolve(), out.resolve()
    if given.is_relative_to(wanted) or wanted.is_relative_to(given):
        raise ConfigError(f"{src} and {out} lie within each other; write to another folder")
    if mapping is not None:
        check_folder(mapping, out)
    settings = json.dumps({
        "profile": "PS3.15 Annex E basic, 2026c", "options": sorted(profile.options),
        "key": pseudonym(key, "fingerprint", "key"),
    }, sort_keys=True).encode()
    path = out / "report" / "settings.json"
    if path.exists() and path.read_bytes() != settings:
        raise ConfigError(f"{out} was begun with another key or other options; name another --out")
    write_bytes(path, settings)


def _first_look(path: Path) -> _Seen | None:
    """What the whole series has to be known for; None where the file cannot be read (the second look says why)."""
    try:
        dataset = open_dataset(path.read_bytes())
        stated = text(dataset, "SOPClassUID") or text(dataset.file_meta, "MediaStorageSOPClassUID")
        left_out = next((why for uid, why in LEFT_OUT.items() if stated.startswith(uid)), None)
        series = str(value(dataset, "SeriesInstanceUID") or path)
        return _Seen(series, geometry_of(dataset), needs_look(dataset), left_out)
    except (ItemError, OSError):
        return None


def _verdicts(files: Any) -> dict[str, Verdict]:
    series: dict[str, list[Geometry]] = defaultdict(list)
    for seen in files:
        series[seen.series].append(seen.geometry)
    return {uid: face_in(series_of(members)) for uid, members in series.items()}


def _cleaned(
    path: Path, seen: _Seen | None, verdict: Verdict, profile: Profile, key: bytes, public: bool, defaced: bool,
    read: Reader,
) -> tuple[Deidentified, Sequence[Area]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Terminal("UNREADABLE", f"the file cannot be read ({error.strerror}); check its rights") from None
    if seen is None:
        try:
            open_dataset(data)
        except ItemError as error:
            raise (Dropped(error.code, error.message) if error.code == "NOT_DICOM" else error) from None
        raise Terminal("CHANGED", "the file changed while it was read; run again")
    if seen.left_out is not None:
        raise Dropped(*seen.left_out)
    if public:
        check_public(verdict, defaced)
    known = [] if verdict.shows == "no" else ["clean_faces" if defaced else "shows_face"]
    areas: Sequence[Area] = ()
    if seen.look:
        cleaned = clean_pixels(open_dataset(data), read)
        if cleaned.outcome == "mask":
            data, areas = as_bytes(cleaned.dataset), cleaned.areas
            known.append("clean_pixels")
    return deidentify_file(data, profile, key, known), areas


def _put(made: Deidentified, path: Path) -> None:
    """Write a file that is not there; one that is there has to be the same."""
    if not path.exists():
        write_atomic(path, made.write)
    elif sha256(path.read_bytes()) != sha256(made.data()):
        raise Terminal("EXISTS", "another file of this name is there; nothing is written over: name another --out")


def _reader() -> Reader:
    from transforms.pictures.ocr import read_words

    return read_words


def _shown(paths: list[Path]) -> Iterator[Path]:
    from rich.progress import track

    yield from track(paths, "de-identifying", disable=not os.isatty(2))
