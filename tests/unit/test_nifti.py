"""NIfTI files: listed, read, opened, placed on one grid; bad ones cost themselves only."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from catalog.items import Item, Partition
from catalog.schema import LAYERS
from connectors.nifti import Params, list_partitions, read
from infra.errors import ConfigError, Dropped, Terminal, Transient
from infra.fileindex import FileIndex
from infra.keys import pseudonym, sha256
from transforms.decoded import Decoded, IngestParams, Refused, Sample, Volume
from transforms.decoders.nifti import decode, open_scan
from transforms.niftifile import read_nifti

SHAPE = (8, 6, 5)
RAS = np.diag([2.0, 2.0, 3.0, 1.0])
ONE = IngestParams(slices="middle")


def hide(kind: str, name: str) -> str:
    return pseudonym(b"secret", kind, name)


def voxels(dtype: Any = np.int16) -> Any:
    return (np.arange(np.prod(SHAPE)).reshape(SHAPE) - 100).astype(dtype)


def make(
    values: Any = None, affine: Any = RAS, change: Callable[[Any], object] | None = None, kind: Any = nib.Nifti1Image,
    packed: bool = True,
) -> bytes:
    """A NIfTI file; `change` may edit the header."""
    image = kind(voxels() if values is None else values, affine)
    raw = bytearray(image.to_bytes())
    if change:
        size = image.header.template_dtype.itemsize
        header = type(image.header)(bytes(raw[:size]), check=False)
        change(header)
        raw[:size] = header.binaryblock
    return gzip.compress(bytes(raw), mtime=0) if packed else bytes(raw)


def item(main: bytes, **other: Any) -> Item:
    files = {"main": main, **{role.replace("__", ":"): data for role, data in other.items() if isinstance(data, bytes)}}
    facts = {"modality": "CT", **other.get("facts", {})}
    return Item(other.get("id", "a.nii.gz"), "nifti", "a", files, patient=other.get("patient"), facts=facts)


def decoded(*items: Item, params: IngestParams = ONE) -> list[Decoded]:
    return list(decode(items, params, hide))


def only(made: list[Decoded]) -> tuple[dict[str, Any], list[Sample]]:
    volume, *samples = made
    assert isinstance(volume, Volume) and all(isinstance(s, Sample) for s in samples)
    LAYERS["volumes"].table([{**volume.row, "source": "x"}])
    return dict(volume.row), [s for s in samples if isinstance(s, Sample)]


def code(data: bytes) -> str:
    (made,) = decoded(item(data))
    assert isinstance(made, Refused) and made.item == "a.nii.gz"
    return made.error.code


def test_a_volume_and_its_slices() -> None:
    main, labels = make(), make(np.where(voxels() > 0, 3, 0).astype(np.uint8))
    facts = {"label_table": {"3": "liver"}, "anatomy": "abdomen"}
    row, (sample,) = only(decoded(item(main, labels=labels, facts=facts)))
    assert (row["shape"], row["spacing"], row["orientation"]) == ([8, 6, 5], [2.0, 2.0, 3.0], "RAS")
    assert row["affine"] == RAS.ravel().tolist() and row["sha256"] == [sha256(main)] and row["geometry_flags"] == []
    assert row["group_id"] == hide("patient", "a.nii.gz") == sample.group
    assert sample.locator == "axial:2:abdomen" and sample.content == (sha256(main),)
    assert sample.columns["volume_id"] == row["volume_id"] and sample.columns["modality"] == "CT"
    assert [(r.label, r.role) for r in sample.regions] == [("liver", "organ")]
    # RAS to the radiological view: columns from the last x (right ... to left), rows from the last y (anterior first)
    expected = voxels()[::-1, ::-1, sample.columns["slice_index"]].T > 0
    assert np.array_equal(sample.regions[0].mask, expected)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [">i2", "<i2", "u1", "i4", "f4", "f8", "i8", "u2"])
def test_versions_byte_orders_and_datatypes_read_the_same(kind: Any, packed: bool, dtype: str) -> None:
    values = voxels(np.int16) + 100
    header = kind.header_class(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    data = kind(values.astype(dtype), RAS, header).to_bytes()
    opened = read_nifti(gzip.compress(data) if packed else data)
    assert np.array_equal(opened.values()[0], values) and opened.values()[0].dtype.isnative
    assert opened.affine is not None and np.allclose(opened.affine, RAS)


def test_slope_and_intercept_are_applied_exactly_once() -> None:
    def header(h: Any) -> None:
        h["scl_slope"], h["scl_inter"] = 2, -1024

    row, _ = only(decoded(item(make(change=header))))
    assert row["rescale_applied"] is True
    assert np.array_equal(open_scan([make(change=header)]).values, voxels() * 2.0 - 1024)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_a_slope_of_nothing_is_none(slope: float) -> None:
    def header(h: Any) -> None:
        h["scl_slope"], h["scl_inter"] = slope, 7

    row, _ = only(decoded(item(make(change=header))))
    assert row["rescale_applied"] is None and np.array_equal(open_scan([make(change=header)]).values, voxels())


def test_ct_without_its_intercept_gets_no_hounsfield_window() -> None:
    row, (sample,) = only(decoded(item(make(voxels() * 0 + 1060))))
    assert row["geometry_flags"] == ["not_hounsfield"] and row["rescale_applied"] is False
    assert sample.locator.endswith(":percentile") and sample.columns["modality"] == "CT"


def test_values_that_are_no_numbers_become_the_least_and_are_counted() -> None:
    values = voxels(np.float32)
    values[0, 0, 0], values[1, 0, 0], values[2, 0, 0] = np.nan, np.inf, -np.inf
    row, _ = only(decoded(item(make(values))))
    assert json.loads(row["header"])["non_finite"] == 3
    least = values[np.isfinite(values)].min()
    assert open_scan([make(values)]).values[:3, 0, 0].tolist() == [least] * 3
    assert code(make(np.full(SHAPE, np.nan, np.float32))) == "NO_FINITE_VALUES"


def edit(**fields: Any) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        for name, value in fields.items():
            header[name] = value

    return change


def test_files_that_cannot_be_used_say_why() -> None:
    plain = make(packed=False)
    assert code(b"") == code(b"not a file") == code(gzip.compress(b"hello")) == "NOT_NIFTI"
    assert code(plain[:300]) == code(plain[:-1]) == "NIFTI_TRUNCATED"
    assert code(make()[:-5]) == code(make()[:200]) == "NIFTI_TRUNCATED", "even where all voxels are there"
    broken = bytearray(make())
    broken[len(broken) // 2] ^= 0xFF
    assert code(bytes(broken)) in ("NIFTI_CORRUPT", "NIFTI_TRUNCATED")
    for offset in (0, 348, 352.5, np.nan, np.inf):
        assert code(make(change=edit(vox_offset=offset))) == "NIFTI_CORRUPT"
    assert code(make(change=edit(vox_offset=1000))) == "NIFTI_TRUNCATED"
    assert code(make(change=edit(datatype=77))) == "NIFTI_CORRUPT"
    assert code(make(change=edit(scl_slope=1, scl_inter=np.inf))) == "NIFTI_CORRUPT"
    assert code(make(change=edit(dim=[3, 8, -6, 5, 1, 1, 1, 1]))) == "NIFTI_CORRUPT"
    assert code(make(change=edit(dim=[99, 8, 6, 5, 1, 1, 1, 1]))) == "NIFTI_CORRUPT"
    assert code(make(np.zeros((4, 4, 4, 1, 3), np.int16))) == "UNSUPPORTED_SHAPE"
    assert code(make(np.zeros(SHAPE, np.complex64))) == "UNSUPPORTED_DATATYPE"
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert code(make(rgb)) == "UNSUPPORTED_DATATYPE"


def test_a_bomb_is_not_inflated() -> None:
    plain = make(packed=False)
    assert code(gzip.compress(plain + bytes(64 << 20))) == "NIFTI_BOMB"
    assert code(make(change=edit(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]))) == "NIFTI_BOMB"
    two = gzip.compress(plain[:500]) + gzip.compress(plain[500:])
    assert np.array_equal(read_nifti(two).values()[0], voxels()), "members one after the other are one stream"


def test_errors_and_rows_hold_no_free_text() -> None:
    free = dict.fromkeys(("descrip", "aux_file", "intent_name", "db_name"), b"Doe^Jane")
    named, broken = make(change=edit(**free)), make(change=edit(**free, vox_offset=0))
    made = decoded(item(named, patient="Jane"), item(broken))
    assert [type(m) for m in made] == [Volume, Sample, Refused]
    assert "Doe" not in repr(made) and "Jane" not in repr(made)


def test_geometry_rule() -> None:
    both, flipped = RAS.copy(), RAS @ np.diag([-1, 1, 1, 1])
    both[:3, 3] = 5

    def forms(s: Any, q: Any, codes: tuple[int, int] = (2, 1), **other: Any) -> bytes:
        def change(h: Any) -> None:
            h.set_qform(RAS if q is None else q, codes[1])
            h.set_sform(s, codes[0])
            edit(**other)(h)

        return make(change=change)

    assert only(decoded(item(forms(RAS, RAS))))[0]["geometry_flags"] == []
    row, _ = only(decoded(item(forms(both, RAS))))
    assert row["geometry_flags"] == ["sform_qform_differ"] and row["affine"] == both.ravel().tolist()
    row, _ = only(decoded(item(forms(RAS, flipped, (0, 1)))))
    assert row["orientation"] == "LAS", "only the qform counts where only its code is set"
    assert code(forms(RAS, flipped)) == "GEOMETRY_AMBIGUOUS"
    flat = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for bad in (np.zeros((4, 4)), np.full((4, 4), np.nan), flat):
        assert code(forms(bad, RAS)) == "GEOMETRY_INVALID"
    assert code(forms(RAS, RAS, (0, 1), pixdim=[1, 0, 2, 3, 0, 0, 0, 0])) == "GEOMETRY_INVALID", "0 mm is not 1 mm"
    assert only(decoded(item(forms(RAS, RAS, quatern_b=np.nan))))[0]["geometry_flags"] == ["qform_invalid"]
    row, (sample,) = only(decoded(item(forms(RAS, RAS, (0, 0)))))
    assert (row["affine"], row["orientation"], row["geometry_flags"]) == (None, None, ["no_orientation"])
    assert row["spacing"] == [2.0, 2.0, 3.0] and sample.columns["pixel_spacing"] == [2.0, 2.0]
    assert sample.locator == "native:2:soft_tissue" and sample.columns["view"] is None
    row, _ = only(decoded(item(forms(RAS, RAS, xyzt_units=3))))
    assert row["spacing"] == pytest.approx([0.002, 0.002, 0.003]), "the header says microns"


def test_a_flipped_file_gives_the_same_pictures() -> None:
    flipped = make(voxels()[::-1].copy(), RAS @ np.array([[-1, 0, 0, 7], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    every = IngestParams(slices="all", planes=("axial", "coronal", "sagittal"))
    (row, ours), (other, theirs) = only(decoded(item(make()), params=every)), only(decoded(item(flipped), params=every))
    assert (row["orientation"], other["orientation"]) == ("RAS", "LAS") and row["volume_id"] != other["volume_id"]
    assert [s.pixels.tolist() for s in ours] == [s.pixels.tolist() for s in theirs]


def test_every_chosen_frame_is_a_volume() -> None:
    values = np.stack([voxels() + 10 * t for t in range(9)], axis=-1)
    labels = (np.arange(9) * np.ones((*SHAPE, 1))).astype(np.uint8)
    facts = {"modality": "MR", "channels": [f"echo {t}" for t in range(9)]}
    whole = item(make(values), labels=make(labels), facts=facts)
    made = decoded(whole, params=IngestParams(slices="middle", frames=3))
    samples = [m for m in made if isinstance(m, Sample)]
    assert [s.locator for s in samples] == [f"t:{t}/axial:2:percentile" for t in (1, 4, 7)]
    assert [[r.label for r in s.regions] for s in samples] == [["label 1"], ["label 4"], ["label 7"]]
    assert [(label.name, label.value) for label in samples[0].labels] == [("sequence", "echo 1")]
    rows = [m.row for m in made if isinstance(m, Volume)]
    assert len({row["volume_id"] for row in rows}) == 3
    places = [json.loads(row["header"]) for row in rows]
    assert [(place["frame"], place["frames"]) for place in places] == [(1, 9), (4, 9), (7, 9)]
    assert np.array_equal(open_scan([make(values)], 4).values, values[..., 4])


def test_a_frame_without_values_costs_itself() -> None:
    values = np.stack([voxels(np.float32), np.full(SHAPE, np.nan, np.float32)], axis=-1)
    made = decoded(item(make(values)))
    assert [m.locator for m in made if isinstance(m, Sample)] == ["t:0/axial:2:soft_tissue"]


def test_labels_on_another_grid() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2, 3, 2] = 1

    def flags_and_masks(labels: Any, affine: Any = RAS) -> tuple[list[str], list[Any]]:
        row, (sample,) = only(decoded(item(make(), labels=make(labels, affine))))
        return row["geometry_flags"], [np.argwhere(r.mask).tolist() for r in sample.regions]

    _, there = flags_and_masks(labels)
    assert there == [[[2, 5]]]
    nudged = RAS.copy()
    nudged[0, 3] = 1e-4
    assert flags_and_masks(labels, nudged) == ([], there)
    wide = np.pad(labels, 3)
    shifted = RAS.copy()
    shifted[:3, 3] = RAS[:3, :3] @ [-3, -3, -3]
    assert flags_and_masks(wide, shifted) == (["labels_resampled"], there)
    turned = shifted @ np.array([[-1, 0, 0, wide.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert flags_and_masks(wide[::-1].copy(), turned) == (["labels_resampled"], there)
    assert flags_and_masks(labels[:, :, :3]) == (["labels_grid_mismatch"], []), "does not cover the image"
    assert flags_and_masks(labels, shifted) == (["labels_grid_mismatch"], [])
    assert flags_and_masks(np.stack([labels] * 2, -1)) == (["labels_grid_mismatch"], [])
    assert flags_and_masks(labels + np.float32(0.5)) == (["labels_not_integers"], [])
    assert flags_and_masks(labels * 0) == ([], []), "an empty label map is no error"


def test_masks_may_overlap_and_have_a_threshold() -> None:
    tissue = np.full(SHAPE, 200, np.uint8)
    facts = {"mask_threshold": 127}
    grey, white = make(tissue), make(np.where(voxels() > 0, 128, 127).astype(np.uint8))
    elsewhere = make(np.ones((2, 2, 2), np.uint8))
    whole = item(make(), mask__grey=grey, mask__white=white, mask__tumour=elsewhere, facts=facts)
    row, (sample,) = only(decoded(whole))
    assert [(r.label, int(r.mask.sum())) for r in sample.regions if r.mask is not None] == [
        ("grey", 48), ("white", int((voxels()[:, :, 2] > 0).sum())),
    ]
    assert row["geometry_flags"] == ["labels_grid_mismatch"] and json.loads(row["header"])["left_out"] == ["mask:tumour"]


def test_a_bad_file_costs_itself_only() -> None:
    made = decoded(
        item(make(), id="1"), item(make()[:99], id="2"), item(make(), labels=b"x", id="3"), item(make(), id="4")
    )
    refused = {m.item: m.error for m in made if isinstance(m, Refused)}
    assert {name: error.code for name, error in refused.items()} == {"2": "NIFTI_TRUNCATED", "3": "NOT_NIFTI"}
    assert refused["3"].message.startswith("labels: ")
    assert [m.items for m in made if isinstance(m, Volume)] == [("1",), ("4",)]


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
    (b'{"training": ["a.nii"], "labels": {"whole": [1, 2]}}', "label_names"),
])
def test_a_dataset_json_that_cannot_be_used(tmp_path: Path, described: bytes, word: str) -> None:
    write(tmp_path, **{"a.nii": make(), "dataset.json": described})
    with pytest.raises(ConfigError, match=word):
        parts(Params(root=str(tmp_path), layout="msd"))
    with pytest.raises(ConfigError, match=r"no \.nii"):
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
    with pytest.raises(ValueError, match="group|regular expression"):
        Params(root=".", patient_pattern=pattern)


def test_real_ct_the_liver_is_on_the_left_of_the_picture(sample_data: Path) -> None:
    params = Params(root=str(sample_data / "nifti/totalseg_ct_msd"), layout="msd", anatomy="abdomen")
    found = [i for partition in parts(params) for i in read(partition, params)]
    made = list(decode(found, IngestParams(), hide))
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
    volume, *samples = decode([one], IngestParams(slices="largest:2"), hide)
    assert isinstance(volume, Volume) and len(samples) == 2
    assert volume.row["geometry_flags"] == ["labels_resampled"], "the heart's mask has another grid"
    assert all("heart" in {r.label for r in s.regions} for s in samples if isinstance(s, Sample))
