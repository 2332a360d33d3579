"""From what experts found on one picture to the rows that are kept and the checks that tell about them.

The invariant: every expert that was asked is in the checks, with what it found or why it found nothing; a check has one
row a sample. Names begin with the stage's word (`roi`, `volume`), so that both stages may look at one picture:

    roi_status             how many regions there are; the words of each expert
    roi_routing            how many experts were asked; which rule asked whom, and why not others (`experts: auto`)
    roi_plausible/EXPERT   the share of rules that its regions break (plausible.py); the regions and the rules
    agreement/THING        the worst figure of two experts on a thing (agreement.py); every pair, and what was kept

Of the stage `ground_volumes` they are volume_status, volume_routing, volume_plausible/… and volume_agreement/….

>>> rows, checks = concluded("roi", "2", sample, [Answer(expert, rois)], choose="all")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.keys import key
from transforms.experts.expert import Expert
from transforms.grounding import agreement, plausible
from transforms.grounding.agreement import Choose, Party, settled
from transforms.stage import SampleRows
from transforms.terms.lookup import BUNDLED

Row = Mapping[str, Any]
Rois = list[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """What one expert said of a picture."""

    expert: Expert
    rows: Sequence[Row] = ()
    problem: str | None = None
    """why it could not answer; None: it did, if only that there is nothing"""
    hu: Mapping[str, float] = field(default_factory=dict)
    """label -> mean Hounsfield units, where the scan itself was measured"""
    said: str | None = None
    """its own words, in place of how many regions it found"""

    @property
    def words(self) -> str:
        found = self.said or (f"found {len(self.rows)}" if self.rows else "found nothing")
        return f"{self.expert.name}: {self.problem or found}"


def ingredients() -> Mapping[str, str]:
    """Hashes of the data that decide checks and choice, for the stage's key."""
    return {
        name: key(path.read_text(encoding="utf-8"))
        for name, path in (("plausible", plausible.FILE), ("terms", BUNDLED))
    }


def concluded(
    word: Literal["roi", "volume"], version: str, sample: SampleRows, answers: Sequence[Answer], *, choose: Choose,
    shown: Row | None = None, routing: str | None = None, pixels: bool = False,
) -> tuple[Rois, Rois]:
    """Rows of `rois` and of `checks`. `answers` stand in order of preference; `shown` is the picture's row as the
    experts saw it; `routing` are the words of the router, where it chose; `pixels`: they may be looked at."""
    image = shown or sample.image
    size = image["height"], image["width"]
    own = [Party(a.expert.name, tuple(a.rows), a.expert.card) for a in answers if a.problem is None]
    rows, told = settled(sample.id, size, [*_earlier(sample), *own], choose)
    answered = any(answer.problem is None for answer in answers)
    said = "; ".join(answer.words for answer in answers) or "no expert was asked"
    checks = [_check(f"{word}_status", version, len(rows), "pass" if answered else "unknown", said)]
    if routing is not None:
        checks.append(_check(f"{word}_routing", version, len(answers), "pass" if answers else "unknown", routing))
    prefix = "agreement" if word == "roi" else "volume_agreement"
    for name, pairs, kept in told:
        worst = min(pair.value for pair in pairs)
        detail = f"{'; '.join(pair.words for pair in pairs)}; {kept}"
        verdict = "pass" if worst >= agreement.POOR else "fail"
        checks.append(_check(f"{prefix}/{name}", version, worst, verdict, detail))
    for answer in answers:
        kept_rows = [row for row in answer.rows if any(row["roi_id"] == other["roi_id"] for other in rows)]
        if kept_rows:
            look = sample.pixels() if pixels and image.get("modality") == "CT" else None
            told_of = plausible.judged(kept_rows, image, look, answer.hu)
            checks.append(_check(
                f"{word}_plausible/{answer.expert.name}", version, told_of.anomaly, told_of.verdict, told_of.detail
            ))
    return rows, checks


def _earlier(sample: SampleRows) -> list[Party]:
    """The source, and the experts of earlier stages, as parties whose rows stand already."""
    found: dict[str, list[Row]] = {}
    for row in sample.rows("rois"):
        name = agreement.SOURCE if row["origin"] != "predicted" else row["expert"].partition("@")[0]
        found.setdefault(name, []).append(row)
    return [Party(name, tuple(rows), fixed=True) for name, rows in found.items()]


def _check(name: str, version: str, value: float | None, verdict: str, detail: str) -> dict[str, Any]:
    return {"text_id": "", "check": name, "version": version, "value": value, "verdict": verdict, "detail": detail}
