"""MedTrinity's five parts of a caption, as sentences over the facts: what is said, of which regions, resting on what.

The invariant: a part is there only where a row states something that belongs to it, and cites every row it speaks from.
Place is told of outlines of trust "box" and "boundary", size, shape and look of "boundary" alone.

    part/modality   what kind of picture it is, and how it lies
    part/organs     which part of the body it shows, and the organs marked in it
    part/region     findings and regions of interest: where they lie, how large they are, how they look
    part/texture    how bright and how even the regions of interest are
    part/relation   how they lie to each other and to organs (local to global); of a single region, to the image

Regions of interest are those that are neither organs nor a body; where there are none, the organs. A part speaks of at
most REGIONS of them, the largest, and of RELATIONS pairs; every region and pair has a text of its own besides.

>>> [(part.name, part.text) for part in parts_of(facts)]
[('modality', 'This is an axial CT image.'), ('organs', 'It shows the abdomen; the source marks the liver.'), …]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from transforms.captioners.english import counted, does, prose, row, sentence, the
from transforms.facts import Facts, GroupFact, LabelFact, MeasureFact, RegionFact, RelationFact
from transforms.vocabulary import article

REGIONS = 6
RELATIONS = 4
TOWARD = {
    "L": "to the patient's left of", "R": "to the patient's right of", "A": "anterior to", "P": "posterior to",
    "S": "superior to", "H": "superior to", "I": "inferior to", "F": "inferior to",
}
"""Direction letter of images.orientation (S, I or, in DICOM, H, F) -> how a region lies that is further there."""
OPPOSITE = dict(zip("LRAPSIHF", "RLPAISFH", strict=True))
HEIGHT = {"upper": "in the upper part", "middle": "at mid-height", "lower": "in the lower part"}
NOTHING = frozenset({"no finding", "no findings", "normal"})
WITHIN = {"inside": ("lies inside", "lie inside"), "contains": ("contains", "contain"),
          "overlaps": ("overlaps", "overlap"), "touching": ("touches", "touch")}
"""relation -> its verb, for one and for many"""
SIZE, SHAPE, PIECES = "long_axis_mm", "roundness", "components"
INTENSITY, CONTRAST, TEXTURE = "median", "contrast", "texture"
DISTANCES = ("distance_mm", "distance")


@dataclass(frozen=True)
class Part:
    """One of the five parts: `name` without "part/", the regions it speaks of, and evidence ids."""

    name: str
    text: str
    evidence: tuple[str, ...]
    roi_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """A sentence or two and what they rest on."""

    text: str
    evidence: tuple[str, ...]
    roi_ids: tuple[str, ...] = ()


Terms = Mapping[str, tuple[tuple[str, str], ...]]
"""label id -> (term, id of the label that names it): what the stage `harmonise` made of a source's wording"""


def parts_of(facts: Facts, terms: Terms | None = None) -> tuple[Part, ...]:
    """The parts that something is known of, in MedTrinity's order."""
    told = (
        ("modality", _modality(facts)), ("organs", _organs(facts)), ("region", _interest(facts, terms or {})),
        ("texture", _textures(facts)), ("relation", _to_the_whole(facts)),
    )
    return tuple(
        Part(name, prose(s.text for s in said), *(_united(said))) for name, said in ((n, list(s)) for n, s in told)
        if said
    )


def prose_of(facts: Facts, terms: Terms | None = None) -> Said | None:
    """The parts as one caption; None where nothing is known, or only which texts belong to the image."""
    about = _about(facts, "view", "modality", "anatomy")
    noun = article(prose([view_of(facts), facts.modality_image or "image"]))
    place = f" of {the(facts.anatomy)}" if facts.anatomy else ""
    said = [Said(f"This is {noun}{place}.", about), *_shown(facts, organs=True), *_interest(facts, terms or {}),
            *_textures(facts), *_pairs(facts)]
    evidence, roi_ids = _united(said)
    return Said(prose(s.text for s in said), evidence, roi_ids) if evidence else None


