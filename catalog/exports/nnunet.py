"""nnU-Net v2: a folder DatasetNNN_medloom with imagesTr, labelsTr and dataset.json, as 2-D PNGs.

All cases of a dataset have the same channels. `channels=grey` writes one, and leaves out pictures in colour (counted);
`channels=rgb` writes three. Maps of labels are numbered without gaps from background 0. `splits_final.json` holds five
folds by `group_id`: copy it beside the preprocessed data, since nnU-Net's own folds know no patients. PNG has no
spacing, nnU-Net takes 1 for it. Rules for overlapping and missing masks: catalog/exports/labelmaps.py. Memory holds the
names of all cases, which the folds list in order.

>>> nnUNetv2_plan_and_preprocess -d 1 -c 2d --verify_dataset_integrity       # nnUNet_raw=OUT
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from catalog.exports import Counts
from catalog.exports.labelmaps import MapParams, as_png, has_colour, masks_of, spooled, write_maps
from catalog.exports.regions import Spool
from catalog.selection import Row
from infra.keys import sha256

NAME = "nnunet"
REQUIRES: dict[str, str] = {}
FOLDS = 5
COLOUR = "a picture in colour"


class Params(MapParams):
    """Which masks become classes, and what the pictures are."""

    channels: Literal["grey", "rgb"] = Field("grey", description="one channel, colour left out; or three")
    dataset: int = Field(1, ge=1, le=999, description="number of the dataset")
    validation: float = Field(0, ge=0, le=0, description="not used: nnU-Net validates by folds")


def write(rows: Iterable[Row], out: Path, params: Params) -> Counts:
    """Write DatasetNNN_medloom/. Samples without a mask are left out and counted."""
    counts = Counts()
    folder = out / f"Dataset{params.dataset:03d}_medloom"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    mode, names = ("L", ["grey"]) if params.channels == "grey" else ("RGB", ["R", "G", "B"])
    folds: list[list[str]] = [[] for _ in range(FOLDS)]
    with Spool(out, params.classes) as spool:
        for row in rows:
            masks = masks_of(row, params, counts)
            if masks is None:
                continue
            if mode == "L" and has_colour(row):
                counts.left_out[COLOUR] += 1
                continue
            (folder / "imagesTr" / f"{row.name}_0000.png").write_bytes(as_png(row, mode))
            spool.add(spooled(row, f"labelsTr/{row.name}.png", masks), masks)
            folds[int(sha256(f"fold/{row.image['group_id']}".encode())[:12], 16) % FOLDS].append(row.name)
            counts.add(row)
        labels = write_maps(spool, folder)
    said: dict[str, Any] = {
        "name": "medloom", "channel_names": {str(n): name for n, name in enumerate(names)}, "labels": labels,
        "numTraining": counts.written, "file_ending": ".png", "overwrite_image_reader_writer": "NaturalImage2DIO",
    }
    (folder / "dataset.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    splits = [{"train": sorted(c for n, f in enumerate(folds) if n != fold for c in f), "val": sorted(folds[fold])}
              for fold in range(FOLDS)]
    (folder / "splits_final.json").write_text(json.dumps(splits, indent=1) + "\n")
    return counts
