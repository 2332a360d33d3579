"""Segmenters of chest radiographs: the library's own PSPNet, and CXAS as a program that writes as its source does."""

from __future__ import annotations

import stat
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinymodels import no_network as no_network
from tinymodels import small_pspnet

from infra.errors import ConfigError, Dropped, Terminal
from transforms.experts import cxas, xrv

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("no_network")
CHEST = {"modality": "DX", "anatomy": "chest"}
HEART = {"label": "heart", "role": "organ"}


def chest() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (150, 100), dtype=np.uint8)


def test_the_librarys_own_network_runs_without_the_rest_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if find_spec("torchxrayvision") is None:
        pytest.skip("torchxrayvision is not here: pip install --no-deps torchxrayvision==1.5.7")
    kind = xrv._definition()
    assert kind.__name__ == "pspnet" and "torchvision" not in sys.modules and "torchxrayvision" not in sys.modules
    torch.manual_seed(1)
    network = kind(len(xrv.CLASSES), block_config=[1, 1, 1, 1]).eval()
    with torch.no_grad():
        network.classification.weight.zero_()
        network.classification.bias.copy_(torch.tensor([-3.0] * 4 + [3.0, 2.0] + [-3.0] * 8))
    monkeypatch.setattr(xrv, "SIDE", 96)
    monkeypatch.setattr(xrv, "_opened", lambda *_: network)
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"x")
    found = list(xrv.find(chest(), CHEST, xrv.Params(model=str(weights))))
    assert [(r.label, r.score, r.mask.shape) for r in found] == [
        ("left lung", 0.953, (150, 100)), ("right lung", 0.881, (150, 100))]
    assert all(r.mask.all() for r in found), "they may overlap"


def test_weights_of_another_network_are_said(tmp_path: Path):
    path = small_pspnet(tmp_path)
    if find_spec("torchxrayvision") is None:
        pytest.skip("torchxrayvision is not here: pip install --no-deps torchxrayvision==1.5.7")
    with pytest.raises(ConfigError, match="not those of the network"):
        list(xrv.find(chest(), CHEST, xrv.Params(model=path)))


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (64, 64), (1, 7)])
def test_masks_lie_where_the_picture_has_them(shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Bright(torch.nn.Module):
        def forward(self, values: Any) -> Any:
            grey = values[:, :1] * xrv.SPREAD[0] + xrv.MEAN[0]
            return (grey - 0.5).repeat(1, 14, 1, 1) * 100

    monkeypatch.setattr(xrv, "_opened", lambda *_: Bright())
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"x")
    pixels = np.zeros(shape, np.uint8)
    truth = np.zeros(shape, bool)
    truth[: max(1, shape[0] // 3), shape[1] // 2 :] = True
    pixels[truth] = 255
    found = list(xrv.find(pixels, CHEST, xrv.Params(model=str(weights))))
    assert len(found) == 14
    mask = found[0].mask
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.9
    with pytest.raises(Dropped):
        list(xrv.find(pixels, {"modality": "DX", "anatomy": "knee"}, xrv.Params(model=str(weights))))


PROGRAM = """#!{python}
import argparse, os, pathlib
import numpy as np
from PIL import Image
parser = argparse.ArgumentParser()
for short in "iog":
    parser.add_argument("-" + short, dest=short, required=True)
parser.add_argument("-s", action="store_true")
parser.add_argument("-ot", choices=["png"])
parser.add_argument("-m", choices=["UNet_ResNet50_default"])
given = parser.parse_args()
assert given.s and os.path.isfile(os.environ["CXAS_PATH"] + "/.cxas/weights/UNet_ResNet50_default.pth")
grey = np.asarray(Image.open(given.i).convert("L"))
out = os.path.join(given.o, os.path.splitext(given.i)[0].split("/")[-1])
os.makedirs(out, exist_ok=True)
for name, mask in {classes}:
    Image.fromarray(mask).convert("1").save(os.path.join(out, name + ".png"))
"""


def environment(folder: Path, classes: str) -> cxas.Params:
    """An environment with CXAS's program, as its export_prediction_as_png writes."""
    program = folder / "cxas_segment"
    program.write_text(PROGRAM.format(python=sys.executable, classes=classes))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = folder / ".cxas" / "weights" / "UNet_ResNet50_default.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {"weight": torch.zeros(2)}}, path)
    return cxas.Params(program=str(program), weights=str(folder), labels={
        "heart": HEART, "vertebrae T1": {"label": "first thoracic vertebra", "role": "organ"}})


def test_what_cxas_writes_is_read(tmp_path: Path):
    params = environment(tmp_path, '{"heart": grey > 127, "vertebrae T1": grey > 300, "aorta": grey > 0}.items()')
    pixels = chest()
    (heart,) = cxas.find(pixels, CHEST, params)
    assert (heart.label, heart.role) == ("heart", "organ") and np.array_equal(heart.mask, pixels > 127)
    assert len(cxas.ingredients(params)["model"]) == 64


def test_what_cxas_should_not_write_costs_the_picture(tmp_path: Path):
    for classes, said in (("{}.items()", "NO_OUTPUT"), ('{"aorta": grey > 0}.items()', "NO_KNOWN_CLASS"),
                          ('{"heart": grey.T > 0}.items()', "OUTPUT_SIZE"), ("{}.none()", "COMMAND_FAILED")):
        with pytest.raises(Terminal, match=said):
            cxas.find(chest(), CHEST, environment(tmp_path, classes))


def test_weights_of_cxas_are_there_and_pinned_or_harmless(tmp_path: Path):
    params = environment(tmp_path, "{}.items()")
    digest = cxas.ingredients(params)["model"]
    assert cxas.ingredients(params.model_copy(update={"pinned": digest})) == {"model": digest}
    with pytest.raises(ConfigError, match="pinned is"):
        cxas.ingredients(params.model_copy(update={"pinned": "0" * 64}))
    (tmp_path / ".cxas" / "weights" / "UNet_ResNet50_default.pth").unlink()
    with pytest.raises(ConfigError, match="would fetch it"):
        cxas.ingredients(params)
