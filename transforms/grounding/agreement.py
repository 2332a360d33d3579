"""How far experts agree on the regions of one thing, and whose regions are kept.

The invariant: what is compared means the same thing by its ontology id, or by its name through the bundled map of
terms; and by default nothing is left out, whatever the figure says.

Measured: Dice of masks, where both have masks, else intersection over union of what their boxes cover. All regions of
one thing by one party count together, so an organ in two pieces is one organ. Left and right are compared apart where
both parties tell them apart, else together. An expert that answered, and whose card lists a thing that another found
on the picture, is at 0 with it: it does not see it.

What is kept (`choose`):

- all: everything.
- best: of each thing, the regions of one party: the source's own first, then by trust (boundary, box, presence), then
  in the order in which rules or recipe name the experts, which stands for what was measured.
- consensus: one region in place of all, the pixels in which more than half of the parties agree, under the best's name,
  as weak as the weakest, found by `consensus@1`. Where a party has several regions of a thing (cells) a vote would
  melt them, and where no pixel has a majority there is nothing to draw: then it is `best`, and the check says so.
  With two parties a majority is both of them.

The source's own regions vote and are compared, but they stand in another shard and are never left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from catalog.masks import Mask, decode_mask
from infra.keys import canonical, sha256
from transforms.decoded import Region
from transforms.experts.card import Card
from transforms.regions import roi_row
from transforms.terms.lookup import Lookup, bundled, normal

Choose = Literal["all", "best", "consensus"]
Row = Mapping[str, Any]
Thing = tuple[str, str | None]
"""ontology id or name, and the side: left, right or None"""

CONSENSUS = "consensus@1"
SOURCE = "source"
TRUSTS = ("boundary", "box", "presence")
DIGITS = 3
"""Decimals of a figure."""
POOR = 0.5
"""Agreement below this fails its check; a mark for people, not a rule that leaves anything out."""


@dataclass(frozen=True)
class Party:
    """An expert, or the source, and what it found on one picture."""

    name: str
    rows: tuple[Row, ...]
    card: Card | None = None
    """None: the source, or an expert of an earlier stage, whose silence says nothing"""
    fixed: bool = False
    """its rows stand already, and are not for this stage to leave out"""


@dataclass(frozen=True)
class Pair:
    """Two parties on one thing."""

    a: str
    b: str
    value: float
    measure: str
    """Dice, IoU, or what was not seen"""

    @property
    def words(self) -> str:
        return f"{self.a} and {self.b}: {self.measure} {self.value:.{DIGITS}f}"


def thing_of(label: str, ontology_id: str | None) -> Thing:
    """What a region shows, whoever named it: ("UBERON:0002048", "right") for a right lung."""
    terms = Lookup([bundled()])(label)
    if terms and len(terms) == 1:
        return ontology_id or terms[0].id or terms[0].name, terms[0].side
    whole = normal(label)
    side = re.search(r"\b(left|right)\b", whole)
    bare = " ".join(word for word in whole.split() if word not in ("left", "right"))
    return ontology_id or bare, side[0] if side else None


def settled(
    sample_id: str, size: tuple[int, int], parties: Sequence[Party], choose: Choose
) -> tuple[list[dict[str, Any]], list[tuple[str, list[Pair], str]]]:
    """The rows of `rois` that are kept of what is not fixed, and of each thing that two parties speak of: its name, how
    far they agree, and what was kept. `parties` are in order of preference; `size` is the picture's (height, width).
    """
    kept: dict[str, dict[str, Any]] = {row["roi_id"]: dict(row) for p in parties if not p.fixed for row in p.rows}
    told: list[tuple[str, list[Pair], str]] = []
    for name, of in _things(parties):
        silent = [p for p in parties if p.name not in of and p.card is not None and _lists(p.card, of)]
        if len(of) + len(silent) < 2 or all(p.fixed for p in parties if p.name in of or p in silent):
            continue
        pairs = [_pair(size, a, of[a], b, of[b]) for a, b in combinations(of, 2)]
        pairs += [Pair(a, p.name, 0.0, "not seen by the second,") for a in of for p in silent]
        said = "all are kept"
        if choose != "all" and len(of) > 1:
            said = _choose(sample_id, size, parties, of, choose, kept)
        told.append((name, pairs, said))
    return list(kept.values()), told


def _things(parties: Sequence[Party]) -> list[tuple[str, dict[str, list[Row]]]]:
    """(name, party -> its regions) of each thing that a party found; sides apart where all tell them."""
    by_base: dict[str, dict[str, dict[str | None, list[Row]]]] = {}
    for party in parties:
        for row in party.rows:
            if row["role"] not in ("panel", "text"):
                base, side = thing_of(row["label"], row["ontology_id"])
                by_base.setdefault(base, {}).setdefault(party.name, {}).setdefault(side, []).append(row)
    found: list[tuple[str, dict[str, list[Row]]]] = []
    for of in by_base.values():
        sides: Iterable[str | None] = sorted({s or "" for sided in of.values() for s in sided})
        if "" in sides:
            merged = {name: [row for rows in sided.values() for row in rows] for name, sided in of.items()}
            found.append((_name(merged, None), merged))
            continue
        for side in sides:
            one = {name: sided[side] for name, sided in of.items() if side in sided}
            found.append((_name(one, side), one))
    return sorted(found, key=lambda thing: thing[0])


def _name(of: Mapping[str, Sequence[Row]], side: str | None) -> str:
    label = next(iter(of.values()))[0]["label"]
    terms = Lookup([bundled()])(label)
    name = terms[0].name if terms and len(terms) == 1 else " ".join(
        word for word in normal(label).split() if word not in ("left", "right")
    )
    return f"{side} {name}" if side else name


def _lists(card: Card, of: Mapping[str, Sequence[Row]]) -> bool:
    """Whether an expert's card says that it finds this thing."""
    row = next(iter(of.values()))[0]
    wanted = thing_of(row["label"], row["ontology_id"])
    return wanted in [thing_of(c.label, c.ontology_id) for c in card.classes]


