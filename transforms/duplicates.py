"""Stage over the whole dataset: which samples show one picture, within a source and across sources.

The invariant: nothing is dropped, and a pair is called the same only when its bytes or pixels are equal, or when the
two lie over each other in their fine structure (transforms/curation/duplicates.py). Hashes and vectors only say where
to look.

    - use: quality        # writes down the hashes; without it they are computed here, one picture after the other
    - use: similarity     # likewise the vectors, of an encoder
      model: /models/biomedclip
    - use: duplicates
      encoder: {model: /models/biomedclip}      # optional: looks further, at pictures that are alike to this model

Rows of `checks`, for the samples concerned; `detail` is JSON:

    duplicate/exact      value 1; verdict fail, or pass for the one to keep; {"of": SAMPLE, "by": "bytes" or "pixels"}
    duplicate/near       value: correlation with the sample `through` which it joined; {"of": …, "through": …}
    duplicate/candidate  value below `same`, not below `doubtful`: unknown, for a person to look at; {"of": …}

With an `encoder`, pairs of near vectors that hashes did not confirm are compared in the same way, with limits of their
own; the detail of those has {"by": "embedding", "cosine": …}. A near vector alone is no row.

    SELECT * FROM images WHERE sample_id NOT IN
      (SELECT sample_id FROM checks WHERE "check" IN ('duplicate/exact', 'duplicate/near') AND verdict = 'fail')

The one to keep is of the source that `prefer` names first, then has the most pixels, then the smallest id. Slices of
one volume, a figure and its panels, and panels of one figure are not compared: they are of one group anyway. Plain
pictures are only equal or not: "plain" in the detail says so, and splits do not join groups over them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from catalog.schema import LAYERS
from transforms.curation.dataset import Dataset, WholeStage
from transforms.curation.duplicates import components
from transforms.curation.encoder import Encoder
from transforms.curation.hashes import Near, flat, nearest
from transforms.curation.pairs import Seen, compared, signatures
from transforms.curation.vectors import alike, vectors
from transforms.decoded import Pixels
from transforms.knowledge.embedding import Device
from transforms.stage import Context, Outcome, Resources, Stage

NAME = "duplicates"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}
SAME = 0.53
"""tests/benchmarks/duplicates.py, chest x-rays, blood smears and nuclei of 69 patients or slides: from 0.48 on F1 is
best on one half; on the other half 0.48 and 0.53 both give precision 1.00 and recall 0.92. Unchanged pictures of
different patients came to 0.47 at most, changed ones stayed below 0.53: that is the margin."""
DOUBTFUL, ONE = 1, 2
COLUMNS = (
    "sample_id", "source", "width", "height", "volume_id", "parent_id", "sha256", "pixel_sha256", "phash",
)


class Looking(BaseModel):
    """How pairs are found by the vectors of an encoder, and from where they are one.

    Nothing is known of how the two lie, so every place is tried, and strangers come higher than where a hash supposes
    one. tests/benchmarks/strangers.py: 451 pairs of different patients, each nearest in its coarse form (chest x-rays
    of NIH and COVID, blood smears, nuclei), came to 0.52 at most, and one pair elsewhere to 0.526; 144 parts of the
    same pictures (0.62 to 0.75 of a side, saved as JPEG, or mirrored) to 0.605 at least. The limits stand between.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        exclude=True, description="folder of the model (transforms/curation/encoder.py); its contents enter the key"
    )
    device: Device = Field("cpu", description="cpu or cuda, for vectors that the stage similarity did not write down")
    alike: float = Field(
        0.9, ge=-1, le=1, description="cosine from which a pair is looked at: it bounds the work, and was measured on "
        "no model",
    )
    neighbours: int = Field(
        4, ge=1, description="pictures that each sample is compared with at most, nearest first, at 0.1 s a comparison",
    )
    same: float = Field(0.6, ge=0, le=1, description="correlation from which two pictures are one")
    doubtful: float = Field(SAME, ge=0, le=1, description="correlation from which a pair is worth a person's look")

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.model, self.device)


class Params(BaseModel):
    """What a recipe may set for the duplicates stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    within: int = Field(
        14, ge=0, le=16, description="bits in which a hash may differ for a pair to be looked at; 10 finds fewer cuts "
        "and is for sets of more than about 100,000 samples",
    )
    neighbours: int = Field(8, ge=1, description="pictures that each sample is compared with at most, nearest first")
    same: float = Field(SAME, ge=0, le=1, description="correlation from which two pictures are one")
    doubtful: float = Field(0.45, ge=0, le=1, description="correlation from which a pair is worth a person's look")
    prefer: tuple[str, ...] = Field((), description="sources in the order in which their copy is the one to keep")
    encoder: Looking | None = Field(
        None, exclude_if=lambda value: value is None, description="an image encoder that says where to look, too; "
        "none: nothing but hashes does",
    )


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError for an encoder that is not there or not safe to load."""
    by = params.encoder
    return WholeStage(
        NAME, VERSION, reads=("images", "checks"), writes=("checks",), over=partial(_found, params), params=params,
        ingredients={"encoder": by.encoder.fingerprint} if by else {},
        checks_of=("quality", "similarity") if by else ("quality",),
        resources=Resources(gpus=1 if by and by.device == "cuda" else 0),
    )


Row = Mapping[str, Any]


def _found(params: Params, dataset: Dataset) -> Outcome:
    rows = sorted(dataset.columns("images", COLUMNS).to_pylist(), key=partial(_rank, params))
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["pixel_sha256"], []).append(row)
    checks = [check for group in groups.values() if len(group) > 1 for check in _exact(group)]
    first = [group[0] for group in groups.values() if not flat(group[0]["phash"] or "0" * 16)]
    checks += _near(params, first, _compared(params, dataset, first))
    return Outcome({"checks": LAYERS["checks"].table(checks)}, dataset.ids)


