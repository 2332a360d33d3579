"""nnU-Net's raw format, version 2: imagesTr/CASE_0000.nii.gz, one file a channel, and labelsTr/CASE.nii.gz.

The invariant: every channel is a volume of its own, with the name of its sequence and the label map of its case; all
channels of a case are one patient. Regions ({"whole tumour": [1, 2, 3]}) become unions of labels; what the label
"ignore" covers is no region. https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from connectors.nifti.found import SUFFIX, Found, channels, dataset_json_error, label_facts, modality, unlisted
from infra.errors import ConfigError

FOLDERS = {
    "imagesTr": ("labelsTr", "train"), "imagesVal": ("labelsVal", "validation"), "imagesTs": ("labelsTs", "test"),
}
"""Folder of images -> folder of their label maps, and the split."""
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})(?P<ending>\..+)")


def find_nnunet(root: Path, names: Sequence[str], address: str) -> list[Found]:
    """The channels of every case, the channels and label maps that are missing, the other files. Raises ConfigError."""
    try:
        described = json.loads((root / "dataset.json").read_text("utf-8"))
        named = channels({"channel_names": described.get("channel_names") or described["modality"]})
        facts = label_facts(described["labels"])
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise dataset_json_error(address, "nnunet", error) from error
    found = [one for folder in FOLDERS for one in _folder(folder, names, named, facts)]
    if not found:
        raise ConfigError(f"{address}: there is no imagesTr/CASE_0000.* nor imagesTs; check root")
    return [*found, *unlisted(names, found, "it is no channel of a case (CASE_0000) nor the label map of one")]


def _folder(folder: str, names: Sequence[str], named: Sequence[str], facts: Mapping[str, Any]) -> Iterator[Found]:
    labels_folder, split = FOLDERS[folder]
    known = {SUFFIX.sub("", name): name for name in names}
    cases: dict[str, dict[int, str]] = {}
    for name in names:
        parent, _, base = name.rpartition("/")
        if parent == folder and (parts := CHANNEL.fullmatch(base)):
            cases.setdefault(parts["case"], {})[int(parts["channel"])] = name
    for case, files in cases.items():
        labels = known.get(f"{labels_folder}/{case}")
        for number in sorted({*range(len(named)), *files}):
            name = files.get(number, f"{folder}/{case}_{number:04}")
            error = None
            if number not in files:
                error = ("FILE_MISSING", f"dataset.json has {len(named)} channels, and this case lacks this one")
            elif labels is None and split == "train":
                error = ("FILE_MISSING", f"there is no label map {labels_folder}/{case}; fetch it")
            channel = named[number] if number < len(named) else None
            code = modality(channel or "")
            stated = [("split", split, f"folder:{folder}")]
            if channel and len(named) > 1:
                stated.append(("sequence", channel, "dataset.json:channel_names"))
            yield Found(
                name, {"main": name, **({"labels": labels} if labels else {})} if number in files else {},
                {**facts, **({"modality": code} if code else {})}, tuple(stated), posixpath.join(folder, case), error,
            )
