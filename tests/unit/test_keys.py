"""Content keys and partitions: stable under order, place and growth."""

import random

import pytest

from infra.keys import canonical, key, pseudonym, split_by_key


def test_a_key_does_not_depend_on_the_order_of_names() -> None:
    assert key("x", {"a": 1, "b": [2, None]}) == key("x", {"b": [2, None], "a": 1})
    assert key("x", 1) != key("x", "1")


def test_values_json_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        canonical(float("nan"))


def test_pseudonyms_need_the_secret_and_keep_kinds_apart() -> None:
    assert pseudonym(b"k", "patient", "4711") == pseudonym(b"k", "patient", "4711")
    assert len({pseudonym(b"k", "patient", "1"), pseudonym(b"l", "patient", "1"), pseudonym(b"k", "study", "1")}) == 3


def test_partitions_hold_at_most_capacity_and_lose_nothing() -> None:
    things = [f"item{i}" for i in range(1000)]
    parts = split_by_key(things, str, 64)
    assert sorted(t for part in parts.values() for t in part) == sorted(things)
    assert max(map(len, parts.values())) <= 64
    shuffled = random.Random(1).sample(things, len(things))
    assert split_by_key(shuffled, str, 64).keys() == parts.keys()


def test_one_more_thing_changes_one_partition() -> None:
    things = [f"item{i}" for i in range(500)]
    before, after = split_by_key(things, str, 100), split_by_key([*things, "new"], str, 100)
    assert len([name for name in after if before.get(name) != after[name]]) == 1


def test_a_split_leaf_disturbs_only_itself() -> None:
    things = [f"item{i}" for i in range(100)]
    before, after = split_by_key(things, str, 100), split_by_key([*things, "one more"], str, 100)
    assert list(before) == ["all"] and sorted(after) == ["b0", "b1"]


def test_groups_stay_together_even_above_capacity() -> None:
    parts = split_by_key(range(50), lambda n: "odd" if n % 2 else "even", 10)
    assert {tuple(sorted(p)) for p in parts.values()} == {tuple(range(0, 50, 2)), tuple(range(1, 50, 2))}
