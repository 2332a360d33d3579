"""MeshNet: published layers run as they are, on the grid they were trained on, and labels come back to their places."""

import json
from pathlib import Path

import numpy as np
import pytest

from infra.errors import ConfigError, Terminal
from infra.weights import fetch
from transforms.experts import meshnet as expert
from transforms.experts.meshnet import CARDS, segment
from transforms.networks.grid import conform, crop_to, to_native

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("scipy")

from tfjslayers import activation, conv, write_model
from weightsfolder import named_so

from transforms.networks.meshnet import open_meshnet, read_layers

LAYERS = [conv("0", 4), activation("1"), conv("2", 4, dilation=2), activation("3", "relu"), conv("out", 3, size=1)]
TISSUES = ("background", "White Matter", "Grey Matter")


def turned(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def affine_of(zooms: tuple[float, float, float], degrees: float = 0) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = turned(degrees) @ np.diag(zooms)
    affine[:3, 3] = (-40, -50, -30)
    return affine


def flipped(volume: np.ndarray, affine: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The same volume in the same place, stored the other way round along an axis."""
    other = affine.copy()
    other[:3, axis] *= -1
    other[:3, 3] += affine[:3, axis] * (volume.shape[axis] - 1)
    return np.flip(volume, axis), other


# the grid


@pytest.mark.parametrize(
    ("zooms", "degrees"), [((1, 1, 1), 0), ((-2, 2, 3), 0), ((0.9, 1.1, 4), 0), ((1.5, 1.5, 1.5), 20)]
)
def test_labels_go_there_and_back(zooms, degrees):
    volume = np.zeros((40, 50, 20), np.float32)
    volume[10:25, 20:40, 5:15] = 1
    affine = affine_of(zooms, degrees)
    conformed, there = conform(volume, affine)
    assert conformed.shape == (256, 256, 256) and np.allclose(np.abs(there[:3, :3]).sum(axis=0), 1)
    assert conformed.sum() == pytest.approx(volume.sum() * np.prod(np.abs(zooms)), rel=0.02), "millimetres are kept"
    back = to_native((conformed >= 0.5).astype(np.uint8), there, volume.shape, affine)
    assert 2 * (back * volume).sum() / (back.sum() + volume.sum()) > 0.96


def test_the_grid_is_lia():
    volume = np.zeros((20, 30, 25), np.float32)
    volume[3, 26, 21] = 1  # RAS: right to left 3 of 20, to the front, to the head
    conformed, there = conform(volume, affine_of((2, 2, 2)))
    left, feet, face = np.argwhere(conformed == conformed.max())[0]
    assert left > 128 and feet < 128 and face > 128
    assert there @ (left, feet, face, 1) == pytest.approx(affine_of((2, 2, 2)) @ (3, 26, 21, 1), abs=0.51)


def test_a_longer_volume_gets_a_longer_grid_and_holes_are_filled():
    volume = np.full((10, 10, 100), 7, np.float32)
    volume[0, 0, 0] = np.nan
    conformed, _ = conform(volume, affine_of((4, 4, 4)))
    assert conformed.shape == (256, 400, 256) and np.isfinite(conformed).all()


@pytest.mark.parametrize(
    ("volume", "affine", "code"),
    [
        (np.zeros((4, 4)), np.eye(4), "VOLUME_NOT_3D"),
        (np.zeros((4, 4, 0)), np.eye(4), "VOLUME_NOT_3D"),
        (np.full((4, 4, 4), np.nan), np.eye(4), "VOLUME_EMPTY"),
        (np.zeros((4, 4, 4)), np.zeros((4, 4)), "AFFINE_UNUSABLE"),
        (np.zeros((4, 4, 4)), np.eye(3), "AFFINE_UNUSABLE"),
        (np.zeros((4, 4, 4)), np.diag([1e3, 1, 1, 1]), "VOLUME_TOO_LARGE"),
    ],
)
def test_what_is_no_volume_is_refused(volume, affine, code):
    with pytest.raises(Terminal) as refused:
        conform(volume, affine)
    assert refused.value.code == code


def test_the_box_of_a_mask():
    mask = np.zeros((20, 20, 20), bool)
    assert crop_to(mask, 2) == (slice(0, 20),) * 3
    mask[1, 10, 18] = True
    assert crop_to(mask, 3) == (slice(0, 5), slice(7, 14), slice(15, 20))


# the network


def test_the_graph_answers_as_the_layers(tmp_path):
    torch = pytest.importorskip("torch")
    weights = {name: torch.from_numpy(a) for name, a in write_model(tmp_path, TISSUES, LAYERS).items()}
    values = np.random.default_rng(1).random((9, 12, 11), np.float32)
    x = torch.from_numpy(values)[None, None]
    for name, dilation, after in (("0", 1, torch.nn.functional.elu), ("2", 2, torch.relu)):
        kernel = weights[f"{name}/kernel"].permute(4, 3, 0, 1, 2)
        x = after(torch.conv3d(x, kernel, weights[f"{name}/bias"], padding=dilation, dilation=dilation))
    logits = torch.conv3d(x, weights["out/kernel"].permute(4, 3, 0, 1, 2), weights["out/bias"])
    network = open_meshnet(tmp_path)
    assert np.abs(network.run(values[None, None]) - x.numpy()).max() < 1e-4
    assert (network.classify(values) == logits[0].argmax(0).numpy()).all()


def test_classes_are_told_slab_by_slab_as_at_once(tmp_path, monkeypatch):
    write_model(tmp_path, TISSUES, LAYERS)
    network, values = open_meshnet(tmp_path), np.random.default_rng(2).random((10, 10, 10), np.float32)
    at_once = network.classify(values)
    monkeypatch.setattr("transforms.networks.meshnet.SLAB", 77)
    assert (network.classify(values) == at_once).all() and len(np.unique(at_once)) > 1


@pytest.mark.parametrize(
    "layers",
    [
        [conv("0", 4), activation("1", "swish"), conv("out", 3, size=1)],
        [conv("0", 4, strides=[2, 2, 2]), conv("out", 3, size=1)],
        [conv("0", 4, padding="valid"), conv("out", 3, size=1)],
        [conv("0", 4), {"class_name": "Dense", "config": {"name": "d"}}, conv("out", 3, size=1)],
        [conv("0", 4), conv("out", 3)],
        [conv("out", 3, size=1)],
    ],
)
def test_layers_that_are_not_known_are_refused(tmp_path, layers):
    write_model(tmp_path, TISSUES, layers)
    with pytest.raises(ConfigError, match=r"model\.json"):
        read_layers(tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    write_model(tmp_path, TISSUES[:2], LAYERS)
    with pytest.raises(ConfigError, match="2 names for 3 classes"):
        open_meshnet(tmp_path)
    write_model(tmp_path, TISSUES, LAYERS, {"stray": np.zeros(3)})
    with pytest.raises(ConfigError, match="stray belongs to no layer"):
        open_meshnet(tmp_path)
    write_model(tmp_path, TISSUES, LAYERS)
    path = tmp_path / "group1-shard1of1.bin"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ConfigError, match="bytes of weights"):
        open_meshnet(tmp_path)
    model = json.loads((tmp_path / "model.json").read_text())
    model["weightsManifest"][0]["paths"] = ["../group1-shard1of1.bin"]
    (tmp_path / "model.json").write_text(json.dumps(model))
    with pytest.raises(ConfigError, match="no file"):
        open_meshnet(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no model of TensorFlow\.js"):
        open_meshnet(tmp_path)


# the expert


def test_the_cards_list_all_classes():
    assert [len(CARDS[model].classes) for model in ("tissue", "subcortical", "parcels")] == [2, 17, 103]
    for card in CARDS.values():
        assert card.ndim == 3 and len({c.label for c in card.classes}) == len(card.classes)
        for other in ({"modality": "CT"}, {"modality": "MR", "anatomy": "knee"}):
            assert "not at" in card.why_not(other)
    assert not hasattr(expert, "NAME") and not hasattr(expert, "find"), "a stage of images cannot call it"


def test_classes_of_the_published_names_are_known(sample_data):
    for model, file in (
        ("tissue", "model5_gw_ae/colormap3.json"), ("subcortical", "model30chan18cls/colormap.json"),
        ("parcels", "model21_104class/colormap.json"),
    ):
        path = sample_data / "weights" / "meshnet" / file
        if not path.exists():
            pytest.skip("no weights among the sample data")
        assert set(json.loads(path.read_text())["labels"][1:]) == {name for name, _ in expert._classes(model)}


def bright(level: float, classes: int) -> dict[str, np.ndarray]:
    """Weights of two 1x1x1 layers: class 1 from a brightness of `level` on."""
    into, bias = np.zeros((1, 1, 1, 2, classes)), np.full(classes, -9.0)
    into[..., 0, 1] = 1
    bias[0], bias[1] = level, 0
    signs = np.array([1, -1.0]).reshape(1, 1, 1, 1, 2)
    return {"0/kernel": signs, "0/bias": np.zeros(2), "out/kernel": into, "out/bias": bias}


@pytest.fixture
def sided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A "tissue" that is what is bright, and "parcels" that are left where it brightens to the left, right where to the
    right."""
    two = [conv("0", 2, size=1), activation("1", "relu"), conv("out", 3, size=1)]
    write_model(tmp_path / "meshnet-tissue", TISSUES, two, bright(0.3, 3))
    slope = np.zeros((3, 3, 3, 1, 2))
    slope[0, 1, 1, 0], slope[2, 1, 1, 0] = (-1, 1), (1, -1)
    head = np.array([[0, 1, 0], [0, 0, 1.0]]).reshape(1, 1, 1, 2, 3)
    write_model(
        tmp_path / "meshnet-parcels", ("BG", "Left-Putamen", "Right-Putamen"),
        [conv("0", 2), activation("1", "relu"), conv("out", 3, size=1)],
        {"0/kernel": slope, "0/bias": np.zeros(2), "out/kernel": head, "out/bias": np.array([0.02, 0, 0])},
    )
    named_so(monkeypatch, tmp_path, "meshnet-tissue", "meshnet-parcels")


def ridge() -> np.ndarray:
    """A block that is brightest in its middle plane x = 30."""
    volume = np.zeros((60, 50, 40), np.float32)
    x = np.arange(60)
    volume[10:51, 5:45, 5:35] = (400 - 10 * np.abs(x - 30))[10:51, None, None]
    return volume


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_stored_the_other_way_round_has_the_same_named_sides(sided, axis):
    volume, affine = ridge(), affine_of((2, 2, 2))
    labels, classes = segment(volume, affine, "parcels")
    value = {c.label: c.value for c in classes}
    assert set(value) == {"left putamen", "right putamen"}
    assert labels.shape == volume.shape and labels.dtype == np.uint8
    rising = np.argwhere(labels == value["right putamen"])[:, 0]
    falling = np.argwhere(labels == value["left putamen"])[:, 0]
    # x grows to the right, so what lies at x < 30 brightens to the right, but for the block's own rims
    assert len(rising) > 1000 and len(falling) > 1000
    assert rising[(rising > 12) & (rising < 48)].max() <= 31 and falling[(falling > 12) & (falling < 48)].min() >= 29
    stored, other = flipped(volume, affine, axis)
    again, _ = segment(stored, other, "parcels")
    assert (np.flip(again, axis) == labels).mean() > 0.999


def test_what_is_no_head_is_told(sided):
    with pytest.raises(Terminal, match="no head"):
        segment(np.zeros((20, 20, 20)), np.eye(4), "tissue")
    with pytest.raises(Terminal, match="three axes"):
        segment(np.zeros((20, 20, 20, 3)), np.eye(4), "tissue")


def test_where_no_brain_is_seen_there_are_no_labels(sided, tmp_path, monkeypatch):
    two = [conv("0", 2, size=1), activation("1", "relu"), conv("out", 3, size=1)]
    write_model(tmp_path / "other" / "meshnet-tissue", TISSUES, two, bright(2, 3))
    (tmp_path / "meshnet-parcels").rename(tmp_path / "other" / "meshnet-parcels")
    named_so(monkeypatch, tmp_path / "other", "meshnet-tissue", "meshnet-parcels")
    for model in ("tissue", "parcels"):
        labels, classes = segment(ridge(), affine_of((2, 2, 2)), model)
        assert labels.shape == ridge().shape and not labels.any() and len(classes) == 2


def test_weights_that_are_missing_or_have_unknown_classes_are_told(sided, tmp_path):
    with pytest.raises(ConfigError, match="meshnet-subcortical"):
        segment(ridge(), np.eye(4), "subcortical")
    with pytest.raises(ConfigError, match="there are no weights"):
        expert.weights_sha256("subcortical")
    assert expert.weights_sha256("tissue") != expert.weights_sha256("parcels")


# real ones


@pytest.fixture
def template(sample_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The MNI template and its tissue maps; the published weights are here."""
    folder = sample_data / "nifti" / "mni_icbm152"
    if not (sample_data / "weights" / "meshnet").exists() or not folder.exists():
        pytest.skip("no weights or no template among the sample data")
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(tmp_path))
    for name in ("meshnet-tissue", "meshnet-subcortical"):
        fetch(name, sample_data / "weights")
    return folder


def volume_of(folder: Path, kind: str):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
    return image.get_fdata(dtype=np.float32), image.affine


def test_tissues_of_the_template(template):
    values, affine = volume_of(template, "t1")
    stored, other = flipped(values, affine, 0)
    labels, classes = segment(stored, other, "tissue")
    labels = np.flip(labels, 0)
    for found, kind in zip(classes, ("wm", "gm"), strict=True):
        truth = volume_of(template, kind)[0] > 127
        mask = labels == found.value
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.65, found.label


@pytest.mark.long
def test_structures_of_the_template(template):
    values, affine = volume_of(template, "t1")
    labels, classes = segment(values, affine, "subcortical")
    for label, millimetres, litres in (
        ("thalamus", (0, -18, 7), (8, 25)), ("putamen", (0, 2, 0), (6, 16)), ("brainstem", (0, -28, -34), (15, 50)),
        ("hippocampus", (0, -24, -14), (5, 14)), ("fourth ventricle", (0, -46, -32), (0.5, 5)),
    ):
        (value,) = (c.value for c in classes if c.label == label)
        where = np.argwhere(labels == value)
        assert litres[0] < len(where) / 1000 < litres[1], label
        centre = affine @ np.append(where.mean(axis=0), 1)
        assert centre[:3] == pytest.approx(millimetres, abs=8), label
