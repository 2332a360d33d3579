"""JATS for tests, made from its parts, with its pictures and archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

NAMESPACES = (
    'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:ali="http://www.niso.org/schemas/ali/1.0/" '
    'xmlns:mml="http://www.w3.org/1998/Math/MathML"'
)


def article(body: str = "", meta: str = "", after: str = "", attributes: str = "") -> bytes:
    """An article with this XML in its body, in its article-meta, and after the body."""
    return (
        f"<article {NAMESPACES} {attributes}><front><article-meta>{meta}</article-meta></front>"
        f"<body>{body}</body>{after}</article>"
    ).encode()


def picture(format: str = "JPEG", grey: int = 90, side: int = 24) -> bytes:
    """A small grey picture, its upper half a ramp."""
    out = io.BytesIO()
    pixels = np.full((side, side), grey, np.uint8)
    pixels[: side // 2] = np.arange(side)
    Image.fromarray(pixels).save(out, format)
    return out.getvalue()


def xml(*hrefs: str, pmcid: str = "1", version: str = "1", extra: str = "") -> bytes:
    """An article with a captioned figure f1, f2 … for each href."""
    figures = "".join(
        f'<fig id="f{n}"><caption><p>Caption {n}</p></caption><graphic xlink:href="{escape(href)}"/></fig>'
        for n, href in enumerate(hrefs, 1)
    )
    ids = f'<article-id pub-id-type="pmcid">PMC{pmcid}</article-id><article-version>{version}</article-version>'
    return (
        f'<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>{ids}</article-meta></front>'
        f"<body>{figures}{extra}</body></article>"
    ).encode()


def write(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder, and give the folder back."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def tarball(files: dict[str, bytes]) -> bytes:
    """A .tar.gz of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    """A .zip of these files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()