def region_text(region: RegionFact, others: int = 0) -> Said | None:
    """Where one region lies, how large it is and how it looks; `others`: how many more have its label."""
    name = the(label_of(region)) if not others else f"one of the {counted(others + 1, label_of(region))}"
    said = [*_place_and_size(region, name, bool(others)), *_texture(region, name="", many=_many(region, others))]
    evidence, _ = _united(said)
    return Said(prose(s.text for s in said), evidence, (region.id,)) if said else None


def group_text(group: GroupFact) -> Said:
    """How many regions of a label there are, and what of the image they cover together."""
    covers = f", together covering {share(group.percent)} of the image" if group.percent else ""
    words = sentence(f"there are {counted(group.count, group.label)}{covers}")
    return Said(words, tuple(f"roi:{roi}" for roi in group.ids), group.ids)


def relation_text(pair: RelationFact, facts: Facts) -> Said:
    """How one region lies to another; in the patient's directions where the orientation is known."""
    a, b = facts.region(pair.a), facts.region(pair.b)
    first_label, second_label = label_of(a), label_of(b)
    twins = first_label == second_label
    same = Counter(label_of(region) for region in facts.regions)
    first = _one(first_label, same[first_label])
    second = "another" if twins else _one(second_label, same[second_label])
    many = same[first_label] == 1 and does(first_label, "", "x") == "x"
    if pair.words in WITHIN:
        words = f"{first} {WITHIN[pair.words][many]} {second}"
    else:
        words = f"{first} {'lie' if many else 'lies'} {_direction(pair.words, facts.orientation, second)}"
    evidence = [f"roi:{pair.a}", f"roi:{pair.b}"]
    gap = next((pair.measures[n] for n in DISTANCES if n in pair.measures and pair.measures[n].words), None)
    if gap is not None and pair.words not in WITHIN:
        touch = "touch" if many else "touches"
        it = "it" if twins else does(second_label, "it", "them")
        words += f" and {touch} {it}" if gap.words == "touching" else f"; the two are {gap.words}"
        evidence.append(f"measure:{gap.id}")
    return Said(sentence(words), tuple(evidence), (pair.a, pair.b))


def _modality(facts: Facts) -> Iterator[Said]:
    if facts.modality is not None or facts.view is not None:
        noun = article(prose([view_of(facts), facts.modality_image or "image"]))
        yield Said(f"This is {noun}.", _about(facts, "view", "modality"))


def _organs(facts: Facts) -> Iterator[Said]:
    if facts.anatomy is not None:
        yield Said(f"The image shows {the(facts.anatomy)}.", ("image:anatomy",))
    yield from _shown(facts, organs=True)


def _shown(facts: Facts, organs: bool) -> Iterator[Said]:
    """Which regions there are, by who found them."""
    for origin, who in (("given", "the source"), ("human", "a reader"), ("predicted", None)):
        found = [r for r in facts.regions if r.origin == origin and r.role != "body" and (r.role == "organ") == organs]
        if not found:
            continue
        counts = Counter(label_of(region) for region in found)
        named = row([the(label) if n == 1 else counted(n, label) for label, n in counts.items()])
        experts = sorted({region.expert.split("@")[0] for region in found})
        finder = f"the algorithm{'s' if len(experts) > 1 else ''} {row(experts)} found"
        words = f"{who} {'marks' if origin == 'given' else 'marked'} {named}" if who else f"{finder} {named}"
        yield Said(sentence(words), tuple(f"roi:{r.id}" for r in found), tuple(r.id for r in found))


