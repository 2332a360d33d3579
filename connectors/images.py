"""Folders of plain images with classes, tables, masks or boxes beside them.

The invariant: every image below the root, and every row, XML file or JSON entry that speaks of one, becomes exactly one
item, if need be one with an error; and a partition's key holds all that is stated about its items, so that a changed
label builds one partition again, while moving the folder builds none.

    layout: imagefolder   the class is the name of the folder; folders named in `splits` are no classes
    layout: csv           one row an image (or several that agree), see connectors/annotations.py for the columns
    layout: pairs         FOLDER/images/NAME.png with FOLDER/masks/*.png, one file a region; where FOLDER/images holds
                          several images, the mask is FOLDER/masks/NAME.*
    layout: voc           XML files with boxes, anywhere below the root
    layout: coco          JSON files with boxes, anywhere below the root; names are relative to the file's folder

Tables and annotations name an image by its path, its end, its file name or its name without suffix, if only one image
fits. `masks` adds masks to any layout: a glob relative to the root, in which {stem} is the image's name without suffix
and {up} the folder above the image's folder.

>>> params = Params(root="bccd", layout="voc", modality="blood smear", roles={"RBC": "cell", "WBC": "cell"})
>>> [(item.id, len(item.boxes)) for part in list_partitions("bccd", params, index) for item in read(part, params)]
[('JPEGImages/BloodImage_00008.jpg', 15), …]
"""

from __future__ import annotations

import glob
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, model_validator

from catalog.items import Box, Item, Label, Licences, Partition, Text
from connectors.annotations import CsvColumns, Stated, read_coco, read_csv, read_voc
from infra.errors import ConfigError, Dropped, ItemError, Terminal, Transient
from infra.fileindex import FileIndex
from infra.keys import key, sha256, split_by_key
from infra.storage import resolve, walk

NAME = "images"
VERSION = "1"
REQUIRES: dict[str, str] = {}

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".gif", ".bmp", ".webp", ".jp2", ".pgm", ".ppm", ".pbm", ".pnm")
)
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"BM", b"\0\0\0\x0cjP  ", b"RIFF")
"""First bytes of the images that may come without a suffix."""
ERRORS: Mapping[str, type[ItemError]] = {kind.__name__: kind for kind in (Terminal, Transient, Dropped)}


