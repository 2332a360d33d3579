"""Near-duplicates among medical images: precision and recall beside imagehash and imagededup, in one run.

    pip install --no-deps imagehash imagededup pywavelets    # a peer that is not there is left out
    python tests/benchmarks/duplicates.py DATA                # the folder of sample data

Pictures: chest x-rays of NIH (64 x 64) and of the COVID collection, blood smears, nuclei. Each is changed in seven ways
as pictures are on their way from one set to another; the changed ones are sought among all originals. A pair of a
changed picture and its own original is to be found; one with any other original is not, and most of those are the same
view of another patient. Pictures of one patient are on one side only and never count against anybody.

Thresholds, ours and the peers', are chosen on half of the patients (best F1 over all changes) and reported on the other
half, which no threshold has seen. The peers' usual thresholds (10 bits) are reported as well.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import io
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from infra.keys import sha256
from transforms.curation.duplicates import look, match
from transforms.curation.hashes import nearest
from transforms.curation.pairs import table_of, written
from transforms.decoded import Pixels

Change = Callable[[Pixels, np.random.Generator], Pixels]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Picture:
    """One original."""

    pixels: Pixels
    kind: str
    patient: str


def originals(data: Path, most: int) -> Iterator[Picture]:
    """At most so many of each kind, in the order of a hash of their names."""
    for kind, glob in (("nih", "classification/nih_cxr64/**/*.png"),
                       ("covid", "classification/covid_cxr_nc/images/**/*.*"),
                       ("blood", "detection/bccd_voc/**/*.jpg"), ("nuclei", "segmentation/dsb2018/**/images/*.png")):
        files = sorted(data.glob(glob), key=lambda path: sha256(path.name.encode()))[:most]
        patients = _covid(data) if kind == "covid" else {}
        for path in files:
            image = Image.open(path)
            patient = path.name.split("_")[0] if kind == "nih" else patients.get(path.name, path.name)
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
            yield Picture(pixels, kind, f"{kind}:{patient}")


def _covid(data: Path) -> dict[str, str]:
    with open(data / "classification/covid_cxr_nc/metadata.csv", encoding="utf-8") as file:
        return {row["filename"]: row["Patientid"] for row in csv.DictReader(file)}


def cropped(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    share = rng.uniform(0.7, 0.95)
    rows, columns = (round(side * share) for side in pixels.shape[:2])
    y, x = (int(rng.integers(0, side - part + 1)) for side, part in zip(pixels.shape, (rows, columns), strict=False))
    return pixels[y : y + rows, x : x + columns]


def scaled(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    factor = rng.choice([0.5, 0.75, 1.5])
    size = (round(pixels.shape[1] * factor), round(pixels.shape[0] * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def jpeg(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "JPEG", quality=int(rng.integers(30, 71)))
    return np.asarray(Image.open(out))


def windowed(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    low, high = rng.uniform(0, 60), rng.uniform(180, 255)
    return np.clip((pixels.astype(np.float64) - low) * 255 / (high - low), 0, 255).astype(np.uint8)


def bordered(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    edges = [(int(rng.integers(2, side // 5)), int(rng.integers(2, side // 5))) for side in pixels.shape[:2]]
    return np.pad(pixels, [*edges, (0, 0)][: pixels.ndim], constant_values=int(rng.choice([0, 255])))


def flipped(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return np.ascontiguousarray(pixels[:, ::-1])


def all_but_flip(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return jpeg(bordered(windowed(cropped(pixels, rng), rng), rng), rng)


CHANGES: dict[str, Change] = {
    "crop": cropped, "scale": scaled, "jpeg": jpeg, "window": windowed, "border": bordered, "flip": flipped,
    "crop+window+border+jpeg": all_but_flip,
}


def ours(base: Sequence[Pixels], changed: Sequence[Pixels]) -> dict[Pair, float]:
    """Score of each pair that was compared, as the stage does it."""
    own, other = (table_of(written(pixels) for pixels in some) for some in (changed, base))
    pairs = [(n.query, n.other, n.view) for n in nearest(own[:, 0], other, 14, 8)]
    back = [(n.other, n.query, n.view) for n in nearest(other[:, 0], own, 14, 8) if n.view.startswith("crop")]
    looks = [look(pixels) for pixels in changed], [look(pixels) for pixels in base]
    found: dict[Pair, float] = {}
    for way, some in enumerate((pairs, back)):
        for a, b, view in some:
            first, second = (looks[0][a], looks[1][b]) if way == 0 else (looks[1][b], looks[0][a])
            found[a, b] = max(found.get((a, b), -1.0), match(first, second, view).score)
    return found


def imagehash_by(name: str) -> Callable[[Sequence[Pixels], Sequence[Pixels]], dict[Pair, float]]:
    """Minus the bits in which the hashes of each pair differ."""
    import imagehash

    def found(base: Sequence[Pixels], changed: Sequence[Pixels]) -> dict[Pair, float]:
        codes = [[getattr(imagehash, name)(Image.fromarray(p)) for p in some] for some in (changed, base)]
        return {(a, b): -float(x - y) for a, x in enumerate(codes[0]) for b, y in enumerate(codes[1])}

    return found


def imagededup_phash(base: Sequence[Pixels], changed: Sequence[Pixels]) -> dict[Pair, float]:
    """The same by imagededup's PHash."""
    from imagededup.methods.hashing import PHash

    hasher = PHash(verbose=False)
    codes = [[hasher.encode_image(image_array=p) for p in some] for some in (changed, base)]
    return {
        (a, b): -float(hasher.hamming_distance(x, y)) for a, x in enumerate(codes[0]) for b, y in enumerate(codes[1])
    }


