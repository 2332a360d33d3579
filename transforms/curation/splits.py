"""Which side of a split each group is on: a function of ids alone, so that growth moves nobody without a reason.

The invariant: groups that are joined are on one side; and without strata a group changes its side only when it is
joined with one that is held out more strictly, so what was once in the test share never comes back to training.

>>> assigned({"patient-1": "patient-1"}, {"train": 0.8, "val": 0.1, "test": 0.1}, "")
{'patient-1': ('train', 0.4302…)}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate

from infra.keys import sha256

_WORDS = {
    "training": "train", "tr": "train", "imagestr": "train", "validation": "val", "valid": "val", "validate": "val",
    "dev": "val", "testing": "test", "ts": "test", "imagests": "test",
}
"""What sources call the usual shares."""


def place(group: str, salt: str) -> float:
    """Where a group stands between 0 and 1: uniform, and the same for ever."""
    return int(sha256(f"{salt}\0{group}".encode())[:13], 16) / 16**13


def side(at: float, shares: Mapping[str, float]) -> str:
    """The share that a place falls into, in the order in which they are named."""
    total = sum(shares.values())
    for name, edge in zip(shares, accumulate(shares.values()), strict=True):
        if at * total < edge:
            return name
    return list(shares)[-1]


def assigned(joined: Mapping[str, str], shares: Mapping[str, float], salt: str) -> dict[str, tuple[str, float]]:
    """Group -> (share, place), from group -> the name of the set of groups it is joined with.

    Shares are named from the most open to the most strictly held out (train, val, test): a set goes where its most
    strictly held out member would go alone.
    """
    highest: dict[str, float] = {}
    for group, together in joined.items():
        highest[together] = max(highest.get(together, 0.0), place(group, salt))
    return {group: (side(highest[together], shares), highest[together]) for group, together in joined.items()}


def stratified(
    joined: Mapping[str, str], strata: Mapping[str, str], shares: Mapping[str, float], salt: str
) -> dict[str, tuple[str, float]]:
    """The same with the shares met within each stratum, to the nearest set of groups.

    `strata` names the stratum of each group; sets of groups go with the one most of their groups are in. Within a
    stratum sets stand in the order of their places, and each counts as the middle of its 1/n. The price: as a stratum
    grows, sets close to an edge may cross it.
    """
    members: dict[str, list[str]] = {}
    for group in sorted(joined):
        members.setdefault(joined[group], []).append(group)
    queues: dict[str, list[tuple[float, str]]] = {}
    for together, groups in members.items():
        own = [strata[group] for group in groups]
        stratum = min(own, key=lambda name: (-own.count(name), name))
        queues.setdefault(stratum, []).append((max(place(group, salt) for group in groups), together))
    found = {}
    for queue in queues.values():
        for number, (_, together) in enumerate(sorted(queue)):
            at = (number + 0.5) / len(queue)
            found[together] = side(at, shares), at
    return {group: found[together] for group, together in joined.items()}


def kept(
    joined: Mapping[str, str], stated: Iterable[tuple[str, str]], shares: Mapping[str, float]
) -> dict[str, str]:
    """Group -> the share that its source states, for the sets of groups of which it states one.

    `stated` are pairs of a group and a source's word for a share. Of several the one that is held out most strictly
    counts: a patient of whom one picture is in the source's test set is not trained on. A word for none of `shares`
    (train, val or test under another name is understood) states nothing.
    """
    rank = {name: number for number, name in enumerate(shares)}
    strictest: dict[str, str] = {}
    for group, word in stated:
        name = word.strip().lower()
        name = name if name in rank else _WORDS.get(name, name)
        if name in rank:
            before = strictest.setdefault(joined[group], name)
            strictest[joined[group]] = max(before, name, key=rank.__getitem__)
    return {group: strictest[together] for group, together in joined.items() if together in strictest}


def crossing(sides: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Of (set of groups or group, share): those that are on more than one side. Empty is the proof."""
    seen: dict[str, set[str]] = {}
    for group, share in sides:
        seen.setdefault(group, set()).add(share)
    return {group: sorted(shares) for group, shares in sorted(seen.items()) if len(shares) > 1}
