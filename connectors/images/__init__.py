"""Folders of plain images with classes, tables, masks, boxes or outlines beside them.

The invariant: every file below the root, and every row, XML file or JSON entry that speaks of an image, becomes exactly
one item, if need be one with an error, unless it was read for what it says of others; and a partition's key holds all
that is stated about its items.

    layout: imagefolder   the class is the name of the folder; folders named in `splits` are no classes
    layout: table         one row an image (or several that agree), see connectors/images/table.py for the columns
    layout: pairs         FOLDER/images/NAME.png with FOLDER/masks/*.png, one file a region; where FOLDER/images holds
                          several images, the mask is FOLDER/masks/NAME.*
    layout: voc           XML files with boxes, anywhere below the root; ImageSets say the splits
    layout: coco          JSON files with boxes and outlines, anywhere below the root; names are relative to theirs
    layout: yolo          a text file an image beside it or in labels/ for images/, and a data.yaml

Tables and annotations name an image by its path, the end of it, its file name or its name without suffix, if only one
image fits; where they name a folder too, the last one has to agree. A `table` adds what its rows say to any layout
(metadata.csv, metadata.jsonl), `masks` adds files of one region each, and `class_mask` files whose values or colours
say the class. Regions of several raters stay regions of their own, and the label "LABEL = present", origin
"rater:NAME", says who drew one (absent: whose mask is empty).

>>> params = Params(root="bccd", layout="voc", modality="blood smear", roles={"RBC": "cell", "WBC": "cell"})
>>> [(item.id, len(item.boxes)) for part in list_partitions("bccd", params, index) for item in read(part, params)]
[('JPEGImages/BloodImage_00008.jpg', 15), …]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, model_validator

from catalog.items import Item, Label, Partition
from connectors.images.coco import read_coco
from connectors.images.refs import Own, divided, folder_splits, image_refs, read_refs
from connectors.images.rules import Rules
from connectors.images.stated import Stated
from connectors.images.table import TableColumns, read_table
from connectors.images.tree import Tree
from connectors.images.voc import read_voc, split_lists
from connectors.images.yolo import find_classes, is_annotation, read_yolo
from infra.errors import ConfigError, Terminal
from infra.fileindex import FileIndex
from infra.storage import resolve

NAME = "images"
VERSION = "2"
REQUIRES: dict[str, str] = {}

Reader = Callable[[Path, str], Iterable[Stated]]


class Params(TableColumns, Rules):
    """Where the images are, and what is said about them."""

    layout: Literal["imagefolder", "table", "csv", "pairs", "voc", "coco", "yolo"] = Field(
        description="how things lie; see above (csv is another word for table)"
    )
    csv: str | None = Field(None, description="another word for table")
    class_folder: Literal["first", "last", "all"] = Field(
        "last", description="of nested folders: which is the class, or all are"
    )
    annotations: str = Field("*", description="coco, voc, yolo: glob of their files below root (* crosses folders)")
    unlisted: Literal["drop", "keep"] = Field(
        "drop", description="table, voc, coco, yolo: what becomes of images of which nothing speaks; keep: no regions"
    )

    @model_validator(mode="after")
    def _complete(self) -> Params:
        if self.layout in ("table", "csv") and not self.rows:
            raise ValueError(f"the layout {self.layout} needs table: the path of the table, relative to root")
        if self.layout == "pairs" and not self.mask_label:
            raise ValueError("the layout pairs needs mask_label: what the masks show")
        if bool(self.class_mask) != bool(self.classes):
            raise ValueError("class_mask and classes go together: where the masks lie, and what their values mean")
        return self

    @property
    def rows(self) -> str | None:
        """Path or glob of the tables."""
        return self.table or self.csv


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of at most `capacity` images. Files that `since` knows are not read again.

    Raises ConfigError when there is nothing at the root, the table lacks a column, or a layout's classes have no names.
    """
    tree = Tree(resolve(params.root), params, since, only_in="images" if params.layout == "pairs" else None)
    if not tree.images:
        raise ConfigError(f"{params.root}: no image there; check root, include and exclude of the source {source!r}")
    annotated = params.layout in ("table", "csv", "voc", "coco", "yolo")
    own = Own(listed_only=annotated and params.unlisted == "drop", labels=partial(_path_labels, params=params))
    rules = params
    if params.layout == "voc" and (lists := split_lists(tree.files)):
        tree.claim(*lists)
        found = {split: name for name, split in lists.items() if split}
        rules = params.model_copy(update={"split_lists": {**found, **params.split_lists}})
    yield from divided(source, image_refs(tree, _entries(tree, params), rules, own), params.capacity)


def places(params: Params) -> list[Path]:
    """All that a listing reads: the root, and tables and lists that may lie elsewhere."""
    root = resolve(params.root)
    others = [*params.split_lists.values(), *([params.rows] if params.rows else [])]
    return [root, *(path for name in others if (path := root / Path(os.path.expandvars(name)).expanduser()).is_file())]


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition with the bytes of their images and masks, or the error met: now or while listing."""
    yield from read_refs(partition, resolve(params.root))


def _entries(tree: Tree, params: Params) -> Iterator[Stated]:
    """What tables and annotation files say; one that cannot be read is an entry with an error."""
    if params.rows:
        yield from table_entries(tree, params.rows, params)
    suffix: str = {"voc": ".xml", "coco": ".json", "yolo": ".txt"}.get(params.layout, "")
    if not suffix:
        return
    reader: Reader = read_voc if params.layout == "voc" else read_coco
    files = [name for name in tree.files if name.lower().endswith(suffix) and fnmatchcase(name, params.annotations)]
    if params.layout == "yolo":
        classes = find_classes(tree.root, tree.files)
        tree.claim(classes.file)
        reader, files = partial(read_yolo, classes=classes), [name for name in files if is_annotation(name, classes)]
    for name in files:
        if name not in tree.claimed:
            yield from attempt(tree, tree.root / name, name, reader, of_one_image=params.layout != "coco")


def table_entries(tree: Tree, table: str, columns: TableColumns) -> Iterator[Stated]:
    """The rows of the table at a path, relative to the root or not, or of all tables that a glob fits."""
    reader: Reader = partial(read_table, columns=columns)
    if names := [name for name in tree.files if fnmatchcase(name, table)]:
        for name in names:
            yield from attempt(tree, tree.root / name, name, reader)
        return
    path = resolve(table, tree.root)
    yield from attempt(tree, path, path.name, reader)


def attempt(tree: Tree, path: Path, name: str, reader: Reader, of_one_image: bool = False) -> Iterator[Stated]:
    """The entries of a file, or one entry with the error that makes it unreadable.

    A file that speaks of one image, the one of its name, costs that image; one that speaks of many is an item itself.
    """
    tree.claim(name)
    try:
        yield from reader(path, name)
    except Terminal as error:
        yield Stated(name, name, (PurePosixPath(name).stem,) if of_one_image else (), error=error)


def _path_labels(image: str, params: Params) -> Iterator[Label]:
    yield from folder_splits(image, params)
    if params.layout == "imagefolder":
        classes = [folder for folder in image.split("/")[:-1] if folder not in params.splits]
        chosen = {"first": classes[:1], "last": classes[-1:], "all": classes}[params.class_folder]
        yield from (Label(name, origin="folder") for name in chosen)
