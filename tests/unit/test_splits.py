"""Splits: stable under growth, joined groups on one side, strata met, nothing crosses."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError

from transforms.curation.splits import assigned, crossing, kept, place, side, stratified
from transforms.splits import Params, make_stage
from transforms.stage import Context, fingerprint

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def alone(count: int) -> dict[str, str]:
    return {f"p{n}": f"p{n}" for n in range(count)}


def test_shares_are_met_in_the_long_run() -> None:
    counts = Counter(share for share, _ in assigned(alone(5000), SHARES, "").values())
    assert abs(counts["train"] / 5000 - 0.8) < 0.02 and abs(counts["test"] / 5000 - 0.1) < 0.02


def test_growth_moves_nobody() -> None:
    before, after = assigned(alone(300), SHARES, "s"), assigned(alone(900), SHARES, "s")
    assert all(after[group] == found for group, found in before.items())
    assert assigned(alone(300), SHARES, "other") != before


def test_joined_groups_go_where_the_strictest_would_and_none_comes_back_to_training() -> None:
    before = assigned(alone(300), SHARES, "")
    joined = {group: "set" if int(group[1:]) < 40 else group for group in before}
    after = assigned(joined, SHARES, "")
    assert {after[f"p{n}"][0] for n in range(40)} == {"test"}
    rank = list(SHARES)
    assert all(rank.index(after[group][0]) >= rank.index(before[group][0]) for group in before)
    assert crossing((joined[group], share) for group, (share, _) in after.items()) == {}


def test_strata_meet_the_shares_where_chance_does_not() -> None:
    groups = alone(100)
    strata = {group: "rare" if int(group[1:]) < 10 else "common" for group in groups}
    found = stratified(groups, strata, SHARES, "")
    for stratum, size in (("rare", 10), ("common", 90)):
        counts = Counter(share for group, (share, _) in found.items() if strata[group] == stratum)
        assert counts == {"train": size * 8 // 10, "val": size // 10, "test": size // 10}
    together = {group: "set" if int(group[1:]) in (1, 50, 51) else group for group in groups}
    sides = stratified(together, strata, SHARES, "")
    assert len({sides[f"p{n}"][0] for n in (1, 50, 51)}) == 1


def test_growth_within_strata_moves_only_groups_near_an_edge() -> None:
    before = stratified(alone(500), dict.fromkeys(alone(500), ""), SHARES, "")
    after = stratified(alone(550), dict.fromkeys(alone(550), ""), SHARES, "")
    moved = [group for group, found in before.items() if after[group][0] != found[0]]
    assert len(moved) <= 25 and all(before[group][1] > 0.7 for group in moved)


def test_a_crossing_group_is_named() -> None:
    assert crossing([("a", "train"), ("b", "test"), ("a", "test")]) == {"a": ["test", "train"]}


def test_places_are_uniform_and_edges_belong_to_the_next() -> None:
    assert 0.47 < sum(place(f"g{n}", "") for n in range(4000)) / 4000 < 0.53
    assert [side(at, {"a": 1, "b": 1}) for at in (0, 0.49, 0.5, 0.999)] == ["a", "a", "b", "b"]


def test_parameters_are_checked_and_their_order_counts() -> None:
    for wrong in ({"shares": {"train": 1}}, {"shares": {"a": -1, "b": 2}}, {"stratify": "images.sha256"}):
        with pytest.raises(ValidationError):
            Params(**wrong)
    from pathlib import Path

    one, other = (make_stage(Params(shares=s), Context(Path())) for s in ({"a": 1, "b": 1}, {"b": 1, "a": 1}))
    assert fingerprint(one) != fingerprint(other)


def test_shares_that_sources_state_are_kept_and_the_strictest_counts() -> None:
    joined = {"a": "a", "b": "both", "c": "both", "d": "d", "e": "e"}
    stated = [("a", "Training"), ("b", "train"), ("c", "testing"), ("d", "extra"), ("a", "train")]
    assert kept(joined, stated, SHARES) == {"a": "train", "b": "test", "c": "test"}
    assert kept(joined, reversed(stated), SHARES) == kept(joined, stated, SHARES)
    assert kept(joined, [("a", "valid")], {"train": 1, "test": 1}) == {}, "a share that this split has not"
    own = {"train": 0.5, "valid": 0.5}
    assert kept(joined, [("a", "valid"), ("d", "validation")], own) == {"a": "valid"}
