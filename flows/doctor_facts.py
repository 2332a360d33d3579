"""What `medloom doctor` looks at: gathered without changing anything, judged elsewhere (flows/doctor.py).

The invariant: a fact that cannot be had is unknown, never an error: the doctor is asked when things are broken. No
address beyond this machine is asked unless told, and none is shown with its user and password.

>>> gather(Path("home"), "demo").disk.free
812400000000
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from catalog import views
from catalog.builds import Build, last_snapshot
from catalog.index import PUBLISHED
from catalog.manifest import Entry, latest, read_manifest, scan
from catalog.schema import VERSION
from flows.doctor import Access, Address, Clocks, Disk, Facts, Formats, Left, Named
from flows.openports import listening
from flows.recipe import Recipe, find_recipe, load_recipe
from infra import plugins, redact
from infra import weights as all_weights
from infra.chat import Endpoint
from infra.errors import MedloomError
from infra.settings import secret
from infra.storage import _HOST, TEMPORARY
from infra.telemetry import logs, traces

WAIT_S = 1.5
"""How long an address may take to answer."""
LOOKED_AT = 60
"""Manifests of one stage that are read to know how much its units write."""
FIELDS = {"detector": "expert", "experts": "expert"}
"""Parameters that name plug-ins of another kind than their own name says."""
DATABASES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL", "MEDLOOM_CATALOG")
STORES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def gather(home: Path, recipe: str | None = None, changes: Sequence[str] = (), online: bool = False) -> Facts:
    """All facts about this machine, the home and what the recipe names."""
    loaded, problem = _recipe(recipe, changes)
    used = [] if loaded is None else list(_plugins(loaded))
    entries = list(latest(scan(home)).values()) if home.is_dir() else []
    build = _build(home)
    wants, packages = _packages()
    return Facts(
        python=sys.version_info[:3], wants_python=wants, packages=packages, recipe_problem=problem,
        plugins=[Named(place, module.NAME, plugins.why_unavailable(module)) for place, module, _ in used],
        weights=list(_weights(used)), endpoints=list(_endpoints(used, online)),
        services=list(_services(loaded, online)), disk=_disk(home, loaded, entries),
        access=_access(home, loaded, build), clocks=_clocks(home, build), listening=list(listening()),
        left=_left(home), formats=_formats(home, entries, build), telemetry_problem=_telemetry(),
    )


def _recipe(name: str | None, changes: Sequence[str]) -> tuple[Recipe | None, str | None]:
    if name is None:
        return None, None
    try:
        return load_recipe(find_recipe(name), changes), None
    except (MedloomError, OSError) as error:
        return None, redact.text(str(error))


def _packages() -> tuple[str, dict[str, tuple[str, str | None]]]:
    """The Python that medloom wants, and its requirements that hold here, extras apart."""
    from importlib.metadata import PackageNotFoundError, metadata, requires, version

    from packaging.requirements import Requirement

    found: dict[str, tuple[str, str | None]] = {}
    for line in requires("medloom") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found[f"{requirement.name}{requirement.specifier}"] = requirement.name, version(requirement.name)
        except PackageNotFoundError:
            found[f"{requirement.name}{requirement.specifier}"] = requirement.name, None
    return metadata("medloom")["Requires-Python"] or ">=3.11", found


Used = tuple[str, Any, BaseModel]
"""place in the recipe, module of the plug-in, its parameters"""


def _plugins(recipe: Recipe) -> Iterator[Used]:
    """The plug-ins that a recipe names, those inside the parameters of others too."""
    for source in recipe.sources:
        yield source.name, plugins.plugins("connector")[source.use], source.params
    for stage in recipe.stages:
        yield stage.name, plugins.plugins("stage")[stage.use], stage.params
        options = getattr(stage.params, "options", {})
        for field in type(stage.params).model_fields:
            kind = "volume_expert" if (stage.use, field) == ("ground_volumes", "experts") else FIELDS.get(field, field)
            given = getattr(stage.params, field)
            names = (given,) if isinstance(given, str) else given
            if kind not in plugins.KINDS or not isinstance(names, tuple | list):
                continue
            for name in names:
                if module := plugins.plugins(kind).get(name):  # `auto` is none
                    own = options.get(name, {}) if field == "experts" else options
                    yield stage.name, module, _params(module, own)
    for base in recipe.knowledge:
        for corpus in base.corpora:
            yield base.name, plugins.plugins("corpus")[corpus.use], corpus.params


def _params(module: Any, options: Mapping[str, Any]) -> BaseModel:
    try:
        return module.Params.model_validate(dict(options))  # type: ignore[no-any-return]
    except ValidationError:  # the plan says so, with the place
        return BaseModel()


def _weights(used: Iterable[Used]) -> Iterator[Named]:
    """The weights of the plug-ins that are named: by their cards, and where a parameter's value is a name of some."""
    seen: set[str] = set()
    for place, module, params in used:
        card = getattr(module, "CARD", None)
        names = [*getattr(card, "weights", ()), *(v for v in vars(params).values() if isinstance(v, str))]
        for name in names:
            if name in all_weights.table() and name not in seen:
                seen.add(name)
                problems = all_weights.check(name)
                yield Named(place, name, "; ".join(problems[:3]) or None)


