"""What a connector hands over: partitions of a source, and the raw items in them.

The invariant: an item carries its bytes and what its source says about it, untouched. Nothing of an item is written,
logged or sent before the ingest stage has de-identified it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, overload

from infra.keys import key, sha256

T = TypeVar("T")


class Later(Sequence[T]):
    """Refs or contents of a partition that are fetched when somebody looks into them; its key is known before.

    Pickled, it is the tuple that it stands for, so workers need not fetch anything.
    """

    def __init__(self, key: str, length: int, fetch: Callable[[], Sequence[T]]) -> None:
        self.key = key
        self._length, self._fetch = length, fetch

    @cached_property
    def _whole(self) -> Sequence[T]:
        return self._fetch()

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._whole[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self._whole)

    def __reduce__(self) -> tuple[type[tuple[T, ...]], tuple[tuple[T, ...]]]:
        return tuple, (tuple(self._whole),)


@dataclass(frozen=True)
class Partition:
    """The unit of work, of retry and of commit.

    `refs` is what the connector needs to read the items again, JSON only, one entry an item, in reading order. Paths
    may stand in it; they never enter the key, which is made from `contents`: one (item id, hash of its bytes) pair an
    item.
    """

    source: str
    name: str
    refs: Sequence[Mapping[str, Any]]
    contents: Sequence[tuple[str, str]]

    @property
    def place(self) -> str:
        """SOURCE/NAME, for people and for names of work."""
        return f"{self.source}/{self.name}"

    @property
    def key(self) -> str:
        if isinstance(self.contents, Later):
            return self.contents.key
        return key("partition", self.source, self.name, sorted(map(list, self.contents)))


@dataclass(frozen=True)
class Licences:
    """Licence codes of one item, separately for what may differ; None is unknown, and unknown is not open."""

    image: str | None = None
    text: str | None = None
    annotation: str | None = None
    evidence: str | None = None


@dataclass(frozen=True)
class Label:
    """A fact the source states: a class, a finding, an attribute."""

    name: str
    value: str = "present"
    origin: str = "source"
    ontology_id: str | None = None


@dataclass(frozen=True)
class Box:
    """A box the source states: x0, y0, x1, y1 in pixels of the raw image as it is decoded, half-open."""

    label: str
    xyxy: tuple[float, float, float, float]
    role: str = "region"


@dataclass(frozen=True)
class Text:
    """Words the source gives for the item."""

    kind: str
    text: str
    language: str = "en"
    about: Text | None = None
    """The text it answers or belongs to: an answer's question. Its row names that text as evidence."""


@dataclass(frozen=True)
class Item:
    """One thing of a source: a DICOM file, an image, a volume with its label map, an article's figure.

    `files` maps a role ("main", "labels", "mask:NAME") to raw bytes; the decoder named by `kind` knows the roles. Items
    with the same `group` come one after the other and are decoded together (the files of a series).
    """

    id: str
    kind: str
    group: str
    files: Mapping[str, bytes]
    patient: str | None = None
    """Patient, article or video identifier in clear; ingest stores a pseudonym only. None: the item stands alone."""
    labels: tuple[Label, ...] = ()
    boxes: tuple[Box, ...] = ()
    texts: tuple[Text, ...] = ()
    licences: Licences | None = None
    """What the item itself says; None: what the recipe says about the source."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Columns of `images` that the source states: modality, anatomy, view, source_uri, source_version …; and, for
    decoders that ask for it, "label_table": label value -> name, and "article": a row of the layer `articles`."""
    error: Exception | None = None
    """An ItemError met while reading; the item then carries no usable files and becomes a reject."""
    inside: str | None = None
    """The entry of the partition in which it was found, where the listing could not know the items: an article of an
    archive of millions, say. In the books the items take the place of their entry. None: the item is the entry."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """role -> SHA-256 of its file, where the connector computed it anyway to see that the file had not changed"""

    def sha256(self, role: str = "main") -> str:
        """SHA-256 of the file of a role."""
        return self.hashes.get(role) or sha256(self.files[role])
