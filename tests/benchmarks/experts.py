"""What experts find beside references: a score, seconds and memory, one line each.

    python tests/benchmarks/experts.py                  all that take less than a minute
    python tests/benchmarks/experts.py --slow           all
    python tests/benchmarks/experts.py --only meshnet

It reads the sample data (MEDLOOM_DATA, default ../shared/data) and takes weights from there too, into a folder that is
removed afterwards. Each measurement runs in a process of its own, whose peak of memory is told. What has no sample or
no weights here is left out and said so. To add an expert, write a function that returns scores by name, and list it in
MEASURED.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from infra import weights
from infra.errors import ConfigError, Dropped
from transforms.experts import cells as cellexpert
from transforms.experts import chestxray, ct, histology, meshnet

DATA = Path(os.environ.get("MEDLOOM_DATA", Path(__file__).parents[3] / "shared" / "data"))
Mask = npt.NDArray[np.bool_]
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """An expert, what it is tried on, and how."""

    expert: str
    sample: str
    folder: str
    """what of the sample data it needs"""
    score: Callable[[], Scores]
    weights: tuple[str, ...] = ()
    """names in infra/weights.yaml"""
    slow: bool = False


def dice(found: Mask, truth: Mask) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def matched(found: list[Mask], truth: list[Mask], least: float = 0.5) -> int:
    """How many true masks have a found one with this intersection over union; from above 0.5 on, each its own."""
    return sum(any((f & t).sum() >= least * (f | t).sum() for f in found) for t in truth)


def cells() -> Scores:
    """F1 of nuclei at an intersection over union of 0.5, over all fluorescence images."""
    hits = objects = images = 0
    for folder in sorted((DATA / "segmentation" / "dsb2018" / "stage1_train").iterdir()):
        pixels = np.asarray(Image.open(next((folder / "images").iterdir())).convert("RGB"))
        try:
            found = [r.mask for r in cellexpert.find(pixels, {}, cellexpert.Params()) if r.mask is not None]
        except Dropped:  # stained tissue, which the expert refuses
            continue
        truth = [np.asarray(Image.open(path).convert("L")) > 0 for path in sorted((folder / "masks").iterdir())]
        hits, objects, images = hits + matched(found, truth), objects + len(found) + len(truth), images + 1
    return {f"F1 of {images} images": 2 * hits / objects}


def nuclei() -> Scores:
    """F1 of nuclei in stained tissue, over the images that the expert does not refuse."""
    hits = objects = images = 0
    for folder in sorted((DATA / "segmentation" / "dsb2018" / "stage1_train").iterdir()):
        pixels = np.asarray(Image.open(next((folder / "images").iterdir())).convert("RGB"))
        try:
            found = [r.mask for r in histology.find(pixels, {}, histology.Params()) if r.mask is not None]
        except Dropped:  # fluorescence
            continue
        truth = [np.asarray(Image.open(path).convert("L")) > 0 for path in sorted((folder / "masks").iterdir())]
        hits, objects, images = hits + matched(found, truth), objects + len(found) + len(truth), images + 1
    return {f"F1 of {images} images": 2 * hits / objects}


def lung_fields() -> Scores:
    """Mean Dice where both lungs were found, and in how many of the radiographs with a mask."""
    folder = DATA / "classification" / "covid_cxr_nc"
    images = {path.name: path for path in (folder / "images").rglob("*.*")}
    scores, asked = [], 0
    for path in sorted((folder / "semantic_masks_v7labs_lungs").iterdir()):
        truth = np.asarray(Image.open(path).convert("L")) > 127
        if not truth.any():
            continue
        asked += 1
        pixels = np.asarray(Image.open(images[path.name]).convert("L"))
        try:
            found = [r.mask for r in chestxray.find(pixels, {"view": "PA"}, chestxray.Params()) if r.mask is not None]
        except Dropped:
            continue
        if found:
            scores.append(dice(np.logical_or.reduce(found), truth))
    return {"mean Dice": float(np.mean(scores)), f"found, of {asked}": len(scores)}


def ct_scan() -> Scores:
    """Dice of lungs and bone with a model's labels; share of all labelled voxels inside the body."""
    import json

    import nibabel

    folder = DATA / "nifti" / "totalseg_ct_msd"
    names = json.loads((folder / "dataset.json").read_text())["labels"]
    image = nibabel.load(folder / "imagesTr" / "example_ct.nii.gz")
    labels = np.asarray(nibabel.load(folder / "labelsTr" / "example_ct.nii.gz").dataobj).astype(int)
    values, spacing = np.asarray(image.dataobj, np.float32), tuple(map(float, image.header.get_zooms()))

    def named(*words: str) -> Mask:
        return np.isin(labels, [int(value) for value, name in names.items() if name.startswith(words)])

    bone = named("vertebrae", "sacrum", "hip", "femur", "rib")
    return {
        "Dice lungs": dice(ct.lungs(values, spacing), named("lung_")),
        "Dice bone": dice(ct.bone(values, spacing), bone),
        "in body": float(ct.body(values, spacing)[labels > 0].mean()),
    }


