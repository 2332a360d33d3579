"""Stage: every text that was not the source's own is taken apart into claims, and each is held against the rows.

The invariant: a verdict is "fail" only where the text contradicts or lacks a row, "unknown" where the rows cannot tell.
Nothing is dropped: verdicts are stored, filtering happens at query time. Rules need no model and give the same verdict
every time; a judge model may add its own, and takes none of theirs back.

    support      value: the share of its claims that rows bear out (transforms/claims/grade.py), 0 where something is
                 wrong with the whole text; passes at 1 only; unknown where it claims nothing that can be judged
    claim/01 …   one a claim: pass where a row bears it out, fail where one says otherwise, unknown where none does;
                 detail: the claim, as JSON (kind, text, verdict, reason, evidence)
    problem/01 … what is wrong with the whole text: leaks its prompt, obeys an order, holds an identifier, copies a
                 passage, is in another language; always fail
    evidence     every id it cites, and every region it speaks of, is a row of this sample (value: share that is)
    modality     the modality words in it agree with images.modality (words: vocabulary.yaml)
    laterality   its left and right agree with the sides of its regions, of all regions where it speaks of none
    numbers      every number in it stands in the facts, or counts regions, or is a share of the image (value: share);
                 an answer to "where is …?" is the boxes of its regions, in one of the forms of instructions/boxes.py
    leak_phrase  it does not talk about its prompt (phrases: leak_phrases.yaml)
    judge        where a judge is set: what a model says of it (value: share of its claims that it finds supported)

So the texts to train on, and what is wrong with the others:

    SELECT t.* FROM texts t JOIN checks c USING (sample_id, text_id) WHERE c."check" = 'support' AND c.value = 1
    SELECT detail FROM checks WHERE "check" LIKE 'claim/%' AND verdict <> 'pass'

`knowledge` texts are about a subject and not about this image, a `question` may name what is not there: for both only
support, evidence and leak_phrase are checked. In modality, laterality and numbers, numbers count in digits only. "left"
and "right" inside a region's own label (left ventricle) or a label of the sample are names, not statements; "left of
the image" and "image left" are directions of the image, judged against the place of the region.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field

from infra.keys import key
from transforms.claims import ingredients
from transforms.claims.form import Claim, Grade
from transforms.claims.grade import grade_by
from transforms.claims.judge import Judge, JudgeParams, open_judge, prompt_hash
from transforms.claims.known import Known
from transforms.claims.lexicon import lexicon
from transforms.claims.plain import FILE as PLAIN_NAMES
from transforms.claims.problems import leak
from transforms.facts import Facts, RegionFact, facts_of, of_source
from transforms.instructions.boxes import Form, write_boxes
from transforms.stage import Context, Rows, SampleRows, Stage, each_sample
from transforms.vocabulary import FILE as VOCABULARY
from transforms.vocabulary import named_modalities, table

NAME = "verify"
VERSION = "2"
REQUIRES: Mapping[str, str] = {}
READS = ("images", "labels", "rois", "measures", "passages", "texts")
LEAK_PHRASES = Path(__file__).with_name("leak_phrases.yaml")
ABOUT_NO_IMAGE = frozenset({"knowledge", "question", "choices"})
IN_BOXES = "/text_to_region/"
"""Generators with this write answers that are boxes: numbers that no fact holds as they are written."""
FORMS: tuple[Form, ...] = get_args(Form)
VERDICTS = {"supported": "pass", "refuted": "fail", "unsupported": "unknown"}

Verdict = tuple[str, float | None, str | None]
"""verdict, value, detail"""


class Params(BaseModel):
    """What a recipe may set. The rules have no parameters: filter on their verdicts instead."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claims: bool = Field(True, description="store a row for every claim, not only the share of those that hold")
    judge: JudgeParams | None = Field(None, description="a language model that judges every text too; null: none")


