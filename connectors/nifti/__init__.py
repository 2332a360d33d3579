"""Scans as volume files, with their label maps and masks: NIfTI-1 and -2, .hdr and .img pairs, NRRD, MGH and MGZ.

The invariant: every volume file below the root is part of an item, or is an item of its own that says why it is none.

    layout: folder             every file that matches `include` is a volume, and `labels` and `masks` say where what
                               belongs to it lies, from its own path: {folder} is its folder, {stem} its name without
                               suffix, {case} the stem without nnU-Net's channel number (_0000); * may stand in the name
    layout: msd                Medical Segmentation Decathlon: dataset.json lists volumes and label maps
    layout: nnunet             nnU-Net v2: imagesTr/CASE_0000.nii.gz, one volume a channel, and labelsTr/CASE.nii.gz
    layout: bids               sub-01/ses-1/anat/…_T1w.nii.gz with JSON side-cars; `derivatives` takes masks from there
    layout: totalsegmentator   CASE/ct.nii.gz or mri.nii.gz, and CASE/segmentations/ORGAN.nii.gz

>>> Params(root="/data/Task09_Spleen", layout="msd", anatomy="abdomen")
>>> Params(root="/data/nnUNet_raw/Dataset001", layout="nnunet")
>>> Params(root="/data/organs", include=("*/ct.nii.gz",), masks={"*": "{folder}/*.nii.gz"},
...        patient_pattern=r"^(s\\d+)/", modality="CT", label_table="labels.tsv")
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from catalog.items import Item, Label, Partition
from connectors.nifti.bids import find_bids
from connectors.nifti.folder import chosen, find_folder, find_totalsegmentator
from connectors.nifti.found import ERRORS, SUFFIX, Found, case, pairs
from connectors.nifti.labels import read_labels
from connectors.nifti.msd import find_msd
from connectors.nifti.nnunet import find_nnunet
from infra.errors import ConfigError, ItemError, Transient
from infra.fileindex import FileIndex
from infra.keys import key, sha256, split_by_key
from infra.storage import resolve, walk

NAME = "nifti"
VERSION = "2"
REQUIRES = {"nibabel": "nibabel"}


class Params(BaseModel):
    """Where the volumes are, and what the files themselves do not say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = Field(description="folder, or pkg:PACKAGE/PATH; ~ and $VARIABLES are expanded")
    layout: Literal["folder", "msd", "nnunet", "bids", "totalsegmentator"] = Field(
        "folder", description="how things lie; see above"
    )
    include: tuple[str, ...] = Field(("*",), description="globs of paths below root that are volumes (folder)")
    labels: str | None = Field(None, description="path of a volume's label map, with {folder}, {stem}, {case} (folder)")
    masks: Mapping[str, str] = Field(
        {}, description="name -> path of a volume's mask, likewise; the name * takes the stem of each file (folder)"
    )
    mask_threshold: float = Field(0, description="a voxel above this is in the mask")
    derivatives: bool = Field(False, description="take masks and label maps from derivatives/ (bids)")
    label_names: Mapping[int, str] = Field({}, description="label value -> name; replaces all tables")
    label_table: str | None = Field(
        None, description="path below root of a table of label values and names (csv, tsv, json, ITK-SNAP's or "
        "FreeSurfer's txt); replaces the table of dataset.json"
    )
    modality: str | None = Field(None, description="DICOM code of the modality (CT, MR …); replaces what files say")
    anatomy: str | None = Field(None, description="body region in plain words; replaces what files say")
    patient_pattern: str | None = Field(
        None, description="regular expression searched in a volume's path, whose one group is the patient; without it: "
        "the subject (bids), the folder (totalsegmentator), else every case is a patient of its own"
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

    Raises ConfigError for a root without volumes, a dataset.json or table of labels that cannot be used, and a pattern
    of labels or masks that fits nothing.
    """
    root = resolve(params.root)
    files = [path.relative_to(root).as_posix() for path in walk(root)] if root.is_dir() else []
    headers, alone = pairs(files)
    halves = {one.name for one in alone}
    names = [name for name in files if SUFFIX.search(name) and name not in halves]
    if not names:
        raise ConfigError(f"{params.root}: there are no volumes (.nii, .nii.gz, .nrrd, .mgz, .img); check root")
    found = _find(root, names, files, params)
    stated = _stated(root, params)
    refs = [_ref(root, one, headers, stated, params, since) for one in (*found, *alone)]
    for name, part in split_by_key(refs, lambda ref: ref["patient"] or ref["id"], params.capacity).items():
        yield Partition(source, name, tuple(part), tuple((ref["id"], _content(ref)) for ref in part))


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition, with the bytes of their files or the error met.

    Errors: Terminal FILE_MISSING (stated, not there), ENTRY_UNREADABLE, PATIENT_UNMATCHED; Dropped NOT_LISTED,
    LISTED_TWICE, MASK_AMBIGUOUS; Transient SOURCE_CHANGED when a file is no longer the one that was listed,
    SOURCE_UNREADABLE when it cannot be opened.
    """
    for ref in partition.refs:
        error, files = None, {}
        try:
            if ref["error"]:
                code, message = ref["error"]
                raise ERRORS[code](code, message)
            files = {role: _load(Path(file["path"]), file["sha256"]) for role, file in ref["files"].items()}
        except ItemError as met:
            error, files = met, {}
        labels = tuple(Label(name, value, origin) for name, value, origin in ref["labels"])
        hashes = {role: ref["files"][role]["sha256"] for role in files}
        yield Item(
            ref["id"], "nifti", ref["id"], files, patient=ref["patient"], labels=labels, facts=ref["facts"],
            error=error, hashes=hashes,
        )


def _find(root: Path, names: list[str], files: list[str], params: Params) -> list[Found]:
    if params.layout == "msd":
        return find_msd(root, names, params.root)
    if params.layout == "nnunet":
        return find_nnunet(root, names, params.root)
    if params.layout == "bids":
        return find_bids(root, names, files, params.derivatives)
    if params.layout == "totalsegmentator":
        return find_totalsegmentator(names)
    patterns = {f"mask:{name}": pattern for name, pattern in params.masks.items()}
    if params.labels:
        patterns["labels"] = params.labels
    return find_folder(names, chosen(names, params.include), patterns)


def _stated(root: Path, params: Params) -> dict[str, Any]:
    """Facts of the recipe, which go before what files say."""
    facts: dict[str, Any] = {"modality": params.modality, "anatomy": params.anatomy}
    if params.label_table:
        try:
            facts |= read_labels(root / params.label_table)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"label_table {params.label_table} cannot be read below root: {error}") from error
    if params.label_names:
        facts["label_table"] = {str(value): name for value, name in params.label_names.items()}
    return {name: fact for name, fact in facts.items() if fact is not None}