def _interest(facts: Facts, terms: Terms) -> Iterator[Said]:
    yield from _findings(facts.labels, terms)
    yield from _shown(facts, organs=False)
    regions = [region for region in focus(facts) if region.trust != "presence"]
    largest = sorted(regions, key=lambda r: (-r.area_fraction, r.id))[:REGIONS]
    same = Counter(label_of(region) for region in facts.regions)
    for region in (r for r in regions if r in largest):
        yield from _place_and_size(region, _one(label_of(region), same[label_of(region)]), same[label_of(region)] > 1)
    for group in facts.groups:
        if group.role != "body" and group.percent:
            which = f"the {group.count} regions labelled {group.label}"
            words = sentence(f"{which} together cover {share(group.percent)} of the image")
            yield Said(words, tuple(f"roi:{roi}" for roi in group.ids), group.ids)


def _findings(labels: Iterable[LabelFact], terms: Terms) -> Iterator[Said]:
    stated: dict[str, dict[str, list[str]]] = {"present": {}, "absent": {}, "uncertain": {}}
    attributes: dict[str, list[str]] = {}
    for label in labels:
        named = terms.get(label.id) or ((label.name, label.id),)
        for name, id in named:
            rests = [f"label:{label.id}", f"label:{id}"]
            if label.value in stated:
                name = "showing no finding" if name.lower() in NOTHING and label.value == "present" else name
                stated[label.value].setdefault(name, []).extend(rests)
            else:
                attributes.setdefault(f"{label.name} is {label.value}", []).extend(rests)
    for told, opening in (
        (stated["present"], "the source labels the image as"), (stated["absent"], "the source states the absence of"),
        (stated["uncertain"], "the source is uncertain about"), (attributes, "the source states that"),
    ):
        if told:
            every = dict.fromkeys(id for ids in told.values() for id in ids)
            yield Said(sentence(f"{opening} {row(list(told))}"), tuple(every))


def view_of(facts: Facts) -> str:
    """The view within a sentence: "Coronal" is coronal, "PA" stays; empty where it is unknown."""
    view = facts.view or ""
    return view.lower() if view.istitle() else view


def focus(facts: Facts) -> list[RegionFact]:
    """The regions of interest: lesions, cells, devices; organs where there is nothing else; no groups, no bodies."""
    shown = [region for region in facts.single if region.role not in ("body", "text", "panel")]
    return [r for r in shown if r.role != "organ"] or ([] if facts.groups else shown)


def _place_and_size(region: RegionFact, name: str, among: bool) -> Iterator[Said]:
    roi = f"roi:{region.id}"
    many = _many(region, among)
    if region.trust == "presence":
        yield Said(sentence(f"{name} {'are' if many else 'is'} seen; the place is not known"), (roi,), (region.id,))
        return
    words = f"{name} {'lie' if many else 'lies'} {_place(region)}"
    rests = [roi]
    if region.percent:
        words += f" and {'cover' if many else 'covers'} {share(region.percent)} of the image"
    yield Said(sentence(words), (roi,), (region.id,))
    size, shape, pieces = (_measured(region, name) for name in (SIZE, SHAPE, PIECES))
    told = []
    if size:
        told.append(f"{'measure' if many else 'measures'} {size.words}")
    if shape:
        told.append(f"{'are' if many else 'is'} {shape.words}")
    if pieces:
        told.append(f"{'appear' if many else 'appears'} {pieces.words}")
    if told:
        rests += [f"measure:{fact.id}" for fact in (size, shape, pieces) if fact]
        yield Said(sentence(f"{'they' if many else 'it'} {row(told)}"), tuple(rests), (region.id,))


def _textures(facts: Facts) -> Iterator[Said]:
    same = Counter(label_of(region) for region in facts.regions)
    regions = focus(facts)
    largest = sorted(regions, key=lambda r: (-r.area_fraction, r.id))[:REGIONS]
    for region in (r for r in regions if r in largest):
        many = _many(region, same[label_of(region)] > 1)
        yield from _texture(region, _one(label_of(region), same[label_of(region)]), many)
    for group in facts.groups:
        yield from _shared(group, facts)


