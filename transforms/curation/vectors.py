"""Vectors of pictures: written down once, and searched for pictures that are alike.

The invariant: a pair that is found is only worth a look. Vectors find two views of one body part in two patients as
near as a picture and its copy, so nothing is called the same by them (transforms/curation/duplicates.py decides).

Exact, no index: n vectors of d numbers take 4nd bytes and n * n * d multiplications, and beside them about 250 MB for
one block of cosines at a time. Of 512 numbers, 100,000 pictures hold 200 MB and take about four minutes of one core; a
million hold 2 GB and take hours.

>>> list(alike(np.eye(3, 2, dtype=np.float32) + 0.1, least=0.2, most=1))
[(0, 2, 0.7733), (1, 2, 0.7733), (2, 0, 0.7733)]
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from transforms.curation.dataset import Dataset
from transforms.curation.encoder import Encoder
from transforms.knowledge.embedding import Vectors

VECTOR = "signature/vector"
"""The check in which the stage `similarity` writes down the vector of a sample; its version ends in the identity of the
encoder."""
BLOCK = 1 << 24
"""Cosines held at a time."""
DIGITS = 4
"""Decimals of a cosine: more would only tell processors apart."""

Codes = npt.NDArray[np.int64]


def written(vector: Vectors) -> str:
    """A vector as the check's detail: half precision, base64; 1.4 KB of 512 numbers."""
    return base64.b64encode(vector.astype("<f2").tobytes()).decode("ascii")


def read(detail: str) -> Vectors:
    """A vector as it was written down: unit length but for its half precision."""
    return np.frombuffer(base64.b64decode(detail), "<f2").astype(np.float32)


def vectors(dataset: Dataset, names: Sequence[str], encoder: Encoder) -> Vectors:
    """(len(names), dimension) as the checks of this very encoder tell them; of other samples, from their pixels."""
    place = {name: number for number, name in enumerate(names)}
    made = np.empty((len(names), 0), np.float32)
    known = np.zeros(len(names), np.bool_)

    def told() -> Iterator[tuple[str, str]]:
        for table in dataset.tables("checks", ("sample_id", "check", "version", "detail")):
            for row in table.filter(pc.equal(table["check"], VECTOR)).to_pylist():
                if row["sample_id"] in place and row["version"].endswith(f"@{encoder.identity}"):
                    yield row["sample_id"], row["detail"]
        missing = {name for name in names if not known[place[name]]}  # the loop below has taken all that was told
        for name, pixels in dataset.pictures(missing) if missing else ():
            yield name, written(encoder.picture(pixels))

    for name, detail in told():
        vector = read(detail)
        made = made if made.size else np.empty((len(names), len(vector)), np.float32)
        made[place[name]], known[place[name]] = vector, True
    return made


def alike(vectors: Vectors, least: float, most: int, apart: Sequence[Codes] = ()) -> Iterator[tuple[int, int, float]]:
    """(picture, other, cosine): of each picture at most `most` others at a cosine of `least` or more, nearest first.

    `apart` are codes (n,), such as of volumes: pictures of one code are not compared.
    """
    count = len(vectors)
    rows = max(1, BLOCK // max(1, count))
    for begin in range(0, count, rows):
        cosines = vectors[begin : begin + rows] @ vectors.T
        cosines.round(DIGITS, out=cosines)
        own = np.arange(begin, begin + len(cosines))
        cosines[own - begin, own] = -np.inf
        for codes in apart:
            cosines[codes[own][:, None] == codes] = -np.inf
        bounds = np.partition(cosines, count - min(most, count), axis=1)[:, count - min(most, count)]
        for number, row, bound in zip(own, cosines, np.maximum(bounds, least), strict=True):
            others = np.flatnonzero(row >= bound)
            for other in others[np.argsort(-row[others], kind="stable")[:most]]:
                yield int(number), int(other), round(float(row[other]), DIGITS)
