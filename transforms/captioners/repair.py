"""Grade, repair, grade: texts that fail their grade are written again by the model, told what is wrong with them.

The invariant: only failing texts are sent back, at most so many times, and a text is replaced only by one with a better
grade; no text is lost, whatever the model answers. Every round is billed on the first row that it was to mend.

>>> rows = repaired(rows, brief, facts, sample, captioner, prompt)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.errors import Terminal
from infra.keys import sha256
from transforms.captioners.brief import Brief, fenced, mended_form
from transforms.facts import Facts
from transforms.stage import SampleRows

if TYPE_CHECKING:
    from transforms.captioners.llm import Captioner
    from transforms.claims.grade import Grade

UNUSABLE = frozenset({"LLM_INVALID_ANSWER", "LLM_TRUNCATED", "LLM_REFUSED", "LLM_WRONG_LANGUAGE"})
"""What a model may do wrong in a repair: the texts stay as they were, and no further round is tried."""
SHOWN = 6
"""Reasons, at most, that the model is told of one text."""


@dataclass
class _Draft:
    row: dict[str, Any]
    grade: Grade

    @property
    def fails(self) -> bool:
        return self.grade.support is not None and self.grade.support < 1


def repaired(
    rows: Iterable[Mapping[str, Any]], brief: Brief, facts: Facts, sample: SampleRows, captioner: Captioner, prompt: str
) -> list[dict[str, Any]]:
    """The rows, with the failing ones mended as far as the model can; lay words and translations
    are not graded: the rules know neither."""
    from transforms.captioners.llm import billed
    from transforms.claims.grade import grade as by_rules

    grade = captioner.grade or by_rules
    whole = [dict(row) for row in rows]
    language = captioner.params.language
    drafts = {
        n: _Draft(row, grade(_graded(row), facts, sample)) for n, row in enumerate(whole)
        if row["language"] == language and row["kind"] != "lay"
    }
    for _ in range(captioner.params.repair):
        failing = {f"draft_{n}": draft for n, draft in drafts.items() if draft.fails}
        if not failing:
            break
        told = fenced("drafts", [
            {"id": handle, "text": draft.row["text"], "wrong": list(draft.grade.reasons[:SHOWN])}
            for handle, draft in failing.items()
        ])
        try:
            answer = captioner.ask(brief, sample, prompt, brief.text + told, mended_form(brief, failing))
        except Terminal as error:
            if error.code not in UNUSABLE:
                raise
            break
        written = answer.data.model_dump()
        billed(next(iter(failing.values())).row, answer)
        for handle, draft in failing.items():
            new = {**draft.row, "text": written[handle], "model": answer.model,
                   "prompt_sha256": sha256(prompt.encode()), "request_sha256": answer.request_sha256}
            graded = grade(_graded(new), facts, sample)
            if _support(graded) > _support(draft.grade):
                draft.row.update(new)
                draft.grade = graded
    return whole


def _support(grade: Grade) -> float:
    """Its support; a text that claims nothing any more is no better than one that is wholly wrong."""
    return grade.support if grade.support is not None else 0.0


def _graded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the grader takes it: texts get their ids only from the stage."""
    return {"text_id": "", **row}
