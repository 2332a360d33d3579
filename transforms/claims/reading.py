"""A sentence as it is being read: its names, what is denied, which words are accounted for, of what it speaks.

The invariant: every claim is tied to words of the sentence, and each word is accounted for once all rules have read
it: by a claim, or because it claims nothing.

Of what is a place, a size or a look said? Of the last region named before it in the sentence, or the row of regions
("the liver and the spleen"), objects of a preposition or relation left out; else of the regions the text is about; else
of what the sentence before spoke of; else of the first region named after it; else of any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from transforms.claims.form import Claim, Verdict
from transforms.claims.known import Entity, Known
from transforms.claims.lexicon import Concept, spots
from transforms.claims.polarity import Polarity, polarity
from transforms.claims.splitting import Sentence
from transforms.facts import RegionFact

_SIDES = ("left", "right")
_WITHIN = frozenset({"of", "in", "within", "inside", "on", "at", "near", "to", "from", "than", "for"})
_ARTICLES = frozenset(
    {"the", "a", "an", "this", "that", "one", "its", "patient's", "patient", "another", "regions", "region", "labelled"}
)
_JOINS = frozenset({",", "and", "or", "the", "a", "an", "&", "as", "well", "both", "region", "regions", "labelled"})


@dataclass(frozen=True)
class Mention:
    """A name in a sentence."""

    tokens: range
    concept: Concept
    sides: frozenset[str]
    polarity: Polarity
    entities: tuple[Entity, ...]
    """what it can stand for, whatever their polarity"""
    regions: tuple[RegionFact, ...]

    @property
    def start(self) -> int:
        return self.tokens[0]

    @property
    def stop(self) -> int:
        return self.tokens[-1] + 1


Subject = tuple[str, tuple[RegionFact, ...]]
"""a name, and the regions it can stand for"""


@dataclass
class Reading:
    """The state of reading one sentence."""

    sentence: Sentence
    known: Known
    spoken: tuple[RegionFact, ...]
    """the regions that the text is about"""
    before: tuple[Subject, ...] = ()
    """what the sentence before spoke of"""
    claims: list[tuple[int, Claim]] = field(default_factory=list)
    explained: set[int] = field(default_factory=set)
    mentions: list[Mention] = field(default_factory=list)
    amounts: list[tuple[range, str, re.Match[str]]] = field(default_factory=list)
    looks: list[tuple[range, str]] = field(default_factory=list)
    places: list[tuple[range, str | None, str | None]] = field(default_factory=list)
    fitting: dict[tuple[str, ...], set[str]] = field(default_factory=dict)
    """ids of a subject's regions -> those of which all that was said so far is true"""
    objects: set[int] = field(default_factory=set)
    """places in `mentions` that are objects of a relation"""

    def __post_init__(self) -> None:
        self.polarity, self.triggers = polarity(self.sentence.words)

    @property
    def words(self) -> Sequence[str]:
        return self.sentence.words

    def open(self, tokens: Iterable[int]) -> bool:
        """Whether none of these words is accounted for yet."""
        return not any(n in self.explained for n in tokens)

    def explain(self, tokens: Iterable[int]) -> None:
        self.explained.update(tokens)

    def claim(
        self, tokens: range, kind: str, verdict: Verdict, evidence: Iterable[str] = (), reason: str | None = None
    ) -> None:
        """Note a claim and account for its words."""
        said = self.sentence.span(tokens)
        if verdict != "supported" and reason is None:
            reason = f'no row says "{said}"'
        made = Claim(said, kind, verdict, tuple(dict.fromkeys(evidence)), None if verdict == "supported" else reason)
        self.claims.append((tokens[0] if tokens else 0, made))
        self.explain(tokens)

    def find_mentions(self) -> None:
        """Names in what is not accounted for; a side that stands before one belongs to it."""
        maps = (self.known.names, self.known.words.concepts)
        found = list(spots(self.sentence, maps))
        own = {n for tokens, concept in found if concept.key == "normal" for n in tokens if n in self.triggers}
        if own:  # the "no" of "no finding" denies nothing else
            self.polarity, self.triggers = polarity(["_" if n in own else w for n, w in enumerate(self.words)])
        for tokens, concept in found:
            if not self.open(tokens):
                continue
            before = self._sides_before(tokens[0])
            sides = frozenset(self.words[n] for n in before if self.words[n] in _SIDES)
            if any(self.words[n] in ("both", "bilateral") for n in before):
                sides = frozenset(_SIDES)
            sides = sides or frozenset([concept.side] if concept.side else [])
            whole = range(before[0] if before else tokens[0], tokens[-1] + 1)
            entities = tuple(self.known.matching(concept))
            regions = _of_side([e for e in entities if e.region is not None], sides)
            mine = tuple(region for region in regions if region in self.spoken)
            self.mentions.append(Mention(whole, concept, sides, self._how(whole, concept), entities, mine or regions))
            self.explain(whole)

    def _sides_before(self, start: int) -> range:
        """left | right | left and right | both | bilateral | left-sided, just before a name."""
        first = start
        while (
            first > 0
            and first - 1 not in self.explained
            and (
                self.words[first - 1] in (*_SIDES, "both", "bilateral", "sided", "-")
                or (
                    self.words[first - 1] in ("and", "or")
                    and first > 1
                    and self.words[first - 2] in _SIDES
                    and first < start
                )
            )
        ):
            first -= 1
        return range(first, start)

    def _how(self, tokens: range, concept: Concept) -> Polarity:
        """A finding is denied anywhere within a denial's reach, an organ only close to it: "no mass in the liver"."""
        said = self.polarity[tokens[-1]]
        if said == "present" or concept.kind == "finding" or concept.key == "normal":
            return said
        behind = [n for n in range(max(0, tokens[0] - 4), tokens[0])]
        close = any(n in self.triggers for n in behind)
        fenced = any(self.words[n] in _WITHIN and n not in self.triggers for n in behind)
        ahead = any(n in self.triggers for n in range(tokens[-1] + 1, min(len(self.words), tokens[-1] + 6)))
        findings = any(m.concept.kind == "finding" and m.polarity == said for m in self.mentions)
        return said if (close and not fenced) or (ahead and not fenced and not findings) else "present"

    def is_object(self, n: int) -> bool:
        """Whether the n-th mention stands behind a preposition or a relation, with a region named before it."""
        if n in self.objects:
            return True
        mention = self.mentions[n]
        if not any(m.regions for m in self.mentions[:n]):
            return False
        at = mention.start - 1
        while at >= 0 and self.words[at] in _ARTICLES:
            at -= 1
        return at >= 0 and self.words[at] in _WITHIN

    def subjects(self, at: int) -> tuple[Subject, ...]:
        """Of what something at this token is said; () means of any."""
        heads = [n for n, m in enumerate(self.mentions) if m.regions and not self.is_object(n)]
        behind = [n for n in heads if self.mentions[n].stop <= at]
        nearest = max((n for n, m in enumerate(self.mentions) if m.stop <= at and not self.is_object(n)), default=None)
        if (
            nearest is not None
            and not self.mentions[nearest].regions
            and self.mentions[nearest].concept.kind == "finding"
        ):
            return ((self.sentence.span(self.mentions[nearest].tokens), ()),)  # of a finding that nobody has placed
        if behind:
            group = [behind[-1]]
            for n in reversed(behind[:-1]):
                between = range(self.mentions[n].stop, self.mentions[group[-1]].start)
                if not all(self.words[k] in _JOINS for k in between):
                    break
                group.append(n)
            return tuple(self.subject(self.mentions[n]) for n in reversed(group))
        if self.spoken:
            return (("it", self.spoken),)
        if self.before and (not heads or self.words[0] in ("it", "they", "both", "its", "their", "these", "this")):
            return self.before
        return tuple(self.subject(self.mentions[n]) for n in heads[:1])

    def fit(self, tokens: range, regions: Sequence[RegionFact], fitting: Iterable[RegionFact]) -> None:
        """Note of which of a subject's regions a thing is true; all that is said of "one" must be true of one."""
        ids = tuple(region.id for region in regions)
        before = self.fitting.get(ids, set(ids))
        self.fitting[ids] = before & {region.id for region in fitting}
        if before and not self.fitting[ids] and len(ids) > 1 and self._of_one(tokens[0]):
            said = self.sentence.span(tokens)
            self.claim(tokens, "other", "refuted", ids[:8], f'"{said}" is true of another than what is said before')

    def _of_one(self, at: int) -> bool:
        """Whether it is said of a single one of several: "one region labelled RBC", or "it" thereafter."""
        behind = [m for m in self.mentions if m.stop <= at and m.regions]
        if not behind:
            return self.words[0] == "it"
        return "one" in self.words[max(0, behind[-1].start - 3) : behind[-1].start]

    def subject(self, mention: Mention) -> Subject:
        return self.sentence.span(mention.tokens), mention.regions

    def first_subjects(self) -> tuple[Subject, ...]:
        """What the next sentence may mean by "it"."""
        heads = [m for n, m in enumerate(self.mentions) if m.regions and not self.is_object(n)]
        return (self.subject(heads[0]),) if len(heads) == 1 else tuple(self.subject(m) for m in heads) or self.before


def _of_side(entities: Sequence[Entity], sides: frozenset[str]) -> tuple[RegionFact, ...]:
    """The regions whose name has one of the sides; all where none has."""
    named = [e.region for e in entities if e.concept.side in sides]
    chosen = named or [e.region for e in entities]
    return tuple(region for region in chosen if region is not None)