class Params(CsvColumns):
    """Where the images are, and what is said about them."""

    root: str = Field(description="folder, or pkg:PACKAGE/PATH; ~ and $VARIABLES are expanded")
    layout: Literal["imagefolder", "csv", "pairs", "voc", "coco"] = Field(description="how things lie; see above")
    include: tuple[str, ...] = Field(
        (), description="globs of paths below root (* crosses folders); empty: files with the suffix of an image, and "
        "files without suffix that begin like one",
    )
    exclude: tuple[str, ...] = Field((), description="globs of paths below root that are left out")
    class_folder: Literal["first", "last", "all"] = Field(
        "last", description="of nested folders: which is the class, or all are"
    )
    splits: tuple[str, ...] = Field((), description="folders that are no class but a split: train, valid, test")
    annotations: str = Field("*", description="coco, voc: glob of the JSON or XML files below root (* crosses folders)")
    mask_label: str | None = Field(None, description="pairs: what the masks show")
    masks: Mapping[str, str] = Field({}, description="label -> glob of its masks, with {stem} and {up}")
    label_map: Mapping[str, str] = Field({}, description="source's word -> label; to leave a label out, map it to ''")
    fact_map: Mapping[str, str] = Field({}, description="source's word -> word, in cells of fact_columns")
    roles: Mapping[str, str] = Field({}, description="label -> role: organ, lesion, cell, device …; default region")
    modality: str | None = Field(None, description="of all images of which no column says otherwise")
    anatomy: str | None = Field(None, description="likewise")
    view: str | None = Field(None, description="likewise")
    patient_pattern: str | None = Field(None, description="regular expression that finds the patient in a path")
    capacity: int = Field(500, ge=1, description="images a partition; those of a patient are never divided")

    @model_validator(mode="after")
    def _complete(self) -> Params:
        if self.layout == "csv" and not self.csv:
            raise ValueError("the layout csv needs csv: the path of the table, relative to root")
        if self.layout == "pairs" and not self.mask_label:
            raise ValueError("the layout pairs needs mask_label: what the masks show")
        try:
            re.compile(self.patient_pattern or "")
        except re.error as error:
            raise ValueError(f"patient_pattern {self.patient_pattern!r} is no regular expression: {error}") from None
        return self


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of at most `capacity` images. Files that `since` knows are not read again.

    Raises ConfigError when there is nothing at the root, or the table lacks a column.
    """
    tree = _Tree(resolve(params.root), params, since)
    if not tree.images:
        raise ConfigError(f"{params.root}: no image there; check root, include and exclude of the source {source!r}")
    refs = sorted(_refs(tree, params), key=lambda ref: str(ref["id"]))
    for name, part in split_by_key(refs, lambda ref: ref["patient"] or ref["id"], params.capacity).items():
        yield Partition(source, name, tuple(part), tuple((ref["id"], key(ref)) for ref in part))


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition with the bytes of their images and masks, or the error met: now or while listing."""
    root = resolve(params.root)
    for ref in partition.refs:
        try:
            if ref["error"]:
                kind, code, message = ref["error"]
                raise ERRORS[kind](code, message)
            files = {role: _bytes(root, *file) for role, file in ref["files"].items()}
        except ItemError as error:
            yield Item(ref["id"], "image", ref["id"], {}, error=error)
            continue
        yield Item(
            ref["id"], "image", ref["id"], files, ref["patient"],
            labels=tuple(Label(*label) for label in ref["labels"]),
            boxes=tuple(Box(label, (x0, y0, x1, y1), role) for label, (x0, y0, x1, y1), role in ref["boxes"]),
            texts=tuple(Text(*text) for text in ref["texts"]),
            licences=Licences(image=ref["licence"][0], evidence=ref["licence"][1]) if ref["licence"] else None,
            facts=ref["facts"], hashes={role: digest for role, (_, digest) in ref["files"].items()},
        )


def _bytes(root: Path, path: str, expected: str) -> bytes:
    try:
        data = (root / path).read_bytes()
    except OSError as error:
        raise Transient("FILE_UNREADABLE", f"{path}: {error.strerror}; make it readable and run again") from error
    if sha256(data) != expected:
        raise Transient("SOURCE_CHANGED", f"{path} changed after it was listed; run again")
    return data


