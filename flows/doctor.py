"""`medloom doctor`: looks at what a build stands on, without a network, and says what to do.

The invariants: a check is a pure function of facts (flows/doctor_facts.py gathers them), so each of its answers can be
tested; nothing is changed, fetched or sent, and nothing outside this machine is asked unless --online says so, or the
home lies in a bucket: its records are read there.

    ok        disk: 812.4 GB free, about 3.1 GB are left to write
    warning   endpoint caption: http://127.0.0.1:9014/v1 does not answer
              start the model server (infra/deploy/vllm.yaml), or build without the stage
    problem   ports: Prefect (process 4711) listens on 0.0.0.0:4200
              bind it to 127.0.0.1, or set PREFECT_SERVER_API_AUTH_STRING

Ends with 1 when there is a problem, else with 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import typer

from flows.options import Home

Level = Literal["ok", "warning", "problem"]
GB = 1e9
LEAST_FREE = 1 << 30
"""Bytes that a disk must have: the index, its copy and a report are written even where no shard is."""
SKEW_S = 120.0
"""Seconds that a clock may be off before it matters: signatures of S3 fail at 900."""


@dataclass(frozen=True)
class Finding:
    """One line of the answer."""

    check: str
    level: Level
    what: str
    do: str = ""


@dataclass(frozen=True)
class Named:
    """A plug-in or weights that the recipe names, and why it cannot be used here (None: it can)."""

    place: str
    name: str
    reason: str | None = None


@dataclass(frozen=True)
class Address:
    """Something that is asked over a network: a model endpoint, Postgres, S3, a collector."""

    place: str
    shown: str
    """without user and password"""
    loopback: bool
    reached: bool | None
    """None: not tried"""
    key: str | None = None
    """name of the variable that holds its key"""
    key_set: bool = False
    advice: str = "start it, or mend the address"


@dataclass(frozen=True)
class Disk:
    """The disk under the home."""

    free: int
    total: int
    files_free: int | None = None
    """None: the file system sets no limit"""
    files_total: int = 0
    left: int | None = None
    """bytes that the recipe has left to write, by what units took so far; None: nothing to go by"""
    files_left: int = 0


@dataclass(frozen=True)
class Access:
    """Who may read and write the home."""

    path: str
    exists: bool
    writable: bool
    others_may_read: bool = False
    """everybody on this machine reaches it: its own mode and those of the folders above"""
    private: tuple[str, ...] = ()
    """sources whose identifiers are private"""
    open_secrets: tuple[str, ...] = ()
    """files under HOME/secrets that not only their owner may read"""


@dataclass(frozen=True)
class Listening:
    """A port that a process of ours has open."""

    what: str
    pid: int
    address: str
    loopback: bool
    guarded: bool
    """it asks for a token or a password"""


@dataclass(frozen=True)
class Clocks:
    """Seconds since 1970, by three witnesses."""

    now: float
    newest_build: float | None = None
    file: float | None = None
    """what the home's file system gave a file written now"""
    released: float = 1.76e9
    """no clock can be before medloom was written"""


@dataclass(frozen=True)
class Left:
    """What processes that are gone left in the home."""

    drafts: int = 0
    """unfinished files of dead processes of this machine"""
    foreign: int = 0
    """unfinished files of other machines, older than a day"""
    lease: str | None = None
    """who holds the lease, where that process is gone"""


@dataclass(frozen=True)
class Formats:
    """Of what the home holds, and what this medloom knows."""

    schema: int
    index: int
    found_schema: int | None = None
    """the newest among the manifests looked at"""
    found_index: int | None = None
    snapshot: int | None = None
    indexed: bool = True
    """whether readers see the newest snapshot"""


@dataclass(frozen=True)
class Facts:
    """Everything that is known before anything is judged."""

    python: tuple[int, int, int]
    wants_python: str
    packages: Mapping[str, tuple[str, str | None]]
    """requirement of medloom -> (name, version installed)"""
    disk: Disk
    access: Access
    clocks: Clocks
    left: Left
    formats: Formats
    listening: Sequence[Listening] = ()
    recipe_problem: str | None = None
    plugins: Sequence[Named] = ()
    weights: Sequence[Named] = ()
    endpoints: Sequence[Address] = ()
    services: Sequence[Address] = ()
    telemetry_problem: str | None = None


def python(version: tuple[int, int, int], wants: str) -> Iterator[Finding]:
    """Whether this Python is one that the project is for."""
    from packaging.specifiers import SpecifierSet

    shown = ".".join(map(str, version))
    if SpecifierSet(wants).contains(shown):
        yield Finding("python", "ok", shown)
    else:
        yield Finding("python", "problem", f"{shown}, medloom needs {wants}", "make the environment with such a Python")


