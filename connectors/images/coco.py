"""COCO: one JSON file of many images; boxes are x, y, width, height from 0, outlines are polygons or run lengths.

The invariant: one region an annotation: its outline where it has one (the box then follows from the mask), else its
box. Annotations of images that the file does not list come out as one entry an image.

>>> [len(entry.boxes) for entry in read_coco(Path("train/a.json"), "train/a.json")]
[15, 4, …]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from catalog.items import Box
from connectors.images.stated import Stated, annotated, beside, finite, unreadable
from infra.errors import Terminal


def read_coco(path: Path, name: str) -> Iterator[Stated]:
    """One entry an image, with its regions. Raises Terminal ANNOTATION_UNREADABLE.

    An entry whose regions make no sense carries the error.
    """
    try:
        whole = json.loads(path.read_bytes())
        images = {image["id"]: image for image in whole["images"]}
        categories = {category["id"]: str(category["name"]) for category in whole["categories"]}
        licences = {licence["id"]: str(licence["name"]) for licence in whole.get("licenses", ())}
        notes: dict[Any, list[Mapping[str, Any]]] = {}
        for note in whole["annotations"]:
            notes.setdefault(note["image_id"], []).append(note)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise unreadable(name, error) from error
    for id in dict.fromkeys([*images, *notes]):
        image = images.get(id)
        stated = Stated(f"{name} image {id}", name)
        if image is None:
            why = f"{name}: annotations of image {id}, which is not listed under images; correct the file"
            yield replace(stated, error=Terminal("FILE_MISSING", why))
            continue
        try:
            stated = replace(stated, id=beside(name, image["file_name"]), names=(image["file_name"],))
            regions = [_region(note, categories) for note in notes.get(id, ())]
            facts = annotated([float(image.get("height") or 0), float(image.get("width") or 0)])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            yield replace(stated, error=unreadable(stated.id, error))
            continue
        licence = licences.get(image.get("license"))
        yield replace(
            stated, facts=facts, licence=(licence, "coco:licenses") if licence else None,
            boxes=tuple(region for region in regions if isinstance(region, Box)),
            outlines=tuple(region for region in regions if not isinstance(region, Box)),
        )


def _region(note: Mapping[str, Any], categories: Mapping[Any, str]) -> Box | dict[str, Any]:
    label = categories[note["category_id"]]
    outline = note.get("segmentation")
    if isinstance(outline, Mapping):
        return {"label": label, "rle": {"size": _sides(outline["size"]), "counts": _counts(outline["counts"])}}
    if outline:
        return {"label": label, "polygons": _polygons(outline)}
    x, y, width, height = finite(note["bbox"])
    return Box(label, (x, y, x + width, y + height))


def _polygons(outline: Iterable[Any]) -> list[list[float]]:
    polygons = [finite(polygon) for polygon in outline]
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon needs three points or more, x and y of each")
    return polygons


def _sides(size: Iterable[Any]) -> list[int]:
    height, width = (int(side) for side in size)
    return [height, width]


def _counts(counts: Any) -> str | list[int]:
    return counts if isinstance(counts, str) else [int(count) for count in counts]
