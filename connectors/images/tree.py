"""The files below a root: which are images, which masks belong to them, and how an image is found by a name.

The invariant: a file is an image, a mask, something that was read for what it says (`claim`), left out by the recipe,
or among the `unread` ones; nothing is passed over.
"""

from __future__ import annotations

import glob
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath

from connectors.images.rules import Rules
from connectors.images.stated import Stated
from infra.errors import ConfigError, Terminal, Transient
from infra.fileindex import FileIndex
from infra.storage import walk

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".gif", ".bmp", ".webp", ".jp2", ".pgm", ".ppm", ".pbm", ".pnm")
)
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"BM", b"\0\0\0\x0cjP  ", b"RIFF")
"""First bytes of the images that may come without a suffix."""
_ANY = {"{rater}": "(?P<rater>[^/]+?)", "*": "[^/]*", "**": ".*", "?": "[^/]"}


@dataclass(frozen=True)
class Mask:
    """A mask file of an image."""

    role: str
    """mask:LABEL, mask:LABEL/INSTANCE, or classes, classes:RATER"""
    file: str
    rater: str | None = None


class Tree:
    """The files below a root, as `rules` see them."""

    def __init__(
        self, root: Path, rules: Rules, since: FileIndex, *, only_in: str | None = None,
        suffixes: frozenset[str] = SUFFIXES,
    ) -> None:
        """`only_in`: the name of the folders whose files are images, where a layout says so."""
        self.root, self.rules, self.since, self._only_in, self._suffixes = root, rules, since, only_in, suffixes
        if not root.is_dir():
            raise ConfigError(f"{rules.root} is a file; give the folder of the images as root")
        self.files = dict.fromkeys(path.relative_to(root).as_posix() for path in walk(root))
        self.claimed: set[str] = set()

    @cached_property
    def images(self) -> dict[str, None]:
        masks = self._all_masks
        return dict.fromkeys(name for name in self.files if name not in masks and self._is_item(name))

    def claim(self, *names: str) -> None:
        """Take note that these files were read for what they say."""
        self.claimed.update(names)

    @property
    def unread(self) -> list[str]:
        """Files that are nothing of all that; files that `include` or `exclude` leave out are not among them."""
        known = self.claimed | self._all_masks | set(self.images)
        return [name for name in self.files if name not in known and self._wanted(name)]

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
            # a file name alone is not enough where the entry says a folder: source.jpg is in every folder of some sets
            ends = ["/".join(parts[n:]) for n in range(max(len(parts) - 1, 1))]
            fits = next((found for of in (self._by_end, self._by_stem) for end in ends if (found := of.get(end))), [])
            fits = fits or [whole for whole in (parts[-1],) if whole in self.images]
            if len(fits) == 1:
                return fits[0]
            if fits:
                why = f"{stated.file}: {name} may be {fits[0]} or {fits[1]}; give its path, or exclude one"
                raise Terminal("FILE_AMBIGUOUS", why)
        wanted = " or ".join(stated.names) or "an entry that names no image"
        why = f"{stated.file}: {wanted} is not among the images; add the file, or remove the entry"
        raise Terminal("FILE_MISSING", why)

    def beside(self, stem: str) -> list[str]:
        """The images of a path without suffix: those of this name, and those in the folder of this name."""
        return self._by_place.get(stem, [])

    @cached_property
    def _by_place(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for image in self.images:
            for place in (str(PurePosixPath(image).with_suffix("")), posixpath.dirname(image)):
                found.setdefault(place, []).append(image)
        return found

    @cached_property
    def masks(self) -> dict[str, list[Mask]]:
        """image -> its masks."""
        siblings = Counter(posixpath.dirname(image) for image in self.images)
        return {image: list(self._masks(image, siblings[posixpath.dirname(image)] == 1)) for image in self.images}

    @property
    def unused_masks(self) -> list[str]:
        """Mask files that belong to no image."""
        return sorted(self._all_masks - {mask.file for masks in self.masks.values() for mask in masks})

    def _masks(self, image: str, alone: bool) -> Iterator[Mask]:
        patterns = dict(self.rules.masks)
        if self.rules.mask_label:
            patterns[self.rules.mask_label] = "{up}/masks/*" if alone else "{up}/masks/{stem}.*"
        for label, pattern in patterns.items():
            found = list(self._of_image(pattern, image))
            for file, rater in found:
                instance = f"/{posixpath.basename(file)}" if len(found) > 1 or "/" in label else ""
                yield Mask(f"mask:{label}{instance}", file, rater)
        for file, rater in self._of_image(self.rules.class_mask or "", image):
            yield Mask(f"classes:{rater}" if rater else "classes", file, rater)

    def _of_image(self, pattern: str, image: str) -> Iterator[tuple[str, str | None]]:
        """The files of a pattern that belong to an image, each with the rater that {rater} stands for."""
        up, stem = posixpath.dirname(posixpath.dirname(image)), PurePosixPath(image).stem
        places = {"{stem}": stem, "{folder}": posixpath.dirname(image) or ".", "{up}": up or "."}
        parts = re.split(r"({\w+}|[*?]+)", posixpath.normpath(pattern)) if pattern else []
        who = "".join(_ANY.get(part) or re.escape(places.get(part, part)) for part in parts)
        for file in self._glob("".join(glob.escape(places[part]) if part in places else part for part in parts)):
            found = re.fullmatch(who.removeprefix(r"\./"), file) if "{rater}" in parts else None
            yield file, found["rater"] if found else None

    @cached_property
    def _all_masks(self) -> set[str]:
        rules = self.rules
        patterns = [*rules.masks.values(), *([rules.class_mask] if rules.class_mask else [])]
        patterns += ["{up}/masks/*"] if rules.mask_label else []
        wide = {"{stem}": "*", "{folder}": "**", "{up}": "**"}
        found: set[str] = set()
        for pattern in patterns:
            for place, anything in wide.items():
                pattern = pattern.replace(place, anything)
            found.update(self._glob(pattern))
        return found

    def _glob(self, pattern: str) -> list[str]:
        if not pattern:
            return []
        filled = posixpath.normpath(pattern.replace("{rater}", "*"))
        found = {Path(file).as_posix() for file in glob.iglob(filled, root_dir=self.root, recursive=True)}
        return sorted(file for file in found if file in self.files and self._is_image(file))

    def _wanted(self, name: str) -> bool:
        include, exclude = self.rules.include, self.rules.exclude
        if any(fnmatchcase(name, pattern) for pattern in exclude):
            return False
        return not include or any(fnmatchcase(name, pattern) for pattern in include)

    def _is_item(self, name: str) -> bool:
        if self._only_in and posixpath.basename(posixpath.dirname(name)) != self._only_in:
            return False
        return self._wanted(name) and (bool(self.rules.include) or self._is_image(name))

    def _is_image(self, name: str) -> bool:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix or self._suffixes is not SUFFIXES:
            return suffix in self._suffixes
        try:
            return bool(self.since.ask(self.root / name, "image-1", _begins_as_image))
        except OSError:
            return True  # it becomes an item that says that it cannot be read

    @cached_property
    def _by_end(self) -> dict[str, list[str]]:
        return _ends((image, image) for image in self.images)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _ends((str(PurePosixPath(image).with_suffix("")), image) for image in self.images)


def _begins_as_image(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(12).startswith(MAGIC)


def _ends(images: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Every end of a path -> the images that end so: a path of three parts has three ends."""
    found: dict[str, list[str]] = {}
    for name, image in images:
        parts = name.split("/")
        for n in range(len(parts)):
            found.setdefault("/".join(parts[n:]), []).append(image)
    return found
