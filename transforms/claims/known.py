"""What the rows of one sample say, in the form in which claims are looked up.

The invariant: what is known carries the evidence id of its row and whether it is present, absent or uncertain there;
orders that stand in a source's text are not taken for knowledge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transforms.claims.lexicon import Concept, Kind, Lexicon, Words, spots
from transforms.claims.polarity import Polarity, polarity
from transforms.claims.problems import is_order
from transforms.claims.splitting import Sentence, name_words, number, sentences
from transforms.facts import HARMONISED, Facts, RegionFact
from transforms.regions import relation
from transforms.stage import SampleRows
from transforms.vocabulary import phrase

STATED: tuple[Polarity, ...] = ("present", "absent", "uncertain")


@dataclass(frozen=True)
class Entity:
    """A thing that a row states."""

    concept: Concept
    bears: frozenset[str]
    """keys that it bears out"""
    polarity: Polarity
    evidence: str
    region: RegionFact | None = None

    @property
    def side(self) -> str | None:
        """The patient's side, as its name has it, else as it lies; None: unknown or about the midline."""
        if self.concept.side:
            return self.concept.side
        return self.region.side if self.region is not None and self.region.side != "midline" else None


class Known:
    """The facts of a sample, indexed. Cheap to make; what only some texts ask for is made when asked."""

    def __init__(self, facts: Facts, sample: SampleRows, words: Lexicon) -> None:
        self.facts, self.words = facts, words
        self.rows = {row["roi_id"]: row for row in sample.rows("rois")}
        self.names: dict[Words, Concept] = {}
        self.bag: dict[str, dict[Polarity, str]] = {}
        """stem -> how it stands in the rows -> evidence"""
        self.entities = [*self._regions(), *self._labels(sample), *self._image()]
        self.entities += self._originals()
        self.attributes = [label for label in facts.labels if label.value not in STATED]
        self._pairs: dict[tuple[str, str], str | None] = {}

    def _name(self, name: str, kind: Kind) -> Concept:
        concept = self.words.concept(name, kind)
        words = name_words(name)
        if words:
            self.names[words] = concept
            if concept.side and len(words) > 1:
                bare = tuple(word for word in words if word != concept.side)
                self.names.setdefault(bare, Concept(concept.key, concept.kind))
        return concept

    def _say(self, words: Iterable[str], how: Polarity, evidence: str) -> None:
        for word in words:
            self.bag.setdefault(word, {}).setdefault(how, evidence)

    def _regions(self) -> Iterable[Entity]:
        for region in self.facts.regions:
            lettered = region.role == "panel" and len(region.label) <= 2
            name = f"panel {region.label}" if lettered else region.label
            concept = self._name(name, "anatomy" if region.role == "organ" else "finding")
            roles = self.words.data["roles"].get(region.role, [])
            evidence = f"roi:{region.id}"
            self._say([*name_words(region.label), *name_words(region.expert.split("@")[0])], "present", evidence)
            yield Entity(concept, self.words.closure(concept.key) | set(roles), "present", evidence, region)

    def _labels(self, sample: SampleRows) -> Iterable[Entity]:
        stated = {label.id for label in self.facts.labels}
        for row in sample.rows("labels"):
            of = row["origin"].removeprefix(HARMONISED) if row["origin"].startswith(HARMONISED) else row["label_id"]
            if of not in stated and not of.startswith("roi:"):
                continue
            name, evidence = phrase(row["name"]), f"label:{row['label_id']}"
            if row["value"] in STATED:
                concept = self._name(name, "finding")
                yield Entity(concept, self.words.closure(concept.key), row["value"], evidence)
                self._say(name_words(name), row["value"], evidence)
            else:
                self._say([*name_words(name), *name_words(row["value"])], "present", evidence)

    def _image(self) -> Iterable[Entity]:
        facts = self.facts
        if facts.anatomy:
            concept = self._name(facts.anatomy, "anatomy")
            yield Entity(concept, self.words.closure(concept.key), "present", "image:anatomy")
        for column, value in (
            ("anatomy", facts.anatomy),
            ("view", facts.view),
            ("modality", facts.modality_name),
            ("modality", facts.modality_image),
            ("modality", facts.modality),
        ):
            self._say(name_words(value or ""), "present", f"image:{column}")

    def _originals(self) -> Iterable[Entity]:
        """What the source's own words state, with their denials."""
        maps = (self.names, self.words.concepts)
        found: dict[tuple[str, str | None, Polarity], Entity] = {}
        for text_id, _, text in self.facts.originals:
            evidence = f"text:{text_id}"
            for sentence in sentences(text):
                if is_order(sentence.text):
                    continue
                said, triggers = polarity(sentence.words)
                for n, word in enumerate(sentence.stems):
                    if n not in triggers:
                        self.bag.setdefault(word, {}).setdefault(said[n], evidence)
                for place, concept in spots(sentence, maps):
                    before = sentence.words[place[0] - 1] if place[0] else ""
                    side = before if before in ("left", "right") else concept.side
                    made = Concept(concept.key, concept.kind, side)
                    entity = Entity(made, self.words.closure(concept.key), said[place[0]], evidence)
                    found.setdefault((concept.key, side, said[place[0]]), entity)
        return found.values()

    def matching(self, concept: Concept) -> list[Entity]:
        """The entities that bear a concept out, whatever their polarity."""
        return [entity for entity in self.entities if concept.key in entity.bears]

    def relation(self, a: RegionFact, b: RegionFact) -> str | None:
        """As transforms.regions.relation, once a pair."""
        pair = a.id, b.id
        if pair not in self._pairs:
            self._pairs[pair] = relation(self.rows[a.id], self.rows[b.id])
        return self._pairs[pair]

    @cached_property
    def by_words(self) -> Mapping[str, list[tuple[str, tuple[str, ...]]]]:
        """What measures let be said, in lower case -> (evidence, the regions it is said of)."""
        found: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        holders: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [((r.id,), r.measures) for r in self.facts.regions]
        holders += [((p.a, p.b), p.measures) for p in (*self.facts.relations, *self.facts.neighbours)]
        for ids, measures in holders:
            for fact in measures.values():
                if fact.words:
                    found.setdefault(fact.words.lower(), []).append((fact.evidence, ids))
        return found

    @cached_property
    def stated_numbers(self) -> Mapping[float, str]:
        """Numbers in the words of rows -> evidence; passages do not count here."""
        facts = self.facts
        words = [(facts.anatomy, "image:anatomy"), (facts.view, "image:view")]
        words += [(region.label, f"roi:{region.id}") for region in facts.regions]
        words += [(part, f"label:{label.id}") for label in facts.labels for part in (label.name, label.value)]
        words += [(text, f"text:{text_id}") for text_id, _, text in facts.originals]
        found: dict[float, str] = {}
        for text, evidence in words:
            for token in Sentence(text or "").tokens:
                value = number(token.word)
                if value is not None:
                    found.setdefault(value, evidence)
            for digits in re.findall(r"\d+(?:\.\d+)?", text or ""):
                found.setdefault(float(digits), evidence)
        return found

    @cached_property
    def plain_numbers(self) -> Mapping[float, str]:
        """Numbers of the image's geometry and of measures -> evidence."""
        facts = self.facts
        found: dict[float, str] = {}
        for column, values in (
            ("width", (facts.width,)),
            ("height", (facts.height,)),
            ("slice_index", (facts.slice_index,)),
            ("window", facts.window or ()),
            ("pixel_spacing", facts.pixel_spacing or ()),
        ):
            for value in values:
                if value is not None:
                    found.setdefault(abs(float(value)), f"image:{column}")
        return found
