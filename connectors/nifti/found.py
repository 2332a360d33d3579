"""Volumes as a layout finds them, before their files are opened.

The invariant: every volume file below the root is in the `files` of a Found, if need be of one that says why not.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.errors import ConfigError, Dropped, ItemError, Terminal

SUFFIX = re.compile(r"\.(nii|nii\.gz|nrrd|nhdr|mgh|mgz|img|img\.gz)$", re.IGNORECASE)
"""What volume files are called: NIfTI, NRRD, MGH, and the voxels of a NIfTI pair."""
HEADER_SUFFIX = re.compile(r"\.hdr(\.gz)?$", re.IGNORECASE)
"""The other half of a pair."""
ERRORS: Mapping[str, type[ItemError]] = {
    "NOT_LISTED": Dropped, "LISTED_TWICE": Dropped, "MASK_AMBIGUOUS": Dropped,
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


@dataclass(frozen=True)
class Found:
    """A volume before its files are looked at."""

    name: str
    """path below the root, or a place in dataset.json"""
    files: Mapping[str, str]
    """role -> path below the root"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[tuple[str, str, str], ...] = ()
    """name, value, where it was read"""
    patient: str | None = None
    """None: what its path is before the channel number"""
    error: tuple[str, str] | None = None
    """code and message"""


def unlisted(names: Sequence[str], found: Iterable[Found], why: str) -> list[Found]:
    """The files that nothing found uses, as items of their own that say why."""
    used = {path for one in found for path in one.files.values()}
    return [Found(name, {"main": name}, error=("NOT_LISTED", why)) for name in names if name not in used]


def pairs(names: Sequence[str]) -> tuple[dict[str, str], list[Found]]:
    """For the voxels of each NIfTI pair the path of its header; and the halves that stand alone."""
    headers = {HEADER_SUFFIX.sub("", name): name for name in names if HEADER_SUFFIX.search(name)}
    voxels = {SUFFIX.sub("", n): n for n in names if re.search(r"\.img(\.gz)?$", n, re.IGNORECASE)}
    alone = {**headers, **voxels}
    whole = {voxels[both]: headers[both] for both in headers.keys() & voxels.keys()}
    missing = ("FILE_MISSING", "it is one half of a pair of .hdr and .img, whose other half is not there; fetch it")
    halves = sorted(headers.keys() ^ voxels.keys())
    return whole, [Found(alone[one], {"main": alone[one]}, error=missing) for one in halves]


def stem(name: str) -> str:
    """File name without its suffix."""
    return SUFFIX.sub("", posixpath.basename(name))


def case(name: str) -> str:
    """File name without suffix and nnU-Net's channel number."""
    return re.sub(r"_\d{4}$", "", stem(name))


def modality(channel: str) -> str | None:
    """DICOM code of what a channel is called: "T1w" is MR."""
    return next((code for code, words in CODES if re.match(words, channel.strip().lower())), None)


def channels(described: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the channels of a dataset.json: {"0": "FLAIR", "1": "T1w"} in the order of their numbers."""
    stated = described.get("modality") or described.get("channel_names") or {}
    if isinstance(stated, str):
        return (stated,)
    return tuple(str(stated[number]) for number in sorted(stated, key=int))


def label_facts(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Facts from the labels of a dataset.json or a JSON table.

    {"1": "liver"}, nnU-Net's {"liver": 1}, {"1": {"name": "liver"}}, or groups of them; a name with several values
    ({"whole tumour": [1, 2]}) is a union, and nnU-Net's "ignore" is a value of which nothing is known.
    Raises ValueError, TypeError.
    """
    table: dict[str, str] = {}
    unions: dict[str, list[int]] = {}
    ignored: list[int] = []
    for name, value in stated.items():
        if isinstance(value, dict):
            inner: dict[str, Any] = label_facts({name: value["name"]} if "name" in value else value)
            table |= inner.get("label_table", {})
            unions |= inner.get("label_unions", {})
        elif isinstance(value, list):
            unions[str(name)] = [int(one) for one in value]
        else:
            number, word = (value, name) if isinstance(value, int) else (name, value)
            if str(word).lower() == "ignore":
                ignored.append(int(number))
            else:
                table[str(int(number))] = str(word)
    facts = {"label_table": table, "label_unions": unions, "label_ignored": ignored}
    return {name: fact for name, fact in facts.items() if fact}


def dataset_json_error(root: str, layout: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{root}/dataset.json cannot be used ({error}); point root at the folder of a task, or take another layout "
        f"than {layout}"
    )
