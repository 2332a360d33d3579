"""deepbet's own networks on the MNI template, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinymodels import no_network as no_network

from infra.errors import ConfigError, Dropped, Terminal
from transforms.experts import deepbet
from transforms.scans.volumes import Scan

torch = pytest.importorskip("torch")
pytest.importorskip("deepbet", reason="deepbet is not here: pip install --no-deps deepbet fill-voids fastremap")
pytestmark = pytest.mark.usefixtures("no_network")
AFFINE = np.diag([-1.0, 1, 1, 1])


def test_the_brain_of_the_template_is_its_tissue(sample_data: Path):
    nibabel = pytest.importorskip("nibabel")
    folder = sample_data / "nifti" / "mni_icbm152"
    t1, grey, white = (nibabel.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
                       for kind in ("t1", "gm", "wm"))
    scan = Scan(np.asarray(t1.dataobj), t1.affine, "MR", "brain")
    (brain,) = deepbet.segment(scan, deepbet.Params())
    found = np.zeros(scan.values.shape, bool)
    found[tuple(slice(c, c + n) for c, n in zip(brain.corner, brain.mask.shape, strict=True))] = brain.mask
    tissue = (grey.get_fdata() + white.get_fdata()) > 127
    assert 2 * (found & tissue).sum() / (found.sum() + tissue.sum()) > 0.9, "0.939 was measured; it has the fluid, too"
    assert (found & tissue).sum() / tissue.sum() > 0.99
    assert 1800 < found.sum() / 1000 < 2100, "cubic centimetres; 1953 were measured"


def test_what_is_no_brain_is_refused_or_empty():
    empty = Scan(np.zeros((30, 30, 30), np.float32), AFFINE, "MR", "head")
    assert list(deepbet.segment(empty, deepbet.Params())) == []
    with pytest.raises(Dropped):
        list(deepbet.segment(Scan(empty.values, AFFINE, "CT", "head"), deepbet.Params()))
    with pytest.raises(Dropped):
        list(deepbet.segment(Scan(empty.values, AFFINE, "MR", "knee"), deepbet.Params()))
    with pytest.raises(Terminal, match="NO_SPACING"):
        list(deepbet.segment(Scan(empty.values, None, "MR", "head"), deepbet.Params()))


def test_networks_that_are_another_are_not_run(tmp_path: Path):
    folder = Path(shutil.copytree(deepbet._folder(deepbet.Params()), tmp_path / "models"))
    params = deepbet.Params(model=str(folder))
    assert deepbet.ingredients(params) == deepbet.ingredients(deepbet.Params())
    with open(folder / "model.pt", "ab") as file:
        file.write(b"\0")
    scan = Scan(np.ones((8, 8, 8), np.float32), AFFINE, "MR", "head")
    with pytest.raises(ConfigError, match="was not run"):
        list(deepbet.segment(scan, params))
    (folder / "model.pt").unlink()
    with pytest.raises(ConfigError, match=r"no model\.pt"):
        deepbet.ingredients(params)


def test_memory_that_runs_out_is_the_scans_loss(monkeypatch: pytest.MonkeyPatch):
    class Full:
        def run_model(self, values: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(deepbet, "_opened", lambda *_: Full())
    scan = Scan(np.arange(512, dtype=np.float32).reshape(8, 8, 8), AFFINE, "MR", "head")
    with pytest.raises(Terminal, match="OUT_OF_MEMORY"):
        list(deepbet.segment(scan, deepbet.Params()))
