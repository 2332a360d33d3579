"""Small folders of images, and what becomes of them: for the tests of the connector and decoder of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from catalog.items import Item, Partition
from connectors import images
from infra.errors import ItemError
from infra.fileindex import FileIndex
from infra.keys import sha256
from transforms.decoded import IngestParams, Refused, Sample
from transforms.decoders.image import decode


def put(path: Path, seed: int = 0, size: tuple[int, int] = (20, 30), **options: Any) -> Path:
    """Write a small image whose content depends on `seed`; the format follows the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **{"format": "PNG", **options} if not path.suffix else options)
    return path


def put_mask(path: Path, box: tuple[int, int, int, int], size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(pixels).save(path)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def partitions(params: Any, connector: Any = images) -> list[Partition]:
    found = list(connector.list_partitions("s", params, FileIndex(None)))
    ids = [id for part in found for id, _ in part.contents]
    assert len(ids) == len(set(ids)) and all(json.loads(json.dumps(part.refs)) == list(part.refs) for part in found)
    assert len({part.name for part in found}) == len(found)
    return found


def items(params: Any, connector: Any = images) -> dict[str, Item]:
    found = {}
    for part in partitions(params, connector):
        made = list(connector.read(part, params))
        assert [item.id for item in made if not item.inside] == [
            id for id, _ in part.contents if id not in {item.inside for item in made}
        ]
        found.update({item.id: item for item in made})
    return found


def codes(found: dict[str, Item]) -> dict[str, str | None]:
    return {id: item.error.code if isinstance(item.error, ItemError) else None for id, item in found.items()}


def decoded(item: Item) -> Sample | Refused:
    (made,) = decode([item], IngestParams(), lambda kind, clear: f"{kind}-{sha256(clear.encode())[:8]}")
    assert isinstance(made, Sample | Refused)
    return made


def sample(item: Item) -> Sample:
    made = decoded(item)
    assert isinstance(made, Sample), made
    return made


def refused(item: Item) -> str:
    made = decoded(item)
    assert isinstance(made, Refused)
    return made.error.code


def regions(item: Item) -> list[tuple[str, tuple[float, ...] | None]]:
    return [(r.label, r.box) for r in sample(item).regions]


def area(item: Item) -> list[tuple[str, int]]:
    return [(r.label, int(np.sum(r.mask))) for r in sample(item).regions]