class _Tree:
    """The files below the root: images, their masks, and how to find an image by a name."""

    def __init__(self, root: Path, params: Params, since: FileIndex) -> None:
        self.root, self.params, self.since = root, params, since
        if not root.is_dir():
            raise ConfigError(f"{params.root} is a file; give the folder of the images as root")
        self.files = dict.fromkeys(path.relative_to(root).as_posix() for path in walk(root))

    @cached_property
    def images(self) -> dict[str, None]:
        masks = self._all_masks
        return dict.fromkeys(name for name in self.files if name not in masks and self._is_item(name))

    def sha256(self, name: str) -> str:
        try:
            return self.since.sha256(self.root / name)
        except OSError as error:
            raise Transient("FILE_UNREADABLE", f"{name}: {error.strerror}; make it readable and run again") from error

    def find(self, stated: Stated) -> str:
        """The image that an entry speaks of. Raises Terminal FILE_MISSING or FILE_AMBIGUOUS."""
        for name in (name.replace("\\", "/") for name in stated.names):
            for exact in (posixpath.normpath(posixpath.join(posixpath.dirname(stated.file), name)), name):
                if exact in self.images:
                    return exact
            parts = name.split("/")
            fits = self._by_name.get(parts[-1]) or self._by_stem.get(parts[-1]) or []
            most = max((_common_end(image, parts) for image in fits), default=0)
            fits = [image for image in fits if _common_end(image, parts) == most]
            if len(fits) == 1:
                return fits[0]
            if fits:
                why = f"{stated.file}: {name} may be {fits[0]} or {fits[1]}; give its path, or exclude one"
                raise Terminal("FILE_AMBIGUOUS", why)
        wanted = " or ".join(stated.names) or "an entry that names no image"
        why = f"{stated.file}: {wanted} is not among the images; add the file, or remove the entry"
        raise Terminal("FILE_MISSING", why)

    @cached_property
    def masks(self) -> dict[str, dict[str, str]]:
        """image -> role -> mask file."""
        siblings = Counter(posixpath.dirname(image) for image in self.images)
        return {image: dict(self._masks(image, siblings[posixpath.dirname(image)] == 1)) for image in self.images}

    @property
    def unused_masks(self) -> list[str]:
        """Mask files that belong to no image."""
        return sorted(self._all_masks - {file for masks in self.masks.values() for file in masks.values()})

    def _masks(self, image: str, alone: bool) -> Iterator[tuple[str, str]]:
        patterns = dict(self.params.masks)
        if self.params.mask_label:
            patterns[self.params.mask_label] = "{up}/masks/*" if alone else "{up}/masks/{stem}.*"
        up = posixpath.dirname(posixpath.dirname(image))
        for label, pattern in patterns.items():
            files = self._glob(pattern, glob.escape(PurePosixPath(image).stem), glob.escape(up) or ".")
            for file in files:
                instance = f"/{posixpath.basename(file)}" if len(files) > 1 or "/" in label else ""
                yield f"mask:{label}{instance}", file

    @cached_property
    def _all_masks(self) -> set[str]:
        patterns = [*self.params.masks.values(), *(["{up}/masks/*"] if self.params.mask_label else [])]
        return {file for pattern in patterns for file in self._glob(pattern, "*", "**")}

    def _glob(self, pattern: str, stem: str, up: str) -> list[str]:
        filled = posixpath.normpath(pattern.replace("{stem}", stem).replace("{up}", up))
        found = {Path(file).as_posix() for file in glob.iglob(filled, root_dir=self.root, recursive=True)}
        return sorted(file for file in found if file in self.files and self._is_image(file))

    def _is_item(self, name: str) -> bool:
        include, exclude = self.params.include, self.params.exclude
        if any(fnmatchcase(name, pattern) for pattern in exclude):
            return False
        if self.params.layout == "pairs" and posixpath.basename(posixpath.dirname(name)) != "images":
            return False
        return any(fnmatchcase(name, pattern) for pattern in include) if include else self._is_image(name)

    def _is_image(self, name: str) -> bool:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix:
            return suffix in SUFFIXES
        try:
            return bool(self.since.ask(self.root / name, "image-1", _begins_as_image))
        except OSError:
            return True  # it becomes an item that says that it cannot be read

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return _grouped(self.images, posixpath.basename)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _grouped(self.images, lambda image: PurePosixPath(image).stem)


def _begins_as_image(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(12).startswith(MAGIC)


def _grouped(names: Iterable[str], by: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(by(name), []).append(name)
    return found


def _common_end(image: str, parts: Sequence[str]) -> int:
    """How many folders above the file two paths have in common, counted from the file."""
    mine, theirs = image.split("/")[-2::-1], parts[-2::-1]
    return next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))


def _refs(tree: _Tree, params: Params) -> Iterator[dict[str, Any]]:
    """One JSON object an item: all that `read` needs and all that decides the item, without the root."""
    entries: dict[str, list[Stated]] = {image: [] for image in tree.images}
    lost: dict[str, ItemError] = {}
    for entry in _entries(tree, params):
        try:
            entries[tree.find(entry)].append(entry)
        except Terminal as error:
            lost.setdefault(entry.id, entry.error or error)
    for image, about in entries.items():
        try:
            yield _image_ref(tree, image, about, params)
        except ItemError as error:
            yield _refused_ref(image, error)
    for mask in tree.unused_masks:
        lost[mask] = Terminal("FILE_MISSING", "no image belongs to this mask; add the image, or remove the mask")
    yield from (_refused_ref(id, error) for id, error in lost.items())


