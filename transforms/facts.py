"""All that is known about one sample, as one typed record: what a captioner may say and a check may ask for.

The invariant: every fact carries the id of the row it was read from, so every sentence can name its evidence; nothing
enters that no row states. Evidence ids are `image:COLUMN`, `label:ID`, `roi:ID`, `measure:ID`, `passage:ID` and
`text:ID`.

Two rules keep the record short without hiding anything:

- **Groups.** A label with more than `group_above` regions (cells, platelets) is one `GroupFact` that counts them and
  lists all their ids; `Facts.single` are the other regions.
- **Relations** are told for pairs among the `relations_among` largest single regions (ties by roi_id) that are neither
  a body nor of presence trust. The smaller region comes first. "inside", "contains" and "overlaps" are told only where
  the outline of the enclosing region (for "overlaps": of both) may be believed, that is, has boundary trust. A pair
  without another word is "touching" where the stage `measure` found no gap between its outlines. Further pairs that
  were measured (nearest neighbours) are `Facts.neighbours`.

Words for places, the patient's left and right, and relations follow transforms/regions.py: thirds of the image, nine
places; the patient's side by `images.orientation` and two thirds of the box.

All other words (extent, size in mm, brightness, texture, shape, distance) follow transforms/measures/told.py and
words.py; where the stage `measure` did not run they are None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from transforms.measures.told import GroupWords, MeasureFact, Measures, PairWords, RegionWords, extent, percent
from transforms.regions import patient_side, relation
from transforms.stage import SampleRows
from transforms.vocabulary import modality, phrase

__all__ = [
    "ADMINISTRATIVE", "GROUP_ABOVE", "HARMONISED", "RELATIONS_AMONG", "Facts", "GroupFact", "LabelFact", "MeasureFact",
    "Measures", "PassageFact", "RegionFact", "RelationFact", "as_json", "evidence", "extent", "facts_of", "of_source",
    "percent", "related", "single_rows",
]

GROUP_ABOVE = 5
RELATIONS_AMONG = 4
ADMINISTRATIVE = frozenset({
    "split", "task", "figure label", "panel", "looks like", "burned-in annotation", "could show a face",
})
"""Labels for whoever curates the dataset: they say nothing about what a picture shows."""
HARMONISED = "harmonise:"
"""Origin of labels that name a source's label by its term: a second name is no second fact."""
_BESIDE = (HARMONISED, "rater:", "question:")
"""Origins of labels that repeat what a region, a label or a question says already."""


@dataclass(frozen=True)
class LabelFact:
    """A fact the source states. `value` is present, absent, uncertain, or the attribute's value."""

    id: str
    name: str
    value: str
    origin: str


@dataclass(frozen=True)
class RegionFact(RegionWords):
    """A region; `label` as a person would say it, `side` the patient's, `area_fraction` of the image (0 to 1)."""

    id: str
    label: str
    role: str
    position: str
    side: str | None
    area_fraction: float
    box: tuple[int, int, int, int]
    trust: str
    origin: str
    expert: str
    measures: Measures = field(default_factory=dict)
    """what was measured on it; only as far as its trust allows"""

@dataclass(frozen=True)
class GroupFact(GroupWords):
    """All regions of a label that has many."""

    label: str
    role: str
    ids: tuple[str, ...]
    area_fraction: float
    """sum over the regions"""
    trust: str
    """the weakest among the regions"""
    origin: str
    members: tuple[RegionFact, ...] = ()
    """the regions themselves, in the order of `ids`"""

    @property
    def count(self) -> int:
        return len(self.ids)

@dataclass(frozen=True)
class RelationFact(PairWords):
    """How region `a` lies to region `b` (roi ids), a word of transforms.regions.RELATIONS."""

    a: str
    b: str
    words: str
    measures: Measures = field(default_factory=dict)
    """what was measured between them"""

@dataclass(frozen=True)
class PassageFact:
    """A retrieved passage: knowledge about the subject, never a finding about this image."""

    id: str
    corpus: str
    text: str
    score: float
    licence: str | None


@dataclass(frozen=True)
class Facts:
    """Everything known about one sample."""

    sample_id: str
    width: int
    height: int
    modality: str | None
    """as `images.modality`"""
    modality_name: str | None
    """in full: "computed tomography" """
    modality_image: str | None
    """noun for one picture: "CT image" """
    anatomy: str | None
    view: str | None
    window: tuple[float, float] | None
    pixel_spacing: tuple[float, float] | None
    """mm per row, mm per column"""
    orientation: str | None
    slice_index: int | None
    in_volume: bool
    labels: tuple[LabelFact, ...]
    regions: tuple[RegionFact, ...]
    groups: tuple[GroupFact, ...]
    relations: tuple[RelationFact, ...]
    passages: tuple[PassageFact, ...]
    originals: tuple[tuple[str, str, str], ...]
    """(text_id, kind, text) of the source's own words"""
    neighbours: tuple[RelationFact, ...] = ()
    """measured pairs beyond `relations` for which a word is true; told in the same way"""

    @property
    def measures(self) -> tuple[MeasureFact, ...]:
        """Every measure of its regions, and of the pairs in `relations` and `neighbours`."""
        holders: tuple[RegionFact | RelationFact, ...] = (*self.regions, *self.relations, *self.neighbours)
        return tuple(fact for holder in holders for fact in holder.measures.values())

    @property
    def single(self) -> tuple[RegionFact, ...]:
        """The regions that are not part of a group."""
        grouped = {roi for group in self.groups for roi in group.ids}
        return tuple(region for region in self.regions if region.id not in grouped)

    def region(self, roi_id: str) -> RegionFact:
        """The region of that id (KeyError when there is none)."""
        return {region.id: region for region in self.regions}[roi_id]


