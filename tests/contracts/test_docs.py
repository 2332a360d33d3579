"""The README is true: it names every command, plug-in, layer and bundled recipe, and no command that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from catalog.schema import LAYERS
from flows.cli import app
from flows.recipe import BUNDLED, load_recipe
from infra.plugins import KINDS, plugins

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands() -> dict[str, object]:
    root = typer.main.get_command(app)
    found = {}
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found.update({f"{name} {n}": c for n, c in inner.items()} if inner else {name: command})
    return found


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_and_stands_in_the_readme(name: str) -> None:
    assert f"medloom {name}" in README or f"make {name}" in README
    shown = CliRunner().invoke(app, [*name.split(), "--help"])
    assert shown.exit_code == 0 and len(shown.output.splitlines()) > 4
    command = commands()[name]
    assert command.help  # type: ignore[attr-defined]
    for parameter in command.params:  # type: ignore[attr-defined]
        assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"


def test_the_readme_names_no_command_that_is_not_there() -> None:
    known = {name.split()[0] for name in commands()}
    named = set(re.findall(r"^    medloom (\w+)|`medloom (\w+)", README, re.M))
    assert {a or b for a, b in named} <= known


@pytest.mark.parametrize("kind", KINDS)
def test_every_plugin_stands_in_the_readme(kind: str) -> None:
    (row,) = [line for line in README.splitlines() if line.startswith(f"| {kind} ")]
    assert {f"`{name}`" for name in plugins(kind)} <= set(re.findall(r"`\w+`", row))
    folder = KINDS[kind][0].replace(".", "/")
    assert f"`{folder}/`" in row


def test_every_layer_and_recipe_stands_in_the_readme() -> None:
    assert all(f"`{layer}`" in README for layer in LAYERS)
    assert all(f"`{path.stem}`" in README for path in BUNDLED.glob("*.yaml"))


def test_the_readme_recipe_and_bundled_ones_are_valid(tmp_path: Path) -> None:
    text = README.partition("    name: chest\n")[2].partition("    medloom build")[0]
    recipe = tmp_path / "chest.yaml"
    recipe.write_text("name: chest\n" + "\n".join(line[4:] for line in text.splitlines()))
    names = [stage.name for stage in load_recipe(recipe).stages]
    assert names == ["ground", "measure", "retrieve", "caption", "verify"]
    for path in BUNDLED.glob("*.yaml"):
        places = [name for name, value in (yaml.safe_load(path.read_text()).get("vars") or {}).items() if value is None]
        loaded = load_recipe(path, [f"vars.{name}={tmp_path}" for name in places])
        assert loaded.about and loaded.left_out == ()


def test_every_column_is_documented() -> None:
    assert all(len(field.doc) > 2 for layer in LAYERS.values() for field in layer.fields)
