"""Medical Segmentation Decathlon: dataset.json lists the volumes and their label maps.

>>> found = find_msd(root, ["imagesTr/spleen_10.nii.gz", "labelsTr/spleen_10.nii.gz"], "Task09_Spleen")
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connectors.nifti.found import Found, channels, dataset_json_error, label_facts, modality, unlisted
from infra.errors import ConfigError


def find_msd(root: Path, names: Sequence[str], address: str) -> list[Found]:
    """What dataset.json lists, and the volume files it does not. Raises ConfigError."""
    try:
        described = json.loads((root / "dataset.json").read_text("utf-8"))
        lists = {name: list(described.get(name, ())) for name in ("training", "test")}
        facts, named = label_facts(described.get("labels", {})), channels(described)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise dataset_json_error(address, "msd", error) from error
    if not any(lists.values()):
        raise ConfigError(
            f"{address}/dataset.json lists no volumes under training or test (nnU-Net's does not); take layout: nnunet"
        )
    codes = {modality(name) for name in named}
    facts |= {"modality": codes.pop()} if len(codes) == 1 and None not in codes else {}
    facts |= {"channels": list(named)} if len(named) > 1 else {}
    found: dict[str, Found] = {}
    for where, listed in lists.items():
        for at, stated in enumerate(listed):
            one = _found(f"dataset.json#{where}/{at}", stated, set(names), facts)
            if one.name in found:
                twice = f"{one.name} is listed before; nothing to do"
                one = Found(f"dataset.json#{where}/{at}", {}, facts, error=("LISTED_TWICE", twice))
            found[one.name] = one
    return [*found.values(), *unlisted(names, found.values(), "dataset.json does not list it")]


def _found(place: str, stated: Any, known: set[str], facts: Mapping[str, Any]) -> Found:
    stated = {"image": stated} if isinstance(stated, str) else stated
    if not isinstance(stated, dict) or not all(isinstance(stated.get(k, ""), str) for k in ("image", "label")):
        return Found(place, {}, facts, error=("ENTRY_UNREADABLE", "neither a path nor {image, label} with a path each"))
    roles = {"main": stated.get("image"), "labels": stated.get("label")}
    files = {role: posixpath.normpath(path) for role, path in roles.items() if path}
    if "main" not in files:
        return Found(place, {}, facts, error=("ENTRY_UNREADABLE", "it names no image"))
    missing = sorted(path for path in files.values() if path not in known)
    message = f"dataset.json names {', '.join(missing)}, not found below root; fetch it, or take it off the list"
    return Found(files["main"], files, facts, error=("FILE_MISSING", message) if missing else None)
