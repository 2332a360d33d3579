"""MONAI: `dataset.json` in the decathlon's form, with images/ and labels/ beside it.

Labels are PNG maps of integers, `labels` says what they are. `training` and `validation` are split by `group_id`.
Pictures are as they are stored. Rules for overlapping and missing masks: catalog/exports/labelmaps.py.

>>> load_decathlon_datalist(out / "dataset.json", data_list_key="training")
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from catalog.exports import Counts, picture
from catalog.exports.labelmaps import MapParams, masks_of, spooled, write_maps
from catalog.exports.regions import Spool, is_validation
from catalog.selection import Row

NAME = "monai"
REQUIRES: dict[str, str] = {}


class Params(MapParams):
    """Which masks become classes."""


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write dataset.json, images/ and labels/. Samples without a mask are left out and counted."""
    counts = Counts()
    lists: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for folder in ("images", "labels"):
        (out / folder).mkdir()
    with Spool(out, params.classes) as spool:
        for row in rows:
            masks = masks_of(row, params, counts)
            if masks is None:
                continue
            suffix, data = picture(row)
            image, label = f"images/{row.name}.{suffix}", f"labels/{row.name}.png"
            (out / image).write_bytes(data)
            spool.add(spooled(row, label, masks), masks)
            kind = "validation" if is_validation(row, params.validation) else "training"
            lists[kind].append({"image": f"./{image}", "label": f"./{label}", "sample_id": row.id})
            counts.add(row)
        labels = write_maps(spool, out)
    head = {
        "name": "medloom", "description": "Exported by medloom", "tensorImageSize": "2D",
        "labels": {str(n): label for label, n in labels.items()}, "numTraining": len(lists["training"]), "numTest": 0,
    }
    text = json.dumps({**head, **lists, "test": []}, indent=1, ensure_ascii=False)
    (out / "dataset.json").write_text(text + "\n", encoding="utf-8")
    return counts
