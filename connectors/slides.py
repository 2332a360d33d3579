"""Whole-slide images, cut into tiles of one magnification.

The invariant: every tile of the grid is an item, kept or dropped as NO_TISSUE, found inside its slide; a level is only
ever read a tile at a time, and the pictures of label and overview that scanners add (`associated_images`), on which
names stand, are never opened.

The grid begins at the slide's upper left corner. A tile is read from the level that is just finer than what is asked
for and shrunk from there; nothing is enlarged. Its id says where it lies: level, x and y of its corner and its width
in pixels of level 0, and its size: "a.svs#level1:x4096:y0:span2048:size512". Pixels outside of what was scanned are
white. Tissue is what has colour (saturation in HSV), looked for on the coarsest level.

>>> params = Params(root="slides", mpp=0.5, tile=512, table="slides.csv", label_columns=("diagnosis",))
>>> [item.id for part in list_partitions("wsi", params, index) for item in read(part, params) if not item.error]
['a.svs#level0:x1024:y512:span1024:size512', …]
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field, model_validator

from catalog.items import Item, Partition
from connectors.images import table_entries
from connectors.images.refs import ERRORS, Own, divided, folder_splits, image_refs, item_of
from connectors.images.rules import Rules
from connectors.images.table import TableColumns
from connectors.images.tree import Tree
from infra.errors import ConfigError, Dropped, ItemError, Terminal, Transient
from infra.fileindex import FileIndex
from infra.storage import file_sha256, resolve

if TYPE_CHECKING:
    from openslide import OpenSlide

NAME = "slides"
VERSION = "1"
REQUIRES = {"openslide": "openslide-python openslide-bin"}

SUFFIXES = frozenset((".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".czi"))
OVERVIEW_PIXELS = 32_000_000
"""A coarsest level with more pixels is not read as a whole: each tile is then judged by itself."""
ROUNDING = 1.02
"""Scanners state 0.2527 µm for 0.25: two parts in a hundred are the same magnification."""


class Params(TableColumns, Rules):
    """Where the slides are, how they are cut, and what is said about them."""

    mpp: float | None = Field(None, gt=0, description="micrometres a pixel of the tiles")
    magnification: float | None = Field(None, gt=0, description="or the objective they look like: 20, 10, 5")
    level: int | None = Field(None, ge=0, description="or a level of the file as it is, for slides that state no scale")
    tile: int = Field(512, ge=16, le=8192, description="width and height of a tile, pixels; smaller at the far edges")
    stride: int | None = Field(None, ge=1, description="from tile to tile, pixels of the tiles; default: tile")
    min_tissue: float = Field(0.25, ge=0, le=1, description="tiles with a smaller share of tissue are dropped")
    saturation: int = Field(20, ge=0, le=255, description="HSV saturation from which a pixel is tissue")
    modality: str | None = Field("SM", description="DICOM code: slide microscopy")
    capacity: int = Field(1, ge=1, description="slides a partition; those of a patient are never divided")

    @model_validator(mode="after")
    def _one_scale(self) -> Params:
        if [self.mpp, self.magnification, self.level].count(None) != 2:
            raise ValueError("set one of mpp, magnification and level: at which scale tiles are cut")
        return self


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of at most `capacity` slides. Slides that `since` knows are not read again.

    Raises ConfigError where no slide is, or the table lacks a column.
    """
    tree = Tree(resolve(params.root), params, since, suffixes=SUFFIXES)
    if not tree.images:
        raise ConfigError(f"{params.root}: no slide there; check root, include and exclude of the source {source!r}")
    parts = {slide: _companions(tree, slide) for slide in tree.images}
    tree.claim(*(name for names in parts.values() for name in names))
    entries = table_entries(tree, params.table, params) if params.table else ()
    own = Own(listed_only=bool(params.table), labels=lambda slide: folder_splits(slide, params))
    cut = params.model_dump(include={"mpp", "magnification", "level", "tile", "stride", "min_tissue", "saturation"})
    refs = []
    for ref in image_refs(tree, entries, params, own):
        more = {} if ref["error"] else {f"with:{name}": [name, tree.sha256(name)] for name in parts[ref["id"]]}
        refs.append({**ref, "files": {**ref["files"], **more}, "patient": ref["patient"] or ref["id"], "cut": cut})
    yield from divided(source, refs, params.capacity)


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The tiles of a partition's slides, or the error met: now or while listing.

    Errors: Dropped NO_TISSUE; Terminal NOT_SLIDE, SLIDE_DAMAGED, SCALE_UNKNOWN, SLIDE_TOO_COARSE; Transient
    FILE_UNREADABLE, SOURCE_CHANGED.
    """
    root = resolve(params.root)
    for ref in partition.refs:
        try:
            if ref["error"]:
                kind, code, message = ref["error"]
                raise ERRORS[kind](code, message)
            for file, digest in ref["files"].values():
                _unchanged(root / file, file, digest)
            slide = _Slide(root / ref["id"], ref["id"])
            grid = _grid(slide, params)
            tissue = _Tissue(slide, params)
        except ItemError as error:
            yield Item(ref["id"], "image", ref["id"], {}, error=error)
            continue
        for tile in grid.tiles():
            yield _item(slide, grid, tile, tissue, ref)


def _companions(tree: Tree, slide: str) -> list[str]:
    """Further files of a slide: those of MIRAX lie in a folder of its name."""
    path = PurePosixPath(slide)
    folder = f"{path.with_suffix('')}/"
    return [name for name in tree.files if name.startswith(folder)] if path.suffix.lower() == ".mrxs" else []


def _unchanged(path: Path, name: str, expected: str) -> None:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise Transient("FILE_UNREADABLE", f"{name}: {error.strerror}; make it readable and run again") from error
    if found != expected:
        raise Transient("SOURCE_CHANGED", f"{name} changed after it was listed; run again")


class _Slide:
    """An open slide: regions of its levels, and nothing else."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self.name = path, name
        self._open = self._opened()
        self.properties: Mapping[str, str] = dict(self._open.properties)
        self.size: tuple[int, int] = self._open.dimensions
        """width and height of level 0"""
        self.levels: tuple[tuple[int, int], ...] = self._open.level_dimensions
        self.downsamples: tuple[float, ...] = self._open.level_downsamples

    def _opened(self) -> OpenSlide:
        import openslide

        try:
            return openslide.OpenSlide(self._path)
        except openslide.OpenSlideUnsupportedFormatError as error:
            why = f"{self.name} is no slide that OpenSlide knows; a plain image is for the connector images"
            raise Terminal("NOT_SLIDE", why) from error
        except (openslide.OpenSlideError, OSError) as error:
            raise Terminal("SLIDE_DAMAGED", f"{self.name}: {_without(error, self._path)}; fetch it again") from error

    def region(self, x: int, y: int, level: int, size: tuple[int, int]) -> Image.Image:
        """RGB of `size` (width, height) pixels of a level, from x, y of level 0; white where nothing was scanned."""
        import openslide

        try:
            read = self._open.read_region((x, y), level, size)
        except openslide.OpenSlideError as error:
            self._open = self._opened()  # a slide that met an error refuses all that follows
            why = f"{self.name} at {x}, {y} of level {level}: {_without(error, self._path)}; fetch it again"
            raise Terminal("SLIDE_DAMAGED", why) from error
        white = Image.new("RGBA", read.size, "white")
        return Image.alpha_composite(white, read).convert("RGB")

    def number(self, name: str) -> float | None:
        """A positive number among the properties."""
        try:
            value = float(self.properties.get(f"openslide.{name}", ""))
        except ValueError:
            return None
        return value if 0 < value < 1e6 else None


