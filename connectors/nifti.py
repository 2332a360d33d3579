"""NIfTI volumes with their label maps and masks: Medical Segmentation Decathlon folders, or any folder of .nii files.

The invariant: every NIfTI file below the root is part of an item, or is an item of its own that says why it is none.

layout "msd": the root holds dataset.json, with "training" and "test" lists, "labels" and "modality" (or nnU-Net's
"channel_names"). layout "folder": every file that matches `include` is a volume, and `labels` and `masks` say where
what belongs to it lies, from its own path: {folder} is its folder, {stem} its name without .nii.gz, {case} the stem
without nnU-Net's channel number (_0000); * may stand in the file name.

>>> Params(root="/data/Task09_Spleen", layout="msd", anatomy="abdomen")
>>> Params(root="/data/nnunet", include=("imagesTr/*_0000.nii.gz",), labels="labelsTr/{case}.nii.gz", modality="CT")
>>> Params(root="/data/totalseg", include=("*/ct.nii.gz",), masks={"*": "{folder}/segmentations/*.nii.gz"},
...        patient_pattern=r"^(s\\d+)/", modality="CT")
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from catalog.items import Item, Partition
from infra.errors import ConfigError, Dropped, ItemError, Terminal, Transient
from infra.fileindex import FileIndex
from infra.keys import key, sha256, split_by_key
from infra.storage import resolve, walk

NAME = "nifti"
VERSION = "1"
REQUIRES = {"nibabel": "nibabel"}

SUFFIXES = (".nii", ".nii.gz")
ERRORS: Mapping[str, type[ItemError]] = {
    "NOT_LISTED": Dropped, "LISTED_TWICE": Dropped,
    "FILE_MISSING": Terminal, "ENTRY_UNREADABLE": Terminal, "PATIENT_UNMATCHED": Terminal,
}
"""What can be wrong with an item before its files are opened."""
CODES = (
    ("CT", r"ct\b|computed tomography"),
    ("MR", r"mri?\b|fmri|t[12]|flair|adc|dwi|swi|pd\b|dce|magnetic"),
    ("PT", r"pet\b|pt\b|positron"),
    ("US", r"us\b|ultrasound"),
)
"""DICOM modality code, and how the names that data sets give their channels begin."""


class Params(BaseModel):
    """Where the volumes are, and what the files themselves do not say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="folder, or pkg:PACKAGE/PATH; ~ and $VARIABLES are expanded")
    layout: Literal["folder", "msd"] = Field("folder", description="msd: dataset.json lists the volumes; folder: globs")
    include: tuple[str, ...] = Field(("*",), description="globs of paths below root that are volumes (folder)")
    labels: str | None = Field(None, description="path of a volume's label map, with {folder}, {stem}, {case} (folder)")
    masks: Mapping[str, str] = Field(
        {}, description="name -> path of a volume's mask, likewise; the name * takes the stem of each file (folder)"
    )
    mask_threshold: float = Field(0, description="a voxel above this is in the mask")
    label_names: Mapping[int, str] = Field({}, description="label value -> name; replaces the table of dataset.json")
    modality: str | None = Field(None, description="DICOM code of the modality (CT, MR …); replaces dataset.json's")
    anatomy: str | None = Field(None, description="body region in plain words")
    patient_pattern: str | None = Field(
        None, description="regular expression searched in a volume's path, whose one group is the patient; "
        "without it every case is a patient of its own"
    )
    capacity: int = Field(50, ge=1, description="volumes a partition; those of a patient are never divided")

    @field_validator("patient_pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        try:
            if pattern is not None and re.compile(pattern).groups != 1:
                raise ValueError("it needs exactly one group, the patient: (…)")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of at most `capacity` volumes, those of a patient together.

    Raises ConfigError for a root without volumes, a dataset.json that cannot be used, and a pattern of labels or masks
    that fits nothing.
    """
    root = resolve(params.root)
    names = [path.relative_to(root).as_posix() for path in walk(root)] if root.is_dir() else []
    niftis = [name for name in names if name.lower().endswith(SUFFIXES)]
    if not niftis:
        raise ConfigError(f"{params.root}: there are no .nii or .nii.gz files; check root")
    entries = _listed(root, niftis, params) if params.layout == "msd" else _found(niftis, params)
    refs = [_ref(root, entry, params, since) for entry in entries]
    for name, part in split_by_key(refs, lambda ref: _patient(ref["id"], params) or ref["id"], params.capacity).items():
        yield Partition(source, name, tuple(part), tuple((ref["id"], _content(ref, params)) for ref in part))


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition, with the bytes of their files or the error met.

    Errors: Terminal FILE_MISSING (named in dataset.json, not there), ENTRY_UNREADABLE, PATIENT_UNMATCHED; Dropped
    NOT_LISTED, LISTED_TWICE; Transient SOURCE_CHANGED when a file is no longer the one that was listed,
    SOURCE_UNREADABLE when it cannot be opened.
    """
    for ref in partition.refs:
        name, error, files = ref["id"], None, {}
        try:
            if ref["error"]:
                code, message = ref["error"]
                raise ERRORS[code](code, message)
            files = {role: _load(Path(file["path"]), file["sha256"]) for role, file in ref["files"].items()}
        except ItemError as met:
            error, files = met, {}
        yield Item(name, "nifti", name, files, patient=_patient(name, params), facts=ref["facts"], error=error)


@dataclass(frozen=True)
class _Entry:
    """A volume before its files are looked at."""

    name: str
    """path below the root, or a place in dataset.json"""
    files: Mapping[str, str]
    """role -> path below the root"""
    facts: Mapping[str, Any]
    error: tuple[str, str] | None = None
    """code and message"""


def _found(niftis: list[str], params: Params) -> list[_Entry]:
    """layout folder: the volumes, less those files that are labels or masks of one."""
    by_folder: dict[str, list[str]] = {}
    for name in niftis:
        by_folder.setdefault(posixpath.dirname(name), []).append(name)
    patterns = {f"mask:{name}": pattern for name, pattern in params.masks.items()}
    if params.labels:
        patterns["labels"] = params.labels
    images = [name for name in niftis if any(fnmatch(name, glob) for glob in params.include)]
    parts: dict[str, dict[str, str]] = {}
    fitted: set[str] = set()
    for name in images:
        for role, pattern in patterns.items():
            found = [other for other in _matches(pattern, name, by_folder) if other != name]
            if len(found) > 1 and role != "mask:*":
                raise ConfigError(f"{role}: {pattern} fits several files for {name}: {', '.join(found[:3])}; narrow it")
            fitted.update({role} if found else ())
            for other in found:
                parts.setdefault(name, {})[f"mask:{_stem(other)}" if role == "mask:*" else role] = other
    if images and (vain := patterns.keys() - fitted):
        raise ConfigError(f"no volume has a file for {sorted(vain)}; check the paths of labels and masks in the recipe")
    used = {other for files in parts.values() for other in files.values()}
    facts = _facts(params, {}, ())
    volumes = [_Entry(name, {"main": name, **parts.get(name, {})}, facts) for name in images if name not in used]
    return volumes + _unlisted(niftis, volumes, "it matches no glob of `include` and belongs to no volume")


def _matches(pattern: str, name: str, by_folder: Mapping[str, list[str]]) -> list[str]:
    stem, folder = _stem(name), posixpath.dirname(name)
    places = {"folder": folder or ".", "stem": stem, "case": _case(name)}
    try:
        path = pattern.format(**{place: escape(text) for place, text in places.items()})
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(f"{pattern!r}: only {{folder}}, {{stem}} and {{case}} may stand in braces") from error
    parent, _, last = posixpath.normpath(path).rpartition("/")
    literal = re.sub(r"\[([*?[])\]", r"\1", parent)  # undoes `escape`
    return [other for other in by_folder.get(literal, ()) if fnmatch(posixpath.basename(other), last)]


def _listed(root: Path, niftis: list[str], params: Params) -> list[_Entry]:
    """layout msd: what dataset.json lists, and the files it does not."""
    try:
        described = json.loads((root / "dataset.json").read_text("utf-8"))
        lists = {name: list(described.get(name, ())) for name in ("training", "test")}
        table, channels = _label_table(described.get("labels", {})), _channels(described)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{params.root}/dataset.json cannot be used ({error}); point root at the folder of a task, "
            "or take layout: folder"
        ) from error
    if not any(lists.values()):
        raise ConfigError(
            f"{params.root}/dataset.json lists no volumes under training or test (nnU-Net's does not); take "
            "layout: folder with include and labels"
        )
    facts = _facts(params, table, channels)
    entries: dict[str, _Entry] = {}
    for where, listed in lists.items():
        for at, stated in enumerate(listed):
            entry = _entry(f"dataset.json#{where}/{at}", stated, set(niftis), facts)
            if entry.name in entries:
                twice = f"{entry.name} is listed before; nothing to do"
                entry = _Entry(f"dataset.json#{where}/{at}", {}, facts, ("LISTED_TWICE", twice))
            entries[entry.name] = entry
    return [*entries.values(), *_unlisted(niftis, list(entries.values()), "dataset.json does not list it")]


