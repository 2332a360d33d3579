"""MONAI: `dataset.json` in the decathlon's form, with images/ and labels/ beside it.

Labels are PNG maps of integers, `labels` says what they are. `training` and `validation` are split by `group_id`.
Pictures are as they are stored. Rules for overlapping and missing masks: catalog/exports/labelmaps.py.

>>> load_decathlon_datalist(out / "dataset.json", data_list_key="training")
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

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
    kinds: Counter[str] = Counter()
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
            kind = "validation" if is_validation(row, params.validation) else "training"
            entry = {"image": f"./{image}", "label": f"./{label}", "sample_id": row.id}
            spool.add({**spooled(row, label, masks), "kind": kind, "entry": entry}, masks)
            kinds[kind] += 1
            counts.add(row)
        labels = write_maps(spool, out)
        head = {
            "name": "medloom", "description": "Exported by medloom", "tensorImageSize": "2D",
            "labels": {str(n): label for label, n in labels.items()}, "numTraining": kinds["training"], "numTest": 0,
        }
        with open(out / "dataset.json", "w", encoding="utf-8") as file:
            file.write(json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}"))
            for kind in ("training", "validation"):
                entries = (json.dumps(r["entry"], ensure_ascii=False) for r in spool.records() if r["kind"] == kind)
                file.write(f',\n "{kind}": [')
                file.writelines(f"{',' * (n > 0)}\n  {entry}" for n, entry in enumerate(entries))
                file.write("\n ]")
            file.write(',\n "test": []\n}\n')
    return counts
