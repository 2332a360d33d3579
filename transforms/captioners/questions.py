"""Captioner: questions and answers over what is known of a picture, each with the rows that decide it; no model.

The invariant: nothing is asked that the rows do not decide; a closed question comes with a twin that is answered the
other way, so that "yes" and "no" are equally frequent; a multiple choice has one right option. Equal rows give equal
questions.

    - use: caption
      name: questions
      captioner: questions
      options:
        boxes: tagged
        complete_labels: {chexpert: [cardiomegaly, pleural effusion, pneumothorax, fracture]}
        complete_regions: {totalseg_ct: [liver, spleen, kidney_left, kidney_right]}

Kinds: `question` or, with its options in the text, `choices`, each followed by its `answer`. An answer's evidence is
`text:` with the id of its question, then what decides it. A twin's evidence starts with the id of the question it is
the twin of. The generator says what is asked and how: `questions@1/side/adversarial`; topics and forms are those of
transforms/instructions. Absence is asked only where a label states it or `complete_…` says that the source leaves
nothing out. That is a claim about the source, and worth a look: BCCD, a well-known set of blood cells, marks all white
cells and under half of the red ones in some pictures. The words are in questions.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from infra.keys import sha256
from transforms.facts import Facts
from transforms.instructions.asking import Asked, about_image
from transforms.instructions.boxes import Form
from transforms.instructions.known import Complete, known_of
from transforms.instructions.naming import Naming
from transforms.instructions.regions import about_regions
from transforms.instructions.words import FILE, shuffled
from transforms.stage import Context, SampleRows

NAME = "questions"
VERSION = "1"
REQUIRES: Mapping[str, str] = {}

Topic = Literal[
    "modality", "view", "anatomy", "normality", "finding", "picture", "structure", "count", "side", "place", "share",
    "measure", "larger", "relation", "region_to_text", "text_to_region",
]
TOPICS: tuple[Topic, ...] = get_args(Topic)
Part = Literal["open", "closed", "choices"]


class Params(BaseModel):
    """What a recipe may set for the questions captioner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    topics: tuple[Topic, ...] = Field(TOPICS, description="what is asked about")
    forms: tuple[Part, ...] = Field(
        ("open", "closed", "choices"), description="open questions, pairs of closed ones, multiple choice"
    )
    most: int = Field(4, ge=1, description="questions of one topic and form a sample; a pair counts once")
    boxes: Form = Field(
        "unit", description="how boxes are written: pixels, unit (0 to 1), thousand (0 to 999), tagged (<ref>, <box>)"
    )
    most_boxes: int = Field(16, ge=1, description="a label with more regions is not asked for all its boxes")
    smallest: int = Field(50, ge=1, description="nothing is asked about regions of fewer pixels")
    predicted: bool = Field(False, description="ask about what experts found too, not only about what a source or a "
                            "person marked")
    complete_labels: Mapping[str, tuple[str, ...]] = Field(
        default_factory=dict, description="source -> findings that its labels state wherever they are present"
    )
    complete_regions: Mapping[str, tuple[str, ...]] = Field(
        default_factory=dict, description="source -> labels of which it marks every region in every picture; look "
        "before you claim it, since counts and absence rest on it",
    )


def ingredients(params: Params) -> Mapping[str, str]:
    """What else decides the questions: their words."""
    return {"questions": sha256(FILE.read_bytes())}


def open_captioner(params: Params, context: Context) -> Callable[[Facts, SampleRows], list[dict[str, Any]]]:
    """The captioner; there is nothing to load."""
    complete = Complete(params.complete_labels, params.complete_regions)

    def captions(facts: Facts, sample: SampleRows) -> list[dict[str, Any]]:
        known = known_of(facts, sample, complete, params.predicted, params.smallest)
        asked = [*about_image(facts, known), *about_regions(facts, known, params.boxes, params.most_boxes)]
        return list(_rows(facts.sample_id, _chosen(asked, params, facts.sample_id)))

    return captions


def _chosen(asked: Iterable[Asked], params: Params, sample_id: str) -> Iterator[Asked]:
    """As many of each topic and form as wanted; which ones, the ids decide."""
    groups: dict[tuple[str, str], list[Asked]] = {}
    for one in asked:
        if one.topic in params.topics and one.form in params.forms:
            groups.setdefault((one.topic, one.form), []).append(one)
    for (topic, form), members in groups.items():
        drawn = shuffled(members, sample_id, topic, form, name=lambda one: one.subject + one.question)[: params.most]
        yield from (one for one in members if one in drawn)


def _rows(sample_id: str, asked: Iterable[Asked]) -> Iterator[dict[str, Any]]:
    naming = Naming(sample_id)
    for one in asked:
        truth = yield from _pair(one, [], naming)
        if one.twin is not None:
            yield from _pair(one.twin, [truth], naming)


def _pair(one: Asked, linked: list[str], naming: Naming) -> Generator[dict[str, Any], None, str]:
    """A question's row and its answer's; returns the question as evidence."""
    common = {
        "roi_ids": list(one.roi_ids), "language": "en", "generator": f"{NAME}@{VERSION}/{one.topic}/{one.form}",
    }
    kind = "choices" if one.form == "choices" else "question"
    question = {**common, "kind": kind, "text": one.question, "evidence": [*linked, *one.because]}
    named = f"text:{naming.name(question)}"
    answer = {**common, "kind": "answer", "text": one.answer, "evidence": [named, *one.because]}
    naming.name(answer)
    yield from (question, answer)
    return named