def _ref(
    root: Path, one: Found, headers: Mapping[str, str], stated: Mapping[str, Any], params: Params, since: FileIndex
) -> dict[str, Any]:
    """What `read` needs for an item."""
    error = one.error
    patient: str | None = one.patient or posixpath.join(posixpath.dirname(one.name), case(one.name))
    if params.patient_pattern:
        matched = re.search(params.patient_pattern, one.name)
        patient = matched[1] if matched else None
        if error is None and not matched:
            error = ("PATIENT_UNMATCHED", "patient_pattern does not match its path: its patient is unknown; correct it")
    paths = dict(one.files) if error is None else {}
    paths |= {f"header:{role}": headers[path] for role, path in paths.items() if path in headers}
    contents = {role: {"path": str(root / path), "sha256": _hash(root / path, since)} for role, path in paths.items()}
    facts = {**one.facts, **stated}
    if any(role.startswith("mask:") for role in paths):
        facts["mask_threshold"] = params.mask_threshold
    return {
        "id": one.name, "facts": facts, "labels": [list(label) for label in one.labels], "patient": patient,
        "files": contents, "error": list(error) if error else None,
    }


def _content(ref: Mapping[str, Any]) -> str:
    """Hash of all that decides what becomes of an item: bytes, facts, labels, patient."""
    hashes = {role: file["sha256"] for role, file in ref["files"].items()}
    return key("nifti", hashes, ref["facts"], ref["labels"], ref["error"], ref["patient"])


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
