"""DICOMweb: series found by QIDO-RS, their instances fetched by WADO-RS, several at a time.

The invariant: UIDs and patient numbers of a server are private. They stand in the refs of a partition, which only its
reader sees, and in no message, index or log; rows hold pseudonyms of them. What a server answers is bounded: in size,
in time and in how often it is asked again.

>>> params = Params(url="https://pacs.example/dicom-web", query={"ModalitiesInStudy": "CT"}, token_env="PACS_TOKEN")
>>> for partition in list_partitions("pacs", params, FileIndex(None)):
...     print(partition.name, len(partition.refs))
all 120

Sources: DICOM PS3.18 10.6 (search), 10.4 (retrieve).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from catalog.items import Item, Partition
from connectors.dicomfiles import fetched, look, reference, together
from connectors.webclient import Client
from infra.errors import ConfigError, ItemError
from infra.fileindex import FileIndex
from infra.keys import canonical, sha256, split_by_key

NAME = "dicomweb"
VERSION = "1"
REQUIRES = {"pydicom": "pydicom", "httpx": "httpx"}

STUDY, SERIES, INSTANCE, MODALITY, COUNT = "0020000D", "0020000E", "00080018", "00080060", "00201209"
OUTLINING = ("SEG", "RTSTRUCT")
PAGE = 500
"""Answers that one search asks for."""


class Params(BaseModel):
    """Which server, and what of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(description="base of the service: QIDO and WADO addresses begin with it", pattern=r"^https?://\S+$")
    query: Mapping[str, str] = Field(
        default_factory=dict, description="QIDO filters of studies: StudyDate, ModalitiesInStudy, PatientID …"
    )
    series_query: Mapping[str, str] = Field(
        default_factory=dict, description="QIDO filters of the series of those studies: Modality, BodyPartExamined …"
    )
    token_env: str | None = Field(None, description="environment variable that holds a bearer token")
    in_flight: int = Field(4, ge=1, le=64, description="instances fetched at once")
    tries: int = Field(4, ge=1, le=10, description="how often a request is sent before it counts as failed")
    timeout: float = Field(60, gt=0, description="seconds without a byte after which a request counts as failed")
    max_bytes: int = Field(2 << 30, ge=1, description="bytes that one instance may have")
    capacity: int = Field(200, ge=1, description="instances a partition; a series is never divided")
    modality: str | None = Field(None, description="says the modality, whatever the headers say")
    anatomy: str | None = Field(None, description="says the body region, whatever the headers say")


def list_partitions(source: str, params: Params, since: FileIndex) -> Iterator[Partition]:
    """Partitions of at most `capacity` instances, series kept together with what outlines their images.

    Segmentations and structure sets are fetched to see which series that is. Raises ConfigError when the server refuses
    the search, Transient when it does not answer.
    """
    with _client(params) as client:
        refs = together(_refs(client, params))
    for name, part in split_by_key(refs, lambda ref: ref["group"], params.capacity).items():
        yield Partition(source, name, tuple(part), tuple((ref["id"], ref["sha256"]) for ref in part))


def read(partition: Partition, params: Params) -> Iterator[Item]:
    """The items of a partition, one an instance, with its bytes or the error met.

    Errors: Terminal SOURCE_MISSING, ACCESS_DENIED, OBJECT_TOO_LARGE, SOURCE_UNREADABLE (no DICOM in the answer);
    SERIES_INCOMPLETE (one item, for the rest of a series); Transient SOURCE_UNREADABLE when the server does not answer,
    or not wholly.
    """
    stated = {"modality": params.modality, "anatomy": params.anatomy}
    facts = {name: fact for name, fact in stated.items() if fact is not None}
    with _client(params) as client:
        for ref, found in fetched(partial(_fetch, client), partition.refs, params.in_flight):
            files, error = ({}, found) if isinstance(found, ItemError) else ({"main": found}, None)
            yield Item(ref["id"], "dicom", ref["group"], files, facts=facts, error=error)


def _client(params: Params) -> Client:
    token = None
    if params.token_env is not None:
        token = os.environ.get(params.token_env)
        if not token:
            raise ConfigError(f"token_env: the environment has no {params.token_env}; set it to the server's token")
    return Client(params.url.rstrip("/"), token, params.tries, params.timeout, params.max_bytes)


def _refs(client: Client, params: Params) -> Iterator[dict[str, Any]]:
    """What `read` needs for each instance: its three UIDs, in clear."""
    for study in _search(client, "/studies", params.query, STUDY):
        path = f"/studies/{quote(_value(study, STUDY), safe='')}"
        for series in _search(client, f"{path}/series", params.series_query, SERIES):
            yield from _series(client, f"{path}/series/{quote(_value(series, SERIES), safe='')}", series)


def _series(client: Client, path: str, series: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The instances of a series, and an entry that fails when the server lists fewer than it says there are."""
    said: dict[str, Any] = {"series": sha256(_value(series, SERIES).encode())}
    instances = list(_search(client, f"{path}/instances", {}, INSTANCE))
    for found in instances:
        ref = {"path": f"{path}/instances/{quote(_value(found, INSTANCE), safe='')}"}
        if _value(series, MODALITY) in OUTLINING:
            said["refers"] = _referred(client, ref["path"])
        # an instance does not change under its UID (PS3.3 C.12.1.1); a server that changed one says so in these words
        content = sha256(canonical([ref["path"], found]))
        yield reference(ref, "/".join(ref["path"].split("/")[2::2]), {**said, "sha256": content})
    count = _value(series, COUNT)
    if count.isdecimal() and int(count) > len(instances):
        item = f"{'/'.join(path.split('/')[2::2])}/rest"
        what = f"the server lists {len(instances)} of {count} instances"
        incomplete = {"code": "SERIES_INCOMPLETE", "message": f"{what}; list the source again when it has them all"}
        yield reference({"path": ""}, item, {**said, "sha256": f"{len(instances)}/{count}", **incomplete})


def _referred(client: Client, path: str) -> list[str]:
    """Hashes of the series that an instance outlines; none when it cannot be had: reading it will say why."""
    try:
        return list(look(client.instance(path)).get("refers", []))
    except ItemError:
        return []


def _search(client: Client, path: str, query: Mapping[str, str], key: str) -> Iterator[Mapping[str, Any]]:
    """All answers to a search, in the order of their UIDs; a server that repeats a page has no more."""
    seen: dict[str, Mapping[str, Any]] = {}
    while True:
        page = client.search(path, {**query, "limit": str(PAGE), "offset": str(len(seen))})
        new = {_value(one, key): one for one in page if _value(one, key) not in seen}
        seen.update(new)
        if not new:
            break
    seen.pop("", None)  # what has no UID has no address either
    yield from (seen[uid] for uid in sorted(seen))


def _value(found: Mapping[str, Any], tag: str) -> str:
    values = found.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _fetch(client: Client, ref: Mapping[str, Any]) -> bytes:
    return client.instance(ref["path"])
