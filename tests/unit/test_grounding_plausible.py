"""Regions held against what can be: size, place, pieces, field of view, Hounsfield units; told, never left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_experts import CONTEXT, grounded, nuclei, table_of

from infra.plugins import plugins
from transforms import ground
from transforms.decoded import Region
from transforms.experts import foreground
from transforms.grounding.plausible import _by_thing, judged, looks_of
from transforms.regions import roi_row
from transforms.stage import fingerprint
from transforms.vocabulary import table

SIZE = (200, 200)
CHEST = {"modality": "CT", "anatomy": "chest", "width": 200, "height": 200, "window": [-1000.0, 200.0]}


def block(x0: int, y0: int, x1: int, y1: int) -> Any:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def row(label: str, mask: Any, ontology_id: str | None = None, role: str = "organ") -> dict[str, Any]:
    made = roi_row("s", Region(label, role, mask=mask, ontology_id=ontology_id), SIZE, expert="e@1", origin="predicted",
                   trust="boundary")
    assert made is not None
    return made


LUNG = row("right lung", block(20, 20, 80, 150))
AIR = np.full(SIZE, 32, np.uint8)
"""-850 HU in the window of CHEST"""


def test_what_can_be_passes_and_says_how_many_rules_hold() -> None:
    made = judged([LUNG], CHEST, AIR)
    assert (made.verdict, made.anomaly, made.broken) == ("pass", 0, ()) and made.rules >= 5
    assert "rules hold" in made.detail


@pytest.mark.parametrize(("image", "pixels", "words"), [
    ({"modality": "OP"}, None, "seen in fundus photography, where it cannot be"),
    ({"anatomy": "pelvis"}, None, "outside the field of view, which is pelvis"),
    ({"anatomy": "ABDOMEN"}, None, "more than its margin"),
    ({"pixel_spacing": [5.0, 5.0]}, None, "length in mm 650, not 3 to 450"),
    ({}, np.full(SIZE, 200, np.uint8), "mean in HU -58.82, not -980 to -400"),
])
def test_a_broken_rule_names_the_region_and_the_rule(image: dict[str, Any], pixels: Any, words: str) -> None:
    made = judged([LUNG], {**CHEST, **image}, pixels)
    assert made.verdict == "fail" and 0 < (made.anomaly or 0) < 1
    assert words in made.detail and "right lung" in made.detail
    assert words.startswith("seen") or LUNG["roi_id"][:12] in made.detail


def test_the_bases_of_the_lungs_may_show_in_an_abdomen() -> None:
    small = row("lungs", block(20, 20, 60, 60), "UBERON:0002048")
    assert judged([small], {**CHEST, "anatomy": "abdomen"}).verdict == "pass"


def test_size_pieces_count_and_place() -> None:
    disc = row("optic disc", block(80, 80, 110, 110))
    eye = {"modality": "OP", "width": 200, "height": 200}
    assert judged([disc], eye).verdict == "pass"
    assert "share of the picture" in judged([row("optic disc", block(0, 0, 150, 150))], eye).detail
    assert "in 2 pieces" in judged([row("optic disc", block(60, 60, 80, 80) | block(110, 110, 130, 130))], eye).detail
    assert "2 of them" in judged([disc, row("optic disc", block(20, 60, 50, 90))], eye).detail
    assert "its centre at" in judged([row("optic disc", block(90, 0, 120, 20))], eye).detail


def test_what_is_unknown_is_not_judged_and_is_no_pass() -> None:
    bare = {"modality": None, "width": 200, "height": 200}
    assert judged([LUNG], bare).rules < judged([LUNG], CHEST).rules
    zorble = judged([row("zorble", block(0, 0, 9, 9))], CHEST)
    assert (zorble.verdict, zorble.anomaly) == ("unknown", None) and "no rule speaks of zorble" in zorble.detail
    clipped = judged([LUNG], CHEST, np.zeros(SIZE, np.uint8))
    assert clipped.verdict == "pass" and clipped.rules < judged([LUNG], CHEST, AIR).rules, "clipped: unknown"
    measured = judged([LUNG], CHEST, None, {"right lung": 30.0})
    assert "mean in HU 30" in measured.detail, "the scan itself was measured"


def test_the_stage_tells_and_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    def lungs(pixels: Any, image: Any, params: Any) -> list[Region]:
        return [Region("lung", "organ", mask=np.ones((128, 128), bool))]

    monkeypatch.setattr(foreground, "find", lungs)
    monkeypatch.setattr(foreground, "applies", lambda image: None)
    rois, checks = grounded(table_of(a=(nuclei(), "OP")), experts=("foreground",))
    assert len(rois) == 1, "nothing is left out"
    (check,) = [c for c in checks if c["check"] == "roi_plausible/foreground"]
    assert check["verdict"] == "fail" and 0.5 < check["value"] < 1
    assert "fundus photography, where it cannot be" in check["detail"]


def test_the_rules_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from transforms.grounding import plausible

    before = fingerprint(ground.make_stage(ground.Params(), CONTEXT))
    other = tmp_path / "plausible.yaml"
    other.write_text(plausible.FILE.read_text() + "  zorble: {share: [0, 1]}\n")
    monkeypatch.setattr(plausible, "FILE", other)
    assert fingerprint(ground.make_stage(ground.Params(), CONTEXT)) != before


def test_the_rules_are_whole_and_speak_of_what_our_experts_find() -> None:
    for looks in _by_thing().values():
        assert set(looks.modalities) <= set(table())
        assert all(span is None or span[0] < span[1] for span in (looks.share, looks.side_mm, looks.hu))
    unspoken = {
        found.label for kind in ("expert", "volume_expert") for name, module in plugins(kind).items()
        if name in ("foreground", "cells", "nuclei", "skin_lesion", "lung_fields", "optic_disc", "retina_band", "wnet",
                    "ct", "brain")
        for found in module.CARD.classes if looks_of(found.label, found.ontology_id) is None
    }
    assert unspoken == set()
