"""Checks of names: modality and view, organs and findings, attributes, looks, and every word that nobody knows.

The invariant: once `read_rest` is done every word of the sentence is accounted for; a word that no list, row or rule
knows is an unsupported claim.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from transforms.claims.known import Entity
from transforms.claims.places import mention_sides
from transforms.claims.polarity import Polarity
from transforms.claims.reading import Mention, Reading
from transforms.claims.splitting import name_words, stem
from transforms.vocabulary import modality_spans, table

_MARKS = frozenset({"absent", "absence", "uncertain", "uncertainty", "normal"})

BOUNDED = re.compile(r"\b(?:under|less than|below|up to|at most|over|more than|above|at least) ?$")
"""What makes another amount of the number that follows."""


def read_modalities(reading: Reading) -> None:
    """Judge the modality words that are no part of another name."""
    modality = reading.known.facts.modality
    for start, end, codes in modality_spans(reading.sentence.text):
        tokens = reading.sentence.within(start, end)
        if not tokens or not reading.open(tokens):
            continue
        said = reading.sentence.span(tokens)
        stated = _in_rows(reading, tokens, "present")
        if modality is not None and (modality in codes or said.lower() == modality.lower()):
            reading.claim(tokens, "modality", "supported", ["image:modality"])
        elif modality in table() and not (stated and all(e.startswith("text:") for e in stated) and len(codes) > 1):
            reading.claim(tokens, "modality", "refuted", ["image:modality"], f'"{said}": the modality is {modality}')
        elif stated:
            reading.claim(tokens, "modality", "supported", stated)
        else:
            reading.claim(tokens, "modality", "unsupported", (), f'"{said}": the modality is {modality or "unknown"}')


def read_views(reading: Reading) -> None:
    """Judge the words for a view."""
    view = reading.known.facts.view
    views: dict[str, list[str]] = reading.known.words.data["views"]
    text = reading.sentence.text
    for wordings in views.values():
        for wording in wordings:
            pattern = re.escape(wording) if wording.isupper() else f"(?i:{re.escape(wording)})"
            for match in re.finditer(rf"\b{pattern}\b", text):
                tokens = reading.sentence.within(*match.span())
                if not reading.open(tokens):
                    continue
                said = match[0].lower()
                mine = [
                    of for of, words in views.items() if view and view.lower() in (of.lower(), *map(str.lower, words))
                ]
                allowed = {word.lower() for of in mine for word in (of, *views[of])} | set((view or "").lower().split())
                if said in allowed or any(said.split()[0] == word for word in allowed):
                    reading.claim(tokens, "modality", "supported", ["image:view"])
                elif stated := _in_rows(reading, tokens, "present"):
                    reading.claim(tokens, "modality", "supported", stated)
                elif view and mine:
                    reading.claim(tokens, "modality", "refuted", ["image:view"], f'"{match[0]}": the view is {view}')
                else:
                    reading.claim(tokens, "modality", "unsupported", (), f'"{match[0]}": no row tells the view')


def read_attributes(reading: Reading) -> None:
    """Judge "sex is F": the value of an attribute that a label states."""
    for label in reading.known.attributes:
        name, value = name_words(label.name), name_words(label.value)
        places = [n for n in reading.sentence.content]
        words = [reading.sentence.stems[n] for n in places]
        at = _find(words, name, 0)
        if at is None:
            continue
        then = _find(words, value, at + len(name))
        named = range(places[at], places[at + len(name) - 1] + 1)
        if then is not None and then - at - len(name) <= 3 and value:
            tokens = range(named[0], places[then + len(value) - 1] + 1)
            reading.claim(tokens, "other", "supported", [f"label:{label.id}"])
        elif at + len(name) < len(words) and words[at + len(name)] in ("is", "was", ":", "of", "are"):
            ahead = places[at + len(name) + 1 : at + len(name) + 2 + len(value)]
            tokens = range(named[0], (ahead[0] if ahead else named[-1]) + 1)
            if not any(
                _find(words, name_words(o.value), at + len(name))
                for o in reading.known.attributes
                if o.name == label.name
            ):
                reading.claim(tokens, "other", "refuted", [f"label:{label.id}"], f"{label.name} is {label.value}")


def _find(words: list[str], part: tuple[str, ...], start: int) -> int | None:
    return next(
        (n for n in range(start, len(words) - len(part) + 1) if part and tuple(words[n : n + len(part)]) == part), None
    )


def read_names(reading: Reading) -> None:
    """Judge every name by the entities that bear it out."""
    for mention in reading.mentions:
        mention_sides(reading, mention)
        verdict, evidence, reason = _name(reading, mention)
        kind = "negation" if mention.polarity == "absent" else mention.concept.kind
        reading.claim(mention.tokens, kind, verdict, evidence, reason)  # type: ignore[arg-type]


def _name(reading: Reading, mention: Mention) -> tuple[str, list[str], str | None]:
    said, key = reading.sentence.span(mention.tokens), mention.concept.key
    by: dict[Polarity, list[Entity]] = {"present": [], "absent": [], "uncertain": []}
    for entity in mention.entities:
        by[entity.polarity].append(entity)
    above = reading.known.words.closure(key)
    denied = [e for e in reading.known.entities if e.polarity == "absent" and e.concept.key in above]
    if mention.polarity == "absent":
        if denied:
            return "supported", _ids(denied), None
        if by["present"]:
            return "refuted", _ids(by["present"]), f'"{said}" is denied, but a row states it'
        if by["uncertain"]:
            return "unsupported", _ids(by["uncertain"]), f'"{said}" is denied, but a row leaves it open'
        return "unsupported", [], f'"{said}" is denied, and no row denies it'
    if by["present"]:
        return "supported", _ids(by["present"]), None
    if by["uncertain"]:
        if mention.polarity == "uncertain":
            return "supported", _ids(by["uncertain"]), None
        return "unsupported", _ids(by["uncertain"]), f'"{said}" is stated as certain; the source is not certain of it'
    if denied:
        return "refuted", _ids(denied), f'"{said}" is stated, but a row denies it'
    if stated := _in_rows(reading, mention.tokens, mention.polarity):
        return "supported", stated, None
    return "unsupported", [], f'no row says "{said}"'


def _ids(entities: list[Entity]) -> list[str]:
    return list(dict.fromkeys(e.evidence for e in entities))[:8]


def read_phrases(reading: Reading) -> None:
    """Account for the phrases that claim nothing."""
    for match in reading.known.words.phrases.finditer(reading.sentence.text):
        reading.explain(reading.sentence.within(*match.span()))


def read_looks(reading: Reading) -> None:
    """Find the words of measures; they are judged once the names are known, by `read_rest`."""
    text = reading.sentence.text.lower()
    for words in sorted(reading.known.by_words, key=lambda w: (-len(w), w)):
        for form in dict.fromkeys((words, words.removeprefix("about "))):
            at = text.find(form)
            while at >= 0:
                tokens = reading.sentence.within(at, at + len(form))
                whole = (at == 0 or not text[at - 1].isalnum()) and not text[
                    at + len(form) : at + len(form) + 1
                ].isalnum()
                bound = form[0].isdigit() and BOUNDED.search(text[:at])  # "under 0.1%" is another amount than "0.1%"
                if whole and not bound and tokens and reading.open(tokens):
                    reading.looks.append((tokens, words))
                    reading.explain(tokens)
                at = text.find(form, at + 1)


def _judge_looks(reading: Reading) -> None:
    for tokens, words in reading.looks:
        holders = reading.known.by_words[words]
        kind = "size" if re.search(r"\d", words) else "appearance"
        groups = reading.subjects(tokens[0])
        if (reading.mentions and "apart" in words) or "touching" in words or "the two" in reading.sentence.text.lower():
            mine = {r.id for m in reading.mentions for r in m.regions} | {r.id for r in reading.spoken}
            mine |= {r.id for _, regions in reading.before for r in regions}
            good = [e for e, ids in holders if not mine or set(ids) <= mine or set(ids) & mine]
        else:
            held = [[e for e, ids in holders if set(ids) & {r.id for r in regions}] for _, regions in groups]
            good = [e for one in held for e in one] if all(held) and held else [] if groups else [e for e, _ in holders]
        if good:
            reading.claim(tokens, kind, "supported", good[:8])
            for _, regions in groups:
                said_of = {id for _, ids in holders for id in ids}
                reading.fit(tokens, regions, (r for r in regions if r.id in said_of))
        else:
            name = groups[0][0] if groups else "it"
            reading.claim(
                tokens,
                kind,
                "refuted",
                (),
                f'"{reading.sentence.span(tokens)}" was measured of another region than {name}',
            )


def read_rest(reading: Reading) -> None:
    """Judge looks, and whatever no rule has accounted for."""
    _judge_looks(reading)
    for tokens in _runs(reading):
        how = reading.polarity[tokens[0]]
        stated = _in_rows(reading, tokens, how)
        looks = all(reading.sentence.stems[n] in reading.known.words.looks for n in tokens)
        kind = "appearance" if looks else "negation" if how == "absent" else "other"
        if stated:
            reading.claim(tokens, kind, "supported", stated)
        else:
            reading.claim(tokens, kind, "unsupported", (), f'no row says "{reading.sentence.span(tokens)}"')


def _runs(reading: Reading) -> Iterator[range]:
    """Unaccounted words that stand side by side."""
    carriers = reading.known.words.carriers
    start: int | None = None
    for n, token in enumerate(reading.sentence.tokens):
        word = reading.words[n]
        empty = not token.is_word or word in carriers or reading.sentence.stems[n] in carriers
        if n in reading.explained or empty or (n in reading.triggers and word not in _MARKS):
            if start is not None:
                yield range(start, n)
            start = None
        elif start is None:
            start = n
    if start is not None:
        yield range(start, len(reading.sentence.tokens))


def _in_rows(reading: Reading, tokens: range, how: Polarity) -> list[str]:
    """Evidence of rows in which every one of these words stands in that way; [] where one does not."""
    found = []
    for n in tokens:
        if not reading.sentence.tokens[n].is_word:
            continue
        word = stem(reading.words[n])
        said = reading.known.bag.get(word, {})
        evidence = said.get(how) or (said.get("present") if how == "uncertain" else None)
        if evidence is None:
            if word in reading.known.words.carriers:
                continue
            return []
        found.append(evidence)
    return list(dict.fromkeys(found))