def _texture(region: RegionFact, name: str, many: bool) -> Iterator[Said]:
    texture, contrast, value = (_measured(region, name) for name in (TEXTURE, CONTRAST, INTENSITY))
    looks = [fact.words for fact in (texture, contrast) if fact and fact.words]
    told = [f"{'are' if many else 'is'} {row(looks)}"] if looks else []
    if value:
        told.append(f"{'have' if many else 'has'} {value.words}")
    if told:
        facts = [fact for fact in (texture, contrast, value) if fact]
        rests = (f"roi:{region.id}", *(f"measure:{fact.id}" for fact in facts))
        yield Said(sentence(f"{name or ('they' if many else 'it')} {row(told)}"), rests, (region.id,))


def _shared(group: GroupFact, facts: Facts) -> Iterator[Said]:
    """What is true of every region of a group."""
    members = [facts.region(roi) for roi in group.ids]
    for name in (TEXTURE, CONTRAST):
        found = [_measured(region, name) for region in members]
        words = {fact.words if fact else None for fact in found}
        if len(words) == 1 and None not in words:
            rests = tuple(f"measure:{fact.id}" for fact in found if fact)
            yield Said(sentence(f"each region labelled {group.label} is {words.pop()}"), rests, group.ids)


def _pairs(facts: Facts) -> list[Said]:
    wanted = {region.id for region in focus(facts)}
    told = [pair for pair in facts.relations if wanted & {pair.a, pair.b}]
    return [relation_text(pair, facts) for pair in told[:RELATIONS]]


def _to_the_whole(facts: Facts) -> Iterator[Said]:
    told = _pairs(facts)
    yield from told
    if not told:
        for region in focus(facts)[:1]:
            if region.percent and len(focus(facts)) == 1:
                many = _many(region, False)
                takes = f"{the(label_of(region))} {'take' if many else 'takes'} up"
                whole = sentence(f"{takes} {share(region.percent)} of the whole image")
                yield Said(whole, (f"roi:{region.id}",), (region.id,))


def share(percent: str) -> str:
    """A percentage within a sentence."""
    return percent.replace("under", "less than")


def label_of(region: RegionFact) -> str:
    """The label within a sentence; of a panel of a figure, which is known by its letter, "panel B"."""
    lettered = region.role == "panel" and not region.label.lower().startswith("panel")
    return f"panel {region.label}" if lettered else region.label


def _one(label: str, count: int) -> str:
    return the(label) if count == 1 else f"one region labelled {label}"


def _many(region: RegionFact, among: bool | int) -> bool:
    return not among and does(label_of(region), "", "x") == "x"


def _place(region: RegionFact) -> str:
    if region.side is None:
        return f"in the {region.position} of the image"
    height = HEIGHT["middle" if region.position == "center" else region.position.split()[0]]
    side = "near the midline" if region.side == "midline" else f"toward the patient's {region.side}"
    return f"{height} of the image, {side}," if region.percent else f"{height} of the image, {side}"


def _direction(words: str, orientation: str | None, other: str) -> str:
    axis = {"left of": 0, "right of": 0, "above": 1, "below": 1}[words]
    if orientation is None or not set(orientation[:2]) <= set(OPPOSITE) or len(orientation) < 2:
        return f"{'to the ' if axis == 0 else ''}{words} {other} in the image"
    grows = orientation[axis]
    return f"{TOWARD[grows if words in ('right of', 'below') else OPPOSITE[grows]]} {other}"


def _measured(region: RegionFact, name: str) -> MeasureFact | None:
    """A measure that has words, of an outline that may be believed."""
    fact = region.measures.get(name)
    return fact if fact is not None and fact.words and region.trust == "boundary" else None


def _about(facts: Facts, *columns: str) -> tuple[str, ...]:
    return tuple(f"image:{name}" for name in columns if getattr(facts, name) is not None)


def _united(said: Iterable[Said]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All evidence and all regions, each once, in order."""
    known = list(said)
    evidence = dict.fromkeys(id for one in known for id in one.evidence)
    return tuple(evidence), tuple(dict.fromkeys(roi for one in known for roi in one.roi_ids))
