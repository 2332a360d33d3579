"""Weights of experts: named by hash in weights.yaml, fetched when asked for, checked whenever they are used.

The invariant: nothing is fetched by itself, and what `locate` gives is byte for byte what the table names. They lie
in the folder that MEDLOOM_WEIGHTS names, else in medloom/weights under XDG_DATA_HOME (~/.local/share): a folder a name.

>>> locate("lwnet-vessels")
PosixPath('/home/ada/.local/share/medloom/weights/lwnet-vessels')
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from infra.errors import ConfigError
from infra.keys import canonical, sha256
from infra.plugins import nearest
from infra.storage import draft_of, file_sha256, publish, walk

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

TIMEOUT = 60
"""Seconds that a server may be silent."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class File:
    """One file of some weights."""

    name: str
    url: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Weights:
    """One entry of weights.yaml."""

    name: str
    what: str
    licence: str
    """SPDX"""
    commercial: bool | None
    """whether what they find may be used commercially; None: unknown"""
    files: tuple[File, ...]

    @property
    def folder(self) -> Path:
        return root() / self.name

    @property
    def identity(self) -> str:
        """One SHA-256 for all of them: that of their files' names and hashes, so the same on every machine."""
        return sha256(canonical({file.name: file.sha256 for file in self.files}))

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@cache
def table() -> Mapping[str, Weights]:
    """All weights that weights.yaml names."""
    entries = yaml.safe_load(Path(__file__).with_name("weights.yaml").read_text())["weights"]
    return {name: _weights(name, entry) for name, entry in entries.items()}


def _weights(name: str, entry: Mapping[str, Any]) -> Weights:
    files = tuple(
        File(file, f"{entry['base']}/{facts['path']}", facts["sha256"], facts["bytes"])
        for file, facts in entry["files"].items()
    )
    return Weights(name, entry["what"], entry["licence"], entry["commercial"], files)


def named(name: str) -> Weights:
    """The entry of that name. Raises ConfigError when there is none."""
    if name not in table():
        raise ConfigError(f"there are no weights {name!r}{nearest(name, table())}; `medloom weights list` names them")
    return table()[name]


def root() -> Path:
    """The folder that all weights lie in."""
    if folder := os.environ.get("MEDLOOM_WEIGHTS"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "medloom" / "weights"


def missing(name: str) -> str | None:
    """Why these weights cannot be used and what to do, by a look at the files' sizes alone; None: they are here."""
    weights = named(name)
    for file in weights.files:
        path = weights.folder / file.name
        if not path.is_file() or path.stat().st_size != file.bytes:
            return f"needs the weights {name}, which are not in {root()}: medloom weights fetch {name}"
    return None


def check(name: str) -> list[str]:
    """What is wrong with the files of some weights, one line each, by hashing them; empty: they are whole."""
    weights = named(name)
    problems = {file.name: _problem(weights.folder / file.name, file) for file in weights.files}
    return [f"{file}: {problem}" for file, problem in problems.items() if problem]


def locate(name: str) -> Path:
    """The folder of some weights, every file hashed. Raises ConfigError where one is missing or is another."""
    weights = named(name)
    if problems := check(name):
        raise ConfigError(
            f"the weights {name} cannot be used ({'; '.join(problems)}); get them with `medloom weights fetch {name}`"
        )
    return weights.folder


def fetch(name: str, source: Path | None = None) -> list[str]:
    """Get the files of some weights that are not here yet, over https or from a folder where they lie under any name.

    Returns the names of the files that were written. Raises ConfigError when a file cannot be had, or is another than
    the table names; then nothing is left of it.
    """
    weights = named(name)
    lacking = [file for file in weights.files if _problem(weights.folder / file.name, file)]
    lying = _lying(source, {file.bytes for file in lacking}) if source else {}
    for file in lacking:
        path = weights.folder / file.name
        draft = draft_of(path)
        try:
            if source is None:
                _download(file, draft)
            elif (found := lying.get(file.sha256)) is not None:
                with found.open("rb") as stream:
                    _copy(stream, draft, file)
            else:
                raise ConfigError(f"{source}: no file there has the hash of {file.name} of {name} ({file.sha256})")
            publish(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    return [file.name for file in lacking]


def _problem(path: Path, file: File) -> str | None:
    if not path.is_file():
        return f"not in {path.parent}"
    facts = path.stat()
    if facts.st_size != file.bytes:
        return f"{facts.st_size} bytes, not {file.bytes}"
    if (found := _hash(path, facts.st_size, facts.st_mtime_ns)) != file.sha256:
        return f"has the hash {found}, not {file.sha256}"
    return None


@cache
def _hash(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file, read again only when it changed."""
    return file_sha256(path)


def _lying(folder: Path, sizes: set[int]) -> dict[str, Path]:
    """hash -> file, of all files of a folder that have one of the sizes."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name the one that the files were copied to")
    files = [path for path in walk(folder) if path.stat().st_size in sizes]
    return {_hash(path, path.stat().st_size, path.stat().st_mtime_ns): path for path in files}


def _download(file: File, draft: Path) -> None:
    from http.client import HTTPException
    from urllib.request import Request

    try:
        request = Request(_safe(file.url), headers={"User-Agent": "medloom"})
        with _opener().open(request, timeout=TIMEOUT) as stream:
            _copy(stream, draft, file)
    except (OSError, HTTPException) as error:
        raise ConfigError(
            f"{file.url}: {error}; try again, or fetch it elsewhere and use `medloom weights fetch NAME --from FOLDER`"
        ) from error


def _copy(stream: IO[bytes], draft: Path, file: File) -> None:
    """Write what the stream holds, and no more than the file's size. Raises ConfigError where it is another."""
    digest = hashlib.sha256()
    with draft.open("wb") as out:
        for chunk in _chunks(stream, file.bytes + 1):
            digest.update(chunk)
            out.write(chunk)
        size = out.tell()
    if size != file.bytes or digest.hexdigest() != file.sha256:
        size_word = "more" if size > file.bytes else str(size)
        raise ConfigError(
            f"{file.name}: what came is not what weights.yaml names: {size_word} of {file.bytes} bytes, hash "
            f"{digest.hexdigest()}, not {file.sha256}; nothing was kept"
        )


def _chunks(stream: IO[bytes], most: int) -> Iterator[bytes]:
    while most > 0 and (chunk := stream.read(min(CHUNK, most))):
        most -= len(chunk)
        yield chunk


def _safe(url: str) -> str:
    """The address itself, where it is https, or http on this machine. Raises ConfigError for any other."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and _loopback(parts.hostname or "")):
        return url
    raise ConfigError(f"{url}: weights are fetched over https only")


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _opener() -> OpenerDirector:
    from urllib.request import HTTPRedirectHandler, build_opener

    class SafeRedirects(HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            return super().redirect_request(req, fp, code, msg, headers, _safe(newurl))

    return build_opener(SafeRedirects)
