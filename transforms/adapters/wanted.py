"""What a recipe asks of a model that it names: which pictures it is shown, and what its classes are called here.

The invariant: labels and roles come from the recipe alone, so a model cannot bring a word of its own into a dataset; a
class that the recipe does not name is left out.

>>> class_values(model_folder("/models/lungs"), {"LUNG-L": Named(label="lung_left", role="organ")})
{1: Named(label='lung_left', role='organ', ontology_id=None)}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from infra.errors import ConfigError, Dropped
from infra.plugins import nearest
from transforms.adapters.folders import ModelFolder, model_folder
from transforms.experts.card import Card, Class
from transforms.knowledge.embedding import Device
from transforms.vocabulary import table

Role = Literal["organ", "lesion", "cell", "body", "device", "text", "panel", "region"]


class Named(BaseModel):
    """What a thing that a model finds is called in the dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(min_length=1, description="name of the region")
    role: Role = Field("region", description="organ, lesion, cell, body, device, text, panel or region")
    ontology_id: str | None = Field(None, description="its id in an ontology, such as UBERON:0002048")

    def as_class(self, value: int | None = None) -> Class:
        return Class(self.label, self.role, self.ontology_id, value)


class Shown(BaseModel):
    """Which pictures a model is shown, and under which terms its weights stand."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: tuple[str, ...] = Field((), description="kinds of modality it is shown (radiology …); empty: any")
    modalities: tuple[str, ...] = Field((), description="codes of modalities it is shown (CT, DX …); empty: any")
    anatomy: tuple[str, ...] = Field(
        (), description="words one of which the picture's anatomy must hold, where it is known; empty: any"
    )
    licence: str | None = Field(None, description="licence of the weights, as an SPDX code; null: unknown")
    commercial: bool | None = Field(None, description="whether its regions may be used commercially; null: unknown")

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        known = sorted({entry.kind for entry in table().values()})
        for kind in kinds:
            if kind not in known:
                raise ValueError(f"there is no kind {kind!r}{nearest(kind, known)}; there are {', '.join(known)}")
        return kinds

    @field_validator("anatomy")
    @classmethod
    def _folded(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word.casefold() for word in words)


class ModelParams(Shown):
    """What every expert that runs a model's folder takes."""

    model: str = Field(
        exclude=True, description="folder of the model, or pkg:PACKAGE/PATH; ~ and $VARIABLES are expanded"
    )
    device: Device = Field("cpu", description="cpu or cuda")
    half: bool = Field(False, description="16-bit numbers: half the memory, on cuda only")
    batch: int = Field(
        8, ge=1, description="prompts, boxes or windows that go through the model at a time; halved when memory runs "
        "out"
    )

    @model_validator(mode="after")
    def _half_on_cuda(self) -> ModelParams:
        if self.half and self.device != "cuda":
            raise ValueError("half is for device cuda; processors are slower with it")
        return self


class ClassParams(ModelParams):
    """What an expert takes whose model has classes of its own."""

    labels: Mapping[str, Named] = Field(
        min_length=1, description="the model's class (its name in config.json, or its number) -> label and role"
    )


def class_ingredients(params: ClassParams) -> Mapping[str, str]:
    """The hash of the model. Raises ConfigError for a folder or a class that is not there."""
    folder = model_folder(params.model)
    class_values(folder, params.labels)
    return {"model": folder.sha256}


def card_of(card: Card, params: Shown, classes: Iterable[Class], **more: Any) -> Card:
    """The card of a plug-in for these parameters; `more` are further fields that change."""
    return replace(
        card, classes=tuple(classes), kinds=params.kinds, modalities=params.modalities, anatomy=params.anatomy,
        licence_weights=params.licence or card.licence_weights, commercial=params.commercial,
        gpus=1 if getattr(params, "device", "cpu") == "cuda" else 0, **more,
    )


def refuse_others(card: Card, image: Mapping[str, Any]) -> None:
    """Raises Dropped for a picture that the card does not name. One of unknown modality passes where any would."""
    anything = not (card.kinds or card.modalities)
    if reason := card.why_not({**image, "modality": image.get("modality") or ("other" if anything else None)}):
        raise Dropped("NOT_ON_CARD", reason)


def class_values(folder: ModelFolder, names: Mapping[str, Named]) -> dict[int, Named]:
    """As `named_classes`, by the names that the folder's config.json gives its classes (id2label)."""
    return named_classes(folder.address, folder.labels, names)


def named_classes(where: str, labels: Mapping[int, str], names: Mapping[str, Named]) -> dict[int, Named]:
    """Class number of the model -> what the recipe calls it, in order of number.

    `labels` are the model's classes, `names` are by the model's own names or by its numbers. Raises ConfigError, which
    begins with `where`, for one that the model does not have, or that is named twice.
    """
    numbers = {name: number for number, name in labels.items()} | {str(n): n for n in labels}
    found: dict[int, Named] = {}
    for name, named in names.items():
        if name not in numbers:
            some = ", ".join(list(labels.values())[:12])
            raise ConfigError(
                f"{where}: the model has no class {name!r}{nearest(name, numbers)}; among its "
                f"{len(labels)} are {some}"
            )
        if numbers[name] in found:
            raise ConfigError(f"{where}: class {numbers[name]} is named twice, once as {name!r}; take one out")
        found[numbers[name]] = named
    return dict(sorted(found.items()))