def _endpoints(used: Iterable[Used], online: bool) -> Iterator[Address]:
    """Model endpoints inside the parameters of plug-ins, and inside sections of those."""
    for place, _, params in used:
        for inner in _models(params):
            bases = [*filter(None, [getattr(inner, "base_url", None)]), *getattr(inner, "base_urls", ())]
            for base in bases:
                try:
                    endpoint = Endpoint(base_url=base, model="any")
                except ValidationError:
                    continue
                key = getattr(inner, "api_key_env", None)
                yield Address(
                    place, base, endpoint.is_loopback, _reached(base, online), key, bool(key and secret(key)),
                    "start the model server, or build without the stage; rows that need it become retryable rejects",
                )


def _models(value: Any) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
        for field in type(value).model_fields:
            yield from _models(getattr(value, field))
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _models(inner)


def _services(recipe: Recipe | None, online: bool) -> Iterator[Address]:
    """Databases, object stores and collectors whose addresses are set, and S3 or DICOMweb servers of sources."""
    for name in DATABASES:
        if (url := os.environ.get(name, "")) and "postgres" in url:
            yield _address("postgres", _dsn(url), online, f"start Postgres, or mend {name}")
    for name in STORES:
        if url := os.environ.get(name, ""):
            yield _address("s3", url, online, f"start the object store, or mend {name}")
    with suppress(MedloomError):
        if url := traces.address(os.environ) or "":
            yield _address("collector", url, online, "start the collector, or unset MEDLOOM_OTLP")
    for source in () if recipe is None else recipe.sources:
        for field in ("endpoint", "url"):
            given = getattr(source.params, field, None)
            if isinstance(given, str):
                yield _address(f"source {source.name}", given, online, "start the server, or leave the source out")


def _dsn(url: str) -> str:
    """A Postgres address as a URL: DuckLake's is of the form postgres:host=… port=…."""
    if "://" in url:
        return url
    words = dict(word.split("=", 1) for word in url.rpartition(":")[2].split() if "=" in word)
    return f"postgresql://{words.get('host', 'localhost')}:{words.get('port', '5432')}"


def _address(place: str, url: str, online: bool, advice: str) -> Address:
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.hostname or ''}" + (f":{parts.port}" if parts.port else "")
    return Address(place, shown, _is_here(parts.hostname or ""), _reached(url, online), advice=advice)


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reached(url: str, online: bool) -> bool | None:
    """Whether something listens there; nothing is sent. None: it is beyond this machine, and that was not asked for."""
    parts = urlsplit(url)
    host, scheme = parts.hostname or "", parts.scheme.partition("+")[0]
    port = parts.port or {"https": 443, "http": 80, "postgresql": 5432, "postgres": 5432}.get(scheme, 443)
    if not (online or _is_here(host)):
        return None
    try:
        with socket.create_connection((host, port), timeout=WAIT_S):
            return True
    except OSError:
        return False


def _disk(home: Path, recipe: Recipe | None, entries: Sequence[Entry]) -> Disk:
    found = os.statvfs(_existing(home))
    left, files = _bytes_left(home, recipe, entries)
    return Disk(
        found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize,
        found.f_favail if found.f_files else None, found.f_files, left, files,
    )


