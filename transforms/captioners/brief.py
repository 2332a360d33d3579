"""What a language model is told about a sample, and the form its answer must have.

The invariant: the model sees short handles (region_1, label_2) and can cite nothing else; `cites` turns each back into
the id of the row it stands for.

Words from outside may carry orders to the model, and small models obey them. So every string stands as JSON inside a
tag that it cannot close, sentences that read like orders are withheld, and an answer that holds such a sentence, a tag,
or a passage word by word is not accepted. This stops plain attacks, not clever ones: checks read the texts again.

>>> brief = brief_of(facts, max_regions=16, max_relations=6, quote_chars=800)
>>> brief.cites["region_1"]
'roi:1f0c…'
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from transforms.facts import Facts, RegionFact, as_json

STRICT = ConfigDict(extra="forbid")
HANDLES = {"label": "label", "roi": "region", "group": "group", "text": "text", "passage": "passage"}
"""kind of evidence id -> what the model sees"""
ORDER = re.compile(
    r"\b(ignore|disregard|forget|override)\b[^.!?]*\b(rules?|instructions?|prompts?|above|previous|everything)\b"
    r"|\byou (are|must act as) (now )?an? (ai|assistant|language model|chatbot)\b|\bsystem prompt\b"
    r"|\b(respond|reply|answer) (only|exactly) with\b|</?(facts|quoted|system|user|assistant)>|<\|\w+\|>|\[/?INST\]",
    re.IGNORECASE,
)
"""What a sentence has that speaks to a model and not about an image."""
SHORTEST = 8
"""Characters of the shortest text: a word such as "c" is a model at its wits' end."""
COPIED = 8
"""Words in a row that a text may not share with a passage."""
HANDLE = re.compile(rf"\b(?:{'|'.join(HANDLES.values())}|relation)_\d+\b")


@dataclass(frozen=True)
class Brief:
    """One sample, as it is put to a model."""

    text: str
    cites: Mapping[str, str]
    """handle -> evidence id, as `transforms.facts.evidence` takes it"""
    shown: tuple[str, ...]
    """roi ids of region_1, region_2 …: the numbers drawn on the image"""
    regions: Mapping[str, str]
    """handle -> roi id of the regions that get a sentence"""
    relations: Mapping[str, tuple[str, str]]
    """handle -> roi ids of the pairs that get a sentence"""
    passages: tuple[str, ...]
    """whose words an answer may not copy"""


def brief_of(facts: Facts, max_regions: int, max_relations: int, quote_chars: int) -> Brief:
    """The brief of a sample. All regions and relations are told; the largest regions (never a body) and the first
    relations, as many as the limits say, get a sentence of their own."""
    data = as_json(facts)
    cites: dict[str, str] = {}
    handles: dict[str, str] = {}

    def named(section: str) -> Iterator[dict[str, Any]]:
        for n, entry in enumerate(data.get(section, []), start=1):
            kind, _, rest = entry["id"].partition(":")
            handle = rest if kind == "image" else f"{HANDLES[kind]}_{n}"
            cites[handle], handles[entry["id"]] = entry["id"], handle
            yield {**entry, "id": handle}

    told = [*named("image"), *named("labels"), *named("regions")]
    pairs = {f"relation_{n}": pair for n, pair in enumerate(facts.relations, start=1)}
    told += [
        {"id": h, "a": handles[f"roi:{r.a}"], "is": r.words, "b": handles[f"roi:{r.b}"]} for h, r in pairs.items()
    ]
    quoted = [
        {**entry, "text": _cut(entry["text"], quote_chars)}
        for entry in [*named("source_texts"), *named("passages")]
    ]
    regions = {handles[f"roi:{r.id}"]: r for r in _largest(facts.single, max_regions)}
    relations = dict(islice(pairs.items(), max_relations))
    label = {r.id: r.label for r in facts.single}
    text = _fenced("facts", told) + (_fenced("quoted", quoted) if quoted else "")
    text += _asked("regions", {h: r.label for h, r in regions.items()})
    text += _asked("relations", {h: f"{label[r.a]} {r.words} {label[r.b]}" for h, r in relations.items()})
    return Brief(
        text, cites, tuple(r.id for r in facts.single), {h: r.id for h, r in regions.items()},
        {h: (r.a, r.b) for h, r in relations.items()}, tuple(passage.text for passage in facts.passages),
    )


def answer_form(brief: Brief) -> type[BaseModel]:
    """The model of an answer: one text for the image, exactly one for each region and pair that the brief asks for."""
    copied = {run for passage in brief.passages for run in _runs(passage)}

    def prose(text: str) -> str:
        if found := copied & _runs(text):
            raise ValueError(f"copies a passage ({min(found)!r}); speak of this image")
        return _prose(text)

    Prose = Annotated[str, AfterValidator(prose)]
    handle = Literal[tuple(brief.cites)]  # type: ignore[valid-type]
    cited = Annotated[list[handle], Field(min_length=1, max_length=len(brief.cites))]  # type: ignore[valid-type]
    fields: dict[str, Any] = {"global_text": (Prose, ...), "global_evidence": (cited, ...)}
    for name, asked in (("regions", brief.regions), ("relations", brief.relations)):
        if asked:
            one_each: dict[str, Any] = {h: (Prose, ...) for h in asked}
            fields[name] = (create_model(name.title(), __config__=STRICT, **one_each), ...)
    return create_model("Captions", __config__=STRICT, **fields)


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


def _largest(regions: Iterable[RegionFact], count: int) -> list[RegionFact]:
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


def _fenced(tag: str, entries: Iterable[Mapping[str, Any]]) -> str:
    safe = [{name: _safe(v) if isinstance(v, str) else v for name, v in entry.items()} for entry in entries]
    lines = [json.dumps(entry, ensure_ascii=False).replace("<", "\\u003c") for entry in safe]
    return "\n".join([f"<{tag}>", *lines, f"</{tag}>", ""])


def _asked(name: str, subjects: Mapping[str, str]) -> str:
    lines = [f'"{handle}": one sentence about {_safe(subject)}' for handle, subject in subjects.items()]
    return "\n".join([f'In "{name}" write', *lines, ""]) if lines else ""
