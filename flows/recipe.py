"""Recipes: a YAML file that says everything needed to build a dataset again.

    name: demo
    sources:
      - name: ct
        use: dicom              # a connector plug-in; its own parameters stand beside
        root: pkg:pydicom/data/test_files
        ingest: {max_side: 1024}    # how items become samples; `ingest:` beside `sources:` holds for all of them
    stages:
      - use: ground             # a stage plug-in, likewise
      - use: caption
        captioner: template

Unknown keys are refused with the nearest valid name. `${NAME}` is replaced by the value of NAME under `vars:`; a source
that needs a variable without a value is left out, and the build says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import ConfigError
from infra.plugins import load, nearest
from transforms.decoded import IngestParams
from transforms.ingest import SourceTerms
from transforms.scans.volumes import check

BUNDLED = Path(__file__).parent / "recipes"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(SourceTerms):
    """One source: a connector, its parameters, and the terms it comes under."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    use: str
    """the connector plug-in"""
    params: Any
    """the connector's parameters"""
    policy: Literal["local", "approved", "any"] = "local"
    """which model endpoints the source's rows may reach"""
    ingest: IngestParams = IngestParams()

    @property
    def terms(self) -> SourceTerms:
        """The terms alone."""
        return SourceTerms.model_validate(self.model_dump(include=set(SourceTerms.model_fields)))


class StageChoice(_Section):
    """One stage of the chain and its parameters."""

    use: str
    name: str
    params: Any


class Corpus(_Section):
    """One corpus of a knowledge base."""

    use: str
    params: Any


class Knowledge(_Section):
    """A knowledge base that stages may retrieve from."""

    name: str
    model: str | None = None
    """address of the embedding model; None: the one that ships with medloom[embed]"""
    corpora: tuple[Corpus, ...]


class Checks(_Section):
    """When a build is not good enough."""

    max_failed: float = Field(0.5, ge=0, le=1)
    """share of failed rows above which a partition's unit is quarantined"""
    warn_only: tuple[str, ...] = ()
    """expectations that may fail without stopping the snapshot"""


class Recipe(_Section):
    """A whole recipe, checked; `resolved` is what the build record keeps."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    about: str = ""
    sources: tuple[Source, ...]
    stages: tuple[StageChoice, ...] = ()
    knowledge: tuple[Knowledge, ...] = ()
    checks: Checks = Checks()
    left_out: tuple[str, ...] = ()
    """sources whose variables have no value, with the reason"""

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return self.model_dump(mode="json")


def find_recipe(name: str) -> Path:
    """A recipe by path, or a bundled one by name."""
    path = Path(name)
    if path.exists():
        return path
    bundled = BUNDLED / f"{name}.yaml"
    if bundled.exists():
        return bundled
    known = [p.stem for p in BUNDLED.glob("*.yaml")]
    raise ConfigError(f"no recipe at {name}{nearest(name, known)}; bundled ones: {', '.join(sorted(known))}")


def load_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read, change (`--set key=value`) and check a recipe. ConfigError names the place and the valid keys."""
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with `name:` and `sources:`")
    for change in changes:
        _set(raw, change)
    base = path.resolve().parent
    values = dict(raw.pop("vars", None) or {})
    common = raw.pop("ingest", None) or {}
    sources, left_out = [], []
    for entry in raw.pop("sources", None) or []:
        filled, missing = _fill({**entry, "ingest": {**common, **(entry.get("ingest") or {})}}, values)
        if missing:
            left_out.append(f"{entry.get('name')}: {', '.join(missing)} not set (--set vars.{missing[0]}=…)")
        else:
            sources.append(_source(filled, base))
    rest, missing = _fill(raw, values)
    if missing:
        raise ConfigError(f"{path}: {', '.join(missing)} has no value; --set vars.{missing[0]}=…")
    if not sources:
        raise ConfigError(f"{path}: no source to build from" + "".join(f"\n  left out: {why}" for why in left_out))
    rest["stages"] = [_stage(entry, base) for entry in rest.get("stages") or []]
    rest["knowledge"] = [_knowledge(entry, base) for entry in rest.get("knowledge") or []]
    recipe: Recipe = checked(Recipe, {**rest, "sources": sources, "left_out": left_out}, str(path))
    for what in ("sources", "stages", "knowledge"):
        names = [entry.name for entry in getattr(recipe, what)]
        if twice := {n for n in names if names.count(n) > 1}:
            raise ConfigError(f"{path}: {what} need different names, {min(twice)!r} stands twice; give one a `name:`")
    return recipe


