"""A plain folder: which files are volumes, and which are the label maps and masks of one, by their paths.

Also TotalSegmentator's data set, which is one: CASE/ct.nii.gz (or mri.nii.gz) and CASE/segmentations/ORGAN.nii.gz.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from glob import escape

from connectors.nifti.found import Found, case, stem, unlisted
from infra.errors import ConfigError

SCANS = {"ct": "CT", "mri": "MR"}
"""What TotalSegmentator calls its scans -> modality."""


def find_totalsegmentator(names: Sequence[str]) -> list[Found]:
    """Every ct and mri with the masks in the folder segmentations beside it. Raises ConfigError."""
    scans = [name for name in names if stem(name).lower() in SCANS]
    if not scans:
        raise ConfigError("there is no CASE/ct.nii.gz nor CASE/mri.nii.gz; check root, or take layout: folder")
    found = find_folder(names, scans, {"mask:*": "{folder}/segmentations/*"})
    return [
        replace(one, facts={"modality": SCANS[stem(one.name).lower()]}, patient=posixpath.dirname(one.name) or None)
        if one.error is None else one
        for one in found
    ]


def find_folder(names: Sequence[str], images: Sequence[str], patterns: Mapping[str, str]) -> list[Found]:
    """The images, less those that are labels or masks of one; `patterns`: role -> path. Raises ConfigError."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        by_folder.setdefault(posixpath.dirname(name), []).append(name)
    parts: dict[str, dict[str, str]] = {}
    fitted: set[str] = set()
    for name in images:
        for role, pattern in patterns.items():
            found = [other for other in _matches(pattern, name, by_folder) if other != name]
            if len(found) > 1 and role != "mask:*":
                raise ConfigError(f"{role}: {pattern} fits several files for {name}: {', '.join(found[:3])}; narrow it")
            fitted.update({role} if found else ())
            for other in found:
                parts.setdefault(name, {})[f"mask:{stem(other)}" if role == "mask:*" else role] = other
    if images and (vain := patterns.keys() - fitted):
        raise ConfigError(f"no volume has a file for {sorted(vain)}; check the paths of labels and masks in the recipe")
    used = {other for files in parts.values() for other in files.values()}
    volumes = [Found(name, {"main": name, **parts.get(name, {})}) for name in images if name not in used]
    return volumes + unlisted(names, volumes, "it matches no glob of `include` and belongs to no volume")


def chosen(names: Sequence[str], include: Sequence[str]) -> list[str]:
    """The names that match a glob; * crosses folders."""
    return [name for name in names if any(fnmatch(name, glob) for glob in include)]


def _matches(pattern: str, name: str, by_folder: Mapping[str, list[str]]) -> list[str]:
    places = {"folder": posixpath.dirname(name) or ".", "stem": stem(name), "case": case(name)}
    try:
        path = pattern.format(**{place: escape(text) for place, text in places.items()})
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(f"{pattern!r}: only {{folder}}, {{stem}} and {{case}} may stand in braces") from error
    parent, _, last = posixpath.normpath(path).rpartition("/")
    literal = re.sub(r"\[([*?[])\]", r"\1", parent)  # undoes `escape`
    return [other for other in by_folder.get(literal, ()) if fnmatch(posixpath.basename(other), last)]
