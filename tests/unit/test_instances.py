"""Models that tell things apart: label maps to instances, a TorchScript model behind its hash, programs' own files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tinymodels import instanseg_file
from tinymodels import no_network as no_network

from infra.errors import ConfigError, Dropped, Terminal
from transforms.adapters.pictures import label_picture
from transforms.adapters.wanted import Named
from transforms.experts import instances

pytestmark = pytest.mark.usefixtures("no_network")
NUCLEUS = {"label": "nucleus", "role": "cell"}

LABELS = """import sys, pathlib
import numpy as np
from PIL import Image
from scipy import ndimage
grey = np.asarray(Image.open(sys.argv[1]).convert("L"))
values, _ = ndimage.label(grey > 127)
Image.fromarray(values.astype(np.uint16)).save(pathlib.Path(sys.argv[2]) / sys.argv[3])
"""


def spots() -> np.ndarray:
    """Three bright spots of 12 x 12, the third across columns 74 to 86."""
    pixels = np.zeros((60, 120, 3), np.uint8)
    for y, x in ((5, 4), (40, 10), (20, 74)):
        pixels[y : y + 12, x : x + 12] = 250
    return pixels


def test_every_number_of_a_label_map_is_one_region():
    values = np.zeros((50, 60), np.int32)
    values[1:4, 1:4], values[10:12, 10:20], values[10:12, 20:30], values[40, 50] = 7, 70000, 3, 12
    found = list(instances.regions(values, Named(label="cell", role="cell"), 2))
    assert [int(r.mask.sum()) for r in found] == [20, 9, 20], "touching ones stay apart, small ones are left out"
    assert sum(r.mask.astype(int) for r in found).max() == 1
    assert not list(instances.regions(np.zeros((5, 5), np.int32), Named(label="cell"), 1))
    assert len(list(instances.regions(np.ones((5, 5), np.int32), Named(label="cell"), 1))) == 1, "all of the picture"
    many = np.arange(1, 90001).reshape(300, 300)
    assert sum(1 for _ in zip(instances.regions(many, Named(label="cell"), 1), range(500), strict=False)) == 500


def test_a_scripted_model_runs_where_its_hash_is_pinned_and_nowhere_else(tmp_path: Path):
    pytest.importorskip("torch")
    options = instanseg_file(tmp_path)
    params = instances.Params(backend="instanseg", label=NUCLEUS, **options)
    assert instances.ingredients(params) == {"model": options["pinned"]}
    found = list(instances.find(spots(), {}, params))
    assert [int(r.mask.sum()) for r in found] == [288, 72, 72], "a number a stripe of 40 columns: it answers by these"
    assert {(r.label, r.role) for r in found} == {("nucleus", "cell")}
    grey = list(instances.find(spots()[..., 0], {}, params))
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(found, grey, strict=True))
    large = list(instances.find(spots(), {"pixel_spacing": [0.001, 0.001]}, params))
    assert [r.mask.shape for r in large] == [(60, 120)] * len(large) and len(large) > 3, (
        "at 1 micron it is seen twice as large: more stripes, on the grid of the picture")
    with pytest.raises(ConfigError, match="no output 1"):
        list(instances.find(spots(), {}, params.model_copy(update={"output": 1})))
    path = Path(options["model"])
    path.write_bytes(path.read_bytes() + b"\0")
    instances._opened.cache_clear()
    for run in (instances.ingredients, lambda p: list(instances.find(spots(), {}, p))):
        with pytest.raises(ConfigError, match="pinned is"):
            run(params)


def test_memory_that_runs_out_is_the_pictures_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch = pytest.importorskip("torch")
    params = instances.Params(backend="instanseg", label=NUCLEUS, **instanseg_file(tmp_path))

    def full(values: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(instances, "_opened", lambda *_: full)
    with pytest.raises(Terminal, match="OUT_OF_MEMORY"):
        list(instances.find(spots(), {}, params))


@pytest.mark.parametrize("name", ["image_cp_masks.png", "image.stardist.tif"])
def test_a_programs_label_map_is_read_as_cellpose_and_stardist_write_it(tmp_path: Path, name: str):
    script = tmp_path / "run.py"
    script.write_text(LABELS)
    params = instances.Params(
        backend="command", label=NUCLEUS, command=[sys.executable, str(script), "{image}", "{out}", name], file=name,
        files=[str(script)], modalities=["SM"],
    )
    found = list(instances.find(spots(), {"modality": "SM"}, params))
    assert [tuple(int(n) for n in np.argwhere(r.mask)[0]) for r in found] == [(5, 4), (20, 74), (40, 10)]
    assert set(instances.ingredients(params)) == {"file:0"}
    with pytest.raises(Dropped):
        list(instances.find(spots(), {"modality": "CT"}, params))
    with pytest.raises(Terminal, match="NO_OUTPUT"):
        list(instances.find(spots(), {"modality": "SM"}, params.model_copy(update={"file": "other.png"})))


def test_pictures_that_are_no_label_map_are_refused(tmp_path: Path):
    def refused(said: str, values: np.ndarray, name: str = "x.png") -> None:
        Image.fromarray(values).save(tmp_path / name)
        with pytest.raises(Terminal, match=said):
            label_picture(tmp_path / name, (4, 5))

    refused("OUTPUT_SIZE", np.zeros((5, 4), np.uint8))
    refused("channels", np.zeros((4, 5, 3), np.uint8))
    refused("fractions", np.full((4, 5), 0.5, np.float32), "x.tif")
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(Terminal, match="UNREADABLE"):
        label_picture(tmp_path / "x.png", (4, 5))
    Image.fromarray(np.full((4, 5), 40000, np.uint16)).save(tmp_path / "y.tif")
    assert label_picture(tmp_path / "y.tif", (4, 5)).tolist() == [[40000] * 5] * 4


@pytest.mark.parametrize("options", [
    {"backend": "instanseg", "model": "x"}, {"backend": "command", "command": ["a", "{image}"], "version": "1"},
    {"backend": "command", "command": ["a", "{image}", "{out}"]},
    {"backend": "command", "command": ["a", "{image}", "{out}"], "version": "1", "file": "../x.png"},
])
def test_recipes_that_leave_out_what_matters_are_refused(options: dict[str, Any]):
    with pytest.raises(ValueError, match=r"instanseg needs|command needs|files|folder"):
        instances.Params(label=NUCLEUS, **options)