def methods() -> dict[str, Any]:
    found: dict[str, Any] = {"medloom": ours}
    for name in ("phash", "dhash"):
        try:
            found[f"imagehash.{name}"] = imagehash_by(name)
        except ImportError as error:
            print(f"left out: imagehash ({error})")
    try:
        place = importlib.util.find_spec("imagededup")
        if place is None:
            raise ImportError("not installed")
        # its packages import torchvision for networks that are not asked for here: only the hashes are loaded
        for name in ("imagededup", "imagededup.methods", "imagededup.utils"):
            package = sys.modules[name] = types.ModuleType(name)
            package.__path__ = [str(Path(place.origin or "").parent.joinpath(*name.split(".")[1:]))]
        importlib.import_module("imagededup.methods.hashing")
        found["imagededup.PHash"] = imagededup_phash
    except ImportError as error:
        print(f"left out: imagededup ({error})")
    return found


Scores = dict[str, dict[Pair, float]]


def counts(scores: Scores, pictures: Sequence[Picture], least: float) -> dict[str, tuple[int, int]]:
    """Change -> pairs rightly found, pairs wrongly found."""
    found = {}
    for change, pairs in scores.items():
        said = [pair for pair, score in pairs.items() if score >= least]
        right = sum(a == b for a, b in said)
        wrong = sum(pictures[a].patient != pictures[b].patient for a, b in said)
        found[change] = right, wrong
    return found


def figures(scores: Scores, pictures: Sequence[Picture], least: float) -> tuple[float, float, float]:
    """Precision, recall and F1 over all changes."""
    found = counts(scores, pictures, least).values()
    right, wrong = sum(r for r, _ in found), sum(w for _, w in found)
    precision, recall = right / max(1, right + wrong), right / (len(pictures) * len(scores))
    return precision, recall, 2 * precision * recall / max(1e-9, precision + recall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--most", type=int, default=40, help="pictures of each kind")
    asked = parser.parse_args()
    halves: tuple[list[Picture], list[Picture]] = ([], [])
    for picture in originals(asked.data, asked.most):
        halves[int(sha256(picture.patient.encode())[0], 16) % 2].append(picture)
    print("pictures:", *(f"{len(half)} ({len({p.patient for p in half})} patients or slides)" for half in halves))
    for name, method in methods().items():
        scores: list[Scores] = []
        spent = 0.0
        for half in halves:
            base = [picture.pixels for picture in half]
            scores.append({})
            for number, (change, apply) in enumerate(CHANGES.items()):
                changed = [apply(p, np.random.default_rng([number, at])) for at, p in enumerate(base)]
                began = time.perf_counter()
                scores[-1][change] = method(base, changed)
                spent += time.perf_counter() - began
        levels = sorted({round(s, 2) for pairs in scores[0].values() for s in pairs.values()})
        chosen = max(levels, key=lambda least: figures(scores[0], halves[0], least)[2])
        for least in (chosen, *((-10.0,) if name != "medloom" else (0.53,))):
            precision, recall, f1 = figures(scores[1], halves[1], least)
            images = 2 * sum(map(len, halves)) * len(CHANGES) / spent
            print(f"\n{name}, least {least:g}{' (chosen)' if least == chosen else ''}: precision {precision:.3f}  "
                  f"recall {recall:.3f}  F1 {f1:.3f}  {images:.0f} images/s")
            for change, (right, wrong) in counts(scores[1], halves[1], least).items():
                print(f"  {change:26} recall {right / len(halves[1]):.2f}  wrong pairs {wrong}")


if __name__ == "__main__":
    main()