def facts_of(
    sample: SampleRows, *, relations_among: int = RELATIONS_AMONG, group_above: int = GROUP_ABOVE
) -> Facts:
    """The facts of a sample, from its rows of images, labels, rois, measures, passages and texts (the source's own
    only)."""
    image, rois = sample.image, sample.rows("rois")
    measures = _measures(sample.rows("measures"))
    named = modality(image.get("modality"))
    regions = tuple(_region(row, image, _midline(rois), measures.get((row["roi_id"], None), {})) for row in rois)
    groups = _groups(regions, group_above)
    relations = _relations(single_rows(rois, group_above), relations_among, measures)
    return Facts(
        sample_id=sample.id,
        width=image["width"],
        height=image["height"],
        modality=image.get("modality"),
        modality_name=named.name if named else None,
        modality_image=named.image if named else None,
        anatomy=_plain(image.get("anatomy")),
        view=image.get("view"),
        window=_pair(image.get("window")),
        pixel_spacing=_pair(image.get("pixel_spacing")),
        orientation=image.get("orientation"),
        slice_index=image.get("slice_index"),
        in_volume=image.get("volume_id") is not None,
        labels=tuple(
            LabelFact(r["label_id"], phrase(r["name"]), r["value"], r["origin"]) for r in sample.rows("labels")
            if r["name"] not in ADMINISTRATIVE and r["value"] != "unknown" and not r["origin"].startswith(_BESIDE)
        ),
        regions=regions,
        groups=groups,
        relations=relations,
        neighbours=_neighbours(rois, relations, measures),
        passages=tuple(
            PassageFact(r["passage_id"], r["corpus"], r["text"], r["score"], r["licence"])
            for r in sorted(sample.rows("passages"), key=lambda r: r["rank"])
        ),
        originals=tuple(
            (r["text_id"], r["kind"], r["text"]) for r in sample.rows("texts") if of_source(r)
        ),
    )


def of_source(text: Mapping[str, Any]) -> bool:
    """Whether a row of `texts` holds the source's own words: as they came, or cut out for a panel."""
    return text["generator"].partition("@")[0] in ("source", "panels")


def _measures(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str | None], dict[str, MeasureFact]]:
    """(region, other region or None) -> its measures."""
    found: dict[tuple[str, str | None], dict[str, MeasureFact]] = {}
    for row in rows:
        fact = MeasureFact(row["measure_id"], row["name"], row["value"], row["unit"], row["words"])
        found.setdefault((row["roi_id"], row["other_roi_id"]), {})[fact.name] = fact
    return found


def _region(
    row: Mapping[str, Any], image: Mapping[str, Any], midline: float | None, measures: Measures
) -> RegionFact:
    return RegionFact(
        id=row["roi_id"],
        label=phrase(row["label"]),
        role=row["role"],
        position=row["position"],
        side=None if row["role"] == "body" else patient_side(
            row["box"], image["width"], image.get("orientation"), midline
        ),
        area_fraction=row["area_fraction"],
        box=tuple(row["box"]),
        trust=row["trust"],
        origin=row["origin"],
        expert=row["expert"],
        measures=measures,
    )


def _midline(rois: Iterable[Mapping[str, Any]]) -> float | None:
    """Middle column of the imaged body where exactly one is known."""
    bodies = [row["box"] for row in rois if row["role"] == "body"]
    return (bodies[0][0] + bodies[0][2]) / 2 if len(bodies) == 1 else None


def single_rows(rois: Iterable[Mapping[str, Any]], above: int = GROUP_ABOVE) -> list[Mapping[str, Any]]:
    """The rows of regions that are not part of a group."""
    rois = list(rois)
    counts = Counter((phrase(row["label"]), row["origin"]) for row in rois)
    return [row for row in rois if counts[phrase(row["label"]), row["origin"]] <= above]


def _groups(regions: tuple[RegionFact, ...], above: int) -> tuple[GroupFact, ...]:
    by_label: dict[tuple[str, str], list[RegionFact]] = {}
    for region in regions:
        by_label.setdefault((region.label, region.origin), []).append(region)
    return tuple(
        GroupFact(
            label, members[0].role, tuple(m.id for m in members), sum(m.area_fraction for m in members),
            min((m.trust for m in members), key=("presence", "box", "boundary").index), origin, tuple(members),
        )
        for (label, origin), members in by_label.items() if len(members) > above
    )


