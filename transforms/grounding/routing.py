"""Which experts are asked about a picture, by rules that are data, and why the others are not.

The invariant: whom a picture is shown to follows from its rows and the rules alone, and every answer says which rule
picked which expert and why others were not asked. Nothing is fetched: an expert that lacks a package, weights or an
option is named with what to do, and what it lacks enters the key, so that the stage runs again once it is there.
Weights that are there and are others than the table says stop the build.

>>> router = open_router("expert", Routing())
>>> router.asked({"modality": "OP"}).said
'retinal vessels: nobody (wnet needs the weights lwnet-vessels, which are not here: medloom weights fetch …'

The rules are those of routing.yaml, which says what a rule may hold; a recipe may give a file or a mapping of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import ConfigError
from infra.keys import key
from infra.plugins import nearest, plugins, why_unavailable
from infra.storage import resolve
from infra.weights import check, named
from transforms.experts.expert import Expert
from transforms.options import checked
from transforms.vocabulary import modality
from transforms.vocabulary import table as modalities

FILE = Path(__file__).with_name("routing.yaml")
IMAGE_TYPE = "image_type/"

Row = Mapping[str, Any]
Options = Mapping[str, Mapping[str, Any]]


class Rule(BaseModel):
    """One rule: which pictures it holds for, and whom it asks. Routing.yaml says what each field means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: str = Field(min_length=1)
    finds: tuple[str, ...] = ()
    ndim: Literal[2, 3] = 2
    ask: tuple[str, ...] = Field(min_length=1)
    kinds: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    anatomy: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    image_types: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    stated: bool = False

    def holds(self, image: Row, image_type: str | None, labels: Sequence[str]) -> bool:
        """Whether it holds for a picture of these rows."""
        known = modality(image.get("modality"))
        if (self.kinds or self.modalities) and (
            known is None or not (known.kind in self.kinds or known.code in self.modalities)
        ):
            return False
        anatomy, view = (image.get("anatomy") or "").casefold(), (image.get("view") or "").casefold().split()
        return not (
            (self.stated and not anatomy)
            or (self.anatomy and anatomy and not any(word in anatomy for word in self.anatomy))
            or (self.views and view and view[0] not in self.views)
            or (self.image_types and image_type not in self.image_types)
            or (self.labels and not any(word in label for word in self.labels for label in labels))
        )


class Table(BaseModel):
    """A file of rules."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str = "1"
    sure: float = Field(0.9, ge=0, le=1)
    image_types: Mapping[str, str] = {}
    rules: tuple[Rule, ...] = Field(min_length=1)


class Routing(BaseModel):
    """How a recipe chooses experts under `experts: auto`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: str | Mapping[str, Any] | None = Field(
        None, exclude=True, description="rules of your own in place of transforms/grounding/routing.yaml: a file, or "
        "the mapping itself; they enter the key",
    )
    want: tuple[str, ...] = Field(
        (), description="only rules that find one of these (lung, cell, vessels …); empty: all"
    )
    rivals: int = Field(1, ge=1, description="how many experts of a rule are asked; more are compared with each other")


@dataclass(frozen=True)
class Asked:
    """Whom a picture is shown to."""

    experts: tuple[Expert, ...]
    image: Row
    """its row as the experts are shown it: of unknown modality, with the one that it is taken for"""
    said: str | None
    """what every rule that holds did, and why; None: no rules, the recipe named the experts"""


@dataclass(frozen=True)
class Router:
    """Rules, the experts that are here, and what the others lack."""

    table: Table
    rules: tuple[Rule, ...]
    experts: Mapping[str, Expert]
    lacking: Mapping[str, str]
    """name -> why it cannot be asked, and what to do"""
    rivals: int

    @property
    def ingredients(self) -> Mapping[str, str]:
        """What decides the choice: the rules, who is here, and what the others lack."""
        return {
            "routing": key(self.table.model_dump(mode="json")),
            **{f"expert:{name}": expert.identity for name, expert in self.experts.items()},
            **{f"expert:{name}": key("lacking", reason) for name, reason in self.lacking.items()},
        }

    def asked(self, image: Row, checks: Sequence[Row] = (), labels: Sequence[Row] = ()) -> Asked:
        """Whom a picture is shown to: its row of `images`, and its rows of `checks` and `labels`."""
        best = _best_type(checks)
        taken, told = self._taken(image, best)
        present = [row["name"].casefold() for row in labels if row["value"] == "present"]
        rules = [rule for rule in self.rules if rule.holds(taken, best[0] if best else None, present)]
        experts: dict[str, Expert] = {}
        said = [told] if told else []
        for rule in rules:
            chosen, others = self._of_rule(rule, taken)
            experts |= chosen
            why = f" ({'; '.join(others)})" if others else ""
            said.append(f"{rule.rule}: {'asked ' + ', '.join(chosen) if chosen else 'nobody'}{why}")
        if not rules:
            said.append(self._nobody(taken))
        return Asked(tuple(experts.values()), taken, "; ".join(said))

    def _of_rule(self, rule: Rule, image: Row) -> tuple[dict[str, Expert], list[str]]:
        chosen: dict[str, Expert] = {}
        others = []
        for name in rule.ask:
            reason = self.lacking.get(name)
            if reason is None:
                reason = _refusal(self.experts[name], image)
            if reason is None and len(chosen) >= self.rivals:
                others.append(f"{name} was not needed")
            elif reason is None:
                chosen[name] = self.experts[name]
            else:
                others.append(f"{name} {reason}")
        return chosen, others

    def _taken(self, image: Row, best: tuple[str, float] | None) -> tuple[Row, str | None]:
        if modality(image.get("modality")) is not None or best is None or best[1] < self.table.sure:
            return image, None
        code = self.table.image_types.get(best[0])
        if code is None:
            return image, None
        return {**image, "modality": code}, f"taken for {code}, as image_type/{best[0]} is {best[1]:.2f}"

    def _nobody(self, image: Row) -> str:
        known = modality(image.get("modality"))
        what = f"no rule asks an expert about {known.name}" if known else "no rule holds: the modality is unknown"
        facts = [f"{name} {image[name]}" for name in ("anatomy", "view") if known and image.get(name)]
        return what + (f" ({', '.join(facts)})" if facts else "")


