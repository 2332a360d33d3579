"""Benchmarks as they lie on disk, their pictures and words, and what of their words stands in a text.

The invariant: nothing of a benchmark is run (pickles are never opened), none of it is left out in silence, and none of
it is written but the names of its files and rows: so a dataset may be checked against what may not be passed on.

Any folder will do: pictures anywhere below it (VQA-RAD's image folder, SLAKE's imgs/xmlabN/source.jpg, PathVQA's
images), `*_images` arrays of .npz files (MedMNIST), pictures inside Parquet (Hugging Face's editions); questions,
captions and reports in JSON, JSON lines, CSV, TSV and Parquet.

>>> [name for name, _, _ in pictures(Path("Slake1.0"), ("imgs/*",))][:1]
['imgs/xmlab0/source.jpg']
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import ConfigError, ItemError
from infra.keys import sha256
from infra.storage import file_sha256
from transforms.decoded import Pixels
from transforms.pictures.imagefile import open_image

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
WORDS = 8
"""Words of a run that is sought, and the least a text must have: shorter questions are everybody's."""


def files(root: Path, only: Sequence[str] = ()) -> list[Path]:
    """Files below root whose relative path matches one of the globs (* crosses folders), or all of them."""
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; `sets` names folders of benchmarks")
    found = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return [p for p in found if not only or any(fnmatchcase(str(p.relative_to(root)), glob) for glob in only)]


def contents(root: Path, only: Sequence[str] = ()) -> str:
    """Hash of the names and bytes of these files: what enters a key."""
    lines = [f"{path.relative_to(root)} {file_sha256(path)}" for path in files(root, only)]
    return sha256("\n".join(lines).encode())


def pictures(root: Path, only: Sequence[str] = ()) -> Iterator[tuple[str, str, Pixels]]:
    """(name, SHA-256 of the encoded bytes as a sample keeps them, or '', 8-bit pixels) of every picture.

    ConfigError for one that cannot be read.
    """
    for path in files(root, only):
        name = str(path.relative_to(root))
        if path.suffix.lower() in IMAGES:
            yield from _decoded(name, path.read_bytes())
        elif path.suffix.lower() == ".npz":
            yield from _arrays(name, path)
        elif path.suffix.lower() == ".parquet":
            for number, row in enumerate(_parquet(path, pictures=True)):
                for column, value in row.items():
                    if isinstance(value, dict) and value.get("bytes"):
                        yield from _decoded(f"{name}#{number}:{column}", value["bytes"])


def _decoded(name: str, data: bytes) -> Iterator[tuple[str, str, Pixels]]:
    try:
        opened = open_image(data)
    except ItemError as error:
        raise ConfigError(f"benchmark picture {name} cannot be read ({error}); name the others with `only`") from None
    yield name, sha256(opened.encoded or data), opened.pixels


def _arrays(name: str, path: Path) -> Iterator[tuple[str, str, Pixels]]:
    """MedMNIST: `SPLIT_images` of shape (n, h, w) or (n, h, w, 3), uint8."""
    try:
        with np.load(path, allow_pickle=False) as held:
            for key in held.files:
                if key.endswith("_images"):
                    array = held[key]
                    if array.dtype == np.uint8 and (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)):
                        yield from ((f"{name}:{key}[{number}]", "", pixels) for number, pixels in enumerate(array))
    except (ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: not a .npz file of plain arrays ({error}); pickles are not opened") from None


def texts(root: Path, columns: Sequence[str], only: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """(name, text) of every string under one of these keys."""
    for path in files(root, only):
        name, kind = str(path.relative_to(root)), path.suffix.lower()
        if kind not in TABLES:
            continue
        rows: Iterable[Any]
        try:
            if kind == ".parquet":
                rows = _parquet(path, pictures=False)
            elif kind == ".json":
                rows = [json.loads(path.read_text("utf-8-sig"))]
            elif kind == ".jsonl":
                rows = [json.loads(line) for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
            else:
                reader = csv.DictReader(path.read_text("utf-8-sig").splitlines(), delimiter=",\t"[kind == ".tsv"])
                rows = list(reader)
        except ValueError as error:
            raise ConfigError(f"{path}: cannot be read as {kind[1:]} ({error}); leave it out with `only`") from None
        for number, row in enumerate(rows):
            for place, text in _strings(row, set(columns)):
                yield f"{name}#{number}{place}", text


def _strings(value: Any, columns: set[str], place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, str) and key in columns:
                yield f"{place}:{key}", inner
            elif isinstance(inner, dict | list):
                yield from _strings(inner, columns, f"{place}:{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _strings(inner, columns, f"{place}:{number}")


def _parquet(path: Path, pictures: bool) -> Iterator[dict[str, Any]]:
    """Rows with the columns that hold pictures, or with those that hold words."""
    with pq.ParquetFile(path) as file:
        fields = [f.name for f in file.schema_arrow if pa.types.is_struct(f.type) == pictures]
        for batch in file.iter_batches(64, columns=fields):
            yield from batch.to_pylist()


def words(text: str) -> tuple[str, ...]:
    """Words in one spelling: compatibility forms unified, no case, no punctuation."""
    return tuple(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


class Wording:
    """The texts of a benchmark, ready to be recognised in others.

    A text counts if it has at least WORDS words and stands in the benchmark once: a question that is asked of many
    pictures is nobody's secret.
    """

    def __init__(self, named: Iterable[tuple[str, str]]) -> None:
        spelled = [(name, words(text)) for name, text in named]
        times = Counter(spelling for _, spelling in spelled)
        own = [(name, spelling) for name, spelling in spelled if len(spelling) >= WORDS and times[spelling] == 1]
        self.names = [name for name, _ in own]
        self._whole = {spelling: number for number, (_, spelling) in enumerate(own)}
        self._runs: dict[tuple[str, ...], list[int]] = {}
        self._sizes = []
        for number, (_, spelling) in enumerate(own):
            runs = _runs(spelling)
            self._sizes.append(len(runs))
            for run in runs:
                self._runs.setdefault(run, []).append(number)

    def found(self, text: str) -> tuple[str, str, float] | None:
        """(level, name, share) of the text of the benchmark that is best seen in this one, or None.

        Level `text`: word for word the same. Level `overlap`: this share of its runs of WORDS words stand here.
        """
        spelling = words(text)
        if (number := self._whole.get(spelling)) is not None:
            return "text", self.names[number], 1.0
        hits = Counter(number for run in _runs(spelling) for number in self._runs.get(run, ()))
        if not hits:
            return None
        number = max(hits, key=lambda n: (hits[n] / self._sizes[n], -n))
        return "overlap", self.names[number], round(hits[number] / self._sizes[number], 4)


def _runs(spelling: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(spelling[at : at + WORDS]) for at in range(len(spelling) - WORDS + 1)}
