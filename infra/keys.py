"""Content keys: what a thing was made from decides its name, never where it lay.

The invariant: equal inputs give equal keys on every machine, and no path, clock or order of arrival enters a key.

>>> key("stage", {"b": 1, "a": 2}) == key("stage", {"a": 2, "b": 1})
True
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

KEY_LENGTH = 24
"""Hex digits of a key: 96 bits, so 10^9 keys collide with a chance of about 10^-11."""


def canonical(value: Any) -> bytes:
    """One byte string for a JSON value: sorted names, no spaces, UTF-8; refuses what JSON cannot hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def key(*parts: Any) -> str:
    """The key of a sequence of JSON values."""
    return sha256(canonical(list(parts)))[:KEY_LENGTH]


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def pseudonym(secret: bytes, kind: str, identifier: str) -> str:
    """A stable stand-in for an identifier, useless to whoever lacks `secret` (HMAC-SHA-256).

    `kind` ("patient", "study", …) keeps equal numbers of different kinds apart.
    """
    return hmac.new(secret, f"{kind}\0{identifier}".encode(), hashlib.sha256).hexdigest()[:KEY_LENGTH]


def split_by_key(things: Iterable[T], group: Callable[[T], str], capacity: int) -> dict[str, list[T]]:
    """Cut things into partitions of at most `capacity`, such that growth disturbs little.

    Things of one group stay together. Groups are spread over a binary trie by the hash of their name, and a leaf is
    split only when it holds more than `capacity` things. The result depends on the set of things alone, and adding one
    changes one leaf, or splits it in two. A group larger than `capacity` is a partition of its own.

    Returns name ("all", or the bits of the leaf) -> things in the order of (group, position in the input).
    """
    groups: dict[str, list[T]] = {}
    for thing in things:
        groups.setdefault(group(thing), []).append(thing)
    bits = {name: bin(int(sha256(name.encode()), 16) | 1 << 256)[3:] for name in groups}
    leaves: dict[str, list[T]] = {}

    def grow(prefix: str, names: list[str]) -> None:
        size = sum(len(groups[name]) for name in names)
        if size > capacity and len(names) > 1:
            for bit in "01":
                grow(prefix + bit, [n for n in names if bits[n][len(prefix)] == bit])
        elif names:
            leaves[f"b{prefix}" if prefix else "all"] = [t for n in sorted(names) for t in groups[n]]

    grow("", list(groups))
    return leaves