def _relations(
    rois: list[Mapping[str, Any]], among: int, measures: Mapping[tuple[str, str | None], Measures]
) -> tuple[RelationFact, ...]:
    told = (_told(smaller, larger, measures) for larger, smaller in combinations(related(rois, among), 2))
    return tuple(fact for fact in told if fact is not None)


def related(rois: Iterable[Mapping[str, Any]], among: int) -> list[Mapping[str, Any]]:
    """The `among` largest regions that relations are told of, the largest first; in a pair the larger is the second."""
    placed = [row for row in rois if row["role"] != "body" and row["trust"] != "presence"]
    return sorted(placed, key=lambda row: (-row["area_fraction"], row["roi_id"]))[:among]


def _told(
    smaller: Mapping[str, Any], larger: Mapping[str, Any], measures: Mapping[tuple[str, str | None], Measures]
) -> RelationFact | None:
    """The relation of a pair; None where no word is true, or none may be believed."""
    words = relation(smaller, larger)
    outlines = {"inside": (larger,), "contains": (smaller,), "overlaps": (smaller, larger)}.get(words or "", ())
    if not all(row["trust"] == "boundary" for row in outlines):
        return None
    pair = smaller["roi_id"], larger["roi_id"]
    fact = RelationFact(*pair, words or "touching", measures.get(pair, {}))
    return None if words is None and not fact.touching else fact


def _neighbours(
    rois: Iterable[Mapping[str, Any]], told: Iterable[RelationFact],
    measures: Mapping[tuple[str, str | None], Measures],
) -> tuple[RelationFact, ...]:
    rows = {row["roi_id"]: row for row in rois}
    known = {(fact.a, fact.b) for fact in told}
    pairs = [(a, b) for a, b in measures if b is not None and (a, b) not in known and a in rows and b in rows]
    found = (_told(rows[a], rows[b], measures) for a, b in pairs)
    return tuple(fact for fact in found if fact is not None)


def _pair(values: Any) -> tuple[float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]))


def _plain(words: str | None) -> str | None:
    """DICOM shouts its body parts (CHEST, HEADNECK); a sentence does not."""
    return words.lower().replace("_", " ") if words and words.isupper() else words


def as_json(facts: Facts) -> dict[str, Any]:
    """The facts for a prompt: a fixed list of fields, unknown ones left out, evidence ids as `id` ready to be cited.

    What was measured stands with its region or pair as `measured`: id, name, and what may be said of it.
    Groups stand as one entry, `group:N` with N their place in `facts.groups`; `evidence` turns it back into regions.
    Source texts and passages are given whole: a captioner that has less room must choose among them and say so.
    """
    image = {
        "modality": facts.modality_name, "anatomy": facts.anatomy, "view": facts.view,
    }
    regions = [
        _known(id=f"roi:{r.id}", label=r.label, role=r.role, place=r.position, patient_side=r.side,
               share_of_image=r.percent, found_by=None if r.origin == "given" else r.expert,
               measured=[_cited(m) for m in r.said])
        for r in facts.single
    ] + [
        _known(id=f"group:{n}", label=g.label, role=g.role, count=g.count, share_of_image=g.percent,
               brightness=g.brightness, texture=g.texture, shape=g.shape)
        for n, g in enumerate(facts.groups)
    ]
    return _known(
        image=[{"id": f"image:{name}", "value": value} for name, value in image.items() if value is not None],
        labels=[{"id": f"label:{f.id}", "name": f.name, "value": f.value} for f in facts.labels],
        regions=regions,
        relations=[
            _known(a=f"roi:{r.a}", **{"is": r.words}, b=f"roi:{r.b}", measured=[_cited(m) for m in r.said])
            for r in facts.relations
        ],
        source_texts=[{"id": f"text:{text_id}", "kind": kind, "text": text} for text_id, kind, text in facts.originals],
        passages=[{"id": f"passage:{p.id}", "corpus": p.corpus, "text": p.text} for p in facts.passages],
    )


def _cited(fact: MeasureFact) -> dict[str, Any]:
    return {"id": fact.evidence, "name": fact.name.removesuffix("_mm"), "says": fact.words}


def _known(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, [], "")}


def evidence(facts: Facts, cited: Iterable[str]) -> list[str]:
    """Cited ids with every `group:N` of `as_json` replaced by its regions, repeats left out, order kept."""
    whole: dict[str, None] = {}
    for name in cited:
        kind, _, rest = name.partition(":")
        known_group = kind == "group" and rest.isdecimal() and int(rest) < len(facts.groups)
        ids = [f"roi:{roi}" for roi in facts.groups[int(rest)].ids] if known_group else [name]
        whole.update(dict.fromkeys(ids))
    return list(whole)