def make_stage(params: Params, context: Context) -> Stage:
    """The stage. Raises ConfigError where a judge is named that cannot be asked."""
    data = {path.name: key(path.read_text(encoding="utf-8")) for path in (VOCABULARY, LEAK_PHRASES, PLAIN_NAMES)}
    data |= ingredients()
    if params.judge:
        data["judge.md"] = prompt_hash()
    return each_sample(
        NAME, VERSION, reads=READS, writes=("checks",), row=partial(_verified, params.claims), params=params,
        ingredients=data, pixels=False, open=partial(open_judge, params.judge, context) if params.judge else None,
        attempts=1 if params.judge else 3,
    )


def _verified(claims: bool, sample: SampleRows, judge: Judge | None) -> Rows:
    facts = facts_of(sample)
    known = Known(facts, sample, lexicon())
    written = [row for row in sample.rows("texts") if not of_source(row)]
    return {"checks": [check for text in written for check in _checks(text, known, sample, claims, judge)]}


def _checks(
    text: Mapping[str, Any], known: Known, sample: SampleRows, claims: bool, judge: Judge | None
) -> Iterator[dict[str, Any]]:
    facts, in_boxes = known.facts, IN_BOXES in text["generator"] and text["kind"] == "answer"
    grade = grade_of_boxes(text, known) if in_boxes else grade_by(text, known)
    verdicts: dict[str, Callable[[], Verdict]] = {
        "support": lambda: _support(grade),
        "evidence": lambda: check_evidence(text, sample),
        "leak_phrase": lambda: check_leak_phrase(text["text"]),
    }
    if text["kind"] not in ABOUT_NO_IMAGE:
        verdicts |= {
            "modality": lambda: check_modality(text["text"], facts.modality),
            "laterality": lambda: check_laterality(text, facts),
            "numbers": lambda: check_boxes(text, facts) if in_boxes else check_numbers(text, facts),
        }
    for n, problem in enumerate(grade.problems, start=1):
        verdicts[f"problem/{n:02}"] = partial(_said, "fail", problem)
    for n, claim in enumerate(grade.claims if claims else (), start=1):
        told = {name: value for name, value in vars(claim).items() if value not in (None, ())}
        verdicts[f"claim/{n:02}"] = partial(_said, VERDICTS[claim.verdict], json.dumps(told, ensure_ascii=False))
    if judge is not None:
        verdicts["judge"] = lambda: judge(text, facts, sample)
    for name, judged in verdicts.items():
        verdict, value, detail = judged()
        yield {
            "text_id": text["text_id"], "check": name, "version": VERSION, "value": value, "verdict": verdict,
            "detail": detail,
        }


def _said(verdict: str, detail: str) -> Verdict:
    return verdict, None, detail


def _support(grade: Grade) -> Verdict:
    if grade.support is None:
        return "unknown", None, "claims nothing that the rules can judge"
    return "pass" if grade.support == 1 else "fail", grade.support, "; ".join(grade.reasons)[:1000] or None


def grade_of_boxes(text: Mapping[str, Any], known: Known) -> Grade:
    """The grade of an answer that is boxes: its regions lie there, and where it names a thing, they are that thing."""
    name = re.search(r"<ref>(.*?)</ref>", text["text"])
    named = grade_by({**text, "kind": "phrase", "text": name[1] if name else ""}, known)
    verdict, _, reason = check_boxes(text, known.facts)
    boxes = Claim(
        text["text"], "position", "supported" if verdict == "pass" else "refuted",
        tuple(f"roi:{roi}" for roi in text["roi_ids"]), None if verdict == "pass" else reason,
    )
    return Grade((*named.claims, boxes), named.problems)


def check_boxes(text: Mapping[str, Any], facts: Facts) -> Verdict:
    """Whether its boxes, in any of the forms of transforms/instructions/boxes.py, are those of its regions."""
    regions = {region.id: region.box for region in facts.regions}
    boxes = [regions[roi] for roi in text["roi_ids"] if roi in regions]
    written = re.sub(r"<ref>.*?</ref>", "", text["text"])
    if boxes and written in (write_boxes(boxes, (facts.width, facts.height), form) for form in FORMS):
        return "pass", 1.0, "the boxes of its regions"
    return "fail", 0.0, "its boxes are not those of its regions"


