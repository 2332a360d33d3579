"""What is asked about the regions of a picture: what is there, how many, where, how large, and in which box.

The invariant: as in transforms/instructions/asking.py. In addition, nothing is asked of an outline that may not be
believed: a side, a place and a box need trust "box", a size needs "boundary"; nothing is asked of one region of a label
that has several; and how many there are, or where all of them are, only of labels of which the source marks every
region.

- A side, a place and a direction are asked only of regions that cover at least 0.35 of their box, a place only of one
  that spans at most half of the width and of the height; a wrong place lies two thirds away, or, of a region in the
  center, in a corner.
- "What is in this box" is asked only where the answer fills at least half of the box (by its mask), and no region of
  another label holds or covers most of that box.
- "Which is larger" is asked only where one region covers at least half as much again as the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from transforms.facts import Facts, RegionFact
from transforms.instructions import boxes
from transforms.instructions.asking import YES, Asked, multiple, pair, wording
from transforms.instructions.known import Known, spoken
from transforms.instructions.words import capital, draw, plural, plural_of, related, shuffled, table, verbs
from transforms.vocabulary import article

COUNTED = ("cell", "lesion", "device")
"""Roles whose regions are single things; an organ's region may be one of a pair, or both in one."""
LARGER = 1.5
FILLS, COMPACT = 0.5, 0.35
MOST_TO_COUNT = 20
"""More are counted in an open question only: nobody tells 60 from 61 at a glance."""
PLACES = tuple(f"{row} {column}" for row in ("upper", "middle", "lower") for column in ("left", "center", "right"))


def about_regions(facts: Facts, known: Known, form: boxes.Form, most_boxes: int) -> Iterator[Asked]:
    """All questions about regions. `most_boxes`: a label with more regions is not asked for all its boxes."""
    yield from _structures(facts, known)
    alone = {label: regions[0] for label, regions in known.regions.items() if len(regions) == 1}
    for label, regions in known.regions.items():
        yield from _count(facts, known, label, regions)
        yield from _boxes(facts, known, label, regions, form, most_boxes)
    for label, region in alone.items():
        yield from _side(facts, label, region)
        yield from _place(facts, label, region)
        yield from _share(facts, label, region)
        yield from _measures(facts, label, region)
    yield from _larger(facts, alone)
    yield from _relations(facts, alone)


def _structures(facts: Facts, known: Known) -> Iterator[Asked]:
    for label, regions in known.regions.items():
        ids, roi_ids = (facts.sample_id, label), tuple(region.id for region in regions)
        because = tuple(f"roi:{roi}" for roi in roi_ids)
        asked, lies = _named(label, regions[0].role)
        closed = wording("structure", "closed", ids, **lies)
        truth = Asked("structure", "closed", closed, YES, because, roi_ids, None, label)
        wrong = [name for name in known.missing if not related(name, label)]
        if wrong:
            false = draw(shuffled(wrong, *ids), *ids)
            question = wording("structure", "closed", ids, **_named(false, regions[0].role)[1])
            yield pair(truth, "adversarial", question, known.missing[false])
        else:
            yield pair(truth, "negated", wording("structure", "negated", ids, **lies))
        proof = because + tuple(id for id in known.missing.get(wrong[0], ()) if id not in because) if wrong else because
        yield from multiple(
            facts, "structure", wording("structure", "choices", ids), asked, wrong, proof, roi_ids, label
        )


def _count(facts: Facts, known: Known, label: str, regions: tuple[RegionFact, ...]) -> Iterator[Asked]:
    count, ids, roi_ids = len(regions), (facts.sample_id, label), tuple(region.id for region in regions)
    if label not in known.whole or regions[0].role not in COUNTED or count < 2:
        return
    because, fields = (*(f"roi:{roi}" for roi in roi_ids), "image:source"), {"plural": plural_of(label)}
    open_ = wording("count", "open", ids, **fields)
    yield Asked("count", "open", open_, f"{count}.", because, roi_ids, subject=label)
    if count <= MOST_TO_COUNT:
        wrong = [n for n in (count - 2, count - 1, count + 1, count + 2, 2 * count) if n > 0]
        wrong = list(dict.fromkeys(wrong))
        truth = Asked(
            "count", "closed", wording("count", "closed", ids, answer=str(count), **fields), YES, because, roi_ids,
            subject=label,
        )
        false = draw([n for n in wrong if n > 1], *ids)
        yield pair(truth, "adversarial", wording("count", "closed", ids, answer=str(false), **fields))
        question = wording("count", "choices", ids, **fields)
        yield from multiple(facts, "count", question, str(count), list(map(str, wrong)), because, roi_ids, label)


