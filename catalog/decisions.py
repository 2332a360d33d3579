"""Decisions of reviewers: what a person said of a text or a region, kept outside the dataset until the next build.

One file a decision, `HOME/decisions/00000001.json`, numbered in the order in which they were made. The invariant: a
file is written whole and never changed; a reviewer changes their mind by a later decision about the same thing. So the
first N decisions are one fact, which `digest` names, and the stage `decisions` (transforms/decisions.py) turns them
into rows. What the reviewer saw is hashed into the decision: about a text that has changed since it says nothing.
Decisions may quote what they judge: with the last snapshot that holds a sample, `medloom catalog gc` removes those
about it (`withdraw`).

Files and rows know a reviewer by a pseudonym only, which is stable for a home (HMAC with its key for identifiers).

>>> decide(home, Decision(reviewer=reviewer(home, "Ada"), sample_id=s, about=f"text:{t}", seen=seen_text(text), ...))
>>> latest(read(home))
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from infra import mirror
from infra.errors import ConfigError
from infra.keys import key, pseudonym
from infra.s3 import Conflict
from infra.settings import pseudonym_key
from infra.storage import locked, write_bytes

FOLDER = "decisions"
LOCK_WAIT_S = 10.0
REVIEWER = re.compile(r"r-[0-9a-f]{8}")
_NUMBERED = re.compile(r"\d{8}\.(json|gone)")


class Decision(BaseModel):
    """What one person said of one text or region. Frozen; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reviewer: str = Field(description="pseudonym, as `reviewer` makes it", pattern=REVIEWER.pattern, max_length=10)
    sample_id: str = Field(min_length=1, max_length=200)
    about: str = Field(description="text:ID or roi:ID", pattern=r"^(text|roi):.+$", max_length=200)
    seen: str = Field(description="`seen_text` or `seen_roi` of what was shown", pattern=r"^[0-9a-f]{24}$")
    verdict: Literal["accept", "correct", "reject"]
    text: str | None = Field(None, description="of a corrected text: what it should say", max_length=20_000)
    label: str | None = Field(None, description="of a corrected region: what it shows", max_length=200)
    box: tuple[int, int, int, int] | None = Field(None, description="of a corrected region: x0, y0, x1, y1, half-open")
    note: str | None = Field(None, description="why, in the reviewer's words", max_length=2000)
    made_at: str = Field("", description="UTC, ISO 8601; for people, it enters no row", max_length=32)

    @field_validator("text", "label", "note")
    @classmethod
    def _said(cls, words: str | None) -> str | None:
        """Empty is not said; what no encoding can hold is refused."""
        if words is not None and "\0" in words:
            raise ValueError("holds a null character")
        return words.strip() or None if words is not None else None

    @model_validator(mode="after")
    def _complete(self) -> Decision:
        of_region = self.label is not None or self.box is not None
        if self.verdict != "correct" and (of_region or self.text is not None):
            raise ValueError("only a correction says what should stand instead")
        if self.verdict == "correct" and (self.text is None if self.kind == "text" else not of_region):
            raise ValueError("a correction says what should stand instead: of a text its words, of a region a label, a "
                             "box or both")
        if of_region if self.kind == "text" else self.text is not None:
            raise ValueError("words are for a text; a label and a box are for a region")
        if self.box is not None and not (0 <= self.box[0] < self.box[2] and 0 <= self.box[1] < self.box[3]):
            raise ValueError("a box is x0, y0, x1, y1 with x0 < x1 and y0 < y1, not below 0")
        return self

    @property
    def kind(self) -> str:
        """text or roi."""
        return self.about.partition(":")[0]

    @property
    def id(self) -> str:
        """text_id or roi_id of what it is about."""
        return self.about.partition(":")[2]


def reviewer(home: Path, name: str) -> str:
    """The pseudonym of a reviewer: "r-" and 8 hex digits. Raises ConfigError for an empty name."""
    if not (told := " ".join(name.split()).casefold()):
        raise ConfigError("a reviewer has a name")
    return "r-" + pseudonym(pseudonym_key(home), "reviewer", told)[:8]


def seen_text(text: str) -> str:
    """The key of a text's words, as a decision says what was seen."""
    return key("text", text)


def seen_roi(roi: Mapping[str, Any]) -> str:
    """The key of a region: its label, box and mask."""
    mask = roi["mask"] and {"size": list(roi["mask"]["size"]), "counts": roi["mask"]["counts"]}
    return key("roi", roi["label"], list(roi["box"]), mask)