def check_evidence(text: Mapping[str, Any], sample: SampleRows) -> Verdict:
    """Whether what it cites and speaks of is there; unknown where it cites nothing."""
    there = {f"image:{name}" for name, value in sample.image.items() if value is not None}
    for kind, layer, column in (
        ("label", "labels", "label_id"), ("roi", "rois", "roi_id"), ("measure", "measures", "measure_id"),
        ("passage", "passages", "passage_id"), ("text", "texts", "text_id"),
    ):
        there |= {f"{kind}:{row[column]}" for row in sample.rows(layer)}
    there.discard(f"text:{text['text_id']}")  # no text proves itself
    cited = list(dict.fromkeys([*text["evidence"], *(f"roi:{roi}" for roi in text["roi_ids"])]))
    if not cited:
        return "unknown", None, "cites nothing"
    missing = [name for name in cited if _row_of(name) not in there]
    detail = f"no such row: {', '.join(missing)}" if missing else None
    return "fail" if missing else "pass", 1 - len(missing) / len(cited), detail


def _row_of(cited: str) -> str:
    """The row that is cited, also where only some of its words are: text:ID@START:END."""
    return cited.partition("@")[0] if cited.startswith("text:") else cited


def check_modality(text: str, modality: str | None) -> Verdict:
    """Whether every modality it names is the image's."""
    named = named_modalities(text)
    if not named:
        return "pass", None, "names no modality"
    if modality is None or modality not in table():
        return "unknown", None, f"names {', '.join(named)}; the image's modality is {modality or 'unknown'}"
    wrong = [word for word, codes in named.items() if modality not in codes]
    return ("fail", None, f"names {', '.join(wrong)}, but it is {modality}") if wrong else ("pass", None, None)


SIDE = re.compile(r"\b(left|right)(?:-sided|most|ward)?\b", re.IGNORECASE)
IMAGE_SIDE = re.compile(
    r"\b(?:image(?:'s)?[ -](?P<a>left|right)"
    r"|(?P<b>left|right)(?:-hand)?(?: (?:side|half|part|third|edge|middle|center|corner))? (?:of|in) the image)\b",
    re.IGNORECASE,
)


def check_laterality(text: Mapping[str, Any], facts: Facts) -> Verdict:
    """Whether its left and right agree with its regions; unknown where no region's side is known."""
    words = _without_names(text["text"], facts)
    known = {region.id: region for region in facts.regions}
    spoken = [known[roi] for roi in text["roi_ids"] if roi in known]
    if text["kind"] == "relation" and len(spoken) == 2:
        return _relative(words, spoken[0], spoken[1], facts.orientation)
    regions = spoken or [region for region in facts.regions if region.role != "body"]
    of_image = [(m["a"] or m["b"]).lower() for m in IMAGE_SIDE.finditer(words)]
    of_patient = [m[1].lower() for m in SIDE.finditer(IMAGE_SIDE.sub(" ", words))]
    if not of_image and not of_patient:
        return "pass", None, "names no side"
    places = [region.position for region in regions]
    sides = [region.side for region in regions]
    if wrong := [w for w in of_image if regions and not any(w in place for place in places)]:
        return "fail", None, f"says {wrong[0]} of the image; its regions lie {', '.join(sorted(set(places)))}"
    open_sides = not sides or None in sides or "midline" in sides
    if wrong := [w for w in of_patient if w not in sides and not open_sides]:
        known_sides = ", ".join(sorted({str(side) for side in sides}))
        return "fail", None, f"says {wrong[0]}; its regions lie toward the patient's {known_sides}"
    unsure = not regions or any(w not in sides for w in of_patient)
    return ("unknown", None, "no region tells the side") if unsure else ("pass", None, None)