def checked(model: type[BaseModel], data: Mapping[str, Any], where: str) -> Any:
    """`model` from data, or a ConfigError that names each wrong key and the nearest valid one."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            place = ".".join(str(p) for p in problem["loc"])
            if problem["type"] == "extra_forbidden":
                known = _keys_at(model, problem["loc"])
                word = str(problem["loc"][-1])
                lines.append(f"{place}: unknown key{nearest(word, known)}; valid: {', '.join(known)}")
            else:
                lines.append(f"{place}: {problem['msg']}")
        raise ConfigError(f"{where}:\n  " + "\n  ".join(lines)) from None


def _keys_at(model: Any, location: Sequence[int | str]) -> list[str]:
    """Valid keys beside the last part of a location."""
    for part in location[:-1]:
        if isinstance(part, int) or not hasattr(model, "model_fields"):
            continue
        model = model.model_fields[part].annotation
        model = next((a for a in getattr(model, "__args__", ()) if hasattr(a, "model_fields")), model)
    return [name for name in getattr(model, "model_fields", {})]


def _split(entry: Mapping[str, Any], own: type[BaseModel], kind: str, base: Path | None) -> dict[str, Any]:
    """Part an entry's keys in the section's own and the plug-in's, which it checks."""
    use = entry.get("use")
    if not isinstance(use, str):
        raise ConfigError(f"{kind} {entry.get('name', entry)!r} needs `use:` and the name of a plug-in")
    plugin = load(kind, use).Params
    mine = {k: v for k, v in entry.items() if k in own.model_fields and k != "params"}
    theirs = {k: v for k, v in entry.items() if k not in mine}
    theirs = _placed(theirs, base)
    if isinstance(sets := theirs.get("sets"), list):
        theirs["sets"] = [_placed(one, base) if isinstance(one, dict) else one for one in sets]
    known = [*own.model_fields, *plugin.model_fields]
    for word in theirs:
        if word not in plugin.model_fields:
            valid = ", ".join(k for k in known if k != "params")
            raise ConfigError(f"{kind} {use!r}: unknown key {word!r}{nearest(word, known)}; valid: {valid}")
    return {**mine, "params": checked(plugin, theirs, f"{kind} {entry.get('name', use)!r}")}


def _placed(entry: Mapping[str, Any], base: Path | None) -> dict[str, Any]:
    """An entry whose paths are taken from the recipe's folder."""
    placed = dict(entry)
    for word in ("root", "path", "map", "known_issues"):
        place = placed.get(word)
        if base is not None and isinstance(place, str) and not place.startswith("pkg:") and "://" not in place:
            placed[word] = str((base / Path(place).expanduser()).resolve())
    return placed


def _source(entry: Mapping[str, Any], base: Path) -> Source:
    where = f"source {entry.get('name')!r}"
    source: Source = checked(Source, _split(entry, Source, "connector", base), where)
    check(source.ingest)
    return source


def _stage(entry: Mapping[str, Any], base: Path) -> dict[str, Any]:
    return {"name": entry.get("use"), **_split(entry, StageChoice, "stage", base)}


def _knowledge(entry: Mapping[str, Any], base: Path) -> dict[str, Any]:
    return {**entry, "corpora": [_split(corpus, Corpus, "corpus", base) for corpus in entry.get("corpora") or []]}


_VARIABLE = re.compile(r"\$\{(\w+)\}")


def _fill(value: Any, values: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Replace ${NAME} everywhere inside; returns the result and the names without a value."""
    missing: list[str] = []

    def fill(inner: Any) -> Any:
        if isinstance(inner, str):
            for name in _VARIABLE.findall(inner):
                if values.get(name) is None:
                    missing.append(name)
            return _VARIABLE.sub(lambda found: str(values.get(found[1])), inner)
        if isinstance(inner, dict):
            return {k: fill(v) for k, v in inner.items()}
        return [fill(v) for v in inner] if isinstance(inner, list) else inner

    return fill(value), missing


def _set(raw: dict[str, Any], change: str) -> None:
    """Apply one key=value; entries of a list are addressed by their name: stages.caption.captioner=llm."""
    place, separator, text = change.partition("=")
    if not separator:
        raise ConfigError(f"--set {change}: write key=value, such as stages.caption.captioner=template")
    target: Any = raw
    *path, last = place.split(".")
    for part in path:
        if isinstance(target, list):
            named = {entry.get("name", entry.get("use")): entry for entry in target}
            if part not in named:
                raise ConfigError(f"--set {place}: there is no {part!r}{nearest(part, named)}")
            target = named[part]
        else:
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
    if not isinstance(target, dict):
        raise ConfigError(f"--set {place}: {place.rpartition('.')[0]} has no keys")
    target[last] = yaml.safe_load(text)