def _without(error: Exception, path: Path) -> str:
    """The words of an error without the place on this machine."""
    return str(error).replace(str(path), path.name)


@dataclass(frozen=True)
class _Tile:
    """Where a tile lies: pixels of level 0, and its size in its own pixels."""

    x: int
    y: int
    width: int
    height: int
    pixels: tuple[int, int]


@dataclass(frozen=True)
class _Grid:
    """The tiles of a slide."""

    size: tuple[int, int]
    level: int
    """that is read"""
    level_downsample: float
    downsample: float
    """pixels of level 0 that one pixel of a tile covers"""
    tile: int
    stride: int
    spacing: tuple[float, float] | None
    """mm a row and a column of the tiles"""

    def tiles(self) -> Iterator[_Tile]:
        """Row by row. The last ones end where the slide ends."""
        width, height = (max(1, round(side / self.downsample)) for side in self.size)
        for top in range(0, height, self.stride):
            for left in range(0, width, self.stride):
                across, down = min(self.tile, width - left), min(self.tile, height - top)
                yield _Tile(
                    round(left * self.downsample), round(top * self.downsample),
                    round(across * self.downsample), round(down * self.downsample), (across, down),
                )

    def id(self, slide: str, tile: _Tile) -> str:
        return f"{slide}#level{self.level}:x{tile.x}:y{tile.y}:span{round(self.tile * self.downsample)}:size{self.tile}"


