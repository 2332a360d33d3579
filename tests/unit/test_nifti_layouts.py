"""Folders of volumes in the layouts that people publish: every file is part of an item, or says why it is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from make_nifti import RAS, SHAPE, make, voxels
from test_nifti_folders import items, task, write

from catalog.items import Item
from connectors.nifti import Params
from connectors.nifti.labels import read_labels
from infra.errors import ConfigError, ItemError
from transforms.decoded import Decoded, IngestParams, Refused, Sample, Volume
from transforms.decoders.nifti import decode

Made = tuple[dict[str, Any], list[Sample]]


def cut_up(item: Item, **params: Any) -> Made:
    made: list[Decoded] = list(decode([item], IngestParams(**{"slices": "middle", **params}), lambda kind, name: name))
    rows = [dict(m.row) for m in made if isinstance(m, Volume)]
    return rows[0], [m for m in made if isinstance(m, Sample)]


def errors(found: dict[str, Item]) -> dict[str, str]:
    return {name: item.error.code for name, item in found.items() if isinstance(item.error, ItemError)}


def regions(sample: Sample) -> dict[str, int]:
    return {r.label: int(r.mask.sum()) for r in sample.regions if r.mask is not None}


def test_nnunet_channels_regions_and_ignored_labels(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[0:2, 0, 2], labels[2:5, 0, 2], labels[5, 0, 2], labels[7, 5, 2] = 1, 2, 3, 4
    for n, name in enumerate(("x_001_0000", "x_001_0001", "x_002_0000", "x_003_0000", "x_003_0001")):
        write(tmp_path, **{f"imagesTr__{name}.nii.gz": make(voxels() + n)})
    write(tmp_path, **{
        "imagesTs__x_9_0000.nii.gz": make(voxels() + 9), "imagesTs__x_9_0001.nii.gz": make(voxels() + 8),
        "labelsTr__x_001.nii.gz": make(labels), "labelsTr__x_002.nii.gz": make(labels * 0),
        "labelsTr__x_777.nii.gz": make(labels), "imagesTr__nonsense.nii.gz": make(),
    })
    task(tmp_path, {
        "channel_names": {"0": "FLAIR", "1": "T1w"}, "file_ending": ".nii.gz", "numTraining": 3,
        "labels": {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
        "regions_class_order": [1, 2, 3],
    })
    found = items(Params(root=str(tmp_path), layout="nnunet", anatomy="brain"))
    assert errors(found) == {
        "imagesTr/x_002_0001": "FILE_MISSING", "imagesTr/x_003_0000.nii.gz": "FILE_MISSING",
        "imagesTr/x_003_0001.nii.gz": "FILE_MISSING", "imagesTr/nonsense.nii.gz": "NOT_LISTED",
        "labelsTr/x_777.nii.gz": "NOT_LISTED",
    }
    one, two = (found[f"imagesTr/x_001_000{n}.nii.gz"] for n in (0, 1))
    assert one.patient == two.patient == "imagesTr/x_001" and one.facts["modality"] == "MR"
    assert [(label.name, label.value, label.origin) for label in two.labels] == [
        ("split", "train", "folder:imagesTr"), ("sequence", "T1w", "dataset.json:channel_names"),
    ]
    assert {label.value for label in found["imagesTs/x_9_0000.nii.gz"].labels} == {"test", "FLAIR"}
    row, (sample,) = cut_up(one, slices="largest:1")
    assert regions(sample) == {"enhancing": 1, "whole tumor": 6, "core": 4} and row["geometry_flags"] == []
    row, (sample,) = cut_up(found["imagesTr/x_002_0000.nii.gz"])
    assert regions(sample) == {} and row["geometry_flags"] == [], "an empty label map is no error"


@pytest.mark.parametrize("described", [{}, {"channel_names": {"0": "CT"}}, {"channel_names": 3, "labels": {}}])
def test_nnunet_needs_its_dataset_json(tmp_path: Path, described: dict[str, Any]) -> None:
    write(tmp_path, **{"imagesTr__a_0000.nii.gz": make()})
    task(tmp_path, described)
    with pytest.raises(ConfigError, match=r"dataset\.json cannot be used"):
        items(Params(root=str(tmp_path), layout="nnunet"))


def bids(root: Path) -> None:
    anat, out = "sub-01__ses-1__anat__sub-01_ses-1", "derivatives__fs__sub-01__ses-1__anat__sub-01_ses-1"
    volumes = (
        f"{anat}_T1w", f"{anat}_T2w", "sub-01__ses-1__func__sub-01_ses-1_task-rest_bold", "sub-02__ct__sub-02_ct",
        f"{anat}_label-lesion_mask", f"{out}_desc-brain_mask", f"{out}_dseg", f"{out}_space-MNI_mask",
        f"{out}_acq-x_mask", f"{out}_probseg", "sub-02__anat__oddly named", "extra__atlas", "sub-03__anat__sub-04_T1w",
    )
    for n, name in enumerate(volumes):
        write(root, **{f"{name}.nii.gz": make((voxels() % (n + 2)).astype(np.uint8))})
    said = {
        "Modality": "MR", "MagneticFieldStrength": 3, "Manufacturer": "Siemens", "InstitutionName": "Doe",
        "DeviceSerialNumber": "35131", "AcquisitionTime": "13:52:52", "SeriesDescription": "Jane^Doe",
        "ScanningSequence": "Doe^Jane was scanned here", "BodyPartExamined": "BRAIN",
    }
    for name, stated in {
        "T1w": {"EchoTime": 0.5, "FlipAngle": 9}, "sub-01__ses-1__anat__sub-01_ses-1_T1w": {**said, "EchoTime": 0.03},
        f"{out}_desc-brain_mask": {"Sources": ["bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"]},
        f"{out}_dseg": {"Sources": "bids::sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"},
        f"{anat}_label-lesion_mask": {"RawSources": "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz"},
    }.items():
        write(root, **{f"{name}.json": json.dumps(stated).encode()})
    write(root, **{"dseg.tsv": b"index\tname\tabbreviation\n1\tgrey matter\tGM\n", "participants.tsv": b"x\n",
                   "sub-02__ct__sub-02_ct.json": b"{broken"})


def test_bids_with_side_cars_and_derivatives(tmp_path: Path) -> None:
    bids(tmp_path)
    found = items(Params(root=str(tmp_path), layout="bids", derivatives=True))
    t1, t2 = (found[f"sub-01/ses-1/anat/sub-01_ses-1_{name}.nii.gz"] for name in ("T1w", "T2w"))
    assert set(t1.files) == {"main", "mask:brain", "labels"} and set(t2.files) == {"main", "mask:lesion"}
    assert t1.facts["acquisition"] == {
        "EchoTime": 0.03, "FlipAngle": 9, "MagneticFieldStrength": 3, "Manufacturer": "siemens",
    }
    assert (t1.facts["modality"], t1.facts["anatomy"], t1.facts["label_table"]) == ("MR", "brain", {"1": "grey matter"})
    assert t1.patient == t2.patient == "sub-01" and [label.value for label in t1.labels] == ["T1w"]
    assert errors(found) == {
        "sub-02/ct/sub-02_ct.nii.gz": "ENTRY_UNREADABLE", "sub-02/anat/oddly named.nii.gz": "NOT_LISTED",
        "extra/atlas.nii.gz": "NOT_LISTED", "sub-03/anat/sub-04_T1w.nii.gz": "NOT_LISTED",
        **{f"derivatives/fs/sub-01/ses-1/anat/sub-01_ses-1_{name}.nii.gz": "NOT_LISTED"
           for name in ("space-MNI_mask", "acq-x_mask", "probseg")},
    }
    row, _ = cut_up(t1)
    assert json.loads(row["header"])["EchoTime"] == 0.03 and not any(word in str(row) for word in ("Doe", "35131"))


def test_bids_masks_only_when_asked_and_only_where_they_belong(tmp_path: Path) -> None:
    bids(tmp_path)
    found = items(Params(root=str(tmp_path), layout="bids"))
    assert set(found["sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"].files) == {"main"}
    assert errors(found)["derivatives/fs/sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz"] == "NOT_LISTED"
    (tmp_path / "derivatives/fs/sub-01/ses-1/anat/sub-01_ses-1_dseg.json").unlink()
    found = items(Params(root=str(tmp_path), layout="bids", derivatives=True))
    assert errors(found)["derivatives/fs/sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz"] == "MASK_AMBIGUOUS"
    (tmp_path / "plain").mkdir()
    write(tmp_path / "plain", **{"a.nii": make()})
    with pytest.raises(ConfigError, match="sub-LABEL"):
        items(Params(root=str(tmp_path / "plain"), layout="bids"))


def test_totalsegmentator_folders(tmp_path: Path) -> None:
    for case in ("s0000", "s0001"):
        for n, name in enumerate(("ct", "segmentations__liver", "segmentations__kidney_cyst_left")):
            write(tmp_path, **{f"{case}__{name}.nii.gz": make((voxels() + n).astype(np.int16))})
    write(tmp_path, **{"s0002__mri.nii.gz": make(), "s0002__other.nii.gz": make(voxels() + 3)})
    found = items(Params(root=str(tmp_path), layout="totalsegmentator"))
    assert set(found["s0000/ct.nii.gz"].files) == {"main", "mask:liver", "mask:kidney_cyst_left"}
    assert {name: item.patient for name, item in found.items() if item.error is None} == {
        "s0000/ct.nii.gz": "s0000", "s0001/ct.nii.gz": "s0001", "s0002/mri.nii.gz": "s0002",
    }
    assert found["s0002/mri.nii.gz"].facts["modality"] == "MR" and errors(found) == {"s0002/other.nii.gz": "NOT_LISTED"}
    _, (sample,) = cut_up(found["s0001/ct.nii.gz"])
    assert {r.label: r.role for r in sample.regions} == {"liver": "organ", "kidney_cyst_left": "lesion"}


def test_pairs_and_other_formats_in_a_folder(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(voxels(), RAS), tmp_path / "a.img")
    nib.save(nib.Nifti1Pair((voxels() > 0).astype(np.uint8), RAS), tmp_path / "a_seg.img")
    nib.save(nib.freesurfer.mghformat.MGHImage(voxels(), RAS), tmp_path / "b.mgz")
    nib.save(nib.Nifti1Pair(voxels(), RAS), tmp_path / "c.img")
    (tmp_path / "c.hdr").unlink()
    params = Params(root=str(tmp_path), include=("?.*",), labels="{stem}_seg.img", modality="MR")
    found = items(params)
    assert errors(found) == {"c.img": "FILE_MISSING"} and set(found) == {"a.img", "b.mgz", "c.img"}
    row, (sample,) = cut_up(found["a.img"], slices="largest:1")
    assert len(row["sha256"]) == 2 and regions(sample).keys() == {"label 1"}
    assert cut_up(found["b.mgz"])[0]["orientation"] == "RAS"
    before = {i.id: sorted(i.hashes.items()) for i in found.values()}
    nib.save(nib.Nifti1Pair(voxels(), RAS * 2), tmp_path / "a.img")
    assert sorted(items(params)["a.img"].hashes.items()) != before["a.img"], "the header counts"


@pytest.mark.parametrize("name, text", [
    ("a.csv", "Label Value,Name\n1,liver\n2,spleen\n"), ("a.tsv", "index\tname\n1\tliver\n2\tspleen\n"),
    ("a.csv", "name;id\nliver;1\nspleen;2\n"), ("a.csv", "value,label\n1,liver\n2,spleen"),
    ("itksnap.txt", '# ITK-SnAP\n    1  255    0    0        1  1  1    "liver"\n 2 0 255 0 0.5 1 1 "spleen"\n'),
    ("LUT.txt", "#No. Label Name: R G B A\n1   liver   70 130 180 0\n2 spleen 1 2 3 0\n"),
    ("a.json", '{"1": "liver", "2": "spleen"}'), ("a.json", '{"labels": {"liver": 1, "spleen": 2}}'),
])
def test_tables_of_labels(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_labels(tmp_path / name) == {"label_table": {"1": "liver", "2": "spleen"}}
    write(tmp_path, **{"v.nii": make(), "v_seg.nii": make((voxels() > 0).astype(np.uint8))})
    params = Params(root=str(tmp_path), include=("v.nii",), labels="{stem}_seg.nii", label_table=name)
    _, (sample,) = cut_up(items(params)["v.nii"], slices="largest:1")
    assert set(regions(sample)) == {"liver"}


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "value,name\none,liver\n", "just words"])
def test_a_table_that_names_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path, **{"v.nii": make(), "t.csv": text.encode()})
    with pytest.raises(ConfigError, match=r"t\.csv"):
        items(Params(root=str(tmp_path), label_table="t.csv"))
    with pytest.raises(ConfigError, match="cannot be read"):
        items(Params(root=str(tmp_path), label_table="gone.csv"))


def test_real_bids_and_real_label_names(sample_data: Path) -> None:
    found = items(Params(root=str(sample_data / "nifti/bids_like"), layout="bids"))
    assert len(found) == 3 and errors(found) == {}
    for item in found.values():
        assert item.facts["modality"] == "MR" and item.facts["acquisition"]["MagneticFieldStrength"] == 3
        assert "USC" not in str(item.facts) and not [m for m in decode([item], IngestParams(), lambda k, n: n)
                                                     if isinstance(m, Refused)]
    params = Params(root=str(sample_data / "nifti/totalseg_ct_msd"), include=("imagesTr/*",),
                    labels="labelsTr/{stem}.nii.gz", modality="CT")
    _, samples = cut_up(items(params)["imagesTr/example_ct.nii.gz"], slices="largest:1")
    assert {"liver", "spleen"} <= set(regions(samples[0])), "named by the header extension alone"
