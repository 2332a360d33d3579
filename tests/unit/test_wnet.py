"""The vessel expert: the published checkpoint's form, what it refuses, and what it finds on the stored image."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.errors import ConfigError, Dropped
from infra.weights import fetch
from transforms.experts.wnet import CARD, Params, applies, available, find, ingredients

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

import lwnet  # noqa: E402
from weightsfolder import named_so  # noqa: E402

from transforms.networks import onnxmodel, wnet  # noqa: E402

FUNDUS = {"modality": "OP"}


def trained_a_little(classes: int, widths: tuple[int, ...]) -> torch.nn.Module:
    """A random network whose normalisations have seen something, so that a mistake in them shows."""
    torch.manual_seed(0)
    model = lwnet.WNet(classes, widths)
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(2, 3, 32, 32))
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights with both networks, tiny and random."""
    lwnet.write_checkpoint(tmp_path / "lwnet-vessels" / wnet.CHECKPOINT, trained_a_little(1, (4, 6)))
    lwnet.write_checkpoint(tmp_path / "lwnet-artery-vein" / wnet.CHECKPOINT, trained_a_little(4, (4, 6, 8)))
    named_so(monkeypatch, tmp_path, "lwnet-vessels", "lwnet-artery-vein")
    return tmp_path


def disc(radius: float) -> np.ndarray:
    y, x = np.ogrid[:120, :160]
    return (y - 60) ** 2 + (x - 80) ** 2 < radius**2


def fundus() -> np.ndarray:
    """An orange disc of radius 54 with a dark line across, on black."""
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[disc(54)] = (200, 90, 40)
    pixels[58:62, 40:120] = (120, 30, 20)
    return pixels


def agreement(model: torch.nn.Module, folder: Path, side: int) -> float:
    values = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(values)).numpy()
    return float(np.abs(onnxmodel.session(wnet.to_onnx(folder))(values) - wanted).max())


@pytest.mark.parametrize(("classes", "widths"), [(1, (4, 6)), (4, (4, 6, 8))])
def test_the_graph_answers_as_the_checkpoint(tmp_path, classes, widths):
    model = trained_a_little(classes, widths)
    lwnet.write_checkpoint(tmp_path / wnet.CHECKPOINT, model)
    assert agreement(model, tmp_path, 64) < 1e-4


def test_a_checkpoint_that_is_another_is_refused(tmp_path):
    path = tmp_path / wnet.CHECKPOINT
    lwnet.write_checkpoint(path, torch.nn.Conv2d(3, 4, 3))
    with pytest.raises(ConfigError, match="no W-Net"):
        wnet.to_onnx(tmp_path)
    model = trained_a_little(1, (4, 6))
    model.extra = torch.nn.Conv2d(1, 1, 1)
    lwnet.write_checkpoint(path, model)
    with pytest.raises(ConfigError, match=r"extra\.bias in it has no place"):
        wnet.to_onnx(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path, marker = tmp_path / wnet.CHECKPOINT, tmp_path / "was_run"

    class Trap:
        def __reduce__(self):
            return Path.touch, (marker,)

    torch.save({"model_state_dict": Trap()}, path)
    with pytest.raises(ConfigError, match="cannot be read"):
        wnet.to_onnx(tmp_path)
    assert not marker.exists()
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match="cannot be read"):
        wnet.to_onnx(tmp_path)


def test_the_network_is_made_once_and_kept_beside_its_weights(folder):
    run = onnxmodel.open_model("lwnet-vessels", wnet.to_onnx, wnet.VERSION)

    def never(folder: Path) -> bytes:
        raise AssertionError("was made again")

    again = onnxmodel.open_model("lwnet-vessels", never, wnet.VERSION)
    values = np.zeros((1, 3, 16, 16), np.float32)
    assert (run(values) == again(values)).all()
    with pytest.raises(AssertionError):
        onnxmodel.open_model("lwnet-vessels", never, "another version")
    assert [p.suffix for p in (folder / "onnx").iterdir()] == [".onnx"]


