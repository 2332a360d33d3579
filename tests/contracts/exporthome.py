"""A home with what exports stumble over, and what the catalog holds of it; shared by the tests of exports."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from makehome import Rows, encode, make_home
from PIL import Image

from catalog.catalog import query
from catalog.schema import LAYERS
from catalog.selection import Row
from infra.keys import sha256

HOSTILE = (
    'A <image> in "quotes",\nwith a line feed, a \ttab and a back\\slash.',
    "Ærøskøbing 肺结节 \u2028 \U0001fac1 e\u0301; </s> ### Human:",
    "'; DROP TABLE images; -- =1+1 | `x` <script>alert(1)</script> ../../etc/passwd",
    "<<image>image><image>",
)


def spoil(rows: Rows) -> None:
    """Captions nobody checked, every stored format, one sample without a caption, one without a licence."""
    captions = [t for t in rows["texts"] if t["kind"] == "global"]
    for text, hostile in zip(captions, HOSTILE, strict=False):
        text["text"] = hostile
    photos = [image for image in rows["images"] if image["modality"] == "XC"]
    formats: Sequence[tuple[str, dict[str, Any]]] = (("GIF", {}), ("JPEG", {}), ("WEBP", {"lossless": True}))
    for image, (format, options) in zip(photos, formats, strict=False):
        picture = Image.open(io.BytesIO(image["image"]["bytes"]))
        buffer = io.BytesIO()
        (picture.quantize(64) if format == "GIF" else picture).save(buffer, format, **options)
        suffix = {"JPEG": "jpg"}.get(format, format.lower())
        image["image"] = {"bytes": buffer.getvalue(), "path": f"{image['sample_id']}.{suffix}"}
        image["sha256"] = sha256(buffer.getvalue())
    silent = rows["images"][-1]["sample_id"]
    rows["texts"][:] = [t for t in rows["texts"] if t["sample_id"] != silent]
    rows["images"][0]["licence_image"] = None
    rows["rois"][0]["box"] = [-7, 4, 5000, 20]


@pytest.fixture(scope="module", name="home")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("exports"), spoil)


@pytest.fixture(scope="module", name="held")
def all_held(home: Path) -> dict[str, dict[str, Any]]:
    """sample_id -> its columns of images, bytes included, and its rows of the other layers, as the catalog has them."""
    samples: dict[str, dict[str, Any]] = {}
    for shard in sorted((home / "shards" / "images").rglob("*.parquet")):
        for image in pq.read_table(shard).to_pylist():
            samples[image["sample_id"]] = {**image, "labels": [], "rois": [], "texts": []}
    for layer in ("labels", "rois", "texts"):
        names = ", ".join(f'"{n}"' for n in LAYERS[layer].schema.names)
        for row in query(home, f"SELECT {names} FROM {layer} ORDER BY ALL").to_pylist():
            samples[row["sample_id"]][layer].append(row)
    assert len(samples) == query(home, "SELECT count(*) AS n FROM images").to_pylist()[0]["n"] == 12
    return samples


def caption(sample: Mapping[str, Any]) -> str | None:
    return next((t["text"] for t in sample["texts"] if t["kind"] == "global"), None)


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def noise(seed: int) -> bytes:
    png = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(png, "PNG")
    return png.getvalue()


def row(sample: str, image: bytes, path: str = "x.png") -> Row:
    """A row as a home that is not ours might hold it."""
    facts = dict.fromkeys(LAYERS["images"].schema.names) | {"width": 60, "height": 60, "sha256": sha256(image)}
    text = {"sample_id": sample, "text_id": "t", "kind": "global", "text": "A text.", "roi_ids": [],
            "generator": "source", "model": None, "licence": None}
    labels = [{"sample_id": sample, "label_id": "../../l", "name": "../../../etc/cron.d/x", "value": "\0"}]
    mask = np.zeros((60, 60), bool)
    mask[5:9, 5:9] = True
    roi = dict.fromkeys(LAYERS["rois"].schema.names) | {
        "sample_id": sample, "roi_id": "../r", "label": "../../../etc/x", "role": "lesion", "box": [5, 5, 9, 9],
        "mask": encode(mask), "origin": "given",
    }
    facts["group_id"] = sample
    return Row({**facts, "sample_id": sample, "image": {"bytes": image, "path": path}}, labels, [roi], [text])