def _grid(slide: _Slide, params: Params) -> _Grid:
    """Raises Terminal SCALE_UNKNOWN, SLIDE_TOO_COARSE."""
    across, down, power = slide.number("mpp-x"), slide.number("mpp-y"), slide.number("objective-power")
    if params.level is not None:
        if params.level >= len(slide.levels):
            raise Terminal("SCALE_UNKNOWN", f"{slide.name} has {len(slide.levels)} levels, no level {params.level}")
        downsample = slide.downsamples[params.level]
    elif params.mpp is not None:
        if across is None or down is None:
            raise Terminal("SCALE_UNKNOWN", f"{slide.name} states no size of a pixel; set level instead of mpp")
        downsample = params.mpp / across
    else:
        if power is None:
            raise Terminal("SCALE_UNKNOWN", f"{slide.name} states no objective; set mpp or level")
        downsample = power / (params.magnification or power)
    if downsample * ROUNDING < 1:
        raise Terminal("SLIDE_TOO_COARSE", f"{slide.name} is {1 / downsample:.2f} times coarser than what is asked for")
    downsample = max(downsample, 1.0)
    level = max(n for n, scale in enumerate(slide.downsamples) if n == 0 or scale <= downsample * ROUNDING)
    if downsample < slide.downsamples[level] * ROUNDING:
        downsample = slide.downsamples[level]  # as good as this level: nothing is resampled
    spacing = (down * downsample / 1000, across * downsample / 1000) if across and down else None
    stride = params.stride or params.tile
    return _Grid(slide.size, level, slide.downsamples[level], downsample, params.tile, stride, spacing)


class _Tissue:
    """How much of a tile is tissue, seen on the coarsest level, or on the tile itself where that is too large."""

    def __init__(self, slide: _Slide, params: Params) -> None:
        self.least, self._saturation = params.min_tissue, params.saturation
        self._seen: npt.NDArray[np.bool_] | None = None
        size = slide.levels[-1]
        if params.min_tissue and len(slide.levels) > 1 and size[0] * size[1] <= OVERVIEW_PIXELS:
            try:
                self._seen = self._of(slide.region(0, 0, len(slide.levels) - 1, size))
            except Terminal:  # a damaged overview costs no tile: each is judged by itself
                self._seen = None
            self._scale = slide.downsamples[-1]

    def share(self, tile: _Tile, picture: Image.Image | None = None) -> float | None:
        """0 to 1; None: it takes the picture of the tile to say."""
        if self._seen is None or tile.width < 4 * self._scale or tile.height < 4 * self._scale:
            return None if picture is None else float(self._of(picture).mean())
        top, left = int(tile.y / self._scale), int(tile.x / self._scale)
        bottom, right = (round((tile.y + tile.height) / self._scale), round((tile.x + tile.width) / self._scale))
        return float(self._seen[top : max(bottom, top + 1), left : max(right, left + 1)].mean())

    def _of(self, picture: Image.Image) -> npt.NDArray[np.bool_]:
        return np.asarray(picture.convert("HSV"))[..., 1] >= self._saturation


def _item(slide: _Slide, grid: _Grid, tile: _Tile, tissue: _Tissue, ref: Mapping[str, Any]) -> Item:
    id, main = grid.id(slide.name, tile), ref["files"]["main"][1]
    try:
        share = tissue.share(tile) if tissue.least else 1.0
        if share is None or share >= tissue.least:
            scale = grid.downsample / grid.level_downsample
            size = (round(tile.pixels[0] * scale), round(tile.pixels[1] * scale))
            picture = slide.region(tile.x, tile.y, grid.level, size)
            share = tissue.share(tile, picture) if share is None else share
        if share is None or share < tissue.least:
            raise Dropped("NO_TISSUE", f"{share or 0:.0%} of the tile is tissue, min_tissue is {tissue.least:.0%}")
    except ItemError as error:
        return Item(id, "image", id, {}, error=error, inside=ref["id"])
    if picture.size != tile.pixels:
        picture = picture.resize(tile.pixels, Image.Resampling.BOX)
    png = io.BytesIO()
    picture.save(png, "PNG", compress_level=1)
    facts = {**ref["facts"], **({"pixel_spacing": list(grid.spacing)} if grid.spacing else {})}
    # identity comes from the slide's bytes and the place in them, not from how a tile was encoded just now
    item = item_of({**ref, "id": id, "facts": facts}, {"main": png.getvalue()}, {"main": main})
    return replace(item, inside=ref["id"])
