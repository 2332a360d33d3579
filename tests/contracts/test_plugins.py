"""Every plug-in of every kind keeps the contract of `infra/plugins.py`, whether it can run here or not."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from infra.plugins import KINDS, listed, plugins, why_unavailable

ALL = [(kind, name, module) for kind in KINDS for name, module in plugins(kind).items()]
ARGUMENTS = {
    "connector": ("list_partitions", ["source", "params", "since"]),
    "decoder": ("decode", ["items", "params", "pseudonym"]),
    "stage": ("make_stage", ["params", "context"]),
    "expert": ("find", ["pixels", "image", "params"]),
    "volume_expert": ("segment", ["scan", "params"]),
    "classifier": ("open_classifier", ["params", "context"]),
    "captioner": ("open_captioner", ["params", "context"]),
    "corpus": ("read", ["params", "base"]),
    "exporter": ("write", ["rows", "out", "params"]),
}


@pytest.mark.parametrize(("kind", "name", "module"), ALL, ids=[f"{k}:{n}" for k, n, _ in ALL])
def test_a_plugin_keeps_the_contract(kind: str, name: str, module: Any) -> None:
    assert (module.__doc__ or "").strip(), "says what it is in its docstring"
    assert isinstance(module.REQUIRES, dict)
    assert issubclass(module.Params, BaseModel)
    assert module.Params.model_config.get("extra") == "forbid" and module.Params.model_config.get("frozen")
    for field_name, field in module.Params.model_fields.items():
        assert field.description, f"parameter {field_name} of {kind} {name} says what it does"
    function, arguments = ARGUMENTS[kind]
    assert list(inspect.signature(getattr(module, function)).parameters)[: len(arguments)] == arguments


def test_every_kind_has_a_plugin_and_the_list_shows_all() -> None:
    assert {kind for kind, _, _ in ALL} == set(KINDS)
    assert {(p.kind, p.name) for p in listed()} == {(kind, name) for kind, name, _ in ALL}


def test_what_is_missing_is_named_with_the_way_to_get_it() -> None:
    class Lacking:
        REQUIRES: ClassVar = {"no_such_module_at_all": "medloom[heavy]"}

    assert why_unavailable(Lacking) == "needs medloom[heavy]: pip install medloom[heavy]"
