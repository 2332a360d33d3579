"""How often the `look` classifier is right on sources it never saw, and the making of its coefficients.

    python tests/benchmarks/imagetype.py           the table: leave one source out, by class; milliseconds an image
    python tests/benchmarks/imagetype.py --write   fit on all open sources and write transforms/classifiers/look.yaml

It reads the sample data (MEDLOOM_DATA, default ../shared/data) and scikit-learn's two photographs. A fold leaves out
one whole source (a patient, an article, a collection) and trains on the others and on drawn pictures, each varied
several times; it is tested on the source's own pictures as they are. The table says how many sources a class has:
with two or three, a fold has learnt the class from very little. Pictures with non-commercial licences are only tested
on. It takes some minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from picturetypes import Picture, drawn, pictures, varied

from transforms.classifiers import look
from transforms.classifiers.classes import table
from transforms.classifiers.features import features, names

DATA = Path(os.environ.get("MEDLOOM_DATA", Path(__file__).parents[3] / "shared" / "data"))
ROWS, DRAWN, MOST = 160, 110, 12
"""Training pictures of a class made from real ones, drawn ones of a class, and variants of one picture at most."""
PENALTY = 4e-3
CLIP = 3.0

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """A multinomial logistic regression over clipped standard scores."""

    classes: tuple[str, ...]
    mean: Array
    scale: Array
    weights: Array
    bias: Array

    def logits(self, rows: Array) -> Array:
        return np.clip((rows - self.mean) / self.scale, -CLIP, CLIP) @ self.weights + self.bias


@dataclass(frozen=True)
class Rows:
    """Feature rows with what they show and where they come from."""

    x: Array
    kinds: npt.NDArray[np.str_]
    sources: npt.NDArray[np.str_]

    def where(self, chosen: npt.NDArray[np.bool_]) -> Rows:
        return Rows(self.x[chosen], self.kinds[chosen], self.sources[chosen])


def rows_of(found: Sequence[Picture]) -> Rows:
    return Rows(
        np.stack([features(p.pixels) for p in found]), np.array([p.kind for p in found]),
        np.array([p.source for p in found]),
    )


def training(real: Sequence[Picture]) -> list[Picture]:
    """Variants of the open pictures, so many that each class has about ROWS, and drawn ones."""
    counts = Counter(p.kind for p in real)
    made = []
    for number, picture in enumerate(real):
        rng = np.random.default_rng([number, zlib.crc32(picture.kind.encode())])
        times = min(MOST, max(1, round(ROWS / counts[picture.kind])))
        made += [varied(picture, rng) for _ in range(times)]
    for number, picture in enumerate(drawn(DRAWN)):
        made.append(varied(picture, np.random.default_rng([number, 7])))
    return made


def weights(rows: Rows) -> Array:
    """Classes count alike; in a class, a source counts as the root of its size."""
    sizes = Counter(zip(rows.kinds, rows.sources, strict=True))
    raw = np.array([sizes[pair] ** -0.5 for pair in zip(rows.kinds, rows.sources, strict=True)])
    for kind in set(rows.kinds):
        raw[rows.kinds == kind] /= raw[rows.kinds == kind].sum()
    return np.asarray(raw / raw.sum())


def fit(rows: Rows, penalty: float = PENALTY) -> Model:
    """Weighted maximum likelihood with an L2 penalty, by L-BFGS."""
    from scipy.optimize import minimize

    classes = tuple(sorted({str(kind) for kind in rows.kinds}))
    share = weights(rows)
    mean = share @ rows.x
    scale = np.sqrt(share @ (rows.x - mean) ** 2) + 1e-6
    x = np.clip((rows.x - mean) / scale, -CLIP, CLIP)
    target = np.array([[kind == c for c in classes] for kind in rows.kinds], float)
    shape = (x.shape[1], len(classes))

    def loss(flat: Array) -> tuple[float, Array]:
        w, b = flat[: -len(classes)].reshape(shape), flat[-len(classes) :]
        z = x @ w + b
        log_p = z - z.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        error = share[:, None] * (np.exp(log_p) - target)
        value = -(share[:, None] * target * log_p).sum() + penalty * (w**2).sum()
        return float(value), np.concatenate([(x.T @ error + 2 * penalty * w).ravel(), error.sum(0)])

    start = np.zeros(shape[0] * shape[1] + shape[1])
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 150})
    return Model(classes, mean, scale, best.x[: -len(classes)].reshape(shape), best.x[-len(classes) :])


def leave_one_out(train: Rows, test: Rows, penalty: float = PENALTY) -> list[tuple[str, str, Model, Array]]:
    """(source, true class, fold's model, logits) of each test picture."""
    told = []
    for source in sorted(set(test.sources)):
        model = fit(train.where(train.sources != source), penalty)
        fold = test.where(test.sources == source)
        told += [
            (source, str(kind), model, row) for kind, row in zip(fold.kinds, model.logits(fold.x), strict=True)
        ]
    return told


def temperature(told: Sequence[tuple[str, str, Model, Array]], test: Rows) -> float:
    """The divisor of the logits with the best likelihood on the pictures left out; each class counts alike."""
    per_class = Counter(kind for _, kind, _, _ in told)

    def loss(t: float) -> float:
        total = 0.0
        for _, kind, model, row in told:
            if kind in model.classes:
                z = row / t - (row / t).max()
                total += (np.log(np.exp(z).sum()) - z[model.classes.index(kind)]) / per_class[kind]
        return total

    return float(min(np.geomspace(0.3, 8, 60), key=loss))


def report(told: Sequence[tuple[str, str, Model, Array]], t: float) -> None:
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    by_source: dict[tuple[str, str], list[bool]] = defaultdict(list)
    sure: list[tuple[float, bool]] = []
    for source, kind, model, row in told:
        p = np.exp(row / t - (row / t).max())
        said = model.classes[int(row.argmax())]
        confusion[kind][said] += 1
        by_source[kind, source].append(said == kind)
        sure.append((float(p.max() / p.sum()), said == kind))
    print(f"{'class':24}{'sources':>8}{'pictures':>9}{'recall':>8}{'by source':>10}  said instead")
    recalls, source_recalls = [], []
    for kind, row in sorted(confusion.items()):
        right = row[kind] / row.total()
        of_sources = [float(np.mean(v)) for (k, _), v in by_source.items() if k == kind]
        recalls.append(right)
        source_recalls.append(np.mean(of_sources))
        wrong = ", ".join(f"{other} {n}" for other, n in row.most_common() if other != kind)
        print(f"{kind:24}{len(of_sources):8}{row.total():9}{right:8.2f}{np.mean(of_sources):10.2f}  {wrong}")
    total = sum(row.total() for row in confusion.values())
    right = sum(row[kind] for kind, row in confusion.items())
    group = {code: entry.group for code, entry in table().items()}
    grouped = sum(n for kind, row in confusion.items() for said, n in row.items() if group[kind] == group[said])
    print(f"accuracy {right / total:.3f} of {total}, of the group {grouped / total:.3f}")
    print(f"mean recall {np.mean(recalls):.3f}, by source {np.mean(source_recalls):.3f}")
    for least in (0.5, 0.8, 0.95):
        kept = [ok for p, ok in sure if p >= least]
        print(f"score >= {least}: {len(kept) / total:.2f} of the pictures, {np.mean(kept):.3f} of them right")


def write(model: Model, t: float) -> None:
    def numbers(values: Array) -> list[float]:
        return [float(f"{value:.4g}") for value in values]

    content: dict[str, Any] = {
        "classes": list(model.classes), "features": list(names()), "clip": CLIP, "mean": numbers(model.mean),
        "scale": numbers(model.scale), "bias": numbers(model.bias / t),
        "weights": [numbers(row) for row in model.weights.T / t],
    }
    head = (
        "# Coefficients of the look classifier, written by tests/benchmarks/imagetype.py --write; do not edit.\n"
        "# weights: one row a class, one number a feature; of standard scores, clipped; the temperature is in them.\n"
    )
    look.FILE.write_text(head + yaml.safe_dump(content, default_flow_style=None, width=120, sort_keys=False))
    print(f"wrote {look.FILE}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true", help="fit on all open sources and write the coefficients")
    chosen = options.parse_args()
    found = list(pictures(DATA))
    open_ones = [p for p in found if p.open]
    start = time.process_time()
    test = rows_of(found)
    print(f"{(time.process_time() - start) / len(found) * 1000:.0f} ms an image for {len(names())} features")
    train = rows_of(training(open_ones))
    print(f"{len(train.x)} training pictures, {len(found)} real ones to test")
    told = leave_one_out(train, test)
    t = temperature(told, test)
    print(f"temperature {t:.2f}")
    report(told, t)
    if chosen.write:
        write(fit(train), t)


if __name__ == "__main__":
    main()
