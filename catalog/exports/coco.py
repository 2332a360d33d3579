"""COCO: `annotations.json` with images, annotations and categories, and the images beside it under `images/`.

Boxes are [x, y, width, height] in pixels of the stored image, cut to it. Masks are compressed run-length codes, which
pycocotools, detectron2 (`mask_format: bitmask`) and mmdetection read, and which lose nothing; with `masks=polygon` they
are outlines along pixel edges, whose holes are filled (counted in the manifest's notes). A region with a box alone has
an empty segmentation. Ids are numbers in order of writing from 1; `sample_id` and `roi_id` stand beside them.

>>> COCO(out / "annotations.json").annToMask(annotation)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from catalog.exports import CAPTION_KINDS, Counts, picture
from catalog.exports.regions import NO_REGION, RegionParams, Spool, chosen, has_holes, polygons
from catalog.masks import decode_mask
from catalog.selection import Row

NAME = "coco"
REQUIRES: dict[str, str] = {}
_KEPT = ("roi_id", "score", "expert", "origin", "trust", "position")


class Params(RegionParams):
    """Which regions, and how masks are written."""

    masks: Literal["rle", "polygon"] = Field("rle", description="run-length codes, or outlines with holes filled")


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write annotations.json and images/. Samples without a region are left out and counted, unless `empty`."""
    counts = Counts()
    (out / "images").mkdir()
    with Spool(out, params.classes) as spool, open(out / "annotations.json", "w", encoding="utf-8") as file:
        file.write('{"info": {"description": "Exported by medloom"}, "licenses": [], "images": [')
        for row in rows:
            rois = chosen(row, params, counts)
            if not rois and not params.empty:
                counts.left_out[NO_REGION] += 1
                continue
            suffix, data = picture(row)
            name = f"{row.name}.{suffix}"
            (out / "images" / name).write_bytes(data)
            file.write(",\n" if counts.written else "\n")
            counts.add(row)
            file.write(json.dumps(_image(row, counts.written, name), ensure_ascii=False))
            spool.add({"image": counts.written, "rois": [_said(roi, params, counts) for roi in rois]}, rois)
        file.write('\n], "annotations": [')
        classes = spool.classes
        file.writelines(_annotations(spool.records(), {label: n for n, (label, _) in enumerate(classes, 1)}))
        categories = [{"id": n, "name": name, "supercategory": role} for n, (name, role) in enumerate(classes, 1)]
        file.write(f'\n], "categories": {json.dumps(categories, ensure_ascii=False)}}}\n')
    return counts


def _image(row: Row, number: int, name: str) -> dict[str, Any]:
    caption = row.caption(CAPTION_KINDS)
    return {
        "id": number, "file_name": name, "width": row.image["width"], "height": row.image["height"],
        "sample_id": row.id, "group_id": row.image["group_id"], "modality": row.image["modality"],
        "licence_image": row.image["licence_image"], "caption": caption["text"] if caption else None,
    }


def _said(roi: Mapping[str, Any], params: Params, counts: Counts) -> dict[str, Any]:
    """An annotation without its numbers."""
    x0, y0, x1, y1 = roi["box"]
    shape: Any = []
    if roi["mask"] is not None and params.masks == "rle":
        shape = {"size": list(roi["mask"]["size"]), "counts": roi["mask"]["counts"]}
    elif roi["mask"] is not None:
        mask = decode_mask(roi["mask"])
        shape = [[at for point in loop for at in point] for loop in polygons(mask)]
        counts.notes["masks with holes that outlines fill"] += has_holes(mask)
    kept = {name: roi[name] for name in _KEPT}
    return {"label": roi["label"], "bbox": [x0, y0, x1 - x0, y1 - y0], "area": roi["area"], "segmentation": shape,
            "iscrowd": 0, **kept}


def _annotations(records: Iterable[Mapping[str, Any]], numbers: Mapping[str, int]) -> Iterator[str]:
    number = 0
    for record in records:
        for roi in record["rois"]:
            number += 1
            said = {"id": number, "image_id": record["image"], "category_id": numbers[roi.pop("label")], **roi}
            yield (",\n" if number > 1 else "\n") + json.dumps(said, ensure_ascii=False)
