"""What every expert and volume expert must keep, whoever wrote it: each item is a failure that was met once.

A new plug-in with parameters of its own needs an entry in OPTIONS; others are taken as they are.
"""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinymodels import COLOURS, instanseg_file, poisoned, small_pspnet
from tinymodels import clipseg as clipseg
from tinymodels import colours as colours
from tinymodels import no_network as no_network
from tinymodels import sam as sam
from tinymodels import yolos as yolos
from tinyvolumes import bundle_folder as bundle_folder
from tinyvolumes import nnunet_folder as nnunet_folder
from tinyvolumes import phantom

from infra import weights
from infra.errors import ConfigError, Dropped, ItemError
from infra.plugins import plugins, why_unavailable
from transforms.experts.card import Card
from transforms.regions import roi_row
from transforms.scans.volumes import Scan, canonical
from transforms.vocabulary import table

pytestmark = pytest.mark.usefixtures("no_network")

WRITES = """import sys, pathlib
from PIL import Image
import numpy as np
grey = np.asarray(Image.open(sys.argv[1]).convert("L"))
out = pathlib.Path(sys.argv[2], *sys.argv[4:])
out.mkdir(exist_ok=True)
Image.fromarray(np.where(grey > 127, 255, 0).astype(np.uint8)).save(out / sys.argv[3])
"""
"""A program of another environment: what is bright, as a mask."""
HEART = {"label": "heart", "role": "organ"}


def _program(folder: Path, *more: str) -> list[str]:
    (folder / "run.py").write_text(WRITES)
    return [sys.executable, str(folder / "run.py"), "{image}", "{out}", *more]


def _cxas(folder: Path) -> dict[str, Any]:
    """A program with CXAS's arguments that writes as it does."""
    import torch

    start = WRITES.replace("sys.argv[1]", "sys.argv[2]").replace(
        "pathlib.Path(sys.argv[2], *sys.argv[4:])", 'pathlib.Path(sys.argv[4], "image")'
    ).replace("sys.argv[3]", '"heart.png"')
    (folder / "cxas_segment").write_text(f"#!{sys.executable}\n{start}")
    (folder / "cxas_segment").chmod(0o755)
    path = folder / ".cxas" / "weights" / "UNet_ResNet50_default.pth"
    path.parent.mkdir(parents=True)
    torch.save({"model": {"weight": torch.zeros(1)}}, path)
    return {"program": str(folder / "cxas_segment"), "weights": str(folder), "labels": {"heart": HEART}}


def _nodule(folder: str) -> dict[str, Any]:
    return {"model": folder, "labels": {"nodule": {"label": "lung nodule", "role": "lesion"}}, "modalities": ["DX"]}


OPTIONS: dict[str, Callable[[pytest.FixtureRequest, Path], dict[str, Any]]] = {
    "label_map": lambda r, _: {"model": r.getfixturevalue("colours"), "labels": COLOURS, "kinds": ["radiology"]},
    "detector": lambda r, _: _nodule(r.getfixturevalue("yolos")),
    "text_prompted": lambda r, _: {
        "model": r.getfixturevalue("clipseg"), "prompts": ["lung"], "threshold": 0.01, "modalities": ["DX"]},
    "box_prompted": lambda r, _: {
        "model": r.getfixturevalue("sam"), "detector": "detector", "modalities": ["DX"],
        "detector_options": _nodule(r.getfixturevalue("yolos"))},
    "command": lambda _, folder: {
        "command": _program(folder, "heart.png"), "output": "masks", "classes": {"heart": HEART}, "version": "1",
        "modalities": ["DX"]},
    "instances": lambda _, folder: {
        "backend": "instanseg", "label": {"label": "nucleus", "role": "cell"}, "modalities": ["SM"],
        **instanseg_file(folder)},
    "cxas": lambda _, folder: _cxas(folder),
    "xrv": lambda _, folder: {"model": small_pspnet(folder)},
    "nnunet": lambda r, _: {"model": r.getfixturevalue("nnunet_folder"), "labels": "own"},
    "monai_bundle": lambda r, _: {"model": r.getfixturevalue("bundle_folder"), "labels": "own"},
    "wnet": lambda r, folder: r.getfixturevalue("fetched") and {},
    "brain": lambda r, folder: r.getfixturevalue("fetched") and {},
}
FREE = {"panels", "text", "foreground"}
"""Experts whose card names no modality that they refuse, or words that are no picture's content."""