def _relative(words: str, a: RegionFact, b: RegionFact, orientation: str | None) -> Verdict:
    """How a lies to b: in the patient where the orientation is known and the text does not say "in the image"."""
    said = [match[1].lower() for match in SIDE.finditer(words)]
    apart = (a.box[0] + a.box[2]) - (b.box[0] + b.box[2])
    if not said:
        return "pass", None, "names no side"
    of_image = "in the image" in words.lower()
    if not of_image and (orientation is None or orientation[0] not in "LR"):
        return "unknown", None, "the orientation of the image tells no side"
    toward_left = apart < 0 if of_image else (apart > 0) == (orientation or "L").startswith("L")
    true = "left" if toward_left else "right"
    if apart == 0 or any(word != true for word in said):
        return "fail", None, f"says {', '.join(said)}; it lies {'level' if apart == 0 else true}"
    return "pass", None, None


def _without_names(text: str, facts: Facts) -> str:
    """The text without the names of its regions and labels: "left lung" is a name, not a statement about a place."""
    names = {region.label for region in facts.regions} | {label.name for label in facts.labels}
    telling = sorted((n for n in names if re.search(r"\d|left|right", n, re.IGNORECASE)), key=lambda n: (-len(n), n))
    for name in telling:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", text, flags=re.IGNORECASE)
    return text


NUMBER = re.compile(r"(?<![\w.])(?<!\w-)(\d+(?:,\d{3})*(?:\.\d+)?)(\s?%| percent\b)?(?![\w])")


def check_numbers(text: Mapping[str, Any], facts: Facts) -> Verdict:
    """Whether each of its numbers is known; value: the share that is."""
    found = [(m[1].replace(",", ""), bool(m[2])) for m in NUMBER.finditer(_without_names(text["text"], facts))]
    if not found:
        return "pass", 1.0, "holds no number"
    plain, shares = _plain_numbers(facts, text["evidence"]), _shares(facts)
    strange = [
        number for number, is_share in found
        if float(number) not in plain and not (is_share and any(_rounds_to(share, number) for share in shares))
    ]
    detail = f"not in the facts: {', '.join(strange)}" if strange else None
    return "fail" if strange else "pass", 1 - len(strange) / len(found), detail


def _plain_numbers(facts: Facts, evidence: Iterable[str]) -> set[float]:
    """Numbers in the words of the facts (of passages only where the text cites them), geometry, counts of regions."""
    words = [facts.anatomy, facts.view, *(region.label for region in facts.regions)]
    words += [part for label in facts.labels for part in (label.name, label.value)]
    words += [original for _, _, original in facts.originals]
    words += [passage.text for passage in facts.passages if f"passage:{passage.id}" in evidence]
    shown = [region.label for region in facts.regions if region.role != "body"]
    numbers = [facts.width, facts.height, facts.slice_index, *(facts.window or ()), *(facts.pixel_spacing or ())]
    numbers += [len(shown), *Counter(shown).values()]
    numbers += [float(f"{side:g}") for side in facts.pixel_spacing or ()]  # as a sentence writes them
    numbers += [0] if facts.slice_index is not None else []  # from which slices are counted
    numbers += _measured(facts)
    stated = {float(n.replace(",", "")) for w in words if w for n in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", w)}
    return stated | {abs(float(number)) for number in numbers if number is not None}


def _measured(facts: Facts) -> list[float]:
    """The numbers of measures, and those in their words."""
    told = [float(n) for fact in facts.measures for n in re.findall(r"\d+(?:\.\d+)?", fact.words or "")]
    return [*told, *(float(f"{fact.value:.{places}f}") for fact in facts.measures for places in (0, 1, 2))]


def _shares(facts: Facts) -> list[float]:
    """Percent of the image of every region, and of all regions of a label, whose outlines may be believed."""
    sums: dict[str, float] = {}
    believed = [region for region in facts.regions if region.trust == "boundary"]
    for region in believed:
        sums[region.label] = sums.get(region.label, 0) + 100 * region.area_fraction
    return [100 * region.area_fraction for region in believed] + list(sums.values())


def _rounds_to(share: float, number: str) -> bool:
    decimals = len(number.partition(".")[2])
    return abs(share - float(number)) <= 0.5 * 10**-decimals + 1e-9 or (number == "0.1" and share < 0.1)


def check_leak_phrase(text: str) -> Verdict:
    """Whether it talks about its prompt."""
    found = leak(text)
    return ("fail", None, f"says {found!r}") if found else ("pass", None, None)
