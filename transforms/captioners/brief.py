"""What a language model is told about a sample, and the form its answer must have.

The invariant: the model sees short handles (region_1, label_2) and can cite nothing else; `cites` turns each back into
the id of the row it stands for.

Words from outside may carry orders to the model, and small models obey them. So every string stands as JSON inside a
tag that it cannot close, sentences that read like orders are withheld, and an answer that holds such a sentence, a tag,
or a passage word by word is not accepted. This stops plain attacks, not clever ones: checks read the texts again.

>>> brief = brief_of(facts, quote_chars=800)
>>> brief.cites["region_1"], brief.regions, [part.text for part in brief.chunks(per_call=16)]
('roi:1f0c…', {'region_1': '1f0c…'}, ['<facts>…'])
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from transforms.captioners.parts import Part, focus, parts_of
from transforms.captioners.translation import keeps_terms
from transforms.facts import Facts, RegionFact, as_json

STRICT = ConfigDict(extra="forbid")
HANDLES = {
    "label": "label", "roi": "region", "group": "group", "text": "text", "passage": "passage", "measure": "measure",
}
"""kind of evidence id -> what the model sees"""
ORDER = re.compile(
    r"\b(ignore|disregard|forget|override)\b[^.!?]*\b(rules?|instructions?|prompts?|above|previous|everything)\b"
    r"|\byou (are|must act as) (now )?an? (ai|assistant|language model|chatbot)\b|\bsystem prompt\b"
    r"|\b(respond|reply|answer) (only|exactly) with\b"
    r"|</?(facts|quoted|drafts|terms|system|user|assistant)>|<\|\w+\|>|\[/?INST\]",
    re.IGNORECASE,
)
"""What a sentence has that speaks to a model and not about an image."""
SHORTEST = 8
"""Characters of the shortest text: a word such as "c" is a model at its wits' end."""
COPIED = 8
"""Words in a row that a text may not share with a passage."""
HANDLE = re.compile(rf"\b(?:{'|'.join(HANDLES.values())}|relation|draft|term)_\d+\b")
TERMS = 24
"""Key terms, at most, that a translation has to state."""
PIXELS = "image:pixel_sha256"
"""Evidence of what a model saw."""
ASKED = {
    "modality": "the kind of picture and how it lies", "organs": "the part of the body and the organs in it",
    "region": "the findings and the regions of interest", "texture": "how bright and how even they are",
    "relation": "how they lie to each other and to what surrounds them",
}
"""part -> what its sentence is about"""
REGION = {"place": "where they lie", "extent": "how large they are", "appearance": "how they look"}
"""field of the part `region` -> what its sentence is about"""


@dataclass(frozen=True)
class Brief:
    """One sample, as it is put to a model, and what is asked of it."""

    text: str
    """the facts and quotes, fenced"""
    cites: Mapping[str, str]
    """handle -> evidence id, as `transforms.facts.evidence` takes it"""
    shown: tuple[str, ...]
    """roi ids of region_1, region_2 …: the numbers drawn on the image"""
    regions: Mapping[str, str]
    """handle -> roi id of the regions that get a sentence"""
    relations: Mapping[str, tuple[str, str]]
    """handle -> roi ids of the pairs that get a sentence"""
    subjects: Mapping[str, str]
    """handle of a region or pair that gets a sentence -> what it is, in words"""
    passages: tuple[str, ...]
    """whose words an answer may not copy"""
    terms: Mapping[str, str]
    """term_1, term_2 … -> a label that a translation must keep"""
    parts: tuple[Part, ...] = ()
    """the parts asked for, with what they may rest on"""
    fields: tuple[str, ...] = ()
    """what is asked of the part `region`: place, extent, appearance"""
    lay: bool = False
    languages: tuple[str, ...] = ()
    whole: bool = True
    """whether a text for the whole image is asked for"""

    def chunks(self, per_call: int) -> Iterator[Brief]:
        """Briefs that ask for at most so many regions and pairs each; the first also asks for the whole image."""
        asked = [*self.regions, *self.relations]
        for start in range(0, max(1, len(asked)), per_call):
            now = set(asked[start : start + per_call])
            part = replace(
                self, regions={h: r for h, r in self.regions.items() if h in now},
                relations={h: p for h, p in self.relations.items() if h in now},
            )
            yield part if start == 0 else replace(part, whole=False, parts=(), lay=False, languages=())

    @property
    def request(self) -> str:
        """All that the model is told: the facts, then what to write."""
        text = self.text
        parts = {p.name: ASKED[p.name] for p in self.parts if p.name != "region"}
        text += _asked("parts", parts)
        if self.fields and any(part.name == "region" for part in self.parts):
            text += _asked("parts.region", {name: f"the regions of interest: {REGION[name]}" for name in self.fields})
        text += _asked("regions", {h: self.subjects[h] for h in self.regions})
        text += _asked("relations", {h: self.subjects[h] for h in self.relations})
        if self.languages and self.terms:
            text += fenced("terms", [{"id": handle, "term": term} for handle, term in self.terms.items()])
        return text