def _entry(place: str, stated: Any, known: set[str], facts: Mapping[str, Any]) -> _Entry:
    stated = {"image": stated} if isinstance(stated, str) else stated
    if not isinstance(stated, dict) or not all(isinstance(stated.get(k, ""), str) for k in ("image", "label")):
        return _Entry(place, {}, facts, ("ENTRY_UNREADABLE", "neither a path nor {image, label} with a path each"))
    roles = {"main": stated.get("image"), "labels": stated.get("label")}
    files = {role: posixpath.normpath(path) for role, path in roles.items() if path}
    if "main" not in files:
        return _Entry(place, {}, facts, ("ENTRY_UNREADABLE", "it names no image"))
    missing = sorted(path for path in files.values() if path not in known)
    message = f"dataset.json names {', '.join(missing)}, not found below root; fetch it, or take it off the list"
    return _Entry(files["main"], files, facts, ("FILE_MISSING", message) if missing else None)


def _unlisted(niftis: list[str], entries: list[_Entry], why: str) -> list[_Entry]:
    used = {path for entry in entries for path in entry.files.values()}
    return [_Entry(name, {"main": name}, {}, ("NOT_LISTED", why)) for name in niftis if name not in used]


def _facts(params: Params, table: Mapping[int, str], channels: tuple[str, ...]) -> dict[str, Any]:
    codes = {_code(name) for name in channels}
    facts = {
        "modality": params.modality or (codes.pop() if len(codes) == 1 else None),
        "anatomy": params.anatomy,
        "label_table": {str(value): name for value, name in (params.label_names or table).items()} or None,
        "mask_threshold": params.mask_threshold if params.masks else None,
        "channels": list(channels) if len(channels) > 1 else None,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _code(channel: str) -> str | None:
    return next((code for code, words in CODES if re.match(words, channel.strip().lower())), None)


def _channels(described: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the channels: {"0": "FLAIR", "1": "T1w"} in the order of their numbers."""
    stated = described.get("modality") or described.get("channel_names") or {}
    if isinstance(stated, str):
        return (stated,)
    return tuple(str(stated[number]) for number in sorted(stated, key=int))


def _label_table(stated: Any) -> dict[int, str]:
    """Label value -> name, from {"1": "liver"}, nnU-Net's {"liver": 1}, {"1": {"name": "liver"}}, or groups of them."""
    table: dict[int, str] = {}
    for name, value in stated.items():
        if isinstance(value, dict):
            table |= {int(name): str(value["name"])} if "name" in value else _label_table(value)
        elif isinstance(value, list):
            raise ValueError(f"labels: {name} is a union of labels; state label_names in the recipe")
        else:
            number, word = (value, name) if isinstance(value, int) else (name, value)
            table[int(number)] = str(word)
    return table


def _ref(root: Path, entry: _Entry, params: Params, since: FileIndex) -> dict[str, Any]:
    """What `read` needs for an item."""
    error = entry.error
    if error is None and params.patient_pattern and not re.search(params.patient_pattern, entry.name):
        error = ("PATIENT_UNMATCHED", "patient_pattern does not match its path, so its patient is unknown; correct it")
    files = {
        role: {"path": str(root / path), "sha256": _hash(root / path, since)}
        for role, path in entry.files.items() if error is None
    }
    return {"id": entry.name, "files": files, "facts": dict(entry.facts), "error": list(error) if error else None}


def _content(ref: Mapping[str, Any], params: Params) -> str:
    """Hash of all that decides what becomes of an item: bytes, facts, patient."""
    hashes = {role: file["sha256"] for role, file in ref["files"].items()}
    return key("nifti", hashes, ref["facts"], ref["error"], _patient(ref["id"], params))


def _hash(path: Path, since: FileIndex) -> str:
    try:
        return since.sha256(path)
    except OSError:
        return "unreadable"


def _load(path: Path, digest: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"{error.strerror}; check the file and its permissions, then try again"
        raise Transient("SOURCE_UNREADABLE", message) from error
    if sha256(data) != digest:
        raise Transient("SOURCE_CHANGED", "the file is not the one that was listed; build again")
    return data


def _patient(name: str, params: Params) -> str | None:
    """The patient of a volume by its path: without a pattern, the path up to the case; None where it does not match."""
    if params.patient_pattern is None:
        return posixpath.join(posixpath.dirname(name), _case(name))
    found = re.search(params.patient_pattern, name)
    return found[1] if found else None


def _stem(name: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", posixpath.basename(name), flags=re.IGNORECASE)


def _case(name: str) -> str:
    return re.sub(r"_\d{4}$", "", _stem(name))
