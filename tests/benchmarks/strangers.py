"""How well two pictures lie over each other where no hash says how: strangers beside parts of one picture.

    python tests/benchmarks/strangers.py DATA      # the folder of sample data; about a minute of one core

This is what the stage duplicates asks of a pair that an encoder proposed. No encoder is needed: the strangers are those
that one would propose, pictures of other patients nearest in their coarse form. Parts are cut from 0.62 to 0.75 of each
side at a random place, as they are and saved as JPEG, and from the mirrored picture. Patients are halved by a hash.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from duplicates import Picture, originals
from PIL import Image

from infra.keys import sha256
from transforms.curation.duplicates import look, match
from transforms.curation.hashes import grey

NEAREST = {"nih": 4, "covid": 3, "blood": 1, "nuclei": 1}
"""Strangers to each picture."""
LIMITS = (0.45, 0.53, 0.56, 0.6, 0.62, 0.65)


def half(picture: Picture) -> int:
    """0 or 1, the same for all pictures of a patient."""
    return int(sha256(picture.patient.encode())[:2], 16) % 2


def strangers(pictures: list[Picture], most: int) -> set[tuple[int, int]]:
    """Pairs of different patients of one half: for each picture the nearest in 16 x 16 pixels."""
    small = [Image.fromarray(grey(p.pixels)).resize((16, 16), Image.Resampling.BOX) for p in pictures]
    alike = np.corrcoef(np.stack([np.asarray(image, float).ravel() for image in small]))
    pairs = set()
    for a, own in enumerate(pictures):
        others = [int(b) for b in np.argsort(-alike[a])
                  if pictures[b].patient != own.patient and half(pictures[b]) == half(own)]
        pairs |= {(min(a, b), max(a, b)) for b in others[:most]}
    return pairs


def parts(picture: Picture, rng: np.random.Generator) -> list[np.ndarray]:
    """A part, the part as JPEG, and a part mirrored."""
    pixels = grey(picture.pixels)
    height, width = pixels.shape
    share = rng.uniform(0.62, 0.75)
    y, x = int(rng.uniform(0, 1 - share) * height), int(rng.uniform(0, 1 - share) * width)
    part = pixels[y : y + int(share * height), x : x + int(share * width)]
    out = io.BytesIO()
    Image.fromarray(part).save(out, "JPEG", quality=60)
    large = pixels[int(0.08 * height) : int(0.9 * height), int(0.05 * width) : int(0.88 * width)]
    return [part, np.asarray(Image.open(out)), np.ascontiguousarray(large[:, ::-1])]


def main(data: Path) -> None:
    rng = np.random.default_rng(5)
    false: tuple[list[float], list[float]] = ([], [])
    true: tuple[list[float], list[float]] = ([], [])
    every = list(originals(data, 110))
    for kind, most in NEAREST.items():
        pictures = [picture for picture in every if picture.kind == kind]
        for a, b in sorted(strangers(pictures, most)):
            false[half(pictures[a])].append(match(look(pictures[a].pixels), look(pictures[b].pixels)).score)
        for picture in pictures[:: 4 if kind == "nih" else 6]:
            whole = look(picture.pixels)
            true[half(picture)].extend(match(look(part), whole).score for part in parts(picture, rng))
    for number in (0, 1):
        print(f"half {number}: {len(false[number])} strangers, at most {max(false[number])}; "
              f"{len(true[number])} parts, at least {min(true[number])}")
        for limit in LIMITS:
            wrong, right = np.array(false[number]) >= limit, np.array(true[number]) >= limit
            print(f"  from {limit}: {wrong.sum()} strangers are one, {right.mean():.3f} of the parts are found")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
