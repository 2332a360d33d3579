"""Checks of places: where in the image, on which side of the patient, how one region lies to another.

The invariant: words are checked against the numbers by the rules of transforms/regions.py; what those rules leave open
(a region about the midline, boxes that run through each other) supports nothing and refutes nothing.

Beyond the one word that `relation` gives a pair, a direction is supported where the boxes do not share a column (left,
right) or a row (above, below), and refuted where the centres lie the other way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from transforms.claims.form import Verdict
from transforms.claims.reading import Mention, Reading, Subject
from transforms.facts import RegionFact

_NOUN = (
    r"(?:(?:the|this|each) )?(?:\w+ )?(?:image|picture|photograph|photo|scan|slice|frame|figure|radiograph|film|view|"
    r"field of view|field|panel|section|x-ray|micrograph|mammogram|tile|patch)\b"
)
_PART = r"(?: (?:part|side|half|third|area|region|portion|corner|edge|border|margin|quadrant|zone))?"
_ROW = r"(?:upper|uppermost|top|lower|lowermost|bottom|middle|mid)"
_COL = r"(?:left|right|center|centre|central|middle)"
_PLACE = re.compile(
    rf"\b(?:(?P<r1>{_ROW})[- ](?P<c1>{_COL})|(?P<c2>{_COL})[- ](?P<r2>{_ROW})|(?P<r3>{_ROW})|(?P<c3>{_COL}))"
    rf"(?:-hand|most)?{_PART} (?:of|in) {_NOUN}"
    rf"|\bimage(?:'s)?[ -](?P<c4>left|right)\b"
    rf"|\b(?:at |about )?mid-?height(?: of {_NOUN})?(?P<mid>)|\bhalfway (?:up|down) {_NOUN}(?P<mid2>)"
    rf"|\b(?:(?P<r5>{_ROW})[- ](?P<c5>{_COL}))(?= *(?:$|[.,;:]|and\b|corner|part|area|region|side|portion|third|"
    rf"with\b))"
    rf"(?: (?:corner|part|area|region|side|portion|third))?"
    rf"|\b(?P<r6>{_ROW})(?: (?:part|half|third|portion|edge|border))\b"
    rf"|\bin the (?P<c7>cent(?:er|re))\b(?! of the (?!image|picture|scan))|\b(?P<c8>centrally)\b",
    re.IGNORECASE,
)
_MIDLINE = re.compile(r"\b(?:near|at|on|about|along|in|crossing|across|close to)? ?(?:the )?midline\b", re.IGNORECASE)
_ROWS = {
    "upper": "upper",
    "uppermost": "upper",
    "top": "upper",
    "lower": "lower",
    "lowermost": "lower",
    "bottom": "lower",
    "middle": "middle",
    "mid": "middle",
}
_COLS = {"center": "center", "centre": "center", "central": "center", "middle": "center", "centrally": "center"}


def read_places(reading: Reading) -> None:
    """Find places in the image; they are judged once the names are known."""
    reading.places = []
    text = reading.sentence.text
    for match in _PLACE.finditer(text):
        got = {name: value.lower() for name, value in match.groupdict().items() if value is not None}
        row = next((_ROWS[v] for n, v in got.items() if n.startswith("r")), None)
        column = next((_COLS.get(v, v) for n, v in got.items() if n.startswith("c")), None)
        if "mid" in got or "mid2" in got:
            row = "middle"
        tokens = reading.sentence.within(*match.span())
        if tokens and reading.open(tokens):
            reading.places.append((tokens, row, column))
            reading.explain(tokens)
    for match in _MIDLINE.finditer(text):
        tokens = reading.sentence.within(*match.span())
        if tokens and reading.open(tokens):
            reading.places.append((tokens, None, "midline"))
            reading.explain(tokens)


def judge_places(reading: Reading) -> None:
    for tokens, row, column in reading.places:
        subjects = reading.subjects(tokens[0]) or (("anything", _shown(reading)),)
        kind = "laterality" if column == "midline" else "position"
        wrong = [s for s in subjects if s[1] and not any(_lies(r, row, column) for r in s[1])]
        evidence = [f"roi:{r.id}" for _, regions in subjects for r in regions if _lies(r, row, column)]
        if wrong:
            name, regions = wrong[0]
            where = ", ".join(sorted({r.position + (f" (patient's {r.side})" if r.side else "") for r in regions}))
            reason = f'"{reading.sentence.span(tokens)}": {name} lies {where}'
            reading.claim(tokens, kind, "refuted", [f"roi:{r.id}" for r in regions][:8], reason)
        elif not evidence:
            reading.claim(
                tokens, kind, "unsupported", (), f'"{reading.sentence.span(tokens)}": no region tells a place'
            )
        else:
            reading.claim(tokens, kind, "supported", evidence[:8])
            for _, regions in subjects:
                reading.fit(tokens, regions, (r for r in regions if _lies(r, row, column)))


def _lies(region: RegionFact, row: str | None, column: str | None) -> bool:
    if region.trust == "presence":
        return False
    if column == "midline":
        return region.side == "midline" or (region.side is None and region.position.endswith("center"))
    parts = region.position.split()
    true_row = "middle" if region.position == "center" else parts[0]
    return row in (None, true_row) and column in (None, parts[-1])


def _shown(reading: Reading) -> tuple[RegionFact, ...]:
    return tuple(region for region in reading.known.facts.regions if region.role != "body")


_RELATION = re.compile(
    r"\b(?P<beside>(?:to |on |at |toward )?(?:the )?(?:patient's )?(?P<image>image )?(?:far )?(?P<side>left|right)"
    r"(?:[- ]hand)?(?: side)? (?:of|from)(?! (?:the |this )?(?:image|picture|scan|slice|frame|patient|body|"
    r"chest|midline)\b))"
    r"|\b(?P<inside>inside|within|enclosed (?:by|in)|surrounded by|contained (?:in|by|within))\b"
    r"|\b(?P<contains>contain(?:s|ing)?|enclos(?:es|e|ing)|surround(?:s|ing)?|encircl(?:es|ing))\b(?! (?:tissue|"
    r"structure|area)s?)"
    r"|\b(?P<overlaps>overlap(?:s|ping)?(?: with)?|intersect(?:s|ing)?)\b"
    r"|\b(?P<touching>touch(?:es|ing)?|abut(?:s|ting)?|adjacent to|next to|in contact with|border(?:s|"
    r"ing)(?: on)?|adjoin(?:s|ing)?)\b"
    r"|\b(?P<above>above|higher than|on top of)\b|\b(?P<below>below|beneath|underneath|lower than)\b"
    r"|\b(?P<anterior>anterior to|in front of|ventral to|anteriorly to)\b|\b(?P<posterior>posterior to|behind|"
    r"dorsal to)\b"
    r"|\b(?P<superior>superior to|cranial to|cephalad to)\b|\b(?P<inferior>inferior to|caudal to)\b"
    r"|\b(?P<outside>outside of|outside)\b|\b(?P<larger>(?:larger|bigger|greater) than)\b|"
    r"\b(?P<smaller>smaller than)\b",
    re.IGNORECASE,
)
_TOWARD = {
    "L": "left",
    "R": "right",
    "A": "anterior",
    "P": "posterior",
    "S": "superior",
    "H": "superior",
    "I": "inferior",
    "F": "inferior",
}
_AGAINST = {
    "left": "right",
    "anterior": "posterior",
    "superior": "inferior",
    "image left": "image right",
    "above": "below",
}
_AGAINST |= {b: a for a, b in _AGAINST.items()}


def read_relations(reading: Reading) -> None:
    """Judge how regions are said to lie to each other, and account for the words."""
    for match in _RELATION.finditer(reading.sentence.text):
        tokens = reading.sentence.within(*match.span())
        if not tokens or not reading.open(tokens):
            continue
        word = next(
            n
            for n in (
                "beside",
                "inside",
                "contains",
                "overlaps",
                "touching",
                "above",
                "below",
                "anterior",
                "posterior",
                "superior",
                "inferior",
                "outside",
                "larger",
                "smaller",
            )
            if match[n]
        )
        rest = " ".join(reading.words[tokens[-1] + 1 :])
        of_image = bool(match["image"]) or " in the image" in f" {rest}" or reading.words[:3] == ("in", "the", "image")
        if word == "beside":
            word = f"image {match['side'].lower()}" if of_image else match["side"].lower()
        _judge_relation(reading, tokens, word)


def _judge_relation(reading: Reading, tokens: range, word: str) -> None:
    first = [n for n, m in enumerate(reading.mentions) if m.stop <= tokens[0]]
    then = next((n for n, m in enumerate(reading.mentions) if m.start > tokens[-1]), None)
    ahead = reading.words[tokens[-1] + 1 : tokens[-1] + 4]
    twin = any(w in ("another", "other") for w in ahead) and (then is None or not reading.mentions[then].regions)
    negative = reading.polarity[tokens[0]] == "absent" and tokens[0] not in reading.triggers
    subject: Subject | None
    after = [n for n, m in enumerate(reading.mentions) if m.start > tokens[-1] and m.regions]
    if not first and tokens[0] == 0 and len(after) > 1:  # "posterior to the spleen lies the kidney"
        then, subject = after[0], reading.subject(reading.mentions[after[1]])
    else:
        subject = _first(reading, first)
    if then is None and not twin:
        if word in ("inside", "contains", "outside", "touching", "overlaps", "above", "below"):
            reading.explain(tokens)  # "within", "contains" of what is no region: what it names is checked by itself
        return
    objects: tuple[RegionFact, ...]
    if twin:
        objects = subject[1] if subject else ()
    else:
        assert then is not None
        objects = reading.mentions[then].regions
        if subject and objects:
            reading.objects.add(then)
    if subject is None or not subject[1] or not objects:
        if word in ("inside", "contains") or not (subject or objects):
            reading.explain(tokens)
            return
        reading.claim(
            tokens, "relation", "unsupported", (), f'"{reading.sentence.span(tokens)}": no pair of regions tells it'
        )
        return
    pairs = _pairs(reading, subject[1], objects, twin)
    verdicts = [(judge(reading, a, b, word), a, b) for a, b in pairs]
    other = "another" if then is None or twin else reading.sentence.span(reading.mentions[then].tokens)
    said = f"{subject[0]} {reading.sentence.span(tokens)} {other}"
    wanted: Verdict = "refuted" if negative else "supported"
    if hit := next((v for v in verdicts if v[0] == wanted), None):
        reading.claim(tokens, "relation", "supported", (f"roi:{hit[1].id}", f"roi:{hit[2].id}"))
    elif verdicts and all(v[0] not in ("unsupported", wanted) for v in verdicts):
        _, a, b = verdicts[0]
        reading.claim(tokens, "relation", "refuted", (f"roi:{a.id}", f"roi:{b.id}"), f'"{said}" is not how they lie')
    else:
        reading.claim(tokens, "relation", "unsupported", (), f'"{said}": the outlines do not tell')


def _first(reading: Reading, first: list[int]) -> Subject | None:
    heads = [n for n in first if reading.mentions[n].regions and n not in reading.objects]
    if heads:
        return reading.subject(reading.mentions[heads[-1]])
    if first and not any(reading.mentions[n].regions for n in first):
        return reading.subject(reading.mentions[first[-1]]) if reading.mentions[first[-1]].concept.kind else None
    if len(reading.spoken) == 2:
        return "it", reading.spoken[:1]
    if reading.spoken:
        return "it", reading.spoken
    return reading.before[0] if reading.before else None


def _pairs(
    reading: Reading, subjects: Iterable[RegionFact], objects: Iterable[RegionFact], twin: bool
) -> list[tuple[RegionFact, RegionFact]]:
    spoken = reading.spoken
    if twin and len(spoken) == 2:
        return [(spoken[0], spoken[1])]
    pairs = [(a, b) for a in subjects for b in objects if a.id != b.id]
    if len(spoken) == 2:
        mine = [(a, b) for a, b in pairs if a in spoken and b in spoken]
        return mine or pairs[:50]
    return pairs[:50]


def judge(reading: Reading, a: RegionFact, b: RegionFact, word: str) -> Verdict:
    """Whether `a` lies to `b` as the word says."""
    known = reading.known
    if a.trust == "presence" or b.trust == "presence":
        return "unsupported"
    if word in ("larger", "smaller"):
        if not a.trust == b.trust == "boundary" or a.area_fraction == b.area_fraction:
            return "unsupported"
        return "supported" if (a.area_fraction > b.area_fraction) == (word == "larger") else "refuted"
    true = known.relation(a, b)
    if word in ("inside", "contains", "overlaps", "touching", "outside"):
        told = {
            "inside": ("inside",),
            "contains": ("contains",),
            "overlaps": ("overlaps", "inside", "contains"),
            "touching": (),
            "outside": ("left of", "right of", "above", "below"),
        }[word]
        pairs = [p for p in (*known.facts.relations, *known.facts.neighbours) if {p.a, p.b} == {a.id, b.id}]
        if true in told or (word == "touching" and any(p.words == "touching" or p.touching for p in pairs)):
            believed = a.trust == b.trust == "boundary" or word == "outside" or any(p.words == true for p in pairs)
            return "supported" if believed else "unsupported"
        if word == "touching":
            return "refuted" if any("distance" in p.measures and not p.touching for p in pairs) else "unsupported"
        apart = true in ("left of", "right of", "above", "below")
        return "refuted" if apart or true in ("inside", "contains", "overlaps") else "unsupported"
    letters = known.facts.orientation or ""
    true_ones: set[str] = set()
    false_ones: set[str] = set()
    for axis, plain in ((0, ("image left", "image right")), (1, ("above", "below"))):
        gap = (a.box[axis] + a.box[axis + 2]) - (b.box[axis] + b.box[axis + 2])
        if gap == 0:
            continue
        less = gap < 0
        words = [plain[0] if less else plain[1]]
        letter = letters[axis : axis + 1]
        if letter in _TOWARD and letter:
            toward = _TOWARD[letter]
            words.append(_AGAINST[toward] if less else toward)
        apart = a.box[axis + 2] <= b.box[axis] if less else b.box[axis + 2] <= a.box[axis]
        named = true == {"image left": "left of", "image right": "right of"}.get(words[0], words[0])
        if apart or named:
            true_ones.update(words)
        false_ones.update(_AGAINST[w] for w in words)
    if word in true_ones:
        return "supported"
    return "refuted" if word in false_ones else "unsupported"


_SIDE = re.compile(
    r"\b(?:(?:toward|towards|to|on|at|in|along) )?(?:the )?(?:patient(?:'s)? )?(?P<side>left|"
    r"right)(?:[- ]?(?:sided|most|ward|hand))?"
    r"(?: side)?(?: of the (?:patient|body|midline|chest|abdomen|head))?\b"
    r"|\b(?P<both>bilateral(?:ly)?|(?:on )?both sides)\b",
    re.IGNORECASE,
)


def read_sides(reading: Reading) -> None:
    """Judge sides of the patient that stand by no name."""
    for match in _SIDE.finditer(reading.sentence.text):
        tokens = reading.sentence.within(*match.span())
        tokens = (
            range(next((n for n in tokens if n not in reading.explained), len(reading.words)), tokens[-1] + 1)
            if tokens
            else tokens
        )
        if not tokens or not reading.open(tokens):
            continue
        sides = frozenset(["left", "right"] if match["both"] else [match["side"].lower()])
        named = [m for n, m in enumerate(reading.mentions) if m.stop <= tokens[0] and not reading.is_object(n)]
        subjects = reading.subjects(tokens[0])
        if named and not named[-1].regions and any(e.side for e in named[-1].entities):
            judge_sides(
                reading, tokens, sides, reading.sentence.span(named[-1].tokens), [e.side for e in named[-1].entities]
            )
            continue
        for name, regions in subjects or (("anything", _shown(reading)),):
            strict = any(w in ("toward", "towards") for w in reading.words[tokens[0] : tokens[-1] + 1])
            judge_sides(reading, tokens, sides, name, [side for r in regions for side in _sides(reading, r, strict)])
            if len(sides) == 1:
                reading.fit(tokens, regions, (r for r in regions if sides & {s or "" for s in _sides(reading, r)}))


def _sides(reading: Reading, region: RegionFact, strict: bool = False) -> list[str | None]:
    """Where a region lies, and the side in its name: a patient may lie turned. Strict: where it lies, if known."""
    lies = region.side if region.side != "midline" else None
    named = next((e.concept.side for e in reading.known.entities if e.region is region), None)
    if strict and lies:
        return [lies]
    return [side for side in (lies, named) if side] or [None]


def judge_sides(reading: Reading, tokens: range, sides: frozenset[str], name: str, true: list[str | None]) -> None:
    """Whether what has these sides (None: unknown) can be said to lie there."""
    said = reading.sentence.span(tokens)
    if sides <= set(true):
        reading.claim(tokens, "laterality", "supported", _sided_evidence(reading, sides, name))
    elif true and None not in true:
        known = ", ".join(sorted({str(side) for side in true}))
        reading.claim(tokens, "laterality", "refuted", (), f'"{said}": {name} is known on the patient\'s {known} only')
    else:
        reading.claim(tokens, "laterality", "unsupported", (), f'"{said}": no row tells the side of {name}')


def _sided_evidence(reading: Reading, sides: frozenset[str], name: str) -> Iterator[str]:
    mention = next((m for m in reading.mentions if reading.sentence.span(m.tokens) == name), None)
    entities = mention.entities if mention else [e for e in reading.known.entities if e.region in reading.spoken]
    return (e.evidence for e in list(entities)[:20] if e.side in sides)


def mention_sides(reading: Reading, mention: Mention) -> None:
    """Judge the side that stands by a name: "left kidney"."""
    if not mention.sides or mention.polarity == "absent":
        return
    stated = [e for e in mention.entities if e.polarity != "absent" and e.concept.key == mention.concept.key]
    stated = stated or [e for e in mention.entities if e.polarity != "absent"]
    mine = [e for e in stated if e.region is not None and e.region in reading.spoken]
    if stated:
        sides = [e.side for e in (mine or stated)]
        judge_sides(reading, mention.tokens, mention.sides, reading.sentence.span(mention.tokens), sides)