def _pair(size: tuple[int, int], a: str, rows_a: Sequence[Row], b: str, rows_b: Sequence[Row]) -> Pair:
    one, other = _union(size, rows_a), _union(size, rows_b)
    common = int((one & other).sum())
    if all(row["mask"] is not None for row in (*rows_a, *rows_b)):
        return Pair(a, b, round(2 * common / int(one.sum() + other.sum()), DIGITS), "Dice")
    return Pair(a, b, round(common / int((one | other).sum()), DIGITS), "IoU of boxes")


def _union(size: tuple[int, int], rows: Sequence[Row]) -> Mask:
    covered = np.zeros(size, bool)
    boxes = any(row["mask"] is None for row in rows)
    for row in rows:
        x0, y0, x1, y1 = row["box"]
        if boxes:
            covered[y0:y1, x0:x1] = True
        else:
            covered[y0:y1, x0:x1] |= decode_mask(row["mask"])[y0:y1, x0:x1]
    return covered


def _choose(
    sample_id: str, size: tuple[int, int], parties: Sequence[Party], of: Mapping[str, Sequence[Row]], choose: Choose,
    kept: dict[str, dict[str, Any]],
) -> str:
    """Leave out of `kept` what is not chosen; says what was done."""
    ranked = sorted((p for p in parties if p.name in of), key=lambda p: (
        p.name != SOURCE, min(TRUSTS.index(row["trust"]) for row in of[p.name]), parties.index(p),
    ))
    best, why = ranked[0], ""
    if choose == "consensus":
        made = _consensus(sample_id, size, [of[p.name] for p in ranked])
        if isinstance(made, dict):
            _leave_out(kept, of, ())
            kept[made["roi_id"]] = made
            return f"one region of the pixels that more than half of {len(ranked)} agree on is kept"
        why = f", as {made}"
    _leave_out(kept, of, (best.name,))
    others = ", ".join(p.name for p in ranked[1:] if not p.fixed)
    return f"{best.name} is kept, {others or 'nothing'} left out{why}"


def _leave_out(kept: dict[str, dict[str, Any]], of: Mapping[str, Sequence[Row]], but: tuple[str, ...]) -> None:
    for name, rows in of.items():
        for row in rows if name not in but else ():
            kept.pop(row["roi_id"], None)


def _consensus(sample_id: str, size: tuple[int, int], voices: Sequence[Sequence[Row]]) -> dict[str, Any] | str:
    """The region of a majority, or why there is none. `voices`: the regions of each party, the best party first."""
    if any(len(rows) > 1 for rows in voices):
        return "one found several regions, which a vote would melt"
    votes = sum(_union(size, rows).astype(np.int32) for rows in voices)
    majority = np.asarray(2 * votes > len(voices))
    if not majority.any():
        return "no pixel has a majority"
    first = voices[0][0]
    rows = [row for voice in voices for row in voice]
    region = Region(first["label"], first["role"], mask=majority, ontology_id=first["ontology_id"])
    if any(row["mask"] is None for row in rows):  # boxes voted: the answer is a box
        ys, xs = np.flatnonzero(majority.any(axis=1)), np.flatnonzero(majority.any(axis=0))
        box = (float(xs[0]), float(ys[0]), float(xs[-1]) + 1, float(ys[-1]) + 1)
        region = Region(first["label"], first["role"], box=box, ontology_id=first["ontology_id"])
    weights = sorted({row["expert_weights_sha256"] for row in rows} - {None})
    return roi_row(
        sample_id, region, size, expert=CONSENSUS, origin="predicted",
        trust=max((row["trust"] for row in rows), key=TRUSTS.index),
        weights_sha256=sha256(canonical(weights)) if len(weights) > 1 else next(iter(weights), None),
    ) or "no pixel has a majority"