def brief_of(
    facts: Facts, max_regions: int | None = None, max_relations: int | None = None, quote_chars: int = 800, *,
    parts: bool = False, sees: bool = False, lay: bool = False, languages: Sequence[str] = (),
) -> Brief:
    """The brief of a sample. All regions and relations are told; the largest regions (never a body) and the first
    relations, all or as many as the limits say, get a sentence of their own. `sees`: the model is shown the image."""
    data = as_json(facts)
    cites: dict[str, str] = {}
    handles: dict[str, str] = {}

    def measured(entry: Mapping[str, Any]) -> dict[str, Any]:
        told = []
        for measure in entry.get("measured", ()):
            handle = f"measure_{sum(h.startswith('measure_') for h in cites) + 1}"
            cites[handle] = measure["id"]
            told.append({**measure, "id": handle})
        return {"measured": told} if told else {}

    def named(section: str) -> Iterator[dict[str, Any]]:
        for n, entry in enumerate(data.get(section, []), start=1):
            kind, _, rest = entry["id"].partition(":")
            handle = rest if kind == "image" else f"{HANDLES[kind]}_{n}"
            cites[handle], handles[entry["id"]] = entry["id"], handle
            yield {**entry, "id": handle, **measured(entry)}

    told = [*named("image"), *named("labels"), *named("regions")]
    pairs = {f"relation_{n}": pair for n, pair in enumerate(facts.relations, start=1)}
    told += [
        {"id": h, "a": handles[entry["a"]], "is": entry["is"], "b": handles[entry["b"]], **measured(entry)}
        for h, entry in zip(pairs, data.get("relations", []), strict=True)
    ]
    quoted = [
        {**entry, "text": _cut(entry["text"], quote_chars)}
        for entry in [*named("source_texts"), *named("passages")]
    ]
    regions = {handles[f"roi:{r.id}"]: r for r in _largest(facts.single, max_regions)}
    relations = dict(islice(pairs.items(), max_relations))
    label = {r.id: r.label for r in facts.single}
    names = [r.label for r in facts.regions if r.role != "body"]
    names += [fact.name for fact in facts.labels if fact.value == "present"]
    text = fenced("facts", told) + (fenced("quoted", quoted) if quoted else "")
    return Brief(
        text, cites, tuple(r.id for r in facts.single), {h: r.id for h, r in regions.items()},
        {h: (r.a, r.b) for h, r in relations.items()},
        {h: r.label for h, r in regions.items()}
        | {h: f"{label[r.a]} {r.words} {label[r.b]}" for h, r in relations.items()},
        tuple(passage.text for passage in facts.passages),
        {f"term_{n}": name for n, name in enumerate(list(dict.fromkeys(names))[:TERMS], start=1)},
        _parts(facts, sees) if parts else (), _fields(facts, sees), lay, tuple(languages),
    )


def _parts(facts: Facts, sees: bool) -> tuple[Part, ...]:
    """The parts that the facts speak of; a model that sees regions can also tell their texture."""
    known = {part.name: part for part in parts_of(facts)}
    seen = focus(facts)
    if sees and seen and "texture" not in known:
        ids = tuple(region.id for region in seen)
        known["texture"] = Part("texture", "", tuple(f"roi:{roi}" for roi in ids), ids)
    return tuple(known[name] for name in ASKED if name in known)


def _fields(facts: Facts, sees: bool) -> tuple[str, ...]:
    """What can be said of the regions of interest; () where there are none, only findings of the whole image."""
    regions = [region for region in focus(facts) if region.trust != "presence"]
    told = {name for r in regions for name, fact in r.measures.items() if fact.words and r.trust == "boundary"}
    known = {
        "place": bool(regions), "extent": any(region.percent for region in regions),
        "appearance": bool(told - {"long_axis_mm", "box_width_mm"}) or (sees and bool(regions)),
    }
    return tuple(name for name in REGION if known[name])


