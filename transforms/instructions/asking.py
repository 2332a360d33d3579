"""What is asked about a picture as a whole: its modality, view, place in the body, and findings.

The invariant: every question is decided by rows, and the answer names them. A closed question is never alone: its twin
is answered the other way, either a hallucinated attribute in place of the true one (as ProbMed asks) or, where nothing
is surely wrong, the same question turned round.

Wrong answers: of a modality, one that shares no word with it in vocabulary.yaml; of a view or a part of the body, those
that questions.yaml says exclude it; of a finding, those that are known to be absent and not related to any that is
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transforms.facts import Facts
from transforms.instructions.choices import write_choices
from transforms.instructions.known import Evidence, Known
from transforms.instructions.words import answer_of, capital, draw, related, shuffled, table
from transforms.vocabulary import article, listed, modality
from transforms.vocabulary import table as modalities

Form = Literal["open", "closed", "negated", "adversarial", "choices"]
YES, NO = "Yes.", "No."
WRONG = 3
"""Wrong options of a multiple choice, where there are so many."""


@dataclass(frozen=True)
class Asked:
    """A question with its answer. `because` are the evidence ids of what decides it."""

    topic: str
    form: Form
    question: str
    answer: str
    because: Evidence
    roi_ids: tuple[str, ...] = ()
    twin: Asked | None = None
    """the same answered the other way: written after it, and linked to it"""
    subject: str = ""
    """what is asked about, for choosing among many"""


def about_image(facts: Facts, known: Known) -> Iterator[Asked]:
    """All questions about the picture as a whole."""
    yield from _modality(facts)
    yield from _view(facts)
    yield from _anatomy(facts)
    yield from _normality(facts, known)
    yield from _findings(facts, known)


def wording(topic: str, form: str, ids: Sequence[Any], **fields: str) -> str:
    """One of the wordings that questions.yaml has for it, drawn by the ids and filled in."""
    wordings = table()["ask"][topic][form]
    return capital(str(draw(wordings, topic, form, *ids)).format(**fields))


def pair(truth: Asked, form: Form, question: str, because: Evidence | None = None) -> Asked:
    """The truth, whose twin is this question with the other answer."""
    other = NO if truth.answer == YES else YES
    twin = Asked(truth.topic, form, question, other, because or truth.because, truth.roi_ids, subject=truth.subject)
    return Asked(
        truth.topic, truth.form, truth.question, truth.answer, truth.because, truth.roi_ids, twin, truth.subject
    )


def multiple(
    facts: Facts, topic: str, question: str, right: str, wrong: Sequence[str], because: Evidence,
    roi_ids: tuple[str, ...] = (), subject: str = "", least: int = 2,
) -> Iterator[Asked]:
    """A multiple choice, if there are at least so many wrong options."""
    if len(wrong) >= least:
        ids = facts.sample_id, topic, subject
        made = write_choices(question, right, shuffled(wrong, *ids)[:WRONG], *ids)
        yield Asked(topic, "choices", made.text, made.answer, because, roi_ids, subject=subject)


def one_of(
    facts: Facts, topic: str, right: str, wrong: Sequence[str], because: Evidence, *, said: Mapping[str, str],
    options: Mapping[str, str], answer: str,
) -> Iterator[Asked]:
    """The questions about an attribute that has one value: open, a closed pair, a multiple choice.

    `said` gives a value as it stands in a closed question, `options` as an option.
    """
    ids = facts.sample_id, right
    yield Asked(topic, "open", wording(topic, "open", ids), answer, because)
    truth = Asked(topic, "closed", wording(topic, "closed", ids, answer=said[right]), YES, because)
    if wrong:
        false = draw(shuffled(wrong, *ids), *ids)
        yield pair(truth, "adversarial", wording(topic, "closed", ids, answer=said[false]))
    elif "negated" in table()["ask"][topic]:
        turned = wording(topic, "negated", ids, answer=said[right], plain=options[right])
        yield pair(truth, "negated", turned)
    yield from multiple(
        facts, topic, wording(topic, "choices", ids), options[right], [options[value] for value in wrong], because
    )


def _modality(facts: Facts) -> Iterator[Asked]:
    named = modalities().get(facts.modality or "")
    if named is None:
        return
    unlike = [other for other in modalities().values() if not set(other.words) & set(named.words)]
    usual = [m for code in table()["modalities"] if (m := modality(code)) in unlike and m is not None]
    kind = [m for m in usual if m.kind == named.kind]
    wrong = (kind + [m for m in usual if m not in kind])[: max(WRONG, len(kind))]
    nouns = {m.code: m.image for m in (named, *wrong)}
    answer = table()["techniques"].get(named.image, named.name)  # no eye tells computed from digital radiography
    yield from one_of(
        facts, "modality", named.code, [m.code for m in wrong], ("image:modality",),
        said={code: article(noun) for code, noun in nouns.items()},
        options={code: capital(article(noun)) for code, noun in nouns.items()}, answer=f"{capital(answer)}.",
    )


def _view(facts: Facts) -> Iterator[Asked]:
    views = table()["views"]
    view = (facts.view or "").lower()
    if view in views:
        said = {name: views[name]["name"] for name in (view, *views[view]["not"])}
        plain = {name: words.partition(" ")[2] for name, words in said.items()}
        yield from one_of(
            facts, "view", view, views[view]["not"], ("image:view",), said=said, options=plain,
            answer=f"{capital(said[view])} view.",
        )


def _anatomy(facts: Facts) -> Iterator[Asked]:
    right = (facts.anatomy or "").removeprefix("the ")
    if not right or right.lower() in table()["no_bodies"]:
        return
    wrong = table()["bodies"].get(right.lower(), [])
    same = {name: name for name in (right, *wrong)}
    yield from one_of(
        facts, "anatomy", right, wrong, ("image:anatomy",), said=same, options=same, answer=f"{capital(right)}."
    )


def _normality(facts: Facts, known: Known) -> Iterator[Asked]:
    abnormal = next((ids for name, ids in known.present.items() if "abnormal" in name.lower().split()), None)
    because = known.normal or abnormal
    if because is not None and not (known.normal and abnormal):
        ids = (facts.sample_id,)
        answer = YES if known.normal else NO
        is_normal = Asked("normality", "closed", wording("normality", "normal", ids), answer, because)
        yield pair(is_normal, "negated", wording("normality", "abnormal", ids))


def _findings(facts: Facts, known: Known) -> Iterator[Asked]:
    named = {name: ids for name, ids in known.present.items() if not _is_picture(name)}
    wrong = [name for name in known.absent if not any(related(name, other) for other in known.present)]
    if named:
        because = tuple(dict.fromkeys(id for ids in named.values() for id in ids))
        answer = f"{capital(listed([answer_of(name) for name in named]))}."
        yield Asked("finding", "open", wording("finding", "open", (facts.sample_id,)), answer, because)
    for name, because in named.items():
        ids = facts.sample_id, name
        truth = Asked(
            "finding", "closed", wording("finding", "closed", ids, answer=answer_of(name)), YES, because, subject=name
        )
        if wrong:
            false = draw(shuffled(wrong, *ids), *ids)
            question = wording("finding", "closed", ids, answer=answer_of(false))
            yield pair(truth, "adversarial", question, known.absent[false])
        else:
            yield pair(truth, "negated", wording("finding", "negated", ids, answer=answer_of(name)))
        yield from multiple(
            facts, "finding", wording("finding", "choices", ids), name, wrong,
            because + tuple(id for other in wrong for id in known.absent[other] if id not in because), subject=name,
        )
    for name, because in known.absent.items():
        if because[0].startswith("label:"):  # the source says so itself
            ids = facts.sample_id, name
            closed = wording("finding", "closed", ids, answer=answer_of(name))
            no = Asked("finding", "closed", closed, NO, because, subject=name)
            yield pair(no, "negated", wording("finding", "negated", ids, answer=answer_of(name)))
    for name, because in known.present.items():
        if _is_picture(name):
            ids = facts.sample_id, name
            truth = Asked("picture", "closed", wording("picture", "closed", ids, answer=article(name)), YES, because)
            yield pair(truth, "negated", wording("picture", "negated", ids, answer=article(name)))


def _is_picture(name: str) -> bool:
    return name.lower().split()[-1] in table()["pictures"]
