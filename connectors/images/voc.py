"""Pascal VOC: one XML file an image, corners counted from 1, both inside the box; ImageSets say the splits.

The invariant: (xmin - 1, ymin - 1, xmax, ymax) is the half-open box, for every object or the file is refused.

>>> next(read_voc(Path("Annotations/a.xml"), "Annotations/a.xml")).boxes
(Box(label='WBC', xyxy=(41.0, 182.0, 277.0, 381.0), role='region'),)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from catalog.items import Box
from connectors.images.stated import Stated, annotated, finite, unreadable

SPLITS = ("train", "val", "test")
"""Lists in ImageSets/Main that say a split; trainval is the first two, and the lists of single classes say nothing."""


def read_voc(path: Path, name: str) -> Iterator[Stated]:
    """The boxes of one file, one entry. Its image is the one of the same name, else the one it names.

    Entities are not resolved, nothing else is loaded, and the size of the tree is limited. Raises Terminal
    ANNOTATION_UNREADABLE.
    """
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(path.read_bytes(), parser)
        boxes = tuple(_box(node) for node in root.findall("object"))
        size = [float(root.findtext(f"size/{side}", "0")) for side in ("height", "width")]
    except (OSError, ValueError, etree.XMLSyntaxError) as error:
        raise unreadable(name, error) from error
    named = (root.findtext("filename") or "").strip()
    names = tuple(dict.fromkeys(n for n in (PurePosixPath(name).stem, named) if n))
    yield Stated(name, name, names, boxes=boxes, facts=annotated(size))


def split_lists(files: Iterable[str]) -> dict[str, str]:
    """File -> the split it lists, of the files below ImageSets; "" for those that list none."""
    lists = [PurePosixPath(name) for name in files if "ImageSets/" in name and name.endswith(".txt")]
    return {str(name): name.stem if name.stem in SPLITS else "" for name in lists}


def _box(node: Any) -> Box:
    label = (node.findtext("name") or "").strip()
    if not label:
        raise ValueError("an object has no name")
    corners = [node.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
    if None in corners:
        raise ValueError(f"the object {label!r} has no whole bndbox")
    x0, y0, x1, y1 = finite(corners)
    return Box(label, (x0 - 1, y0 - 1, x1, y1))
