"""Stage over the whole dataset: which share (train, val, test) each sample is in, by its group and never across it.

The invariant: all samples of a group (patient, article, video: images.group_id) are in one share, and so are all groups
that hold one picture between them, as the stage `duplicates` found; the unit fails before it writes anything else.

    - use: duplicates
    - use: splits
      shares: {train: 0.8, val: 0.1, test: 0.1}
      stratify: images.modality

Rows of `checks`, one a sample: `split/NAME`, its share as detail, its place between 0 and 1 as value, so that a query
may cut elsewhere; and `split/NAME/group`, the set of groups it is joined with. With `keep: true` shares that a source
states stand, but for groups that hold one picture between them; their place is null.

    SELECT * FROM images JOIN checks USING (sample_id) WHERE "check" = 'split/main' AND detail = 'train'

Without `stratify` a group's place is a hash of its id and the salt: adding data moves no group, unless a new duplicate
joins it with one that is held out more strictly (the last share named is the strictest). With it, shares are met within
each stratum, and groups close to an edge may move as data grows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from catalog.schema import LAYERS
from transforms.curation.dataset import Dataset, WholeStage
from transforms.curation.duplicates import components
from transforms.curation.splits import assigned, crossing, kept, stratified
from transforms.stage import Context, Outcome, Stage

NAME = "splits"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}
COLUMNS = ("modality", "anatomy", "view", "source")


Side = tuple[str, float | None]
"""A share, and the place between 0 and 1 that decided it; none where the source did."""


class Params(BaseModel):
    """What a recipe may set for the splits stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str = Field("main", pattern=r"^[a-z0-9_-]+$", description="name of the split, for datasets with several")
    shares: Mapping[str, float] = Field(
        {"train": 0.8, "val": 0.1, "test": 0.1},
        description="share -> its size, from the most open to the most strictly held out; sizes need not sum to 1",
    )
    salt: str = Field("", description="another salt is another split of the same data")
    join: tuple[str, ...] = Field(
        ("duplicate/exact", "duplicate/near"), description="checks whose samples belong together across groups"
    )
    stratify: str | None = Field(
        None, description=f"meet the shares within each value of images.COLUMN ({', '.join(COLUMNS)}), or of the label "
        "of this name; of a group, the commonest counts",
    )

    keep: bool = Field(
        False, description="groups of which the source states a share (its label `split`) stay in it, and with them "
        "those that hold the same pictures; of several stated shares the strictest counts",
    )

    @field_validator("shares")
    @classmethod
    def _sizes(cls, shares: Mapping[str, float]) -> Mapping[str, float]:
        if len(shares) < 2 or min(shares.values()) < 0 or sum(shares.values()) <= 0:
            raise ValueError("needs two shares or more, none below 0")
        return shares

    @field_validator("stratify")
    @classmethod
    def _column(cls, stratify: str | None) -> str | None:
        if stratify and stratify.startswith("images.") and stratify.removeprefix("images.") not in COLUMNS:
            raise ValueError(f"images has {', '.join(COLUMNS)} to stratify by; a label is named by its name alone")
        return stratify


def make_stage(params: Params, context: Context) -> Stage:
    """The stage."""
    by_label = params.stratify and not params.stratify.startswith("images.")
    labels = ("labels",) if by_label or params.keep else ()
    return WholeStage(
        NAME, VERSION, reads=("images", "checks", *labels), writes=("checks",), over=partial(_split, params),
        params=params, ingredients={"order": ",".join(params.shares)},  # a key sorts names, and here their order counts
        checks_of=("duplicates",),
    )


def _split(params: Params, dataset: Dataset) -> Outcome:
    images = dataset.columns("images", ("sample_id", "group_id", *COLUMNS)).to_pylist()
    group = {row["sample_id"]: row["group_id"] for row in images}
    same = components(_joined(params, dataset, group))
    joined = {name: same.get(name, name) for name in group.values()}
    if params.stratify is None:
        found = assigned(joined, params.shares, params.salt)
    else:
        found = stratified(joined, _strata(params.stratify, dataset, images), params.shares, params.salt)
    stays = kept(joined, _stated(dataset, group), params.shares) if params.keep else {}
    sides: dict[str, Side] = {name: (stays[name], None) if name in stays else at for name, at in found.items()}
    if crossed := crossing((joined[name], share) for name, (share, _) in sides.items()):
        raise AssertionError(f"groups on two sides: {next(iter(crossed.items()))}")
    checks = [check for sample in dataset.ids for check in _checks(params.split, sample, sides, joined, group[sample])]
    return Outcome({"checks": LAYERS["checks"].table(checks)}, dataset.ids)


def _joined(params: Params, dataset: Dataset, group: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of groups that hold one picture; over plain pictures nothing is joined."""
    for row in dataset.columns("checks", ("sample_id", "check", "verdict", "detail")).to_pylist():
        if row["check"] in params.join and row["verdict"] == "fail":
            detail = json.loads(row["detail"])
            if not detail.get("plain"):
                yield group[row["sample_id"]], group[detail["of"]]


def _stated(dataset: Dataset, group: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(group, what its source calls the share it is in)."""
    for row in dataset.columns("labels", ("sample_id", "name", "value")).to_pylist():
        if row["name"] == "split" and row["value"]:
            yield group[row["sample_id"]], row["value"]


def _strata(by: str, dataset: Dataset, images: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Group -> its commonest value; of equally common ones the first in order; '' where nothing is known."""
    if by.startswith("images."):
        values = {row["sample_id"]: row[by.removeprefix("images.")] for row in images}
    else:
        labels = dataset.columns("labels", ("sample_id", "name", "value")).to_pylist()
        values = {row["sample_id"]: row["value"] for row in sorted(labels, key=str) if row["name"] == by}
    counts: dict[str, Counter[str]] = {}
    for row in images:
        counts.setdefault(row["group_id"], Counter())[values.get(row["sample_id"]) or ""] += 1
    return {name: min(count, key=lambda value: (-count[value], value)) for name, count in counts.items()}


def _checks(
    split: str, sample: str, sides: Mapping[str, Side], joined: Mapping[str, str], group: str
) -> Iterator[Mapping[str, Any]]:
    share, at = sides[group]
    common = {"sample_id": sample, "text_id": "", "version": VERSION, "verdict": "pass"}
    yield {**common, "check": f"split/{split}", "value": at and round(at, 9), "detail": share}
    yield {**common, "check": f"split/{split}/group", "detail": joined[group]}
