"""NIfTI folders: every file is part of an item, or says why it is none."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_nifti import make, voxels

from catalog.items import Item, Partition
from connectors.nifti import Params, list_partitions, read
from infra.errors import ConfigError, Dropped, Terminal, Transient
from infra.fileindex import FileIndex
from transforms.decoded import IngestParams, Refused, Sample, Volume
from transforms.decoders.nifti import decode


def write(root: Path, **files: bytes) -> None:
    for name, data in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (1, 1))


def task(root: Path, described: dict[str, Any]) -> None:
    write(root, **{"dataset.json": json.dumps(described).encode()})


def parts(params: Params) -> list[Partition]:
    return list(list_partitions("msd", params, FileIndex(None)))


def items(params: Params) -> dict[str, Item]:
    return {i.id: i for partition in parts(params) for i in read(partition, params)}


def msd(root: Path, **other: Any) -> Params:
    for name in ("imagesTr__a_01", "labelsTr__a_01", "imagesTr__a_02", "imagesTs__a_03"):
        write(root, **{f"{name}.nii.gz": make(voxels() + len(name))})
    write(root, **{"extra.nii": make(packed=False)})
    task(root, {
        "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver"},
        "training": [
            {"image": "./imagesTr/a_01.nii.gz", "label": "./labelsTr/a_01.nii.gz"}, {"image": "imagesTr/a_02.nii.gz"},
            {"image": "imagesTr/gone.nii.gz", "label": "labelsTr/gone.nii.gz"}, 7, "../outside.nii.gz",
        ],
        "test": ["./imagesTs/a_03.nii.gz", "./imagesTr/a_01.nii.gz"],
    })
    return Params(root=str(root), layout="msd", **other)


def test_msd_every_file_and_every_entry_is_an_item(tmp_path: Path) -> None:
    found = items(msd(tmp_path))
    good = {name: sorted(i.files) for name, i in found.items() if i.error is None}
    assert good == {
        "imagesTr/a_01.nii.gz": ["labels", "main"], "imagesTr/a_02.nii.gz": ["main"], "imagesTs/a_03.nii.gz": ["main"],
    }
    bad = {name: (type(i.error), i.error.code) for name, i in found.items() if isinstance(i.error, (Terminal, Dropped))}
    assert bad == {
        "imagesTr/gone.nii.gz": (Terminal, "FILE_MISSING"), "../outside.nii.gz": (Terminal, "FILE_MISSING"),
        "dataset.json#training/3": (Terminal, "ENTRY_UNREADABLE"), "dataset.json#test/1": (Dropped, "LISTED_TWICE"),
        "extra.nii": (Dropped, "NOT_LISTED"),
    }
    first = found["imagesTr/a_01.nii.gz"]
    assert first.facts == {"modality": "MR", "label_table": {"0": "background", "1": "liver"}}
    assert first.patient == "imagesTr/a_01" and first.group == first.id


def test_partitions_hold_what_they_may_and_nothing_twice(tmp_path: Path) -> None:
    params = msd(tmp_path, capacity=2)
    found = parts(params)
    names = Counter(ref["id"] for partition in found for ref in partition.refs)
    assert len(names) == 8 and set(names.values()) == {1} and max(len(p.refs) for p in found) <= 2
    assert [p.key for p in parts(params)] == [p.key for p in found]
    json.dumps([p.refs for p in found])


@pytest.mark.parametrize("other", [
    {"label_names": {1: "Liver"}}, {"modality": "CT"}, {"anatomy": "abdomen"}, {"patient_pattern": "(a)_|(?:)"},
])
def test_what_changes_the_output_changes_the_key(tmp_path: Path, other: dict[str, Any]) -> None:
    params = msd(tmp_path)
    before = {p.name: p.key for p in parts(params)}
    assert {p.name: p.key for p in parts(params.model_copy(update=other))} != before
    write(tmp_path, **{"labelsTr__a_01.nii.gz": make(voxels() * 0)})
    assert {p.name: p.key for p in parts(params)} != before, "a new label map"


def test_a_file_that_changed_after_listing(tmp_path: Path) -> None:
    params = msd(tmp_path)
    listed = parts(params)
    write(tmp_path, **{"imagesTr__a_02.nii.gz": make(voxels() * 0)})
    (tmp_path / "imagesTs/a_03.nii.gz").unlink()
    found = {i.id: i.error for partition in listed for i in read(partition, params)}
    for name, expected in (("imagesTr/a_02.nii.gz", "SOURCE_CHANGED"), ("imagesTs/a_03.nii.gz", "SOURCE_UNREADABLE")):
        error = found[name]
        assert isinstance(error, Transient) and error.code == expected
    assert found["imagesTr/a_01.nii.gz"] is None


@pytest.mark.parametrize("stated, table", [
    ({"0": "background", "1": "liver"}, {"0": "background", "1": "liver"}),
    ({"background": 0, "liver": 1}, {"0": "background", "1": "liver"}),
    ({"1": {"name": "liver", "colour": "red"}}, {"1": "liver"}),
    ({"abdomen": {"1": "liver", "2": "spleen"}}, {"1": "liver", "2": "spleen"}),
])
def test_label_tables_of_several_kinds(tmp_path: Path, stated: Any, table: Any) -> None:
    write(tmp_path, **{"a.nii": make()})
    task(tmp_path, {"labels": stated, "channel_names": {"1": "T1w", "0": "FLAIR"}, "training": [{"image": "a.nii"}]})
    facts = items(Params(root=str(tmp_path), layout="msd"))["a.nii"].facts
    assert facts == {"modality": "MR", "channels": ["FLAIR", "T1w"], "label_table": table}


@pytest.mark.parametrize("described, word", [
    (b"{", "cannot be used"), (b"[]", "cannot be used"), (b'{"training": []}', "lists no volumes"),
    (b'{"training": ["a.nii"], "labels": {"one": "x"}}', "cannot be used"),
])
def test_a_dataset_json_that_cannot_be_used(tmp_path: Path, described: bytes, word: str) -> None:
    write(tmp_path, **{"a.nii": make(), "dataset.json": described})
    with pytest.raises(ConfigError, match=word):
        parts(Params(root=str(tmp_path), layout="msd"))
    with pytest.raises(ConfigError, match=r"there are no volumes"):
        (tmp_path / "empty").mkdir()
        parts(Params(root=str(tmp_path / "empty"), layout="msd"))


def test_folders_with_labels_by_case(tmp_path: Path) -> None:
    for name in ("imagesTr__x_001_0000.nii.gz", "imagesTr__x_002_0000.nii.gz", "labelsTr__x_001.nii.gz", "other.nii"):
        write(tmp_path, **{name: make(voxels() + len(name))})
    params = Params(root=str(tmp_path), include=("imagesTr/*",), labels="labelsTr/{case}.nii.gz", modality="CT")
    found = items(params)
    assert {name: sorted(i.files) for name, i in found.items()} == {
        "imagesTr/x_001_0000.nii.gz": ["labels", "main"], "imagesTr/x_002_0000.nii.gz": ["main"], "other.nii": [],
    }
    assert isinstance(found["other.nii"].error, Dropped)
    assert found["imagesTr/x_001_0000.nii.gz"].patient == "imagesTr/x_001"
    with pytest.raises(ConfigError, match="no volume has a file"):
        parts(params.model_copy(update={"labels": "lables/{case}.nii.gz"}))
    with pytest.raises(ConfigError, match="may stand in braces"):
        parts(params.model_copy(update={"labels": "{patient}.nii.gz"}))


def test_folders_with_masks_and_patients(tmp_path: Path) -> None:
    for case in ("s[1]", "s2"):
        for name in ("ct.nii.gz", "segmentations__liver.nii.gz", "segmentations__spleen.nii.gz"):
            write(tmp_path, **{f"{case}__{name}": make(voxels() + len(case + name))})
    params = Params(root=str(tmp_path), masks={"*": "{folder}/segmentations/*.nii.gz"}, patient_pattern=r"s(\d)")
    found = items(params)
    assert found.keys() == {"s2/ct.nii.gz", "s[1]/ct.nii.gz"}
    assert found["s2/ct.nii.gz"].patient == "2"
    error = found["s[1]/ct.nii.gz"].error
    assert isinstance(error, Terminal) and error.code == "PATIENT_UNMATCHED"
    alone = items(params.model_copy(update={"patient_pattern": None}))
    assert {tuple(sorted(i.files)) for i in alone.values()} == {("main", "mask:liver", "mask:spleen")}
    assert {i.patient for i in alone.values()} == {"s2/ct", "s[1]/ct"}


@pytest.mark.parametrize("pattern", ["(", "no group", "(two)(groups)"])
def test_a_patient_pattern_has_one_group(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"group|regular expression"):
        Params(root=".", patient_pattern=pattern)


def test_real_ct_the_liver_is_on_the_left_of_the_picture(sample_data: Path) -> None:
    params = Params(root=str(sample_data / "nifti/totalseg_ct_msd"), layout="msd", anatomy="abdomen")
    found = [i for partition in parts(params) for i in read(partition, params)]
    made = list(decode(found, IngestParams(), lambda kind, name: name))
    assert not [m for m in made if isinstance(m, Refused)] and len([m for m in made if isinstance(m, Volume)]) == 2
    drawn = 0
    for sample in (m for m in made if isinstance(m, Sample)):
        place = {r.label: np.argwhere(r.mask).mean(axis=0) for r in sample.regions if r.mask is not None}
        if "liver" in place and "spleen" in place:
            drawn += 1
            assert place["liver"][1] < place["spleen"][1] and place["aorta"][0] < sample.pixels.shape[0] * 0.75
    assert drawn


def test_real_masks_on_another_grid_are_brought_over(sample_data: Path) -> None:
    params = Params(
        root=str(sample_data / "nifti/totalseg_pulmonary_masks"), include=("ct_*",), modality="CT", anatomy="chest",
        masks={"*": "{folder}/*.nii.gz"},
    )
    (one,) = items(params).values()
    volume, *samples = decode([one], IngestParams(slices="largest:2"), lambda kind, name: name)
    assert isinstance(volume, Volume) and len(samples) == 2
    assert volume.row["geometry_flags"] == ["labels_resampled"], "the heart's mask has another grid"
    assert all("heart" in {r.label for r in s.regions} for s in samples if isinstance(s, Sample))
