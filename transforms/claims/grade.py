"""A text's claims, each with its verdict: what `verify` stores and a captioner repairs by.

The invariant: a claim is "supported" only where a row says so, "refuted" only where a row says otherwise; everything
else is "unsupported", a word that no list knows among it. The same text and rows give the same grade every time, and no
model is asked.

    >>> grade({"text": "The left kidney lies toward the patient's right.", …}, facts, sample).reasons
    ('"toward the patient\'s right": The left kidney is known on the patient\'s left only',)

What bears out what. A name is supported by a region, a label (or the term that `harmonise` gives it), the anatomy of
the image, or the source's own words, where these name the same thing, a part of it or a kind of it: "lung" and "chest"
by a left lung, "opacity" by a consolidation; never the reverse, never a sibling. A region's text must name its region.
What a row denies may only be denied, what it doubts only be doubted (doubt about what is certain passes). "No finding"
denies no particular finding. Words for looks pass only as words of a measure of what they are said of, or of a label
or source text. The rules for places stand in places.py, for amounts in amounts.py, for denials in polarity.py.

Questions claim nothing. A lay text is read in the terms that follow its plain names (plain.py). Of a text in another
language than English only its numbers are read, and only wrong ones are listed. `knowledge` speaks of no image: each of
its sentences must stand in a passage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from transforms.claims.amounts import judge_amounts, read_counts, read_numbers, read_shares
from transforms.claims.form import Claim as Claim
from transforms.claims.form import Grade as Grade
from transforms.claims.known import Known
from transforms.claims.lexicon import lexicon
from transforms.claims.names import (
    read_attributes,
    read_looks,
    read_modalities,
    read_names,
    read_phrases,
    read_rest,
    read_views,
)
from transforms.claims.places import judge_places, read_places, read_relations, read_sides
from transforms.claims.plain import in_terms
from transforms.claims.problems import problems
from transforms.claims.reading import Reading, Subject
from transforms.claims.splitting import sentences, stem
from transforms.facts import Facts
from transforms.stage import SampleRows

VERSION = "1"
"""Moves when a grade may: a captioner writes again what fails it."""
CLAIMLESS = frozenset({"question", "choices"})
"""Kinds of texts that ask and do not state."""
ABOUT_IMAGE = re.compile(r"[?]\s*$")
VOUCHED = 0.85
"""Share of the words of a sentence of knowledge that a passage must hold."""


def grade(text: Mapping[str, Any], facts: Facts, sample: SampleRows) -> Grade:
    """The grade of a text (a row of `texts`) by the facts and rows of its sample."""
    return grade_by(text, Known(facts, sample, lexicon()))


def grade_by(text: Mapping[str, Any], known: Known) -> Grade:
    """As `grade`; for several texts of one sample, whose index is made once."""
    kind, words = text["kind"], text["text"]
    passages = () if kind == "knowledge" else tuple(passage.text for passage in known.facts.passages)
    wrong = problems(words, text["language"], passages)
    if kind in CLAIMLESS:
        return Grade((), wrong)
    if kind == "knowledge":
        return Grade(tuple(_knowledge(text, known)), wrong)
    english = text["language"].partition("-")[0].lower() == "en"
    if kind == "lay":
        text = {**text, "text": in_terms(words)}
    claims = tuple(_claims(text, known))
    if not english:
        claims = tuple(
            c for c in claims if c.verdict != "supported" and c.kind in ("number", "size") and c.text[0].isdigit()
        )
    return Grade(claims, wrong)


def _claims(text: Mapping[str, Any], known: Known) -> Iterator[Claim]:
    regions = {region.id: region for region in known.facts.regions}
    spoken = tuple(regions[roi] for roi in text["roi_ids"] if roi in regions)
    before: tuple[Subject, ...] = ()
    named: set[str] = set()
    readings: list[Reading] = []
    for sentence in sentences(text["text"]):
        if sentence.text.endswith("?"):
            continue
        reading = Reading(sentence, known, spoken, before)
        if readings and reading.words[0] in ("it", "its"):
            reading.fitting = dict(readings[-1].fitting)
        _read(reading)
        before = reading.first_subjects()
        named |= {entity.evidence for m in reading.mentions for entity in m.entities}
        readings.append(reading)
    if text["kind"] in ("region", "relation", "phrase") and readings:
        _names_its_regions(readings, spoken, named)
    for reading in readings:
        yield from (claim for _, claim in sorted(reading.claims, key=lambda pair: pair[0]))


def _read(reading: Reading) -> None:
    """The order decides whose a word is: what is longer and plainer comes first."""
    read_looks(reading)
    read_places(reading)
    read_shares(reading)
    read_attributes(reading)
    reading.find_mentions()
    read_modalities(reading)
    read_views(reading)
    read_relations(reading)
    read_counts(reading)
    read_names(reading)
    judge_places(reading)
    judge_amounts(reading)
    read_sides(reading)
    read_phrases(reading)
    read_numbers(reading)
    read_rest(reading)


def _names_its_regions(readings: list[Reading], spoken: tuple[Any, ...], named: set[str]) -> None:
    """A text of a region must call it by its name, a part's whole or its kind; one of a pair must name both."""
    missed = [region for region in spoken if f"roi:{region.id}" not in named]
    labels = {region.label for region in spoken}
    if not missed or (len(labels) < len(spoken) and len({r.label for r in missed}) == 0):
        return
    reading = next((r for r in readings if r.mentions), None)
    if reading is None:
        return
    mine = {f"roi:{region.id}" for region in spoken}
    wrong = [m for m in reading.mentions if not any(e.evidence in mine for e in m.entities)]
    told = [m for m in wrong if m.regions or not m.entities] or ([] if len(missed) < len(spoken) else wrong)
    if told:
        mention = told[0]
        labels_said = ", ".join(sorted({region.label for region in missed}))
        said = reading.sentence.span(mention.tokens)
        reading.claims = [c for c in reading.claims if c[1].text != said or c[1].kind not in ("anatomy", "finding")]
        reading.claim(
            mention.tokens,
            mention.concept.kind,
            "refuted",
            [f"roi:{r.id}" for r in missed],
            f'"{said}": the region is labelled {labels_said}',
        )


def _knowledge(text: Mapping[str, Any], known: Known) -> Iterator[Claim]:
    cited = [p for p in known.facts.passages if f"passage:{p.id}" in text["evidence"]]
    held = [(p.id, {stem(w) for w in re.findall(r"\w+", p.text.lower())}) for p in cited or known.facts.passages]
    carriers = known.words.carriers - {"no", "not", "without"}
    for sentence in sentences(text["text"]):
        words = [
            w
            for w in map(stem, re.findall(r"\w+", sentence.text.lower()))
            if w not in carriers or w in ("no", "not", "without")
        ]
        found = [(sum(w in there for w in words), id) for id, there in held]
        most, id = max(found, default=(0, ""))
        numbers = [w for w in words if w[0].isdigit()]
        denials = [w for w in words if w in ("no", "not", "without")]
        there = dict(held).get(id, set())
        if words and most >= VOUCHED * len(words) and all(w in there for w in numbers + denials):
            yield Claim(sentence.text, "knowledge", "supported", (f"passage:{id}",), None)
        elif words:
            yield Claim(sentence.text, "knowledge", "unsupported", (), f'no passage says "{sentence.text[:120]}"')
