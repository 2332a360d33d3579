"""A small whole-slide image: a tiled, pyramidal TIFF as Aperio scanners write it, with a label picture.

Written by hand because no library of the test environment writes tiled pyramids; OpenSlide reads what comes out.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

TILE = 64
TEXT, SHORT, LONG = 2, 3, 4


def write_slide(
    path: Path, pixels: npt.NDArray[np.uint8], *, levels: int = 3, mpp: float | None = 0.25, power: int | None = 40,
    label: npt.NDArray[np.uint8] | None = None,
) -> Path:
    """Each level is half as large as the one before; `label` becomes an associated image, as on a real slide."""
    pages = [pixels]
    for _ in range(levels - 1):
        height, width = (side // 2 for side in pages[-1].shape[:2])
        pages.append(np.asarray(Image.fromarray(pages[-1]).resize((width, height), Image.Resampling.BOX)))
    stated = [f"AppMag = {power}"] * (power is not None) + [f"MPP = {mpp}"] * (mpp is not None)
    about = "|".join(["Aperio Image Library v12.0.15\r\n", *stated])
    out = bytearray(b"II*\0" + bytes(4))
    link = 4
    for page in pages:
        link = _page(out, link, page, about, tiled=True)
    if label is not None:
        link = _page(out, link, label, "Aperio Image Library\nlabel 10x10", tiled=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    return path


def _page(out: bytearray, link: int, pixels: npt.NDArray[np.uint8], about: str, tiled: bool) -> int:
    """Append a page, make the offset at `link` point to it; returns where the offset of the next one stands."""
    height, width = pixels.shape[:2]
    places, sizes = [], []
    for block in _tiles(pixels) if tiled else [pixels]:
        data = io.BytesIO()
        if tiled:
            Image.fromarray(block).save(data, "JPEG", quality=95, subsampling=0, keep_rgb=True)
        else:
            data.write(block.tobytes())
        places.append(len(out))
        sizes.append(len(data.getvalue()))
        out += data.getvalue()
    words = about.encode() + b"\0"
    tags: list[tuple[int, int, list[int] | bytes]] = [
        (256, LONG, [width]), (257, LONG, [height]), (258, SHORT, [8, 8, 8]), (259, SHORT, [7 if tiled else 1]),
        (262, SHORT, [2]), (270, TEXT, words), (277, SHORT, [3]), (254, LONG, [int(not tiled)]), (284, SHORT, [1]),
    ]
    if tiled:
        tags += [(322, SHORT, [TILE]), (323, SHORT, [TILE]), (324, LONG, places), (325, LONG, sizes)]
    else:
        tags += [(273, LONG, places), (278, LONG, [height]), (279, LONG, sizes)]
    entries = b""
    for tag, kind, values in sorted(tags):
        packed = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{'HI'[kind == LONG]}", *values)
        if len(packed) > 4:
            out += bytes(len(out) % 2)
            packed, at = struct.pack("<I", len(out)), packed
            out += at
        entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    out += bytes(len(out) % 2)
    out[link : link + 4] = struct.pack("<I", len(out))
    out += struct.pack("<H", len(tags)) + entries
    out += bytes(4)
    return len(out) - 4


def _tiles(pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % TILE), (0, -width % TILE), (0, 0)), mode="edge")
    rows, columns = (range(0, side, TILE) for side in padded.shape[:2])
    return [np.ascontiguousarray(padded[y : y + TILE, x : x + TILE]) for y in rows for x in columns]
