"""Volume files other than single NIfTI files: pairs, NRRD, MGH; label tables in headers; and an independent reader."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from make_nifti import RAS, SHAPE, make, voxels
from nibabel.freesurfer.mghformat import MGHImage

from infra.errors import Terminal
from transforms.scans.niftifile import read_nifti
from transforms.scans.openvolume import open_volume
from transforms.scans.volumefile import LPS_TO_RAS, VolumeFile

OBLIQUE = np.array([[-1.9, 0.3, 0.1, 10.0], [0.3, 2.1, 0.0, -20.0], [0.1, 0.0, 3.0, 30.0], [0, 0, 0, 1]])


def sitk_file(path: Path, values: Any, affine: Any) -> bytes:
    """Written by SimpleITK, which speaks LPS."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(values.T)
    lps = LPS_TO_RAS @ affine
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(steps.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / steps).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=path.stem.endswith("packed"))
    return path.read_bytes()


def itk_grid(path: Path, path_1: Path) -> tuple[Any, Any]:
    """(x, y, z[, t]) values and affine in RAS+, as SimpleITK reads them."""
    import SimpleITK as sitk

    if nib.load(path).header.sizeof_hdr == 540:  # ITK does not know NIfTI-2: the same scan as NIfTI-1
        data = nib.load(path)
        path = path_1
        nib.save(nib.Nifti1Image(np.asarray(data.dataobj), data.affine), path)
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape([image.GetDimension()] * 2)[:3, :3]
    affine[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return sitk.GetArrayFromImage(image).T, LPS_TO_RAS @ affine


def code(data: bytes, header: bytes | None = None) -> str:
    with pytest.raises(Terminal) as met:
        open_volume(data, header)
    assert not any(word in met.value.message for word in ("Doe", "Jane"))
    return met.value.code


def same(opened: VolumeFile, values: Any, affine: Any) -> None:
    assert np.array_equal(opened.values()[0], values) and opened.affine is not None
    assert np.abs(opened.affine - affine).max() < 1e-5


RIGHT = np.array([[0.0, -2.0, 0.0, 5.0], [1.5, 0.0, 0.0, 6.0], [0.0, 0.0, 3.0, 7.0], [0, 0, 0, 1]])


@pytest.mark.parametrize("name", ["plain.nrrd", "packed.nrrd", "plain.nii", "packed.nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int32, np.float32, np.float64])
def test_what_simpleitk_writes(tmp_path: Path, name: str, dtype: Any) -> None:
    values = (voxels() + 100).astype(dtype)
    same(open_volume(sitk_file(tmp_path / name, values, RIGHT)), values, RIGHT)


def test_mgz_as_nibabel_writes_it() -> None:
    for values in (voxels(), voxels(np.int32), voxels(np.float32), voxels(np.uint8)):
        data = MGHImage(values, OBLIQUE).to_bytes()
        assert isinstance(data, bytes)
        for packed in (data, gzip.compress(data)):
            same(open_volume(packed), values, OBLIQUE)
    four = np.stack([voxels(), voxels() * 2], axis=-1)
    opened = open_volume(MGHImage(four, RAS).to_bytes())
    assert opened.frames == 2 and np.array_equal(opened.values(1)[0], voxels() * 2)


def test_mgz_that_cannot_be_used() -> None:
    data = bytearray(MGHImage(voxels(), RAS).to_bytes())
    for cut in (bytes(data[:100]), bytes(data[:300]), gzip.compress(bytes(data))[:-20]):
        assert code(cut) == "MGH_TRUNCATED"
    assert code(gzip.compress(bytes(data) + bytes(64 << 20))) == "MGH_BOMB"
    data[4:16] = struct.pack(">3i", 30000, 30000, 30000)
    assert code(bytes(data)) == "MGH_BOMB"
    data[4:16] = struct.pack(">3i", 8, -6, 5)
    assert code(bytes(data)) == "MGH_CORRUPT"
    data[4:16], data[20:24] = struct.pack(">3i", *SHAPE), struct.pack(">i", 5)
    assert code(bytes(data)) == "UNSUPPORTED_DATATYPE"
    nowhere = bytearray(MGHImage(voxels(), RAS).to_bytes())
    nowhere[28:30] = b"\0\0"
    assert open_volume(bytes(nowhere)).flags == ("no_orientation",)
    nowhere[28:30], nowhere[30:42] = b"\0\1", struct.pack(">3f", 0, 0, 0)
    assert code(bytes(nowhere)) == "GEOMETRY_INVALID"
    nowhere[30:78] = struct.pack(">12f", *[3e38] * 12)
    assert code(bytes(nowhere)) == "GEOMETRY_INVALID"


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("packed", [True, False])
def test_pairs(kind: Any, packed: bool, tmp_path: Path) -> None:
    nib.save(kind(voxels(), OBLIQUE), tmp_path / ("a.img.gz" if packed else "a.img"))
    image, header = (next(tmp_path.glob(glob)).read_bytes() for glob in ("a.img*", "a.hdr*"))
    same(open_volume(image, header), voxels(), OBLIQUE)
    assert code(image[:50], header) == "NIFTI_TRUNCATED" and code(image, b"Jane") == "NOT_NIFTI"


def test_analyze_says_nothing_of_left_and_right(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(voxels(), RAS), tmp_path / "a.img")
    assert code((tmp_path / "a.img").read_bytes(), (tmp_path / "a.hdr").read_bytes()) == "NOT_NIFTI"


HEADER = {
    "type": "int16", "dimension": "3", "space": "left-posterior-superior", "sizes": "8 6 5",
    "space directions": "(2,0,0) (0,2,0) (0,0,3)", "kinds": "domain domain domain", "endian": "little",
    "encoding": "raw", "space origin": "(1,2,3)",
}


def nrrd(values: Any = None, more: str = "", **fields: str | None) -> bytes:
    known = {**HEADER, **{name.replace("_", " "): value for name, value in fields.items()}}
    lines = [f"{name}: {value}" for name, value in known.items() if value is not None]
    data = (voxels() if values is None else values).tobytes(order="F")
    return "\n".join(["NRRD0004", "# Jane Doe", *lines, *([more] if more else [])]).encode() + b"\n\n" + data


def test_nrrd_spaces_frames_and_segments() -> None:
    opened = open_volume(nrrd(more="Segment0_ID:=s\nSegment0_Name:=liver\nSegment0_LabelValue:=2\nSegment0_Layer:=0"))
    assert opened.label_table == {2: "liver"}
    assert opened.affine is not None and opened.affine[:3].tolist() == [[-2, 0, 0, -1], [0, -2, 0, -2], [0, 0, 3, 3]]
    ras = open_volume(nrrd(space="RAS")).affine
    assert ras is not None and ras[:3, 3].tolist() == [1, 2, 3]
    assert open_volume(nrrd(space="scanner-xyz")).flags == ("no_orientation",)
    bare = open_volume(nrrd(space=None, space_directions=None, space_origin=None, spacings="1 2 3"))
    assert (bare.affine, bare.spacing, bare.flags) == (None, (1.0, 2.0, 3.0), ("no_orientation",))
    metres = open_volume(nrrd(space_units='"cm" "cm" "cm"'))
    assert metres.spacing == (20.0, 20.0, 30.0)
    first = np.stack([voxels(), voxels() * 2])
    four = open_volume(nrrd(
        first, dimension="4", sizes="2 8 6 5", kinds="list domain domain domain",
        space_directions="none (2,0,0) (0,2,0) (0,0,3)",
    ))
    assert four.frames == 2 and np.array_equal(four.values(1)[0], voxels() * 2)
    big = open_volume(nrrd(voxels().astype(">i2"), endian="big"))
    assert np.array_equal(big.values()[0], voxels())


def test_nrrd_that_cannot_be_used() -> None:
    assert code(b"NRRD0004\ntype: short") == code(nrrd()[:-1]) == "NRRD_TRUNCATED"
    assert code(nrrd() + bytes(2 << 20)) == code(nrrd(sizes="8 6")) == code(nrrd(sizes="8 six 5")) == "NRRD_CORRUPT"
    assert code(nrrd(sizes="30000 30000 30000")) == "NRRD_BOMB"
    head, _, data = nrrd(encoding="gzip").partition(b"\n\n")
    assert code(head + b"\n\n" + gzip.compress(data + bytes(64 << 20))) == "NRRD_BOMB"
    assert code(head + b"\n\n" + gzip.compress(data)[:-9]) == "NRRD_TRUNCATED"
    assert np.array_equal(open_volume(head + b"\n\n" + gzip.compress(data)).values()[0], voxels())
    assert code(nrrd(type="block")) == code(nrrd(kinds="RGB-color domain domain")) == "UNSUPPORTED_DATATYPE"
    for other in ({"encoding": "ascii"}, {"data_file": "/etc/passwd"}, {"byte_skip": "-1"}):
        assert code(nrrd(**other)) == "UNSUPPORTED_ENCODING"
    assert code(nrrd(space_directions="(0,0,0) (0,2,0) (0,0,3)")) == "GEOMETRY_INVALID"
    assert code(nrrd(space_directions="(nan,0,0) (0,2,0) (0,0,3)")) == "GEOMETRY_INVALID"
    assert code(nrrd(space_directions="(9e307,0,0) (0,2,0) (0,0,3)", space_units='"m" "m" "m"')) == "GEOMETRY_INVALID"
    assert code(nrrd(space_directions="(2,0,0) (0,2,0)")) == code(nrrd(dimension="three")) == "NRRD_CORRUPT"
    assert code(nrrd(dimension="2", sizes="8 30", kinds="domain domain", space_directions="(1,0,0) (0,1,0)")) == \
        "UNSUPPORTED_SHAPE"


CARET = b'<CaretExtension><VolumeInformation Index="0"><LabelTable><Label Key="1" Red="0"><![CDATA[spleen]]></Label>' \
    b'<Label Key="2">a name far too long to be one, with a sentence in it that says who was scanned, and when, and ' \
    b'why, and by whom</Label></LabelTable></VolumeInformation></CaretExtension>'


@pytest.mark.parametrize("content, table", [
    (CARET, {1: "spleen"}), (b'{"1": "liver", "2": "spleen"}', {1: "liver", 2: "spleen"}),
    (b'{"labels": {"3": "aorta"}, "by": "Jane"}', {3: "aorta"}), (b"Jane Doe, 1970", {}), (b"{broken", {}),
    (CARET[:-30], {}), (b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><LabelTable>&x;</LabelTable>', {}),
])
def test_label_names_in_header_extensions(content: bytes, table: dict[int, str]) -> None:
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        image = kind(voxels(np.uint8), RAS)
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, content))
        assert read_nifti(image.to_bytes()).label_table == table
    assert read_nifti(make()).label_table == {}


def long(values: Any) -> bytes:
    data = nib.Nifti1Image(np.asarray(values, np.int64), RAS, dtype=np.int64).to_bytes()
    assert isinstance(data, bytes)
    return data


def test_long_integers_stay_exact() -> None:
    values = np.array([[[2**31 - 1, -(2**31), 16777217]]], np.int32)
    assert open_volume(make(values)).values()[0].tolist() == values.tolist()
    assert open_volume(long(values)).values()[0].dtype == np.int32
    beyond = open_volume(long([[[2**40]]])).values()[0]
    assert beyond.dtype == np.float32 and beyond[0, 0, 0] == 2**40


def test_every_nifti_of_the_sample_data_as_simpleitk_reads_it(sample_data: Path, tmp_path: Path) -> None:
    paths = sorted(p for p in sample_data.rglob("*.nii*") if p.is_file())
    assert paths
    for path in paths:
        opened = open_volume(path.read_bytes())
        values, affine = itk_grid(path, tmp_path / "one.nii")
        assert opened.affine is not None and opened.spacing is not None, path
        steps = np.linalg.norm(affine[:3, :3], axis=0)
        assert np.abs(np.array(opened.spacing) - steps).max() < 1e-4, path
        assert np.abs(opened.affine[:3, :3] / opened.spacing - affine[:3, :3] / steps).max() < 1e-4, path
        assert np.abs(opened.affine[:3, 3] - affine[:3, 3]).max() < 1e-3, path
        for frame in range(opened.frames):
            theirs = values[..., frame] if values.ndim == 4 else values
            assert np.array_equal(opened.values(frame)[0], theirs), path
