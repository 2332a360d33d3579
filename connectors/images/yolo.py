"""YOLO: one text file an image, a line a region, in fractions of the image as it is shown.

The invariant: a line is a box (class, centre x, centre y, width, height, perhaps a confidence), or an outline (class
and three points or more), or the file is refused. An empty file says that there is nothing; so does no file at all,
if `unlisted` is keep.

The names of the classes stand in a data.yaml (or data.yml) with `names`, a list or a table, or in classes.txt or
obj.names, one a line. With `kpt_shape` in data.yaml what follows the box are keypoints, which are no region.

>>> next(read_yolo(Path("labels/train/a.txt"), "labels/train/a.txt", Classes({0: "polyp"}))).boxes
(Box(label='polyp', xyxy=(0.25, 0.25, 0.75, 0.5), role='region'),)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from catalog.items import Box
from connectors.images.stated import Stated, finite, unreadable
from infra.errors import ConfigError

LISTS = ("classes.txt", "obj.names", "labels.txt")
NO_ANNOTATION = ("readme", "license", "licence", "train", "val", "valid", "test", "requirements")
"""Stems of text files that are none: notes, and lists of images."""


@dataclass(frozen=True)
class Classes:
    """What the class numbers mean."""

    names: Mapping[int, str]
    file: str = ""
    keypoints: bool = False


def find_classes(root: Path, files: Iterable[str]) -> Classes:
    """The classes that a file nearest to the root names. Raises ConfigError where there is none, or it is no table."""
    nearest = sorted(files, key=lambda name: (name.count("/"), name))
    tables = [name for name in nearest if name.endswith((".yaml", ".yml"))]
    for name in tables:
        try:
            whole = yaml.safe_load((root / name).read_text(encoding="utf-8"))
        except (OSError, UnicodeError, yaml.YAMLError):
            continue
        if isinstance(whole, dict) and isinstance(whole.get("names"), list | dict):
            names = whole["names"]
            pairs = names.items() if isinstance(names, dict) else enumerate(names)
            try:
                return Classes({int(n): str(word) for n, word in pairs}, name, "kpt_shape" in whole)
            except ValueError as error:
                raise ConfigError(f"{name}: the names of classes need numbers: {error}") from error
    for name in nearest:
        if PurePosixPath(name).name in LISTS:
            lines = (root / name).read_text(encoding="utf-8").splitlines()
            return Classes({n: line.strip() for n, line in enumerate(lines) if line.strip()}, name)
    raise ConfigError(f"no names of classes: add a data.yaml with names, or one of {', '.join(LISTS)}")


def is_annotation(name: str, classes: Classes) -> bool:
    """Whether a file may hold regions of an image."""
    path = PurePosixPath(name)
    return path.suffix == ".txt" and name != classes.file and path.stem.lower() not in NO_ANNOTATION


def read_yolo(path: Path, name: str, classes: Classes) -> Iterator[Stated]:
    """The regions of one file, one entry. Raises Terminal ANNOTATION_UNREADABLE."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        regions = [_region(line.split(), classes) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise unreadable(name, error) from error
    parts = PurePosixPath(name).with_suffix("").parts
    beside = ["images" if part == "labels" else part for part in parts]
    yield Stated(
        name, name, ("/".join(beside), *(() if "labels" in parts else parts[-1:])),
        boxes=tuple(region for region in regions if isinstance(region, Box)),
        outlines=tuple(region for region in regions if not isinstance(region, Box)),
        # training tools turn the image by its EXIF before they apply the fractions
        facts={"annotated_size": [1, 1], "annotated_upright": True},
    )


def _region(words: list[str], classes: Classes) -> Box | dict[str, Any]:
    number, *values = words
    label = classes.names.get(int(number))
    if label is None:
        raise ValueError(f"class {number} is not among the {len(classes.names)} of {classes.file}")
    numbers = finite(values)
    if any(not -0.01 <= value <= 1.01 for value in numbers[:4]):
        raise ValueError(f"{' '.join(words[:5])}: values are fractions, from 0 to 1")
    if classes.keypoints:
        numbers = numbers[:4]
    if len(numbers) in (4, 5):
        x, y, width, height = numbers[:4]
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return Box(label, box) if len(numbers) == 4 else {"label": label, "box": list(box), "score": numbers[4]}
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        return {"label": label, "polygons": [numbers]}
    raise ValueError(f"a line has {len(words)} words; a box has 5 or 6, an outline 7 or more, always an odd number")
