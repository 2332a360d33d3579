"""The card of an expert: what it finds, in which pictures, how far it may be trusted, and under which licences.

The invariant: what a card says is enough to choose an expert and to judge its regions without running it; an expert
finds only labels that its card lists, and looks only at what its card names.

>>> CARD = Card(family="classical", trust="box", kinds=("radiology",), classes=(Class("imaged body", "body"),))
>>> CARD.why_not({"modality": "US"})
'looks at radiology, not at ultrasound'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transforms.vocabulary import listed, modality

Family = Literal["classical", "label_map", "text", "prompt", "detector"]
Trust = Literal["boundary", "box", "presence"]


@dataclass(frozen=True)
class Class:
    """One thing that an expert finds."""

    label: str
    role: str
    """organ, lesion, cell, body, device, text, panel or region"""
    ontology_id: str | None = None
    value: int | None = None
    """its value in a label map"""


@dataclass(frozen=True)
class Card:
    """What is known of an expert before it runs."""

    family: Family
    trust: Trust
    """how far an outline may be believed: boundary (area and shape), box (its place) or presence (that it is there)"""
    classes: tuple[Class, ...] = ()
    """what it finds; (): whatever it is asked for"""
    kinds: tuple[str, ...] = ()
    """kinds of modality (vocabulary.yaml: radiology, microscopy …) it looks at; (): any that `modalities` names"""
    modalities: tuple[str, ...] = ()
    """codes of modalities; (): all of its kinds"""
    anatomy: tuple[str, ...] = ()
    """words one of which `images.anatomy` must hold, where it is known; (): any"""
    ndim: Literal[2, 3] = 2
    prompts: tuple[str, ...] = ()
    """what it may be asked with: text, box, point"""
    value_space: Literal["rgb8", "grey8", "HU", "raw"] = "grey8"
    licence_code: str = "as medloom"
    licence_weights: str | None = None
    """None: it has no weights"""
    commercial: bool | None = True
    """whether its regions may be used commercially; None: unknown"""
    weights: tuple[str, ...] = ()
    """names in infra/weights.yaml"""
    cpus: float = 1
    gpus: float = 0
    memory_gb: float = 1

    def why_not(self, image: Mapping[str, Any]) -> str | None:
        """Why it does not look at an image, from its row of `images`; None: it does."""
        named = modality(image.get("modality"))
        if named is None:
            return "the modality is unknown"
        if self.modalities and named.code not in self.modalities:
            return f"looks at {listed([*self.modalities])}, not at {named.name}"
        if self.kinds and named.kind not in self.kinds:
            return f"looks at {listed([*self.kinds])}, not at {named.name}"
        anatomy = (image.get("anatomy") or "").casefold()
        if self.anatomy and anatomy and not any(word in anatomy for word in self.anatomy):
            return f"looks at {listed([*self.anatomy])}, not at {image['anatomy']}"
        return None
