"""What a bucket of PMC's layout says of itself: the daily inventory of its metadata, and the metadata of an article.

The inventory (AWS S3 Inventory in CSV) names the metadata JSON of every article version with its ETag, which moves when
anything of the version does. The invariant: an inventory's files are checked by their MD5 before a row of them is
believed, and columns are taken by the names that its manifest gives.

>>> place = newest(bucket, None)
>>> next(rows(bucket, place, folder / "scratch"))
(10009416, 1, 'd41d8cd98f00b204e9800998ecf8427e')
>>> read_metadata(bucket.get("metadata/PMC10009416.1.json"), "PMC10009416.1").licence
'CC BY'
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_plus

from connectors.pmc.selection import cited_date
from infra.errors import ConfigError, Terminal
from infra.keys import canonical
from infra.s3 import Bucket

REPORTS = "inventory-reports/"
_KEY = re.compile(r"metadata/PMC(\d+)\.(\d+)\.json")


def newest(bucket: Bucket, name: str | None) -> str:
    """The folder REPORTS/BUCKET/metadata/DATE/ of the inventory of that name, or of the newest one."""
    folders = [place for report in bucket.list(REPORTS, "/") for place in bucket.list(f"{report}metadata/", "/")]
    dated = [place for place in folders if re.search(r"/\d{4}-\d\d-\d\dT\d\d-\d\dZ/$", place)]
    for place in sorted(dated, key=lambda place: place.split("/")[-2], reverse=True):
        # a report that is being written has no manifest yet
        if name in (None, place.split("/")[-2]) and f"{place}manifest.json" in bucket.list(place):
            return place
    there = ", ".join(sorted(place.split("/")[-2] for place in dated)[-3:]) or "none"
    raise ConfigError(
        f"s3://{bucket.name}/{bucket.prefix}{REPORTS}: no inventory {name or 'with a manifest.json'} (there are: "
        f"{there}); check root and inventory"
    )


def rows(bucket: Bucket, place: str, scratch: Path) -> Iterator[tuple[int, int, str]]:
    """PMCID number, version and ETag of every metadata object that an inventory names, in pieces.

    Raises ConfigError where the inventory cannot be understood, and as `Bucket.get` does.
    """
    try:
        manifest = json.loads(bucket.get(f"{place}manifest.json"))
        columns = [column.strip().lower() for column in manifest["fileSchema"].split(",")]
        if manifest.get("fileFormat", "CSV") != "CSV" or not {"key", "etag"} <= set(columns):
            raise ValueError(f"{manifest['fileSchema']!r} are no columns of a CSV, Key and ETag among them")
        for file in manifest["files"]:
            bucket.download(file["key"].removeprefix(bucket.prefix), scratch, file.get("MD5checksum"))
            with gzip.open(scratch, "rt", encoding="utf-8", newline="") as lines:
                yield from _metadata_rows(csv.reader(lines), columns)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, csv.Error, EOFError, zlib.error,
            gzip.BadGzipFile) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{place}manifest.json or its files: {what[:300]}; take another by `inventory`") from error
    finally:
        scratch.unlink(missing_ok=True)


def _metadata_rows(lines: Iterable[Sequence[str]], columns: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    at = {name: column for column, name in enumerate(columns)}
    old, deleted = at.get("islatest"), at.get("isdeletemarker")  # of buckets that keep old objects
    for line in lines:
        found = _KEY.fullmatch(unquote_plus(line[at["key"]]))
        if found and not (old and line[old] == "false") and not (deleted and line[deleted] == "true"):
            yield int(found[1]), int(found[2]), line[at["etag"]].strip('"')


# metadata


@dataclass(frozen=True)
class Files:
    """Keys of an article version's objects, each with its MD5 in hex, or None where the metadata gives none."""

    xml: tuple[str, str | None] | None
    media: Mapping[str, str | None]

    def packed(self) -> bytes:
        return zlib.compress(canonical([self.xml, self.media]))

    @classmethod
    def unpacked(cls, data: bytes) -> Files:
        xml, media = json.loads(zlib.decompress(data))
        return cls(tuple(xml) if xml else None, media)


class Metadata(NamedTuple):
    """What of a version's metadata is kept."""

    licence: str | None
    retracted: bool
    cited: str | None
    files: Files


def read_metadata(data: bytes, entry: str) -> Metadata:
    """What is kept of the JSON of an article version. Raises Terminal METADATA_UNREADABLE."""
    try:
        said = json.loads(data)
        if f"{said['pmcid']}.{said['version']}" != entry:
            raise ValueError(f"it is of {said['pmcid']}.{said['version']}")
        xml = said.get("xml_url")
        media = dict(sorted(_object(url) for url in said.get("media_urls") or ()))
        files = Files(_object(xml) if xml else None, media)
        licence, cited = said.get("license_code"), cited_date(said.get("citation"))
        return Metadata(None if licence is None else str(licence), bool(said.get("is_retracted")), cited, files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise Terminal("METADATA_UNREADABLE", f"metadata/{entry}.json: {what[:200]}; tell its publisher") from error


def _object(url: str) -> tuple[str, str | None]:
    """Key and MD5 of an address s3://BUCKET/KEY?md5=HEX."""
    found = re.fullmatch(r"s3://[^/]+/([^?]+)(?:\?md5=([0-9a-fA-F]{32}))?", url)
    if found is None:
        raise ValueError(f"{url!r} is not s3://BUCKET/KEY?md5=…")
    return found[1], found[2]