def _side(facts: Facts, label: str, region: RegionFact) -> Iterator[Asked]:
    if not _is_compact(facts, region) or region.side is None or {"left", "right"} & set(label.lower().split()):
        return
    ids, because, lies = (facts.sample_id, region.id), (f"roi:{region.id}", "image:orientation"), verbs(label)
    answer = "Near the midline." if region.side == "midline" else f"The {region.side} side."
    yield Asked("side", "open", wording("side", "open", ids, **lies), answer, because, (region.id,), None, label)
    if region.side != "midline":
        other = "left" if region.side == "right" else "right"
        closed = wording("side", "closed", ids, answer=region.side, **lies)
        truth = Asked("side", "closed", closed, YES, because, (region.id,), None, label)
        yield pair(truth, "adversarial", wording("side", "closed", ids, answer=other, **lies))


def _place(facts: Facts, label: str, region: RegionFact) -> Iterator[Asked]:
    x0, y0, x1, y1 = region.box
    if not _is_compact(facts, region) or 2 * (x1 - x0) > facts.width or 2 * (y1 - y0) > facts.height:
        return
    ids, because, lies = (facts.sample_id, region.id), (f"roi:{region.id}",), verbs(label)
    right, wrong = _part(region.position), [_part(place) for place in far_from(region.position)]
    open_ = wording("place", "open", ids, **lies)
    yield Asked("place", "open", open_, f"In the {right}.", because, (region.id,), None, label)
    closed = wording("place", "closed", ids, answer=right, **lies)
    truth = Asked("place", "closed", closed, YES, because, (region.id,), None, label)
    false = draw(shuffled(wrong, *ids), *ids)
    yield pair(truth, "adversarial", wording("place", "closed", ids, answer=false, **lies))
    question = wording("place", "choices", ids, **lies)
    yield from multiple(facts, "place", question, right, wrong, because, (region.id,), label)


def _is_compact(facts: Facts, region: RegionFact) -> bool:
    """Whether the middle of its box is where it is: a colon that runs around the belly lies elsewhere."""
    x0, y0, x1, y1 = region.box
    covered = region.area_fraction * facts.width * facts.height
    return region.trust != "presence" and covered >= COMPACT * (x1 - x0) * (y1 - y0)


def far_from(place: str) -> list[str]:
    """The places that nobody takes for this one: two thirds away on one axis; of the center, the corners."""
    here = _cell(place)
    far = [p for p in PLACES if max(abs(a - b) for a, b in zip(_cell(p), here, strict=True)) == 2]
    return far or [p for p in PLACES if 1 not in _cell(p)]


def _cell(place: str) -> tuple[int, int]:
    row, _, column = ("middle center" if place == "center" else place).partition(" ")
    return ("upper", "middle", "lower").index(row), ("left", "center", "right").index(column)


def _part(place: str) -> str:
    return "center" if place in ("center", "middle center") else f"{place} part"


def _share(facts: Facts, label: str, region: RegionFact) -> Iterator[Asked]:
    if region.percent is not None:
        question = wording("share", "open", (facts.sample_id, region.id), **verbs(label))
        share = region.percent if region.percent.startswith("under") else f"about {region.percent}"
        answer = f"{capital(share)} of the image."
        yield Asked("share", "open", question, answer, (f"roi:{region.id}",), (region.id,), None, label)


def _measures(facts: Facts, label: str, region: RegionFact) -> Iterator[Asked]:
    for name, forms in table()["measures"].items():
        measure = region.measures.get(name)
        if measure is not None and measure.words and region.trust == "boundary":
            lies = verbs(label)
            question = capital(draw(forms["ask"], facts.sample_id, measure.id).format(**lies))
            answer = forms["say"].format(words=measure.words, **lies)
            because = (f"measure:{measure.id}",)
            yield Asked("measure", "open", question, answer, because, (region.id,), None, f"{name} {label}")


