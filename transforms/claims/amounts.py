"""Checks of amounts: shares of the image, sizes with a unit, counts, and every other number.

The invariant: a number is supported only by a row's number, to the precision in which it is written.

Tolerances. A number is right where it is what the row's number rounds to at the written decimals. After about, around,
roughly, nearly, approximately, almost: also within 10 %. After under, less than, over, more than, at least, up to:
where the comparison holds and the bound is within a factor of 2. Fractions in words (a third) count as about. Shares
and sizes are told of believed outlines (trust "boundary") only; widths and heights in mm also of boxes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from transforms.claims.form import Verdict
from transforms.claims.reading import Mention, Reading
from transforms.claims.splitting import number
from transforms.facts import RegionFact

_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_ABOUT = (
    r"(?P<about>about|around|approximately|approx\.?|roughly|nearly|almost|some|~|circa|ca\.?|close to|just over|"
    r"just under) ?"
)
_BOUND = (
    r"(?P<less>under|less than|below|<|up to|at most|no more than|smaller than)|(?P<more>over|more than|above|>|"
    r"at least|no less than|larger than)"
)
_SHARE = re.compile(rf"(?:(?:{_ABOUT}|(?:{_BOUND}) ?))?(?<![\w.])(?P<n>{_NUMBER})(?: ?%| ?per ?cent\b)", re.IGNORECASE)
_FRACTION = re.compile(
    r"\b(?:about |around |roughly |nearly |almost |approximately )?(?:a |one[- ]|an )?(?P<word>half|third|"
    r"quarter|fifth|tenth|two[- ]thirds|three[- ]quarters)"
    r" (?:of )?(?:the )?(?:whole |entire )?(?:image|picture|scan|slice|frame|view|field)\b",
    re.IGNORECASE,
)
_FRACTIONS = {
    "half": 50.0,
    "third": 100 / 3,
    "quarter": 25.0,
    "fifth": 20.0,
    "tenth": 10.0,
    "two thirds": 200 / 3,
    "three quarters": 75.0,
}
_EXTENT = re.compile(
    r"\b(?P<words>(?:a )?(?:(?P<size>tiny|very small|small|large|big) )?(?:part|portion|share|area|fraction)|"
    r"most|the majority|(?:nearly |almost )?all) of the (?:whole |entire )?(?:image|picture|scan|slice|view|frame)\b",
    re.IGNORECASE,
)
_UNITS = {
    "mm": ("mm", 1.0),
    "millimetres": ("mm", 1.0),
    "millimeters": ("mm", 1.0),
    "millimetre": ("mm", 1.0),
    "millimeter": ("mm", 1.0),
    "cm": ("mm", 10.0),
    "centimetres": ("mm", 10.0),
    "centimeters": ("mm", 10.0),
    "centimetre": ("mm", 10.0),
    "centimeter": ("mm", 10.0),
    "hu": ("HU", 1.0),
    "hounsfield units": ("HU", 1.0),
    "px": ("px", 1.0),
    "pixels": ("px", 1.0),
    "pixel": ("px", 1.0),
    "mm2": ("mm2", 1.0),
    "mm²": ("mm2", 1.0),
    "square millimetres": ("mm2", 1.0),
    "cm2": ("mm2", 100.0),
    "cm²": ("mm2", 100.0),
}
_SIZED = re.compile(
    rf"(?:(?:{_ABOUT}|(?:{_BOUND}) ?))?(?<![\w.])(?P<n>-?{_NUMBER})(?P<more_n>(?: ?(?:x|×|by|to|and|"
    rf"-) ?{_NUMBER})*)[ -]?"
    rf"(?P<unit>{'|'.join(sorted(map(re.escape, _UNITS), key=len, reverse=True))})(?!\w)",
    re.IGNORECASE,
)


def read_shares(reading: Reading) -> None:
    """Find shares of the image and sizes; they are judged once the names are known."""
    for pattern, how in ((_SHARE, "share"), (_FRACTION, "fraction"), (_EXTENT, "extent"), (_SIZED, "sized")):
        for match in pattern.finditer(reading.sentence.text):
            tokens = reading.sentence.within(*match.span())
            if tokens and reading.open(tokens):
                reading.amounts.append((tokens, how, match))
                reading.explain(tokens)


def judge_amounts(reading: Reading) -> None:
    for tokens, how, match in reading.amounts:
        if how == "sized":
            _judge_sized(reading, tokens, match)
        else:
            _judge_share(reading, tokens, how, match)


def _judge_share(reading: Reading, tokens: range, how: str, match: re.Match[str]) -> None:
    subjects = reading.subjects(tokens[0])
    groups = [regions for _, regions in subjects] or [tuple(r for r in reading.known.facts.regions if r.role != "body")]
    said = reading.sentence.span(tokens)
    ok: list[str] = []
    seen: list[str] = []
    shares = [_shares(regions) for regions in groups]
    if len(groups) > 1 and any(w in ("together", "combined", "total") for w in reading.words):
        shares = [_shares([region for regions in groups for region in regions])]
        groups = [tuple(region for regions in groups for region in regions)]
    right = 0
    for regions, of in zip(groups, shares, strict=True):
        fits = [share for share in of if _fits_share(share, how, match)]
        right += bool(fits)
        ok += [f"roi:{region.id}" for region in regions[:4]] if fits else []
        seen += [] if fits else [f"{share:.3g}%" for share in of[:3]]
    if right == len(groups) and right:
        reading.claim(tokens, "size", "supported", ok)
        for regions in groups:
            alone = [r for r in regions if r.trust == "boundary" and _fits_share(100 * r.area_fraction, how, match)]
            if alone:
                reading.fit(tokens, regions, alone)
    elif (
        how == "share"
        and (evidence := reading.known.stated_numbers.get(_value(match["n"])))
        and not evidence.startswith("roi")
    ):
        reading.claim(tokens, "number", "supported", [evidence])
    elif any(shares):
        reading.claim(
            tokens,
            "size",
            "refuted",
            [f"roi:{r.id}" for r in groups[0][:4]],
            f'"{said}": it covers {", ".join(seen) or "less"}',
        )
    else:
        reading.claim(tokens, "size", "unsupported", (), f'"{said}": no believed outline tells the share')


def _shares(regions: Iterable[RegionFact]) -> list[float]:
    believed = [100 * r.area_fraction for r in regions if r.trust == "boundary"]
    return [*believed, sum(believed)] if len(believed) > 1 else believed


def _fits_share(share: float, how: str, match: re.Match[str]) -> bool:
    if how == "share":
        return fits(share, match["n"], match) or (match["n"] == "0.1" and share < 0.1 and bool(match["less"]))
    if how == "fraction":
        return abs(share - _FRACTIONS[match["word"].lower().replace("-", " ")]) <= 0.1 * share
    words = match["words"].lower()
    low: float
    high: float
    low, high = {"tiny": (0, 0.1), "very small": (0, 1), "small": (0, 10), "large": (10, 100), "big": (10, 100)}.get(
        (match["size"] or "").lower(),
        (50, 100) if words in ("most", "the majority") else (90, 100) if words.endswith("all") else (0, 50),
    )
    if (match["size"] or "").lower() == "small":
        low, high = 0.1, 1
    return low <= share < high or share == high == 100


def fits(true: float, written: str, match: re.Match[str] | None = None) -> bool:
    """Whether a number may be written so; rules in the module docstring."""
    said = _value(written)
    decimals = len(written.partition(".")[2])
    if abs(abs(true) - abs(said)) <= 0.5 * 10**-decimals + 1e-9:
        return True
    if match is None:
        return False
    if match["about"]:
        return abs(true - said) <= 0.1 * abs(true)
    if match["less"]:
        return said / 2 <= abs(true) <= said
    return bool(match["more"]) and said <= abs(true) <= 2 * said


def _value(written: str) -> float:
    return float(written.replace(",", ""))


def _judge_sized(reading: Reading, tokens: range, match: re.Match[str]) -> None:
    unit, factor = _UNITS[match["unit"].lower()]
    known, said = reading.known, reading.sentence.span(tokens)
    numbers = [match["n"], *re.findall(_NUMBER, match["more_n"] or "")]
    subjects = reading.subjects(tokens[0])
    mine = {region.id for _, regions in subjects for region in regions}
    own: list[tuple[float, str]] = []
    for region in known.facts.regions:
        if not mine or region.id in mine:
            own += [(m.value, m.evidence) for m in region.measures.values() if m.unit == unit]
            if unit == "mm" and known.facts.pixel_spacing and region.trust in ("box", "boundary"):
                high, wide = known.facts.pixel_spacing
                x0, y0, x1, y1 = region.box
                own += [((x1 - x0) * wide, f"roi:{region.id}"), ((y1 - y0) * high, f"roi:{region.id}")]
            if unit == "px":
                own += [
                    (float(v), f"roi:{region.id}")
                    for v in (region.box[2] - region.box[0], region.box[3] - region.box[1])
                ]
    for pair in (*known.facts.relations, *known.facts.neighbours):
        if not mine or {pair.a, pair.b} & mine:
            own += [(m.value, m.evidence) for m in pair.measures.values() if m.unit == unit]
    plain = [*known.plain_numbers.items()] if unit in ("px", "HU") or "pixel" in reading.sentence.text.lower() else []
    evidence = []
    for written in numbers:
        digits = len(written.partition(".")[2])
        coarse = factor * 0.5 * 10**-digits
        near = [
            e
            for value, e in [*own, *plain]
            if abs(abs(value) - factor * abs(_value(written))) <= coarse + 1e-9 or fits(value / factor, written, match)
        ]
        stated = known.stated_numbers.get(_value(written))
        if not near and not (stated and not stated.startswith("roi")):
            verdict: Verdict = "refuted" if own else "unsupported"
            reading.claim(tokens, "size", verdict, (), f'"{said}": {written} {match["unit"]} is not what was measured')
            return
        evidence += near[:1] or ([stated] if stated else [])
    reading.claim(tokens, "size", "supported", evidence)


_LOOSE = {"multiple": 2, "several": 2, "many": 3, "numerous": 3, "pair": 2, "couple": 2}
_MARKED_BY = {"reader": "human", "algorithm": "predicted", "algorithms": "predicted", "source": "given"}


def read_counts(reading: Reading) -> None:
    """Judge counts of what is named right after a number; ordinary "one" and "a" count nothing."""
    words = reading.words
    for n, word in enumerate(words):
        if n in reading.explained:
            continue
        value = number(word)
        lone = word in ("single", "solitary") or (
            word == "one" and n > 0 and words[n - 1] in ("only", "exactly", "just")
        )
        if value is None and word not in _LOOSE and not lone:
            continue
        if word == "one" and not lone:
            reading.explain([n])
            continue
        mention = next(
            (
                m
                for m in reading.mentions
                if 0 <= m.start - n - 1 <= 4 and all(words[k] not in (",", "and", "in") for k in range(n + 1, m.start))
            ),
            None,
        )
        if mention is None or (value is not None and value != int(value)):
            if value is None:
                reading.explain([n])
            continue
        tokens = range(n, mention.stop)
        _judge_count(
            reading, n, tokens, mention, 1 if lone else int(value) if value is not None else None, _LOOSE.get(word, 0)
        )


def _judge_count(reading: Reading, n: int, tokens: range, mention: Mention, count: int | None, least: int) -> None:
    all_regions = [e.region for e in mention.entities if e.region is not None]
    origin = next((origin for word, origin in _MARKED_BY.items() if word in reading.words[:n]), None)
    if origin and any(r.origin != origin for r in all_regions):
        all_regions = [r for r in all_regions if r.origin == origin]
    regions = {r.id for r in all_regions if r in mention.regions} if mention.sides else {r.id for r in all_regions}
    spoken = {r.id for r in reading.spoken} & regions
    said = reading.sentence.span(tokens)
    named = [r for r in all_regions if r.label.lower() == said.lower().split(" labelled ")[-1]]
    true = {len(regions), len(spoken), len(named)} - {0}
    evidence = [f"roi:{roi}" for roi in sorted(regions)[:8]]
    if regions:
        if (count is not None and count in true) or (count is None and max(true) >= least):
            reading.claim(tokens, "count", "supported", evidence)
        else:
            reading.claim(tokens, "count", "refuted", evidence, f'"{said}": there are {len(regions)}')
    elif count is not None and (stated := reading.known.stated_numbers.get(float(count))):
        reading.claim(tokens, "count", "supported", [stated])
    elif count is None and reading.sentence.words[n] in reading.known.bag:
        reading.claim(tokens, "count", "supported", reading.known.bag[reading.sentence.words[n]].values())
    else:
        reading.claim(tokens, "count", "unsupported", (), f'"{said}": no row counts them')


def read_numbers(reading: Reading) -> None:
    """Judge every number that nothing else accounts for."""
    known = reading.known
    for n, word in enumerate(reading.words):
        value = number(word) if n not in reading.explained else None
        if value is None:
            continue
        tokens = range(n, n + 1)
        counts = {float(len([r for r in known.facts.regions if r.role != "body"])): "count"}
        for group in known.facts.groups:
            counts[float(group.count)] = "count"
        stated = known.stated_numbers.get(value) or known.plain_numbers.get(value)
        measured = next((m.evidence for m in known.facts.measures if word[0].isdigit() and fits(m.value, word)), None)
        if stated or measured:
            reading.claim(tokens, "number", "supported", [str(stated or measured)])
        elif value in counts:
            reading.claim(
                tokens, "count", "supported", [f"roi:{r.id}" for r in known.facts.regions[:8] if r.role != "body"]
            )
        else:
            reading.claim(tokens, "number", "unsupported", (), f'"{word}" is a number that no row holds')