def brain_mask() -> Scores:
    """Dice with the template's grey and white matter (the mask holds the fluid too), and how much of these it holds."""
    from transforms.experts import deepbet
    from transforms.scans.volumes import Scan

    values, affine = _template("t1")
    (found,) = deepbet.segment(Scan(values, affine, "MR", "head"), deepbet.Params())
    whole = np.zeros(values.shape, bool)
    whole[tuple(slice(at, at + n) for at, n in zip(found.corner, found.mask.shape, strict=True))] = found.mask
    truth = (_template("gm")[0] > 127) | (_template("wm")[0] > 127)
    return {"Dice matter": dice(whole, truth), "matter inside": float(whole[truth].mean())}


def _template(kind: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    import nibabel

    path = DATA / "nifti" / "mni_icbm152" / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    image = nibabel.load(path)
    return image.get_fdata(dtype=np.float32), image.affine


def tissue() -> Scores:
    """Dice of white and grey matter with the template's own maps of tissue, from a half on."""
    labels, classes = meshnet.segment(*_template("t1"), "tissue")
    return {
        f"Dice {found.label}": dice(labels == found.value, _template(kind)[0] > 127)
        for found, kind in zip(classes, ("wm", "gm"), strict=True)
    }


def subcortical() -> Scores:
    """Dice of the cerebrum's white matter with the template's map, outside of cerebellum and brainstem."""
    labels, classes = meshnet.segment(*_template("t1"), "subcortical")
    value = {c.label: c.value for c in classes}
    below = np.isin(labels, [value["brainstem"], value["cerebellar white matter"], value["cerebellar cortex"]])
    return {"Dice cerebral white matter": dice(
        labels == value["cerebral white matter"], (_template("wm")[0] > 127) & ~below
    )}


def parcels() -> Scores:
    """Share of the voxels of left and right structures that lie on that side of the template's middle plane."""
    values, affine = _template("t1")
    labels, classes = meshnet.segment(values, affine, "parcels")
    right = (affine[0, 0] * np.arange(values.shape[0]) + affine[0, 3])[:, None, None] > 0
    named_right, named_left = (
        np.isin(labels, [c.value for c in classes if c.label.startswith(side)]) for side in ("right ", "left ")
    )
    good = (named_right & right).sum() + (named_left & ~right).sum()
    return {"on the named side": float(good / (named_right.sum() + named_left.sum()))}


MEASURED = (
    Measured("nuclei", "Data Science Bowl 2018", "segmentation/dsb2018", nuclei),
    Measured("lung_fields", "covid-chestxray", "classification/covid_cxr_nc", lung_fields),
    Measured("ct", "TotalSegmentator's test scan", "nifti/totalseg_ct_msd", ct_scan),
    Measured("brain_mask", "MNI ICBM 152 template", "nifti/mni_icbm152", brain_mask),
    Measured("cells", "Data Science Bowl 2018", "segmentation/dsb2018", cells),
    Measured("meshnet tissue", "MNI ICBM 152 template", "nifti/mni_icbm152", tissue, meshnet.WEIGHTS["tissue"]),
    Measured(
        "meshnet subcortical", "MNI ICBM 152 template", "nifti/mni_icbm152", subcortical,
        meshnet.WEIGHTS["subcortical"], slow=True,
    ),
    Measured(
        "meshnet parcels", "MNI ICBM 152 template", "nifti/mni_icbm152", parcels, meshnet.WEIGHTS["parcels"], slow=True
    ),
)


def measure(score: Callable[[], Scores]) -> tuple[Scores, float, float]:
    """Scores, seconds and peak of memory in GB of one measurement; the process is to run nothing else."""
    start = time.perf_counter()
    scores = score()
    return scores, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def lacking(each: Measured) -> str | None:
    """What is not here that a measurement needs, or None; its weights are taken from the sample data."""
    if not (DATA / each.folder).exists():
        return "no sample here"
    try:
        for name in each.weights:
            weights.fetch(name, DATA / "weights")
    except ConfigError:
        return "no weights here"
    return None


def lines(only: str, slow: bool) -> Iterator[str]:
    """The table, line by line, in Markdown."""
    yield "| expert | sample | score | seconds | memory, GB |\n| --- | --- | --- | ---: | ---: |"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for each in MEASURED:
            if only not in each.expert or (each.slow and not slow):
                continue
            if reason := lacking(each):
                yield f"| {each.expert} | {each.sample} | {reason} | | |"
                continue
            scores, seconds, memory = pool.submit(measure, each.score).result()
            told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
            yield f"| {each.expert} | {each.sample} | {told} | {seconds:.1f} | {memory:.1f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="experts whose name holds this")
    parser.add_argument("--slow", action="store_true", help="those that take a minute and more as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEDLOOM_WEIGHTS"] = folder
        for line in lines(options.only, options.slow):
            print(line, flush=True)


if __name__ == "__main__":
    main()
