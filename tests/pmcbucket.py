"""A bucket of the layout of PMC's (s3://pmc-oa-opendata), written from a description of its article versions.

>>> server.put("pmc", bucket_of(ARTICLES, "2026-01-18T01-00Z"))
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3server import Proxy, Server
from sources import encoded, picture

from catalog.items import Item, Partition
from connectors.pmc import Params, list_partitions, read
from infra.fileindex import FileIndex

NAME = "pmc-oa-opendata"
REPORT = f"inventory-reports/{NAME}/metadata"
SCHEMA = ("Bucket", "Key", "LastModifiedDate", "ETag")
LICENCES = {
    "CC BY": "https://creativecommons.org/licenses/by/4.0/", "CC BY-NC": "https://creativecommons.org/licenses/by-nc/4.0/",
    "CC0": "https://creativecommons.org/publicdomain/zero/1.0/",
}


@dataclass(frozen=True)
class Version:
    """One version of an article, and what is odd about it."""

    number: int
    version: int = 1
    licence: str | None = "CC BY"
    xml_licence: str | None = None
    """what the XML states; None: the same"""
    title: str = "A study of something"
    abstract: str = "Nothing much."
    kind: str = "research-article"
    journal: str = "Journal of Examples"
    day: str = "2024 May 17"
    retracted: bool = False
    figures: int = 2
    seed: int = 0
    """other pictures for another seed"""
    xml: bool = True
    media: bool = True
    odd: str | None = None
    """wrong md5, lost (the second picture is not in the bucket), bad json, bad xml"""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """of a real article: its XML as "xml" and its pictures by name, in place of generated ones"""

    @property
    def entry(self) -> str:
        return f"PMC{self.number}.{self.version}"

    @property
    def pictures(self) -> dict[str, bytes]:
        """The pictures by name; figure N has the file gN.jpg."""
        if self.files:
            return {name: data for name, data in self.files.items() if name != "xml"}
        seeds = {n: 10_000 * self.seed + 100 * self.number + 10 * self.version + n for n in range(1, self.figures + 1)}
        return {f"ex-{self.number}-g{n}.jpg": encoded(picture(seed, 48), "JPEG") for n, seed in seeds.items()}

    @property
    def metadata_key(self) -> str:
        return f"metadata/{self.entry}.json"


ARTICLES = (
    Version(1, title="CT, revisited"),
    *(Version(2, version) for version in (1, 9, 10)),
    Version(3, retracted=True),
    Version(4, licence="TDM", media=False),
    Version(5),
    Version(6, odd="wrong md5"),
    Version(7, licence="CC BY-NC"),
    Version(8, licence=None),
    Version(9, xml_licence="CC BY-NC"),
    Version(10, xml=False),
    Version(11, odd="lost"),
    Version(12, figures=0),
    Version(13, kind="case-report", abstract="Seen on magnetic resonance (MRI)."),
    Version(14, title="A matter of fact", journal="Facts"),
    Version(15, odd="bad json"),
    Version(16, odd="bad xml"),
    Version(17, licence="CC0", day="2023 Dec 31"),
    Version(18, day="2024"),
    Version(19),
    Version(20),
)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def xml_of(version: Version) -> bytes:
    """Its JATS."""
    if version.files:
        return version.files["xml"]
    if version.odd == "bad xml":
        return b"<article><front>"
    address = LICENCES.get(version.xml_licence or version.licence or "", "")
    licence = f'<permissions><license xlink:href="{address}"/></permissions>' if address else ""
    figures = "".join(
        f'<fig id="f{n}"><label>Figure {n}</label><caption><p>Caption {n} of {version.entry}.</p></caption>'
        f'<graphic xlink:href="ex-{version.number}-g{n}"/></fig>' for n in range(1, version.figures + 1)
    )
    year = version.day.split()[0]
    return (
        f'<article xmlns:xlink="http://www.w3.org/1999/xlink" article-type="{version.kind}"><front><journal-meta>'
        f"<journal-title-group><journal-title>{version.journal}</journal-title></journal-title-group></journal-meta>"
        f'<article-meta><article-id pub-id-type="pmcid">PMC{version.number}</article-id><title-group><article-title>'
        f"{version.title}</article-title></title-group><pub-date><day>17</day><month>5</month><year>{year}</year>"
        f"</pub-date>{licence}<abstract><p>{version.abstract}</p></abstract></article-meta></front>"
        f'<body><p>See <xref ref-type="fig" rid="f1">Figure 1</xref>.</p>{figures}</body></article>'
    ).encode()


def objects(version: Version) -> dict[str, bytes]:
    """Everything of a version in the bucket, by key."""
    below = f"{version.entry}/"
    media = {below + name: data for name, data in version.pictures.items()} if version.media else {}
    made = {f"{below}{version.entry}.txt": b"text"} | media
    made |= {f"{below}{version.entry}.xml": xml_of(version)} if version.xml else {}
    stated = {key: f"s3://{NAME}/{key}?md5={md5(data)}" for key, data in made.items()}
    if version.odd in ("wrong md5", "lost"):
        second = sorted(media)[1]
        if version.odd == "lost":
            del made[second]
        else:
            made[second] = b"other bytes"
    record = {
        "pmcid": f"PMC{version.number}", "version": version.version, "pmid": version.number, "doi": None, "mid": None,
        "title": version.title, "citation": f"J Ex. {version.day}; 3(1):55-60", "is_pmc_openaccess": True,
        "is_manuscript": version.licence == "TDM", "is_historical_ocr": False, "is_retracted": version.retracted,
        "license_code": version.licence, "xml_url": stated.get(f"{below}{version.entry}.xml"), "pdf_url": None,
        "text_url": stated[f"{below}{version.entry}.txt"], "media_urls": [stated[key] for key in media],
    }
    told = b"{" if version.odd == "bad json" else json.dumps(record).encode()
    return made | {f"{below}{version.entry}.json": told, version.metadata_key: told}


def inventory(
    etags: Iterable[tuple[str, str]], date: str, columns: Sequence[str] = SCHEMA, parts: int = 2
) -> dict[str, bytes]:
    """The report of a day over (key, ETag) pairs, in several files."""
    rows = list(etags)
    made, files = {}, []
    for part in range(parts):
        lines = io.StringIO()
        writer = csv.writer(lines, quoting=csv.QUOTE_ALL)
        for key, etag in rows[part::parts]:
            row = {"Bucket": NAME, "Key": key, "LastModifiedDate": "2026-01-17T00:00:00.000Z", "ETag": etag}
            writer.writerow([row.get(column, "") for column in columns])
        data, key = gzip.compress(lines.getvalue().encode(), mtime=0), f"{REPORT}/data/{date}-{part}.csv.gz"
        made[key] = data
        files.append({"key": key, "size": len(data), "MD5checksum": md5(data)})
    manifest = {
        "sourceBucket": NAME, "destinationBucket": f"arn:aws:s3:::{NAME}", "version": "2016-11-30",
        "creationTimestamp": "1", "fileFormat": "CSV", "fileSchema": ", ".join(columns), "files": files,
    }
    return made | {f"{REPORT}/{date}/manifest.json": json.dumps(manifest).encode()}


def bucket_of(versions: Sequence[Version], date: str, **how: Sequence[str]) -> dict[str, bytes]:
    """All objects of these versions and the inventory of a day that names them, and a few that are no metadata."""
    made = {key: data for version in versions for key, data in objects(version).items()}
    etags = [(key, md5(data)) for key, data in made.items() if key.startswith("metadata/")]
    return made | inventory([*etags, ("metadata/README.txt", "0" * 32)], date, **how)


def real_article(folder: Path, number: int) -> Version:
    """A version from a folder with one JATS file and its pictures."""
    (xml,) = folder.glob("*.xml")
    pictures = {p.name: p.read_bytes() for p in folder.rglob("*") if p.suffix in (".jpg", ".png", ".tif", ".gif")}
    return Version(number, files={"xml": xml.read_bytes(), **pictures})


class Place:
    """A bucket of one test, and a home that remembers it."""

    def __init__(self, server: Server, proxy: Proxy, home: Path, name: str) -> None:
        self.server, self.proxy, self.home, self.name = server, proxy, home, name
        self._there: dict[str, bytes] = {}

    def publish(self, versions: Any, date: str, **how: Any) -> None:
        """Make the bucket hold these versions, and an inventory of a day that says so."""
        wanted = bucket_of(versions, date, **how)
        self.server.put(self.name, {key: data for key, data in wanted.items() if self._there.get(key) != data})
        gone = [key for key in self._there if key not in wanted and not key.startswith("inventory-reports/")]
        self.server.remove(self.name, *gone)
        self._there = wanted

    def params(self, **more: Any) -> Params:
        given = {"root": f"s3://{self.name}", "endpoint": self.proxy.endpoint, "in_flight": 4, **more}
        return Params(**{"requests_per_second": 5000, **given})

    def listed(self, **more: Any) -> list[Partition]:
        with FileIndex(self.home / "files.sqlite") as since:
            return list(list_partitions("pmc", self.params(**more), since))

    def items(self, **more: Any) -> list[Item]:
        return [item for partition in self.listed(**more) for item in read(partition, self.params(**more))]

    def codes(self, **more: Any) -> dict[str, str]:
        """Item -> the code of its error, or "" for a picture."""
        return {item.id: getattr(item.error, "code", "") for item in self.items(**more)}