def open_router(kind: str, routing: Routing, options: Options | None = None) -> Router:
    """The router of a stage: `kind` is expert (its rules of ndim 2) or volume_expert (those of ndim 3).

    Raises ConfigError for rules that cannot be read, an unknown expert, options that are wrong or given for an expert
    that no rule names, a wish that no rule fulfils, and weights that are there but are others.
    """
    table = _bundled() if routing.rules is None else _own(routing.rules)
    ndim = 2 if kind == "expert" else 3
    finds = {word for rule in table.rules for word in rule.finds}
    for word in routing.want:
        if word not in finds:
            raise ConfigError(f"want: no rule finds {word!r}{nearest(word, sorted(finds))}; they find {_list(finds)}")
    rules = tuple(
        rule for rule in table.rules if rule.ndim == ndim and (not routing.want or {*routing.want} & {*rule.finds})
    )
    names = list(dict.fromkeys(name for rule in table.rules if rule.ndim == ndim for name in rule.ask))
    options = options or {}
    if strange := [name for name in options if name not in names]:
        raise ConfigError(
            f"options are given for {strange[0]!r}{nearest(strange[0], names)}, which no rule of ndim {ndim} asks; "
            f"they ask {_list(names)}"
        )
    experts: dict[str, Expert] = {}
    lacking: dict[str, str] = {}
    for name in dict.fromkeys(name for rule in rules for name in rule.ask):
        found = _opened(kind, name, options.get(name, {}))
        if isinstance(found, str):
            lacking[name] = found
        else:
            experts[name] = found
    return Router(table, rules, experts, lacking, routing.rivals)


def _opened(kind: str, name: str, options: Mapping[str, Any]) -> Expert | str:
    """An expert, or what it lacks. Raises ConfigError for one that is unknown, or whose weights are others."""
    if name not in plugins(kind):
        raise ConfigError(f"a rule asks {name!r}{nearest(name, plugins(kind))}, which is no {kind}; `medloom plugins`")
    module = plugins(kind)[name]
    fields = module.Params.model_fields
    unset = [field for field, about in fields.items() if about.is_required() and field not in options]
    if unset:
        return f"needs the option {unset[0]}: set options: {{{name}: {{{unset[0]}: …}}}}"
    expert = Expert(kind, name, checked(kind, module, options))
    card_of = getattr(module, "card", None)  # expert.card asks for a module that can run
    absent = list(_absent((card_of(expert.params) if card_of else module.CARD).weights))
    try:
        unavailable = why_unavailable(module)
        if unavailable is None:
            expert.identity  # noqa: B018  a property that hashes the weights
            return expert
    except ConfigError:
        if not absent:
            raise
        unavailable = ""
    if absent:  # our own words: those of infra/weights.py name a folder of this machine
        return f"needs the weights {absent[0]}, which are not here: medloom weights fetch {absent[0]}"
    return unavailable


def _absent(names: Sequence[str]) -> Iterator[str]:
    """The weights of which a file is not here. Raises ConfigError where one is here and is another."""
    for name in names:
        here = [file for file in named(name).files if (named(name).folder / file.name).is_file()]
        if len(here) < len(named(name).files):
            yield name
        elif problems := check(name):
            raise ConfigError(
                f"the weights {name} are not those of weights.yaml ({'; '.join(problems)}); get them again with "
                f"`medloom weights fetch {name}`"
            )


def _refusal(expert: Expert, image: Row) -> str | None:
    asked = getattr(expert.module, "applies", None)
    reason = expert.card.why_not(image) if asked is None else asked(image)
    return None if reason is None else str(reason)


def _best_type(checks: Sequence[Row]) -> tuple[str, float] | None:
    """The class that the stage image_type thinks best, and its score."""
    for row in checks:
        if row["check"].startswith(IMAGE_TYPE) and row["verdict"] == "pass":
            return row["check"].removeprefix(IMAGE_TYPE), float(row["value"])
    return None


@cache
def _bundled() -> Table:
    return _read(yaml.safe_load(FILE.read_text(encoding="utf-8")), FILE.name)


def _own(rules: str | Mapping[str, Any]) -> Table:
    if not isinstance(rules, str):
        return _read(rules, "routing")
    path = Path(resolve(rules))
    try:
        return _read(yaml.safe_load(path.read_text(encoding="utf-8")), rules)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"routing: {rules} cannot be read: {error}") from None


def _read(data: Any, name: str) -> Table:
    try:
        table = Table.model_validate(data)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{name}: not a file of routing rules: {wrong}") from None
    for code in (*(code for rule in table.rules for code in rule.modalities), *table.image_types.values()):
        if code not in modalities():
            raise ConfigError(f"{name}: unknown modality {code!r}; transforms/vocabulary.yaml lists them")
    return table


def _list(words: Any) -> str:
    return ", ".join(sorted(words))