def decide(home: Path, decision: Decision) -> int:
    """Keep a decision; returns its number. It is on disk when this returns. TimeoutError: others keep writing."""
    folder = home / FOLDER
    with locked(folder / ".lock", wait_s=LOCK_WAIT_S):
        number = count(home) + 1
        data = decision.model_dump_json(indent=1, exclude_none=True).encode()
        while not _is_ours(folder / f"{number:08d}.json", data):
            number += 1
        write_bytes(folder / f"{number:08d}.json", data)
    return number


def read(home: Path, first: int | None = None) -> list[Decision]:
    """The decisions of a home in the order they were made; with `first`, only those numbered up to it.

    Raises ConfigError for a file that is none: a person has to look at it.
    """
    return list(numbered(home, first).values())


def numbered(home: Path, first: int | None = None) -> dict[int, Decision]:
    """The same by their numbers. Raises as `read` does."""
    found = {}
    for path in _files(home):
        if path.suffix == ".json" and (first is None or int(path.stem) <= first):
            try:
                found[int(path.stem)] = Decision.model_validate_json(path.read_bytes())
            except ValidationError as error:
                why = error.errors()[0]["msg"]
                raise ConfigError(f"{path} is no decision; mend it or move it away: {why}") from None
    return found


def withdraw(home: Path, numbers: Sequence[int]) -> None:
    """Remove decisions. An empty file `NUMBER.gone` says that there was one, so that no number is given twice: other
    working copies of a bucket would keep the first decision of that number for the second."""
    for number in numbers:
        write_bytes(home / FOLDER / f"{number:08d}.gone", b"")
    mirror.discard(home, [f"{FOLDER}/{number:08d}.json" for number in numbers])


def count(home: Path) -> int:
    """The number of the last decision, also of one that was withdrawn; 0 where there is none."""
    return max((int(path.stem) for path in _files(home)), default=0)


def digest(decisions: Iterable[Decision]) -> str:
    """A key of what they say: of what was taken back nothing, and without the times, which enter no row."""
    said = [d.model_dump(mode="json", exclude={"made_at"}) for d in latest(decisions)]
    return key("decisions", said)


def latest(decisions: Iterable[Decision]) -> list[Decision]:
    """The last decision of each reviewer about each thing, in the order of sample, thing and reviewer."""
    last = {(d.sample_id, d.about, d.reviewer): d for d in decisions}
    return [last[name] for name in sorted(last)]


@dataclass(frozen=True)
class Pair:
    """How two reviewers agree on what both judged: accepted, or not (rejected or corrected)."""

    a: str
    b: str
    both: int
    """things that both judged"""
    agreed: int
    kappa: float | None
    """Cohen's kappa (Cohen 1960); null where chance alone would agree always, or nothing was judged by both"""


@dataclass(frozen=True)
class Agreement:
    """Counts of decisions, and the agreement of every pair of reviewers who judged a thing in common."""

    reviewers: Mapping[str, Mapping[str, int]]
    """reviewer -> verdict -> how many"""
    pairs: tuple[Pair, ...]


def agreement(decisions: Iterable[Decision]) -> Agreement:
    """Agreement statistics over the last decision of each reviewer about each thing."""
    by: dict[str, dict[tuple[str, str, str], bool]] = {}
    counts: dict[str, Counter[str]] = {}
    for d in latest(decisions):
        by.setdefault(d.reviewer, {})[d.sample_id, d.about, d.seen] = d.verdict == "accept"
        counts.setdefault(d.reviewer, Counter())[d.verdict] += 1
    pairs = []
    for a, b in combinations(sorted(by), 2):
        common = sorted(by[a].keys() & by[b].keys())
        if common:
            said = [(by[a][name], by[b][name]) for name in common]
            pairs.append(Pair(a, b, len(said), sum(x == y for x, y in said), kappa(said)))
    return Agreement({name: dict(sorted(counts[name].items())) for name in sorted(counts)}, tuple(pairs))


def kappa(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Cohen's kappa of two raters' answers to the same things; None where chance alone would agree always.

    >>> kappa([(True, True), (True, False), (False, False), (False, False)])
    0.5
    """
    n = len(pairs)
    if n == 0:
        return None
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(first[name] * second[name] for name in first) / n**2
    observed = sum(a == b for a, b in pairs) / n
    return None if chance == 1 else round((observed - chance) / (1 - chance), 6)


def _is_ours(path: Path, data: bytes) -> bool:
    """Whether the number is still free; a home in a bucket may have reviewers on other machines."""
    try:
        mirror.send_new(data, path)
    except Conflict:
        return False
    return True


def _files(home: Path) -> list[Path]:
    folder = home / FOLDER
    mirror.pull(folder)
    return sorted(p for p in folder.iterdir() if _NUMBERED.fullmatch(p.name)) if folder.is_dir() else []