def answer_form(brief: Brief) -> type[BaseModel]:
    """The model of an answer: one text for all that the brief asks for, and nothing else."""
    text = _checked(brief)
    fields: dict[str, Any] = {}
    if brief.whole:
        fields["global_text"] = (text, ...)
    if brief.whole and brief.cites:
        handle = Literal[tuple(brief.cites)]  # type: ignore[valid-type]
        cited = Annotated[list[handle], Field(min_length=1, max_length=len(brief.cites))]  # type: ignore[valid-type]
        fields["global_evidence"] = (cited, ...)
    if brief.parts:
        region = _one_each("Region", brief.fields, text) if brief.fields else text
        kinds: dict[str, Any] = {p.name: (region if p.name == "region" else text, ...) for p in brief.parts}
        fields["parts"] = (create_model("Parts", __config__=STRICT, **kinds), ...)
    for name, asked in (("regions", brief.regions), ("relations", brief.relations)):
        if asked:
            fields[name] = (_one_each(name.title(), asked, text), ...)
    if brief.lay:
        fields["lay_text"] = (text, ...)
    if not brief.languages:
        return create_model("Captions", __config__=STRICT, **fields)
    word = Annotated[str, Field(min_length=2)]
    translation: dict[str, Any] = {"text": (text, ...)}
    if brief.terms:
        translation["terms"] = (_one_each("Terms", brief.terms, word), ...)
    form = create_model("Translation", __config__=STRICT, **translation)
    fields["translations"] = (_one_each("Translations", brief.languages, form), ...)
    validators = {"terms_kept": keeps_terms(brief.terms)}
    return create_model("Captions", __config__=STRICT, __validators__=validators, **fields)


def mended_form(brief: Brief, drafts: Iterable[str]) -> type[BaseModel]:
    """The model of an answer that writes drafts again: one text for each handle."""
    return _one_each("Mended", drafts, _checked(brief))


def _one_each(name: str, handles: Iterable[str], of: Any) -> type[BaseModel]:
    fields: dict[str, Any] = {handle: (of, ...) for handle in handles}
    return create_model(name, __config__=STRICT, **fields)


def _checked(brief: Brief) -> Any:
    """The type of a text: prose that copies none of the brief's passages."""
    copied = {run for passage in brief.passages for run in _runs(passage)}

    def prose(text: str) -> str:
        if found := copied & _runs(text):
            raise ValueError(f"copies a passage ({min(found)!r}); speak of this image")
        return _prose(text)

    return Annotated[str, AfterValidator(prose)]


def _prose(text: str) -> str:
    """Text fit to keep, spaces made single. The rules are not in the JSON schema: strict servers know no such words."""
    text = " ".join(text.split())
    if len(text) < SHORTEST:
        raise ValueError("is not a sentence")
    if found := ORDER.search(text):
        raise ValueError(f"contains {found[0]!r}, which is not about an image")
    if found := HANDLE.search(text):
        raise ValueError(f"contains the id {found[0]}; write what it stands for")
    sentence, times = Counter(re.split(r"(?<=[.!?]) ", text)).most_common(1)[0]
    if times > 2:
        raise ValueError(f"says {sentence[:60]!r} {times} times")
    return text


def _runs(text: str) -> set[str]:
    """What of a text may not be found in another: its runs of COPIED words, and its shorter sentences of 4 and more."""
    words = re.findall(r"\w+", text.lower())
    sentences = [re.findall(r"\w+", s) for s in re.split(r"[.!?]+(?:\s|$)", text.lower())]
    runs = [words[n : n + COPIED] for n in range(len(words) - COPIED + 1)]
    return {" ".join(run) for run in runs + [s for s in sentences if 4 <= len(s) < COPIED]}


def _largest(regions: Iterable[RegionFact], count: int | None) -> list[RegionFact]:
    """In the order given."""
    able = [r for r in regions if r.role != "body"]
    chosen = sorted(able, key=lambda r: (-r.area_fraction, r.id))[:count]
    return [r for r in able if r in chosen]


def _safe(text: str) -> str:
    """The text without the sentences that read like orders to a model."""
    sentences = re.split(r"(?<=[.!?]) ", " ".join(text.split()))
    return " ".join(s for s in sentences if not ORDER.search(s))


def _cut(text: str, length: int) -> str:
    """At most `length` characters, cut at a space and marked with an ellipsis."""
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"


def fenced(tag: str, entries: Iterable[Mapping[str, Any]]) -> str:
    """Entries as JSON, one a line, inside a tag that they cannot close, without sentences that read like orders."""
    lines = [json.dumps(_all_safe(entry), ensure_ascii=False).replace("<", "\\u003c") for entry in entries]
    return "\n".join([f"<{tag}>", *lines, f"</{tag}>", ""])


def _all_safe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _all_safe(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_all_safe(inner) for inner in value]
    return _safe(value) if isinstance(value, str) else value


def _asked(name: str, subjects: Mapping[str, str]) -> str:
    lines = [f'"{handle}": one sentence about {_safe(subject)}' for handle, subject in subjects.items()]
    return "\n".join([f'In "{name}" write', *lines, ""]) if lines else ""