def versions(packages: Mapping[str, tuple[str, str | None]]) -> Iterator[Finding]:
    """Whether the packages are those that medloom names; others are known to break, or were never tried."""
    from packaging.requirements import Requirement

    wrong = False
    for requirement, (name, version) in sorted(packages.items()):
        if version is None:
            wrong = True
            yield Finding("packages", "problem", f"{name} is not installed", f"pip install '{requirement}'")
        elif not Requirement(requirement).specifier.contains(version, prereleases=True):
            wrong = True
            yield Finding("packages", "problem", f"{name} is {version}, medloom needs {requirement}",
                          f"pip install '{requirement}'")
    if not wrong:
        yield Finding("packages", "ok", f"all {len(packages)} are as medloom wants them")


def recipe(problem: str | None) -> Iterator[Finding]:
    """Whether the recipe can be read."""
    if problem:
        yield Finding("recipe", "problem", problem, "mend the recipe, or name another by --recipe")


def plugins(named: Sequence[Named]) -> Iterator[Finding]:
    """Whether what the recipe names can run here."""
    for one in named:
        if one.reason:
            yield Finding("plug-ins", "problem", f"{one.place}: {one.name} cannot run here", one.reason)
    if named and not any(one.reason for one in named):
        yield Finding("plug-ins", "ok", f"all {len(named)} that the recipe names can run here")


def weights(named: Sequence[Named]) -> Iterator[Finding]:
    """Whether the weights are here and whole."""
    for one in named:
        if one.reason:
            yield Finding("weights", "problem", f"{one.place}: {one.name}: {one.reason}",
                          f"medloom weights fetch {one.name}")
        else:
            yield Finding("weights", "ok", f"{one.place}: {one.name} is whole")


def endpoints(addresses: Sequence[Address]) -> Iterator[Finding]:
    """Whether models can be asked."""
    for one in addresses:
        check = f"endpoint {one.place}"
        if one.key and not one.key_set and not one.loopback:
            yield Finding(check, "problem", f"{one.shown} needs a key and {one.key} is not set",
                          f"set {one.key}, or {one.key}_FILE to a file that holds it")
        elif one.reached is False:
            yield Finding(check, "problem", f"{one.shown} does not answer", one.advice)
        elif one.reached is None:
            yield Finding(check, "ok", f"{one.shown}, beyond this machine: not tried (--online tries)")
        else:
            yield Finding(check, "ok", f"{one.shown} answers")


def services(addresses: Sequence[Address]) -> Iterator[Finding]:
    """Whether databases and object stores that are set can be reached."""
    for one in addresses:
        if one.reached is False:
            yield Finding(one.place, "problem", f"{one.shown} does not answer", one.advice)
        elif one.reached is None:
            yield Finding(one.place, "ok", f"{one.shown}, beyond this machine: not tried (--online tries)")
        else:
            yield Finding(one.place, "ok", f"{one.shown} answers")


def disk(found: Disk) -> Iterator[Finding]:
    """Whether there is room for what is left to write."""
    said = f"{found.free / GB:.1f} of {found.total / GB:.1f} GB free"
    free = "free some (`medloom catalog gc` says what it could give back), or move the home to a larger disk"
    left = found.left
    if left is not None:
        said += f", about {left / GB:.1f} GB are left to write" if left else ", nothing is left to write"
    if found.free < LEAST_FREE or (left is not None and left > found.free):
        yield Finding("disk", "problem", said, free)
    elif found.free < 0.05 * found.total or (left is not None and 2 * left > found.free):
        yield Finding("disk", "warning", said, free)
    else:
        yield Finding("disk", "ok", said)


def inodes(found: Disk) -> Iterator[Finding]:
    """Whether the file system can hold more files."""
    if found.files_free is None:
        return
    said = f"room for {found.files_free} more files"
    do = "remove small files (old caches), or make the file system again with more inodes"
    if found.files_free < max(1000, found.files_left):
        yield Finding("inodes", "problem", said, do)
    elif found.files_free < 0.05 * found.files_total or found.files_free < 2 * found.files_left:
        yield Finding("inodes", "warning", said, do)
    else:
        yield Finding("inodes", "ok", said)


def access(found: Access) -> Iterator[Finding]:
    """Whether we may write the home, and others may not read what is private."""
    if not found.writable:
        what = "is not writable" if found.exists else "cannot be made"
        yield Finding("home", "problem", f"{found.path} {what}", "change its owner or mode, or name another --home")
    elif not found.exists:
        yield Finding("home", "ok", f"{found.path} will be made by the first build")
    else:
        yield Finding("home", "ok", f"{found.path} is writable")
    if found.private and found.others_may_read:
        yield Finding("home", "problem", f"everybody on this machine may read {found.path}, which has private sources "
                      f"({len(found.private)})", f"chmod o-rwx {found.path}")
    for path in found.open_secrets:
        yield Finding("secrets", "problem", f"others may read {path}", f"chmod 600 {path}")


