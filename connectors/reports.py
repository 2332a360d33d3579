"""Reports with their images: OpenI XML, a table with a column of reports, or a text file beside or above the images.

The invariant: an item is an image with the report it belongs to; a report of which no image is here is one item that
fails with NO_IMAGE (nothing was expected: no image is named, or no folder of images given) or one FILE_MISSING for each
image that it names. What the source wrote is kept letter by letter, because some licences (CC BY-NC-ND) allow no other
form: sections are cut out, never rewritten.

    layout: openi   ecgen-radiology/*.xml; `images` is the folder of NLMCXR_png or NLMCXR_dcm-made pictures
    layout: table   one row an image (or several images of one report), see connectors/images/table.py
    layout: stem    NAME.txt for NAME.png, or for all images in the folder NAME (MIMIC-CXR: s500.txt beside s500/)

The texts are the `report` as a whole and its sections: `findings`, `impression`, `indication`, `comparison`,
`technique`. In free text a section begins at a heading with a colon at the start of a line, or in capitals within it.

>>> [(text.kind, text.text) for text in sections("FINDINGS: Clear lungs.\\nIMPRESSION: Normal.")]
[('findings', 'Clear lungs.'), ('impression', 'Normal.')]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, model_validator

from catalog.items import Item, Label, Partition, Text
from connectors.images import attempt, table_entries
from connectors.images.refs import Own, divided, folder_splits, image_refs, read_refs
from connectors.images.rules import Rules
from connectors.images.stated import Stated, unreadable
from connectors.images.table import TableColumns
from connectors.images.tree import Tree
from infra.errors import ConfigError, Terminal
from infra.fileindex import FileIndex
from infra.storage import resolve

NAME = "reports"
VERSION = "1"
REQUIRES = {"lxml": "lxml"}

HEADINGS: Mapping[str, tuple[str, ...]] = {
    "findings": ("FINDINGS", "FINDING", "REPORT FINDINGS"),
    "impression": ("IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS", "ASSESSMENT"),
    "indication": (
        "INDICATION", "INDICATIONS", "CLINICAL INDICATION", "HISTORY", "CLINICAL HISTORY", "CLINICAL INFORMATION",
        "REASON FOR EXAM", "REASON FOR EXAMINATION", "REASON FOR THIS EXAMINATION",
    ),
    "comparison": ("COMPARISON", "COMPARISONS"),
    "technique": ("TECHNIQUE", "PROCEDURE", "EXAMINATION", "EXAM", "STUDY"),
}
"""Kind of text -> the headings that open it."""
OTHERS = ("RECOMMENDATION", "RECOMMENDATIONS", "NOTIFICATION", "ADDENDUM", "WET READ", "FINAL REPORT")
"""Headings that close a section and open none that is kept apart."""
_KINDS = {heading: kind for kind, headings in HEADINGS.items() for heading in headings}
_WORDS = "|".join(sorted((*_KINDS, *OTHERS), key=len, reverse=True))
_HEADING = re.compile(rf"^[ \t]*(?i:({_WORDS}))[ \t]*:|\b({_WORDS}):|^[ \t]*({_WORDS})[ \t]*$", re.MULTILINE)
LICENCE = re.compile(r"creativecommons\.org/(licenses/([a-z-]+)|publicdomain/zero)/([\d.]+)")


class Params(TableColumns, Rules):
    """Where reports and images are."""

    layout: Literal["openi", "table", "stem"] = Field(description="how things lie; see above")
    reports: str = Field("*", description="openi, stem: glob of the report files below root (* crosses folders)")
    images: bool = Field(True, description="openi: false: no pictures are here, each report counts once, as NO_IMAGE")
    report_columns: tuple[str, ...] = Field(("report",), description="table: columns of free text with sections")
    language: str = Field("en", description="of the reports, ISO 639-1")

    @model_validator(mode="after")
    def _complete(self) -> Params:
        if self.layout == "table" and not self.table:
            raise ValueError("the layout table needs table: the path of the table, relative to root")
        return self

    def used(self) -> Iterator[str]:
        """All columns that have a meaning."""
        yield from super().used()
        yield from self.report_columns


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of at most `capacity` images, those of a report together. Raises ConfigError where no report is."""
    tree = Tree(resolve(params.root), params, since)
    entries = list(_entries(tree, params))
    if not entries:
        raise ConfigError(f"{params.root}: no reports there; check root, layout and reports of the source {source!r}")
    own = Own(labels=lambda image: folder_splits(image, params))
    yield from divided(source, image_refs(tree, entries, params, own), params.capacity)


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition with the bytes of their images, or the error met: now or while listing."""
    yield from read_refs(partition, resolve(params.root))


def sections(report: str, language: str = "en") -> list[Text]:
    """The sections of a free report that have a kind of their own; a kind that comes twice has two texts."""
    marks = list(_HEADING.finditer(report))
    ends = [*(mark.start() for mark in marks[1:]), len(report)]
    found = []
    for mark, end in zip(marks, ends, strict=False):
        kind = _KINDS.get((mark[1] or mark[2] or mark[3]).upper())
        words = report[mark.end() : end].strip()
        if kind and words:
            found.append(Text(kind, words, language))
    return found


def report_texts(report: str, language: str) -> tuple[Text, ...]:
    """The whole report and its sections."""
    return (Text("report", report.strip(), language), *sections(report, language)) if report.strip() else ()


def _entries(tree: Tree, params: Params) -> Iterator[Stated]:
    if params.layout == "table" and params.table:
        # the columns of reports are texts of a kind that only lives until the sections are cut
        columns = params.model_copy(
            update={"text_columns": {**params.text_columns, **dict.fromkeys(params.report_columns, "report")}}
        )
        for entry in table_entries(tree, params.table, columns):
            yield replace(entry, texts=tuple(_cut(entry.texts, params.language)))
        return
    suffix = ".xml" if params.layout == "openi" else ".txt"
    for name in list(tree.files):
        if name.lower().endswith(suffix) and fnmatchcase(name, params.reports):
            if params.layout == "stem":
                yield from _beside(tree, name, params)
            else:
                yield from attempt(tree, tree.root / name, name, partial(read_openi, images=params.images))


def _cut(texts: Iterable[Text], language: str) -> Iterator[Text]:
    for text in texts:
        yield from report_texts(text.text, language) if text.kind == "report" else (text,)


def _beside(tree: Tree, name: str, params: Params) -> Iterator[Stated]:
    """One entry for each image of a report file: the one of its name, and those in the folder of its name."""
    tree.claim(name)
    stem = str(PurePosixPath(name).with_suffix(""))
    images = tree.beside(stem)
    stated = Stated(name, name, patient=stem)
    try:
        texts = report_texts((tree.root / name).read_text(encoding=params.encoding), params.language)
    except (OSError, UnicodeError, LookupError) as error:
        failed = unreadable(name, error)
        yield from (replace(stated, names=(image,), error=failed) for image in images or ("",))
        return
    if not images:
        yield replace(stated, error=_no_image(name))
    patterned = params.patient_pattern is not None
    yield from (replace(stated, names=(i,), texts=texts, patient=None if patterned else stem) for i in images)


def _no_image(name: str) -> Terminal:
    return Terminal("NO_IMAGE", f"{name}: a report without an image; a sample is an image: add it below root")


def read_openi(path: Path, name: str, images: bool = True) -> Iterator[Stated]:
    """One entry an image of an OpenI report. Raises Terminal ANNOTATION_UNREADABLE.

    MeSH terms are labels: of origin openi:MeSH as an indexer gave them ("Calcinosis/bilateral"), openi:automatic as a
    program did. The licence is the one that the file states.
    """
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(path.read_bytes(), parser)
    except (OSError, ValueError, etree.XMLSyntaxError) as error:
        raise unreadable(name, error) from error
    report = next((node.get("id") for node in root.iter("uId")), None)
    texts = [
        Text((node.get("Label") or "report").lower(), (node.text or "").strip())
        for node in root.iter("AbstractText") if (node.text or "").strip()
    ]
    terms = [
        Label(word, origin=f"openi:{origin}")
        for kind, origin in (("major", "MeSH"), ("minor", "MeSH"), ("automatic", "automatic"))
        for node in root.iterfind(f"MeSH/{kind}") if (word := (node.text or "").strip())
    ]
    stated = Stated(
        name, name, labels=tuple(terms), texts=tuple(texts), patient=report, licence=_licence(root)
    )
    pictures = list(root.iter("parentImage"))
    if not pictures or not images:
        yield replace(stated, error=_no_image(name))
    for picture in pictures if images else ():
        image = picture.get("id") or ""
        caption = (picture.findtext("caption") or "").strip()
        said = (*texts, *([Text("original_caption", caption)] if caption else []))
        # an id may go on where the name of its file ends, or the other way round; the address has the file's name
        address = (picture.findtext(".//url") or "").strip().rsplit("/", 1)[-1]
        names = tuple(dict.fromkeys(n for n in (image, PurePosixPath(address).stem) if n))
        yield replace(stated, id=f"{name}#{image}", names=names, texts=said)


def _licence(root: Any) -> tuple[str, str, str] | None:
    """Code, evidence, and that it holds for the texts too."""
    for node in root.iter("licenseURL"):
        found = LICENCE.search(node.text or "")
        if found:
            code = f"CC-{found[2].upper()}-{found[3]}" if found[2] else f"CC0-{found[3]}"
            return code, "openi:licenseURL", "texts"
    return None
