"""Ports that processes of ours hold open on this machine, from Linux's tables under /proc.

The invariant: only processes of this user are looked at, and nothing is sent to a port.

>>> [port.address for port in listening()]
['127.0.0.1:4200']
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flows.doctor import Listening

OURS = {
    "flows.server": "Prefect", "prefect server": "Prefect", "prefect.server": "Prefect", "raylet": "Ray",
    "gcs_server": "Ray", "ray::": "Ray", "dashboard/agent": "Ray", "dashboard/dashboard": "Ray",
    "flows.cli": "medloom", "bin/medloom": "medloom",
}
"""Words of a command line -> whose it is."""


def listening(proc: Path = Path("/proc"), only: set[int] | None = None) -> Iterator[Listening]:
    """Ports that processes of ours hold open, by Linux's tables; nothing where there are none."""
    owners = {}
    for folder in proc.glob("[0-9]*"):
        pid = int(folder.name)
        if only is not None and pid not in only:
            continue
        with suppress(OSError):
            if folder.stat().st_uid != os.getuid() or not (what := _whose(folder)):
                continue
            for handle in (folder / "fd").iterdir():
                with suppress(OSError):
                    owners[os.readlink(handle)] = (what, pid)
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (proc / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                owner = owners.get(f"socket:[{fields[9]}]")
                if owner is None or fields[3] != "0A":  # LISTEN
                    continue
                address, _, port = fields[1].partition(":")
                ip = _ip(address)
                here = ip.is_loopback or bool(getattr(ip, "ipv4_mapped", None) and ip.ipv4_mapped.is_loopback)  # type: ignore[union-attr]
                yield Listening(*owner, f"{ip}:{int(port, 16)}", here, _guarded(proc / str(owner[1]), owner[0]))


def _whose(folder: Path) -> str | None:
    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return next((whose for words, whose in OURS.items() if words in command), None)


def _ip(words: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Of four-byte words in the machine's own order."""
    parts = [bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8)]
    return ipaddress.ip_address(b"".join(parts))


def _guarded(folder: Path, what: str) -> bool:
    with suppress(OSError):
        environment = (folder / "environ").read_bytes()
        return (b"RAY_AUTH_MODE=token" if what == "Ray" else b"PREFECT_SERVER_API_AUTH_STRING=") in environment
    return False