def ports(found: Sequence[Listening]) -> Iterator[Finding]:
    """Whether what we started listens on this machine only (ecosystem case 57)."""
    for one in found:
        if one.loopback:
            continue
        said = f"{one.what} (process {one.pid}) listens on {one.address}"
        if one.guarded:
            yield Finding("ports", "warning", f"{said} and asks for a token",
                          "keep the port behind a firewall, or bind it to 127.0.0.1")
        else:
            yield Finding("ports", "problem", said, "bind it to 127.0.0.1, or set PREFECT_SERVER_API_AUTH_STRING "
                          "(Prefect) or RAY_AUTH_MODE=token (Ray)")
    if all(one.loopback for one in found):
        yield Finding("ports", "ok", f"{len(found)} open, all on loopback" if found else "none of ours is open")


def clock(found: Clocks) -> Iterator[Finding]:
    """Whether the time can be right."""
    do = "set the clock (timedatectl set-ntp true)"
    if found.now < found.released:
        yield Finding("clock", "problem", "the clock is years behind", do)
    elif found.newest_build is not None and found.newest_build > found.now + SKEW_S:
        ahead = found.newest_build - found.now
        yield Finding("clock", "problem", f"the newest build is {ahead:.0f} s in the future: this clock is behind, or "
                      "that of the machine that built", do)
    elif found.file is not None and abs(found.file - found.now) > SKEW_S:
        apart = abs(found.file - found.now)
        yield Finding("clock", "warning", f"the home's file server is {apart:.0f} s off", f"{do} on both")
    else:
        yield Finding("clock", "ok", "no witness against it")


def left(found: Left) -> Iterator[Finding]:
    """What dead processes left: the next build removes most of it."""
    if found.lease:
        yield Finding("lease", "warning", f"held by {found.lease}, which is gone",
                      "nothing: the next build takes it over, and says so")
    if found.foreign:
        yield Finding("drafts", "warning", f"{found.foreign} unfinished files of other machines, older than a day",
                      "remove them once no other machine builds here: find HOME -name '.tmp-*' -mtime +1 -delete")
    if found.drafts:
        yield Finding("drafts", "ok", f"{found.drafts} unfinished files of dead processes; the next build removes them")


def formats(found: Formats) -> Iterator[Finding]:
    """Whether this medloom can read what the home holds."""
    newer = "install the newer medloom that wrote it: this one would misread it"
    if found.found_schema is not None and found.found_schema > found.schema:
        yield Finding("catalog", "problem", f"layers are of schema {found.found_schema}, this medloom knows "
                      f"{found.schema}", newer)
    elif found.found_index is not None and found.found_index > found.index:
        yield Finding("catalog", "problem", f"the index is of format {found.found_index}, this medloom knows "
                      f"{found.index}", newer)
    elif found.found_index is not None and found.found_index < found.index:
        yield Finding("catalog", "warning", f"the index is of the older format {found.found_index}",
                      "medloom catalog rebuild (the next build does it as well)")
    elif found.found_schema is not None and found.found_schema < found.schema:
        yield Finding("catalog", "warning", f"layers are of the older schema {found.found_schema}",
                      "nothing, or build: units of the older schema are made again")
    elif not found.indexed:
        yield Finding("catalog", "warning", f"snapshot {found.snapshot} is not in the index: a build was killed there",
                      "medloom catalog rebuild (the next build does it as well)")
    else:
        yield Finding("catalog", "ok", f"snapshot {found.snapshot}" if found.snapshot else "no snapshot yet")


def telemetry(problem: str | None) -> Iterator[Finding]:
    """Whether the switches of logs, metrics and traces mean something."""
    if problem:
        yield Finding("telemetry", "problem", problem, "mend the variable, or unset it")


def judged(facts: Facts) -> list[Finding]:
    """All findings, in a fixed order."""
    return [
        *python(facts.python, facts.wants_python), *versions(facts.packages), *recipe(facts.recipe_problem),
        *plugins(facts.plugins), *weights(facts.weights), *endpoints(facts.endpoints), *services(facts.services),
        *access(facts.access), *disk(facts.disk), *inodes(facts.disk), *clock(facts.clocks), *ports(facts.listening),
        *left(facts.left), *formats(facts.formats), *telemetry(facts.telemetry_problem),
    ]


def doctor(
    home: Home,
    recipe: Annotated[str | None, typer.Option(metavar="RECIPE", help="Look at what this recipe needs, too.")] = None,
    set: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="Change the recipe.")] = [],  # noqa: B006
    online: Annotated[bool, typer.Option("--online", help="Also try addresses beyond this machine.")] = False,
    format: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Check what a build stands on: versions, weights, endpoints, disk, permissions, ports; say what to do."""
    from flows.doctor_facts import gather

    found = judged(gather(home, recipe, set, online))
    if format == "json":
        typer.echo(json.dumps([asdict(one) for one in found], indent=1, ensure_ascii=False))
    else:
        for one in found:
            typer.echo(f"{one.level:9} {one.check}: {one.what}" + (f"\n{'':10}{one.do}" if one.do else ""))
        typer.echo(f"{_count(found, 'problem')} problems, {_count(found, 'warning')} warnings")
    raise typer.Exit(1 if _count(found, "problem") else 0)


def _count(found: Sequence[Finding], level: Level) -> int:
    return sum(one.level == level for one in found)
