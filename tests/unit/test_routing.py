"""Routing: rules choose experts, every choice has a reason, and what an expert lacks is named and enters the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_experts import CONTEXT, disc, nuclei, table_of

from catalog.schema import LAYERS
from infra import weights
from infra.errors import ConfigError
from infra.plugins import plugins
from transforms import ground, ground_volumes
from transforms.grounding.routing import FILE, Routing, _bundled, open_router
from transforms.stage import fingerprint


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def asked(image: dict[str, Any], *, kind: str = "expert", **more: Any) -> tuple[list[str], str]:
    told = open_router(kind, Routing(**more.pop("routing", {})), more.pop("options", {})).asked(image, **more)
    assert told.said
    return [expert.name for expert in told.experts], told.said


@pytest.mark.parametrize(("image", "experts"), [
    ({"modality": "DX", "anatomy": "CHEST"}, ["lung_fields", "foreground"]),
    ({"modality": "DX", "anatomy": "chest", "view": "PA"}, ["lung_fields", "foreground"]),
    ({"modality": "DX", "anatomy": "chest", "view": "lateral"}, ["foreground"]),
    ({"modality": "DX", "anatomy": "hand"}, ["foreground"]),
    ({"modality": "fluorescence microscopy"}, ["cells"]),
    ({"modality": "histopathology"}, ["nuclei"]),
    ({"modality": "OPT"}, ["retina_band", "foreground"]),
    ({"modality": "DMS"}, ["skin_lesion"]),
    ({"modality": "OP"}, ["optic_disc", "foreground"]),
    ({"modality": "XC"}, []),
    ({"modality": None}, []),
])
def test_rules_choose_by_modality_anatomy_and_view(image: dict[str, Any], experts: list[str]) -> None:
    assert asked(image)[0] == experts


def test_every_choice_has_a_reason() -> None:
    assert asked({"modality": "DMS"})[1] == "skin lesion: asked skin_lesion"
    assert "no rule asks an expert about external-camera photography" in asked({"modality": "XC"})[1]
    assert "the modality is unknown" in asked({"modality": None})[1]
    said = asked({"modality": "GM"})[1]
    assert "nobody" in said and "cells looks at fluorescence" in said and "nuclei" in said


def test_scans_are_routed_by_rules_of_their_own() -> None:
    assert asked({"modality": "CT"}, kind="volume_expert")[0] == ["ct"]
    names, said = asked({"modality": "MR", "anatomy": "brain"}, kind="volume_expert")
    assert names == [] and "medloom weights fetch meshnet-tissue" in said
    assert "no rule" in asked({"modality": "MR"}, kind="volume_expert")[1], "a brain must be stated"
    assert "no rule" in asked({"modality": "MR", "anatomy": "knee"}, kind="volume_expert")[1]


def test_weights_that_are_not_here_are_a_reason_with_what_to_do_and_no_place(no_weights: Path) -> None:
    _, said = asked({"modality": "OP"})
    lacks = "needs the weights lwnet-vessels, which are not here: medloom weights fetch lwnet-vessels"
    assert f"retinal vessels: nobody (wnet {lacks})" in said
    assert str(no_weights) not in said, "reasons are stored: they name no folder of this machine"
    with pytest.raises(ConfigError, match="lwnet-vessels"):
        ground.make_stage(ground.Params(experts=("wnet",)), CONTEXT)


def test_weights_that_come_are_used_and_enter_the_key(no_weights: Path, sample_data: Path) -> None:
    pytest.importorskip("onnxruntime")
    before = ground.make_stage(ground.Params(experts="auto"), CONTEXT)
    volumes = fingerprint(ground_volumes.make_stage(ground_volumes.Params(experts="auto"), CONTEXT))
    weights.fetch("lwnet-vessels", sample_data / "weights")
    assert asked({"modality": "OP"})[0] == ["wnet", "optic_disc", "foreground"]
    after = ground.make_stage(ground.Params(experts="auto"), CONTEXT)
    assert fingerprint(before) != fingerprint(after)
    assert before.ingredients["expert:cells"] == after.ingredients["expert:cells"]
    again = fingerprint(ground_volumes.make_stage(ground_volumes.Params(experts="auto"), CONTEXT))
    assert volumes == again, "no volume expert came"


def test_wrong_weights_stop_the_build_also_under_auto(no_weights: Path) -> None:
    for file in weights.named("lwnet-vessels").files:
        path = no_weights / "lwnet-vessels" / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * file.bytes)
    with pytest.raises(ConfigError, match=r"not those of weights\.yaml.*has the hash"):
        open_router("expert", Routing())


def test_a_wish_leaves_the_other_rules_out() -> None:
    assert asked({"modality": "DX", "anatomy": "chest"}, routing={"want": ["lung"]})[0] == ["lung_fields"]
    assert asked({"modality": "DX", "anatomy": "hand"}, routing={"want": ["lung"]})[0] == []
    with pytest.raises(ConfigError, match="did you mean 'lung'"):
        open_router("expert", Routing(want=("lungs",)))


def test_rules_of_a_recipe_take_the_place_of_ours(tmp_path: Path) -> None:
    rules = {"rules": [
        {"rule": "all", "finds": ["body"], "modalities": ["CT"], "ask": ["label_map", "cells", "foreground"]},
        {"rule": "said", "finds": ["body"], "labels": ["nodule"], "ask": ["text"]},
    ]}
    names, said = asked({"modality": "CT"}, routing={"rules": rules})
    assert names == ["foreground"]
    assert "label_map needs the option model: set options: {label_map: {model: …}}" in said
    assert "cells does not look at computed tomography" in said
    label = {"name": "Lung nodule", "value": "present"}
    assert "said: " in asked({"modality": "CT"}, routing={"rules": rules}, labels=[label])[1]
    assert "said: " not in asked({"modality": "CT"}, routing={"rules": rules}, labels=[{**label, "value": "absent"}])[1]
    path = tmp_path / "rules.yaml"
    path.write_text("rules:\n  - {rule: all, ask: [foreground], modalities: [CT]}\n")
    assert asked({"modality": "CT"}, routing={"rules": str(path)})[0] == ["foreground"]
    keys = [
        fingerprint(ground.make_stage(ground.Params(experts="auto", routing=Routing(rules=given)), CONTEXT))
        for given in (rules, str(path), None)
    ]
    assert len(set(keys)) == 3


@pytest.mark.parametrize(("rules", "word"), [
    ({"rules": [{"rule": "a", "ask": ["foregruond"]}]}, "did you mean 'foreground'"),
    ({"rules": [{"rule": "a", "ask": ["foreground"], "modality": ["CT"]}]}, "modality"),
    ({"rules": [{"rule": "a", "ask": ["foreground"], "modalities": ["CTT"]}]}, "unknown modality 'CTT'"),
    ({"rules": []}, "rules"),
    ("nowhere.yaml", "nothing there"),
])
def test_rules_that_cannot_work_are_told_before_anything_runs(rules: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        ground.make_stage(ground.Params(experts="auto", routing=Routing(rules=rules)), CONTEXT)


def test_options_go_to_experts_that_rules_ask() -> None:
    router = open_router("expert", Routing(), {"cells": {"min_area": 99}})
    assert router.experts["cells"].params.min_area == 99  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="which no rule of ndim 2 asks"):
        open_router("expert", Routing(), {"ct": {}})


def test_a_rival_is_asked_too_and_the_others_are_not_needed() -> None:
    rules = {"rules": [{"rule": "all", "modalities": ["histopathology"], "ask": ["nuclei", "text", "panels"]}]}
    one, said = asked({"modality": "histopathology"}, routing={"rules": rules})
    assert one == ["nuclei"] and "text was not needed" in said
    assert asked({"modality": "histopathology"}, routing={"rules": rules, "rivals": 2})[0] == ["nuclei", "text"]


def test_a_picture_of_unknown_modality_is_taken_for_what_its_type_surely_is() -> None:
    def check(value: float) -> list[dict[str, Any]]:
        return [
            {"check": "image_type/plot", "value": 0.02, "verdict": "fail"},
            {"check": "image_type/fluorescence_microscopy", "value": value, "verdict": "pass"},
        ]

    names, said = asked({"modality": None}, checks=check(0.97))
    assert names == ["cells"]
    assert said.startswith("taken for fluorescence microscopy, as image_type/fluorescence_microscopy is 0.97; ")
    assert asked({"modality": None}, checks=check(0.8))[0] == []
    assert asked({"modality": "XC"}, checks=check(0.97))[0] == [], "what the source states is not overruled"


def test_the_stage_asks_whom_the_rules_name_and_stores_why() -> None:
    images = table_of(a=(nuclei(), "fluorescence microscopy"), b=(disc(64, 30, 30, 9).astype("uint8"), "XC"),
                      c=(nuclei(), None))
    checks = LAYERS["checks"].table([{
        "sample_id": "c", "text_id": "", "check": "image_type/fluorescence_microscopy", "version": "look@1",
        "value": 0.99, "verdict": "pass",
    }])
    stage = ground.make_stage(ground.Params(experts="auto"), CONTEXT)
    empty = {layer: LAYERS[layer].table([]) for layer in ("rois", "labels")}
    made = stage({"images": images, **empty, "checks": checks}, None).tables
    told = {(c["sample_id"], c["check"]): c for c in made["checks"].to_pylist()}
    assert told["a", "roi_routing"]["detail"] == "fluorescent cells: asked cells"
    assert told["b", "roi_routing"]["verdict"] == "unknown" and "no rule asks" in told["b", "roi_routing"]["detail"]
    assert told["b", "roi_status"]["detail"] == "no expert was asked"
    found = [row["sample_id"] for row in made["rois"].to_pylist()]
    assert found == ["a"] * 5 + ["c"] * 5, "a figure that is surely fluorescence gets its cells"


def test_the_bundled_rules_name_experts_that_exist_and_every_card_they_trust() -> None:
    for rule in _bundled().rules:
        kind = "expert" if rule.ndim == 2 else "volume_expert"
        for name in rule.ask:
            assert name in plugins(kind), f"{rule.rule} asks {name}"
            card = plugins(kind)[name].CARD
            codes = set(rule.modalities) & set(card.modalities)
            assert codes or rule.kinds or name == "nuclei" or rule.rule == "cells of unstated stain", rule.rule
    assert FILE.name == "routing.yaml"