@pytest.fixture
def fetched(sample_data: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The weights that are published as files, from the sample data."""
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(tmp_path_factory.mktemp("weights")))
    for name in ("lwnet-vessels", "meshnet-tissue"):
        weights.fetch(name, sample_data / "weights")
    return True


@pytest.fixture
def small_xrv(monkeypatch: pytest.MonkeyPatch) -> None:
    """The PSPNet has 46 million weights; here it is one layer."""
    import torch

    from transforms.experts import xrv

    monkeypatch.setattr(xrv, "_definition", lambda: lambda classes: torch.nn.Conv2d(3, classes, 1))


@pytest.fixture
def small_brain(monkeypatch: pytest.MonkeyPatch) -> None:
    """deepbet's own networks on a grid of 96 voxels a side; on its 256 they take seconds a scan."""
    from transforms.experts import deepbet

    opened = deepbet._opened

    def smaller(folder: Path, device: str) -> Any:
        extraction = copy.copy(opened(folder, device))  # the one that is kept stays as it is
        extraction.run_model = partial(type(extraction).run_model, extraction, small_shape=(96,) * 3, shape=(96,) * 3)
        return extraction

    monkeypatch.setattr(deepbet, "_opened", smaller)


@pytest.fixture
def asked(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any, Card]:
    """(module, parameters, card) of the plug-in that the test is run for, or a skip that says what is missing."""
    kind, name = request.param
    module = plugins(kind)[name]
    if any(found.startswith("torch") for found in module.REQUIRES) or name in ("cxas", "instances"):
        pytest.importorskip("torch")
    made = OPTIONS.get(name, lambda *_: {})
    options = {} if why_unavailable(module) and name not in ("wnet", "brain") else made(request, tmp_path)
    if reason := why_unavailable(module):
        pytest.skip(f"{name}: {reason}")
    if name == "xrv":
        request.getfixturevalue("small_xrv")
    if name == "brain_mask":
        request.getfixturevalue("small_brain")
    params = module.Params(**options)
    chosen = getattr(module, "card", None)
    return module, params, chosen(params) if chosen else module.CARD


def every(kind: str) -> Any:
    return pytest.mark.parametrize("asked", [(kind, name) for name in plugins(kind)], ids=str, indirect=True)


def picture(colour: bool) -> np.ndarray:
    """A dark ground with round things, two bright fields and texture: something for everyone."""
    rows, columns = np.mgrid[:160, :220]
    grey = 30 + 8 * np.sin(rows / 5) * np.cos(columns / 7)
    grey[20:90, 30:90] += 150
    for y, x, r in ((40, 140, 9), (60, 170, 8), (110, 60, 11), (120, 150, 10), (100, 190, 9)):
        grey[(rows - y) ** 2 + (columns - x) ** 2 < r * r] += 190
    grey = np.clip(grey, 0, 255).astype(np.uint8)
    return np.stack([grey, grey // 2, 255 - grey], axis=-1) if colour else grey


def image_of(card: Card) -> dict[str, Any]:
    """A row of `images` that the card names."""
    code = next(iter(card.modalities), None) or next(
        (entry.code for entry in table().values() if entry.kind in card.kinds), "DX")
    return {"modality": code, "anatomy": next(iter(card.anatomy), None), "view": None, "pixel_spacing": None,
            "article_id": "a", "parent_id": None}


def looked(module: Any, pixels: np.ndarray, image: dict[str, Any], params: Any) -> list[Any]:
    """What it finds; it may refuse a picture or fail on it, as long as it says so by our errors."""
    if module.applies(image):
        return []
    try:
        return list(module.find(pixels, image, params))
    except ItemError:
        return []


@every("expert")
def test_an_experts_regions_are_on_the_grid_on_the_card_and_the_same_twice(asked: tuple[Any, Any, Card]):
    module, params, card = asked
    image = image_of(card)
    assert module.applies(image) is None, "it looks at what its card names"
    for pixels in (picture(colour=card.value_space == "rgb8"), picture(colour=False)):
        before = pixels.copy()
        found = looked(module, pixels, image, params)
        assert np.array_equal(pixels, before), "the picture is left as it was"
        for region in found:
            row = roi_row("s", region, pixels.shape[:2], expert="e", origin="predicted", trust=card.trust)
            if card.classes:
                assert (region.label, region.role) in {(c.label, c.role) for c in card.classes}
            assert region.score is None or 0 <= region.score <= 1
            if region.mask is not None:
                assert region.mask.dtype == bool and region.mask.shape == pixels.shape[:2] and row is not None
                rows, columns = np.nonzero(region.mask)
                assert row["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        again = looked(module, pixels, image, params)
        assert [_facts(r) for r in again] == [_facts(r) for r in found]


def _facts(region: Any) -> Any:
    mask = None if region.mask is None else region.mask.tobytes()
    return region.label, region.role, region.box, region.score, region.ontology_id, mask


@every("expert")
def test_an_expert_may_find_nothing_and_refuses_what_is_not_on_its_card(asked: tuple[Any, Any, Card]):
    module, params, card = asked
    for shape in ((64, 80), (1, 1), (5, 300)):
        for region in looked(module, np.zeros(shape, np.uint8), image_of(card), params):
            assert region.mask is None or region.mask.shape == shape
    if not (card.kinds or card.modalities):
        assert module.NAME in FREE, "a card says which pictures it is for"
        return
    other = next(code for code in table() if card.why_not({"modality": code}))
    strange = {"modality": other, "anatomy": None}
    if module.applies(strange) is None:
        with pytest.raises(Dropped):
            list(module.find(picture(colour=False), strange, params))


def scan_of(card: Card) -> Scan:
    """A scan that the card names; of a head where it is the brain's."""
    if card.value_space == "HU":
        return phantom()
    at = np.mgrid[:64, :72, :60]
    middle, radius = np.array([32, 36, 30]), np.array([24, 30, 25])
    far = (((at - middle[:, None, None, None]) / radius[:, None, None, None]) ** 2).sum(0)
    values = np.where(far < 0.7, 90, np.where(far < 0.8, 20, np.where(far < 1, 160, 0))).astype(np.float32)
    values[:26] *= np.where(far[:26] < 0.7, 1.2, 1)
    affine = np.diag([-2.0, -2, 2, 1])
    affine[:3, 3] = -affine[:3, :3] @ middle
    return Scan(values, affine, next(iter(card.modalities), "MR"), next(iter(card.anatomy), None))


def mirrored(scan: Scan) -> Scan:
    """The same patient, stored from the other side, axes in another order."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = scan.values.shape[0] - 1
    order = np.eye(4)[:, [2, 0, 1, 3]]  # new axes (z, x, y) of the old
    values = np.ascontiguousarray(scan.values[::-1].transpose(2, 0, 1))
    return replace(scan, values=values, affine=scan.affine @ flip @ order)


def masks(scan: Scan, structures: Any) -> dict[str, np.ndarray]:
    """label -> mask, with axes that grow to left, posterior and superior."""
    upright = canonical(replace(scan, structures=tuple(structures)))
    found = {}
    for one in upright.structures:
        whole = np.zeros(upright.values.shape, bool)
        whole[tuple(slice(c, c + n) for c, n in zip(one.corner, one.mask.shape, strict=True))] = one.mask
        found[one.label] = whole
    return found


@every("volume_expert")
def test_a_volume_experts_structures_are_on_the_grid_on_the_card_and_keep_the_side(asked: tuple[Any, Any, Card]):
    module, params, card = asked
    scan = scan_of(card)
    before = scan.values.copy()
    found = list(module.segment(scan, params))
    assert found and card.ndim == 3 and np.array_equal(before, scan.values)
    for one in found:
        assert (one.label, one.role) in {(c.label, c.role) for c in card.classes}
        assert one.mask.dtype == bool and one.mask.any() and all(c >= 0 for c in one.corner)
        assert all(c + n <= size for c, n, size in zip(one.corner, one.mask.shape, scan.values.shape, strict=True))
        assert all(one.mask.any(axis=tuple(a for a in range(3) if a != axis))[[0, -1]].all() for axis in range(3)), (
            "the box is the mask's extent")
    here = masks(scan, found)
    again = masks(scan, module.segment(scan, params))
    assert all(np.array_equal(here[label], again[label]) for label in here) and set(here) == set(again)
    other = mirrored(scan)
    there = masks(other, module.segment(other, params))
    assert set(there) == set(here)
    for label in here:
        common = 2 * (here[label] & there[label]).sum() / (here[label].sum() + there[label].sum())
        assert common > 0.97, f"{label}: {common:.2f} common, stored the other way round"


@every("volume_expert")
def test_a_volume_expert_may_find_nothing_and_refuses_what_is_not_on_its_card(asked: tuple[Any, Any, Card]):
    module, params, card = asked
    scan = scan_of(card)
    air = replace(scan, values=np.full(scan.values.shape, -1000 if card.value_space == "HU" else 0, np.int16))
    try:
        assert list(module.segment(air, params)) == []
    except ItemError as error:
        assert str(error)
    with pytest.raises(ItemError):
        list(module.segment(replace(scan, affine=None), params))
    other = next(code for code in ("US", "MR", "CT") if card.why_not({"modality": code}))
    assert card.why_not({"modality": other, "anatomy": None})
    if module.NAME not in ("ct", "brain"):  # the stage asks their card before it opens a scan
        with pytest.raises(Dropped):
            list(module.segment(replace(scan, modality=other), params))


@pytest.mark.parametrize("asked", [("volume_expert", "nnunet"), ("volume_expert", "monai_bundle")], indirect=True)
def test_values_that_are_no_hounsfield_units_are_refused(asked: tuple[Any, Any, Card]):
    module, params, card = asked
    scan = scan_of(card)
    assert card.value_space == "HU"
    with pytest.raises(Dropped, match="Hounsfield"):
        list(module.segment(replace(scan, values=scan.values.astype(np.int32) + 1024), params))


POISON = [("nnunet", "fold_0/checkpoint_final.pth"), ("monai_bundle", "models/model.pt"), ("xrv", ""),
          ("cxas", ".cxas/weights/UNet_ResNet50_default.pth")]


@pytest.mark.parametrize(("asked", "inner"), [
    (("volume_expert" if name in ("nnunet", "monai_bundle") else "expert", name), inner) for name, inner in POISON
], ids=[name for name, _ in POISON], indirect=["asked"])
def test_a_poisoned_file_is_refused_and_its_code_not_run(asked: tuple[Any, Any, Card], inner: str, tmp_path: Path):
    module, params, card = asked
    field = "weights" if module.NAME == "cxas" else "model"
    source = Path(getattr(params, field))
    copy = tmp_path / "copy"
    (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
    marker = tmp_path / "ran"
    poisoned(copy / inner if inner else copy, marker)
    bad = params.model_copy(update={field: str(copy)})
    with pytest.raises(ConfigError, match="nothing of it was run"):
        if hasattr(module, "segment"):
            list(module.segment(scan_of(card), bad))
        else:
            list(module.find(picture(colour=False), image_of(card), bad))
    assert not marker.exists(), "code of the file was run"
    if module.NAME != "cxas":
        assert module.ingredients(bad) != module.ingredients(params), "another file is another identity"


@every("expert")
def test_an_expert_that_names_weights_has_their_hash(asked: tuple[Any, Any, Card]):
    module, params, card = asked
    if "model" in type(params).model_fields or card.weights:
        hashes = module.ingredients(params)
        assert hashes and all(len(value) >= 24 and set(value) <= set("0123456789abcdef") for value in hashes.values())