def _larger(facts: Facts, alone: dict[str, RegionFact]) -> Iterator[Asked]:
    believed = {label: r for label, r in alone.items() if r.trust == "boundary" and r.role != "cell"}
    for one, other in combinations(believed, 2):
        large, small = sorted((one, other), key=lambda label: (-believed[label].area_fraction, label))
        if related(one, other) or believed[large].area_fraction < LARGER * believed[small].area_fraction:
            continue
        ids = facts.sample_id, large, small
        roi_ids = believed[large].id, believed[small].id
        because, subject = tuple(f"roi:{roi}" for roi in roi_ids), f"{large} {small}"
        big, little = verbs(large), verbs(small)
        closed = wording("larger", "closed", ids, other=little["the"], **big)
        truth = Asked("larger", "closed", closed, YES, because, roi_ids, None, subject)
        yield pair(truth, "adversarial", wording("larger", "closed", ids, other=big["the"], **little))
        yield from multiple(
            facts, "larger", wording("larger", "choices", ids), capital(big["the"]), [capital(little["the"])], because,
            roi_ids, subject, least=1,
        )


def _relations(facts: Facts, alone: dict[str, RegionFact]) -> Iterator[Asked]:
    names = {region.id: label for label, region in alone.items()}
    for relation in facts.relations:
        forms = table()["relations"].get(relation.words)
        if forms is None or relation.a not in names or relation.b not in names:
            continue
        both = [alone[names[roi]] for roi in (relation.a, relation.b)]
        if relation.words != "inside" and not all(_is_compact(facts, region) for region in both):
            continue
        ids, roi_ids = (facts.sample_id, relation.a, relation.b), (relation.a, relation.b)
        because = tuple(f"roi:{roi}" for roi in roi_ids)
        lies, other = verbs(names[relation.a]), verbs(names[relation.b])["the"]
        answer = f"{lies['It']} {lies['is']} {forms['say']} {other} in the image."
        question = wording("relation", "open", ids, other=other, **lies)
        subject = f"{relation.a} {relation.b}"
        yield Asked("relation", "open", question, answer, because, roi_ids, None, subject)
        closed = wording("relation", "closed", ids, answer=forms["say"], other=other, **lies)
        truth = Asked("relation", "closed", closed, YES, because, roi_ids, None, subject)
        yield pair(truth, "adversarial", wording("relation", "closed", ids, answer=forms["wrong"], other=other, **lies))


def _boxes(
    facts: Facts, known: Known, label: str, regions: tuple[RegionFact, ...], form: boxes.Form, most: int
) -> Iterator[Asked]:
    size = facts.width, facts.height
    if any(region.trust == "presence" for region in regions):
        return
    for region in regions:
        if _is_plain(facts, region):
            written = boxes.write_boxes([region.box], size, form)
            question = wording("region_to_text", "open", (facts.sample_id, region.id), box=written)
            asked = capital(_named(label, region.role)[1]["the"])
            yield Asked(
                "region_to_text", "open", question, f"{asked}.", (f"roi:{region.id}",), (region.id,), None, region.id
            )
    if len(regions) > most or (len(regions) > 1 and label not in known.whole):
        return
    roi_ids = tuple(region.id for region in regions)
    because = tuple(f"roi:{roi}" for roi in roi_ids)
    wanted = "open" if len(regions) == 1 else "several"
    question = wording("text_to_region", wanted, (facts.sample_id, label), one=label, **verbs(label))
    answer = boxes.write_boxes([region.box for region in regions], size, form, label)
    yield Asked("text_to_region", "open", question, answer, because, roi_ids, None, label)


def _is_plain(facts: Facts, region: RegionFact) -> bool:
    """Whether a box shows one thing: see the module docstring."""
    x0, y0, x1, y1 = region.box
    area = (x1 - x0) * (y1 - y0)
    if region.area_fraction * facts.width * facts.height < FILLS * area:
        return False
    for other in facts.regions:
        if other.role in ("body", "panel") or spoken(other.label) == spoken(region.label):
            continue
        a0, b0, a1, b1 = other.box
        common = max(0, min(x1, a1) - max(x0, a0)) * max(0, min(y1, b1) - max(y0, b0))
        believed = other.area_fraction * facts.width * facts.height / ((a1 - a0) * (b1 - b0))
        if common * (believed if other.trust == "boundary" else 1) > FILLS * area:
            return False
    return True


def _named(label: str, role: str) -> tuple[str, dict[str, str]]:
    """A thing as an option, and the fields for a sentence: an organ is "the liver", one of many cells "a platelet"."""
    lies = verbs(label)
    if role in COUNTED and not plural(label):
        return label, {**lies, "the": article(label)}
    return label, lies
