"""A small dataset, made through the same shards, manifests and builds that real ones are: `make_home`.

Two sources: `scans` (CT slices of two volumes with masks, a digital radiograph with boxes) and `photos` (clinical
photographs). Every layer has rows. The invariant: equal arguments give equal files, but for what `change` plants.

>>> home = make_home(tmp_path, change=lambda rows: rows["rois"][0].update(box=[-5, 0, 9, 9]))
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from catalog import catalog
from catalog.builds import Build
from catalog.manifest import Manifest
from catalog.masks import Mask
from catalog.schema import LAYERS, VERSION
from catalog.shards import ShardWriter
from infra.keys import key, sha256

Rows = dict[str, list[dict[str, Any]]]
STAGES = {
    "ingest": ("images", "volumes", "articles", "labels", "rois", "texts", "rejects"),
    "caption": ("texts", "measures", "passages", "checks"),
}
"""Which layers each of the two stages writes; its own texts are those whose generator is not, or is, 'source'."""
RECIPE = {"name": "small", "sources": [{"name": "photos", "use": "image_folder"}, {"name": "scans", "use": "nifti"}]}
SIZE = {"CT": (96, 80), "DX": (120, 100), "XC": (64, 90)}
"""(height, width) of the pictures of each modality."""
BILLED = {"model": "small-lm", "tokens_in": 100, "tokens_out": 20, "cost_usd": 0.001}


def make_home(
    folder: Path,
    change: Callable[[Rows], object] = lambda _: None,
    *,
    per_modality: int = 4,
    quarantined: Sequence[str] = (),
    counts: Mapping[str, int] | None = None,
) -> Path:
    """Write a dataset with one snapshot under `folder`, and its catalog; returns its home.

    `change` may edit the rows of all layers before they are written. Units of the sources named in `quarantined` are
    quarantined; `counts` overrides fields of every ingest manifest (`{"kept": 3}` loses rows).
    """
    rows = make_rows(per_modality)
    change(rows)
    home = folder / "home"
    units = []
    for source in ("photos", "scans"):
        for stage in STAGES:
            fixed = counts or {} if stage == "ingest" else {}
            units.append(_write_unit(home, rows, source, stage, source in quarantined, fixed))
    Build(
        number=1, status="snapshot", name="small", recipe=RECIPE, units=tuple(sorted(units)), validations=(),
        created_at="2026-01-02T03:04:05+00:00",
    ).write(home)
    catalog.refresh(home)
    return home


def make_rows(per_modality: int = 4) -> Rows:
    """layer -> rows, as they lie in the files."""
    rows: Rows = {layer: [] for layer in LAYERS}
    for volume in range(2):
        rows["volumes"].append({
            "volume_id": key("volume", volume), "source": "scans", "group_id": f"patient-{volume}",
            "items": [f"v{volume}.nii"], "sha256": [sha256(b"%d" % volume)], "modality": "CT", "shape": [80, 96, 9],
            "affine": [float(i % 5 == 0) for i in range(16)], "spacing": [1.0, 1.0, 1.0], "orientation": "RAS",
            "licence_image": "CC-BY-4.0",
        })
    rows["articles"].append({"article_id": "PMC1", "source": "photos", "title": "An article", "licence": "CC-BY-4.0"})
    for modality in SIZE:
        for number in range(per_modality):
            _add_sample(rows, modality, number)
    for number, source in enumerate(("photos", "scans")):
        rows["rejects"].append({
            "item": f"broken-{number}.png", "source": source, "partition": "all", "stage": "ingest",
            "outcome": "failed", "code": "IMAGE_TRUNCATED", "message": "7 of 12 kB present; fetch the file again",
            "retryable": False, "attempt": 0,
        })
    return rows


def _add_sample(rows: Rows, modality: str, number: int) -> None:
    source = "photos" if modality == "XC" else "scans"
    height, width = SIZE[modality]
    sample = key("sample", modality, number)
    x0, y0, x1, y1 = ellipse = (10 + 3 * number, 20, 45 + 3 * number, 60)
    pixels = _picture(modality, ellipse, number)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    image: dict[str, Any] = {
        "sample_id": sample, "image": {"bytes": png.getvalue(), "path": f"{sample}.png"}, "width": width,
        "height": height, "source": source, "source_item": f"{modality}/{number}.png",
        "group_id": f"patient-{number % 2}", "modality": modality, "sha256": sha256(png.getvalue()),
        "pixel_sha256": sha256(pixels.tobytes()), "phash": f"{number:016x}", "licence_image": "CC-BY-4.0",
        "licence_evidence": "recipe",
    }
    if modality == "CT":
        image |= {"volume_id": key("volume", number % 2), "slice_index": number, "view": "axial"}
    rows["images"].append(image)
    label = key("label", sample)
    rows["labels"].append({
        "sample_id": sample, "label_id": label, "name": "nodule", "value": "present", "origin": "folder",
    })
    mask = np.asarray(pixels if pixels.ndim == 2 else pixels[..., 0]) > 180
    box = [x0, y0, x1 + 1, y1 + 1]
    for name, region in (("lesion", mask if modality == "CT" else None), ("device", None)):
        at = box if name == "lesion" else [2, 2, 22, 12]
        rows["rois"].append({
            "sample_id": sample, "roi_id": key("roi", sample, name), "label": name,
            "role": name, "box": at, "mask": None if region is None else encode(region), "position": "middle left",
            "area_fraction": float(region.mean()) if region is not None else
            (at[2] - at[0]) * (at[3] - at[1]) / (width * height),
            "expert": "source", "origin": "given", "trust": "box" if region is None else "boundary",
        })
    rows["measures"].append({
        "sample_id": sample, "measure_id": key("measure", sample), "roi_id": rows["rois"][-2]["roi_id"],
        "name": "long_axis", "value": 36.0, "unit": "px", "words": "36 pixels long", "version": "1",
    })
    rows["passages"].append({
        "sample_id": sample, "rank": 1, "passage_id": "p1", "corpus": "notes",
        "text": "A nodule is a small round mass.", "query": "nodule", "score": 0.8, "licence": "CC0-1.0",
    })
    lesion = rows["rois"][-2]["roi_id"]
    for kind, generator, text, roi_ids, evidence in (
        ("original_caption", "source", f"{modality} image number {number} with a nodule.", [], []),
        ("global", "template@1", f"A picture of modality {modality} that shows a nodule.", [], [f"label:{label}"]),
        ("region", "template@1", "The lesion lies in the middle left.", [lesion], [f"roi:{lesion}", "passage:p1"]),
    ):
        text_id = key("text", sample, kind)
        rows["texts"].append({
            "sample_id": sample, "text_id": text_id, "roi_ids": roi_ids, "kind": kind, "language": "en", "text": text,
            "evidence": evidence, "generator": generator, "licence": "CC-BY-4.0",
            **(BILLED if kind == "global" else {}),
        })
    rows["checks"].append({
        "sample_id": sample, "text_id": key("text", sample, "global"), "check": "evidence", "version": "1",
        "value": 1.0, "verdict": "pass",
    })


def encode(mask: Mask) -> dict[str, Any]:
    """COCO run-length code of a (height, width) mask."""
    from pycocotools import mask as coco

    code = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}


def _picture(modality: str, ellipse: tuple[int, int, int, int], number: int) -> Any:
    """A gradient with a bright ellipse; photographs are in colour."""
    height, width = SIZE[modality]
    slope = np.add.outer(np.arange(height), np.arange(width)) * 150 // (height + width) + number
    image = Image.fromarray(slope.astype(np.uint8))
    ImageDraw.Draw(image).ellipse(ellipse, fill=230)
    grey = np.asarray(image)
    return np.stack([grey, grey // 2, 255 - grey], axis=-1) if modality == "XC" else grey


def _write_unit(
    home: Path, rows: Rows, source: str, stage: str, quarantined: bool, fixed: Mapping[str, int]
) -> str:
    source_of = {row["sample_id"]: row["source"] for row in rows["images"]}

    def is_mine(layer: str, row: Mapping[str, Any]) -> bool:
        if layer == "texts" and (row["generator"] == "source") != (stage == "ingest"):
            return False
        return bool(source == (row["source"] if "source" in row else source_of.get(row["sample_id"], "scans")))

    unit_key = key("unit", source, stage)
    shards = []
    for layer in STAGES[stage]:
        with ShardWriter(home, layer, source, f"all-{unit_key}") as writer:
            writer.write(LAYERS[layer].table(row for row in rows[layer] if is_mine(layer, row)))
            if shard := writer.finish():
                shards.append(shard)
    kept, failed = list(source_of.values()).count(source), sum(s.rows for s in shards if s.layer == "rejects")
    manifest = Manifest(
        key=unit_key, source=source, partition="all", stage=stage, stage_version="1", params={}, ingredients={},
        inputs=(), schema_version=VERSION, quarantined=quarantined, shards=tuple(shards), software={}, seconds=0.5,
        **{"rows_in": kept + failed, "kept": kept, "dropped": 0, "failed": failed, "retryable": 0, **fixed},
    )
    manifest.write(home)
    return manifest.path
