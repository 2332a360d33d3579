"""Several experts on one thing: figures that are known, and rules of choice that are kept to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_experts import CONTEXT, disc, nuclei, table_of

from catalog.masks import decode_mask
from catalog.schema import LAYERS
from transforms import ground
from transforms.decoded import Region
from transforms.experts import foreground
from transforms.experts.card import Card, Class
from transforms.grounding.agreement import Party, settled, thing_of
from transforms.regions import roi_row

SIZE = (100, 100)
LUNG = Card("classical", "boundary", (Class("lungs", "organ", "UBERON:0002048"),))


def block(x0: int, y0: int, x1: int, y1: int) -> Any:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def party(name: str, *regions: Region, trust: str = "boundary", card: Card | None = None, **more: Any) -> Party:
    rows = [
        roi_row("s", region, SIZE, expert=f"{name}@1", origin="predicted", trust=trust,
                weights_sha256=f"w-{name}") for region in regions
    ]
    return Party(name, tuple(row for row in rows if row), card, **more)


def lung(*box: int, label: str = "lung") -> Region:
    return Region(label, "organ", mask=block(*box))


def test_names_and_ids_mean_one_thing() -> None:
    assert thing_of("lungs", None) == thing_of("lung", "UBERON:0002048") == ("UBERON:0002048", None)
    assert thing_of("lung_right", None) == ("UBERON:0002048", "right")
    assert thing_of("zorble left", None) == ("zorble", "left")
    assert thing_of("imaged body", None) != thing_of("lung", None)


def test_dice_of_masks_and_iou_of_boxes() -> None:
    two = [party("a", lung(0, 0, 20, 20)), party("b", lung(10, 0, 30, 20))]
    rows, ((name, (pair,), said),) = settled("s", SIZE, two, "all")
    assert (name, pair.value, pair.measure, said) == ("lung", 0.5, "Dice", "all are kept")
    assert len(rows) == 2
    boxes = [party(n, Region("lung", "organ", box=box)) for n, box in (("a", (0, 0, 20, 20)), ("b", (10, 0, 30, 20)))]
    _, ((_, (pair,), _),) = settled("s", SIZE, boxes, "all")
    assert (pair.value, pair.measure) == (0.333, "IoU of boxes")


def test_sides_are_apart_where_both_tell_them_and_together_where_one_does_not() -> None:
    both = [lung(0, 0, 20, 20, label="right lung"), lung(50, 0, 70, 20, label="left lung")]
    _, told = settled("s", SIZE, [party("a", *both), party("b", *both)], "all")
    assert [(name, pairs[0].value) for name, pairs, _ in told] == [("left lung", 1), ("right lung", 1)]
    whole = Region("lungs", "organ", mask=block(0, 0, 20, 20) | block(50, 0, 70, 20))
    _, told = settled("s", SIZE, [party("a", *both), party("b", whole)], "all")
    assert [(name, pairs[0].value) for name, pairs, _ in told] == [("lung", 1)]


def test_an_expert_that_does_not_see_it_is_at_nought_if_its_card_lists_it() -> None:
    seen = party("a", lung(0, 0, 20, 20), card=LUNG)
    _, ((_, (pair,), _),) = settled("s", SIZE, [seen, party("b", card=LUNG)], "all")
    assert pair.value == 0 and "not seen" in pair.words
    other = Card("classical", "boundary", (Class("heart", "organ"),))
    assert settled("s", SIZE, [seen, party("b", card=other)], "all")[1] == []


def test_best_is_by_trust_then_by_order_and_never_leaves_out_the_source() -> None:
    a, b = party("a", lung(0, 0, 20, 20), trust="box"), party("b", lung(5, 0, 25, 20))
    rows, ((_, _, said),) = settled("s", SIZE, [a, b], "best")
    assert [row["expert"] for row in rows] == ["b@1"] and said == "b is kept, a left out"
    again = party("a", lung(0, 0, 20, 20))
    assert [row["expert"] for row in settled("s", SIZE, [again, b], "best")[0]] == ["a@1"]
    source = party("source", lung(0, 0, 20, 20), trust="box", fixed=True)
    rows, ((_, _, said),) = settled("s", SIZE, [source, b], "best")
    assert rows == [] and said == "source is kept, b left out"
    heart = party("c", Region("heart", "organ", mask=block(0, 0, 9, 9)))
    assert len(settled("s", SIZE, [a, b, heart], "best")[0]) == 2, "what nobody else found stays"


def test_a_consensus_is_the_majority_of_pixels() -> None:
    three = [party("a", lung(0, 0, 20, 20)), party("b", lung(10, 0, 30, 20), trust="box")]
    three.append(party("c", lung(5, 0, 25, 20)))
    (row,), ((_, pairs, said),) = settled("s", SIZE, three, "consensus")
    assert (decode_mask(row["mask"]) == block(5, 0, 25, 20)).all()
    assert (row["expert"], row["origin"], row["trust"], row["label"]) == ("consensus@1", "predicted", "box", "lung")
    assert row["expert_weights_sha256"] and len(pairs) == 3 and "more than half of 3" in said
    two = settled("s", SIZE, three[:2], "consensus")[0]
    assert (decode_mask(two[0]["mask"]) == block(10, 0, 20, 20)).all(), "of two, both"


def test_without_a_majority_or_with_many_regions_the_best_stands_and_it_is_said() -> None:
    apart = [party("a", lung(0, 0, 9, 9)), party("b", lung(50, 50, 60, 60))]
    rows, ((_, (pair,), said),) = settled("s", SIZE, apart, "consensus")
    assert [row["expert"] for row in rows] == ["a@1"] and pair.value == 0 and "no pixel has a majority" in said
    many = [party("a", lung(0, 0, 9, 9), lung(20, 0, 29, 9)), party("b", lung(0, 0, 9, 9))]
    rows, ((_, _, said),) = settled("s", SIZE, many, "consensus")
    assert len(rows) == 2 and "several regions" in said
    boxes = [party(n, Region("lung", "organ", box=box)) for n, box in (("a", (0, 0, 20, 20)), ("b", (10, 0, 30, 20)))]
    (row,), _ = settled("s", SIZE, boxes, "consensus")
    assert row["mask"] is None and row["box"] == [10, 0, 20, 20]


@pytest.mark.parametrize(("choose", "experts"), [
    ("all", ["cells@1"] * 5 + ["foreground@1"]), ("best", ["cells@1"] * 5), ("consensus", ["cells@1"] * 5),
])
def test_the_stage_keeps_books_of_agreement(
    choose: str, experts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def blobs(pixels: Any, image: Any, params: Any) -> list[Region]:
        return [Region("cell", "cell", mask=disc(128, 25, 25, 10))]

    monkeypatch.setattr(foreground, "find", blobs)
    monkeypatch.setattr(foreground, "applies", lambda image: None)
    images = table_of(a=(nuclei(), "fluorescence microscopy"))
    stage = ground.make_stage(ground.Params(experts=("foreground", "cells"), choose=choose), CONTEXT)
    made = stage({"images": images, "rois": LAYERS["rois"].table([])}, None).tables
    assert sorted(row["expert"] for row in made["rois"].to_pylist()) == experts
    checks = {c["check"]: c for c in made["checks"].to_pylist()}
    assert len(checks) == made["checks"].num_rows, "one row a check"
    agreement = checks["agreement/cell"]
    assert 0.2 < agreement["value"] < 0.5 and agreement["verdict"] == "fail"
    assert agreement["detail"].startswith("foreground and cells: Dice 0.")
    assert checks["roi_status"]["value"] == len(experts)


def test_given_regions_are_compared_with_what_is_found() -> None:
    given = roi_row("a", Region("cells", "cell", mask=disc(128, 25, 25, 10)), (128, 128), expert="source",
                    origin="given", trust="boundary")
    stage = ground.make_stage(ground.Params(experts=("cells",), prefer_given=False), CONTEXT)
    images = table_of(a=(nuclei(), "fluorescence microscopy"))
    made = stage({"images": images, "rois": LAYERS["rois"].table([given])}, None).tables
    assert made["rois"].num_rows == 5
    (agreement,) = [c for c in made["checks"].to_pylist() if c["check"].startswith("agreement/")]
    assert agreement["detail"].startswith("source and cells: Dice 0.")