def _entries(tree: _Tree, params: Params) -> Iterator[Stated]:
    """What the table or the annotation files say; one that cannot be read is an entry with an error."""
    if params.layout == "csv" and params.csv:
        path = resolve(params.csv, tree.root)
        name = path.relative_to(tree.root).as_posix() if path.is_relative_to(tree.root) else path.name
        yield from _read(path, name, lambda path, name: read_csv(path, name, params))
    elif params.layout in ("voc", "coco"):
        suffix, reader = (".xml", read_voc) if params.layout == "voc" else (".json", read_coco)
        for name in tree.files:
            if name.lower().endswith(suffix) and fnmatchcase(name, params.annotations):
                yield from _read(tree.root / name, name, reader)


def _read(path: Path, name: str, reader: Callable[[Path, str], Iterable[Stated]]) -> Iterator[Stated]:
    try:
        yield from reader(path, name)
    except Terminal as error:
        # an XML file speaks of one image, the one of its name: that one fails; a table or JSON file of many
        yield Stated(name, name, (PurePosixPath(name).stem,) if reader is read_voc else (), error=error)


def _image_ref(tree: _Tree, image: str, entries: list[Stated], params: Params) -> dict[str, Any]:
    if not entries and params.layout not in ("imagefolder", "pairs"):
        raise Dropped("NO_METADATA_ROW", "no row or annotation speaks of it; add one, or exclude the image")
    if error := next((entry.error for entry in entries if entry.error), None):
        raise error
    masks = tree.masks[image]
    stated = {name: value for name in ("modality", "anatomy", "view") if (value := getattr(params, name))}
    for fact in dict.fromkeys(fact for entry in entries for fact in entry.facts):
        value = _agreed(fact, [entry.facts.get(fact) for entry in entries])
        stated[fact] = params.fact_map.get(value, value) if isinstance(value, str) else value
    if roles := {label: params.roles[label] for label in map(_label_of, masks) if label in params.roles}:
        stated["roles"] = roles
    patient = _agreed("patient", [entry.patient for entry in entries]) or _patient(image, params)
    labels = [*_folder_labels(image, params), *(label for entry in entries for label in entry.labels)]
    boxes = [(_mapped(box.label, params), list(box.xyxy)) for entry in entries for box in entry.boxes]
    return {
        "id": image,
        "files": {role: [name, tree.sha256(name)] for role, name in {"main": image, **masks}.items()},
        "patient": patient,
        "labels": [[name, label.value, label.origin] for label in labels if (name := _mapped(label.name, params))],
        "boxes": [[name, xyxy, params.roles.get(name, "region")] for name, xyxy in boxes if name],
        "texts": [[text.kind, text.text] for entry in entries for text in entry.texts],
        "facts": stated,
        "licence": _agreed("licence", [list(entry.licence) if entry.licence else None for entry in entries]),
        "error": None,
    }


def _refused_ref(id: str, error: ItemError) -> dict[str, Any]:
    return {"id": id, "files": {}, "patient": None, "error": [type(error).__name__, error.code, error.message]}


def _agreed(what: str, values: list[Any]) -> Any:
    """The one value that several rows of an image state, or None. Raises Terminal ROWS_DISAGREE."""
    found = [value for n, value in enumerate(values) if value is not None and value not in values[:n]]
    if len(found) > 1:
        raise Terminal("ROWS_DISAGREE", f"the rows of this image differ in {what}; make them agree")
    return found[0] if found else None


def _mapped(label: str, params: Params) -> str:
    return params.label_map.get(label, label)


def _label_of(role: str) -> str:
    name = role.removeprefix("mask:")
    return name.rpartition("/")[0] or name


def _folder_labels(image: str, params: Params) -> Iterator[Label]:
    folders = image.split("/")[:-1]
    for folder in folders:
        if folder in params.splits:
            yield Label("split", folder, "folder:split")
    if params.layout == "imagefolder":
        classes = [folder for folder in folders if folder not in params.splits]
        chosen = {"first": classes[:1], "last": classes[-1:], "all": classes}[params.class_folder]
        yield from (Label(name, origin="folder") for name in chosen)


def _patient(image: str, params: Params) -> str | None:
    found = re.search(params.patient_pattern, image) if params.patient_pattern else None
    return found[1 if found.re.groups else 0] if found else None