def _rank(params: Params, row: Row) -> tuple[int, int, str]:
    places = {source: place for place, source in enumerate(params.prefer)}
    return places.get(row["source"], len(places)), -row["width"] * row["height"], row["sample_id"]


def _exact(group: Sequence[Row]) -> Iterator[Row]:
    keep = group[0]
    plain = {"plain": True} if flat(keep["phash"] or "0" * 16) else {}
    for row in group:
        by = "bytes" if row["sha256"] == keep["sha256"] else "pixels"
        yield _check("exact", row, 1.0, "pass" if row is keep else "fail", {
            "of": keep["sample_id"], "by": by, "across": row["source"] != keep["source"], **plain,
        })


def _compared(params: Params, dataset: Dataset, rows: Sequence[Row]) -> list[Seen]:
    names = [row["sample_id"] for row in rows]
    bits = signatures(dataset, names)
    pairs = [n for n in nearest(bits[:, 0], bits, params.within, params.neighbours, apart=True)
             if not _related(rows[n.query], rows[n.other])]
    number = {name: place for place, name in enumerate(names)}

    def looks(wanted: Collection[int]) -> Iterable[tuple[int, Pixels]]:
        return ((number[name], pixels) for name, pixels in dataset.pictures({names[n] for n in wanted}))

    seen = list(compared(_once(pairs), looks, looks))
    if params.encoder:
        sure = {_ends(one.near) for one in seen if _level(params, one) == ONE}
        more = [near for near in _once(_alike(params.encoder, dataset, rows)) if _ends(near) not in sure]
        seen += compared(more, looks, looks)
    return seen


def _alike(by: Looking, dataset: Dataset, rows: Sequence[Row]) -> Iterator[Near]:
    """Pairs with near vectors; none that are `_related`, or the slices of a volume would have but each other."""
    volumes = [row["volume_id"] or row["sample_id"] for row in rows]
    figures = [row["parent_id"] or row["sample_id"] for row in rows]
    apart = [np.unique(names, return_inverse=True)[1] for names in (volumes, figures)]
    known = vectors(dataset, [row["sample_id"] for row in rows], by.encoder)
    for query, other, cosine in alike(known, by.alike, by.neighbours, apart):
        yield Near(query, other, "", None, cosine)


def _level(params: Params, one: Seen) -> int:
    """What a comparison says: that the two are ONE, that it is DOUBTFUL, or less than that."""
    limits = params.encoder if params.encoder and one.near.cosine is not None else params
    return ONE if one.match.score >= limits.same else DOUBTFUL if one.match.score >= limits.doubtful else 0


def _ends(near: Near) -> tuple[int, int]:
    return min(near.query, near.other), max(near.query, near.other)


def _once(pairs: Iterable[Near]) -> list[Near]:
    """Without a pair that stands the other way round already; as part and whole, both ways are tried."""
    found: dict[tuple[int, int, str], Near] = {}
    for near in pairs:
        ends = (near.query, near.other) if near.view.startswith("crop") else _ends(near)
        found.setdefault((ends[0], ends[1], near.view), near)
    return list(found.values())


def _related(a: Row, b: Row) -> bool:
    """Slices of one volume, or pictures of one figure."""
    if a["volume_id"] is not None and a["volume_id"] == b["volume_id"]:
        return True
    return bool((a["parent_id"] or a["sample_id"]) == (b["parent_id"] or b["sample_id"]))


def _near(params: Params, rows: Sequence[Row], seen: Sequence[Seen]) -> list[Row]:
    best: dict[tuple[int, int], tuple[int, float, Seen]] = {}
    for one in seen:
        rank = (_level(params, one), one.match.score)
        if _ends(one.near) not in best or rank > best[_ends(one.near)][:2]:
            best[_ends(one.near)] = (*rank, one)
    strongest = sorted(best.items(), key=lambda entry: (-entry[1][1], entry[0]))
    same = [(pair, one) for pair, (level, _, one) in strongest if level == ONE]
    keep = components(pair for pair, _ in same)
    through: dict[int, tuple[int, Seen]] = {}
    for (a, b), one in same:
        for x, y in ((a, b), (b, a)):
            if x not in through or (y == keep[x] and through[x][0] != keep[x]):
                through[x] = (y, one)
    checks = []
    for number in sorted(keep):
        other, one = through[number]
        mine, own = rows[number], rows[keep[number]]
        checks.append(_check("near", mine, one.match.score, "pass" if mine is own else "fail", {
            "of": own["sample_id"], "through": rows[other]["sample_id"], "across": mine["source"] != own["source"],
            **({"mirrored": True} if one.match.mirrored else {}),
            **({"scale": one.match.scale} if one.match.scale < 1 else {}),
            **_by(one.near),
        }))
    doubtful: set[int] = set()
    for (a, b), (level, _, one) in strongest:
        if level == DOUBTFUL:
            for x, y in ((a, b), (b, a)):
                if x not in doubtful:
                    doubtful.add(x)
                    detail = {"of": rows[y]["sample_id"], **_by(one.near)}
                    checks.append(_check("candidate", rows[x], one.match.score, "unknown", detail))
    return checks


def _by(near: Near) -> Row:
    """What looked at the pair, where it was no hash."""
    return {} if near.cosine is None else {"by": "embedding", "cosine": near.cosine}


def _check(kind: str, row: Row, value: float, verdict: str, detail: Row) -> Row:
    return {
        "sample_id": row["sample_id"], "text_id": "", "check": f"duplicate/{kind}", "version": VERSION,
        "value": value, "verdict": verdict, "detail": json.dumps(detail),
    }
