"""Imaging Data Commons: series chosen by SQL over its index, their files read from its public buckets.

The invariant: what is chosen is written down as SQL, and what is fetched are objects of buckets that never change: a
new version of a series has a new name. Nothing is signed, so no credentials are looked for.

>>> params = Params(select="SELECT SeriesInstanceUID FROM index WHERE collection_id = 'nlst' AND Modality = 'CT'")
>>> for partition in list_partitions("idc", params, FileIndex(None)):
...     print(partition.name, len(partition.refs))
all 1204

The index is a Parquet or DuckDB file, or that of the package idc-index-data. Its columns (those of idc-index): the ones
named in COLUMNS are needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from catalog.items import Item, Licences, Partition
from connectors.dicomfiles import fetched, look, reference, together
from infra.errors import ConfigError, ItemError
from infra.fileindex import FileIndex
from infra.keys import sha256, split_by_key
from infra.s3 import Bucket
from infra.storage import resolve

NAME = "idc"
VERSION = "1"
REQUIRES = {"pydicom": "pydicom", "duckdb": "duckdb", "boto3": "boto3"}

PACKAGE = "idc_index_data"
COLUMNS = ("collection_id", "SeriesInstanceUID", "Modality", "series_aws_url", "license_short_name", "source_DOI")
OUTLINING = ("SEG", "RTSTRUCT")


class Params(BaseModel):
    """Which index, and what of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    select: str = Field(description="SQL over the table `index` that gives a column SeriesInstanceUID")
    index: str | None = Field(None, description="Parquet or DuckDB file; null: the one in the package idc-index-data")
    endpoint: str | None = Field(None, description="address of another S3 server that holds the buckets; null: AWS")
    in_flight: int = Field(8, ge=1, le=64, description="objects fetched at once")
    max_bytes: int = Field(2 << 30, ge=1, description="bytes that one file may have")
    capacity: int = Field(200, ge=1, description="files a partition; a series is never divided")


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of at most `capacity` files, series kept together with what outlines their images.

    Segmentations and structure sets are fetched to see which series that is. Raises ConfigError: no index, SQL that
    does not work or chooses nothing; Transient when the bucket does not answer.
    """
    chosen = _chosen(params)
    with ThreadPoolExecutor(params.in_flight) as pool:
        refs = together(ref for found in pool.map(partial(_refs, params), chosen) for ref in found)
    for name, part in split_by_key(refs, lambda ref: ref["group"], params.capacity).items():
        yield Partition(source, name, tuple(part), tuple((ref["id"], ref["sha256"]) for ref in part))


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition, one a file, with its bytes or the error met (those of `infra.s3.Bucket.get`)."""
    for ref, found in fetched(partial(_fetch, params), partition.refs, params.in_flight):
        files, error = ({}, found) if isinstance(found, ItemError) else ({"main": found}, None)
        code, evidence = ref["licence"], f"IDC index, license_short_name of {ref['doi'] or ref['id'].split('/')[0]}"
        yield Item(
            ref["id"], "dicom", ref["group"], files, licences=Licences(code, code, code, evidence),
            facts={"source_uri": f"{ref['bucket']}/{ref['key']}"}, error=error,
        )


def _chosen(params: Params) -> list[dict[str, Any]]:
    """The rows of the index that the SQL chooses, in the order of their addresses."""
    import duckdb

    path = _index(params)
    with duckdb.connect() as database:
        try:
            if path.suffix == ".parquet":
                database.execute('CREATE TABLE "index" AS SELECT * FROM read_parquet(?)', [str(path)])
            else:
                database.execute(f"ATTACH '{str(path).replace(chr(39), chr(39) * 2)}' AS given (READ_ONLY)")
                database.execute('CREATE TABLE "index" AS SELECT * FROM given."index"')
            database.execute("SET enable_external_access = false")
            found = database.execute(
                f'SELECT {", ".join(COLUMNS)} FROM "index" WHERE SeriesInstanceUID IN '
                f"(SELECT SeriesInstanceUID FROM ({params.select})) ORDER BY series_aws_url"
            ).fetchall()
        except duckdb.Error as error:
            raise ConfigError(f"select: the IDC index cannot be asked so: {error}") from error
    if not found:
        raise ConfigError("select: no series of the IDC index is chosen; try the SQL with `duckdb`")
    return [dict(zip(COLUMNS, row, strict=True)) for row in found]


def _index(params: Params) -> Path:
    if params.index is not None:
        return resolve(params.index)
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError("index: no file is named and the package is not installed: pip install idc-index-data")
    return Path(importlib.import_module(PACKAGE).IDC_INDEX_PARQUET_FILEPATH)


def _refs(params: Params, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What `read` needs for each file of a series; address: s3://BUCKET/SERIES/*."""
    address = str(row["series_aws_url"]).rstrip("*").rstrip("/")
    folder = address.rpartition("/")[2]
    place = {"bucket": address, "licence": _licence(row["license_short_name"]), "doi": row["source_DOI"]}
    said: dict[str, Any] = {"series": sha256(str(row["SeriesInstanceUID"]).encode())}
    made = []
    for key in _bucket(params, address).list():
        if row["Modality"] in OUTLINING:
            said["refers"] = _referred(params, {"bucket": address, "key": key})
        content = sha256(f"{folder}/{key}".encode())  # names are UUIDs of contents
        item = f"{row['collection_id']}/{folder}/{key}"
        made.append(reference({**place, "key": key}, item, {**said, "sha256": content}))
    if made:
        return made
    gone = {"code": "FILE_MISSING", "message": "the bucket holds no file of this series; use the index of today"}
    return [reference({**place, "key": ""}, f"{row['collection_id']}/{folder}", {**said, "sha256": "absent", **gone})]


def _referred(params: Params, ref: Mapping[str, Any]) -> list[str]:
    """Hashes of the series that a file outlines; none when it cannot be had: reading it will say why."""
    try:
        return list(look(_fetch(params, ref)).get("refers", []))
    except ItemError:
        return []


def _bucket(params: Params, address: str) -> Bucket:
    return Bucket.at(address, params.endpoint, in_flight=params.in_flight)


def _fetch(params: Params, ref: Mapping[str, Any]) -> bytes:
    return _bucket(params, ref["bucket"]).get(ref["key"], max_bytes=params.max_bytes)


def _licence(name: str | None) -> str | None:
    """CC BY-NC 4.0 -> CC-BY-NC-4.0; anything else is unknown."""
    found = re.fullmatch(r"(CC BY(?:-NC)?(?:-SA|-ND)?|CC0) (\d\.\d)(?: \w+)?", (name or "").strip())
    return f"{found[1].replace(' ', '-')}-{found[2]}" if found else None