def _bytes_left(home: Path, recipe: Recipe | None, entries: Sequence[Entry]) -> tuple[int | None, int]:
    """Bytes and files that the stages of the recipe have left, over the partitions that were ingested, at what their
    units wrote so far; None where no unit was ever run. Partitions not ingested yet are not known without a plan."""
    done: dict[str, list[Entry]] = {}
    for entry in entries:
        done.setdefault(entry.stage, []).append(entry)
    if recipe is None or not entries:
        return None, 0
    left = files = 0
    ingested = {(e.source, e.partition) for e in done.get("ingest", ())}
    for name in [stage.name for stage in recipe.stages]:
        there = done.get(name, [])
        missing = len(ingested - {(e.source, e.partition) for e in there})
        step = max(1, len(there) // LOOKED_AT)
        sizes = [size for entry in there[::step] if (size := _written(home, entry)) is not None]
        left += missing * (sum(sizes) // len(sizes) if sizes else 0)
        files += 3 * missing
    return left, files


def _written(home: Path, entry: Entry) -> int | None:
    try:
        return sum(shard.bytes for shard in read_manifest(home, entry.path).shards)
    except (OSError, ValueError, MedloomError):
        return None


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _access(home: Path, recipe: Recipe | None, build: Build | None) -> Access:
    stated: Sequence[Mapping[str, Any]] = build.recipe.get("sources", ()) if build is not None else ()
    private = [str(s.get("name")) for s in stated if s.get("identifiers", "private") == "private"]
    if recipe is not None:
        private = [source.name for source in recipe.sources if source.terms.identifiers == "private"]
    secrets = [path for path in (home / "secrets").glob("*") if path.is_file() and path.stat().st_mode & 0o077]
    return Access(
        str(home), home.is_dir(), _writable(_existing(home)), home.is_dir() and _open_to_all(home), tuple(private),
        tuple(str(path) for path in sorted(secrets)),
    )


def _writable(folder: Path) -> bool:
    """By writing, since a mode does not say it of a read-only file system; what is written is gone at once."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _open_to_all(folder: Path) -> bool:
    folder = folder.resolve()
    if not folder.stat().st_mode & (stat.S_IROTH | stat.S_IXOTH):
        return False
    return all(above.stat().st_mode & stat.S_IXOTH for above in folder.parents)


def _build(home: Path) -> Build | None:
    try:
        return last_snapshot(home)
    except (OSError, ValueError, MedloomError):
        return None


def _clocks(home: Path, build: Build | None) -> Clocks:
    newest = None
    with suppress(ValueError):
        newest = None if build is None else datetime.fromisoformat(build.created_at).timestamp()
    try:
        with tempfile.TemporaryFile(dir=_existing(home)) as file:
            written: float | None = os.fstat(file.fileno()).st_mtime
    except OSError:
        written = None
    return Clocks(time.time(), newest, written)


def _left(home: Path) -> Left:
    mine = foreign = 0
    for path in home.rglob(f"{TEMPORARY}*") if home.is_dir() else ():
        host, _, rest = path.name.removeprefix(TEMPORARY).partition("-")
        if host != _HOST:
            with suppress(OSError):
                foreign += path.stat().st_mtime < time.time() - 24 * 3600
        elif not Path("/proc", rest.partition("-")[0]).exists():
            mine += 1
    return Left(mine, foreign, _lease(home / "lease.json"))


def _lease(path: Path) -> str | None:
    """Who holds the lease, where it is a process of this machine that is gone."""
    try:
        held = json.loads(path.read_bytes())
        if held["held"] and held["host"] == socket.gethostname() and not Path("/proc", str(held["pid"])).exists():
            return f"{held['user']} on {held['host']} (process {held['pid']})"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _formats(home: Path, entries: Sequence[Entry], build: Build | None) -> Formats:
    found: int | None = None
    for entry in entries[:: max(1, len(entries) // LOOKED_AT)]:
        with suppress(OSError, ValueError, KeyError):
            stated = int(json.loads((home / entry.path).read_bytes())["schema_version"])
            found = stated if found is None else max(found, stated)
    index, indexed = _index(home)
    number = None if build is None else build.number
    return Formats(VERSION, views.FORMAT, found, index, number, number is None or index is None or number in indexed)


def _index(home: Path) -> tuple[int | None, set[int]]:
    """The format of the index, and the builds in it; (None, {}) where there is none, or a lake."""
    path = home / PUBLISHED
    if not path.exists() or os.environ.get("MEDLOOM_CATALOG", "").startswith("ducklake:"):
        return None, set()
    import duckdb

    try:
        with duckdb.connect(str(path), read_only=True) as con:
            (number,) = con.execute("SELECT number FROM format").fetchone() or (None,)
            return number, {n for (n,) in con.execute("SELECT number FROM builds").fetchall()}
    except duckdb.Error:
        return 0, set()  # damaged, or of a time before there was a format: made again in both cases


def _telemetry() -> str | None:
    try:
        traces.address(os.environ)
        logs.check(os.environ)
    except MedloomError as error:
        return redact.text(str(error))
    return None