@pytest.mark.parametrize("classes", ["vessels", "artery_vein"])
def test_regions_lie_on_the_stored_image_within_the_field_of_view(folder, classes):
    pixels = fundus()
    params = Params(classes=classes, threshold=0.01)
    regions = list(find(pixels, FUNDUS, params))
    assert regions and {r.label for r in regions} <= {c.label for c in CARD.classes}
    for region in regions:
        assert region.mask.shape == pixels.shape[:2] and not region.mask[~disc(57)].any()
        assert 0 < region.score <= 1 and region.score == round(region.score, 3)
    again = list(find(pixels, FUNDUS, params))
    assert all((a.mask == b.mask).all() and a.score == b.score for a, b in zip(regions, again, strict=True))
    if classes == "artery_vein":
        assert sum(r.mask.astype(int) for r in regions).max() == 1, "a pixel is one of them"


def test_what_is_no_colour_fundus_is_refused_or_empty(folder):
    assert list(find(np.zeros((64, 64, 3), np.uint8), FUNDUS, Params())) == []
    with pytest.raises(Dropped, match="grey"):
        list(find(fundus()[..., 0], FUNDUS, Params()))
    with pytest.raises(Dropped, match="not reddish"):
        list(find(fundus()[..., ::-1], FUNDUS, Params()))
    assert applies(FUNDUS) is None and applies({"modality": "OP", "anatomy": "Retina, left eye"}) is None
    assert "not at" in applies({"modality": "OP", "anatomy": "skin"})
    assert "optical coherence tomography" in applies({"modality": "OPT"})


def test_weights_that_are_another_stop_before_any_work(folder):
    assert available() is None
    before = ingredients(Params())
    assert before != ingredients(Params(classes="artery_vein"))
    path = folder / "lwnet-vessels" / wnet.CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ConfigError, match="medloom weights fetch lwnet-vessels"):
        ingredients(Params())
    path.unlink()
    assert available() is None, "the other network is still here"
    (folder / "lwnet-artery-vein" / wnet.CHECKPOINT).unlink()
    assert "medloom weights fetch lwnet-vessels" in available()


@pytest.fixture
def published(sample_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published weights, fetched from the sample data."""
    if not (sample_data / "weights").exists():
        pytest.skip("no weights among the sample data")
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(tmp_path))
    for name in ("lwnet-vessels", "lwnet-artery-vein"):
        fetch(name, sample_data / "weights")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "classes", "widths"), [("lwnet-vessels", 1, (8, 16, 32)), ("lwnet-artery-vein", 4, (8, 16, 32, 64))]
)
def test_the_published_networks_answer_as_in_torch(published, name, classes, widths):
    model = lwnet.WNet(classes, widths)
    saved = torch.load(published / name / wnet.CHECKPOINT, map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model_state_dict"])
    assert agreement(model.eval(), published / name, 64) < 1e-3, "of logits that reach 20"


def test_vessels_of_a_real_retina(published):
    spec = importlib.util.find_spec("skimage")
    path = Path(spec.submodule_search_locations[0]) / "data" / "retina.jpg" if spec else None
    if path is None or not path.exists():
        pytest.skip("scikit-image, whose retina is looked at, is not installed")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    (vessels,) = find(pixels, FUNDUS, Params(flips=False))
    assert 0.08 < vessels.mask.mean() < 0.16
    arteries, veins = find(pixels, FUNDUS, Params(classes="artery_vein", flips=False))
    assert arteries.label == "retinal arteries" and veins.label == "retinal veins"
    assert np.median(pixels[arteries.mask]) > np.median(pixels[veins.mask]), "arteries are the brighter ones"
    both = arteries.mask | veins.mask
    assert 2 * (both & vessels.mask).sum() / (both.sum() + vessels.mask.sum()) > 0.8
